"""What waits for a model, and the one thread that asks it: requests that wait are answered together."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from bistil.prediction.inputs import Input
from bistil.prediction.predictor import Predictor, Wanted

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many requests wait as may.

    Attributes:
        seconds: after which there should be room.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"full for {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Answered:
    """What a request gets.

    Attributes:
        records: one per input, as `Predictor.records`.
        seconds: that the model took for all that was taken together.
        together: inputs that were taken together.
    """

    records: list[dict[str, Any]]
    seconds: float
    together: int


@dataclass(frozen=True, eq=False)
class _Job:
    predictor: Predictor
    inputs: Sequence[Input]
    wanted: Wanted
    future: "Future[Answered]" = field(default_factory=Future)

    @property
    def key(self) -> tuple[int, Wanted]:
        """Equal where jobs can be answered together: thresholds and numbers of answers only choose among them."""
        return id(self.predictor), replace(self.wanted, threshold=None, n_best=1)


class Batcher:
    """A queue and a thread that takes what waits, up to a batch, and asks the model.

    Args:
        batch: inputs that are taken together; windows per forward pass.
        waiting: requests that may wait.
        observe: called with the predictor, the number of inputs and the seconds of each forward.
    """

    # Of the moving average of seconds per input.
    FORGETS = 0.2

    def __init__(
        self, *, batch: int, waiting: int, observe: Callable[[Predictor, int, float], None] | None = None
    ) -> None:
        self.batch, self.most, self.observe = batch, waiting, observe
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._pace = 0.0
        self._thread = threading.Thread(target=self._work, name="bistil-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._jobs)

    def submit(self, predictor: Predictor, inputs: Sequence[Input], wanted: Wanted) -> "Future[Answered]":
        """Put a request into the queue; one whose future is cancelled before its turn is not computed.

        Raises:
            QueueFullError: as many wait as may.
        """
        job = _Job(predictor, inputs, wanted)
        with self._changed:
            if len(self._jobs) >= self.most:
                self._jobs = deque(one for one in self._jobs if not one.future.cancelled())
            if len(self._jobs) >= self.most:
                seconds = self._pace * sum(len(one.inputs) for one in self._jobs)
                raise QueueFullError(min(60, max(1, math.ceil(seconds))))
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self, seconds: float | None = None) -> None:
        """Let the thread answer what waits and end; wait for it for so long at most."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while jobs := self._next():
            self._answer(jobs)

    def _next(self) -> list[_Job]:
        """The first job and those that can be answered with it; none: the end."""
        with self._changed:
            while True:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return []
                taken, left, inputs = list[_Job](), deque[_Job](), 0
                for job in self._jobs:
                    fits = not taken or (job.key == taken[0].key and inputs + len(job.inputs) <= self.batch)
                    if not fits:
                        left.append(job)
                    elif job.future.set_running_or_notify_cancel():
                        taken.append(job)
                        inputs += len(job.inputs)
                self._jobs = left
                if taken:
                    return taken

    def _answer(self, jobs: list[_Job]) -> None:
        predictor, inputs = jobs[0].predictor, [one for job in jobs for one in job.inputs]
        started = time.perf_counter()
        try:
            said = iter(predictor.said(inputs, jobs[0].key[1], batch_size=self.batch))
            seconds = time.perf_counter() - started
            found = [
                [predictor.record(one, next(said), job.wanted) for one in job.inputs] for job in jobs
            ]  # all, before anybody is answered
        except Exception as error:
            if len(jobs) > 1:
                # Only that request fails which does so by itself.
                for job in jobs:
                    self._answer([job])
            else:
                jobs[0].future.set_exception(error)
            return
        if inputs:
            self._pace += self.FORGETS * (seconds / len(inputs) - self._pace)
        if self.observe is not None:
            self.observe(predictor, len(inputs), seconds)
        for job, records in zip(jobs, found, strict=True):
            job.future.set_result(Answered(records, seconds, len(inputs)))
