"""The stages of the method: what each stands on, what it leaves, and which room does the work."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bistil.distillation.general import distill_general
from bistil.distillation.student import copy_student
from bistil.distillation.task import Fitting
from bistil.distillation.task_folders import TaskOutputs, write_task_student, write_task_teacher
from bistil.measuring.benchmark import BenchmarkRow, benchmark
from bistil.measuring.evaluation import measure
from bistil.runs.data import Exam, Labelled, TargetText
from bistil.runs.stage import File, Place, Product, Stage, cosmetic
from bistil.runtime.artefacts import whole_folder
from bistil.settings.recipe import AdaptSettings, FinetuneSettings, Phase1Settings, StudentSettings, TrimSettings
from bistil.sparse.language import adapt
from bistil.sparse.wearing import dressed_copy
from bistil.tasks.metrics import Metrics, interval, resampled
from bistil.text.lines import read_sentences
from bistil.training.processes import one_process_first, processes
from bistil.vocabulary import kept_ids, trim_vocabulary
from bistil.vocabulary.restoring import restore_vocabulary

Texts = Mapping[str, tuple[File, ...]]
"""Per language, files of plain text."""
Sfts = Mapping[str, File | Product]
"""Per language, a sparse fine-tuning: a folder or hub name, or one that another stage learns."""
# Of each test set so many resamples are scored: all models alike, so that the gap between two has a paired interval.
RESAMPLES = 1000
# What cost is measured on: so many sentences.
COST_EXAMPLES = 32


def paths(texts: Texts) -> dict[str, list[Path]]:
    """Where the texts are, per language."""
    return {language: [file.path for file in files] for language, files in texts.items()}


# Vocabulary reduction (paper, section 3.1)


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """What trimming came to: the contents of `trim_report.json`."""

    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trim(Stage[Trimmed]):
    """Keep the tokens that the languages use (section 3.1). Leaves "model"."""

    KIND: ClassVar[str] = "trim"

    teacher: File
    texts: Texts
    settings: TrimSettings
    """Its `keep` is none: see the next field."""
    keep: File | None = None
    verify: bool = True

    def parts(self) -> tuple[str, ...]:
        return ("model",)

    def make(self, place: Place) -> Trimmed:
        report = trim_vocabulary(
            self.teacher.path,
            paths(self.texts),
            place.output("model"),
            settings=self.settings,
            keep=self.keep.path if self.keep else None,
            verify=self.verify,
            counts=place.work / "counts",
        )
        return Trimmed(report=report.to_dict())


# Language adaptation of the teacher (section 3.2; Ansell et al. 2022, section 4.2)


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What a language SFT came to: its metrics, held-out losses in nats per masked token among them."""

    metrics: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Adapt(Stage[Adapted]):
    """Learn a language SFT of a model by masked language modelling. Leaves "sft"."""

    KIND: ClassVar[str] = "adapt"
    JOINT: ClassVar[bool] = True

    model: Product
    language: str
    text: tuple[File, ...]
    settings: AdaptSettings
    head_only: bool = False
    """A baseline: the language changes nothing of the model, and only a new head is trained."""
    seed: int

    def parts(self) -> tuple[str, ...]:
        return ("sft",)

    def make(self, place: Place) -> Adapted:
        sft = adapt(
            str(place.path(self.model)),
            [file.path for file in self.text],
            place.output("sft"),
            language=self.language,
            settings=self.settings,
            work=place.work / "training",
            seed=self.seed,
            mask={} if self.head_only else None,
        )
        return Adapted(metrics=sft.provenance.metrics)


# Phase 1: general bilingual distillation (section 3.2)


@dataclass(frozen=True, kw_only=True)
class BilingualStudent:
    """What phase 1 made of one student: held-out figures before and after, "LANGUAGE/TERM", and "loss" over all."""

    layers: list[int]
    start: dict[str, float]
    end: dict[str, float]
    history: list[dict[str, float]]
    """The figures at each evaluation, with "step"."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What phase 1 came to, per student in their order."""

    students: list[BilingualStudent]
    steps: int
    tokens: int
    tokens_per_second: float | None
    precision: str = "float32"
    """Of the matrix products, as it was settled on the machine where the stage began."""


