"""Real engines that serve on a CPU: the known ones (build/engines/*.toml), and environments that they run in."""
