"""Progress of reading text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bistil._moved import left_names
from bistil.runtime.progress import Progress

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.vocabulary.progress")


@contextmanager
def counting_progress(paths: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many bytes of the files were read since it was last called."""
    with Progress("counting tokens", total=sum(path.stat().st_size for path in paths), unit="bytes") as progress:
        yield progress.advance
