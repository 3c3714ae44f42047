"""What is known before a build starts: the schemas and readers of `build/`, facts about the machine, and plans."""
