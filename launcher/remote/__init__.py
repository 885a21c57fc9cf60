"""A run on a cluster, from a laptop: over the user's own ssh and rsync, and by the launcher there.

Read `submit` first; `connection` is all that is said to ssh, `there` what runs on the login node.
"""
