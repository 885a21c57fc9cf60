"""The command line: click commands, and nothing else.

Each command is loaded when it is used. Read `main` first (which commands there are, and how an
error is shown), then `run`.
"""
