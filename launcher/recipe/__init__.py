"""What a user writes: a recipe, its hyperparameters, and the file it stands in. No torch.

Read `base` first, then `file`.
"""
