"""The processes that share a training run."""

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The processes that share this run; without a GPU accelerate must be told that they are on the CPU."""
    return PartialState(cpu=not torch.cuda.is_available())
