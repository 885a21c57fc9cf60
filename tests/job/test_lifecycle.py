"""How a job goes on after each kind of end: budgets, progress, and who decides."""

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import (
    BadInput,
    BudgetUsedUp,
    LauncherError,
    NodeFailed,
    NonFiniteLoss,
    RunDirError,
    Stopped,
    TrainingFailed,
)
from launcher.files import read_json, write_json
from launcher.job import lifecycle, place, turn, unheard
from launcher.job.budgets import Budgets
from launcher.job.lifecycle import Here, answer, judge
from launcher.launch.ended import AskedAgain
from launcher.run import lock, mark, node_marks
from launcher.run.directory import RunDir
from launcher.run.job import Attempt, SlurmFolder, Verdict
from launcher.run.record import Record, State
from launcher.times import notes as times

HERE = Here("12", 0, "n[1-2]")
RUNNING = {"JobState": "RUNNING", "Reason": "None"}
TAKEN = {"JobState": "COMPLETING", "Reason": "None"}
LIMIT = {"JobState": "COMPLETING", "Reason": "TimeLimit"}
STOPPED, FAILED = Stopped("stopped"), TrainingFailed("rank 1 on n2 failed first: OSError")


def attempts(*ends: tuple[Verdict, int]) -> list[Attempt]:
    return [Attempt("12", n, "n1", n, verdict, 75, step) for n, (verdict, step) in enumerate(ends)]


@pytest.mark.parametrize(
    ("env", "here"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}, Here("7", 0, "n1")),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, Here("7", 2, "")),
        (
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"},
            Here("7_0", 0, ""),
        ),
    ],
)
def test_a_job_is_known_by_slurm_s_variables(env: dict[str, str], here: Here) -> None:
    assert Here.read(env) == here


def test_outside_of_a_job_its_commands_refuse() -> None:
    with pytest.raises(BadInput, match="here is no SLURM job"):
        Here.read({})


@pytest.mark.parametrize(
    ("error", "heard", "state", "verdict"),
    [
        (STOPPED, "USR1", RUNNING, "timeout"),
        (STOPPED, "", RUNNING, "interrupted"),  # only the node's launcher was signalled
        (STOPPED, "TERM", RUNNING, "interrupted"),  # preemption with a time of grace
        (STOPPED, "TERM", TAKEN, "interrupted"),
        (STOPPED, "USR1", LIMIT, "timeout"),
        (FAILED, "USR1", LIMIT, "timeout"),  # killed while it saved
        (FAILED, "TERM", TAKEN, "interrupted"),
        (FAILED, "", RUNNING, "failed"),
        (FAILED, "", {}, "failed"),  # there was no scontrol to ask
        (NodeFailed("hangs"), "", RUNNING, "failed"),
        (NonFiniteLoss("nan"), "", RUNNING, "failed"),
        (BadInput("no"), "", RUNNING, "mistake"),
    ],
)
def test_an_end_is_judged_by_what_was_left_what_was_heard_and_what_slurm_says(
    error: LauncherError, heard: str, state: dict[str, str], verdict: Verdict
) -> None:
    assert judge(error, heard, state) == verdict


BUDGETS = Budgets(max_requeues=2, max_failures=1, restart=True)
PATIENT = replace(BUDGETS, max_failures=9)


