"""Fetches sources: the package index, git, and the pristine tree of a plan."""
