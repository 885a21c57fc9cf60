"""`--json`: a command prints one object at its end, on stdout, where nothing else is then said."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from launcher.errors import LauncherError, Stopped
from launcher.files import read_json, refused_by_disk
from launcher.launch.launch import Launch
from launcher.launch.script import launch
from launcher.run.directory import RunDir

_TOLD, _ASKED = f"{__name__}.told", f"{__name__}.asked"  # in `Context.meta`


def _ask(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    ctx.meta[_ASKED] = asked


JSON = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_ask,
    help="Print one JSON object at the end; all else goes to stderr.",
)


def is_asked() -> bool:
    """Whether the command that runs was given --json."""
    return bool(click.get_current_context().meta.get(_ASKED))


def tell(**facts: Any) -> None:
    """Put facts into the object of the command that runs."""
    click.get_current_context().meta.setdefault(_TOLD, {}).update(facts)


def launch_and_tell(job: Launch) -> None:
    """Launch a run, and tell where it is and what result.json says; raises as `launch` does."""
    try:
        launch(job)
    finally:
        tell_of(job.run)


def tell_of(run: RunDir) -> None:
    """Tell where a run is, null where nothing is left of it, and what result.json says."""
    there = run.config.exists()
    result = (read_json(run.result) or {}) if there else {}
    tell(**{"error": None, "hint": None, "run_dir": str(run.path) if there else None} | result)


class Answers(click.Command):
    """A command that prints one object with --json, however it ends."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Parse as click does; what is refused is told as well."""
        asked = "--json" in _own(args)  # now: click takes words away
        try:
            return super().make_context(info_name, args, parent, **extra)
        except (click.ClickException, LauncherError) as error:
            if asked:
                _print(_failure(error), sys.stdout)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with --json all that it says goes to stderr, but for the object."""
        if not ctx.meta.get(_ASKED):
            return super().invoke(ctx)
        ending: dict[str, Any] = {"exit_code": 0}
        with _aside() as stdout:
            try:
                return super().invoke(ctx)
            except BaseException as error:
                ending = _failure(error)
                raise
            finally:
                _print(ctx.meta.get(_TOLD, {}) | ending, stdout)


def _own(args: Sequence[str]) -> Sequence[str]:
    """Return the words before `--`: what follows is another program's."""
    return args[: args.index("--")] if "--" in args else args


def _failure(error: BaseException) -> dict[str, Any]:
    """Return what an object says of a command that did not end well."""
    if isinstance(error, OSError):
        error = refused_by_disk(error) or error
    told: dict[str, Any] = {"state": "failed", "exit_code": 1, "error": None, "hint": None}
    if isinstance(error, SystemExit | click.exceptions.Exit):  # it has said why, or has no reason
        code = error.code if isinstance(error, SystemExit) else error.exit_code
        return {"exit_code": code if isinstance(code, int) else int(code is not None)}
    if isinstance(error, LauncherError):
        state = "stopped" if isinstance(error, Stopped) else "failed"
        known = {"state": state, "exit_code": error.exit_code, "error": error.message}
        return told | known | {"hint": error.hint}
    if isinstance(error, click.ClickException):
        return told | {"exit_code": error.exit_code, "error": error.format_message()}
    return told | {"error": f"{type(error).__name__}: {error}".removesuffix(": ")}


def _print(told: dict[str, Any], stdout: TextIO) -> None:
    print(json.dumps(told, allow_nan=False), file=stdout, flush=True)


@contextmanager
def _aside() -> Iterator[TextIO]:
    """Give stdout, and have what is said there, by other processes, too, go to stderr."""
    before = sys.stdout
    before.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    is_real = before is sys.__stdout__
    if not is_real:  # of a test
        sys.stdout = sys.stderr
    with os.fdopen(kept, "w", encoding="utf-8") as stdout:
        try:
            yield stdout if is_real else before
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            if not is_real:
                sys.stdout = before
