"""A model, its loss and its optimizer in one process: their state, averages and meaning.

No collectives. Read `state` first.
"""
