"""`launcher submit` without a SLURM: plans, refusals, and the scripts run on this machine."""

import json
import re
import signal
import stat
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from training import RECIPES, Run, launcher, started, wait_for

from launcher.errors import BadInput, RunDirError
from launcher.run.job import SlurmFolder
from launcher.slurm import client, submit
from launcher.slurm.points import Wishes

pytestmark = pytest.mark.warm

CURVE = RECIPES / "curve.py"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wishes(**changes: object) -> Wishes:
    return Wishes(**{"recipe": "digits"} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sbatch", "nproc", "expected"),
    [
        ({}, None, (1, True, "1")),
        ({}, 4, (4, True, "4")),
        ({"gpus-per-node": "8"}, None, (8, False, None)),
        ({"gpus-per-node": "a100:4"}, None, (4, False, None)),
        ({"gpus-per-node": "8"}, 2, (2, False, None)),
        ({"gres": "gpu:2"}, None, (2, False, None)),
        ({"gpus": "a100:2"}, None, (2, False, None)),
        ({"gres": "nvme:1"}, None, (1, True, "1")),
        ({"gpus-per-node": "0"}, None, (1, True, "1")),
        ({"cpus-per-task": "16"}, 4, (4, True, "16")),
    ],
)
def test_processes_cores_and_devices_follow_from_what_is_asked(
    sbatch: Mapping[str, str], nproc: int | None, expected: tuple[int, bool, str | None]
) -> None:
    plan = submit.plan(wishes(sbatch=sbatch, nproc=nproc))
    assert (plan.request.nproc, plan.cpu, plan.request.sbatch.get("cpus-per-task")) == expected


def test_a_grid_may_list_lists(tmp_path: Path) -> None:
    source = CURVE.read_text().replace(
        "    samples:", "    betas: tuple[float, float] = (0, 0)\n    samples:"
    )
    (tmp_path / "mine.py").write_text(source)
    grid = ["betas=[0.9, 0.999],(0.8, 0.99)", "learning_rate=[0.1, 1e-2]"]
    found = submit.plan(wishes(recipe=str(tmp_path / "mine.py"), grid=grid)).points
    values = [(p.hyperparameters["betas"], p.hyperparameters["learning_rate"]) for p in found]
    first, second = [0.9, 0.999], [0.8, 0.99]
    assert values == [(first, 0.1), (first, 0.01), (second, 0.1), (second, 0.01)]


