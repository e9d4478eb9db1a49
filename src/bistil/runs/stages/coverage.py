"""Whether the trimmed vocabulary fits the files of a run, found out and said before anything is learnt with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from bistil.models.tokenizers import load_tokenizer
from bistil.runs.cost import LOAD_FIXED, LOAD_PER_TOKEN, Ahead, Cost
from bistil.runs.data import HeldOut, LabelledTexts
from bistil.runs.stage import Place, Stage
from bistil.runs.stages.vocabulary import Trim
from bistil.runtime.artefacts import read_json, whole_folder
from bistil.vocabulary.coverage import (
    FoundInTexts,
    TextCoverage,
    TokenizerPair,
    drawn,
    loss_line,
    missing_files,
    write_missing,
)
from bistil.vocabulary.trimming import REPORT_FILE

HELD_OUT = "held-out text"
# What `cost` goes by: seconds per file of the usual size; bytes per token of a tokenizer and its tables in Python.
_PER_FILE, _BYTES_PER_TOKEN = 1.0, 3000.0


@dataclass(frozen=True, kw_only=True)
class Covered:
    """What trimming changes, by file; and the share of each corpus's tokens that is kept."""

    files: dict[str, TextCoverage]
    corpora: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Cover(Stage[Covered]):
    """Compare the trimmed vocabulary with the whole one on all labelled files and on text held out.

    Nothing stands on it, and a run is the same without. Test sets are read to count, without their labels. Leaves
    "missing" if a file loses noticeably: keep-lists (`TrimSettings.keep`) of what such files lack.
    """

    KIND: ClassVar[str] = "coverage"
    FIRST: ClassVar[bool] = True
    PARTS: ClassVar[tuple[str, ...]] = ("missing",)

    trim: Trim
    labelled: LabelledTexts
    held_out: HeldOut | None = None
    seed: int
    """Draws texts of large files."""

    def make(self, place: Place) -> Covered:
        trimmed = place.path(self.trim.product("model"))
        both = TokenizerPair(load_tokenizer(str(self.trim.teacher.path)), load_tokenizer(str(trimmed)))
        found: dict[str, FoundInTexts] = {}
        for name, texts in self._texts(place):
            chosen, count = drawn(texts, seed=self.seed)
            found[name] = both.of(chosen, of=count)
        files = {name: one.coverage for name, one in found.items()}
        if missing_files(files):
            with whole_folder(place.output("missing"), record={"kind": "keep-lists"}) as folder:
                write_missing(found, folder)
        corpora = read_json(trimmed / REPORT_FILE)["corpora"]
        return Covered(files=files, corpora={language: one["coverage"] for language, one in corpora.items()})

    def _texts(self, place: Place) -> Iterator[tuple[str, list[str]]]:
        yield from self.labelled.texts(place)
        if self.held_out is not None:
            yield HELD_OUT, list(self.held_out.lines)

    def notices(self, result: Covered, place: Place) -> list[str]:
        """A line per file that loses noticeably."""
        files = {one.name: one for one in self.labelled.files()}
        lines = []
        for name, missing in missing_files(result.files).items():
            one, file = result.files[name], files.get(name)
            where = place.output("missing") / missing
            keep = (
                f"trim.keep = a copy of {where}" if self.trim.keep is None else f"the lines of {where} in trim.keep too"
            )
            if file is None or file.kind == "test":
                keep += " (text that is tested on then decides the vocabulary: docs/trim.md)"
            lines.append(
                loss_line(
                    name if file is None else f"{name} ({file.path})",
                    one,
                    settings=self.trim.settings,
                    covered=result.corpora.get(file.language.partition("/")[0], 1.0) if file else 1.0,
                    keep=keep,
                )
            )
        return lines

    def cost(self, ahead: Ahead) -> Cost:
        tokens = ahead.shape(self.trim.teacher).vocabulary + ahead.shape(self.trim.product("model")).vocabulary
        return Cost(
            seconds=2 * LOAD_FIXED + 2 * LOAD_PER_TOKEN * tokens + _PER_FILE * len(self.labelled.files()),
            memory=_BYTES_PER_TOKEN * tokens,
        )
