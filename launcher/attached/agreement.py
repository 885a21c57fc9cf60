"""What the ranks of a script agree on, over a small gloo group of its own.

It is made when it is first needed, from the launcher's or torchrun's store, and never over the
script's own group, which may be NCCL's, busy, or not there. One process alone agrees with itself,
and torch is not imported.
"""

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from launcher.attached.place import Place
from launcher.errors import PeerFailed, TrainingFailed

_WHAT = ("begin", "go on", "write a checkpoint", "end a checkpoint", "leave")  # that ranks come to
_MOST = 3  # numbers that go with it


class PeerLost(PeerFailed):
    """Another rank has ended: there is nobody to agree with any more."""


class Agreement:
    """The ranks of a script, who come to the same places in the same order."""

    def __init__(self, place: Place, patience_s: float) -> None:
        """`patience_s`: how long a rank waits for the others."""
        self.place, self._patience = place, timedelta(seconds=patience_s)
        self._group: Any = None
        self._store: Any = None

    def largest(self, what: str, step: int, numbers: Sequence[float]) -> list[float]:
        """Return the largest of each number over all ranks; collective.

        Raises TrainingFailed where ranks come from another step or to something else, and PeerLost
        where one has ended.
        """
        if self.place.world_size == 1:
            return list(numbers)
        import torch  # noqa: PLC0415  # not for who is alone

        at = [float(_WHAT.index(what)), float(step)]
        mine = [*at, *(-x for x in at), *numbers, *[0.0] * (_MOST - len(numbers))]
        vector = torch.tensor(mine, dtype=torch.float64, device="cpu")
        try:
            if self._group is None:
                self._store = _store(self.place, self._patience)
                self._group = _group(self._store, self.place, self._patience)
            self._group.allreduce(vector, torch.distributed.ReduceOp.MAX).wait()
        except RuntimeError as error:  # gloo's, and the store's
            raise PeerLost(f"another rank has ended, or cannot be reached: {error}") from error
        most, last, least, first, *found = vector.tolist()
        if (most, last) != (-least, -first):
            raise TrainingFailed(
                f"ranks have come apart: this one is to {what} at step {step}, and others are "
                f"elsewhere (steps {-first:.0f} to {last:.0f})",
                hint="all ranks make the same steps, and call `saving` and `should_stop` alike; "
                "what one rank has seen, like its own loss, is no reason to `break` for all",
            )
        return found[: len(numbers)]

    def any(self, what: str, step: int, *, mine: bool) -> bool:
        """Return whether any rank says so; collective."""
        return bool(self.largest(what, step, [float(mine)])[0])

    def tell(self, text: str) -> None:
        """Leave a text for rank 0, once ranks have agreed on something."""
        self._store.set(str(self.place.rank), text)

    def told(self) -> list[str]:
        """Return what all ranks have told rank 0 last, after they have agreed that they did."""
        return [self._store.get(str(rank)).decode() for rank in range(self.place.world_size)]

    def close(self) -> None:
        """Let go of the group; all ranks have come to the end."""
        self._group = self._store = None


def _group(store: Any, place: Place, patience: timedelta) -> Any:
    from torch.distributed import ProcessGroupGloo  # noqa: PLC0415  # as above

    gloo: Any = ProcessGroupGloo
    options = gloo._Options()
    options._timeout = patience
    options._devices = [_device(gloo, place)]
    return gloo(store, place.rank, place.world_size, options)


def _store(place: Place, patience: timedelta) -> Any:
    """Return where ranks meet: the agent's store, else that of the script's own group.

    A script without either has its ranks meet at MASTER_ADDR and MASTER_PORT, as its group would.
    """
    import torch.distributed  # noqa: PLC0415  # as above

    dist: Any = torch.distributed  # which exports the half of it dynamically
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not of_agent and dist.is_initialized():
        store = dist.distributed_c10d._get_default_store()
    else:
        ranks = place.rank, place.world_size
        store, _, _ = next(dist.rendezvous("env://", *ranks, timeout=patience))
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # others have left addresses there
    return dist.PrefixStore(f"launcher-attach/{again}", store)


def _device(gloo: Any, place: Place) -> Any:
    """Return the network: what GLOO_SOCKET_IFNAME says, loopback on one machine, else gloo's."""
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    if named:
        return gloo.create_device(interface=named)
    if place.one_machine:
        return gloo.create_device(hostname="127.0.0.1")
    return gloo.create_default_device()


def leave_groups() -> None:
    """Leave the script's own process group: a process that just exits may abort in gloo's."""
    dist = sys.modules.get("torch.distributed")
    if dist and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
