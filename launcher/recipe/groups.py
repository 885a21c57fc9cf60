"""The hyperparameters that every recipe has, by subject. The comment behind a field is its meaning.

The first line of a group's docstring is its name in `launcher recipes show`. A new field stands in
the group where somebody would look for it; the least value that it may have stands in `AT_LEAST`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# The least value of a hyperparameter, by name, so that a recipe may give its own default.
AT_LEAST: Mapping[str, float] = {
    "epochs": 1,
    "steps": 1,
    "batch_size": 1,
    "micro_batch_size": 1,
    "num_workers": 0,
    "shuffle_block": 1,
    "torch_order_up_to": 0,
    "seed": 0,
    "learning_rate": 0,
    "clip_norm": 0,
    "ema_decay": 0,
    "test_every": 1,
    "test_batch_size": 1,
    "patience": 1,
    "keep_best": 0,
    "checkpoint_every": 1,
    "keep_last": 1,
    "log_every": 1,
    "peak_tflops": 0.001,
    "hang_timeout": 1,
    "start_timeout": 1,
}


@dataclass(frozen=True)
class Length:
    """Length."""

    epochs: int = 1  # passes over the training data
    steps: int | None = None  # length of the run in optimizer steps, instead of `epochs`
    drop_last: bool = False  # leave the ragged last batch of an epoch out


@dataclass(frozen=True)
class Data:
    """Data."""

    batch_size: int = 64  # samples of one optimizer step, over all processes together
    micro_batch_size: int | Literal["auto"] | None = None  # most samples at once; auto: what fits
    num_workers: int | None = None  # data processes a training process; none: chosen from cores
    worker_start: Literal["fork", "forkserver", "spawn"] = "fork"  # how they start: forks may hang
    data_on_device: bool | None = None  # keep arrays in a GPU's memory; none: if they are small
    shuffle_block: int | None = None  # neighbours to read together, for slow file systems
    torch_order_up_to: int = 2_000_000  # most samples shuffled by torch; more in constant memory
    seed: int = 0  # where all randomness of the run comes from


@dataclass(frozen=True)
class Precision:
    """Precision and speed."""

    mixed_precision: Literal["no", "bf16"] = "no"  # precision of the forward pass
    channels_last: bool = False  # lay images out as convolutions like them best
    compile: bool = False  # compile the model with torch.compile
    cuda_graphs: bool = False  # record a step once and replay it: for small models on one GPU
    tf32: bool = False  # multiply float32 on a GPU with 10 bits of 23: faster, other numbers
    deterministic: bool = False  # only operations that give the same bits each time


@dataclass(frozen=True)
class Optimisation:
    """Optimisation."""

    learning_rate: float = 1e-3  # step size of the optimizer
    clip_norm: float | None = None  # largest norm of a step's gradient; longer ones are shortened
    ema_decay: float | None = None  # average weights like this for tests and the end, like 0.999
    fused_optimizer: bool = False  # update all weights in one operation where torch can
    shard: bool = False  # keep a share of weights and optimizer in each process: larger models
    shared_gradients: bool = True  # sum in memory where all processes are on one machine's CPU
    find_unused_parameters: bool = False  # allow parameters that take no part in the loss


@dataclass(frozen=True)
class Tests:
    """Tests and the best."""

    test_every: int | None = None  # steps between tests; none: one an epoch. At the end, too
    test_batch_size: int = 1000  # samples of one test batch, over all processes together
    best_by: str | None = None  # metric of the best test, "-name": least; none: accuracy, or -loss
    patience: int | None = None  # tests without a better one after which training ends
    keep_best: int = 1  # checkpoints of the best tests to keep
    sanity_test: bool = True  # one test batch, and what follows from it, before the first step


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints."""

    checkpoint_every: int | None = None  # steps between two checkpoints, besides one a test
    keep_last: int = 3  # newest checkpoints to keep
    shard_checkpoints: bool | None = None  # with shard: a file a process; none: if they are large
    log_model: bool = False  # upload the final weights to W&B, as an artifact


@dataclass(frozen=True)
class Watch:
    """Watch."""

    log_every: int | str = 100  # batches between two reports of the training loss; 10s: seconds
    peak_tflops: float | None = None  # of a device, dense, for MFU; none: of GPUs that are known
    hang_timeout: float = 600.0  # seconds without progress after which the run is ended
    start_timeout: float = 3600.0  # seconds, instead, until the first step, and for a save


GROUPS = (Length, Data, Precision, Optimisation, Tests, Checkpoints, Watch)
