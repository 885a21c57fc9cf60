"""Is this machine fit to train? Asked before hours are spent on the answer.

Read `doctor` first; `checks` are those that need no process of a run.
"""
