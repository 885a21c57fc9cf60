"""Requests for jobs of every kind, whose scripts have golden files."""

from dataclasses import replace
from pathlib import Path

from launcher.slurm.profile import Container, Profile
from launcher.slurm.render import Request

GOLDEN = Path(__file__).parent / "golden"


ONE = Request(
    run_dir=Path("/shared/runs/digits-1"),
    workdir=Path("/shared/runs/digits-1/snapshot"),
    python="/shared/venv/bin/python",
    nproc=1,
    sbatch={"nodes": "1", "signal": "B:USR1@120", "job-name": "digits", "cpus-per-task": "1"},
    profile=Profile(),
)


GPUS = {"nodes": "16", "signal": "B:USR1@120", "job-name": "big", "gpus-per-node": "8"}


MANY = replace(ONE, nproc=8, gpus=8, sbatch=GPUS)


SITE = Profile(
    sbatch={},
    modules=("cuda/12.4",),
    conda="my env",
    setup=("ulimit -n 65536",),
    node_setup=("nvidia-smi -pm 1",),
    variables={"NCCL_DEBUG": "WARN"},
    scratch="/local",
    interface="ib0",
    gpus="gres",
)


PYXIS = Container("pyxis", "/shared/images/a b.sqsh", ("/shared/data",), "python3")


APPTAINER = Container("apptainer", "/shared/images/launcher.sif", ("/data:/mnt/data",))


CASES = {
    "one-node": ONE,
    "many-nodes": MANY,
    "array": replace(ONE, array="0-5%2"),
    "chain": replace(ONE, requeue=False),
    "profile": replace(MANY, profile=SITE),
    "venv": replace(ONE, profile=Profile(venv="/shared/envs/x")),
    "pyxis": replace(MANY, profile=Profile(container=PYXIS)),
    "apptainer": replace(MANY, profile=Profile(container=APPTAINER)),
}
