"""Serving a model: whether it fits, with which flags, the command that starts it, starting it, and checking it."""