@pytest.mark.parametrize(
    ("error", "ends", "state", "budgets", "code"),
    [
        (STOPPED, [("timeout", 5)], RUNNING, BUDGETS, 75),
        (STOPPED, [("timeout", 5), ("timeout", 9)], RUNNING, BUDGETS, 75),
        (STOPPED, [("timeout", 5), ("timeout", 5)], RUNNING, BUDGETS, 76),  # no progress
        (STOPPED, [("timeout", 5), ("timeout", 9), ("timeout", 12)], RUNNING, BUDGETS, 76),
        (STOPPED, [("timeout", 5), ("failed", 6), ("timeout", 12)], RUNNING, BUDGETS, 75),
        (STOPPED, [("interrupted", 0), ("interrupted", 0)], RUNNING, BUDGETS, 75),  # not its fault
        (STOPPED, [("interrupted", 0)] * 3, RUNNING, BUDGETS, 76),
        (STOPPED, [("interrupted", 0)], TAKEN, BUDGETS, unheard.TAKEN),
        (STOPPED, [("timeout", 0)], RUNNING, replace(BUDGETS, restart=False), 75),
        (STOPPED, [("timeout", 0)], RUNNING, replace(BUDGETS, max_requeues=0), 76),
        (FAILED, [("failed", 5)], RUNNING, BUDGETS, 75),
        (FAILED, [("failed", 0)], RUNNING, BUDGETS, 75),
        (FAILED, [("failed", 5), ("failed", 9)], RUNNING, BUDGETS, 76),
        (FAILED, [("timeout", 5), ("failed", 5)], RUNNING, BUDGETS, 75),  # of another kind
        (FAILED, [("failed", 5), ("timeout", 9), ("failed", 5)], RUNNING, PATIENT, 76),
        (FAILED, [("failed", 5)], RUNNING, replace(BUDGETS, max_failures=0), 1),  # its own code
        (FAILED, [("failed", 5)], RUNNING, replace(BUDGETS, restart=False), 1),
        (BadInput("no"), [("mistake", 0)], RUNNING, BUDGETS, 2),
    ],
)
def test_the_script_is_told_to_requeue_or_to_fail(
    error: LauncherError,
    ends: list[tuple[Verdict, int]],
    state: dict[str, str],
    budgets: Budgets,
    code: int,
) -> None:
    end = answer(error, attempts(*ends), budgets, state)
    assert end.code == code
    assert code != 76 or "given up: " in end.message
    assert error is STOPPED or str(error) in end.message


def test_a_node_that_was_found_to_be_bad_is_reason_enough_to_try_again() -> None:
    first, second = attempts(("failed", 0), ("failed", 0))
    budgets = replace(BUDGETS, max_failures=5)
    assert budgets.used_up([first, second])
    assert not budgets.used_up([first, replace(second, bad_nodes=["n2"])])


def submitted(folder: Path, **changes: Any) -> RunDir:
    """A run directory as `launcher submit` makes it."""
    run = RunDir(folder / "r")
    hyperparameters = {"epochs": 2}
    config = {"hyperparameters": hyperparameters, "world_size": 2, "nodes": 2, "cpu": True}
    run.create(config, "")
    asked = {"max_requeues": 2, "max_failures": 1, "restart": "requeue", "exclude": None}
    asked |= {"nproc": 1, "nodes": 2, "submitted": 1.0} | changes
    SlurmFolder.of(run).path.mkdir()
    write_json(SlurmFolder.of(run).job, asked)
    return run


def put_step(run: RunDir, step: int, rank: int = 0) -> None:
    mark.Marker(run.mark(rank)).step(step)


def recorded(run: RunDir, rank: int, error: BaseException | None = None, **fields: Any) -> None:
    record = Record(rank, f"n{rank + 1}", 1, "running", time.time())
    if error:
        record.end("failed", error)
    for name, value in fields.items():
        setattr(record, name, value)
    record.write(run)


@pytest.fixture(autouse=True)
def resumed_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are another module's matter: the run goes on as its configuration says."""
    monkeypatch.setattr(
        lifecycle, "resumed", lambda run, *_, **__: run.read_config() | {"again": 1}
    )
    for module in (lifecycle, place):
        monkeypatch.setattr(module, "job_state", lambda _: RUNNING)


