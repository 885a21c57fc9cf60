"""What a user's batch script lacks is found by reading it as a shell does."""

import re

import pytest
from job_scripts import CASES, GOLDEN

from launcher.slurm.render import render
from launcher.slurm.template import commands, lacks

WHOLE = """\
#!/bin/bash
#SBATCH --signal=B:USR1@120

heard=
trap 'heard=USR1' USR1  # it's heard
launcher job begin "$run_dir" || exit
srun bash node.sh & wait
exclude=$(launcher job end "$run_dir" --code "$?")
if [ "$?" = 75 ]; then launcher job requeue "$run_dir"; fi
"""


def test_a_script_that_has_everything_lacks_nothing() -> None:
    assert lacks(WHOLE, requeue=True) == []


@pytest.mark.parametrize("name", CASES)
def test_the_bundled_scripts_lack_nothing(name: str) -> None:
    assert lacks(render(CASES[name]).batch, requeue=CASES[name].requeue) == []


@pytest.mark.parametrize("name", CASES)
def test_templates_of_an_older_version_go_on_working(name: str) -> None:
    scripts = render(CASES[name], [GOLDEN / "older"])
    warned = lacks(scripts.batch, requeue=CASES[name].requeue)
    assert all(what.startswith("`launcher job requeue`: scontrol asks once") for what in warned)
    assert len(warned) == CASES[name].requeue


TRAP, LINES, BEGIN = "trap 'heard=USR1' USR1  # it's heard", "#SBATCH --signal=B:USR1@120", "begin"
# What is written instead, and what is then missing, if anything.
CHANGES = [
    (TRAP, "", "the trap"),
    (TRAP, "# trap 'heard=USR1' USR1", "the trap"),
    (TRAP, "true # trap 'heard=USR1' USR1", "the trap"),
    (TRAP, "trap '' USR1 TERM", "the trap"),
    (TRAP, "trap - USR1", "the trap"),
    (TRAP, "trap 'heard=TERM' TERM", "the trap"),
    (TRAP, "(trap 'heard=USR1' USR1)", "the trap"),
    (TRAP, "cat <<EOF\ntrap 'heard=USR1' USR1\nEOF", "the trap"),
    (TRAP, "cat <<-'END'\ntrap 'heard=USR1' USR1\n\tEND", "the trap"),
    (TRAP, 'echo "trap heard USR1"', "the trap"),
    (TRAP, "if true; then trap heard SIGUSR1 TERM; fi", None),
    (TRAP, "f() { heard=1; }; trap \\\n  f 10", None),
    (TRAP, "echo $# ${#heard}; trap 'heard=USR1' USR1", None),
    ("srun bash", "wait; srun bash", None),
    (LINES, "", "the #SBATCH lines"),
    (LINES, "date\n" + LINES, "the #SBATCH lines"),
    (LINES, "# a line\n\n" + LINES, None),
    ("launcher job begin", "echo launcher job begin", "`launcher job begin`"),
    ("launcher job begin", "# launcher job begin", "`launcher job begin`"),
    ("launcher job begin", "X=1 $python -m launcher job begin", None),
    ("launcher job end", "launcher job; end", "`launcher job end`"),
    ("launcher job requeue", "scontrol show", "the requeue block"),
    ("launcher job requeue", "scontrol requeue", "`launcher job requeue`: scontrol asks once"),
]


@pytest.mark.parametrize(("old", "new", "missing"), CHANGES)
def test_only_what_the_shell_would_run_counts(old: str, new: str, missing: str | None) -> None:
    script = WHOLE.replace(old, new, 1)
    assert script != WHOLE
    found = lacks(script, requeue=True)
    assert [what.startswith(missing or "") for what in found] == ([True] if missing else [])


def test_a_trap_behind_srun_comes_too_late() -> None:
    late = WHOLE.replace(TRAP, "") + TRAP
    assert [re.split("[ :]", what)[1] for what in lacks(late, requeue=True)] == ["trap"]


def test_without_a_requeue_none_is_missed() -> None:
    assert lacks(WHOLE.replace("launcher job requeue", "true"), requeue=False) == []


def test_commands_are_split_as_the_shell_splits_them() -> None:
    script = "a 'b c' \"d ; e\" \\\n f # g\nif ! h; then i=$(j k | l) m; fi; n ''\n"
    words = [command.words for command in commands(script)]
    expected = [["a", "b c", "d ; e", "f"], ["h"], ["i=$"], ["j", "k"], ["l"], ["m"], ["fi"]]
    assert words == [*expected, ["n", ""]]
