"""What a run directory holds: the truth about a run, in files. No torch.

Read `directory` first, then `config` and `record`.
"""
