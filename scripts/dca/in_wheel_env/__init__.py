"""What runs in a wheel's or a build's environment: torch and the standard library alone, from Python 3.9 on.

Nothing here imports the rest of the tool, and the rest imports nothing from here: `workers` are started as programs.
"""
