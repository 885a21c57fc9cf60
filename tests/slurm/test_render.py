"""Job scripts: as the golden files have them, and safe from whatever a value may hold.

To accept a change of the scripts: UPDATE_GOLDEN=1 uv run pytest tests/slurm/test_render.py
"""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from job_scripts import CASES, GOLDEN, ONE
from training import PROJECT

from launcher.errors import BadInput
from launcher.slurm.profile import Profile
from launcher.slurm.render import directives, quoted, render, variables, warnings


@pytest.mark.floors
@pytest.mark.parametrize("name", CASES)
def test_the_scripts_are_as_their_golden_files_have_them(name: str) -> None:
    for script, kind in zip(render(CASES[name]), ("sbatch", "node.sh"), strict=True):
        golden = GOLDEN / f"{name}.{kind}"
        if os.environ.get("UPDATE_GOLDEN"):
            golden.write_text(script)
        how = "UPDATE_GOLDEN=1 uv run pytest tests/slurm/test_render.py accepts the change"
        assert script == golden.read_text(), how


@pytest.mark.parametrize("name", CASES)
def test_bash_reads_the_scripts_and_nothing_required_is_missing(name: str) -> None:
    scripts = render(CASES[name])
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert not re.search(r"[ \t]$", script, flags=re.MULTILINE)
    assert warnings(scripts, requeue=CASES[name].requeue) == []


def sbatch_reads(line: str) -> list[str]:
    """The words that sbatch makes of what follows `#SBATCH`; after its `_get_argument`."""
    words: list[str] = []
    word, quote, escaped, inside = "", "", False, False
    for letter in line:
        if escaped:
            word, escaped = word + letter, False
        elif letter == "\\":
            escaped = True  # also within quotes
        elif quote:
            word, quote = (word, "") if letter == quote else (word + letter, quote)
        elif letter in "'\"":
            quote, inside = letter, True
        elif letter.isspace() and letter.isascii():
            words, word, inside = ([*words, word], "", False) if inside else (words, "", False)
        elif letter == "#":
            break
        else:
            word, inside = word + letter, True
    return [*words, word] if inside else words


ODD = st.text(
    st.characters(codec="utf-8", exclude_characters="\\", exclude_categories=["Cc", "Cs"]),
    min_size=1,
) | st.sampled_from(["a\u2028b", "$(id)", "`id`", "'; id #", '"', "--time=9", "#SBATCH -t 9"])


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(value=ODD)
@example(value="x' --uid=0 '")
def test_no_value_changes_another_directive(value: str) -> None:
    request = replace(ONE, sbatch={**ONE.sbatch, "job-name": value, "comment": value})
    request = replace(request, run_dir=Path("/shared") / value.replace("/", "_"))
    script = render(request).batch
    lines = script.split("\n")
    head = [line for line in lines if line.startswith("#SBATCH")]
    assert len(head) == len(directives(ONE)) + 1
    read = [sbatch_reads(line.removeprefix("#SBATCH")) for line in head]
    assert all(len(words) == 1 for words in read)
    told = dict(words[0].removeprefix("--").partition("=")[::2] for words in read)
    assert told["job-name"] == told["comment"] == value
    assert told["nodes"] == "1"
    # sbatch would replace patterns like %j in the name of a folder.
    assert told["output"].replace("%%", "%").endswith("/slurm/job-%j.out")
    folder = str(request.run_dir).replace("%", "%%")
    assert told["output"] == f"{folder}/slurm/job-%j.out"


@settings(max_examples=40, deadline=None)
@given(values=st.lists(ODD, min_size=5, max_size=5))
@example(values=["$(touch /nowhere/x)", "`id`", "'; exit 7; '", '" "', "a b"])
def test_no_value_becomes_code_in_the_shell(values: list[str]) -> None:
    names = [value.replace("/", "_") for value in values]
    profile = Profile(variables={"A": values[0]}, interface=values[1], scratch=values[2])
    request = replace(ONE, profile=profile, python=f"/{names[3]}", run_dir=Path("/s") / names[4])
    found = variables(request)
    lines = [f"printf '%s\\0' {found['variables']['A']} {found['interface']} {found['scratch']}"]
    lines += [f"printf '%s\\0' {found['python']} {found['run_dir']} {found['node_script']}"]
    done = subprocess.run(
        ["bash"], input="\n".join(lines).encode(), capture_output=True, check=True
    )
    read = done.stdout.decode().split("\0")[:-1]
    run_dir = str(request.run_dir)
    assert read == [*values[:3], f"/{names[3]}", run_dir, f"{run_dir}/slurm/node.sh"]


@pytest.mark.parametrize("text", ["a\nb", "a\\b", "\\", "a\rb", "\0", "a\tb", "\x7f", "\udcff"])
def test_what_cannot_be_quoted_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        quoted(text)
    with pytest.raises(BadInput):
        render(replace(ONE, sbatch={**ONE.sbatch, "comment": text}))


def test_an_own_template_replaces_ours_and_what_it_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.sbatch.j2").write_text("#!/bin/bash\nsrun {{ node_script }} {{ run_dir }}\n")
    scripts = render(ONE, [tmp_path])
    assert scripts.batch.endswith(
        "srun /shared/runs/digits-1/slurm/node.sh /shared/runs/digits-1\n"
    )
    assert scripts.node == render(ONE).node  # the other one is ours
    found = warnings(scripts, requeue=True)
    for what in ("`directives`", "trap for USR1", "job begin", "job end", "requeue block"):
        assert any(what in warning for warning in found), what
    assert not any("requeue" in warning for warning in warnings(scripts, requeue=False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{{ nodess }}", "'nodess' is undefined"),
        (b"\n{% if %}", "line 2"),
        (b"{% x %}", "tag 'x'"),
        (b'{% include "none.j2" %}', "job.sbatch.j2 includes a template that there is not"),
        (b'{% include "job.sbatch.j2" %}', "RecursionError"),
        (b"\n{{ nproc / 0 }}", "job.sbatch.j2, line 2: ZeroDivisionError"),
        (b"# \xff", "job.sbatch.j2: UnicodeDecodeError"),
    ],
)
def test_a_broken_template_is_a_mistake_that_is_located(
    tmp_path: Path, text: bytes, message: str
) -> None:
    (tmp_path / "job.sbatch.j2").write_bytes(text)
    with pytest.raises(BadInput, match=message):
        render(ONE, [tmp_path])


def test_the_variables_of_templates_are_those_that_the_manual_tells() -> None:
    manual = (PROJECT / "slurm" / "README.md").read_text()
    table = manual.partition("## Variables")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(variables(ONE))


def test_a_comma_in_what_a_container_mounts_is_refused() -> None:
    with pytest.raises(BadInput, match="comma or colon"):
        render(replace(CASES["pyxis"], run_dir=Path("/shared/a,b")))
