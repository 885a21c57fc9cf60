"""A run as a job, from a login node: planned, rendered, submitted, told of and cancelled.

Read `submit` first, then `render`; `client` is all that is said to SLURM.
"""