def test_a_start_is_counted_and_what_the_last_one_left_is_forgotten(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    assert lifecycle.begin(run, HERE) == "job 12 starts on n[1-2] (start 1)"
    recorded(run, 0, Stopped("stopped"))
    put_step(run, 7)
    assert lifecycle.end(run, HERE, 0, "USR1").code == 75
    assert lifecycle.begin(run, replace(HERE, restart=1)).endswith("(start 2)")
    assert not run.record(0).exists()
    assert not run.result.exists()
    assert run.read_config()["again"] == 1
    first, second = SlurmFolder.of(run).attempts()
    assert (first.verdict, first.step, second.verdict, second.restart) == ("timeout", 7, None, 1)


def test_a_start_that_vanished_was_interrupted_and_is_counted_so(tmp_path: Path) -> None:
    run = submitted(tmp_path, max_requeues=1)
    lifecycle.begin(run, HERE)
    put_step(run, 5)
    lifecycle.begin(run, HERE)
    with pytest.raises(BudgetUsedUp, match="was interrupted 2 times; --max-requeues allows 1"):
        lifecycle.begin(run, HERE)
    ends = [(one.verdict, one.step) for one in SlurmFolder.of(run).attempts()]
    assert ends == [("interrupted", 5), ("interrupted", 0)]
    result = json.loads(run.result.read_text())
    assert result["error"] == "given up: was interrupted 2 times; --max-requeues allows 1"
    assert SlurmFolder.of(run).attempts()[-1].code == 76


def test_a_run_that_is_given_up_has_failed_and_says_why(tmp_path: Path) -> None:
    run = submitted(tmp_path, max_requeues=1)
    for start, step in enumerate((7, 9)):
        lifecycle.begin(run, replace(HERE, restart=start))
        recorded(run, 0, Stopped("stopped on request"))
        put_step(run, step)
        end = lifecycle.end(run, replace(HERE, restart=start), 0, "USR1")
    assert end.code == 76
    result = json.loads(run.result.read_text())
    words = "given up: came to its time limit 2 times; --max-requeues allows 1"
    assert (result["state"], result["error"]) == ("failed", words)
    assert SlurmFolder.of(run).attempts()[-1].code == 76
    with pytest.raises(BudgetUsedUp):  # the next of a chain
        lifecycle.begin(run, replace(HERE, job="13"))
    assert json.loads(run.result.read_text())["error"] == words


def test_a_run_that_is_given_up_after_a_failure_names_that_too(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    for start in range(2):
        lifecycle.begin(run, replace(HERE, restart=start))
        recorded(run, 0, ValueError("the third wheel came off"))
        recorded(run, 1)
        assert lifecycle.end(run, replace(HERE, restart=start), 1, "").code == (75, 76)[start]
    error = json.loads(run.result.read_text())["error"].partition("\n")[0]
    assert error.startswith("given up: failed 2 times; --max-failures allows 1: rank 0 on n1")
    assert error.endswith("rank 0 on n1 failed first: ValueError: the third wheel came off")


def test_a_start_that_is_ended_during_its_checks_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path)
    lifecycle.begin(run, HERE)
    monkeypatch.setattr(lifecycle, "job_state", lambda _: TAKEN)
    end = lifecycle.end(run, HERE, 143, "TERM")
    assert (end.code, end.message) == (unheard.TAKEN, "SLURM has taken the nodes, after step 0")
    result = json.loads(run.result.read_text())
    assert result["state"] == "stopped"
    assert result["error"] == "stopped on request, before training began"


@pytest.mark.parametrize(
    ("asked", "state", "code"),
    [((0, 1), "running", 75), ((1,), "running", 1), ((0, 1), "failed", 1)],
)
def test_who_is_ended_while_starting_was_stopped_where_all_nodes_were_asked(
    tmp_path: Path, asked: tuple[int, ...], state: State, code: int
) -> None:
    run = submitted(tmp_path, max_failures=0)
    lifecycle.begin(run, HERE)
    for rank in range(2):
        recorded(run, rank, state=state)
    for node in asked:
        node_marks.note(run, node, "asked", f"n{node + 1}")
    end = lifecycle.end(run, replace(HERE, nodes="n1,n2"), 137, "")
    assert end.code == code, end.message


LOST_PEER = RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("asked", "errors", "exits", "verdict"),
    [
        ((1,), {}, {}, "interrupted"),  # SLURM's late kill of a step
        ((0, 1), {}, {}, "interrupted"),  # killed while they saved
        ((1,), {}, {"1": -9}, "interrupted"),
        ((1,), {0: LOST_PEER}, {"1": -9}, "interrupted"),
        ((1,), {1: STOPPED}, {}, "interrupted"),  # rank 0 was killed while it saved
        ((), {}, {}, "failed"),
        ((1,), {}, {"0": -9}, "failed"),  # srun asked the other node then
        ((1,), {}, {"0": 1}, "failed"),
        ((1,), {1: LOST_PEER}, {}, "failed"),  # of memory, with its agent and launcher
        ((0, 1), {1: ValueError("no")}, {}, "failed"),
        ((1,), {0: ValueError("no"), 1: STOPPED}, {}, "failed"),
        ((1,), {1: BadInput("no")}, {}, "mistake"),
    ],
)
def test_what_dies_when_slurm_has_asked_a_node_to_stop_is_no_failure(
    tmp_path: Path,
    asked: tuple[int, ...],
    errors: dict[int, Exception],
    exits: dict[str, int],
    verdict: Verdict,
) -> None:
    run = submitted(tmp_path)
    lifecycle.begin(run, HERE)
    for rank in range(2):
        put_step(run, 5, rank)
        recorded(run, rank, errors.get(rank))
        write_json(run.exits(rank), {key: exits[key] for key in exits if int(key) == rank})
    for node in asked:
        node_marks.note(run, node, "asked", f"n{node + 1}")
    lifecycle.end(run, replace(HERE, nodes="n1,n2"), 137, "")
    [attempt] = SlurmFolder.of(run).attempts()
    assert (attempt.verdict, attempt.bad_nodes) == (verdict, [])