@dataclass(frozen=True, kw_only=True)
class Distil(Stage[Distilled]):
    """Bilingual students out of the (trimmed) teacher, all from one teacher pass per batch (section 3.2).

    Leaves a model per student, by its number, and "record": `phase1.json`, the training log, in the students' names.
    """

    KIND: ClassVar[str] = "phase1"
    JOINT: ClassVar[bool] = True

    teacher: Product
    students: tuple[StudentSettings, ...]
    texts: Texts
    settings: Phase1Settings
    sfts: Sfts = field(default_factory=dict)
    force_sfts: bool = False
    seed: int

    def parts(self) -> tuple[str, ...]:
        return (*map(str, range(len(self.students))), "record")

    def make(self, place: Place) -> Distilled:
        output = place.work / "students"
        report = distill_general(
            place.path(self.teacher),
            list(self.students),
            paths(self.texts),
            output,
            settings=self.settings,
            seed=self.seed,
            language_sfts={language: place.path(sft) for language, sft in self.sfts.items()} or None,
            force_sfts=self.force_sfts,
            work=place.work / "training",
            replace=True,
            label=place.label,
        )
        if processes().is_main_process:
            self._put(output, place)
        return Distilled(
            students=[_bilingual(report, student.name) for student in self.students],
            steps=report["steps"],
            tokens=report["tokens"],
            tokens_per_second=report["tokens_per_second"],
            precision=report["precision"],
        )

    def _put(self, made: Path, place: Place) -> None:
        """Move each student to its place, and the rest beside them."""
        for number, student in enumerate(self.students):
            output = place.output(str(number))
            output.parent.mkdir(parents=True, exist_ok=True)
            os.replace(made / student.name, output)
        with whole_folder(place.output("record"), record={"kind": "record of phase 1"}) as folder:
            for path in made.iterdir():
                if path.name != "bistil.json":
                    os.replace(path, folder / path.name)


def _bilingual(report: Mapping[str, Any], name: str) -> BilingualStudent:
    """One student's part of phase 1's report."""
    own = report["students"][name]

    def figures(entry: Mapping[str, float]) -> dict[str, float]:
        return {key.removeprefix(f"{name}/"): value for key, value in entry.items() if key.startswith(f"{name}/")}

    return BilingualStudent(
        layers=own["alignment"]["layers"],
        start=own["held_out"]["start"],
        end=own["held_out"]["end"],
        history=[{"step": entry["step"], **figures(entry)} for entry in report["history"]],
    )


# Phase 2: task distillation (section 3.3)


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A start for phase 2: the teacher's layers, copied and not distilled."""

    model: Product
    layers: tuple[int, ...]
    student: StudentSettings
    """Its widths and its start."""

    def folder(self, place: Place) -> Path:
        output = place.work / "copied"
        with one_process_first() as first:
            if first:
                model = place.path(self.model)
                copy_student(model, list(self.layers), self.student, output=output, replace=True)
        return output


@dataclass(frozen=True, kw_only=True)
class Dressed:
    """A start for the task teacher: the multilingual model wearing a language SFT for good (section 3.3)."""

    model: Product
    sft: File | Product
    force: bool = False

    def folder(self, place: Place) -> Path:
        output = place.work / "dressed"
        with one_process_first() as first:
            if first:
                model, sft = place.path(self.model), place.path(self.sft)
                dressed_copy(model, sft, output=output, force_sfts=self.force, replace=True)
        return output


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fine-tuning came to (the figures of `distillation.task.fit_from_labels`)."""

    examples: int
    target_text: int
    truncated: int
    left_out: dict[str, int]
    read: dict[str, dict[str, int]]
    dev: dict[str, float] | None
    steps: int | None = None
    tokens: int | None = None
    precision: str | None = None
    device: str | None = None
    """Of a dense fine-tuning; `phases` has both of a sparse one."""
    density: float | None = None
    phases: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    differing: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FineTune(Stage[Fitted]):
    """Fine-tune a model for a task: from labels only, or from a task teacher (section 3.3).

    Leaves "model" and, of a sparse fine-tuning, "sft".
    """

    KIND: ClassVar[str] = "finetune"
    JOINT: ClassVar[bool] = True

    start: Product | Copied | Dressed
    labelled: Labelled
    settings: FinetuneSettings
    teacher: Product | None = None
    target_text: TargetText | None = None
    sfts: Sfts = field(default_factory=dict)
    """Worn in batches of their language (multi-source training)."""
    force_sfts: bool = False
    seed: int
    languages: tuple[str, ...] = cosmetic(())
    beside: tuple[tuple[int, ...], ...] = cosmetic(())
    """Teacher layers of the run's students: what the task teacher says is kept for all of them."""

    def parts(self) -> tuple[str, ...]:
        return ("model", "sft") if self.settings.sparse else ("model",)

    def make(self, place: Place) -> Fitted:
        start = place.path(self.start) if isinstance(self.start, Product) else self.start.folder(place)
        how = Fitting(
            data=self.labelled.to_learn_from(place, self.target_text),
            settings=self.settings,
            max_length=self.labelled.task.max_length,
            seed=self.seed,
            folder=place.work / "training",
            teacher_folder=place.common("teacher"),
            beside=self.beside,
            label=place.label,
            languages=self.languages,
        )
        outputs = TaskOutputs(model=place.output("model"), sft=place.output("sft") if self.settings.sparse else None)
        if self.teacher is not None:
            figures = write_task_student(start, place.path(self.teacher), how, outputs)
        else:
            sfts = {language: place.path(sft) for language, sft in self.sfts.items()}
            figures = write_task_teacher(start, how, outputs, language_sfts=sfts, force_sfts=self.force_sfts)
        return Fitted(**figures)


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """The result of a stage that has nothing to report."""


