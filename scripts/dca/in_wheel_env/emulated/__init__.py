"""Attaches an emulated CUDA device to torch."""
