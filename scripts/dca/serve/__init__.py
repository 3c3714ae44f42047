"""Serving a model with a wheel: whether it fits, the command that starts it, and whether the server really answers."""
