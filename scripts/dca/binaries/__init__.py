"""Reads compiled modules without loading them: ELF, fat binaries, mangled names."""
