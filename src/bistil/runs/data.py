"""The labelled data and the text that stages learn from and are scored on, as values: read when they are needed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bistil.distillation.task_data import TaskData, how_to_read, read_task_data, some, unseen_target_text
from bistil.runs.stage import File, Place, Product, Reader, cosmetic, later
from bistil.runtime.artefacts import json_digest, whole_file
from bistil.settings.recipe import TaskSettings, to_dict
from bistil.tasks.overlap import comparable, is_short
from bistil.text.lines import read_lines, read_sentences
from bistil.training.processes import processes

# What says where labelled data lie, or how a recipe came to its settings; the files count by their content.
FILES = ("train", "dev", "test", "sources")
NOT_LEARNT_FROM = (*FILES, "preset", "strict")
DEV = "dev"
"""The part of an exam that is the source language's dev set; all others are test sets."""
SELECTED = "selected.txt"
"""In the product of a selection: its lines."""
# Of the target's text, where no labels of it are scored: a tenth of the different lines, and so many at most.
HELD_OUT_SHARE, MOST_HELD_OUT_LINES = 0.1, 500

Texts = Mapping[str, tuple[File, ...]]
"""Per language, files of plain text."""
Sfts = Mapping[str, File | Product]
"""Per language, a sparse fine-tuning: a folder or hub name, or one that another stage learns."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A task's labelled data."""

    task: TaskSettings
    source: str
    """Language of the labels that choose a checkpoint."""
    digests: Mapping[str, str]
    """SHA-256 of the content of every file and data set that the task names."""
    left_out: str | None = None
    """Digest of the training examples that stand in a test set: all that test sets change in what is learnt."""
    train_examples: int | None = None
    dev_examples: int | None = None
    """So many are drawn; none: all."""

    def key_values(self) -> dict[str, Any]:
        """What the result of learning from it depends on."""
        learnt = {name: value for name, value in to_dict(self.task).items() if name not in NOT_LEARNT_FROM}
        return {
            "task": learnt,
            "source": self.source,
            "train": self.digests_of(self.task.train),
            "sources": {language: self.digests_of(files) for language, files in sources_of(self.task).items()},
            "dev": self.digests_of(self.task.dev),
            "left_out": self.left_out,
            "train_examples": self.train_examples,
            "dev_examples": self.dev_examples,
        }

    def digests_of(self, files: Sequence[str]) -> list[str]:
        """Digests of some of the files, in their order."""
        return [self.digests[file] for file in files]

    def everything(self, place: Reader) -> TaskData:
        """All that was read, test sets included; read once for all stages."""
        key = ("labelled", to_dict(self.task), dict(self.digests), self.source)
        return place.read(
            key, lambda: read_task_data(self.task, source=self.source, sources=sources_of(self.task) or None)
        )

    def to_learn_from(self, place: Reader, text: "TargetText | None" = None) -> TaskData:
        """As many examples as there may be, with target text, without test sets."""
        found = self.everything(place)
        data = replace(
            found, train=some(found.train, self.train_examples), dev=some(found.dev, self.dev_examples), test={}
        )
        if text is None:
            return data
        sentences, seen = place.read(
            ("target text", text, to_dict(self.task), dict(self.digests)), lambda: text.sentences(found)
        )
        return replace(data, target_sentences=sentences, left_out=replace(found.left_out, target=seen))


@dataclass(frozen=True, kw_only=True)
class LabelledFile:
    """One of a task's labelled files."""

    name: str
    """Such as "test, sw", with its number where a part has several."""
    kind: str
    """train, dev or test."""
    language: str
    path: str


def labelled_parts(task: TaskSettings, source: str) -> list[LabelledFile]:
    """Everything labelled that a task names, in the order of a run."""
    groups = [("train", language, files) for language, files in (sources_of(task) or {source: task.train}).items()]
    groups += [("dev", source, task.dev), *(("test", language, files) for language, files in task.test.items())]
    return [
        LabelledFile(
            name=f"{kind}, {language}" + (f", {number}" if len(files) > 1 else ""),
            kind=kind,
            language=language,
            path=path,
        )
        for kind, language, files in groups
        for number, path in enumerate(files, 1)
    ]


@dataclass(frozen=True, kw_only=True)
class LabelledTexts:
    """The texts of all labelled files of a task, test sets included, without their labels."""

    labelled: Labelled

    def key_values(self) -> dict[str, Any]:
        """What the texts depend on."""
        own = self.labelled
        return {
            "kind": own.task.kind,
            "reading": asdict(how_to_read(own.task)),
            "files": [[one.name, own.digests[one.path]] for one in self.files()],
            "left_out": own.left_out,
        }

    def files(self) -> list[LabelledFile]:
        """What is read."""
        return labelled_parts(self.labelled.task, self.labelled.source)

    def texts(self, place: Reader) -> Iterator[tuple[str, list[str]]]:
        """Per file its name and its different texts, as the task reads them."""
        data = self.labelled.everything(place)
        train = data.sources or {self.labelled.source: data.train}
        for one in self.files():
            examples = {"train": train, "dev": {one.language: data.dev}, "test": data.test}[one.kind][one.language]
            own = [example for example in examples if Path(example.file) == Path(one.path)]
            yield one.name, list(dict.fromkeys(text for example in own for text in data.task.texts_of(example)))


