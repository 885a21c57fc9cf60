"""Where the time of all starts of a run went: times.jsonl, written (`notes`) and added up.

Read `goodput` first: a pure function of the lines.
"""
