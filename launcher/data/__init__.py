"""From samples to batches: which sample belongs where, what it draws, and how it reaches a device.

Read `sampler` first, then `loader` and `fetching`.
"""
