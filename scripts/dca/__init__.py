"""Builds and proves vLLM wheels with dual chunk attention (DCA)."""

__version__ = "0.2.0"
