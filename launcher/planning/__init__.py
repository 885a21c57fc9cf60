"""What a run would need, before it is started: computed without values, in a process of its own.

Read `plan` first.
"""
