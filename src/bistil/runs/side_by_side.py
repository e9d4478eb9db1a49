"""Stages side by side: processes of this machine, each making one stage at a time in the same folder.

Small models gain little from a second thread, for most of a step on short texts is not matrices; a second process gains
nearly all of a core. The process that holds the folder hands out the stages that nothing is missing for (`Board`), the
longest way to the end first, and makes none itself. Every worker has its share of the threads, whatever else runs
beside it, so that what a stage gives does not depend on the moment. Stages that measure (`Stage.ALONE`) come when all
else is done, and have all threads.
"""

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import psutil
import torch

from bistil.errors import BistilError, InputError, first_line
from bistil.runs.board import Board
from bistil.runs.folder import Name, RunFolder
from bistil.runs.forecast import Forecast
from bistil.runs.stage import Stage
from bistil.runtime.process import SAVE_SECONDS, cores, is_shown, prepare_worker, spoken_for
from bistil.runtime.progress import Mode, progress_mode
from bistil.runtime.quiet import kept_threads
from bistil.runtime.refused import system_refusal
from bistil.training.processes import processes

logger = logging.getLogger(__name__)


def check_jobs(jobs: int) -> None:
    """Make sure that stages can be made side by side.

    Raises:
        InputError: this is one of several processes that share every training (torchrun).
    """
    if jobs > 1 and processes().num_processes > 1:
        raise InputError("--jobs and torchrun are two ways to use several processes: leave one out")


def threads_of(jobs: int) -> int:
    """CPU threads of each of so many jobs: equal shares of those that PyTorch is set to."""
    return max(1, torch.get_num_threads() // jobs)


def how_many(asked: int, forecast: Forecast) -> tuple[int, str]:
    """How many stages may be made at a time, and what bounds them if that is fewer than asked.

    Args:
        asked: at most so many.
        forecast: of all of them; each is taken to need what the largest needs.
    """
    room = max(1, int(psutil.virtual_memory().available // max(forecast.memory, 1.0)))
    bounds = {"cores": cores(), "memory": room}
    count = min(asked, *bounds.values())
    why = next((f"{name} for {bound}" for name, bound in bounds.items() if bound == count), "")
    return count, "" if count == asked else why


def make_side_by_side(board: Board, jobs: int, forecast: Forecast) -> None:
    """Make everything that is on a board; what does not stand on a stage that fails is made all the same.

    The same call goes on where an earlier one stopped. A signal that ends this process ends the workers, which write
    their checkpoints first; when it is killed, they end at once.

    Args:
        jobs: workers at most; as many as cores and memory allow. Each has the threads of one of `jobs`.
        forecast: of what is on the board: decides what comes first.

    Raises:
        InputError: a stage failed, or a worker was killed.
    """
    count, why = how_many(jobs, forecast)
    if why:
        logger.info(f"{count} side by side: there are {why}")
    urgency, threads, everything = forecast.urgency(), threads_of(jobs), torch.get_num_threads()
    ready: list[Stage[Any]] = []
    with _workers(board.run, count) as workers:
        while True:
            ready += board.ready()
            # Stable: what is equally urgent is made in the order of a run without jobs.
            ready.sort(key=lambda stage: (stage.ALONE, -urgency.get(stage.key, 0.0)))
            for worker in workers:
                busy = any(one.stage for one in workers)
                if worker.stage is None and ready and not (busy and ready[0].ALONE):
                    worker.give(stage := ready.pop(0), everything if stage.ALONE else threads)
            if not any(worker.stage for worker in workers):
                break
            over = wait([end for worker in workers for end in worker.ends()])
            for worker in workers:
                if any(end in over for end in worker.ends()):
                    stage, wrong = worker.take()
                    board.done(stage, wrong)
                    if wrong is None:
                        # Rates that are learnt of it are those of its threads.
                        with kept_threads(threads):
                            board.run.take(stage)
    board.check()


@contextmanager
def _workers(run: RunFolder, count: int) -> Iterator[list["_Worker"]]:
    """Workers in a run's folder, which are gone afterwards."""
    workers: list[_Worker] = []
    try:
        # Of a signal speaks who does the work.
        with spoken_for():
            for _ in range(count):
                workers.append(_Worker(run))
            yield workers
    finally:
        started = [worker.process for worker in workers if worker.process is not None]
        for process in started:
            process.terminate()
        # All have the same time: this process is ended itself a second later (`END_SECONDS`).
        latest = time.monotonic() + SAVE_SECONDS + 1.0
        for process in started:
            process.join(max(0.0, latest - time.monotonic()))
            process.kill()
            process.join()


class _Worker:
    """A process that makes stages, seen from the one that hands them out; its first stage starts it."""

    def __init__(self, run: RunFolder) -> None:
        self._start = _Start(run.folder, run.names, run.shared, is_shown(), progress_mode())
        self.stage: Stage[Any] | None = None
        """What it makes now."""
        self.process: SpawnProcess | None = None

    def _begin(self) -> None:
        # Forked, it would have threads' locks and no threads.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self._start), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, stage: Stage[Any], threads: int) -> None:
        """Have a stage made."""
        if self.process is None or not self.process.is_alive():
            self._begin()
        self.stage = stage
        self.connection.send((stage, threads))

    def ends(self) -> list[Any]:
        """What becomes ready when its stage is done, or it is; nothing of one that makes none."""
        return [] if self.stage is None or self.process is None else [self.connection, self.process.sentinel]

    def take(self) -> tuple[Stage[Any], str | None]:
        """The stage that is done, and what is wrong with it."""
        assert self.stage is not None and self.process is not None
        stage, self.stage = self.stage, None
        try:
            wrong: str | None = self.connection.recv()
        except (EOFError, ConnectionError):
            # The latter where it ended before it had read what it was given.
            self.process.join()
            wrong = (
                f"its process ended with code {self.process.exitcode}; a process that takes too much memory is killed"
            )
        return stage, wrong


@dataclass(frozen=True)
class _Start:
    """What a worker is told at its start."""

    folder: Path
    names: Mapping[str, Name]
    shared: bool
    shown: bool
    progress: Mode


def _work(connection: Connection, start: _Start) -> None:
    """A worker's life: one stage after the other, until nobody is there who wants one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_worker(shown=start.shown, progress=start.progress)
    run = RunFolder(start.folder, identity={}, names=start.names, shared=start.shared, held=True)
    with spoken_for():
        wanted = _received(connection)
    while wanted is not None:
        wrong = _made(run, *wanted)
        # Whoever has its answer may end it at once, when all is done: that interrupts nothing.
        with spoken_for():
            connection.send(wrong)
            wanted = _received(connection)


def _received(connection: Connection) -> tuple[Stage[Any], int] | None:
    """The next stage and its threads; None: nobody is there any more."""
    try:
        found: tuple[Stage[Any], int] = connection.recv()
    except EOFError:
        return None
    return found


def _made(run: RunFolder, stage: Stage[Any], threads: int) -> str | None:
    """Make a stage; returns what is wrong, in one line, or nothing."""
    try:
        with kept_threads(threads):
            run.look_again()
            run.make(stage)
    except BistilError as error:
        return str(error)
    except Exception as error:
        if (refused := system_refusal(error)) is not None:
            return refused
        sys.excepthook(type(error), error, error.__traceback__)
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _end_with_parent() -> None:
    """A worker whose parent was killed ends as that did: the run's next call finds nobody in the folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
