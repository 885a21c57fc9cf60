"""`launcher.start` and `launcher.submit`: commands of ours as child processes of a program.

Read `started` first.
"""
