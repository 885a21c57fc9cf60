"""A console that goes away, and one that is asked for all that a text stream has."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training import RECIPES, Run, clean_environment, launcher, wait_for

from launcher.console import Lasting

SLOW = RECIPES / "slow_disk.py"
ASKS = """
import sys
for stream in (sys.stdout, sys.stderr):
    stream.buffer.write(b'by bytes\\n')
    stream.reconfigure(line_buffering=True, errors='replace')
    stream.errors, stream.encoding, stream.fileno(), stream.isatty(), stream.newlines
    assert stream.mode == 'w' and stream.writable() and stream.name
"""


def test_what_is_said_goes_to_both_in_order(tmp_path: Path) -> None:
    with (tmp_path / "console").open("w") as console, (tmp_path / "log").open("w") as log:
        both = Lasting(console, log)
        print("a", "ü", file=both)
        both.buffer.write(b"bytes\n")
        log.write("log only\n")
        print("b", file=both)
        both.flush()
        assert (both.encoding, both.name) == (console.encoding, console.name)
        assert both.fileno() == console.fileno()
        assert both.errors
        assert not both.isatty()
        both.reconfigure(errors="replace")
    assert (tmp_path / "console").read_text() == "a ü\nbytes\nb\n"
    assert (tmp_path / "log").read_text() == "a ü\nbytes\nlog only\nb\n"


def test_a_console_that_is_gone_is_dropped_and_the_log_goes_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    console = os.fdopen(writer, "w")
    with (tmp_path / "log").open("w") as log:
        both = Lasting(console, log)
        os.close(reader)
        for number in range(3):
            print(number, file=both)
    assert both.console is None
    with pytest.raises(BrokenPipeError):
        console.close()
    text = (tmp_path / "log").read_text()
    assert text.startswith("0\nWARNING: the console is gone ([Errno 32] Broken pipe)\n")
    assert text.endswith("\n1\n2\n")


def test_what_an_encoding_lacks_is_no_failure(tmp_path: Path) -> None:
    with (tmp_path / "console").open("w", encoding="ascii") as console:
        print("ü", file=Lasting(console))
    assert (tmp_path / "console").read_text() == "\\xfc\n"


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_end_a_run(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "launcher", "run", SLOW, "epochs=3", "--nproc", "2"]
    words = " ".join(map(str, [*run, "--run-dir", "r", "step_s=0.2"]))
    line = ["bash", "-c", f"{words} 2>&1 | head -n 1; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(line, cwd=tmp_path, env=clean_environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 1
    assert Run(tmp_path / "r").result["state"] == "completed"
    log = (tmp_path / "r" / "logs" / "rank-0.log").read_text()
    assert "WARNING: the console is gone" in log
    assert "Done: test accuracy" in log


@pytest.mark.slow
def test_a_terminal_that_is_closed_is_a_request_to_stop(tmp_path: Path) -> None:
    """As when ssh drops: the kernel and the shell send SIGHUP, and nothing can be printed."""
    terminal, its_side = pty.openpty()
    words = ["run", SLOW, "--nproc", "2", "epochs=99", "step_s=0.3", "save_s=1", "--run-dir", "r"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", *map(str, words)],
        cwd=tmp_path,
        env=clean_environment(),
        stdin=its_side,
        stdout=its_side,
        stderr=its_side,
        start_new_session=True,
        preexec_fn=own_terminal,  # noqa: PLW1509  # pytest has no other thread
    )
    os.close(its_side)
    wait_for((tmp_path / "r" / "metrics.jsonl").exists, timeout_s=150)
    os.close(terminal)
    time.sleep(0.5)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 75
    assert Run(tmp_path / "r").result["state"] == "stopped"
    assert list((tmp_path / "r" / "checkpoints").glob("step-*"))


def own_terminal() -> None:
    """Make standard input the terminal that this session hangs on."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_a_recipe_may_ask_for_all_that_a_text_stream_has(tmp_path: Path) -> None:
    recipe = tmp_path / "asks.py"
    recipe.write_text(SLOW.read_text() + ASKS)
    done = launcher("run", recipe, "--nproc", "2", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("by bytes") >= 2
    for rank in range(2):
        assert "by bytes" in (tmp_path / "r" / "logs" / f"rank-{rank}.log").read_text()
