"""What a batch script that a user has written lacks: its commands are read as the shell reads them.

Comments, here-documents and what is only quoted are no commands, and `trap '' USR1` is no trap.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Literal, NamedTuple

_TOKEN = re.compile(
    r"""
      (?P<single>'[^']*')
    | (?P<double>"(?:\\.|[^"\\])*")
    | (?P<escape>\\.)
    | (?P<here><<-?[ \t]*(?P<quote>['"\\]?)(?P<mark>\w+)(?P=quote)?)(?!<)
    | (?P<end>[;&|()\n])
    | (?P<space>[ \t]+)
    | (?P<comment>\#[^\n]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_BEFORE = {
    "if",
    "then",
    "else",
    "elif",
    "while",
    "until",
    "do",
    "!",
    "{",
    "time",
    "exec",
    "builtin",
}
_SAYS = {"echo", "printf", ":"}
_USR1 = {"USR1", "SIGUSR1", "10"}


class Command(NamedTuple):
    """A simple command: its words without quotes."""

    words: list[str]
    nested: int  # how many parentheses are around it: in a subshell a trap is not the script's


def commands(script: str) -> Iterator[Command]:
    """Give the simple commands of a script in their order, those within $( ) too."""
    words: list[str] = []
    word: str | None = None  # None between words; "" is a word, too: ''
    nested = 0
    for kind, text in [*_pieces(script), ("end", "\n")]:
        if kind == "word":
            word = (word or "") + text
            continue
        words, word = (words if word is None else [*words, word]), None
        if kind == "end":
            if words:
                yield Command(_plain(words), nested)
            words, nested = [], max(0, nested + {"(": 1, ")": -1}.get(text, 0))


def _pieces(script: str) -> Iterator[tuple[Literal["word", "space", "end"], str]]:
    """Give parts of words without their quotes, and what is between words and commands."""
    at, here, in_word = 0, "", False
    while match := _TOKEN.match(script, at):
        kind, text, at = match.lastgroup, match[0], match.end()
        if match["mark"]:
            kind, here = "space", match["mark"]
        if kind == "comment" and in_word:  # it is none: $#
            kind, text, at = "other", "#", match.start() + 1
        in_word = kind not in ("end", "space", "comment")
        if kind == "end":
            yield "end", text
        elif not in_word:
            yield "space", text
        elif text != "\\\n":  # a line that goes on
            yield "word", _unquoted(text, kind)
        if text == "\n" and here:
            body = re.compile(rf".*?^\t*{here}$", re.MULTILINE | re.DOTALL).match(script, at)
            at, here = (body.end() if body else len(script)), ""


def _unquoted(text: str, kind: str | None) -> str:
    return text[1:-1] if kind in ("single", "double") else text.removeprefix("\\")


def _plain(words: list[str]) -> list[str]:
    """Return a command without what may stand before it: keywords and assignments."""
    start = 0
    while start < len(words) - 1 and (words[start] in _BEFORE or re.match(r"\w+=", words[start])):
        start += 1
    return words[start:]


def lacks(script: str, *, requeue: bool) -> list[str]:
    """Return what a batch script has left out that it cannot do without, and what follows."""
    found = list(commands(script))
    needed = [
        (
            _directives(script),
            "the #SBATCH lines (`directives`): the job would not be what was asked",
        ),
        (_trap(found), "the trap for USR1: the run would not stop before the time limit"),
        (_calls(found, "job", "begin"), "`launcher job begin`: budgets would not be kept"),
        (
            _calls(found, "job", "end"),
            "`launcher job end`: a failed run would not be told from a completed one",
        ),
    ]
    patient, once = _calls(found, "job", "requeue"), _calls(found, "scontrol", "requeue")
    if requeue and once and not patient:
        words = "`launcher job requeue`: scontrol asks once, and SLURM may not answer just then"
        needed.append((False, words))
    elif requeue:
        needed.append((patient, "the requeue block: the job would not go on by itself"))
    return [what for there, what in needed if not there]


def places(script: str) -> bool:
    """Whether a batch script starts on the nodes that it is told, and not on all it has."""
    found = (words for words, _ in commands(script) if "--place" in words)
    return any(("job", "begin") in pairwise(words) for words in found)


def _directives(script: str) -> bool:
    """Whether sbatch reads the options: it stops at the first line that is a command."""
    lines = script.splitlines()
    head = takewhile(lambda line: not line.strip() or line.startswith("#"), lines)
    return any(line.startswith("#SBATCH --signal=") for line in head)


def _trap(found: Sequence[Command]) -> bool:
    """Whether USR1 leads to something before srun starts, in the script itself."""
    before = takewhile(lambda command: command.words[0] != "srun", found)
    return any(
        words[0] == "trap" and not nested and len(words) > 2 and words[1] not in ("", "-")
        and _USR1 & set(words[2:])
        for words, nested in before
    )  # fmt: skip


def _calls(found: Sequence[Command], first: str, second: str) -> bool:
    """Whether some command has two words behind one another, and does not only say them."""
    calls = (words for words, _ in found if words[0] not in _SAYS)
    return any((first, second) in pairwise(words) for words in calls)
