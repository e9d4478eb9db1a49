"""Give freed memory back at once: a training step's large tensors come and go with every step."""

import ctypes
import sys
from contextlib import suppress

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
# From this size on a block gets memory of its own. Below 512 dimensions tensors are small and many: their page faults
# cost a fifth of a step's time and save a twentieth of its memory. In bf16 page faults cost twice the share of a step,
# and what they save is half as large (docs/performance.md).
_BYTES, _BYTES_OF_BF16, _BYTES_OF_NARROW, _NARROW = 4 * 2**20, 8 * 2**20, 16 * 2**20, 512


_allowed = False


def let_training_return_memory() -> None:
    """Let phase 1 call `return_freed_memory` with the width of its teacher; the command line's start does so.

    It changes the allocator of the whole process, which is for the process's owner to decide.
    """
    global _allowed
    _allowed = True


def return_memory_if_allowed(width: int, precision: str = "float32") -> None:
    """`return_freed_memory(width, precision)`, if this process's owner called `let_training_return_memory`."""
    if _allowed:
        return_freed_memory(width, precision)


def return_freed_memory(width: int, precision: str = "float32") -> bool:
    """Let the C library serve large blocks from memory of their own, which goes back when they are freed.

    glibc raises its limit for that to the largest block ever freed; from then on tensors of all sizes share one heap,
    whose holes made a sixth of phase 1's peak memory (docs/performance.md). PyTorch's huge pages are not asked for:
    they took less time on one machine and a third more on another, in half as much memory again.

    Args:
        width: hidden size of the widest model that is trained.
        precision: of the matrix products, "float32" or "bf16".

    Returns:
        Whether the C library took it (glibc on Linux); elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return False
    try:
        limit = _BYTES_OF_NARROW if width < _NARROW else _BYTES_OF_BF16 if precision == "bf16" else _BYTES
        return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, limit))
    except (OSError, AttributeError):
        return False


def return_freed_heap() -> None:
    """Give the freed part of the heap back now (glibc on Linux); elsewhere nothing happens."""
    with suppress(OSError, AttributeError):
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
