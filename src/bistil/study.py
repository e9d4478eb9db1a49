"""Studies: one task, several target languages; points are groups x students x variants x seeds.

One vocabulary, trimmed to all of a study's languages, serves all models, and one task teacher all targets. A group is
the targets that share a student: with one target it is the paper's bilingual student. Everything is planned as values
of `method.Method`, like a recipe's run, so what points share is made once, and a changed study file redoes what follows
from the change.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bistil.distillation.student import choose_layers, depth_of
from bistil.method import Method
from bistil.runs.data import DEV, Exam, Labelled, TargetText
from bistil.runs.folder import Name, RunFolder
from bistil.runs.forecast import Forecast, Forecaster
from bistil.runs.inputs import labelled_digests, text_files
from bistil.runs.stage import File, Product
from bistil.runs.stages import Distil, Evaluate, FineTune, Score
from bistil.runtime.artefacts import json_digest
from bistil.settings.schema import TaskSettings
from bistil.settings.study import StudySettings, Variant
from bistil.tasks.hub import labelled_digest
from bistil.tasks.metrics import interval

UNDISTILLED, TRIM_ONLY = "undistilled", "trim only"


@dataclass(frozen=True)
class Point:
    """One model of a study: a student's number, or none for the task teacher, which all groups share."""

    group: str
    number: int | None
    variant: str
    seed: int


