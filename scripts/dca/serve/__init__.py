"""Serving a model: will it fit, with which flags, the command that starts it, and starting it."""
