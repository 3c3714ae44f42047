"""Writes a wheel: package files, metadata, bill of materials, provenance, platform tag."""
