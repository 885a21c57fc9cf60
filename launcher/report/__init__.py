"""Pictures of runs: one HTML file without network.

Read `page`; the script and the template beside it are what the browser gets.
"""