@dataclass(frozen=True, kw_only=True)
class TargetText:
    """Plain text of target languages that phase 2 learns from."""

    texts: Mapping[str, tuple[File, ...]]
    left_out: str | None = None
    """Digest of the lines that stand in a dev or test set."""
    count: int | None = None
    """So many sentences are drawn, equally many per language; none: all."""
    lines: tuple[int, ...] = ()
    """Only lines [first, end) of each language's text, if given."""
    selected: Mapping[str, Product] | None = later(None)
    """Per language, the lines that a stage has selected; none: they are drawn."""

    def located(self, place: Place) -> "TargetText":
        """The same text, when the stages that it stands on are made."""
        if self.selected is None:
            return self
        files = {language: place.path(product) / SELECTED for language, product in self.selected.items()}
        return TargetText(texts={language: (File.at(path),) for language, path in files.items()})

    def sentences(self, data: TaskData) -> tuple[list[str], list[str]]:
        """The sentences, and those that were left out because they stand in one of the data's dev or test sets."""
        kept: list[str] = []
        left_out: list[str] = []
        for files in self.texts.values():
            lines = sentences_of(files)
            own, seen = unseen_target_text(data, lines[slice(*self.lines)] if self.lines else lines)
            kept += some(own, self.count and self.count // len(self.texts))
            left_out += seen
        return kept, left_out


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Labelled sets that models are scored on."""

    labelled: Labelled
    parts: tuple[str, ...]
    """Keys of the task's test sets, or `DEV`."""
    examples: int | None = None
    """Of each test set so many are drawn; none: all."""

    def key_values(self) -> dict[str, Any]:
        """What a score depends on, besides the model."""
        task = self.labelled.task
        files = {part: task.dev if part == DEV else task.test[part] for part in self.parts}
        return {
            **_as_read(task),
            "parts": {part: self.labelled.digests_of(own) for part, own in files.items()},
            "examples": self.examples,
            "dev_examples": self.labelled.dev_examples if DEV in self.parts else None,
        }

    def sets(self, place: Reader) -> dict[str, list[Any]]:
        """The examples of each part."""
        found = self.labelled.everything(place)
        return {
            part: some(found.dev, self.labelled.dev_examples) if part == DEV else some(found.test[part], self.examples)
            for part in self.parts
        }


@dataclass(frozen=True)
class Rest(File):
    """A text file without the lines that are held out."""

    lines: frozenset[str] = cosmetic(frozenset())
    """Those lines, without the space around them; the digest is of the file and of them."""

    @classmethod
    def of(cls, file: File, lines: frozenset[str]) -> "Rest":
        """What is left of a file."""
        return cls(json_digest([file.digest, *sorted(lines)]), file.path, lines)

    def write(self, folder: Path) -> Path:
        """Write what is left as a file into a folder."""
        path = folder / f"{self.digest[:16]}.txt"
        folder.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(path, replace=True, inner=True) as partial,
            partial.open("w", encoding="utf-8", newline="\n") as out,
        ):
            out.writelines(f"{line}\n" for line in read_lines(self.path) if line.strip() not in self.lines)
        return path


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Lines of the target's text that nothing is learnt from, to compare models on without labels."""

    labelled: Labelled
    """Whose task it is."""
    lines: tuple[str, ...]
    files: tuple[File, ...] = cosmetic(())
    """The text that they are of."""
    seed: int
    """Draws pairs, where the task is about pairs of texts."""

    def key_values(self) -> dict[str, Any]:
        """What an agreement depends on, besides the models."""
        return {**_as_read(self.labelled.task), "lines": json_digest(list(self.lines)), "seed": self.seed}


def hold_out(data: TaskData, sentences: Sequence[str], *, seed: int) -> list[str]:
    """Draw lines to hold out: different ones, none of them short, none in the labelled data. The same seed, the same.

    Args:
        sentences: all of the target's text.
    """
    labelled = [*data.train, *data.dev, *(example for part in data.test.values() for example in part)]
    taken = {comparable(text) for example in labelled for text in data.task.texts_of(example)}
    different = {key: line for line in sentences if (key := comparable(line)) and key not in taken}
    count = min(MOST_HELD_OUT_LINES, int(HELD_OUT_SHARE * len(different)))
    return some([line for line in different.values() if not is_short(line)], count, seed=seed) if count else []


def without_lines(files: Sequence[File], sentences: Sequence[str], lines: Sequence[str]) -> tuple[File, ...]:
    """Text files without some of their lines, and without what differs from those in spaces, marks and case only.

    Args:
        sentences: all of the files' text.
    """
    keys = {comparable(line) for line in lines}
    gone = frozenset(sentence for sentence in sentences if comparable(sentence) in keys)
    return tuple(Rest.of(file, gone) for file in files)


def sentences_of(files: Sequence[File]) -> list[str]:
    """All lines of the files that hold text and are not held out, stripped.

    Raises:
        InputError: as `read_sentences`.
    """
    found: list[str] = []
    for file in files:
        gone = file.lines if isinstance(file, Rest) else ()
        found += [sentence for sentence in read_sentences([file.path]) if sentence not in gone]
    return found


def _as_read(task: TaskSettings) -> dict[str, Any]:
    """How a task's examples are read."""
    return {"kind": task.kind, "reading": asdict(how_to_read(task)), "max_length": task.max_length}


def sources_of(task: TaskSettings) -> dict[str, list[str]]:
    """Training files per source language, where they are in several."""
    return dict(task.sources)


def paths(texts: Texts, place: Place) -> dict[str, list[Path]]:
    """Where the texts are, per language; of those of which lines are held out the rest is written there."""
    return {language: text_paths(files, place) for language, files in texts.items()}


def text_paths(files: Sequence[File], place: Place) -> list[Path]:
    """The same for files of one language."""
    # Of each process its own: some stages are made by all processes, some by the first one alone.
    folder = place.work / f"text-{processes().process_index}"
    return [file.write(folder) if isinstance(file, Rest) else file.path for file in files]