@dataclass(frozen=True, kw_only=True)
class Restore(Stage[Nothing]):
    """The undistilled teacher: a fine-tuned trimmed model with its base's whole vocabulary. Leaves "model"."""

    KIND: ClassVar[str] = "restore"

    model: Product
    trimmed: Product
    base: File

    def parts(self) -> tuple[str, ...]:
        return ("model",)

    def make(self, place: Place) -> Nothing:
        kept = kept_ids(place.path(self.trimmed))
        restore_vocabulary(place.path(self.model), base=self.base.path, kept=kept, output=place.output("model"))
        return Nothing()


@dataclass(frozen=True, kw_only=True)
class Wear(Stage[Nothing]):
    """A task teacher that was learnt beside its sources' SFTs, wearing one for good (section 3.3). Leaves "model"."""

    KIND: ClassVar[str] = "wear"

    model: Product
    trimmed: Product
    sft: File | Product

    def parts(self) -> tuple[str, ...]:
        return ("model",)

    def make(self, place: Place) -> Nothing:
        # It was compared with its base when it was worn in training.
        model, trimmed = place.path(self.model), place.path(self.trimmed)
        dressed_copy(model, place.path(self.sft), output=place.output("model"), trimmed=trimmed, force_sfts=True)
        return Nothing()


# Measuring


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model's scores on one set, in percent, with those on resampled sets."""

    metric: str
    score: float
    scores: dict[str, float]
    interval: list[float]
    examples: int
    resamples: list[float]

    @classmethod
    def of(cls, metrics: Metrics) -> "Score":
        """Of the counters of a set; the interval is `tasks.bootstrap`'s."""
        scores, values = metrics.scores, resampled(metrics, RESAMPLES)
        return cls(
            metric=metrics.primary,
            score=scores[metrics.primary],
            scores=scores,
            interval=list(interval(values)),
            examples=len(metrics.counts),
            resamples=values.tolist(),
        )

    def gap(self, reference: "Score") -> tuple[float, float, float]:
        """`tasks.paired_gap`: this score minus the reference's, low and high end of its interval, in points."""
        return self.score - reference.score, *interval(np.subtract(self.resamples, reference.resamples))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores by part of the exam."""

    parts: dict[str, Score]


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage[Scored]):
    """Score a task model. Until here, test sets only say what must not be learnt from."""

    KIND: ClassVar[str] = "evaluate"

    model: Product
    exam: Exam
    device: str = cosmetic("auto")

    def make(self, place: Place) -> Scored:
        data, length = self.exam.labelled.everything(place), self.exam.labelled.task.max_length
        folder = place.path(self.model)
        return Scored(
            parts={
                part: Score.of(measure(folder, data.task, examples, max_length=length, device=self.device))
                for part, examples in self.exam.sets(place).items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class Guess(Stage[Scored]):
    """Score the baseline that never looks at the input: the most frequent label of the training data."""

    KIND: ClassVar[str] = "majority"

    labelled: Labelled
    exam: Exam

    def make(self, place: Place) -> Scored:
        data = self.labelled.to_learn_from(place)
        return Scored(
            parts={
                part: Score.of(data.task.score(examples, data.task.majority(data.train, examples), labels=data.labels))
                for part, examples in self.exam.sets(place).items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What models cost, in their order."""

    rows: list[BenchmarkRow]


@dataclass(frozen=True, kw_only=True)
class Benchmark(Stage[Costs]):
    """Size and speed of all models in turn, on real text; the first is the reference of the speed ratios."""

    KIND: ClassVar[str] = "benchmark"

    models: tuple[Product, ...]
    text: Exam | tuple[File, ...]
    """A test set, or plain text."""
    examples: int = COST_EXAMPLES

    def make(self, place: Place) -> Costs:
        if isinstance(self.text, Exam):
            task = self.text.labelled.everything(place).task
            texts = [task.text_of(example) for own in self.text.sets(place).values() for example in own]
        else:
            texts = read_sentences([file.path for file in self.text])
        folders = {str(number): place.path(model) for number, model in enumerate(self.models)}
        return Costs(rows=list(benchmark(folders, texts=texts, examples=self.examples).values()))
