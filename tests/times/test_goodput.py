"""Where time went: every second has one name, whatever lines tell, and whatever is missing."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.times.goodput import EVERY_S, NAMES, goodput, words

Line = dict[str, Any]


def start(at: float, *lines: Line, in_job: bool = False) -> list[Line]:
    return [{"event": "start", "time": at, "in_job": in_job}, *lines]


def line(event: str, steps: int, told: Line | None = None, **spent: float) -> Line:
    return {"event": event, "spent": spent, "steps": steps} | (told or {})


def begin(step: int, **spent: float) -> Line:
    return line("begin", 0, {"step": step}, **spent)


def saved(step: int, trained: float, **spent: float) -> Line:
    return line("checkpoint", step, {"step": step, "trained": trained}, **spent)


def end(how: str, steps: int, **spent: float) -> Line:
    return line("end", steps, {"how": how}, **spent)


def job(at: float, queued: float | None, name: str = "1 0") -> Line:
    return {"event": "job", "time": at, "queued": queued, "name": name}


def job_end(at: float, name: str = "1 0") -> Line:
    return {"event": "job end", "time": at, "name": name}


# Ten seconds a step, killed in step 7; the one after it goes on from step 4.
KILLED = start(
    1000.0,
    begin(0, starting=8),
    saved(4, 40, starting=8, training=40),
    line("note", 4, starting=8, training=41, saving=2),
    line("note", 6, starting=8, training=64, saving=2),
)
GOES_ON = start(
    2000.0,
    begin(4, starting=6),
    end("completed", 8, starting=6, training=40, testing=5, saving=1, ending=2),
)


def test_training_behind_the_checkpoint_that_was_gone_on_from_is_lost() -> None:
    assert goodput(KILLED + GOES_ON, now=3000) == {
        "starting": 14,
        "training": 80,
        "lost": 24,
        "testing": 5,
        "saving": 3,
        "ending": 2,
        "unknown": EVERY_S,
    }


def test_a_run_that_goes_on_is_told_up_to_its_last_line() -> None:
    assert goodput(KILLED) == {"starting": 8, "training": 64, "saving": 2}
    assert goodput(KILLED, now=1000 + 74 + 3) == {
        "starting": 8,
        "training": 40,
        "lost": 24,  # nothing else can be gone on from
        "saving": 2,
        "unknown": 3,
    }


def test_a_checkpoint_that_was_broken_takes_what_is_behind_the_one_before_it() -> None:
    from_two = start(3000.0, begin(2, starting=1), end("completed", 8, starting=1, training=60))
    found = goodput(KILLED + GOES_ON + from_two, now=4000)
    assert (found["training"], found["lost"]) == (20 + 60, 44 + 40)


def test_a_start_that_did_not_come_to_training_takes_nothing() -> None:
    failed = start(2000.0, end("failed", 0, starting=9))
    assert goodput(KILLED + failed, now=2009)["training"] == 40
    assert goodput(KILLED + failed + GOES_ON[:2], now=None)["training"] == 40


def test_a_job_waits_starts_and_ends() -> None:
    first = [job(100, 70), *start(110, begin(0, starting=5), in_job=True)]
    first += [line("first step", 1, starting=6, training=1)]  # killed by SLURM with all there is
    second = [job(200, 70, "1 1"), *start(204, begin(0, starting=2), in_job=True)]
    second += [end("completed", 3, starting=2, training=30), job_end(240, "1 1")]
    assert goodput(first + second, now=999) == {
        "queued": 30 + (200 - 117 - EVERY_S),
        "starting": 10 + 6 + 4 + 2,
        "training": 30,
        "lost": 1,
        "ending": 4,
        "unknown": EVERY_S,
    }


def test_a_job_whose_node_was_unfit_was_starting_and_one_that_came_too_late_is_nobodys() -> None:
    unfit = [job(100, 90), job_end(130)]
    assert goodput(unfit, now=999) == {"queued": 10, "starting": 30}
    assert goodput([*unfit, job_end(500, "2 0")], now=999) == {"queued": 10, "starting": 30}


def test_a_start_by_hand_behind_a_job_has_not_waited_for_it() -> None:
    by_hand = start(9000, end("failed", 0, starting=1))
    assert goodput([job(100, 90), job_end(130), *by_hand], now=9999)["starting"] == 31


def test_a_script_that_tells_nothing_runs() -> None:
    lines = start(10, line("note", 0, running=5), end("completed", 0, running=6, ending=1))
    assert goodput(lines, now=99) == {"running": 6, "ending": 1}
    ticking = start(10, end("completed", 0, starting=1, training=6))  # from no step that is known
    assert goodput(ticking, now=99) == {"starting": 1, "running": 6}


def test_words_are_the_largest_first() -> None:
    assert words(goodput(KILLED + GOES_ON, now=3000), 2) == (
        "time of 2 starts, 2.2 min: 60% training that was kept, 18% training that was lost, "
        "11% starting, 4% testing, 4% unknown, 2% saving, 2% ending"
    )
    assert words({}, 0) == ""


# A busy machine takes long to think stories up: no fault of theirs.
PATIENT = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SECONDS = st.integers(0, 5000).map(float)
SPANS = st.lists(st.tuples(st.sampled_from(["training", "testing", "saving"]), SECONDS), max_size=8)
ENDS = st.sampled_from(["completed", "stopped", "failed", ""])
STARTS = st.lists(
    st.tuples(SECONDS, SECONDS, st.integers(0, 20), SPANS, ENDS, st.booleans(), SECONDS), max_size=5
)


def story(starts: Any, *, notes: bool = True) -> tuple[list[Line], float, float]:
    """Lines of made-up starts, in jobs or by hand, the time that they took, and when it is over."""
    lines: list[Line] = []
    now, whole = 1000.0, 0.0
    for number, (before, starting, from_step, spans, how, in_job, behind) in enumerate(starts):
        if in_job:
            lines.append(job(now + before, now, str(number)))
            whole += before
        now += before
        lines += start(now, in_job=in_job)
        spent, steps = {"starting": starting}, from_step
        lines.append(begin(from_step, **spent))
        for kind, seconds in spans:
            spent[kind] = spent.get(kind, 0.0) + seconds
            steps += kind == "training"
            if kind == "saving":
                lines.append(saved(steps, spent.get("training", 0.0), **spent))
            elif notes:
                lines.append(line("note", steps, **spent))
        if not notes:
            lines.append(line("note", steps, **spent))
        now, whole = now + sum(spent.values()), whole + sum(spent.values())
        if how:
            lines.append(end(how, steps, **spent))
        else:
            now, whole = now + EVERY_S, whole + EVERY_S
        if how and in_job:
            now, whole = now + behind, whole + behind
            lines.append(job_end(now, str(number)))
    return lines, whole, now


def test_a_start_in_a_job_whose_own_line_is_lost_did_not_begin_in_1970() -> None:
    told = start(1000, begin(0), end("completed", 1, training=3), in_job=True)
    assert goodput(told) == {"training": 3}


@PATIENT
@given(STARTS)
def test_every_second_has_one_name(starts: Any) -> None:
    lines, whole, now = story(starts)
    found = goodput(lines, now=now)
    assert found.keys() <= set(NAMES)
    assert all(seconds > 0 for seconds in found.values())
    assert sum(found.values()) == pytest.approx(whole)


@PATIENT
@given(STARTS)
def test_training_is_kept_or_lost_and_all_is_lost_where_a_run_begins_anew(starts: Any) -> None:
    lines, _, now = story(starts)
    trained = sum(s for _, _, _, spans, *_ in starts for kind, s in spans if kind == "training")
    found = goodput(lines, now=now)
    assert found.get("training", 0.0) + found.get("lost", 0.0) == pytest.approx(trained)
    anew = start(now, begin(0), end("completed", 1, training=1))
    found = goodput(lines + anew, now=now + 1)
    assert (found["training"], found.get("lost", 0.0)) == pytest.approx((1, trained))


@PATIENT
@given(STARTS, st.lists(st.booleans(), min_size=60))
def test_however_little_is_told_no_time_is_made_up(starts: Any, there: list[bool]) -> None:
    lines, _, now = story(starts)
    torn = [one for one, kept in zip(lines, there + [True] * len(lines), strict=False) if kept]
    found = goodput(torn, now=now)
    assert all(seconds > 0 for seconds in found.values())
    assert sum(found.values()) <= now - 1000 + EVERY_S


@PATIENT
@given(STARTS)
def test_totals_need_only_the_last_of_notes_in_a_row(starts: Any) -> None:
    lines, thin = story(starts)[0], story(starts, notes=False)[0]
    kept = {"training": 0.0, "lost": 0.0}
    found, other = (goodput(one) | kept for one in (lines, thin))
    assert found == pytest.approx(other)


def test_a_start_on_the_nodes_that_a_job_has_waits_in_no_queue() -> None:
    first = [job(100, 40), *start(103, end("failed", 0, starting=7), in_job=True), job_end(111)]
    told = goodput([*first, job(113, 40) | {"again": True}], now=113)
    assert told == {"queued": 60, "starting": 3 + 7 + 2, "ending": 1}
