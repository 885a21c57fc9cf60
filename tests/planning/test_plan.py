"""`launcher plan`: its figures are those of the real thing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training import RECIPES, launcher

from launcher.errors import BadInput
from launcher.launch.planning import in_words, judged, memory_of
from launcher.model.averaging import Average
from launcher.planning.plan import plan
from launcher.recipe.base import Recipe
from launcher.recipe.file import find, load
from launcher.recipe.hyperparameters import configure

pytestmark = pytest.mark.warm

SHARED: dict[str, Any] = {"kind": "gpt", "adam": True, "ema_decay": 0.9}


def made(name: str, **values: Any) -> Recipe:
    file = find(name)
    return configure(load(file), file.name, values)


def size(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def real_step(recipe: Recipe, batch: Any) -> tuple[dict[str, int], int]:
    """Bytes of a real step on the CPU, and those that its forward pass saved for backward."""
    model, loss_fn = recipe.model(), recipe.loss()
    model.train()
    optimizer = recipe.optimizer(model)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sums = recipe.train_step(model, batch, loss_fn)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    sums.loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    weights = list(model.parameters())
    gradients = size(weight.grad for weight in weights)
    several: Any = optimizer if isinstance(optimizer, list) else [optimizer]
    for one in several:
        one.step()
    states = [v for one in several for state in one.state.values() for v in state.values()]
    found = {"weights": size(weights), "buffers": size(model.buffers()), "gradients": gradients}
    found |= {"optimizer": size(v for v in states if isinstance(v, Tensor))}
    return found | {"ema": size(Average(model, 0.9).weights) if recipe.ema_decay else 0}, saved


@pytest.mark.parametrize(
    "given",
    [SHARED, SHARED | {"both": True, "ema_decay": None}, {"kind": "mlp", "batch_size": 5}],
    ids=["gpt", "two optimizers", "mlp"],
)
def test_bytes_are_those_of_a_real_step(given: Mapping[str, Any]) -> None:
    recipe = made(str(RECIPES / "sharding.py"), **given)
    data: Any = recipe.train_data()
    found = plan(recipe, 1)
    batch = tuple(array[: recipe.batch_size].clone() for array in data.arrays)
    bytes_of, saved = real_step(recipe, batch)
    for name, wanted in bytes_of.items():
        assert found["whole"][name] == wanted, name
    if given["kind"] == "mlp":  # the loss of the other selects rows: how many, values tell
        assert found["whole"]["saved_for_backward"] == saved
        assert found["computed"] == "without values"
    else:
        assert "one sample on the CPU" in found["computed"]
    kept = ("weights", "buffers", "optimizer", "ema")
    assert found["checkpoint"] == sum(bytes_of[name] for name in kept)
    assert found["steps"] == -(-50 // recipe.batch_size)


@pytest.mark.parametrize(
    ("name", "given", "samples"),
    [
        ("gpt", {"dim": 1024, "layers": 7, "heads": 8, "batch_size": 4}, 4),
        ("images", {"arch": "wide_resnet50_2", "size": 64, "batch_size": 2}, 2),
    ],
)
def test_what_is_saved_for_backward_is_what_a_real_step_of_a_gigabyte_saves(
    name: str, given: dict[str, Any], samples: int, tmp_path: Path
) -> None:
    if name == "images":
        given |= {"data": folder_of_images(tmp_path), "mix": "none"}
    recipe = made(name, **given)
    found = plan(recipe, 1)
    whole = found["whole"]
    assert whole["weights"] + whole["optimizer"] > 5e8
    assert found["micro_batch"] == samples
    if name == "gpt":
        data: Any = recipe.train_data()
        batch: Any = (data.arrays[0][:samples].clone(),)
    else:
        batch = torch.ones(samples, 3, 64, 64), torch.zeros(samples).long()
    bytes_of, saved = real_step(recipe, batch)
    assert whole["saved_for_backward"] == pytest.approx(saved, rel=0.15)
    assert {n: whole[n] for n in bytes_of} == bytes_of


def folder_of_images(folder: Path) -> str:
    from PIL import Image

    for number in range(6):
        for kind in "ab":
            (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
            (folder / "val" / kind).mkdir(parents=True, exist_ok=True)
            for part in ("train", "val"):
                Image.new("RGB", (80, 80)).save(folder / part / kind / f"{number}.png")
    return str(folder)


def test_a_share_is_what_rank_0_holds_of_weights_that_are_cut() -> None:
    recipe = made(str(RECIPES / "sharding.py"), kind="mlp")
    whole, cut = (plan(recipe, ranks)["sharded"] for ranks in (1, 3))
    rows = [p.shape for p in recipe.model().parameters()]
    assert cut["weights"] == 8 * sum(
        torch.Size((-(-s[0] // 3), *s[1:])).numel() if s else 1 for s in rows
    )
    assert cut["weights"] < whole["weights"]
    assert cut["gathered"] > 0


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80e9), ("24gib", 24 * 2**30), ("1.5 TB", 1.5e12), ("7000", 7000)]
)
def test_memory_is_read_as_it_is_written(text: str, size: float) -> None:
    assert memory_of(text) == size


@pytest.mark.parametrize("text", ["much", "80XB", "-1GB", "0", ""])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is no size"):
        memory_of(text)


def test_a_device_holds_what_is_left_for_a_micro_batch() -> None:
    recipe = made(str(RECIPES / "sharding.py"), kind="mlp")
    found = plan(recipe, 1)
    fixed = sum(n for name, n in found["whole"].items() if name != "saved_for_backward")
    enough = fixed + int(5.5 * found["saved_of_a_sample"])
    told = judged(found, enough)["whole"]
    assert (told["fits"], told["largest_micro_batch"]) == (False, 5)
    assert judged(found, 10**9)["whole"]["fits"]
    assert judged(found, 10)["whole"]["largest_micro_batch"] == 0
    assert "none" in in_words(judged(found, 10))


@pytest.mark.slow
def test_the_command_says_it_and_gives_one_object(tmp_path: Path) -> None:
    words = ["plan", "gpt", "--nproc", "2", "--memory", "80GB", "dim=32"]
    done = launcher(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["processes"] == 2
    assert told["whole"]["fits"]
    assert told["exit_code"] == 0
    assert "largest micro_batch_size" in done.stderr
    assert not list(tmp_path.iterdir())
    for wrong in (["dim=x"], ["--memory", "much"]):
        assert launcher("plan", "gpt", *wrong, cwd=tmp_path).returncode == 2
