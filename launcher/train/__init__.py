"""What each training process runs, from the recipe to the end of the run.

Read `loops` first (the algorithm), then `worker` and `prepare`, which build what it works on.
"""
