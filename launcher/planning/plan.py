"""What a run would need in each process, and whether a device holds it.

A process of its own computes it, started by `launcher plan`: of tensors without values, so that a
model of any size can be asked about. Data are opened for their length, and for one micro-batch.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from launcher.data.device import CPU
from launcher.data.loader import Loader
from launcher.data.orders import sampler_for
from launcher.errors import LauncherError, RecipeError
from launcher.files import read_json, write_json
from launcher.model.averaging import averaged
from launcher.planning.states import forms, of_optimizer, size_of
from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile, load
from launcher.recipe.hyperparameters import configure
from launcher.sharding.counting import Counted, changed, counted, with_values, without_values
from launcher.sharding.groups import members
from launcher.train.parts import Parts, loss_of, model_of, parts_of


def main(arguments: list[str]) -> int:
    """Plan what a file asks for, into another file; returns the exit code."""
    asked, answer = map(Path, arguments)
    told = read_json(asked) or {}
    path = Path(told["recipe_path"])
    try:
        file = RecipeFile(told["recipe"], path, path.read_text(encoding="utf-8"))
        recipe = configure(load(file), str(path), told["hyperparameters"])
        write_json(answer, plan(recipe, told["nproc"]))
    except LauncherError as error:
        write_json(answer, {"error": error.message, "hint": error.hint})
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def plan(recipe: Recipe, ranks: int) -> dict[str, Any]:
    """Return what a run of so many processes would need; all sizes are bytes.

    Raises RecipeError where not even one sample can be computed here.
    """
    unbuilt = changed(recipe, shard=True, num_workers=0)  # data and loss alone
    parts = parts_of(unbuilt, say=False)
    sampler = sampler_for(parts.train_data, recipe, 0, ranks, test=False)
    passes, how, model = _passes(recipe, unbuilt, parts, ranks)
    weights, buffers = list(model.parameters()), list(model.buffers())
    trained = [weight for weight in weights if weight.requires_grad]
    state = {id(tensor): tensor for tensor in (*weights, *buffers)}
    average = forms(averaged(model)) if recipe.ema_decay is not None else []
    apart = [list(module.parameters()) for module in members(recipe, model).values()]
    shard = -(-recipe.batch_size // ranks)
    at_once = min(recipe.most_at_once or shard, shard)
    groups, everything = [size_of(forms(group)) for group in apart], size_of(forms(weights))
    optimizer = of_optimizer(recipe, model, loss_of(recipe))  # the last: it takes the weights away

    def sizes(ranks: int, gathered: int) -> dict[str, int]:
        return {
            "weights": size_of(forms(weights), ranks),
            "buffers": size_of(forms(buffers)),
            "gradients": size_of(forms(trained), ranks),
            "optimizer": size_of(optimizer, ranks),
            "ema": size_of(average, ranks),
            "gathered": gathered,
            "saved_for_backward": passes.saved * at_once // passes.samples,
        }

    return {
        "parameters": sum(weight.numel() for weight in weights),
        "processes": ranks,
        "of_a_step": recipe.batch_size,
        "steps": recipe.steps or recipe.epochs * sampler.steps,
        "flops_of_a_step": passes.flops * recipe.batch_size // passes.samples,
        "micro_batch": at_once,
        "saved_of_a_sample": passes.saved / passes.samples,
        "computed": how,
        "checkpoint": size_of([*forms(state.values()), *optimizer, *average]),
        "whole": sizes(1, 0),
        "sharded": sizes(ranks, _gathered(groups, everything)),
    }


def _passes(
    recipe: Recipe, unbuilt: Recipe, parts: Parts, ranks: int
) -> tuple[Counted, str, nn.Module]:
    """Return what a micro-batch takes, how that is known, and the model."""

    def first(recipe: Recipe) -> tuple[Any, int]:
        sampler = sampler_for(parts.train_data, recipe, 0, ranks, test=False)
        sampler.seek(0)
        shard = next(iter(Loader(parts.train_data, sampler, recipe, CPU, alone=True)))
        return shard.micro_batches[0], min(sampler.micro_batch_size, max(shard.own, 1))

    build = partial(model_of, recipe), partial(loss_of, recipe)
    batch, samples = first(unbuilt)
    try:
        made = without_values(*build, batch)
        return counted(recipe, made, samples), "without values", made.model
    except Exception as error:  # noqa: BLE001  # whatever needs values raises what it likes
        why = f"{type(error).__name__}: {error}".splitlines()[0]
    batch, samples = first(changed(unbuilt, micro_batch_size=1))
    try:
        made = with_values(*build, batch)
        how = f"with one sample on the CPU, for the step needs values ({why[:200]})"
        return counted(recipe, made, samples), how, made.model
    except Exception as error:
        raise RecipeError(f"a step cannot be computed here: {error}") from error


def _gathered(groups: list[int], everything: int) -> int:
    """Return the bytes of weights that are whole at a time, and of gradients before they are sent.

    What is in no module that is gathered by itself, the largest of those, and the one after it.
    """
    rest, largest = everything - sum(groups), sorted(groups, reverse=True)[:2]
    return rest + sum(largest) + max([rest, *largest])
