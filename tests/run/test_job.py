"""What a run directory knows of its jobs."""

import os
from pathlib import Path

from launcher.files import write_json
from launcher.run.job import Job, SlurmFolder


def test_attempts_are_read_back_as_they_were_noted(tmp_path: Path) -> None:
    folder = SlurmFolder(tmp_path / "slurm")
    assert folder.attempts() == []
    folder.start("12", 0, "n[1-2]")
    folder.end("timeout", 75, 40, [])
    folder.start("12", 1, "n[1,3]")
    first, second = folder.attempts()
    assert (first.job, first.nodes, first.verdict, first.step) == ("12", "n[1-2]", "timeout", 40)
    assert (second.restart, second.verdict, second.ended) == (1, None, None)
    assert first.started <= (first.ended or 0) <= second.started


def test_a_line_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    folder = SlurmFolder(tmp_path)
    folder.start("12", 0, "n1")
    with folder.attempts_file.open("a") as file:
        file.write('{"event": "end", "ver\n')
    folder.end("failed", 1, 3, ["n1"])
    assert [(one.verdict, one.bad_nodes) for one in folder.attempts()] == [("failed", ["n1"])]


def test_the_jobs_of_a_run_are_listed_and_those_of_an_array_by_task(tmp_path: Path) -> None:
    array, task = SlurmFolder(tmp_path / "slurm"), SlurmFolder(tmp_path / "7" / "slurm")
    task.path.mkdir(parents=True)
    array.path.mkdir()
    assert not array.exists()
    write_json(array.job, {"jobs": []})
    write_json(task.job, {"array_task": 7})
    array.add_job(Job("12", 1.0))
    assert array.exists()
    assert [job.name for job in array.jobs()] == ["12"]
    assert [job.name for job in task.jobs()] == ["12_7"]
    task.add_job(Job("15", 2.0))  # submitted again, by itself
    assert [job.name for job in task.jobs()] == ["12_7", "15"]


def test_bad_nodes_are_noted_each_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = SlurmFolder(tmp_path)
    assert folder.bad_nodes() == {}
    folder.add_bad_node("n2", "no GPU answers")
    folder.add_bad_node("gpu-a.site.org", "disk full")
    assert folder.bad_nodes() == {"n2": "no GPU answers", "gpu-a.site.org": "disk full"}


def test_batch_logs_are_listed_oldest_first(tmp_path: Path) -> None:
    folder = SlurmFolder(tmp_path)
    for age, job in enumerate(["9", "12_3"]):
        folder.output(job).touch()
        os.utime(folder.output(job), (age, age))
    assert [path.name for path in folder.outputs()] == ["job-9.out", "job-12_3.out"]
