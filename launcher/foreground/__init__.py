"""A job's scripts in the foreground, the very same ones: on this machine, or in an allocation.

Read `scripts` first; `local` fakes SLURM, `here` uses the allocation that one is sitting in.
"""
