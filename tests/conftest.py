"""Fixtures that several files share."""

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import strict_cluster as strict
from slurm_cluster import Cluster, missing, slurm_cluster
from warm import WARM
from xdist.scheduler import LoadFileScheduling

# Threads that wait for each other keep no core busy: there are more of them than cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it does not wait for
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C
WARM.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that may take longest: others fit in beside them."""
    longest: dict[Path, float] = {}
    for item in items:
        if item.get_closest_marker("warm"):
            item.add_marker("slow")  # it starts processes
        if limit := item.get_closest_marker("timeout"):
            longest[item.path] = max(limit.args[0], longest.get(item.path, 0))
    items.sort(key=lambda item: -longest.get(item.path, 0))


class ByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
    """A file stays in one process; of the longest, each of two clusters has one of its own."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return nodeid.partition("[")[2] if file.endswith("test_job_ends.py") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    """Take it for `--dist loadfile`."""
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Start processes from a warm one for tests that are marked so."""
    mark = item.get_closest_marker("warm")
    WARM.wanted = bool(mark) and not item.get_closest_marker("cold")
    WARM.scripts = bool(mark and mark.kwargs.get("scripts"))
    return (yield)


def pytest_sessionfinish() -> None:
    """End the warm process; what it has covered is written then."""
    WARM.close()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes."""
    if reason := missing():
        pytest.skip(reason)
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def cluster(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, with SLURM's commands talking to it from an empty folder."""
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return slurm


@pytest.fixture(scope="session")
def strict_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes of the other make: see `strict_cluster`. One for all files."""
    if reason := strict.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("strict")
    # MessageTimeout: above KillWait, as in test_cluster_jobs.
    extra = ["MessageTimeout=10"]
    with slurm_cluster(folder, cpus=4, extra=extra, make=strict.StrictCluster) as running:
        yield running


@pytest.fixture
def strict_cluster(
    strict_slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Cluster:
    """As `cluster`, but of the other make: cgroups, sacct, prolog and epilog, small arrays."""
    for name, value in strict_slurm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return strict_slurm
