"""Which stages may be made now, for those who make several at a time: `ready`, and `done` for each."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from bistil.errors import InputError
from bistil.runs.folder import RunFolder
from bistil.runs.stage import Stage

logger = logging.getLogger(__name__)


class Board:
    """Stages that are wanted and not made, and those that they stand on.

    Args:
        run: the folder.
        stages: what is to be made.
    """

    def __init__(self, run: RunFolder, stages: Iterable[Stage[Any]] = ()) -> None:
        self.run = run
        self._stages = list(stages)
        self._below: dict[str, list[Stage[Any]]] = {}
        self._there: set[str] = set()
        self._begun: dict[str, Stage[Any]] = {}
        self._failed: dict[str, tuple[str, str]] = {}
        """Per stage, its name and what is wrong."""

    def ready(self) -> list[Stage[Any]]:
        """Stages that may begin now, each given once."""
        found: dict[str, Stage[Any]] = {}
        needed: set[str] = set()
        for stage in self.wanted():
            self._visit(stage, found, needed)
        self.let_go(needed)
        if any(stage.FIRST for stage in [*found.values(), *self._begun.values()]):
            found = {key: stage for key, stage in found.items() if stage.FIRST}
        self._begun.update(found)
        return list(found.values())

    def wanted(self) -> Iterator[Stage[Any]]:
        """What is to be made, as far as it is known yet."""
        yield from self._stages

    def let_go(self, needed: set[str]) -> None:
        """Remove what is no longer needed; by itself, nothing.

        Args:
            needed: keys of what stages that are to be made stand on.
        """

    def done(self, stage: Stage[Any], wrong: str | None = None) -> None:
        """Say that a stage is made, or what is wrong with it."""
        self._begun.pop(stage.key, None)
        if wrong is not None:
            name = self.run.label(stage)
            self._failed[stage.key] = (name, wrong)
            logger.warning(f"{name} failed: {wrong}")

    def check(self) -> None:
        """Make sure that nothing failed.

        Raises:
            InputError: something did.
        """
        if self._failed:
            name, wrong = next(iter(self._failed.values()))
            others = f" and {len(self._failed) - 1} more" if len(self._failed) > 1 else ""
            raise InputError(f"the stage {name!r}{others} failed: {wrong}; the same command goes on")

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
            if stage.FIRST:
                self.run.make(stage)  # an earlier call made it: what people should know is said again
            return True
        needed.update(one.key for one in below)
        made = [self._visit(one, found, needed) for one in below]
        if all(made):
            found[key] = stage
        return False
