"""Code that runs in the environment of a wheel or a build, with torch and the standard library, from Python 3.9 on.

Nothing here imports the rest of dca, and the rest imports nothing from here: `workers` are started as programs.
"""
