"""The stages of the method: what each stands on, what it leaves, and which room does the work."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bistil.distillation.general import distill_general
from bistil.distillation.kept_teacher import kept_bytes
from bistil.distillation.static import DIMENSIONS, check_static, write_static
from bistil.distillation.student import choose_layers, copy_student, student_config
from bistil.distillation.task import LEAST_REPEATS, Fitting, may_keep
from bistil.distillation.task_data import TaskData, some
from bistil.distillation.task_folders import TaskOutputs, write_task_student, write_task_teacher
from bistil.distillation.terms import terms_of
from bistil.measuring.benchmark import MOST_TOKENS, ROUNDS, BenchmarkRow, benchmark
from bistil.measuring.evaluation import score_examples
from bistil.measuring.shape import EncoderShape
from bistil.models.families import family_of
from bistil.models.tokenizers import load_tokenizer, write_tokenizer
from bistil.models.writing import save_weights
from bistil.runs.agreement import answered_lines
from bistil.runs.cost import (
    LOAD_FIXED,
    LOAD_PER_BYTE,
    Ahead,
    Cost,
    Passes,
    ScoredFigures,
    Training,
    evaluations,
    held,
    loading,
)
from bistil.runs.data import Exam, HeldOut, Labelled, Rest, TargetText, sentences_of
from bistil.runs.stage import File, Place, Product, Stage, cosmetic, later
from bistil.runtime.artefacts import whole_folder
from bistil.runtime.devices import device_for
from bistil.settings.recipe import (
    AdaptSettings,
    FinetuneSettings,
    ObjectiveSettings,
    Phase1Settings,
    Phase2Settings,
    StudentSettings,
    TrainingSettings,
    TrimSettings,
)
from bistil.sparse.language import MOST_HELD_OUT, adapt, add_masked_lm_head, paper_steps
from bistil.sparse.training import phases
from bistil.sparse.wearing import dressed_copy, exchanged_copy
from bistil.tasks.metrics import Metrics, interval, resampled
from bistil.training.loop import planned_steps
from bistil.training.processes import one_process_first, processes
from bistil.vocabulary import kept_ids, trim_vocabulary
from bistil.vocabulary.restoring import restore_vocabulary

Texts = Mapping[str, tuple[File, ...]]
"""Per language, files of plain text."""
Sfts = Mapping[str, File | Product]
"""Per language, a sparse fine-tuning: a folder or hub name, or one that another stage learns."""
# Of each test set so many resamples are scored: all models alike, so that the gap between two has a paired interval.
RESAMPLES = 1000
# Of each set so many predictions are kept for people to look at, and so much of a text.
SHOWN, SHOWN_CHARACTERS = 6, 400
# What cost is measured on: so many sentences.
COST_EXAMPLES = 16

# What `cost` goes by, on an ordinary core: trimming (per byte, for most of a multilingual model is vocabulary), the
# passes over its texts in times of one tokenizing, and its proof; restoring; and what a score takes per feature.
TRIM_PER_BYTE, TRIM_TEXTS, VERIFY_PER_BYTE, RESTORE_PER_BYTE = 1.7e-8, 2.0, 2e-9, 1.5e-8
SCORE_PER_FEATURE = 1e-4
# What a mask costs per parameter, in units of a dense optimizer's work; and of a layer what is kept for the backward
# pass: values per token, in widths and in widths of the feed-forward map, and attention maps.
MASKED = 0.6
KEPT_WIDTHS, KEPT_FEED_FORWARDS, KEPT_MAPS = 10.0, 3.0, 2.0


def paths(texts: Texts, place: Place) -> dict[str, list[Path]]:
    """Where the texts are, per language; of those of which lines are held out the rest is written there."""
    return {language: text_paths(files, place) for language, files in texts.items()}


def text_paths(files: Sequence[File], place: Place) -> list[Path]:
    """The same for files of one language."""
    # Of each process its own: some stages are made by all processes, some by the first one alone.
    folder = place.work / f"text-{processes().process_index}"
    return [file.write(folder) if isinstance(file, Rest) else file.path for file in files]


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
            text_paths(self.text, place),
            place.output("sft"),
            language=self.language,
            settings=self.settings,
            work=place.work / "training",
            seed=self.seed,
            mask={} if self.head_only else None,
        )
        return Adapted(metrics=sft.provenance.metrics)

    def cost(self, ahead: Ahead) -> Cost:
        shape, text, training = ahead.shape(self.model), ahead.text(self.text, self.model), self.settings.training
        length = self.settings.block_length
        blocks = int(text.tokens // length)
        out = min(MOST_HELD_OUT, round(blocks * self.settings.held_out))
        steps = self.settings.steps or paper_steps(max(1, blocks - out), training.batch_size)
        # The output layer sees the masked tokens only: 15% of a block.
        forward = shape.flops(length) + 0.15 * length * 2.0 * shape.width * shape.vocabulary
        precision, device = ahead.settled(training)
        shared: dict[str, Any] = {"teacher": shape, "students": (shape,), "tokens": length, "device": device}
        step = Passes(
            kind="language", flops=3 * training.batch_size * forward, precision=precision,
            sequences=training.batch_size, **shared,
        )  # fmt: skip
        look = Passes(kind="score", flops=out * forward, sequences=training.batch_size, **shared) if out else None
        phases = [
            _training(steps, step, look, training, parameters=shape.parameters["total"], share=share)
            for share in ([self.settings.density] if self.head_only else [None, self.settings.density])
        ]
        sparse = self.settings.density * shape.parameters["total"]
        return Cost(
            trainings=phases,
            passes=[] if look is None else [look, look],
            seconds=text.seconds + loading(ahead, self.model),
            memory=held(shape.parameters["total"], trained=True)
            + 4 * shape.parameters["total"]
            + _activations([shape], training.batch_size, length, precision),
            disk=8.0 * sparse,
            work=2 * phases[0].checkpoint_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Headed(Stage[Adapted]):
    """A masked-LM head for an encoder that has none, learnt on text of several languages. Leaves "model"."""

    KIND: ClassVar[str] = "masked-lm-head"
    JOINT: ClassVar[bool] = True

    model: Product
    texts: Texts
    settings: AdaptSettings
    seed: int

    def parts(self) -> tuple[str, ...]:
        return ("model",)

    def make(self, place: Place) -> Adapted:
        head = add_masked_lm_head(
            str(place.path(self.model)),
            [path for own in paths(self.texts, place).values() for path in own],
            place.output("model"),
            languages=[*self.texts],
            settings=self.settings,
            work=place.work / "head",
            seed=self.seed,
        )
        return Adapted(metrics=head.provenance.metrics)

    def model_of(self, part: str) -> Product:
        del part
        return self.model

    def cost(self, ahead: Ahead) -> Cost:
        files = tuple(file for own in self.texts.values() for file in own)
        alone = Adapt(
            model=self.model, language="", text=files, settings=self.settings, head_only=True, seed=self.seed
        )  # fmt: skip
        return replace(alone.cost(ahead), disk=ahead.weights(self.model))


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
            paths(self.texts, place),
            output,
            settings=self.settings,
            seed=self.seed,
            language_sfts={language: place.path(sft) for language, sft in self.sfts.items()} or None,
            force_sfts=self.force_sfts,
            # Whoever plans a phase 1 of one language wants one.
            one_language=len(self.texts) == 1,
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

    def model_of(self, part: str) -> Product | None:
        return None if part == "record" else self.teacher

    def shape(self, part: str, ahead: Ahead) -> EncoderShape:
        teacher, own = ahead.shape(self.teacher), self.students[int(part)]
        return EncoderShape.of(student_config(teacher.config, choose_layers(teacher.depth, own), own))

    def cost(self, ahead: Ahead) -> Cost:
        teacher, training, settings = ahead.shape(self.teacher), self.settings.training, self.settings
        students = tuple(self.shape(str(number), ahead) for number in range(len(self.students)))
        texts = {language: ahead.text(files, self.teacher) for language, files in self.texts.items()}
        length = settings.block_length
        blocks = {language: int(text.tokens // length) for language, text in texts.items()}
        out = {
            language: min(
                settings.held_out_blocks or count,
                round(count * settings.held_out_shares.get(language, settings.held_out)),
            )
            for language, count in blocks.items()
        }
        steps = planned_steps(max(1, sum(blocks.values()) - sum(out.values())), training)
        # What lies above the layers that students learn from is not computed.
        top = max(max(choose_layers(teacher.depth, student)) for student in self.students)
        run = teacher if self.sfts or top == teacher.depth else teacher.with_layers([*range(1, top + 1)])
        small = sum(student.flops(length) for student in students)
        objectives = [student.objective or settings.objective for student in self.students]
        above = sum(map(_head_flops, objectives, students, [teacher] * len(students))) * length
        taught = any(_is_taught(objective) for objective in objectives)
        precision, device = ahead.settled(training)
        shared: dict[str, Any] = {
            "teacher": teacher, "students": students, "tokens": length, "precision": precision, "device": device,
        }  # fmt: skip
        step = Passes(
            kind="phase1", objective=objectives[0], sequences=training.batch_size,
            flops=training.batch_size * (taught * run.flops(length) + 3 * small + above), **shared,
        )  # fmt: skip
        measured = all(out.values())
        look = Passes(
            kind="score", flops=sum(out.values()) * (taught * run.flops(length) + small + above / 3),
            sequences=training.batch_size, **shared,
        ) if measured else None  # fmt: skip
        trained = float(sum(student.parameters["total"] for student in students))
        loop = _training(steps, step, look, training, parameters=trained)
        return Cost(
            trainings=[loop],
            # Once before and once after.
            passes=[] if look is None else [look, look],
            seconds=sum(text.seconds for text in texts.values())
            + loading(ahead, self.teacher)
            + 2 * LOAD_PER_BYTE * 4 * trained,
            memory=held(teacher.parameters["total"], trained=False)
            + held(trained, trained=True)
            + _activations(students, training.batch_size, length, precision),
            disk=sum(ahead.weights(self.product(str(number))) for number in range(len(students))),
            work=2 * loop.checkpoint_bytes + 4 * trained + 4 * sum(text.tokens for text in texts.values()),
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

        look = None if lesson.dev is None else _scoring(student, lesson.dev, device)
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
            _training(planned_steps(epoch, own), step(0.0 if kept else 1.0), look, own, parameters=size, share=share)
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
            + _activations([student], training.batch_size, max(lesson.lengths), precision),
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

    teacher: Product
    labelled: Labelled

    def parts(self) -> tuple[str, ...]:
        return ("model",)

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

    def model_of(self, part: str) -> File:
        del part
        return self.base

    def cost(self, ahead: Ahead) -> Cost:
        size = ahead.weights(self.base)
        return Cost(seconds=LOAD_FIXED + RESTORE_PER_BYTE * size, memory=3.0 * size, disk=size)


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

    model: Product
    """Learnt wearing the source's SFT."""
    task: Product
    """The SFT that was learnt."""
    language: File | Product
    base: Product

    def parts(self) -> tuple[str, ...]:
        return ("model",)

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


