"""One machine's processes, from the inside: how they start, meet, fork and are bound to a parent.

Worker side: nothing that the launcher itself imports. Read `start` first, then `agent`.
"""
