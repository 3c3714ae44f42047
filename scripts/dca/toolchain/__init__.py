"""Provides what a build runs with: CUDA toolkits, conda and Python environments, and the lock of all of it."""
