"""The command `launcher guide`: pages of one subject each, since a login node has no browser."""

import sys
from pathlib import Path

import click

import launcher
from launcher.cli.say import say
from launcher.errors import BadInput, did_you_mean

_PAGES = Path(launcher.__file__).parent / "guide"
_WIDEST = 110  # columns of text that are easy to read


@click.command()
@click.argument("subject", required=False)
def guide(subject: str | None) -> None:
    """List the pages of the guide, or show the one about SUBJECT.

    In a pipe a page is plain text: `launcher guide SUBJECT | less`.
    """
    pages = {path.stem: path for path in sorted(_PAGES.glob("*.md"))}
    if subject is None:
        width = max(map(len, pages))
        for name, path in pages.items():
            say(f"{name:<{width}}  {_one_line(path)}")
    elif subject in pages:
        _show(pages[subject].read_text(encoding="utf-8"))
    else:
        hint = f"{did_you_mean(subject, pages)}there are: {', '.join(pages)}"
        raise BadInput(f"the guide has no page `{subject}`", hint=hint)


def _one_line(path: Path) -> str:
    """Return what a page is about: its title behind the subject, `# Subject: what it is about`."""
    with path.open(encoding="utf-8") as page:
        return next(page).partition(": ")[2].strip()


def _show(text: str) -> None:
    if not sys.stdout.isatty():
        say(text.rstrip("\n"))
        return
    from rich.console import Console  # noqa: PLC0415  # only a terminal needs it
    from rich.markdown import Markdown  # noqa: PLC0415

    console = Console()
    console.print(Markdown(text, hyperlinks=False), width=min(console.width, _WIDEST))
