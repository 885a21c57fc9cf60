"""W&B beside the training: it mirrors the run directory, and can never slow or stop a run.

Read `mirror` first, then `process`, which it starts; only `session` imports wandb.
"""
