"""The processes that share a training run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState

from bistil.errors import RecipeError
from bistil.runtime.devices import device_for


def processes() -> PartialState:
    """The processes that share this run; without a GPU accelerate must be told that they are on the CPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def training_device(wanted: str) -> str:
    """The kind of device that a training runs on, "cpu", "cuda" or "mps".

    Args:
        wanted: one of these, or "auto".

    Raises:
        InputError: it is not there.
        RecipeError: several processes, which are joined for another one.
    """
    found, common = device_for(wanted), device_for()
    if found != common and processes().num_processes > 1:
        raise RecipeError(
            f"device is {wanted!r}, but several processes train together on what there is, {common}: leave it out, or "
            "train in one process"
        )
    return found


@contextmanager
def one_process_first() -> Iterator[bool]:
    """Yields whether this process is the one that does what is in the block; at its end all wait for it."""
    yield processes().is_main_process
    processes().wait_for_everyone()
