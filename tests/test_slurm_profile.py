"""Site profiles: found by name or path, read strictly, and who wins over whom."""

from pathlib import Path

import pytest

from launcher.errors import BadInput
from launcher.run_dir import assets
from launcher.slurm_profile import Container, Profile, Setting, load, sbatch_options, settled

FULL = """\
modules = ["cuda/12.4"]
venv = "/envs/x"
setup = ["ulimit -n 65536"]
node_setup = ["true"]
scratch = "/local"
interface = "ib0"
gpus = "gres"
[sbatch]
partition = "gpu"
exclusive = true
requeue-me-not = false
nice = 5
[variables]
A = "b"
[container]
engine = "apptainer"
image = "x.sif"
mounts = ["/data"]
"""


def written(folder: Path, text: str, name: str = "site") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def test_a_profile_is_read_with_all_its_keys(tmp_path: Path) -> None:
    profile = load(str(written(tmp_path, FULL)), [])
    assert profile.sbatch == {"partition": "gpu", "exclusive": "", "nice": "5"}
    assert profile.variables == {"A": "b"}
    assert profile.container == Container("apptainer", "x.sif", ("/data",), "python3")
    assert (profile.venv, profile.gpus, profile.setup) == ("/envs/x", "gres", ("ulimit -n 65536",))


def test_a_name_is_looked_up_in_the_first_folder_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    written(tmp_path / "near", 'interface = "near"')
    written(tmp_path / "far", 'interface = "far"')
    folders = [tmp_path / "none", tmp_path / "near", tmp_path / "far"]
    assert load("site", folders).interface == "near"
    assert load("default", folders).sbatch == {}  # the bundled one


@pytest.mark.parametrize("path", sorted((assets("slurm") / "profiles").glob("*.toml")), ids=str)
def test_the_bundled_profiles_are_right(path: Path) -> None:
    load(path.stem, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition = 'gpu'", "unknown key `partition`"),
        ("modules = 'cuda'", "`modules` of .* must be a list of strings"),
        ("sbatch = 3", r"\[sbatch\] of .* must be a table"),
        ("[sbatch]\npartition = [1]", "`partition` in .* must be a string or a number"),
        ("[variables]\n'A B' = 'x'", "no name of a variable"),
        ("gpus = 'all'", "must be gpus-per-node or gres"),
        ("venv = 3", "`venv` of .* must be a string"),
        ("[container]\nengine = 'docker'\nimage = 'x'", "`engine` in .* is `docker`"),
        ("[container]\nimage = 'x'", "needs `engine` and `image`"),
        ("[container]\nengine = 'pyxis'\nimage = 'x'\nvolumes = []", "unknown key `volumes`"),
        ("= 3", "cannot be read"),
    ],
)
def test_a_mistake_in_a_profile_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load(str(written(tmp_path, text)), [])


def test_an_unknown_profile_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load("defalt", [])
    assert "did you mean `default`" in str(caught.value)
    with pytest.raises(BadInput, match="cannot be read"):
        load(str(tmp_path / "none.toml"), [])


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
