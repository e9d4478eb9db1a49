"""Vocabulary reduction (paper, section 3.1), and what undoes it for the undistilled teacher."""

from dataclasses import dataclass
from typing import Any, ClassVar

from bistil.measuring.shape import EncoderShape
from bistil.runs.cost import LOAD_FIXED, Ahead, Cost
from bistil.runs.data import Texts, paths
from bistil.runs.stage import File, Nothing, Place, Product, Stage
from bistil.settings.recipe import TrimSettings
from bistil.vocabulary import kept_ids, trim_vocabulary
from bistil.vocabulary.restoring import restore_vocabulary

# What `cost` goes by, on an ordinary core: trimming (per byte, for most of a multilingual model is vocabulary), the
# passes over its texts in times of one tokenizing, and its proof; restoring.
TRIM_PER_BYTE, TRIM_TEXTS, VERIFY_PER_BYTE, RESTORE_PER_BYTE = 1.7e-8, 2.0, 2e-9, 1.5e-8


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """What trimming came to: the contents of `trim_report.json`."""

    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trim(Stage[Trimmed]):
    """Keep the tokens that the languages use (section 3.1). Leaves "model"."""

    KIND: ClassVar[str] = "trim"
    PARTS: ClassVar[tuple[str, ...]] = ("model",)

    teacher: File
    texts: Texts
    settings: TrimSettings
    """Its `keep` is none: see the next field."""
    keep: File | None = None
    verify: bool = True

    def make(self, place: Place) -> Trimmed:
        report = trim_vocabulary(
            self.teacher.path,
            paths(self.texts, place),
            place.output("model"),
            settings=self.settings,
            keep=self.keep.path if self.keep else None,
            verify=self.verify,
            counts=place.work / "counts",
        )
        return Trimmed(report=report.to_dict())

    def model_of(self, part: str) -> File:
        del part
        return self.teacher

    def shape(self, part: str, ahead: Ahead) -> EncoderShape:
        del part
        kept = ahead.vocabulary(self.texts, self.settings, self.keep, self.teacher)
        return ahead.shape(self.teacher).with_vocabulary(kept)

    def cost(self, ahead: Ahead) -> Cost:
        texts = [ahead.text(files, self.teacher) for files in self.texts.values()]
        size, model = ahead.weights(self.teacher), self.product("model")
        seconds = LOAD_FIXED + TRIM_PER_BYTE * size + TRIM_TEXTS * sum(text.seconds for text in texts)
        return Cost(
            seconds=seconds + (VERIFY_PER_BYTE * size if self.verify else 0.0),
            memory=2.0 * size,
            disk=ahead.weights(model),
        )


@dataclass(frozen=True, kw_only=True)
class Restore(Stage[Nothing]):
    """The undistilled teacher: a fine-tuned trimmed model with its base's whole vocabulary. Leaves "model"."""

    KIND: ClassVar[str] = "restore"
    PARTS: ClassVar[tuple[str, ...]] = ("model",)

    model: Product
    trimmed: Product
    base: File

    def make(self, place: Place) -> Nothing:
        kept = kept_ids(place.path(self.trimmed))
        restore_vocabulary(place.path(self.model), base=self.base.path, kept=kept, output=place.output("model"))
        return Nothing()

    def model_of(self, part: str) -> File:
        del part
        return self.base

    def cost(self, ahead: Ahead) -> Cost:
        size = ahead.weights(self.base)
        return Cost(seconds=LOAD_FIXED + RESTORE_PER_BYTE * size, memory=3.0 * size, disk=size)
