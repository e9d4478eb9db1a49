"""Progress of long work in steps or bytes: a moving bar, a log line now and then, or nothing.

`set_progress` chooses for the whole process. A library's user gets "lines": records at level INFO of this module's
logger, which show where logging is configured. The command line chooses "bar" on a terminal.
"""

import logging
import time
from collections import deque
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from bistil.errors import printable

logger = logging.getLogger(__name__)

Mode = Literal["bar", "lines", "off"]
# Seconds between lines: enough to see life, few enough to read a log.
LINE_SECONDS = 30.0
# Rate and time left are those of this last while.
RATE_SECONDS = 60.0

_mode: Mode = "lines"


def set_progress(mode: Mode) -> None:
    """Show progress as a bar on standard error, as log lines, or not at all, in all of this process."""
    global _mode
    _mode = mode


def progress_mode() -> Mode:
    """How progress is shown now."""
    return _mode


class Progress:
    """Shows how much is done, how fast it goes and the time left. A context manager.

    Args:
        label: what is going on, such as "phase 1".
        total: number of steps or bytes; None: of bytes, nobody knows how many come.
        unit: "steps" of training, whose rate is in tokens/s, or "bytes" of files, whose rate is in MB/s.
    """

    def __init__(self, label: str, *, total: int | None, unit: Literal["steps", "bytes"] = "steps") -> None:
        self.label, self.total, self.unit = printable(label), total, unit
        self.mode = _mode
        self.done = 0
        # (time, done, tokens) of the last minute: a machine's speed changes, and what counts is now.
        self.recent: deque[tuple[float, int, int]] = deque()
        self.last_line = time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> "Progress":
        self.last_line = time.monotonic()
        if self.unit == "bytes":
            self.recent.append((self.last_line, self.done, 0))
        if self.mode == "bar":
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
            )
            # Reading text is over soon and leaves nothing to look back at.
            self.bar = Bar(*columns, console=Console(stderr=True), transient=self.unit == "bytes")
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.done, detail="")
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start_at(self, done: int) -> None:
        """Say where resumed work begins."""
        self.done = done

    def advance(self, size: int) -> None:
        """Show that so much more is done."""
        self.advance_to(self.done + size)

    def advance_to(self, done: int, *, tokens: int = 0, loss: float | None = None) -> None:
        """Show that `done` steps or bytes, and `tokens` tokens, are done."""
        self.done = done
        now = time.monotonic()
        self.recent.append((now, done, tokens))
        while now - self.recent[0][0] > RATE_SECONDS and len(self.recent) > 2:
            self.recent.popleft()
        if self.bar is not None:
            self.bar.update(self.task, completed=done, detail=self._detail(loss))
        elif self.mode == "lines" and now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            logger.info(f"{self.label}: {self._detail(loss)}")

    def note(self, text: str) -> None:
        """A line that stays, such as a held-out figure."""
        if self.bar is not None:
            self.bar.console.print(f"{self.label}: {printable(text)}", highlight=False, markup=False)
        elif self.mode == "lines":
            logger.info(f"{self.label}: {text}")

    def _detail(self, loss: float | None) -> str:
        """Such as "12/300, 4,000 tokens/s, loss 0.4, 2.5 min left" or "12 of 300 MB, 4.0 MB/s, 1.2 min left"."""
        (then, earlier, earlier_tokens), (now, done, tokens) = self.recent[0], self.recent[-1]
        seconds = max(now - then, 1e-9)
        if self.unit == "bytes":
            whole = "" if self.total is None else f" of {self.total / 1e6:,.0f}"
            amount = f"{done / 1e6:,.0f}{whole} MB"
            rate = f"{(done - earlier) / seconds / 1e6:.1f} MB/s"
        else:
            amount = f"{done}/{self.total}"
            rate = f"{(tokens - earlier_tokens) / seconds:,.0f} tokens/s" if len(self.recent) > 1 else ""
        rate += "" if loss is None else f", loss {loss:.4g}"
        if self.total is None:
            return f"{amount}, {rate}"
        left = max(self.total - done, 0) * seconds / max(done - earlier, 1)
        return f"{amount}, {rate}, {left / 60:.1f} min left"


def say(text: str) -> None:
    """One line about what is going on."""
    logging.getLogger("bistil").info(text)
