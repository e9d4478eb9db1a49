"""What of a study may be made now: points want trials, then scores, and are put on record when they have them."""

from collections.abc import Iterable, Iterator
from typing import Any

from bistil.runs.board import Board
from bistil.runs.folder import RunFolder
from bistil.runs.stage import Stage
from bistil.study.plan import Study
from bistil.study.points import Point
from bistil.study.records import PointBook


class StudyBoard(Board):
    """Stages of a study that are wanted and not made.

    A point first wants the trials of its search, and when these are scored, its own scores; then it is put on record,
    and its models are removed as soon as no other stage stands on them.

    Args:
        study, run: the study and its folder.
        points: what is to be made.
    """

    def __init__(self, study: Study, run: RunFolder, points: Iterable[Point]) -> None:
        super().__init__(run)
        self.study = study
        self._book = PointBook(study, run)
        self._left: dict[Point, Point | None] = dict.fromkeys(points)
        """Per point that is not on record, the same with its learning rate, once that is chosen."""
        self._wanted: dict[Point, list[Stage[Any]]] = {}
        self._passing: dict[str, Stage[Any]] = {}

    def wanted(self) -> Iterator[Stage[Any]]:
        """What the points want next; those that are complete are put on record."""
        for point in list(self._left):
            self._advance(point)
        if self._left:
            yield self.study.coverage()
        for stages in self._wanted.values():
            yield from stages
        for point, settled in self._left.items():
            # Phase 1 does not wait for a search.
            if settled is None and (phase1 := self.study.bilingual(point)) is not None:
                yield phase1

    def let_go(self, needed: set[str]) -> None:
        """Remove models that are scored and that nothing stands on."""
        for key in list(self._passing):
            if key not in needed:
                self.run.drop(self._passing.pop(key))
                self._there.discard(key)

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
