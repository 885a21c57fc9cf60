"""A stream's run that was killed ends as the undisturbed one, on another world size, too."""

import re
import shutil
from pathlib import Path

import pytest
from training import RECIPES, Run, launcher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("keeps", ["nothing", "state"])
def test_a_killed_stream_goes_on_byte_for_byte(tmp_path: Path, keeps: str) -> None:
    words = ["run", RECIPES / "streamed.py", "--cpu", "--nproc", "2", f"keeps={keeps}"]
    words += ["dtype=float64", "dropout=0.0"]
    done = launcher(*words, "--run-dir", "whole", cwd=tmp_path, timeout_s=280)
    assert done.returncode == 0, done.stderr
    # In the middle of the second epoch, and not at a checkpoint.
    cut = launcher(*words, "--run-dir", "r", cwd=tmp_path, env={"DIE_AT": "14"}, timeout_s=280)
    assert cut.returncode != 0
    shutil.copytree(tmp_path / "r", tmp_path / "other")
    done = launcher("resume", "r", cwd=tmp_path, timeout_s=280)
    assert done.returncode == 0, done.stderr
    # From step 12, or the one before where that checkpoint was still being written.
    assert re.search(r"continuing from step 1[02] \(epoch 1\)", done.stdout)
    done = launcher("resume", "other", "--nproc", "3", cwd=tmp_path, timeout_s=280)
    assert done.returncode == 0, done.stderr
    whole = Run(tmp_path / "whole")
    assert Run(tmp_path / "r").weight_bytes == whole.weight_bytes
    assert Run(tmp_path / "other").farthest(whole) <= 1e-12
    assert Run(tmp_path / "other").result["test_correct"] == whole.result["test_correct"]
