"""Phase 2: task distillation (paper, section 3.3), task teachers and opponents, and what is made of their models."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bistil.distillation.kept_teacher import kept_bytes
from bistil.distillation.static import DIMENSIONS, check_static, write_static
from bistil.distillation.student import copy_student, student_config
from bistil.distillation.task import LEAST_REPEATS, Fitting, may_keep
from bistil.distillation.task_folders import TaskOutputs, write_task_student, write_task_teacher
from bistil.measuring.shape import EncoderShape
from bistil.runs.cost import Ahead, Cost, Passes, held, loading
from bistil.runs.data import Labelled, Sfts, TargetText
from bistil.runs.stage import File, Nothing, Place, Product, Stage, cosmetic, later
from bistil.runs.stages.work import activations, scoring, training_of
from bistil.settings.recipe import FinetuneSettings, Phase2Settings, StudentSettings, TrainingSettings
from bistil.sparse.training import phases
from bistil.sparse.wearing import dressed_copy, exchanged_copy
from bistil.training.loop import planned_steps
from bistil.training.processes import one_process_first


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

    def shape(self, ahead: Ahead) -> EncoderShape:
        return EncoderShape.of(student_config(ahead.shape(self.model).config, list(self.layers), self.student))


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

    def shape(self, ahead: Ahead) -> EncoderShape:
        return ahead.shape(self.model)


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
    other_teachers: tuple[Product, ...] = later(())
    """Task teachers whose predictions are averaged with that one's."""
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
            data=self.labelled.to_learn_from(place, self.target_text and self.target_text.located(place)),
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
            figures = write_task_student(start, list(map(place.path, self._teachers)), how, outputs)
        else:
            sfts = {language: place.path(sft) for language, sft in self.sfts.items()}
            figures = write_task_teacher(start, how, outputs, language_sfts=sfts, force_sfts=self.force_sfts)
        return Fitted(**figures)

    @property
    def _teachers(self) -> list[Product]:
        return [] if self.teacher is None else [self.teacher, *self.other_teachers]

    def model_of(self, part: str) -> Product | None:
        if part != "model":
            return None
        return self.start if isinstance(self.start, Product) else self.start.model

    def shape(self, part: str, ahead: Ahead) -> EncoderShape:
        del part
        return ahead.shape(self.start)

    def cost(self, ahead: Ahead) -> Cost:
        student, settings, training = ahead.shape(self.start), self.settings, self.settings.training
        taught = settings if self.teacher is not None and isinstance(settings, Phase2Settings) else None
        ratio = taught.target_text if taught and self.target_text is not None else 0.0
        lesson = ahead.lesson(
            self.labelled, self.target_text, self.start, ratio=ratio, batch_size=training.batch_size,
            sentences=taught.target_sentences if taught else None,
        )  # fmt: skip
        teachers = [ahead.shape(one) for one in self._teachers]
        teacher = teachers[0] if teachers else student
        epoch = round(lesson.labelled * (1 + (ratio if lesson.unlabelled else 0.0)))
        tokens = float(np.mean(lesson.lengths))
        forward = float(np.mean([student.flops(length) for length in lesson.lengths]))
        targets = float(np.mean([sum(one.flops(length) for one in teachers) for length in lesson.lengths]))
        precision, device = ahead.settled(training)

        def step(teacher_share: float = 1.0) -> Passes:
            """The mean step of a loop in whose steps the teacher runs, or in so large a share of them."""
            flops = training.batch_size * (3 * forward + teacher_share * targets)
            return Passes(
                kind="phase2" if taught else "labels", teacher=teacher, students=(student,), flops=flops,
                objective=taught.objective if taught else None, sequences=training.batch_size, tokens=tokens,
                precision=precision, device=device,
            )  # fmt: skip

        look = None if lesson.dev is None else scoring(student, lesson.dev, device)
        size, sparse = float(student.parameters["total"]), settings.sparse
        lengths: list[tuple[TrainingSettings, float | None]] = [(training, None)]
        if sparse is not None:
            lengths = list(zip(phases(sparse, training), (None, sparse.share(size)), strict=True))
        seen = training.batch_size * sum(planned_steps(epoch, own) for own, _ in lengths)
        kept, size_kept = False, 0.0
        if taught is not None and may_keep(taught) and seen >= LEAST_REPEATS * epoch:
            layers, low = len({layer for own in self.beside for layer in own}) or student.depth, precision == "bf16"
            size_kept = epoch * kept_bytes(
                teacher.config, taught.objective, layers=layers, tokens=tokens, low_precision=low
            )
            kept = size_kept <= 1e9 * taught.kept_gigabytes
        loops = [
            training_of(planned_steps(epoch, own), step(0.0 if kept else 1.0), look, own, parameters=size, share=share)
            for own, share in lengths
        ]
        weights = ahead.weights(self.start)
        return Cost(
            trainings=loops,
            passes=[
                *([replace(step(), flops=epoch * targets)] if kept else []),
                # How sure the teacher is of every input that is made of target text.
                *(
                    [replace(step(), kind="single", sequences=1, flops=lesson.unlabelled * teacher.flops(tokens))]
                    if taught is not None and taught.surest < 1
                    else []
                ),
            ],
            seconds=lesson.seconds + loading(ahead, self.start, self.start, *self._teachers),
            memory=held(size, trained=True)
            + (4 * size if sparse else 0.0)
            + sum(held(one.parameters["total"], trained=False) for one in teachers)
            + activations([student], training.batch_size, max(lesson.lengths)),
            disk=weights + (0.0 if sparse is None else 8.0 * sparse.share(size) * size),
            work=2 * max(loop.checkpoint_bytes for loop in loops) + 4 * size + (size_kept if kept else 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class StaticFitted:
    """What a classifier over static embeddings came to: the dev set's accuracy by strength."""

    dev: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Static(Stage[StaticFitted]):
    """A classifier over a teacher's static embeddings (`distillation.static`). Leaves "model"."""

    KIND: ClassVar[str] = "static"
    PARTS: ClassVar[tuple[str, ...]] = ("model",)

    teacher: Product
    labelled: Labelled

    def make(self, place: Place) -> StaticFitted:
        length = self.labelled.task.max_length
        data = self.labelled.to_learn_from(place)
        return StaticFitted(dev=write_static(place.path(self.teacher), data, place.output("model"), max_length=length))

    def model_of(self, part: str) -> Product:
        del part
        return self.teacher

    def cost(self, ahead: Ahead) -> Cost:
        check_static(self.labelled.task.kind)
        shape = ahead.shape(self.teacher)
        # Every token by itself, between the two special ones.
        passes = Passes(
            kind="score", teacher=shape, flops=shape.vocabulary * shape.flops(3), sequences=256, tokens=3,
        )  # fmt: skip
        return Cost(
            passes=[passes],
            seconds=loading(ahead, self.teacher),
            memory=2 * held(shape.parameters["total"], trained=False),
            disk=4.0 * DIMENSIONS * shape.vocabulary,
        )


@dataclass(frozen=True, kw_only=True)
class Wear(Stage[Nothing]):
    """A task teacher that was learnt beside its sources' SFTs, wearing one for good (section 3.3). Leaves "model"."""

    KIND: ClassVar[str] = "wear"
    PARTS: ClassVar[tuple[str, ...]] = ("model",)

    model: Product
    trimmed: Product
    sft: File | Product

    def make(self, place: Place) -> Nothing:
        # It was compared with its base when it was worn in training.
        model, trimmed = place.path(self.model), place.path(self.trimmed)
        dressed_copy(model, place.path(self.sft), output=place.output("model"), trimmed=trimmed, force_sfts=True)
        return Nothing()

    def model_of(self, part: str) -> Product:
        del part
        return self.model

    def cost(self, ahead: Ahead) -> Cost:
        size = ahead.weights(self.model)
        return Cost(seconds=loading(ahead, self.model, self.model), memory=2.0 * size, disk=size)


@dataclass(frozen=True, kw_only=True)
class Exchange(Stage[Nothing]):
    """A task model for a target: base, target's SFT and task's SFT (LT-SFT, section 3.2). Leaves "model"."""

    KIND: ClassVar[str] = "exchange"
    PARTS: ClassVar[tuple[str, ...]] = ("model",)

    model: Product
    """Learnt wearing the source's SFT."""
    task: Product
    """The SFT that was learnt."""
    language: File | Product
    base: Product

    def make(self, place: Place) -> Nothing:
        model, task, language, base = map(place.path, (self.model, self.task, self.language, self.base))
        exchanged_copy(model, task, language, base=base, output=place.output("model"))
        return Nothing()

    def model_of(self, part: str) -> Product:
        del part
        return self.model

    def cost(self, ahead: Ahead) -> Cost:
        size = ahead.weights(self.model)
        return Cost(seconds=loading(ahead, self.model, self.base), memory=3.0 * size, disk=size)
