"""Options of sbatch: who wins, what is refused, how GPUs are counted and time limits are read."""

from collections.abc import Mapping

import pytest

from launcher.errors import BadInput
from launcher.slurm.options import (
    FLAGS,
    Setting,
    for_site,
    gpus_of,
    of_environment,
    sbatch_options,
    seconds,
    settled,
    warnings,
)
from launcher.slurm.profile import Profile


def test_the_command_line_wins_over_the_profile_and_it_over_defaults() -> None:
    profile = Profile(sbatch={"partition": "gpu", "time": "60"}, source="profile site (site.toml)")
    found = settled({"time": "5"}, profile, {"nodes": "1", "time": "1"})
    assert found == {
        "nodes": Setting("1", "default"),
        "partition": Setting("gpu", "profile site (site.toml)"),
        "time": Setting("5", "command line"),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("output", "not yours to give"),
        ("gpus-per-task", "not yours to give"),
        ("Time", "no option of sbatch"),
        ("time\n#SBATCH --x", "no option of sbatch"),
        ("", "no option of sbatch"),
    ],
)
def test_an_option_that_is_none_or_ours_is_refused(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        settled({name: "1"}, Profile(), {})


def test_options_of_sbatch_are_words_with_and_without_a_value() -> None:
    assert sbatch_options(["reservation=a=b", "--exclusive"]) == {
        "reservation": "a=b",
        "exclusive": "",
    }


@pytest.mark.parametrize("word", ["comment=", "exclusive=", "account= ", "--nice="])
def test_an_empty_value_is_refused_and_never_an_option_that_stands_alone(word: str) -> None:
    with pytest.raises(BadInput, match="empty value"):
        sbatch_options([word])


@pytest.mark.parametrize("name", ["comment", "account", "gres", "time", "mem"])
def test_an_option_without_its_value_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"--{name} needs a value"):
        settled({name: ""}, Profile(), {})
    with pytest.raises(BadInput, match=f"--{name} needs a value"):
        settled({}, Profile(sbatch={name: ""}), {})


def test_options_that_stand_alone_may() -> None:
    given = dict.fromkeys(FLAGS, "")
    assert settled(given, Profile(), {}).keys() == FLAGS


@pytest.mark.parametrize(
    "name", ["gpus-per-nod", "gre", "outpu", "arr", "wai", "gpus-per-t", "sig"]
)
def test_a_part_of_a_name_is_refused_since_sbatch_would_take_it_for_the_whole(name: str) -> None:
    with pytest.raises(BadInput, match="write it in full"):
        settled({name: "1"}, Profile(), {})


def test_the_sites_variables_are_options_outside_of_jobs() -> None:
    env = {
        "SBATCH_ACCOUNT": "physics",
        "SBATCH_PARTITION": "gpu",
        "SBATCH_TIMELIMIT": "60",
        "SBATCH_GPUS_PER_NODE": "4",
        "SBATCH_EXCLUSIVE": "",
        "SBATCH_OVERCOMMIT": "1",
        "SBATCH_QOS": "",
        "SBATCH_OUTPUT": "/elsewhere",
        "SBATCH_NOBODY_KNOWS": "x",
        "PATH": "/bin",
    }
    found, left_out = of_environment(env)
    assert {name: one.value for name, one in found.items()} == {
        "account": "physics",
        "partition": "gpu",
        "time": "60",
        "gpus-per-node": "4",
        "exclusive": "",
        "overcommit": "",
    }
    assert [words.partition(" ")[0] for words in left_out] == [
        "SBATCH_NOBODY_KNOWS",
        "SBATCH_OUTPUT",
    ]
    assert of_environment(env | {"SLURM_JOB_ID": "7"}) == ({}, [])


