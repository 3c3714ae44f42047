"""Runs CUDA kernels on a CPU: PTX text becomes C++ that the machine's g++ compiles."""
