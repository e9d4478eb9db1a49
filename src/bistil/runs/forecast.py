"""What a run or a study will take, said before: steps, time, memory and disk of each stage, and what is done already.

One function, `forecast`, for `bistil run --check`, for the start of every run, for budgets and for studies. It walks
from the stages that are wanted to what they stand on as `RunFolder.make` does, asks each stage that is not done for its
`cost`, and prices that by this machine's `Rates`.
"""

import gc
import logging
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bistil.errors import BistilError
from bistil.runs.ahead import Foresight
from bistil.runs.cost import Cost, Passes
from bistil.runs.folder import Made, Name, RunFolder, State
from bistil.runs.rates import STEP_SECONDS, Rates
from bistil.runs.stage import Stage
from bistil.runtime.memory import return_freed_heap
from bistil.settings.durations import rough_duration
from bistil.training.processes import processes

logger = logging.getLogger(__name__)

# What every process of bistil has in memory: libraries and what they keep.
PROCESS_BYTES = 0.55 * 2**30
# Of a process's highest peak so much stays with it: what is freed does not all go back.
LEFT_BEHIND = 0.7
# A checkpoint is written and hashed.
CHECKPOINT_PER_BYTE = 2.5e-9
# Columns of a table that is not on a terminal.
WIDTH = 200


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one stage will take.

    Attributes:
        name, kind: what it is called, and its kind.
        key: of the stage.
        steps: optimizer steps, of all its trainings.
        flops: of its passes.
        seconds: wall time; of one that was begun, what is left of it.
        memory: peak of resident memory, in bytes.
        disk: bytes that it leaves.
        work: bytes on disk while it is made.
        stands_on: keys of the stages that are made before.
        alone: nothing else is made meanwhile.
        state: done, begun, to do, or again and why.
    """

    name: str
    kind: str
    key: str
    steps: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    work: float = 0.0
    stands_on: tuple[str, ...] = ()
    alone: bool = False
    state: State


@dataclass(frozen=True)
class Forecast:
    """What all stages will take, in the order in which they are made."""

    stages: list[Estimate]

    @property
    def to_do(self) -> list[Estimate]:
        """Those that are not done."""
        return [one for one in self.stages if one.state.word != "done"]

    @property
    def seconds(self) -> float:
        """Of all that is left to do."""
        return sum(one.seconds for one in self.to_do)

    @property
    def steps(self) -> int:
        """Of all that is left to do."""
        return sum(one.steps for one in self.to_do)

    @property
    def memory(self) -> float:
        """The highest peak of a stage that is left to do."""
        return max((one.memory for one in self.to_do), default=0.0)

    @property
    def disk(self) -> float:
        """Bytes that the disk must have room for: all that is left there, and the most that is there meanwhile."""
        return sum(one.disk for one in self.to_do) + max((one.work for one in self.to_do), default=0.0)

    def urgency(self) -> dict[str, float]:
        """Per stage that is left to do, seconds from its beginning to the end of all that stands on it, one by one."""
        found: dict[str, float] = {}
        # What stands on a stage comes after it.
        for one in reversed(self.to_do):
            found[one.key] = one.seconds + found.get(one.key, 0.0)
            for below in one.stands_on:
                found[below] = max(found.get(below, 0.0), found[one.key])
        return {one.key: found[one.key] for one in self.to_do}

    def side_by_side(self, jobs: int) -> float:
        """Seconds that all that is left takes, so many stages at a time, the most urgent first."""
        urgency, ends = self.urgency(), dict[str, float]()
        left, free, now = list(self.to_do), [0.0] * jobs, 0.0
        while left:
            waited = {one.key for one in left} | {key for key, end in ends.items() if end > now}
            ready = [one for one in left if waited.isdisjoint(one.stands_on)]
            ready.sort(key=lambda one: (one.alone, -urgency[one.key]))
            idle = [number for number, end in enumerate(free) if end <= now]
            if ready and idle and not (ready[0].alone and len(idle) < jobs):
                one = ready[0]
                left.remove(one)
                ends[one.key] = free[idle[0]] = now + one.seconds
            else:
                now = min(end for end in free if end > now)
        return max(ends.values(), default=0.0)

    def without_lasting(self, passing: Collection[str]) -> "Forecast":
        """The same where what some stages leave goes before the end: it takes its room meanwhile only.

        Args:
            passing: their keys.
        """
        return Forecast(
            [replace(one, disk=0.0, work=one.work + one.disk) if one.key in passing else one for one in self.stages]
        )

    def line(self, jobs: int = 1) -> str:
        """All of it in one line.

        Args:
            jobs: so many stages are made at a time.
        """
        if not self.to_do:
            return f"all {len(self.stages)} stages are done"
        begun = f" of {len(self.stages)}" if len(self.to_do) < len(self.stages) else ""
        return (
            f"{len(self.to_do)}{begun} stages to do: {self.steps:,} steps, "
            f"about {rough_duration(self.side_by_side(jobs))}{f', {jobs} side by side' if jobs > 1 else ''}, "
            f"{_bytes(self.memory * jobs)} of memory, {_bytes(self.disk)} of disk"
        )

    def verdict(self, folder: Path, jobs: int = 1) -> str:
        """Whether the run can be made here, what it takes of what there is, and what of its folder is done again.

        Args:
            folder: of the run, there or not.
            jobs: so many stages are made at a time.
        """
        if not self.to_do:
            return f"fine: {self.line()}, and nothing is done again"
        memory, room = psutil.virtual_memory().available, free_disk(folder)
        needed = self.memory * jobs
        wrong = []
        if needed > memory:
            largest = max(self.to_do, key=lambda one: one.memory).name
            less = "--jobs 1, " if jobs > 1 else ""
            wrong.append(f"too little memory for {largest} ({less}a smaller batch_size, or more parts: accumulation)")
        if self.disk > room:
            wrong.append("too little room on the disk (--output names a folder on another)")
        time = rough_duration(self.side_by_side(jobs))
        again = [f"{one.name} ({one.state.why})" for one in self.to_do if one.state.word == "again"]
        done = len(self.stages) - len(self.to_do)
        parts = [
            f"{'not fine: ' + ', and '.join(wrong) if wrong else 'fine'}: about {time}",
            f"{_bytes(needed)} of memory of {_bytes(memory)} that are free",
            f"{_bytes(self.disk)} of disk of {_bytes(room)}",
            *([f"{done} of {len(self.stages)} stages are done"] if done else []),
            f"again: {', '.join(again)}" if again else "nothing is done again",
        ]
        return ", ".join(parts)

    def print(self, jobs: int = 1) -> None:
        """A table of the stages on standard output, and the line.

        Args:
            jobs: so many stages are made at a time.
        """
        table = Table(box=None, pad_edge=False)
        for name in ("stage", "steps", "time", "memory", "disk", "state"):
            table.add_column(name, justify="left" if name in ("stage", "state") else "right", no_wrap=name != "state")
        for one in self.stages:
            numbers = ["", "", "", ""]
            if one.state.word != "done":
                numbers = [f"{one.steps:,}" if one.steps else "", rough_duration(one.seconds), _bytes(one.memory)]
                numbers.append(_bytes(one.disk) if one.disk else "")
            table.add_row(one.name, *numbers, _said(one.state))
        # In a file or a pipe nothing is cut off.
        Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else WIDTH).print(table)
        print(self.line(jobs))


def _said(state: State) -> str:
    if state.word == "begun":
        return f"begun, {rough_duration(state.seconds)} so far"
    return f"again: {state.why}" if state.word == "again" else state.word


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{max(1, round(count / 2**20))} MiB"


def free_disk(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, there or not."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


class Forecaster:
    """Foretells stages, and learns from those that were made how fast this machine is.

    Args:
        run: the folder, opened or only looked at; None: nothing is made yet.
        names: per key, what a stage is called, where there is no folder to say so.
        rates: of this machine.
    """

    def __init__(
        self, run: RunFolder | None = None, *, names: Mapping[str, Name] | None = None, rates: Rates | None = None
    ) -> None:
        self.run, self.names = run, dict(run.names if run is not None else names or {})
        self.rates = rates or Rates()
        self.ahead = Foresight(run)
        self._costs: dict[str, Cost] = {}

    def forecast(self, stages: Iterable[Stage[Any]]) -> Forecast:
        """What it will take to make stages and what they stand on."""
        found: dict[str, Estimate] = {}
        for stage in stages:
            self._add(stage, found)
        highest, estimates = 0.0, []
        for one in found.values():
            if one.state.word != "done":
                one = replace(one, memory=max(one.memory, LEFT_BEHIND * highest))
                highest = max(highest, one.memory)
            estimates.append(one)
        return Forecast(estimates)

    def _add(self, stage: Stage[Any], found: dict[str, Estimate]) -> None:
        if stage.key in found:
            return
        state = State("to do") if self.run is None else self.run.state(stage)
        name, kind, key = self._label(stage), stage.KIND, stage.key
        if state.word == "done":
            found[key] = Estimate(name=name, kind=kind, key=key, state=state)
            return
        for one in stage.stands_on():
            self._add(one, found)
        below = next((found[one.key] for one in stage.stands_on() if found[one.key].state.word != "done"), None)
        if state.word == "again" and below is not None:
            state = State("again", f"it stands on {below.name}")
        cost = self.cost(stage)
        looked = [(one.evaluations, one.evaluation) for one in cost.trainings if one.evaluation is not None]
        flops = sum(loop.steps * loop.step.flops for loop in cost.trainings) + sum(one.flops for one in cost.passes)
        flops += sum(times * one.flops for times, one in looked)
        found[key] = Estimate(
            name=name,
            kind=kind,
            key=key,
            steps=cost.steps,
            flops=flops,
            seconds=max(0.0, self.seconds(cost) - state.seconds),
            memory=PROCESS_BYTES + cost.memory,
            disk=cost.disk,
            work=cost.work,
            stands_on=tuple(one.key for one in stage.stands_on()),
            alone=stage.ALONE,
            state=state,
        )

    def _label(self, stage: Stage[Any]) -> str:
        return self.names[stage.key].label if stage.key in self.names else f"{stage.KIND} {stage.key[:8]}"

    def cost(self, stage: Stage[Any]) -> Cost:
        """What a stage says of itself."""
        if stage.key not in self._costs:
            self._costs[stage.key] = stage.cost(self.ahead)
        return self._costs[stage.key]

    def seconds(self, cost: Cost) -> float:
        """The wall time of a cost on this machine; several processes share a training."""
        return self._trained(cost) + self._besides(cost)

    def _trained(self, cost: Cost) -> float:
        """Of optimizer steps."""
        count = int(processes().num_processes)
        return sum(one.steps * (self.rates.seconds(one.step) / count + STEP_SECONDS) for one in cost.trainings)

    def _besides(self, cost: Cost) -> float:
        """Of everything else."""
        looks = sum(one.evaluations * self._of(one.evaluation) for one in cost.trainings)
        written = sum(one.checkpoints * one.checkpoint_bytes * CHECKPOINT_PER_BYTE for one in cost.trainings)
        return cost.seconds + looks + written + sum(self._of(one) for one in cost.passes)

    def _of(self, passes: Passes | None) -> float:
        return 0.0 if passes is None else self.rates.seconds(passes)

    def announce(self, stages: Iterable[Stage[Any]], *, passing: Collection[str] = (), jobs: int = 1) -> Forecast:
        """Say what a run will take at its start, and keep nothing of it but the costs of its stages.

        Args:
            passing: see `Forecast.without_lasting`.
            jobs: so many stages are made at a time.
        """
        ahead = self.forecast(stages).without_lasting(passing)
        logger.info(f"plan: {ahead.line(jobs)}")
        self.ahead.forget()
        gc.collect()
        return_freed_heap()
        return ahead

    def made(self, stage: Stage[Any], made: Made[Any]) -> None:
        """Learn from a stage that was carried out: how long its steps took, beside how long they were to take.

        A stage that stops early has taken fewer steps than its cost has, so it says nothing.
        """
        with suppress(BistilError):
            cost = self.cost(stage)
            if not cost.trainings or _may_stop_early(stage):
                return
            expected, besides = self._trained(cost), self._besides(cost)
            if expected > besides:
                self.rates.correct(cost.trainings[0].step, max(made.seconds - besides, 0.0) / expected)


def _may_stop_early(stage: Stage[Any]) -> bool:
    training = getattr(getattr(stage, "settings", None), "training", None)
    return getattr(training, "patience", None) is not None
