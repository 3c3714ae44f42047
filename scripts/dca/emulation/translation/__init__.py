"""Translates PTX to C++ for the run time in ../runtime."""
