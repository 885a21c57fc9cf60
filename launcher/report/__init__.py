"""Runs beside each other: one HTML page without network, and where two of them part.

Read `page`; the script and the template beside it are what the browser gets. `compare` is for
`launcher diff`.
"""
