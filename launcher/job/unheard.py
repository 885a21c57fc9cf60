"""A start that was killed before it could say how it ended: the next one says it, from the files.

SLURM took its nodes, or one of them was lost.
"""

from contextlib import suppress

from launcher.files import write_json
from launcher.job.place import leave_out_slow
from launcher.run import checkpoint_files, mark
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm.client import hostnames

TAKEN = 143  # exit code of a script whose nodes SLURM has taken away: nobody looks at it


def look_back(run: RunDir, job: str) -> None:
    """Note how the last start ended, where it did not; before nodes are chosen for the next one.

    What is slow was not known to SLURM when it chose nodes for this `job`: one that can be requeued
    goes elsewhere (see `requeue`).
    """
    folder = SlurmFolder.of(run)
    last, asked = folder.attempts()[-1:], folder.asked()
    if not last or last[0].verdict:
        return
    slow = leave_out_slow(run, hostnames(last[0].nodes))
    folder.end("interrupted", TAKEN, reach(run), sorted(slow))
    if slow and asked["restart"] == "requeue":
        exclude = ",".join(filter(None, [asked["exclude"], *folder.bad_nodes()]))
        with suppress(OSError):  # a full disk is no reason not to go on
            write_json(folder.untold, {"job": job, "exclude": exclude, "times": 0})


def reach(run: RunDir) -> int:
    """Return how many optimizer steps a run has come to, saved or not; 0 where nobody says so."""
    found = mark.read(run.mark(0))
    saved = [checkpoint.step for checkpoint in checkpoint_files.all_of(run.checkpoints)]
    return max([found.steps if found else 0, *saved])