def test_a_new_submission_has_new_budgets(tmp_path: Path) -> None:
    run = submitted(tmp_path, max_requeues=0)
    lifecycle.begin(run, HERE)
    with pytest.raises(BudgetUsedUp):
        lifecycle.begin(run, HERE)
    folder = SlurmFolder.of(run)
    write_json(folder.job, folder.asked() | {"submitted": time.time()})
    assert lifecycle.begin(run, replace(HERE, job="13")).startswith("job 13")


def test_nothing_follows_a_mistake(tmp_path: Path) -> None:
    run = submitted(tmp_path, restart="chain")
    lifecycle.begin(run, HERE)
    recorded(run, 0, BadInput("there are no data"))
    end = lifecycle.end(run, HERE, 1, "")
    assert (end.code, end.message) == (2, "error: there are no data\n")
    with pytest.raises(BudgetUsedUp, match="no restart mends"):
        lifecycle.begin(run, replace(HERE, job="13"))


def test_a_completed_run_needs_no_start_and_no_second_end(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    lifecycle.begin(run, HERE)
    write_json(run.result, {"state": "completed", "epoch": 2})
    assert lifecycle.end(run, HERE, 0, "") == lifecycle.End(0, "")
    assert "nothing left to do" in lifecycle.begin(run, replace(HERE, job="13"))
    assert lifecycle.end(run, HERE, 0, "") == lifecycle.End(0, "")
    assert [one.verdict for one in SlurmFolder.of(run).attempts()] == ["completed"]


def test_a_completed_run_is_completed_although_the_signal_came(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    lifecycle.begin(run, HERE)
    write_json(run.result, {"state": "completed", "epoch": 2})
    assert lifecycle.end(run, HERE, 138, "USR1").code == 0


def test_a_failure_is_summed_up_from_what_all_nodes_left(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    lifecycle.begin(run, HERE)
    recorded(run, 0, RuntimeError("Connection closed by peer"))
    recorded(run, 1)  # it never said a word
    write_json(run.exits(1), {"1": -9})
    end = lifecycle.end(run, HERE, 1, "")
    assert end.code == 75
    assert "rank 1 on n2 failed first: killed by SIGKILL" in end.message
    assert json.loads(run.result.read_text())["state"] == "failed"


def test_a_node_that_hung_or_failed_its_checks_is_the_cause(tmp_path: Path) -> None:
    run = submitted(tmp_path, exclude="n7")
    lifecycle.begin(run, HERE)
    recorded(run, 0)
    write_json(run.node_error(1), {"error": "node n2 failed its checks: disk", "hint": "mend it"})
    SlurmFolder.of(run).add_bad_node("n2", "disk")
    end = lifecycle.end(run, HERE, 1, "")
    assert end.message.startswith("error: node n2 failed its checks: disk\nhint: mend it\n")
    assert (end.code, end.exclude) == (75, "n7,n2")
    assert SlurmFolder.of(run).attempts()[-1].bad_nodes == ["n2"]
    lifecycle.begin(run, HERE)
    assert not run.node_error(1).exists()


def failing(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> RunDir:
    """A run on two of three nodes whose second process was killed after its first step."""
    for module in (lifecycle, place, unheard):
        monkeypatch.setattr(module, "hostnames", lambda nodes: nodes.split(",") if nodes else [])
    options = {"signal": {"value": "B:USR1@120"}}
    run = submitted(folder, **({"max_failures": 9, "options": options, "spare_nodes": 1} | changes))
    lifecycle.begin(run, THREE.on(["n1", "n2"]))
    for rank in range(2):
        put_step(run, 5, rank)
        recorded(run, rank)
    write_json(run.exits(1), {"1": -9})
    return run


THREE = Here("12", 0, "n1,n2,n3")


def started(run: RunDir, when: float) -> None:
    """A start of the processes that took two seconds to its first step."""
    times.append(run, "start", time=when, in_job=True)
    assert place.first_step(run) is None
    times.append(run, "first step", spent={"starting": 1.5, "training": 0.5}, steps=1)
    assert place.first_step(run) == pytest.approx(when + 2)


def test_a_failure_is_followed_by_another_start_on_the_nodes_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = failing(tmp_path, monkeypatch)
    end = lifecycle.end(run, THREE, 1, "", again=True)
    assert end.code == lifecycle.AGAIN
    assert end.message.endswith("failed after step 5: to be continued on the nodes it has")
    assert place.place(run, "12", THREE.nodes) == ["n1", "n2"]
    lifecycle.begin(run, THREE.on(["n1", "n2"]))
    found = [(one.start, one.restart, one.nodes) for one in SlurmFolder.of(run).attempts()]
    assert found == [(1, 0, "n1,n2"), (2, 0, "n1,n2")]
    assert SlurmFolder.of(run).attempts()[0].code == 75


@pytest.mark.parametrize(
    ("heard", "again", "state", "stepped", "code"),
    [
        ("", False, {}, None, 75),  # an older template
        ("USR1", True, {}, None, 75),
        ("", True, {"TimeLimit": "UNLIMITED", "RunTime": "10-00:00:00"}, None, 77),
        ("", True, {"TimeLimit": "01:00:00", "RunTime": "00:57:50"}, 5.0, 77),  # 130 s are left
        ("", True, {"TimeLimit": "01:00:00", "RunTime": "00:57:50"}, 15.0, 75),  # after its start
        ("", True, {"TimeLimit": "01:00:00", "RunTime": "00:58:01"}, 0.0, 75),
        ("", True, {"NodeList": "n1,n3"}, None, 77),  # the one that died is gone
        ("", True, {"NodeList": "n1"}, None, 75),
    ],
)
def test_another_start_needs_nodes_time_and_that_nobody_wants_the_job_to_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heard: str,
    again: bool,
    state: dict[str, str],
    stepped: float | None,
    code: int,
) -> None:
    run = failing(tmp_path, monkeypatch)
    [attempt] = SlurmFolder.of(run).attempts()
    if stepped is not None:
        started(run, attempt.started + stepped - 2)
    monkeypatch.setattr(lifecycle, "job_state", lambda _: RUNNING | state)
    here = THREE if again else THREE.on(["n1", "n2"])
    assert lifecycle.end(run, here, 1, heard, again=again).code == code
    [attempt] = SlurmFolder.of(run).attempts()
    is_gone = "NodeList" in state
    assert attempt.verdict == ("interrupted" if is_gone else "failed")
    if is_gone:
        assert json.loads(run.result.read_text())["error"] == "SLURM has lost n2"


def test_a_start_that_never_came_to_a_step_is_given_as_long_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = failing(tmp_path, monkeypatch)
    state = {"TimeLimit": "01:00:00", "RunTime": "00:40:00"}  # 1080 s to the warning
    began = time.time() - 1000
    assert place.can_go_on(run, THREE.nodes, began, state)
    assert not place.can_go_on(run, THREE.nodes, began - 100, state)
    config = run.read_config()
    run.write_config(config | {"kind": "script"})
    assert not place.can_go_on(run, THREE.nodes, began - 100, state)  # it has told of steps
    run.mark(0).unlink()
    assert place.can_go_on(run, THREE.nodes, began - 100, state)


def test_a_start_gets_the_nodes_that_are_well_and_as_many_as_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = failing(tmp_path, monkeypatch)
    folder = SlurmFolder.of(run)
    folder.add_bad_node("n1", "disk full")
    assert place.place(run, "12", THREE.nodes) == ["n2", "n3"]
    assert THREE.on(["n2", "n3"]).nodes == "n2,n3"
    assert THREE.on(["n1", "n2", "n3"]) is THREE
    folder.add_bad_node("n3", "disk full")  # what is bad is better than nothing
    assert place.place(run, "12", THREE.nodes) == ["n1", "n2"]
    monkeypatch.setattr(place, "job_state", lambda _: RUNNING | {"NodeList": "n1"})
    with pytest.raises(LauncherError, match="job 12 has 1 nodes of the 2 that it needs"):
        place.place(run, "12", THREE.nodes)


def test_a_node_that_failed_its_check_is_reason_to_requeue_where_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, spare in (("spare", "n1,n2,n3"), ("none", "n1,n2")):
        (tmp_path / name).mkdir()
        run = failing(tmp_path / name, monkeypatch)
        SlurmFolder.of(run).add_bad_node("n2", "disk")
        end = lifecycle.end(run, replace(HERE, nodes=spare), 1, "", again=True)
        assert (end.code, end.exclude) == (77 if name == "spare" else 75, "n2")


def test_a_script_that_asks_to_be_started_again_is_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = failing(tmp_path, monkeypatch)
    for error, code in ((AskedAgain("it asked"), 77), (Stopped("SLURM asked a node"), 75)):
        monkeypatch.setattr(lifecycle, "cause", lambda *_, error=error, **__: error)
        assert lifecycle.end(run, THREE, 1, "", again=True).code == code


def test_a_writer_on_a_lost_node_is_waited_for_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path)
    monkeypatch.setattr(turn, "_PATIENCE_S", 0.1)
    with lock.held(run), pytest.raises(RunDirError, match="still in use by process"):
        lifecycle.begin(run, HERE)
    assert lifecycle.begin(run, HERE)


OTHER = replace(HERE, job="13")


@pytest.mark.parametrize("holder", ["lock", "slurm"])
def test_a_second_job_notes_nothing_while_the_first_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: str
) -> None:
    run = submitted(tmp_path)
    monkeypatch.setattr(turn, "_PATIENCE_S", 0.1)
    script = str(SlurmFolder.of(run).batch).split()[0]
    state = RUNNING | {"Command": script} if holder == "slurm" else {}
    monkeypatch.setattr(turn, "job_state", lambda _: state)
    lifecycle.begin(run, HERE)
    recorded(run, 0)
    put_step(run, 5)
    with lock.held(run) if holder == "lock" else nullcontext():
        before = everything(run)
        with pytest.raises(RunDirError, match=r"still in use by (process|job 12)"):
            lifecycle.begin(run, OTHER)
        end = lifecycle.end(run, OTHER, 2, "")
        assert everything(run) == before
    assert (end.code, end.exclude) == (2, "")
    assert "job 12 writes to" in end.message
    monkeypatch.setattr(turn, "job_state", lambda _: TAKEN | {"Command": "of/another/run"})
    assert lifecycle.begin(run, OTHER).endswith("(start 2)")
    before = everything(run)
    assert lifecycle.end(run, HERE, 1, "TERM").code == 2  # thought dead, and comes back
    assert everything(run) == before
    assert lifecycle.end(run, OTHER, 0, "USR1").code == 75


def test_an_end_is_not_noted_over_somebody_who_resumed_the_run_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path)
    lifecycle.begin(run, HERE)
    with lock.held(run):
        before = everything(run)
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        assert "process" in lifecycle.end(run, HERE, 2, "").message
        assert everything(run) == before


