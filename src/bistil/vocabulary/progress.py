"""Progress of reading text: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bistil.runtime.progress import PLAIN_SECONDS


@contextmanager
def counting_progress(paths: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many bytes of the files were read since it was last called."""
    total = sum(path.stat().st_size for path in paths)
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(TextColumn("counting tokens"), *columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda size: bar.advance(task, size)
        return
    done, started, said = 0, time.monotonic(), time.monotonic()

    def advance(size: int) -> None:
        nonlocal done, said
        done += size
        now = time.monotonic()
        if now - said >= PLAIN_SECONDS:
            said = now
            rate = done / (now - started)
            print(
                f"counting tokens: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, "
                f"{(total - done) / rate / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )

    yield advance
