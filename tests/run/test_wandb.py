"""What W&B is told of a run: mode, names, rows and summary."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import RECIPES, command

from launcher.errors import BadInput
from launcher.run.rows import FIELDS
from launcher.run.wandb import (
    config_of,
    has_credentials,
    history_row,
    mode_of,
    position,
    summary_of,
    tracking,
)
from launcher.train.trackers import Report

KEY = {"WANDB_API_KEY": "k" * 40}


OFF = "[default]\nmode = disabled\n"


@pytest.mark.parametrize(
    ("asked", "env", "files", "mode"),
    [
        (None, KEY, {}, "online"),
        (None, {}, {}, "offline"),
        (None, KEY | {"WANDB_MODE": "offline"}, {}, "offline"),
        (None, KEY | {"WANDB_MODE": " Disabled "}, {}, "disabled"),
        (None, KEY | {"WANDB_MODE": "dryrun"}, {}, "offline"),  # words of older clients
        (None, {"WANDB_MODE": "run"}, {}, "online"),
        (None, KEY | {"WANDB_DISABLED": "true"}, {}, "disabled"),
        (None, KEY | {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, {}, "disabled"),
        (None, KEY | {"WANDB_DISABLED": "false"}, {}, "online"),
        ("online", {"WANDB_MODE": "disabled"}, {}, "online"),
        ("disabled", KEY, {}, "disabled"),
        (None, KEY, {"wandb/settings": "[default]\nmode = offline\n"}, "offline"),  # wandb offline
        (None, KEY, {"wandb/settings": OFF}, "disabled"),  # wandb disabled
        (None, KEY, {"user/settings": OFF}, "disabled"),
        (None, KEY, {"user/settings": OFF, ".wandb/settings": "[default]\nmode=online"}, "online"),
        ("offline", KEY, {"wandb/settings": OFF}, "offline"),
        (None, KEY | {"WANDB_MODE": "offline"}, {"wandb/settings": OFF}, "offline"),
        (None, KEY, {"wandb/settings": "no such file"}, "online"),
    ],
)
def test_the_mode_is_what_was_asked_or_what_can_be_done(
    asked: str | None,
    env: dict[str, str],
    files: dict[str, str],
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    places = {"NETRC": str(tmp_path / "none"), "WANDB_CONFIG_DIR": str(tmp_path / "user")}
    assert mode_of(asked, env | places) == mode


@pytest.mark.parametrize("word", ["shared", "of-line", "off", "0"])
def test_a_mode_that_is_unknown_is_refused_and_means_nothing(word: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"W&B's mode `{word}`") as caught:
        tracking("digits", env=KEY | {"WANDB_MODE": word})
    assert "--tracking" in str(caught.value.hint)


@pytest.mark.slow
def test_a_mode_that_is_unknown_ends_every_way_to_start_before_anything_is_written(
    tmp_path: Path,
) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", RECIPES / "curve.py"]
    for words in (
        ["launcher", "run", "digits", "--run-dir", "r"],
        ["launcher", "submit", "digits", "--local"],
        torchrun,  # where nobody waits for a rank that has left
    ):
        env = KEY | {"WANDB_MODE": "shared"}
        done = command(sys.executable, "-m", *words, cwd=tmp_path, env=env, timeout_s=100)
        assert done.returncode == (1 if words is torchrun else 2)
        assert done.stderr.count("W&B's mode `shared`") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "env", "found"),
    [
        ({}, {}, False),
        ({}, KEY, True),
        ({}, {"WANDB_IDENTITY_TOKEN_FILE": "token"}, True),
        ({"netrc": "machine api.wandb.ai login user password x"}, {}, True),
        ({"netrc": "machine elsewhere.org login user password x"}, {}, False),
        ({"netrc": "what is this"}, {}, False),
        ({"netrc": "machine w.org login u password x"}, {"WANDB_BASE_URL": "https://w.org"}, True),
        (
            {
                "netrc": "machine w.org login u password x",
                "settings": "[default]\nbase_url = https://w.org",
            },
            {},
            True,
        ),
        ({"settings": "not a settings file"}, {}, False),
    ],
)
def test_credentials_are_found_where_wandb_login_leaves_them(
    files: dict[str, str], env: dict[str, str], found: bool, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    places = {"NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    assert has_credentials(places | env) is found


def test_names_come_from_options_then_from_wandb_s_variables_then_from_the_recipe() -> None:
    env = {"WANDB_PROJECT": "p", "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "a,b", "WANDB_NOTES": "n"}
    given_ = tracking("digits", "offline", project="mine", tags=["c"], env=env)
    assert (given_["project"], given_["group"], given_["tags"]) == ("mine", "g", ["c"])
    assert tracking("digits", "offline", env=env)["tags"] == ["a", "b"]
    assert tracking("digits", "offline", env={"WANDB_NAME": "n"})["name"] == "n"
    bare = tracking("digits", "offline", env={})
    assert (bare["project"], bare["group"], bare["tags"]) == ("digits", None, [])


def test_a_run_has_an_id_of_its_own_but_in_a_sweep_the_sweep_s() -> None:
    assert tracking("r", env={})["run_id"] != tracking("r", env={})["run_id"]
    env = {"WANDB_RUN_ID": "abc", "WANDB_SWEEP_ID": "s"}
    assert (tracking("r", env=env)["run_id"], tracking("r", env=env)["sweep_id"]) == ("abc", "s")


def row(split: str, step: int, loss: float | None = 1.0, **fields: Any) -> dict[str, Any]:
    report = Report(split, 0, step, 64, 1.0, None)  # type: ignore[arg-type]  # one of the two
    return report.row() | {"loss": loss} | fields


def test_every_field_of_a_row_is_on_the_page() -> None:
    of_scripts = {"line"}  # tells rows of one step apart, and is no number of theirs
    assert {*FIELDS, "metrics"} - of_scripts == {f.name for f in dataclasses.fields(Report)}
    values = dict.fromkeys(FIELDS, 7) | {"split": "train"}
    page = history_row(values)
    assert len(page) == len(values) - 1 - len(of_scripts)
    assert {key.partition("/")[0] for key in page} == {"train", "trainer", "speed"}
    assert set(history_row(row("test", 3))) == {
        "test/loss",
        "test/samples",
        "trainer/epoch",
        "trainer/epochs",
        "trainer/step",
        "trainer/time",
    }
    assert history_row(row("test", 3, **{"mAP@{50}": 0.5}))["test/mAP@{50}"] == 0.5


@given(st.lists(st.tuples(st.integers(0, 10**9), st.booleans()), min_size=2, unique=True))
def test_positions_grow_with_step_and_put_the_test_last(places: list[tuple[int, bool]]) -> None:
    rows = [row("test" if test else "train", step) for step, test in sorted(places)]
    positions = [position(one) for one in rows]
    assert positions == sorted(set(positions))


def test_git_is_left_out_where_wandb_is_told_so() -> None:
    told = {"hyperparameters": {"api_key": "x"}, "git": {"commit": "abc"}, "host": "h"}
    assert config_of(told, {})["git"] == {"commit": "abc"}
    assert config_of(told, {"WANDB_DISABLE_GIT": "true"})["git"] is None
    assert config_of(told, {})["api_key"] == "***"


def test_the_summary_names_the_best_test_and_the_end() -> None:
    accurate = [row("test", s, accuracy=a, loss=1 - a) for s, a in ((1, 0.5), (2, 0.9), (3, 0.7))]
    summary = summary_of([row("train", 1), *accurate], {"state": "completed", "error": None})
    assert (summary["best/step"], summary["best/accuracy"]) == (2, 0.9)
    assert (summary["final/state"], "final/error" in summary) == ("completed", False)
    by_loss = [row("test", step, loss) for step, loss in ((1, 3.0), (2, 1.0), (3, None))]
    assert summary_of(by_loss, {})["best/step"] == 2
    assert summary_of([], {}) == {}


def test_the_config_on_the_page_is_flat_and_says_where_it_ran() -> None:
    told = {
        "hyperparameters": {"batch_size": 64, "micro_batch_size": None, "learning_rate": 0.1},
        "world_size": 3,
        "versions": {"torch": "2"},
        "git": {"commit": "c", "dirty": True},
        "command": ["launcher"],
    }
    page = config_of(told)
    assert (page["learning_rate"], page["world_size"], page["global_batch_size"]) == (0.1, 3, 64)
    assert page["git"] == {"commit": "c", "dirty": True}
    assert json.loads(json.dumps(page)) == page
