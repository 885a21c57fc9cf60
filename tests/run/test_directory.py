"""The run directory: atomic writes, and one run a folder."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import RunDirError
from launcher.files import assets, read_json, write_bytes, write_json, write_text, written
from launcher.run.directory import RunDir
from launcher.run.told import read_config

CONFIG: dict[str, Any] = {"recipe": "r", "hyperparameters": {"epochs": 1}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_path_of_a_run_lies_in_its_folder(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [run.recipe, run.config, run.metrics, run.result, run.weights, run.log(3)]
    paths += [run.record(3), run.agent(1), run.exits(1)]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "recipe.py",
        "config.json",
        "metrics.jsonl",
        "result.json",
        "model.safetensors",
        "logs/rank-3.log",
        "logs/rank-3.json",
        "logs/node-1.log",
        "logs/node-1-exits.json",
    ]


def test_a_new_run_holds_its_recipe_and_configuration(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "deep" / "run")
    run.create(CONFIG, "# été\n")
    assert names(run.path) == ["config.json", "logs", "recipe.py"]
    assert run.recipe.read_text(encoding="utf-8") == "# été\n"
    assert run.read_config() == CONFIG


def test_an_empty_folder_can_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    RunDir(tmp_path).create(CONFIG, "")
    assert names(tmp_path) == ["config.json", "logs", "recipe.py"]


@pytest.mark.parametrize("trace", ["config.json", "metrics.jsonl", "result.json"])
def test_a_folder_that_holds_a_run_is_refused_and_left_alone(trace: str, tmp_path: Path) -> None:
    (tmp_path / trace).write_text("{}")
    with pytest.raises(RunDirError, match="already holds a run") as caught:
        RunDir(tmp_path).create(CONFIG, "new")
    assert caught.value.hint
    assert names(tmp_path) == [trace]
    assert (tmp_path / trace).read_text() == "{}"


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_a_folder_that_cannot_be_made_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("as it was")
    with pytest.raises(RunDirError, match="cannot be written: ") as caught:
        RunDir(tmp_path / "file" / below).create(CONFIG, "")
    assert caught.value.hint
    assert (tmp_path / "file").read_text() == "as it was"


CONTENDER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from launcher.errors import RunDirError
from launcher.run.directory import RunDir
me = sys.argv[1]
print("ready", flush=True)
for line in sys.stdin:
    try:
        config = {"hyperparameters": {}, "who": me}
        RunDir(Path(line.strip())).create(config, me)
        print("won", flush=True)
    except RunDirError as error:
        print(error.message, flush=True)
"""


def test_of_two_processes_that_race_for_a_folder_one_gets_it(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, me],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in "ab"
    ]
    streams = [(racer.stdin, racer.stdout) for racer in racers]
    assert all(out and out.readline() == "ready\n" for _, out in streams)
    for number in range(40):
        run = RunDir(tmp_path / str(number))
        for into, _ in streams:
            assert into
            into.write(f"{run.path}\n")
            into.flush()
        said = [out.readline().strip() for _, out in streams if out]
        assert sorted(said) == sorted(["won", f"`{run.path}` already holds a run"])
        winner = "ab"[said.index("won")]
        assert run.read_config()["who"] == winner
        assert run.recipe.read_text() == winner
        assert names(run.path) == ["config.json", "logs", "recipe.py"]
    for racer in racers:
        racer.communicate()
        assert racer.returncode == 0


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_write_that_fails_in_the_middle_leaves_the_old_file(
    failure: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with written(path) as beside:
            beside.write_text("half of the n")
            raise failure

    with pytest.raises(failure):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


FULL_DISK = """
import resource, sys
from contextlib import ExitStack
from pathlib import Path
from launcher.files import write_text
from launcher.run.directory import RunDir
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""


def on_a_full_disk(program: str, folder: Path) -> str:
    """Run a program that can write no more than 1000 bytes a file; returns how it fails."""
    argv = [sys.executable, "-c", FULL_DISK + program]
    # Measuring coverage writes a file of its own, which is larger.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.stderr


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    said = on_a_full_disk("write_text(Path('file'), 'new' * 1000)", tmp_path)
    assert said.endswith("OSError: [Errno 27] File too large\n")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("arguments", ["{'a': 'x' * 2000}, ''", "{}, 'x' * 2000"])
def test_a_run_that_a_full_disk_cannot_hold_leaves_no_file(arguments: str, tmp_path: Path) -> None:
    said = on_a_full_disk(f"RunDir(Path('run')).create({arguments})", tmp_path)
    assert "RunDirError: run directory `run` cannot be written: File too large" in said
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "file", {"loss": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", '{"hyperparameters": []}', '{"epochs": 3}']
)
def test_what_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunDirError, match=r"is not the config\.json of a run: "):
        read_config(tmp_path / "config.json")


def test_a_configuration_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"config\.json. is not .* No such file"):
        RunDir(tmp_path).read_config()


@pytest.mark.parametrize(
    ("text", "value"), [('{"a": 1}', {"a": 1}), ("{", None), ("[1]", None), (None, None)]
)
def test_json_that_cannot_be_read_is_none(
    text: str | None, value: dict[str, int] | None, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "file").write_text(text)
    assert read_json(tmp_path / "file") == value


@pytest.mark.parametrize(
    ("text", "report"),
    [
        (None, {}),
        ("", {}),
        ('{"step": 1}\n{"step": 2}\n', {"step": 2}),
        ('{"step": 1}\n{"st', {"step": 1}),
        ('{"step": 1}\n\n[3]\n\xff\n', {"step": 1}),
        ('{"step": 1, "name": "ä"}', {"step": 1, "name": "ä"}),
        ("{", {}),
    ],
)
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_the_last_report_is_the_newest_whole_line_of_however_many(
    text: str | None,
    report: dict[str, object],
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("launcher.run.directory._BLOCK", block)
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert RunDir(tmp_path).last_report() == report


@pytest.mark.parametrize(("reported", "stays"), [("", False), ('{"st', True)])
def test_a_run_that_has_reported_anything_is_not_removed(
    reported: str, stays: bool, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "r")
    run.logs.mkdir(parents=True)
    run.metrics.write_text(reported)
    run.remove([run.logs, run.path])
    assert run.metrics.exists() == run.path.exists() == stays


def test_assets_of_the_checkout_are_found() -> None:
    assert (assets("recipes") / "digits.py").is_file()
    assert assets("slurm").is_dir()


def test_another_machine_may_come_while_a_run_is_being_made(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "r")
    run.logs.mkdir(parents=True)
    beside = [run.config, run.script, run.recipe, run.logs / "node-1-starts.json"]
    with ExitStack() as stack:
        for path in [*beside, run.logs / "node-1.json"]:
            stack.enter_context(written(path))
        run.refuse_foreign()
        foreign = run.path / ".notes.md.12.tmp"
        foreign.touch()
        with pytest.raises(RunDirError, match=r"there is \.notes\.md\.12\.tmp"):
            run.refuse_foreign()
        foreign.unlink()
        (run.logs / ".mine.json.12.tmp").touch()
        with pytest.raises(RunDirError, match="there is logs"):
            run.refuse_foreign()
