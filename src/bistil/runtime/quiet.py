"""What is changed around a call in libraries and environment, and put back exactly, "the user had it off" included."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from bistil.errors import InputError
from bistil.runtime.insides import datasets_bars, transformers_bars
from bistil.runtime.progress import progress_mode


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers says nothing but errors and draws no bars of its own: a run loads and writes dozens of models."""
    with transformers_bars(False), kept_levels("transformers", "transformers.trainer", level=logging.ERROR):
        yield


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """datasets and the hub's client say nothing: what goes wrong is said by us, in one line."""
    with (
        datasets_bars(False),
        kept_levels("datasets", level=logging.ERROR),
        kept_levels("huggingface_hub", level=logging.CRITICAL),
    ):
        yield


@contextmanager
def shown_datasets_bars() -> Iterator[None]:
    """datasets draws its bars where progress is shown as bars and the user has not switched them off."""
    if progress_mode() == "bar":
        yield
    else:
        with datasets_bars(False):
            yield


@contextmanager
def kept_levels(*names: str, level: int) -> Iterator[None]:
    """Loggers have this level, and afterwards that which they had."""
    with ExitStack() as stack:
        for name in names:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(level)
        yield


@contextmanager
def kept_environment(**values: str) -> Iterator[None]:
    """The environment has these values; afterwards it is what it was, whatever libraries wrote into it meanwhile."""
    environment, before = os.environ, dict(os.environ)
    environment.update(values)
    try:
        yield
    finally:
        # datasets leaves a copy in its place, which shares the process's environment but not its table.
        new = {*environment, *os.environ} - set(before)
        os.environ = environment  # noqa: B003
        environment.update(dict.fromkeys(new, ""))
        for name in new:
            del environment[name]
        environment.update(before)


@contextmanager
def kept_threads(number: int | None) -> Iterator[None]:
    """PyTorch has so many CPU threads, and afterwards as many as before. None: as many as it has.

    Raises:
        InputError: it is less than 1.
    """
    before = torch.get_num_threads()
    if number is not None:
        if number < 1:
            raise InputError(f"threads is {number}; it must be at least 1")
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
