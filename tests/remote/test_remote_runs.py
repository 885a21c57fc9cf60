"""Runs that are submitted from a laptop: a real sshd on the loopback, a real SLURM behind it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from login_node import Login, login_node, missing
from slurm_cluster import Cluster
from snapshots import git, repository
from training import RECIPES, launcher, started, wait_for

from launcher.child.submitted import SubmittedRun

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = (
    (RECIPES / "curve.py")
    .read_text()
    .replace("    samples:", '    api_key: str = ""\n    samples:')
)
CODE = {
    "my.py": RECIPE,
    "train.py": "import sys\nprint(sys.argv[1:])\n",
    "deep/code.py": "N = 1\n",
    ".gitignore": "data/\nruns/\n*.bin\n",
}
IGNORED = {"data/big": "0", "deep/weights.bin": "w", ".env": "KEY=very-secret"}
WORDS = [
    "my.py",
    "epochs=2",
    "samples=60",
    "test_samples=20",
    "batch_size=10",
    "api_key=very-secret",
]
LATER = ["--no-checks", "--sbatch", "begin=now+1hour"]  # it waits


@pytest.fixture(scope="module")
def login(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    if reason := missing():
        pytest.skip(reason)
    with login_node(tmp_path_factory.mktemp("login"), slurm.env) as running:
        yield running


@pytest.fixture
def laptop(login: Login, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with changes, and the same on the login node, each with all that is ignored."""
    monkeypatch.setenv("PATH", login.env["PATH"])
    repository(tmp_path / "laptop", CODE)
    for name, text in IGNORED.items():
        (tmp_path / "laptop" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "laptop" / name).write_text(text)
    shutil.copytree(tmp_path / "laptop", tmp_path / "there")  # of the same commit
    (tmp_path / "laptop" / "deep" / "code.py").write_text("N = 2\n")
    told = f'host = "login"\nfolder = "{tmp_path}/there"\npython = "{sys.executable}"\n'
    (tmp_path / "site.toml").write_text(told)
    return tmp_path / "laptop"


