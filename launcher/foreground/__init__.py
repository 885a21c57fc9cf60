"""A job's scripts in the foreground, the very same ones: on this machine.

Read `scripts` first; `local` fakes SLURM.
"""
