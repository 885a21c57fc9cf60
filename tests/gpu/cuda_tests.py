"""Stage 2: the tests that need a GPU, by the names of their files."""

import os
import re
import subprocess
import sys
from pathlib import Path

from check import PROJECT, Note

FILES = ("tests/data/test_device.py", "tests/gpu/test_cuda.py")
_ALONE = "addopts=--import-mode=importlib --strict-markers"  # that machine may lack xdist


def main(cpu: bool, folder: Path, note: Note) -> None:
    words = ["-m", "pytest", "-o", _ALONE, "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider"]
    # They wait for processes to start, most of all.
    words += [*FILES, *([] if cpu else ["-n", "6", "-p", "no:benchmark"])]
    words += ["-k", os.environ["CHECK_TESTS"]] if "CHECK_TESTS" in os.environ else []
    done = subprocess.run(
        [sys.executable, *words, f"--junitxml={folder / 'tests.xml'}", "--durations=8"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-6000:], done.stderr[-2000:])
    last = [line for line in done.stdout.splitlines() if re.search(r"\d+ (passed|skipped)", line)]
    note(pytest=last[-1] if last else "no summary")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    note(failed=failed)
    assert done.returncode == 0
    assert cpu or "skipped" not in last[-1], "a test that needs a GPU found none"