# Measuring


@dataclass(frozen=True, kw_only=True)
class Bare(Stage[Nothing]):
    """A student that has learnt nothing under a head of the task, to measure: what a model costs is its shape's."""

    KIND: ClassVar[str] = "bare"

    start: Copied
    labelled: Labelled

    def parts(self) -> tuple[str, ...]:
        return ("model",)

    def make(self, place: Place) -> Nothing:
        data, start = self.labelled.everything(place), self.start.folder(place)
        with whole_folder(place.output("model"), record={"kind": "task model"}) as folder:
            save_weights(data.task.build_model(start, data.labels), folder)
            write_tokenizer(load_tokenizer(str(start)), folder)
        return Nothing()

    def model_of(self, part: str) -> Product:
        del part
        return self.start.model

    def shape(self, part: str, ahead: Ahead) -> EncoderShape:
        del part
        return self.start.shape(ahead)

    def cost(self, ahead: Ahead) -> Cost:
        return Cost(
            seconds=loading(ahead, self.start.model, self.product("model")),
            memory=2.0 * ahead.weights(self.start.model),
            disk=ahead.weights(self.product("model")),
        )


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
    """Scores by part of the exam; some predictions, each as text, labels and what the model says."""

    parts: dict[str, Score]
    shown: dict[str, list[list[str]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage[Scored]):
    """Score a task model. Until here, test sets only say what must not be learnt from."""

    KIND: ClassVar[str] = "evaluate"

    model: Product
    exam: Exam
    device: str = cosmetic("auto")

    def make(self, place: Place) -> Scored:
        data, length = self.exam.labelled.everything(place), self.exam.labelled.task.max_length
        folder, found = place.path(self.model), Scored(parts={})
        for part, examples in self.exam.sets(place).items():
            metrics, said, _ = score_examples(folder, data.task, examples, max_length=length, device=self.device)
            found.parts[part] = Score.of(metrics)
            found.shown[part] = _shown(data, examples, said)
        return found

    def cost(self, ahead: Ahead) -> Cost:
        shape, sets, device = ahead.shape(self.model), ahead.scored(self.exam, self.model), device_for(self.device)
        return Cost(
            passes=[_scoring(shape, own, device) for own in sets],
            seconds=sum(own.seconds + SCORE_PER_FEATURE * own.features for own in sets)
            + loading(ahead, *[self.model] * len(sets)),
            memory=2 * held(shape.parameters["total"], trained=False),
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
class Agreed:
    """How far a model agrees with another one; no score where that one found nothing at all to say."""

    examples: int
    score: Score | None
    shown: list[list[str]] = field(default_factory=list)
    """Some predictions: text, what the other model says, what this one says."""


@dataclass(frozen=True, kw_only=True)
class Agree(Stage[Agreed]):
    """Score a task model against what another one says of text without labels."""

    KIND: ClassVar[str] = "agree"

    model: Product
    reference: Product
    text: HeldOut
    device: str = cosmetic("auto")

    def make(self, place: Place) -> Agreed:
        data, length = self.text.labelled.everything(place), self.text.labelled.task.max_length
        reference = place.path(self.reference)
        examples, said = place.read(
            ("answers", self.reference, self.text),
            lambda: answered_lines(
                reference,
                data.task,
                self.text.lines,
                max_length=length,
                pairs=any(getattr(example, "pair", None) is not None for example in data.train),
                seed=self.text.seed,
                device=self.device,
            ),
        )
        metrics, ours, _ = score_examples(
            place.path(self.model), data.task, examples, max_length=length, device=self.device
        )
        of_itself = data.task.score(examples, said, labels=data.labels)
        score = Score.of(metrics) if of_itself.scores[of_itself.primary] else None
        return Agreed(examples=len(examples), score=score, shown=_shown(data, examples, ours))

    def cost(self, ahead: Ahead) -> Cost:
        models, passes, seconds = (self.model, self.reference), [], 0.0
        count = len(self.text.lines)
        for model in models:
            shape, text = ahead.shape(model), ahead.text(self.text.files, model)
            tokens = text.tokens / max(text.lines, 1.0)
            passes.append(
                Passes(
                    kind="score", teacher=shape, sequences=32, tokens=tokens, device=device_for(self.device),
                    flops=count * shape.flops(tokens),
                )
            )  # fmt: skip
            seconds += SCORE_PER_FEATURE * count
        return Cost(
            passes=passes,
            seconds=seconds + loading(ahead, *models),
            memory=2 * held(max(ahead.shape(model).parameters["total"] for model in models), trained=False),
        )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What models cost, in their order."""

    rows: list[BenchmarkRow]


@dataclass(frozen=True, kw_only=True)
class Benchmark(Stage[Costs]):
    """Size and speed of all models in turn, on real text; the first is the reference of the speed ratios."""

    KIND: ClassVar[str] = "benchmark"
    ALONE: ClassVar[bool] = True

    models: tuple[Product, ...]
    text: Exam | tuple[File, ...]
    """A test set, or plain text."""
    examples: int = COST_EXAMPLES

    def make(self, place: Place) -> Costs:
        if isinstance(self.text, Exam):
            task = self.text.labelled.everything(place).task
            texts = [task.text_of(example) for own in self.text.sets(place).values() for example in own]
        else:
            texts = sentences_of(self.text)
        folders = {str(number): place.path(model) for number, model in enumerate(self.models)}
        return Costs(rows=list(benchmark(folders, texts=texts, examples=self.examples).values()))

    def cost(self, ahead: Ahead) -> Cost:
        shapes = [ahead.shape(model) for model in self.models]
        if isinstance(self.text, Exam):
            tokens = float(
                np.mean([length for own in ahead.scored(self.text, self.models[0]) for length in own.lengths])
            )
        else:
            text = ahead.text(self.text, self.models[0])
            tokens = min(MOST_TOKENS, text.tokens / max(text.lines, 1.0))
        # A pass to warm up, and one more per model to count its FLOPs.
        runs = self.examples * (ROUNDS + 2)
        return Cost(
            passes=[
                Passes(kind="single", teacher=one, sequences=1, tokens=tokens, flops=runs * one.flops(tokens))
                for one in shapes
            ],
            seconds=loading(ahead, *self.models),
            memory=held(sum(one.parameters["total"] for one in shapes), trained=False),
        )


def _shown(data: TaskData, examples: Sequence[Any], said: Sequence[Any]) -> list[list[str]]:
    """Some predictions, the same examples for every model."""
    task, labels = data.task, data.labels
    return [
        [
            task.text_of(one)[:SHOWN_CHARACTERS],
            task.in_words(one, labels=labels),
            task.in_words(one, own, labels=labels),
        ]
        for one, own in some([*zip(examples, said, strict=True)], SHOWN)
    ]


# What costs are made of


def _head_flops(objective: ObjectiveSettings, student: EncoderShape, teacher: EncoderShape) -> float:
    """FLOPs per token of the masked-LM heads in a training step: both models' at every token, the student's again to
    save memory and twice backwards; or the student's at the masked tokens."""
    ours, theirs = (2.0 * one.width * one.vocabulary for one in (student, teacher))
    return bool(objective.prediction) * (theirs + 4 * ours) + bool(objective.hard_labels) * 0.15 * 3 * ours


def _is_taught(objective: ObjectiveSettings) -> bool:
    return any(term.TAUGHT for term, _ in terms_of(objective))


def _training(
    steps: int, step: Passes, look: Passes | None, settings: TrainingSettings, *, parameters: float,
    share: float | None = None,
) -> Training:  # fmt: skip
    """A training loop.

    Args:
        step: but for its optimizer.
        look: an evaluation.
        parameters: that are trained; under a mask, of the model.
        share: of them that a mask leaves free; None: no mask.
    """
    # Under a mask every parameter is still copied and gets its gradient; moments exist for the free ones only.
    moved = parameters if share is None else parameters * (MASKED + share)
    return Training(
        steps=steps,
        step=replace(step, parameters=moved),
        evaluation=look,
        evaluations=0 if look is None else evaluations(steps, settings.evaluate_steps),
        checkpoints=steps // settings.checkpoint_steps,
        # Weights and two moments.
        checkpoint_bytes=12 * parameters * (1.0 if share is None else share),
    )


def _scoring(shape: EncoderShape, figures: ScoredFigures, device: str) -> Passes:
    """A pass over a set, in batches; always in float32."""
    lengths = figures.lengths
    return Passes(
        kind="score", teacher=shape, sequences=32, tokens=float(np.mean(lengths)), device=device,
        flops=figures.features * float(np.mean([shape.flops(length) for length in lengths])),
    )  # fmt: skip


def _activations(shapes: Sequence[EncoderShape], sequences: int, tokens: float, precision: str) -> float:
    """Bytes that a training step keeps for its backward pass, largest student by largest: they run one by one.

    Counted per layer in values of float32: what linear maps, norms and activations keep, and the attention maps.
    """
    del precision
    most = 0.0
    for shape in shapes:
        config, family = shape.config, family_of(shape.config)
        per_token = KEPT_WIDTHS * shape.width + KEPT_FEED_FORWARDS * family.feed_forward(config)
        per_token += KEPT_MAPS * family.heads(config) * tokens
        most += 4.0 * sequences * tokens * per_token * shape.depth
    return most