def test_a_job_may_note_its_end_before_its_own_writer_on_a_lost_node_is_counted_as_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    run = submitted(tmp_path)
    lifecycle.begin(run, HERE)
    with lock.held(run):
        assert lifecycle.end(run, HERE, 1, "").code == 75


def everything(run: RunDir) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_a_run_that_was_not_submitted_has_no_job(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    SlurmFolder.of(run).job.unlink()
    with pytest.raises(RunDirError, match="not made by `launcher submit`"):
        lifecycle.begin(run, HERE)


SLOW = {"rank": 1, "node": "n2.site", "words": "rank 1 on n2.site was 1.6 times the median"}


@pytest.mark.parametrize(("asked", "bad"), [(False, []), (True, ["n2"])])
def test_a_slow_node_is_left_out_where_that_is_asked_for_and_named_as_slurm_does(
    asked: bool, bad: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = failing(tmp_path, monkeypatch, exclude_slow=asked, exclude="n9")
    write_json(run.slow, {"slow": [SLOW]})
    ended = lifecycle.end(run, THREE, 1, "", again=True)
    assert ended.code == lifecycle.AGAIN
    assert ended.exclude == ("n9,n2" if asked else "")
    said = "node n2 is left out from now on: rank 1 on n2.site was 1.6 times the median"
    assert (said in ended.message) == asked
    assert place.place(run, "12", THREE.nodes) == (["n1", "n3"] if asked else ["n1", "n2"])
    lifecycle.begin(run, THREE.on(["n1", "n3"]))
    assert not run.slow.exists()
    recorded(run, 1)
    write_json(run.exits(1), {"1": -9})
    put_step(run, 9)
    lifecycle.end(run, THREE, 1, "", again=True)
    assert [one.bad_nodes for one in SlurmFolder.of(run).attempts()] == [bad, []]


def test_a_slow_node_of_a_start_that_was_killed_unheard_is_left_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = failing(tmp_path, monkeypatch, exclude_slow=True)
    write_json(run.slow, {"slow": [SLOW, SLOW | {"rank": 7}]})  # there is no eighth
    lifecycle.begin(run, Here("12", 1, "n1,n2,n3"))
    assert SlurmFolder.of(run).bad_nodes() == {"n2": SLOW["words"]}
    assert [one.bad_nodes for one in SlurmFolder.of(run).attempts()] == [["n2"], []]


@pytest.mark.parametrize("restart", ["requeue", "chain", "here"])
def test_a_start_after_one_that_was_killed_unheard_gets_a_spare_node_for_the_slow_one(
    restart: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = failing(tmp_path, monkeypatch, exclude_slow=True, restart=restart, exclude="n9")
    folder = SlurmFolder.of(run)
    write_json(run.slow, {"slow": [SLOW]})
    write_json(folder.job, folder.asked() | {"submitted": time.time()})  # by `launcher resubmit`
    lifecycle.prepare(run, replace(THREE, job="13"))
    assert place.place(run, "13", THREE.nodes) == ["n1", "n3"]
    told = read_json(folder.untold)  # where no node is spare it goes back into the queue for that
    assert told == ({"job": "13", "exclude": "n9,n2", "times": 0} if restart == "requeue" else None)
    said = lifecycle.begin(run, replace(THREE, job="13", nodes="n1,n3"))
    assert said == "job 13 starts on n1,n3 (start 1)"
    [killed, now] = folder.attempts()
    assert (killed.verdict, killed.bad_nodes, now.verdict) == ("interrupted", ["n2"], None)


@pytest.mark.parametrize(
    ("nodes", "code", "placed", "said"),
    [
        ("n1,n2,n3", 77, ["n1", "n3"], "(start 2)"),
        ("n1,n2", 75, ["n1", "n2"], "(start 2), n2 again: there is no other node in their place"),
    ],
)
def test_in_an_allocation_a_spare_node_takes_the_place_of_a_slow_one_or_it_is_said_that_none_can(
    nodes: str,
    code: int,
    placed: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spare = nodes.count(",") - 1
    run = failing(tmp_path, monkeypatch, exclude_slow=True, restart="here", spare_nodes=spare)
    write_json(run.slow, {"slow": [SLOW]})
    assert lifecycle.end(run, replace(THREE, nodes=nodes), 1, "", again=True).code == code
    for job, there in (("12", nodes), ("13", nodes)):  # and by `launcher resubmit --here`, anywhere
        assert place.place(run, job, there) == placed
    assert place.place(run, "13", "n2,n4,n5") == ["n4", "n5"]
    assert lifecycle.begin(run, replace(THREE, nodes=",".join(placed))).endswith(said)
