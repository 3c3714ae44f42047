"""Compiles a patched tree to extension modules with CMake and ninja."""