def test_weights_to_start_from_are_named_in_full_for_a_job_that_runs_elsewhere(
    tmp_path: Path,
) -> None:
    save_file({"bias": torch.ones(3)}, tmp_path / "some.safetensors")
    given = wishes(init_from=Path("some.safetensors"), run_dir=Path("run"), no_snapshot=True)
    submit.make(submit.plan(given))
    told = json.loads((tmp_path / "run" / "config.json").read_text())
    assert told["init_from"] == str(tmp_path / "some.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": Path("nothing")}, "nothing` cannot be read: No such file"),
        ({"grid": ["sed=0,1"]}, "no hyperparameter `sed`"),
        ({"grid": ["learning_rate=[0.1, x]"]}, "`learning_rate` must be float, not `x`"),
        ({"recipe": "digit"}, "there is no recipe `digit`"),
        ({"overrides": ["epoch=3"]}, "no hyperparameter `epoch`"),
        ({"grid": ["seed=0,x"]}, "`seed` must be int"),
        ({"grid": ["seed=0,1"], "overrides": ["seed=1"]}, "as an override and in --grid"),
        ({"sbatch": {"nodes": "2-4"}}, "--nodes 2-4 is not one number"),
        ({"sbatch": {"gpus-per-node": "all"}}, "--gpus-per-node all is neither"),
        ({"sbatch": {"gpus-per-node": "2"}, "nproc": 3}, "more processes than there are GPUs: 2"),
        ({"sbatch": {"job-name": "a\nb"}}, "a line break"),
        ({"sbatch": {"signal": "USR1@60"}}, "--signal=USR1@60 does not stop a run"),
        ({"no_requeue": True, "chain": 2}, "--chain goes on where --no-requeue would not"),
        ({"sbatch": {"output": "x"}}, "not yours to give"),
        ({"profile": "nowhere"}, "there is no profile `nowhere`"),
        ({"template": Path("none")}, "--template none is no folder"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        submit.check(submit.plan(wishes(**changes)), queue=False)
    assert not list(tmp_path.iterdir())


def test_whom_to_write_to_also_says_when() -> None:
    plan = submit.plan(wishes(sbatch={"mail-user": "me@site"}))
    assert plan.settings["mail-type"].value == "END,FAIL"


def test_a_grid_has_a_run_for_each_combination_the_last_key_moving_fastest() -> None:
    plan = submit.plan(wishes(grid=["learning_rate=0.1,0.01", "seed=0,1"], max_parallel=2))
    told = [one.hyperparameters for one in plan.points]
    found = [(one["learning_rate"], one["seed"]) for one in told]
    assert found == [(0.1, 0), (0.1, 1), (0.01, 0), (0.01, 1)]
    assert [one.run.path.name for one in plan.points] == ["0", "1", "2", "3"]
    assert plan.request.array == "0-3%2"


def test_a_name_that_no_folder_can_have_is_a_mistake_for_every_command(tmp_path: Path) -> None:
    name = 300 * "a"
    for words in (
        ("submit", "digits", "--dry-run", "--run-dir", name),
        ("submit", "digits", "--local", "--run-dir", name),
        ("status", name),
        ("cancel", name),
        ("runs", name),
        ("report", name),
    ):
        done = launcher(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert "error: " in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_template_that_bash_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node.sh.j2").write_text("if true; then\n")
    with pytest.raises(BadInput, match="bash cannot read the rendered node script"):
        submit.check(submit.plan(wishes(template=tmp_path)), queue=False)


def test_a_folder_that_exists_is_no_new_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="exists"):
        submit.check(submit.plan(wishes(run_dir=tmp_path)), queue=False)


def test_templates_and_profiles_beside_the_recipe_are_taken(tmp_path: Path) -> None:
    recipe = tmp_path / "my.py"
    recipe.write_text(CURVE.read_text())
    (tmp_path / "slurm" / "profiles").mkdir(parents=True)
    (tmp_path / "slurm" / "job.sbatch.j2").write_text("#!/bin/bash\n# mine\n")
    (tmp_path / "slurm" / "profiles" / "default.toml").write_text('[sbatch]\npartition = "p"\n')
    plan = submit.plan(wishes(recipe=str(recipe)))
    assert plan.scripts.batch == "#!/bin/bash\n# mine\n"
    assert plan.settings["partition"].value == "p"
    assert any("requeue block" in warning for warning in plan.warnings)


def test_a_dry_run_shows_scripts_and_sources_and_writes_nothing(tmp_path: Path) -> None:
    words = ["digits", "--dry-run", "--time=5", "--nodes=2"]
    done = launcher("submit", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split(maxsplit=3)[1:] for line in done.stdout.splitlines() if line[:2] == "# "]
    assert ["time", "5", "command line"] in rows
    assert ["signal", "B:USR1@120", "default"] in rows
    assert re.search(r"^# template +job.sbatch.j2 +/.*/job.sbatch.j2$", done.stdout, re.MULTILINE)
    assert "#SBATCH --time=5" in done.stdout
    assert "job node" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_thousand_points_takes_seconds(tmp_path: Path) -> None:
    axes = [f"{name}={','.join(map(str, range(1, 11)))}" for name in ("seed", "epochs")]
    axes.append(f"learning_rate={','.join(f'0.{n}' for n in range(1, 11))}")
    began = time.monotonic()
    grid = [word for axis in axes for word in ("--grid", axis)]
    done = launcher("submit", "digits", *grid, "--dry-run", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert time.monotonic() - began < 10
    assert len(told["run_dirs"]) == 1000
    assert "#SBATCH --array=0-999\n" in told["batch"]


def test_without_slurm_it_says_where_to_submit(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "bash").symlink_to("/bin/bash")
    done = launcher("submit", "digits", cwd=tmp_path, env={"PATH": str(tools)})
    assert done.returncode == 2
    assert "there is no `sbatch` here" in done.stderr
    assert "--local" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_what_belongs_to_a_surrounding_job_is_not_handed_on() -> None:
    dropped = ["SBATCH_ACCOUNT", "SLURM_JOB_ID", "SRUN_CPUS_PER_TASK", "WANDB_SERVICE", "RANK"]
    kept = ["SLURM_CONF", "SLURM_JWT", "PATH", "WANDB_API_KEY", "OMP_NUM_THREADS"]
    assert set(client.environment(dict.fromkeys(dropped + kept, "x"))) == set(kept)


def test_what_a_site_has_set_is_handed_on_outside_of_jobs() -> None:
    kept = ["SLURM_CLUSTERS", "SRUN_CPUS_PER_TASK", "SLURM_JWT", "PATH"]
    assert set(client.environment(dict.fromkeys([*kept, "PET_X"], "x"))) == set(kept)


def test_options_by_which_a_site_speaks_are_shown_with_their_variable(tmp_path: Path) -> None:
    env = {"SBATCH_PARTITION": "gpu", "SBATCH_GRES": "gpu:2", "SBATCH_OUTPUT": "/elsewhere"}
    done = launcher("submit", "digits", "--dry-run", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    rows = [line.split(maxsplit=3)[1:] for line in done.stdout.splitlines() if line[:2] == "# "]
    assert ["partition", "gpu", "SBATCH_PARTITION"] in rows
    assert ["nproc", "2", "processes on each node"] in rows
    assert "#SBATCH --partition=gpu\n" in done.stdout
    assert "warning: SBATCH_OUTPUT is left out" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--account", ""], "--account has an empty value"),
        (["--sbatch", "comment="], "--comment has an empty value"),
        (["--sbatch", "comment"], "--comment needs a value"),
        (["--gpus-per-node=2", "--nodes=2", "--local"], "4 GPUs are asked for"),
        (["--spare-nodes=1", "--local"], "--spare-nodes goes with no --local"),
        (["--nodes=2", "--exclude-slow", "--local"], "--exclude-slow goes with no --local"),
        (["--exclude-slow"], "ranks are compared between nodes, and it is one"),
        (["--exclude-slow", "--spare-nodes=1"], "ranks are compared between nodes"),
        (["--sbatch", "gpus=2", "--local"], "2 GPUs are asked for, and this machine has 0"),
    ],
)
def test_what_would_mean_something_else_to_slurm_is_refused(
    tmp_path: Path, words: list[str], message: str
) -> None:
    env = {"CUDA_VISIBLE_DEVICES": ""}
    done = launcher("submit", "digits", *words, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_script_has_no_slow_nodes_to_leave_out(tmp_path: Path) -> None:
    words = ["-m", "json.tool", "--nodes=2", "--exclude-slow", "--run-dir=r"]
    done = launcher("submit", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "--exclude-slow: how long the ranks of a script take is not known" in done.stderr
    assert not list(tmp_path.iterdir())


def test_spare_nodes_are_asked_for_on_top_and_only_where_the_script_chooses_its_nodes(
    tmp_path: Path,
) -> None:
    made = submit.plan(wishes(sbatch={"nodes": "2"}, spare_nodes=1))
    assert made.nodes == 2
    assert made.settings["nodes"] == ("3", "command line, and 1 spare")
    assert "#SBATCH --nodes=3\n" in made.scripts.batch
    assert "#SBATCH --no-kill\n" in made.scripts.batch
    older = made.scripts.batch.replace("job begin", "job  begin").replace(" --place", "")
    (tmp_path / "job.sbatch.j2").write_text(older)
    assert submit.plan(wishes(template=tmp_path)).scripts.batch == older
    with pytest.raises(BadInput, match=r"job\.sbatch\.j2 starts on all nodes that it has"):
        submit.plan(wishes(template=tmp_path, spare_nodes=1))


@pytest.mark.slow
def test_the_same_scripts_run_on_this_machine_and_requeue(tmp_path: Path) -> None:
    words = ["epochs=2", "samples=197", "test_samples=60", "batch_size=10", "dropout=0.2"]
    options = ["--local", "--nodes=2", "--no-checks", "--run-dir"]
    done = launcher("submit", CURVE, *words, *options, "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    slow = [*words, "step_s=0.4", *options, "r"]
    with started("submit", CURVE, *slow, cwd=tmp_path) as process:
        here = Run(tmp_path / "r")
        wait_for(lambda: len(here.rows) > 0 or process.poll() is not None)
        [batch] = psutil.Process(process.pid).children()
        batch.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=200) == 0
    folder = SlurmFolder(tmp_path / "r" / "slurm")
    assert [one.verdict for one in folder.attempts()] == ["timeout", "completed"]
    assert here.weight_bytes == Run(tmp_path / "whole").weight_bytes
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert str(tmp_path / "r" / "snapshot") in config["recipe_path"]
    assert stat.S_ISREG(Path(config["recipe_path"]).stat().st_mode)


@pytest.mark.slow
def test_a_grid_runs_on_this_machine_one_after_the_other(tmp_path: Path) -> None:
    words = ["epochs=1", "--grid", "seed=0,1", "--local", "--run-dir", "r", "--no-checks"]
    done = launcher("submit", "digits", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = Run(tmp_path / "r" / "0"), Run(tmp_path / "r" / "1")
    assert first.result["state"] == second.result["state"] == "completed"
    assert first.farthest(second) > 1e-3


@pytest.mark.floors
@pytest.mark.slow
def test_a_job_checks_its_nodes_before_it_trains(tmp_path: Path) -> None:
    done = launcher("submit", "digits", "epochs=1", "--local", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "r").result["state"] == "completed"
