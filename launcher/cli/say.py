"""What commands say: texts come from files, other programs and other people, and are only shown."""

import click

from launcher.masks import clean


def say(text: object, *, err: bool = False, colour: str | None = None) -> None:
    """Print a text so that a terminal acts upon nothing in it."""
    click.secho(clean(str(text)), err=err, fg=colour)