def test_the_sites_variables_win_over_defaults_only() -> None:
    sites = {name: Setting("site", "SBATCH_X") for name in ("time", "qos", "partition", "account")}
    profile = Profile(sbatch={"qos": "profile", "partition": "profile"})
    found = settled({"partition": "given"}, profile, {"time": "default"}, sites)
    assert {name: one.value for name, one in found.items()} == {
        "time": "site",
        "account": "site",
        "qos": "profile",
        "partition": "given",
    }


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 0),
        ({"gpus-per-node": "8"}, 8),
        ({"gpus-per-node": "a100:4"}, 4),
        ({"gpus-per-node": "a100:2,h100:1"}, 3),
        ({"gpus-per-node": "0"}, 0),
        ({"gpus": "8"}, 8),
        ({"gpus": "a100:8"}, 8),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:8"}, 8),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "gpu:a100:8"}, 8),
        ({"gres": "gpu:1g.5gb:2"}, 2),
        ({"gres": "GPU:2"}, 2),
        ({"gres": "gpu=2"}, 2),
        ({"gres": "gres/gpu:2"}, 2),
        ({"gres": "gres:gpu:2"}, 2),
        ({"gres": "nvme:1,gpu:a100:2,gpu:h100:1"}, 3),
        ({"gres": "nvme:1"}, 0),
        ({"gres": "none"}, 0),
        ({"gres": "gpu:0"}, 0),
        ({"gres": "nvme:1", "gpus-per-node": "2"}, 2),
        ({"nodes": "2", "gpus-per-node": "8"}, 8),
    ],
)
def test_every_spelling_of_gpus_is_counted(options: Mapping[str, str], count: int) -> None:
    assert gpus_of(settled(options, Profile(), {"nodes": "1"})) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus-per-node": "all"}, "--gpus-per-node all is neither a number nor TYPE:NUMBER"),
        ({"gpus-per-node": "a100"}, "is neither"),
        ({"gpus-per-node": "8,"}, "is neither"),
        ({"gpus": "2", "nodes": "2"}, "spread unevenly"),
        ({"gres": "gpu:two:x"}, "--gres gpu:two:x is neither"),
        ({"gres": "gpu:1K"}, "gpu:1K"),
        ({"gres": "shard:2"}, "a share of a GPU"),
        ({"gres": "mps:50"}, "a share of a GPU"),
        ({"gres": "gpu:4", "gpus-per-node": "8"}, "asked for twice"),
        ({"gpus-per-task": "8"}, "give --gpus-per-node"),
        ({"gpus-per-socket": "8"}, "give --gpus-per-node"),
        ({"tres-per-task": "gres/gpu:8"}, "give --gpus-per-node"),
        ({"ntasks-per-gpu": "1"}, "give --nproc"),
        ({"G": "8"}, "no option of sbatch"),
        ({"-G": "8"}, "no option of sbatch"),
    ],
)
def test_gpus_that_cannot_be_counted_are_refused(options: Mapping[str, str], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        gpus_of(settled(options, Profile(), {"nodes": "1"}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "gres"),
    [
        ({"gpus-per-node": "8"}, "gpu:8"),
        ({"gpus": "a100:8"}, "gpu:a100:8"),
        ({"gpus-per-node": "a100:2,h100:1"}, "gpu:a100:2,gpu:h100:1"),
        ({"gres": "nvme:1", "gpus-per-node": "2"}, "nvme:1,gpu:2"),
        ({"gres": "gpu:2"}, "gpu:2"),
    ],
)
def test_a_site_that_counts_by_gres_gets_one_beside_what_else_is_asked(
    options: Mapping[str, str], gres: str
) -> None:
    assert for_site(options, Profile(gpus="gres")) == {"gres": gres}
    assert for_site(options, Profile()) == options


@pytest.mark.parametrize(
    ("options", "gpus", "expected"),
    [
        ({}, 0, []),
        ({}, 8, ["no cores are asked for 8 GPUs"]),
        ({"cpus-per-task": "64"}, 8, []),
        ({"cpus-per-gpu": "8"}, 8, []),
        ({"exclusive": ""}, 8, []),
        ({"cpus-per-task": "64"}, 9, ["and 8 are used"]),
        ({"time": "2"}, 0, ["leaves no time"]),
        ({"time": "0:02:00"}, 0, ["leaves no time"]),
        ({"time": "3"}, 0, ["leaves no time"]),  # SLURM may signal a minute early
        ({"time": "4"}, 0, []),
        ({"time": "2", "signal": "B:USR1@10"}, 0, []),
        ({"time": "UNLIMITED"}, 0, []),
        ({"time": "0"}, 0, []),
    ],
)
def test_what_is_hardly_wanted_is_said(
    options: Mapping[str, str], gpus: int, expected: list[str]
) -> None:
    settings = settled(options, Profile(), {"nodes": "1", "signal": "B:USR1@120"})
    found = warnings(settings, 8, gpus)
    assert len(found) == len(expected)
    assert all(words in warning for words, warning in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("5", 300),
        ("5:30", 330),
        ("1:00:05", 3605),
        ("2-3", 51 * 3600),
        ("2-3:04", 51 * 3600 + 240),
        ("2-3:04:05", 51 * 3600 + 245),
        ("INFINITE", None),
        ("an hour", None),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit: str, expected: int | None) -> None:
    assert seconds(limit) == expected
