"""What of a study may be made now, for those who make several stages at a time: `ready`, and `done` for each."""

import logging
from collections.abc import Iterable
from typing import Any

from bistil.errors import InputError
from bistil.runs.folder import RunFolder
from bistil.runs.stage import Stage
from bistil.study.plan import Study
from bistil.study.points import Point
from bistil.study.records import PointBook

logger = logging.getLogger(__name__)


class Board:
    """Stages that are wanted and not made.

    A point first wants the trials of its search, and when these are scored, its own scores; then it is put on record,
    and its models are removed as soon as no other stage stands on them.

    Args:
        study, run: the study and its folder.
        points: what is to be made.
        stages: wanted besides.
    """

    def __init__(
        self, study: Study, run: RunFolder, points: Iterable[Point] = (), stages: Iterable[Stage[Any]] = ()
    ) -> None:
        self.study, self.run = study, run
        self._book = PointBook(study, run)
        self._left: dict[Point, Point | None] = dict.fromkeys(points)
        """Per point that is not on record, the same with its learning rate, once that is chosen."""
        self._wanted: dict[Point | None, list[Stage[Any]]] = {None: list(stages)}
        self._below: dict[str, list[Stage[Any]]] = {}
        self._there: set[str] = set()
        self._begun: set[str] = set()
        self._failed: dict[str, tuple[str, str]] = {}
        """Per stage, its name and what is wrong."""
        self._passing: dict[str, Stage[Any]] = {}

    def ready(self) -> list[Stage[Any]]:
        """Stages that may begin now, each given once; points that are complete are put on record."""
        for point in list(self._left):
            self._advance(point)
        found: dict[str, Stage[Any]] = {}
        needed: set[str] = set()
        for stages in self._wanted.values():
            for stage in stages:
                self._visit(stage, found, needed)
        for point, settled in self._left.items():
            # Phase 1 does not wait for a search.
            if settled is None and (phase1 := self.study.bilingual(point)) is not None:
                self._visit(phase1, found, needed)
        for key in list(self._passing):
            if key not in needed:
                self.run.drop(self._passing.pop(key))
                self._there.discard(key)
        self._begun.update(found)
        return list(found.values())

    def done(self, stage: Stage[Any], wrong: str | None = None) -> None:
        """Say that a stage is made, or what is wrong with it."""
        self._begun.discard(stage.key)
        name = self._name(stage)
        if wrong is not None:
            self._failed[stage.key] = (name, wrong)
            logger.warning(f"{name} failed: {wrong}")
            return
        made = self.run.known(stage, whole=False)
        logger.info(f"{name}: done" + (f" in {made.seconds:.0f} s" if made is not None else ""))

    def check(self) -> None:
        """Make sure that nothing failed.

        Raises:
            InputError: something did.
        """
        if self._failed:
            name, wrong = next(iter(self._failed.values()))
            others = f" and {len(self._failed) - 1} more" if len(self._failed) > 1 else ""
            raise InputError(f"the stage {name!r}{others} failed: {wrong}; the same command goes on")

    def _name(self, stage: Stage[Any]) -> str:
        known = self.study.names.get(stage.key)
        return known.label if known else f"{stage.KIND} {stage.key[:8]}"

    def _advance(self, point: Point) -> None:
        """What a point wants next; one that wants nothing is put on record."""
        while True:
            if point not in self._wanted:
                settled = self._left[point] = self.study.chosen(self.run, point)
                if settled is None:
                    self._wanted[point] = [stage for _, stage in self.study.trials(point).values()]
                else:
                    for loser in self.study.losers(settled):
                        self._passing.update(self.study.passing(loser))
                    self._wanted[point] = list(self.study.scores(settled))
            if not all(self._is_scored(stage) for stage in self._wanted[point]):
                return
            del self._wanted[point]
            settled = self._left[point]
            if settled is not None:
                del self._left[point]
                self._book.add(settled)
                self._passing.update(self.study.passing(settled))
                return

    def _is_scored(self, stage: Stage[Any]) -> bool:
        """A score is its record alone."""
        if stage.key in self._there:
            return True
        if stage.key in self._begun or self.run.known(stage, whole=False) is None:
            return False
        self._there.add(stage.key)
        return True

    def _visit(self, stage: Stage[Any], found: dict[str, Stage[Any]], needed: set[str]) -> bool:
        """Whether a stage is made; otherwise what of it may begin is added to `found`, and its inputs to `needed`."""
        key = stage.key
        if key in self._there:
            return True
        if key in self._failed:
            return False
        below = self._below.setdefault(key, stage.stands_on())
        if key in self._begun or key in found:
            needed.update(one.key for one in below)
            return False
        if self.run.known(stage) is not None:
            self._there.add(key)
            return True
        needed.update(one.key for one in below)
        made = [self._visit(one, found, needed) for one in below]
        if all(made):
            found[key] = stage
        return False
