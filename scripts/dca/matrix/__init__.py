"""Many wheels from one file: expands it to cells, plans each, and builds every wheel once.

Nothing here schedules: on this machine one wheel is built after the other, each with all cores; elsewhere an engine
runs the jobs that `jobs` and `formats` write.
"""
