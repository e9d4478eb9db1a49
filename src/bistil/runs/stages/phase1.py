"""Phase 1: general bilingual distillation (paper, section 3.2)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bistil.distillation.general import distill_general
from bistil.distillation.student import choose_layers, student_config
from bistil.measuring.shape import EncoderShape
from bistil.runs.cost import LOAD_PER_BYTE, Ahead, Cost, Passes, held, loading
from bistil.runs.data import Sfts, Texts, paths
from bistil.runs.stage import Place, Product, Stage
from bistil.runs.stages.work import activations, head_flops, is_taught, training_of
from bistil.runtime.artefacts import whole_folder
from bistil.settings.recipe import Phase1Settings, StudentSettings
from bistil.training.loop import planned_steps
from bistil.training.processes import processes


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
        above = sum(map(head_flops, objectives, students, [teacher] * len(students))) * length
        taught = any(is_taught(objective) for objective in objectives)
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
        loop = training_of(steps, step, look, training, parameters=trained)
        return Cost(
            trainings=[loop],
            # Once before and once after.
            passes=[] if look is None else [look, look],
            seconds=sum(text.seconds for text in texts.values())
            + loading(ahead, self.teacher)
            + 2 * LOAD_PER_BYTE * 4 * trained,
            memory=held(teacher.parameters["total"], trained=False)
            + held(trained, trained=True)
            + activations(students, training.batch_size, length),
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
