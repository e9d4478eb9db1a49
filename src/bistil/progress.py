"""One progress line: a moving bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# Seconds between lines where output is not a terminal: enough to see life, few enough to read a log.
PLAIN_SECONDS = 30.0


class Progress:
    """Shows steps done, rate in tokens/s, the loss and the time left. A context manager.

    Args:
        label: what is going on, such as "phase 1".
        total: number of steps.
    """

    def __init__(self, label: str, *, total: int) -> None:
        self.label, self.total = label, total
        self.console = Console(stderr=True)
        self.first_step = self.step = 0
        self.first_tokens: int | None = None
        self.started = self.last_plain = time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> "Progress":
        self.started = self.last_plain = time.monotonic()
        if self.console.is_terminal:
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task(self.label, total=self.total, completed=self.first_step, detail="")
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start_at(self, step: int) -> None:
        """Say where a resumed run begins, so that rate and time left count this session's work only."""
        self.first_step = self.step = step

    def advance_to(self, step: int, *, tokens: int, loss: float | None = None) -> None:
        """Show that `step` steps and `tokens` tokens are done."""
        self.step = step
        now = time.monotonic()
        if self.first_tokens is None:
            # The first step carries start-up costs; the rate counts from its end.
            self.first_tokens, self.started, self.first_step = tokens, now, step
        rate = (tokens - self.first_tokens) / max(now - self.started, 1e-9)
        detail = f"{rate:,.0f} tokens/s" + ("" if loss is None else f", loss {loss:.4g}")
        if self.bar is not None:
            self.bar.update(self.task, completed=step, detail=detail)
        elif now - self.last_plain >= PLAIN_SECONDS:
            self.last_plain = now
            per_step = (now - self.started) / max(step - self.first_step, 1)
            left = max(self.total - step, 0) * per_step
            self._line(f"{self.label}: {step}/{self.total}, {detail}, {left / 60:.1f} min left")

    def note(self, text: str) -> None:
        """A line that stays, such as a held-out figure."""
        if self.bar is not None:
            self.bar.console.print(f"{self.label}: {text}", highlight=False)
        else:
            self._line(f"{self.label}: {text}")

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
