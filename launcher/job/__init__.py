"""A SLURM job from the inside: its starts are counted, its ends judged, its nodes run.

The batch script and the script of each node call these. Read `lifecycle` first, then `node`.
"""
