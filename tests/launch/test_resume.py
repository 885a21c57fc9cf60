"""What a run goes on with."""

from pathlib import Path

import pytest
from training import RECIPES, Run, launcher

from launcher.errors import BadInput
from launcher.files import write_json
from launcher.launch.launch import Nodes
from launcher.launch.resume import resumed, where_it_began
from launcher.processes import shown
from launcher.recipe.file import find, outline
from launcher.recipe.hyperparameters import configure
from launcher.run.config import describe
from launcher.run.directory import RunDir

pytestmark = pytest.mark.warm


def made(folder: Path, without: str) -> RunDir:
    """A run that was made when its recipe had no such hyperparameter."""
    file = find("digits")
    config = describe(file, configure(outline(file), "digits", {}))
    del config["hyperparameters"][without]
    run = RunDir(folder / "r")
    run.create(config, file.source)
    return run


def test_a_hyperparameter_that_came_with_a_newer_launcher_is_no_change(tmp_path: Path) -> None:
    run = made(tmp_path, without="keep_best")
    told = resumed(run, {}, Nodes(1), allow_changes=False)
    assert told["hyperparameters"]["keep_best"] == 1
    with pytest.raises(BadInput, match="keep_best from None to 7"):
        resumed(run, {"keep_best": "7"}, Nodes(1), allow_changes=False)


def test_a_run_may_go_on_longer_and_in_other_shares(tmp_path: Path) -> None:
    run = made(tmp_path, without="keep_best")
    changes = {"epochs": "7", "shard": "true", "shard_checkpoints": "true"}
    told = resumed(run, changes, Nodes(1), allow_changes=False)["hyperparameters"]
    assert [told[name] for name in changes] == [7, True, True]


def test_a_run_goes_on_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = made(tmp_path, without="seed")
    (tmp_path / "else/where").mkdir(parents=True)
    monkeypatch.chdir("else/where")
    with where_it_began(run):
        assert Path.cwd() == tmp_path
        assert shown(run.path) == str(run.path)  # as the user finds it
    assert Path.cwd() == tmp_path / "else/where"
    assert capsys.readouterr().err == ""
    write_json(run.config, run.read_config() | {"folder": "/gone"})
    with where_it_began(run):
        assert Path.cwd() == tmp_path / "else/where"
    assert "started in /gone, which is not here (No such file or" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_keeps_its_threads_and_so_its_bytes(tmp_path: Path) -> None:
    words = ["--cpu", "--tracking=disabled", "--run-dir"]
    for name, epochs in (("whole", 2), ("r", 1)):
        env = {"OMP_NUM_THREADS": "2"}
        launcher(
            "run", RECIPES / "wide.py", f"epochs={epochs}", *words, name, cwd=tmp_path, env=env
        )
    env = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # as where there is but one core
    done = launcher("resume", "r", "epochs=2", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "r").weight_bytes == Run(tmp_path / "whole").weight_bytes
