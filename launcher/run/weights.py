"""Weights as files: what a run begins with, and what it leaves. Never imports torch.

They are one file of safetensors, or several and an index of them, as `transformers` has it.
"""

import json
from pathlib import Path

from launcher.errors import BadInput
from launcher.run.checkpoint_files import MODEL, Checkpoint, all_of, problem, shares_in
from launcher.run.directory import RunDir

INDEX = ".index.json"  # behind the name that one file would have
_LENGTH = 8  # bytes in front of the header of a safetensors file: its length, little-endian


def files_of(weights: Path) -> list[Path]:
    """Return the files of weights: one of that name, or the index and then those that it lists.

    Raises OSError for an index that is not there or cannot be read, ValueError for what is none.
    """
    index = index_of(weights)
    if not index.is_file():
        return [weights]
    try:
        named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        return [index, *(index.with_name(Path(name).name) for name in named)]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"`{index}` has no `weight_map`") from error


def index_of(weights: Path) -> Path:
    """Return where the index of several files stands, which are there instead of one."""
    return weights.with_name(weights.name + INDEX)


def part_of(weights: Path, number: int, count: int) -> Path:
    """Return the file of a number from 1 on, of so many."""
    return weights.with_name(f"{weights.stem}-{number:05d}-of-{count:05d}{weights.suffix}")


def forget(weights: Path) -> None:
    """Delete the files of weights that an earlier session has left, in one form or the other."""
    index = index_of(weights)
    parts = files_of(weights)[1:] if index.is_file() else []
    for path in (weights, index, *parts):  # the index first of its own: what is left is no weights
        path.unlink(missing_ok=True)


def weights_of(given: Path) -> Path:
    """Return the file of weights that a run directory, a checkpoint or a file stands for.

    A run's are its final weights, else those of its newest checkpoint that is whole. Of several
    files it is the index, of a checkpoint that each rank has a share of the first one's. Raises
    BadInput where there are none, and for a file of another format.
    """
    given = given.absolute()
    if not given.is_dir():
        return _checked(given)
    run = RunDir(given)
    if index_of(run.weights).is_file():
        return _checked(index_of(run.weights))
    if run.weights.is_file():
        return _checked(run.weights)
    if shares := shares_in(given):
        return _checked(shares[0])
    for checkpoint in reversed(all_of(run.checkpoints)):
        if problem(checkpoint) is None:
            return _in_checkpoint(checkpoint)
    raise BadInput(
        f"`{given}` has no weights to start from",
        hint="give the directory of a run that has a checkpoint, or a file of safetensors",
    )


def _in_checkpoint(checkpoint: Checkpoint) -> Path:
    return next(iter(shares_in(checkpoint.path)), checkpoint.path / MODEL)


def _checked(path: Path) -> Path:
    """Return a file; raises BadInput where it is not one of safetensors, nor an index of some."""
    if path.name.endswith(INDEX):
        return _checked_index(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            whole = _LENGTH + length <= path.stat().st_size
            header = json.loads(file.read(length)) if whole else None
    except OSError as error:
        raise BadInput(f"weights `{path}` cannot be read: {error.strerror}") from error
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise BadInput(
            f"`{path}` is no file of safetensors",
            hint="write one with safetensors.torch.save_file(model.state_dict(), FILE)",
        )
    return path


def _checked_index(path: Path) -> Path:
    try:
        if not path.is_file():
            path.open("rb").close()
        _, *parts = files_of(path.with_name(path.name.removesuffix(INDEX)))
    except OSError as error:
        raise BadInput(f"weights `{path}` cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadInput(
            f"`{path}` is no index of safetensors: {error}",
            hint='it is JSON: {"weight_map": {"NAME OF A TENSOR": "FILE", …}}',
        ) from error
    for part in parts:
        _checked(part)
    return path
