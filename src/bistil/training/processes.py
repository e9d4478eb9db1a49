"""The processes that share a training run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The processes that share this run; without a GPU accelerate must be told that they are on the CPU."""
    return PartialState(cpu=not torch.cuda.is_available())


@contextmanager
def one_process_first() -> Iterator[bool]:
    """Yields whether this process is the one that does what is in the block; at its end all wait for it."""
    yield processes().is_main_process
    processes().wait_for_everyone()
