"""Stages of a few lines, for tests of what carries them out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from bistil.runs.folder import Name
from bistil.runs.stage import Product, Stage, cosmetic
from bistil.runtime.artefacts import whole_folder


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much was written."""

    size: int
    parts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Act(Stage[Size]):
    """Does what a test says, in its work folder."""

    KIND: ClassVar[str] = "act"

    inputs_of_it: dict[str, int] = field(default_factory=dict)
    action: Callable[[Path], object] = cosmetic()

    def make(self, place):
        self.action(place.work)
        return Size(size=0)


@dataclass(frozen=True, kw_only=True)
class Write(Stage[Size]):
    """Writes its text into a folder of three files per part."""

    KIND: ClassVar[str] = "write"

    text: str = "x"
    names: tuple[str, ...] = ("out",)
    after: Product | None = None
    calls: list[str] = cosmetic(factory=list)

    def parts(self):
        return self.names

    def make(self, place):
        before = place.path(self.after).joinpath("model").read_text() if self.after else ""
        self.calls.append(place.label)
        for part in self.names:
            with whole_folder(place.output(part), record={"kind": "model"}) as partial:
                (partial / "deep").mkdir()
                (partial / "model").write_text(f"{before}{self.text}-{part}")
                (partial / "deep/part").write_text("more")
                (partial / "README.md").write_text("a card")
        return Size(size=len(self.text), parts={"model": 1})


def named(*stages, **places):
    """Names for stages with one part each: label -> place, and the stage in the same order."""
    return {
        stage.key: Name(label, {stage.parts()[0]: place} if stage.parts() else {})
        for stage, (label, place) in zip(stages, places.items(), strict=True)
    }
