"""How a `for` has let go of its iterator: by `break` or `return`, or because of an exception.

Python tells an iterator nothing but that it is not needed any more, and an exception that is on its
way is hidden from whoever is called meanwhile. What tells is the frame: the instruction that it is
at, and a traceback that begins there where an exception passes through.
"""

import dis
import gc
import inspect
from types import FrameType, TracebackType

# What a frame is at when a `for` ends: by `break` and `return` (POP_TOP, since 3.14 POP_ITER), or
# for what is iterated together with it, like the batches of a `zip`, is over (FOR_ITER, END_FOR).
_ENDS = {"POP_TOP", "POP_ITER", "FOR_ITER", "END_FOR"}
_PAUSES = {"YIELD_VALUE", "RESUME"}  # of a generator that is closed, like tqdm's


def in_order(frame: FrameType | None) -> bool | None:
    """Whether the `for` of this frame, or of one that iterates over its generator, ends in order.

    False where an exception ends it; None where somebody else held the iterator, and nothing tells.
    """
    while frame and _is_paused(frame):
        frame = frame.f_back
    if frame is None:
        return None
    if _is_failing(frame):
        return False
    return True if _at(frame) in _ENDS else None


def _is_paused(frame: FrameType) -> bool:
    return bool(frame.f_code.co_flags & inspect.CO_GENERATOR) and _at(frame) in _PAUSES


def _at(frame: FrameType) -> str:
    """Return the name of the instruction that a frame is at."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]]


def _is_failing(frame: FrameType) -> bool:
    """Whether an exception passes through a frame at the instruction that it is at."""
    found = gc.get_referrers(frame)
    return any(isinstance(one, TracebackType) and one.tb_lasti == frame.f_lasti for one in found)
