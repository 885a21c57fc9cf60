"""`python -m launcher`."""

from launcher.cli import main

main(prog_name="launcher")
