"""Models larger than one device: each rank keeps a share of weights, gradients and optimizer state.

`shard=true`, by torch's `fully_shard`. Read `building` first.
"""
