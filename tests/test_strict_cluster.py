"""The strict make of test cluster itself: that it differs from the plain one as it says."""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from slurm_cluster import Cluster, slurm_cluster
from strict_cluster import MAX_ARRAY, StrictCluster
from training import launcher, wait_for

from launcher.slurm import status

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

HEARS = """\
#!/bin/bash
trap 'echo batch heard USR1' USR1
srun bash -c '
    trap "echo top heard USR1" USR1
    (trap "echo child heard USR1" USR1; while sleep 0.1; do :; done) &
    setsid sleep 1000 &
    ls -d "$TMPDIR"
    while sleep 0.1; do :; done' &
wait
wait
wait
"""


def started(cluster: Cluster, script: str, *options: str) -> tuple[int, Path]:
    """A job that runs, and its output."""
    path, out = Path("job.sh").absolute(), Path("out.txt").absolute()
    path.write_text(script)
    return cluster.submit(path, f"--output={out}", *options), out


def test_only_the_top_process_of_a_step_hears_a_signal_and_nothing_outlives_its_job(
    strict_cluster: Cluster,
) -> None:
    job, out = started(strict_cluster, HEARS)
    node_tmp = strict_cluster.folder / f"tmp/n1-{job}"
    wait_for(lambda: out.exists() and str(node_tmp) in out.read_text())
    strict_cluster.run("scancel", "--signal=USR1", str(job))
    wait_for(lambda: "top heard USR1" in out.read_text())
    strict_cluster.run("scancel", "--signal=USR1", "--batch", str(job))
    wait_for(lambda: "batch heard USR1" in out.read_text())
    time.sleep(0.5)
    assert "child heard" not in out.read_text()
    assert "sleep 1000" in [process.command for process in strict_cluster.processes("n1")]
    strict_cluster.run("scancel", str(job))
    wait_for(lambda: strict_cluster.processes("n1") == [])
    wait_for(lambda: not node_tmp.exists())  # the epilog's work


def test_the_accounting_tells_of_ended_jobs_what_squeue_told(strict_cluster: Cluster) -> None:
    done, _ = started(strict_cluster, "#!/bin/bash\nexit 3\n")
    tasks, _ = started(strict_cluster, "#!/bin/bash\nexit $SLURM_ARRAY_TASK_ID\n", "--array=0-1")
    waited, _ = started(strict_cluster, "#!/bin/bash\n", "--hold", "--array=0,2-4%2")
    alone, _ = started(strict_cluster, "#!/bin/bash\n", "--hold")
    strict_cluster.run("scancel", str(waited), str(alone))
    ids = [str(job) for job in (done, tasks, waited, alone)]
    ends = {str(done): "FAILED", f"{tasks}_0": "COMPLETED", f"{tasks}_1": "FAILED"}
    ends |= {f"{waited}_{task}": "CANCELLED" for task in (0, 2, 3, 4)}
    ends |= {str(alone): "CANCELLED"}
    for tell in (status._squeue, status._sacct):
        wait_for(lambda: states(tell(ids)) == ends, every_s=0.3)  # noqa: B023  # called at once
    assert {job.nodes for job in status._sacct(ids[2:]).values()} == {""}


def test_what_the_accounting_alone_believes_to_run_was_lost(strict_cluster: Cluster) -> None:
    job, _ = started(strict_cluster, "#!/bin/bash\nsleep 600\n")
    words = ("sacct", "-X", "-n", "-P", "--format=State", f"--jobs={job}")
    wait_for(lambda: strict_cluster.run(*words) == "RUNNING\n", every_s=0.3)
    assert status._sacct([str(job)]) == {}
    strict_cluster.run("scancel", str(job))


def states(jobs: Mapping[str, status.JobNow]) -> dict[str, str]:
    return {name: job.state for name, job in jobs.items()}


def test_a_grid_of_more_runs_than_the_site_allows_is_refused_before_anything_is_written(
    strict_cluster: Cluster, tmp_path: Path
) -> None:
    seeds = ",".join(map(str, range(MAX_ARRAY + 1)))
    words = ("submit", "digits", f"--grid=seed={seeds}")
    done = launcher(*words, cwd=tmp_path, env=strict_cluster.env)
    assert done.returncode == 2
    assert "Invalid job array specification" in done.stderr
    assert "`scontrol show config` says as MaxArraySize" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_job_above_the_limit_of_its_qos_waits_for_ever(strict_cluster: Cluster) -> None:
    job, _ = started(strict_cluster, "#!/bin/bash\n", "--qos=short", "--time=10")
    wait_for(lambda: strict_cluster.job(job)["Reason"].startswith("QOSMaxWallDuration"))
    strict_cluster.run("scancel", str(job))


def test_a_node_that_died_in_the_middle_of_a_kill_comes_back(strict_cluster: Cluster) -> None:
    job, out = started(strict_cluster, HEARS)
    wait_for(lambda: out.exists() and "tmp" in out.read_text())
    group = f"/sys/fs/cgroup/{strict_cluster.name}-n1"
    freeze = (
        f"mount -t cgroup -o freezer none /sys/fs/cgroup && echo FROZEN > {group}/freezer.state"
    )
    run("unshare", "--mount", "sh", "-c", freeze)
    strict_cluster.kill_node("n1")
    assert strict_cluster.processes("n1") == []
    strict_cluster.start_node("n1")
    strict_cluster.run("scancel", str(job))
    wait_for(lambda: strict_cluster.node_state("n1") == "IDLE", every_s=0.3)


def test_a_cluster_takes_its_cgroups_along(
    tmp_path_factory: pytest.TempPathFactory, strict_slurm: Cluster
) -> None:
    folder = tmp_path_factory.mktemp("other")
    with slurm_cluster(folder, nodes=1, make=StrictCluster) as other:
        other.run("srun", "true")
        assert f"/{other.name}-n1\n" in freezers()
    assert other.name not in freezers()
    assert strict_slurm.name in freezers()


def freezers() -> str:
    """All cgroups of the freezer, one a line."""
    script = "mount -t cgroup -o freezer none /sys/fs/cgroup && find /sys/fs/cgroup -type d"
    return run("unshare", "--mount", "sh", "-c", script)


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
