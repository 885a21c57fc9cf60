"""The metrics of a recipe: what it makes of sums over all ranks; and which test is the best."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from launcher.data.fetching import Shard
from launcher.data.randomness import undisturbed
from launcher.errors import LauncherError, RecipeError, TrainingFailed, did_you_mean
from launcher.masks import clean
from launcher.ranks.alone import NoCollectives
from launcher.ranks.gathering import HERE
from launcher.ranks.kept import Rows
from launcher.recipe.base import is_base
from launcher.recipe.totals import Totals
from launcher.run.best import name_of, score
from launcher.run.rows import RESERVED
from launcher.train.parts import loss_of, model_of
from launcher.train.training import Training


def metrics_of(run: Training, totals: Totals) -> dict[str, float]:
    """Return the recipe's metrics of some totals, the same on all ranks.

    Raises RecipeError for what are no metrics, TrainingFailed where training is under way.
    """
    turns = totals.of_turns()
    if is_base(run.recipe, "metrics"):
        return turns
    made = run.recipe.metrics(totals)
    return turns | numbers(made, "metrics", begun=run.progress.step > 1)


def count_flops(run: Training, shard: Shard) -> None:
    """Count, once, what a sample takes, for the reports from now on; on rank 0 alone.

    A forward and a backward pass of a model that is built anew without values: nothing of the run
    is touched, compilation and sharding are left out, and the device has nothing to do with it.
    Torch counts matrix products, convolutions and attention. Where it finds none, where a step
    needs values, and where ranks exchange rows, nothing is told.
    """
    run.work.wanted = False
    samples = min(run.recipe.most_at_once or shard.own, shard.own)
    if run.context.rank or not samples or HERE.used or run.optimizers.in_turns:
        return
    from launcher.sharding import counting  # noqa: PLC0415  # slow imports

    batch = pytree.tree_map_only(Tensor, lambda tensor: tensor.cpu(), shard.micro_batches[0])
    recipe = counting.changed(run.recipe, compile=False)
    build = partial(model_of, recipe), partial(loss_of, recipe)
    try:
        with undisturbed(), NoCollectives("train_step"), run.marker.beating():
            found = counting.counted(recipe, counting.without_values(*build, batch), samples)
    except Exception as error:  # noqa: BLE001  # whatever needs values raises what it likes
        print(f"FLOP/s are not known: {type(error).__name__}: {error}".splitlines()[0], flush=True)
        return
    run.work.of_a_sample = found.flops / samples or None


def metrics_of_test(run: Training, totals: Totals, rows: Rows) -> dict[str, float]:
    """Return all metrics of a test as rank 0 has them, which has the `rows` too; collective.

    What is decided by them (the best, patience) is then the same on all ranks, whatever their
    machines are. Raises as `metrics_of` does, and PeerFailed where rank 0 raises.
    """
    found = metrics_of(run, totals)
    if is_base(run.recipe, "test_metrics"):
        return run.context.from_first(lambda: found, "`metrics`") if found else found
    made = partial(_with_rows, run, totals, rows, found)
    return run.context.from_first(made, "`test_metrics`")


def metrics_of_batch(run: Training, totals: Totals, rows: Rows) -> tuple[dict[str, float], bool]:
    """Return the metrics of a first test batch, and whether a test has no others; collective.

    `test_metrics` may fail of a few rows alone: that is said, and it may have others. Raises
    RecipeError for what are no metrics on any rows.
    """
    found = metrics_of(run, totals)
    if is_base(run.recipe, "test_metrics"):
        return found, True
    size = run.test_loader.sampler.size if run.test_loader else 0

    def make() -> tuple[dict[str, float], bool]:
        try:
            return _with_rows(run, totals, rows, found), True
        except LauncherError:
            raise
        except Exception as error:
            if totals.samples == size:
                raise
            words = f"`test_metrics` fails on the first {totals.samples} of {size} test samples"
            print(f"WARNING: {words}: {clean(f'{type(error).__name__}: {error}')}", flush=True)
            return found, False

    return run.context.from_first(make, "`test_metrics`")


def _with_rows(
    run: Training, totals: Totals, rows: Rows, found: dict[str, float]
) -> dict[str, float]:
    """Return metrics with those that `test_metrics` makes; raises as `metrics_of` does."""
    begun = run.progress.step > 1
    with NoCollectives("test_metrics"):
        made = run.recipe.test_metrics(totals, rows)
    more = numbers(made, "test_metrics", begun=begun)
    if twice := found.keys() & more.keys():
        kind = TrainingFailed if begun else RecipeError
        raise kind(f"`{min(twice)}` comes from `metrics` and from `test_metrics`")
    return found | more


def keeps_rows(run: Training) -> bool:
    """Whether anybody wants the rows that test steps keep."""
    return run.keep or not is_base(run.recipe, "test_metrics")


def numbers(made: Any, method: str, *, begun: bool) -> dict[str, float]:
    """Return what a method of a recipe has made as numbers by name; raises as `metrics_of` does."""
    kind = TrainingFailed if begun else RecipeError
    if not isinstance(made, Mapping):
        raise kind(
            f"`{method}` returned {type(made).__name__}, not a dict of numbers",
            hint='end it in `return {"name": number}`',
        )
    found = {}
    for name, value in made.items():
        if not isinstance(name, str) or not (name and name.isprintable() and name[0] not in " -"):
            raise kind(f"`{method}` names a metric {name!r}", hint="call it by a word")
        if name in RESERVED:
            raise kind(
                f"`{method}` returned `{name}`, and each report has one of its own",
                hint=f"call it something else, like `own_{name}`",
            )
        try:
            found[name] = float(value.item() if hasattr(value, "item") else value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise kind(
                f"the metric `{name}` of `{method}` is no number: {error}",
                hint="give a float, or a tensor of one number",
            ) from error
    return found


def note_best(run: Training) -> None:
    """Note whether the last test is the best so far; raises as `metrics_of` does."""
    progress, best_by = run.progress, run.recipe.best_by
    test = progress.test or {}
    refuse_unknown(test, best_by, begun=progress.step > 1)
    found = score(test, best_by)
    if progress.best_by != best_by:  # another metric since the run was resumed: no comparison
        progress.best_by, progress.best = best_by, None
    if found is not None and (progress.best is None or found > progress.best):
        progress.best, progress.best_step, progress.without_better = found, progress.step, 0
    else:
        progress.without_better += 1


def refuse_unknown(test: Mapping[str, Any], best_by: str | None, *, begun: bool) -> None:
    """Raise as `metrics_of` does where `best_by` names a metric that a test does not have."""
    name = name_of(best_by, test)
    if test.get(name) is None:
        known = [other for other, value in test.items() if value is not None]
        raise (TrainingFailed if begun else RecipeError)(
            f"`best_by` is `{best_by}`, and a test has no metric `{name}`",
            hint=f"{did_you_mean(name, known)}there are: {', '.join(known)}",
        )
