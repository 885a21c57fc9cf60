"""A script in a run: what is started, what its agent is told, how its processes ended.

Read `script` first, then `plan` and `ends`.
"""
