"""A script of the user's own that runs as a run: `attached` first. Imports torch only to agree."""
