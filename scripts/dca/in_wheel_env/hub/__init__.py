"""The Python of kernel repositories: each file becomes part of a variant, beside its module."""
