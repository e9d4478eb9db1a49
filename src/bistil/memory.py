"""Give freed memory back at once: a training step's large tensors come and go with every step."""

import ctypes
import os
import sys

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_BYTES = 4 * 2**20


def return_freed_memory() -> bool:
    """Let the C library serve large blocks from memory of their own, which goes back when they are freed.

    glibc raises its limit for that to the largest block ever freed; from then on tensors of all sizes share one heap,
    whose holes made a sixth of phase 1's peak memory (docs/performance.md). Huge pages, which PyTorch asks for when
    told so before its first large tensor, save most of the price in page faults.

    Returns:
        Whether the C library took it (glibc on Linux); elsewhere nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _BYTES))
    except (OSError, AttributeError):
        return False
