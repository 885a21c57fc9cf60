"""One step of a run, made again as the run made it.

Read `replay` first (the step), then `process`: one of several processes that make it together.
"""