def here(laptop: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    """A command on the laptop, where there is no SLURM."""
    done = launcher(*words, cwd=laptop, env={"SLURM_CONF": "/nowhere"})
    assert done.returncode == 0, done.stderr
    return done


def submitted(laptop: Path, *words: object, name: str = "a") -> dict[str, Any]:
    profile = next(one for one in laptop.parents if (one / "site.toml").exists()) / "site.toml"
    words = ("submit", *words[:1], "--profile", profile, "--json", *words[1:])
    at = words.index("--") if "--" in words else len(words)
    words = (*words[:at], *LATER, "--run-dir", f"runs/{name}", *words[at:])
    told: dict[str, Any] = json.loads(here(laptop, *words).stdout)
    return told


def tree(run: Path) -> dict[str, str]:
    """What a run directory that waits in a queue is made of, links by where they lead."""
    found = {}
    for above, folders, files in os.walk(run):
        for path in (Path(above, name) for name in (*folders, *files)):
            text = f"-> {path.readlink()}" if path.is_symlink() else ""
            found[str(path.relative_to(run))] = text or (path.read_text() if path.is_file() else "")
    return found


def test_a_run_from_a_laptop_is_the_one_of_the_login_node_and_obeys_from_afar(
    slurm: Cluster, login: Login, laptop: Path
) -> None:
    there = laptop.parent / "there"
    told = submitted(laptop, *WORDS)
    assert told["run_dir"] == str(laptop / "runs/a")
    assert told["run_dir_there"] == str(there / "runs/a")
    same_as_on_the_login_node(slurm, laptop)
    assert sorted(p.name for p in (laptop / "runs/a").iterdir()) == ["remote.json"]
    stays_there_while_somebody_listens(login, laptop)

    assert " pending " in here(laptop, "status", "runs/a").stdout
    (row,) = json.loads(here(laptop, "status", "--json").stdout)
    assert (row["job"], row["state"]) == (told["jobs"][0], "pending")
    assert "was told to end" in here(laptop, "cancel", "runs/a").stdout
    wait_for(lambda: " cancelled " in here(laptop, "status", "runs/a").stdout, 60)

    assert "runs/a is at login: `launcher pull`" in here(laptop, "runs").stderr
    refused = launcher("report", "runs/a", cwd=laptop)
    assert refused.returncode == 2
    assert "`launcher pull`" in refused.stderr

    here(laptop, "resubmit", "runs/a", "--sbatch", "begin=now")
    said = here(laptop, "logs", "runs/a", "--follow").stdout
    assert "Done: test accuracy" in said
    assert "a  completed" in here(laptop, "watch", "runs/a").stdout
    here(laptop, "pull", "runs/a")
    here(laptop, "report", "runs/a")
    assert "completed" in here(laptop, "runs").stdout
    assert (laptop / "runs/a/metrics.jsonl").read_text() == (
        there / "runs/a/metrics.jsonl"
    ).read_text()
    assert not (laptop / "runs/a/checkpoints").exists()
    resumed = launcher("resume", "runs/a", "epochs=3", cwd=laptop)
    assert "another host" in resumed.stderr
    assert resumed.returncode == 2
    wait_for(lambda: not login.living())


def same_as_on_the_login_node(slurm: Cluster, laptop: Path) -> None:
    """All but names and moments is as it is where the same code is submitted there."""
    there = laptop.parent / "there"
    (there / "deep" / "code.py").write_text("N = 2\n")
    words = ["submit", *WORDS, *LATER, "--run-dir", "runs/b"]
    done = launcher(*words, cwd=there, env=slurm.env)
    assert done.returncode == 0, done.stderr
    afar, near = tree(there / "runs/a"), tree(there / "runs/b")
    assert afar["snapshot/deep/code.py"] == "N = 2\n"
    assert afar["snapshot/data"] == f"-> {there}/data"
    assert afar["snapshot/.env"] == f"-> {there}/.env"
    known = {"config.json", "slurm/job.json", "slurm/job.sbatch", "slurm/node.sh"}
    assert afar.keys() - {"slurm/profile.toml"} == near.keys()
    assert [name for name in near if near[name] != afar[name] and name not in known] == []
    for name in known - {"config.json"}:
        assert "very-secret" not in afar[name]
    assert (there / "runs/a/config.json").stat().st_mode & 0o77 == 0
    one, other = (
        json.loads(side["config.json"].replace("runs/b", "runs/a")) for side in (afar, near)
    )
    changing = {"created", "command", "tracking", "git"}
    assert {k: v for k, v in one.items() if k not in changing} == {
        k: v for k, v in other.items() if k not in changing
    }
    assert one["git"] == {"commit": git(laptop, "rev-parse", "HEAD").strip(), "dirty": True}
    assert afar["slurm/node.sh"] == near["slurm/node.sh"].replace("runs/b", "runs/a")


def stays_there_while_somebody_listens(login: Login, laptop: Path) -> None:
    """A command there ends with the one here, however that ends."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with started("logs", "runs/a", "--follow", cwd=laptop) as process:
            wait_for(lambda: login.runs("logs"))
            process.send_signal(number)
            assert process.wait(60) != 0
        wait_for(lambda: not login.living())


def test_scripts_and_grids_go_there_too(login: Login, laptop: Path) -> None:
    there = laptop.parent / "there"
    odd = ["--lr", "1e-3", "a 'b' $HOME", "--host"]
    name = "it's [1]"
    (there / "runs/it's 1").mkdir(parents=True)  # what rsync takes it for
    submitted(laptop, "train.py", "--nproc", "1", "--", *odd, name=name)
    config = json.loads((there / "runs" / name / "config.json").read_text())
    assert config["script"]["args"] == odd
    assert config["script"]["file"] == str(there / "runs" / name / "snapshot/train.py")
    assert not list((there / "runs/it's 1").iterdir())
    run = SubmittedRun(laptop / "runs" / name, [])
    assert (run.status().run_dir, run.status().state) == (str(laptop / "runs" / name), "pending")
    run.cancel()
    assert run.status().state == "cancelled"
    submitted(laptop / "deep", "../my.py", "--grid", "seed=0,1", "samples=30", name="g")
    grid = laptop / "deep/runs/g"
    rows = json.loads(here(laptop, "status", str(grid), "--json").stdout)
    assert [row["run_dir"] for row in rows] == [f"{there}/deep/runs/g/{task}" for task in (0, 1)]
    assert (there / "deep/runs/g/snapshot/my.py").exists()
    assert "told to end" in here(laptop, "cancel", str(grid / "1")).stdout
    again = launcher(
        "submit", "my.py", "--profile", "../site.toml", "--run-dir", f"runs/{name}", cwd=laptop
    )
    assert again.returncode == 2
    assert f"`runs/{name}` exists" in again.stderr.replace(f"{laptop}/", "")
    here(laptop, "pull", str(grid))
    assert json.loads((grid / "1/config.json").read_text())["hyperparameters"]["seed"] == 1
    wait_for(lambda: not login.living())
