"""One progress line: a moving bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

# Seconds between lines where output is not a terminal: enough to see life, few enough to read a log.
PLAIN_SECONDS = 30.0
# Rate and time left are those of this last while.
RATE_SECONDS = 60.0


class Progress:
    """Shows steps done, rate in tokens/s, the loss and the time left. A context manager.

    Args:
        label: what is going on, such as "phase 1".
        total: number of steps.
    """

    def __init__(self, label: str, *, total: int) -> None:
        self.label, self.total = label, total
        self.console = Console(stderr=True)
        self.step = 0
        # (time, step, tokens) of the last minute: a machine's speed changes, and what counts is now.
        self.recent: deque[tuple[float, int, int]] = deque()
        self.last_plain = time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> "Progress":
        self.last_plain = time.monotonic()
        if self.console.is_terminal:
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self.console,
            )
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.step, detail="")
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start_at(self, step: int) -> None:
        """Say where a resumed run begins."""
        self.step = step

    def advance_to(self, step: int, *, tokens: int, loss: float | None = None) -> None:
        """Show that `step` steps and `tokens` tokens are done."""
        self.step = step
        now = time.monotonic()
        self.recent.append((now, step, tokens))
        while now - self.recent[0][0] > RATE_SECONDS and len(self.recent) > 2:
            self.recent.popleft()
        then, earlier_step, earlier_tokens = self.recent[0]
        seconds = max(now - then, 1e-9)
        detail = f"{(tokens - earlier_tokens) / seconds:,.0f} tokens/s" if len(self.recent) > 1 else ""
        detail += "" if loss is None else f", loss {loss:.4g}"
        left = max(self.total - step, 0) * seconds / max(step - earlier_step, 1)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, detail=f"{detail}, {left / 60:.1f} min left")
        elif now - self.last_plain >= PLAIN_SECONDS:
            self.last_plain = now
            self._line(f"{self.label}: {step}/{self.total}, {detail}, {left / 60:.1f} min left")

    def note(self, text: str) -> None:
        """A line that stays, such as a held-out figure."""
        if self.bar is not None:
            self.bar.console.print(f"{self.label}: {text}", highlight=False)
        else:
            self._line(f"{self.label}: {text}")

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """One line on standard error about what is going on."""
    print(f"[bistil] {text}", file=sys.stderr, flush=True)
