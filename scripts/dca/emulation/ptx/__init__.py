"""Reads PTX text, the assembly language of CUDA kernels."""
