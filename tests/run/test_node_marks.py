"""Who is to blame for a failed start: the nodes that lack what others have."""

from pathlib import Path

import pytest

from launcher.errors import ANOTHER_WAS_NOT, PeerFailed
from launcher.files import write_json
from launcher.run import mark, node_marks
from launcher.run.directory import RunDir
from launcher.run.node_marks import Came, give_others_time, look_at_all, note, to_blame
from launcher.run.record import Record


def came(*nodes: tuple[int, str]) -> list[Came]:
    return [Came(f"n{at}", stage, fault) for at, (stage, fault) in enumerate(nodes, 1)]


FULL = "node n1 failed its checks: disk: `/runs` cannot be written"
CASES = [
    ([(2, "no scratch"), (5, "")], {}, ["n1"]),
    ([(2, "no scratch"), (2, "no scratch")], {}, []),  # all lack it
    ([(2, "no scratch"), (1, "")], {}, ["n1"]),  # the other is slow: nothing is proven, but tried
    ([(2, "no scratch"), (1, "")], {"n7": "no scratch"}, []),  # in vain
    ([(2, "no scratch"), (3, "no torch"), (4, "")], {}, ["n1", "n2"]),
    ([(5, ""), (5, "")], {}, []),
    ([(2, FULL)], {}, ["n1"]),  # alone: another one is tried,
    ([(2, FULL)], {"n7": FULL.replace("n1", "n7")}, []),  # where it is the same
    ([(2, FULL)], {"n7": "node n7: too few GPUs"}, ["n1"]),
    ([(2, FULL)], {"n1": FULL}, ["n1"]),  # the same node again tells nothing
    ([(2, "node n1: clock +60.2 s off")], {"n7": "node n7: clock +59.9 s off"}, []),
]


@pytest.mark.parametrize(("nodes", "before", "blamed"), CASES)
def test_only_what_others_do_not_have_is_a_nodes_fault(
    nodes: list[tuple[int, str]], before: dict[str, str], blamed: list[str]
) -> None:
    assert sorted(to_blame(came(*nodes), before)) == blamed


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "logs").mkdir()
    return RunDir(tmp_path)


def test_what_nodes_left_tells_how_far_they_came(run: RunDir) -> None:
    note(run, 0, "came", "n1")
    note(run, 0, "began", "n1")
    with run.node_mark(1).open("w") as file:
        file.write("came n2\nfailed line 9 of node.sh ended with exit code 1: module load x\n")
    for stage in ("came", "began", "sound"):
        note(run, 2, stage, "n3")
    told = {"error": "node n3 failed its checks: devices", "hint": "look", "own_fault": True}
    write_json(run.node_error(2), told)
    found = look_at_all(run, 1, ["n1", "n2", "n3", "n4"])
    assert [one.stage for one in found] == [2, 1, 3, 0]
    assert [one.node for one in found] == ["n1", "n2", "n3", "n4"]
    assert found[0].fault == ""
    assert found[1].fault.startswith("node n2: line 9 of node.sh ended with exit code 1")
    assert (found[2].fault, found[2].hint) == (told["error"], "look")
    assert "node n4 never came" in found[3].fault


def test_a_node_that_never_came_is_not_blamed_where_that_proves_nothing(run: RunDir) -> None:
    assert not any(one.fault for one in look_at_all(run, 1, ["n1", "n2"]))  # an older node.sh
    note(run, 0, "began", "n1")
    assert not any(one.fault for one in look_at_all(run, 1, ["n1", "n2", "n3"]))
    assert look_at_all(run, 1, ["n1", "n2"])[1].fault
    recorded(run, 0, None)  # processes start when all nodes have come
    assert not any(one.fault for one in look_at_all(run, 1, ["n1", "n2"]))


def recorded(run: RunDir, rank: int, error: Exception | None, *, loaded: bool = True) -> None:
    note(run, rank, "began", f"n{rank + 1}")
    record = Record(rank, f"n{rank + 1}", 1, "running", 1.0)
    if error:
        record.end("failed", error)
    record.write(run)
    if loaded:
        run.mark(rank).touch()


LOST, PEER = FileNotFoundError("no /data"), PeerFailed(ANOTHER_WAS_NOT)
LIVED = [
    ([PEER, LOST], ["n2"]),  # the data are not mounted on one node
    ([LOST, LOST], []),  # nor on the other
    ([PeerFailed("another rank could not get ready, or end"), LOST], []),  # it only waited
    ([None, LOST], []),  # which was ended before it looked
    ([PeerFailed("rank 1 has gone in the middle of a step"), LOST], []),  # while they trained
    ([LOST], []),  # perhaps it is the recipe's
]


@pytest.mark.parametrize(("errors", "blamed"), LIVED)
def test_a_node_that_lacks_the_data_of_the_others_is_to_blame(
    errors: list[Exception | None], blamed: list[str], run: RunDir
) -> None:
    for rank, error in enumerate(errors):
        recorded(run, rank, error)
    found = look_at_all(run, 1, [f"n{rank + 1}" for rank in range(len(errors))])
    assert sorted(to_blame(found, {})) == blamed
    assert all(one.lived for one in found)
    for rank in range(len(errors)):
        mark.Marker(run.mark(rank)).step(7)  # at its end a run's ranks wait for each other, too
    assert to_blame(look_at_all(run, 1, [one.node for one in found]), {}) == {}


def test_a_node_on_which_the_recipe_cannot_be_loaded_is_to_blame(run: RunDir) -> None:
    missing = ModuleNotFoundError("No module named 'torchvision'")
    recorded(run, 0, None)
    recorded(run, 1, missing, loaded=False)
    names = ["n1", "n2"]
    assert list(to_blame(look_at_all(run, 1, names), {})) == ["n2"]
    run.mark(0).unlink()  # the other was ended before it came so far
    assert to_blame(look_at_all(run, 1, names), {}) == {}
    recorded(run, 0, missing, loaded=False)
    assert to_blame(look_at_all(run, 1, names), {}) == {}


def test_what_is_the_networks_fault_is_no_nodes(run: RunDir) -> None:
    note(run, 0, "began", "n1")
    write_json(run.node_error(0), {"error": "2 of 4 met", "hint": None, "own_fault": False})
    assert look_at_all(run, 1, ["n1"])[0].fault == ""


def test_a_failed_node_waits_for_others_to_come_further_or_to_fail(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr(node_marks, "_PATIENCE_S", 0.2)
    note(run, 0, "began", "n1")
    give_others_time(run, 0, 2, 1)  # it has no fault of its own
    write_json(run.node_error(0), {"error": "no scratch", "hint": None, "own_fault": True})
    give_others_time(run, 0, 1, 1)  # there are no others
    assert slept == []
    give_others_time(run, 0, 2, 1)  # the other says nothing
    assert slept != []
    slept.clear()
    write_json(run.node_error(1), {"error": "no", "hint": None})
    give_others_time(run, 0, 2, 1)
    note(run, 2, "sound", "n3")
    give_others_time(run, 0, 3, 1)
    assert slept == []