@dataclass
class Study:
    """A study's stages as values.

    Args:
        settings: the study's file.
        data: folder that its labelled files, and text/LANGUAGE.txt, are in.
        teacher: folder of the multilingual model.
    """

    settings: StudySettings
    data: Path
    teacher: Path

    @cached_property
    def method(self) -> Method:
        """The method with this study's settings."""
        own = self.settings
        depth = depth_of(self.teacher)
        labelled = Labelled(
            task=self._task(),
            source=own.source,
            digests=labelled_digests(self._task()),
            left_out=self._kept_out,
            train_examples=own.teacher_examples,
            dev_examples=own.dev_examples,
        )
        languages = (own.source, *own.targets)
        return Method(
            teacher=File.at(self.teacher),
            texts=text_files({language: [self.data / f"text/{language}.txt"] for language in languages}),
            source=own.source,
            students=tuple(own.students),
            layers=tuple(tuple(choose_layers(depth, student)) for student in own.students),
            verify=False,
            phase1=own.phase1,
            finetune=own.finetune,
            phase2=own.phase2,
            labelled=labelled,
            labelled_for_students=replace(labelled, train_examples=own.student_examples),
            teacher_seed=own.teacher_seed,
        )

    def _task(self) -> TaskSettings:
        """The task with the study's files: dev and test sets of every target as "TARGET/PART"."""
        own = self.settings

        def located(files: Iterable[str]) -> list[str]:
            return [str(self.data / file) for file in files]

        tests = {
            f"{target}/{part}": located([file]) for target, files in own.targets.items() for part, file in files.items()
        }
        return replace(own.task, train=located(own.task.train), dev=located(own.task.dev), test=tests)

    @cached_property
    def _kept_out(self) -> str:
        """Evaluation sets decide what may be learnt from; here they count as wholes, so that planning reads no text."""
        task = self._task()
        return json_digest(
            [labelled_digest(file) for file in [*task.dev, *(file for own in task.test.values() for file in own)]]
        )

    def languages(self, group: str) -> tuple[str, ...]:
        """Source and targets of a group."""
        return (self.settings.source, *self.settings.groups[group])

    def variant(self, point: Point) -> Variant:
        """The point's variant; of a teacher none."""
        return self.settings.variants[point.variant]

    def points(
        self,
        groups: Collection[str] | None = None,
        variants: Collection[str] | None = None,
        students: Collection[str] | None = None,
        seeds: Collection[int] | None = None,
    ) -> Iterator[Point]:
        """All students of the study, or those of some groups, variants, students and seeds."""
        for name, variant in self.settings.variants.items():
            for group in variant.groups:
                for number, student in enumerate(self.settings.students):
                    for seed in variant.seeds or self.settings.seeds:
                        asked = ((groups, group), (variants, name), (students, student.name), (seeds, seed))
                        allowed = not variant.students or student.name in variant.students
                        if allowed and all(not some or one in some for some, one in asked):
                            yield Point(group, number, name, seed)

    def teachers(self, group: str) -> list[Point]:
        """The task teacher with its whole and with the trimmed vocabulary."""
        return [Point(group, None, name, self.settings.teacher_seed) for name in (UNDISTILLED, TRIM_ONLY)]

    # Stages

    def bilingual(self, point: Point) -> Distil | None:
        """The phase 1 that a student starts from; none for copied layers and teachers."""
        if point.number is None or not self.variant(point).phase1:
            return None
        variant = self.variant(point)
        languages = self.languages(variant.phase1_group or point.group)
        return self.method.bilingual(languages, variant.phase1_settings(self.settings.phase1))

    def student(self, point: Point) -> FineTune:
        """The student of a point, fine-tuned."""
        assert point.number is not None
        variant, targets = self.variant(point), self.settings.groups[point.group]
        text = TargetText(
            texts={language: self.method.texts[language] for language in targets},
            left_out=self._kept_out,
            count=variant.target_sentences or self.settings.target_sentences,
            lines=tuple(variant.lines),
        )
        languages = self.languages(variant.phase1_group or point.group)
        return self.method.student(point.number, variant, languages=languages, text=text, seed=point.seed)

    def model(self, point: Point) -> Product:
        """The task model of a point."""
        if point.variant == UNDISTILLED:
            return self.method.undistilled().product("model")
        if point.variant == TRIM_ONLY:
            return self.method.task_teacher()
        return self.student(point).product("model")

    def score(self, point: Point) -> Evaluate:
        """Scores on the source's dev set, and on dev and test sets of the group's targets (a teacher's: of all)."""
        assert self.method.labelled is not None
        targets = self.settings.targets if point.number is None else self.settings.groups[point.group]
        parts = tuple(f"{target}/{part}" for target in targets for part in self.settings.targets[target])
        exam = Exam(labelled=self.method.labelled, parts=(DEV, *parts), examples=self.settings.test_examples)
        return Evaluate(model=self.model(point), exam=exam, device=self.settings.phase2.training.device)

    # Doing and reading

    def open(self, output: Path) -> RunFolder:
        """The study's folder, which several processes may work in.

        Raises:
            InputError: it holds something else.
        """
        return RunFolder(output, identity={"kind": "study"}, names=dict(self._names()), shared=True)

    def _names(self) -> Iterator[tuple[str, Name]]:
        """What stages are called in progress lines; where their products lie is nobody's business."""
        own = self.settings
        for point in [*self.teachers(next(iter(own.groups))), *self.points()]:
            words = [point.variant, f"seed {point.seed}"]
            if point.number is not None:
                words = [point.group, own.students[point.number].name, *words]
            label = f"{own.name}, {', '.join(words)}"
            yield self.model(point).stage.key, Name(label)
            yield self.score(point).key, Name(f"{label}, scores")
            if (distil := self.bilingual(point)) is not None:
                length = "" if self.variant(point).phase1_length == 1 else f" x {self.variant(point).phase1_length:g}"
                yield distil.key, Name(f"{own.name}, phase 1{length}, {', '.join(distil.texts)}")

    def run(self, output: Path, points: Iterable[Point]) -> None:
        """Make and score models; each student is removed when it has its scores.

        Raises:
            BistilError: as the stages.
        """
        wanted = list(points)
        with self.open(output) as run:
            forecaster = Forecaster(run)
            run.on_made = forecaster.made
            forecaster.announce(map(self.score, wanted))
            for point in wanted:
                run.make(self.score(point))
                if point.number is not None:
                    run.drop(self.student(point))

    def forecast(self, points: Iterable[Point], output: Path | None = None) -> Forecast:
        """What it will take to make and score models: steps, time, memory and disk per stage.

        Args:
            output: the study's folder, there or not: what it has is not done again.
        """
        names, look = dict(self._names()), None
        if output is not None and (output / "stages").is_dir():
            look = RunFolder(output, identity={}, names=names, shared=True, look=True)
        return Forecaster(look, names=names).forecast(map(self.score, points))

    def scores(self, run: RunFolder, point: Point) -> dict[str, Score] | None:
        """A point's scores by part ("SOURCE/dev", "TARGET/dev", ...), if they are there."""
        made = run.known(self.score(point), whole=False)
        if made is None:
            return None
        return {f"{self.settings.source}/dev" if part == DEV else part: one for part, one in made.result.parts.items()}


def mean_gap(rows: Iterable[Iterable[Score]], reference: Iterable[Score]) -> tuple[float, float, float]:
    """Mean over sets and seeds of the gap to a reference, with the 95% interval of resampled sets, in points.

    Args:
        rows: per seed, a score per set.
        reference: a score per set.
    """
    references = list(reference)
    pairs = [pair for row in rows for pair in zip(row, references, strict=True)]
    gaps = [one.gap(other)[0] for one, other in pairs]
    resampled = [np.subtract(one.resamples, other.resamples) for one, other in pairs]
    return float(np.mean(gaps)), *interval(np.mean(resampled, axis=0))
