"""Site profiles: found by name or path, read strictly, and who wins over whom."""

from pathlib import Path

import pytest

from launcher.errors import BadInput
from launcher.files import assets
from launcher.slurm.profile import Container, load

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
        ("[sbatch]\naccount = ''", r"`account` in \[sbatch\] of .* has an empty value"),
        ("[sbatch]\nexclusive = ' '", "has an empty value"),
        ("[variables]\n'A B' = 'x'", "no name of a variable"),
        ("gpus = 'all'", "must be gpus-per-node or gres"),
        ("venv = 3", "`venv` of .* must be a string"),
        ("host = 3", "`host` of .* must be a string"),
        ("folder = 'project'", "`folder` of .* must begin with / or ~/"),
        ("folder = '~me/project'", "`folder` of .* must begin with / or ~/"),
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
