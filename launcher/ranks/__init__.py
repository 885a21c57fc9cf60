"""The processes of a run as one: who each is, what they sum, and what they agree on.

All collectives are here. Read `context` first, then `metrics`.
"""
