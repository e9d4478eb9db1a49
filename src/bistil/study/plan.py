"""Studies: one task, several target languages; points are systems x groups x students x seeds.

One vocabulary, trimmed to all of a study's languages, serves all models, and one task teacher all students. A group is
the targets that share a student: with one target it is the paper's bilingual student. Everything is planned as values
of `method.Method`, like a recipe's run, so what points share is made once, and a changed study file redoes what follows
from the change.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bistil.distillation.checks import check_general
from bistil.distillation.student import choose_layers, depth_of
from bistil.distillation.task import check_fit
from bistil.distillation.task_data import read_task_data
from bistil.errors import InputError
from bistil.method import Method, numbered
from bistil.models.masked_lm import has_masked_lm_head, supported_config
from bistil.models.names import model_folder
from bistil.runs.data import DEV, Exam, Labelled, TargetText
from bistil.runs.folder import Name, RunFolder
from bistil.runs.inputs import labelled_digests, labelled_files, text_files
from bistil.runs.stage import File, Product, Stage
from bistil.runs.stages import Bare, Benchmark, Cover, Distil, Evaluate, Exchange, FineTune, Restore, Static
from bistil.runtime.artefacts import check_product, json_digest
from bistil.settings.recipe import TRIMMED_TEACHER, Phase1Settings, StudentSettings, TaskSettings, with_rate
from bistil.settings.study import StudySettings, Variant
from bistil.sparse.language import check_adapt
from bistil.study.points import Only, Point, points_of, seeds_of
from bistil.tasks.hub import labelled_digest, source_of

# Cost is measured on so many examples.
MEASURED = 50
# Kinds of stages whose products go when they are scored.
PASSING = (FineTune.KIND, Static.KIND, Exchange.KIND, Restore.KIND, Bare.KIND)


def study_at(file: Path, settings: StudySettings, data: Path | None = None) -> "Study":
    """A study with its teacher, and with all that can be known to be wrong found.

    Args:
        file: where the settings were read from.
        data: what its paths are relative to; none: its folder.

    Raises:
        BistilError: a missing or empty file, a teacher that cannot be used, a student that it cannot give.
    """
    data = data or file.parent
    own = data / settings.teacher
    teacher = model_folder(str(own) if own.is_dir() else settings.teacher)
    check_product(teacher)
    study = Study(settings, data, teacher)
    study.check()
    return study


@dataclass
class Study:
    """A study's stages as values.

    Args:
        settings: the study's file.
        data: folder that its files are relative to.
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
        return Method(
            teacher=File.at(self.teacher),
            texts=text_files({language: self._text(language) for language in (own.source, *own.targets)}),
            source=own.source,
            students=tuple(own.shapes),
            layers=tuple(tuple(choose_layers(depth, student)) for student in own.shapes),
            trim=own.trim,
            keep=None if own.trim.keep is None else text_files({"": [self.data / own.trim.keep]})[""][0],
            verify=False,
            phase1=own.phase1,
            finetune=own.finetune,
            phase2=own.phase2,
            selection=own.selection,
            labelled=labelled,
            labelled_for_students=replace(labelled, train_examples=own.student_examples),
            adapt=own.language,
            head=None if has_masked_lm_head(supported_config(self.teacher)) else own.head,
            teacher_seed=own.teacher_seed,
        )

    def check(self) -> None:
        """Find what stages would refuse after hours.

        Raises:
            BistilError: as those stages.
        """
        for language in (self.settings.source, *self.settings.targets):
            for path in self._text(language):
                if not path.is_file():
                    raise InputError(
                        f"{language!r} has no text: {path} is missing; put it there, or name files in text.{language}"
                    )
        configuration, length = supported_config(self.teacher), self.settings.task.max_length
        check_adapt(str(self.teacher), self.settings.language)
        headed = copy.deepcopy(configuration)
        # What needs a masked-LM head gets one.
        headed.architectures = ["EncoderForMaskedLM"]
        for stage in self._phases1.values():
            check_general(
                headed, stage.students, [*stage.texts], settings=stage.settings, language_sfts={},
                one_language=len(stage.texts) == 1,
            )  # fmt: skip
        check_fit(configuration, self.settings.finetune, max_length=length)
        if self.settings.parallel:
            self._check_parallel()

    def _check_parallel(self) -> None:
        """Sets of the same examples have as many of them, with the same labels.

        Raises:
            InputError: those of some targets have not, so that they cannot be resampled jointly.
        """
        first: dict[str, tuple[str, list[Any]]] = {}
        for part, examples in read_task_data(self._task(), source=self.settings.source, quiet=True).test.items():
            name = part.partition("/")[2]
            labels = [getattr(example, "label", None) for example in examples]
            other, expected = first.setdefault(name, (part, labels))
            if labels != expected:
                raise InputError(
                    f"parallel is true, but {part} and {other} do not hold the same examples: {len(labels)} and "
                    f"{len(expected)} of them, or other labels; put them into one order, or leave parallel out"
                )

    def read(self) -> list[str]:
        """Names of everything that the study reads."""
        languages = (self.settings.source, *self.settings.targets)
        texts = [str(path) for language in languages for path in self._text(language)]
        keep = [] if self.settings.trim.keep is None else [str(self.data / self.settings.trim.keep)]
        return [str(self.teacher), *texts, *keep, *map(source_of, labelled_files(self._task()))]

    def _text(self, language: str) -> list[Path]:
        return [self.data / file for file in self.settings.text.get(language) or [f"text/{language}.txt"]]

    def _task(self) -> TaskSettings:
        """The task with the study's files: dev and test sets of every target as "TARGET/PART"."""
        own = self.settings

        def located(files: Iterable[str]) -> list[str]:
            return [file if file.startswith("dataset:") else str(self.data / file) for file in files]

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
        """How the point's model is made."""
        return self.settings.variants[point.variant]

    def student_of(self, point: Point) -> StudentSettings | None:
        """The point's student; of a teacher none."""
        return None if point.number is None else self.settings.shapes[point.number]

    def points(self, only: Only | None = None) -> Iterator[Point]:
        """All points of the study, or those that are asked for; learning rates are not chosen."""
        return points_of(self.settings, only)

    # Stages

    @cached_property
    def _phases1(self) -> Mapping[str, Distil]:
        """Phase 1 of the points, by what they ask of it: one for all students that ask the same of the same text."""
        asked: dict[str, tuple[tuple[str, ...], Phase1Settings, dict[tuple[int, str], StudentSettings]]] = {}
        for point in self.points():
            if point.number is not None and self.variant(point).phase1:
                languages, settings, student = self._asked(point)
                place = (point.number, student.start)
                asked.setdefault(self._alike(point), (languages, settings, {}))[2].setdefault(place, student)
        found = {}
        for key, (languages, settings, students) in asked.items():
            ordered = tuple(self._named(students[place], place[0]) for place in sorted(students))
            found[key] = self.method.bilingual(languages, settings, ordered)
        return found

    def _asked(self, point: Point) -> tuple[tuple[str, ...], Phase1Settings, StudentSettings]:
        """Languages, settings and student of a point's phase 1."""
        variant, student = self.variant(point), self.student_of(point)
        assert student is not None
        languages = self.languages(variant.phase1_group or point.group)
        if variant.phase1_languages == "targets":
            languages = languages[1:]
        return languages, variant.phase1_settings(self.settings.phase1), variant.student(student)

    def _alike(self, point: Point) -> str:
        """What points have in common that may share a phase 1: text, settings, and whether it is masked."""
        languages, settings, student = self._asked(point)
        objective = student.objective or settings.objective
        # A student whose own losses give way to its variant's is another one, even where those are the study's.
        own = self.student_of(point)
        given_way = own is not None and own.objective != student.objective
        return repr((languages, settings, bool(objective.hard_labels), self._needs_head(objective), given_way))

    @staticmethod
    def _needs_head(objective: Any) -> bool:
        return bool(objective.hard_labels or objective.prediction)

    def _named(self, student: StudentSettings, number: int) -> StudentSettings:
        """A student under a name of its own beside the same one from another start."""
        own = self.settings.shapes[number].start
        return student if student.start == own else replace(student, name=f"{student.name}-{student.start}")

    def bilingual(self, point: Point) -> Distil | None:
        """The phase 1 that a student starts from; none for copied layers and teachers."""
        if point.number is None or not self.variant(point).phase1:
            return None
        return self._phases1[self._alike(point)]

    def distilled(self, point: Point) -> Product | None:
        """The student that phase 1 leaves for a point."""
        stage = self.bilingual(point)
        if stage is None or point.number is None:
            return None
        wanted = self._named(self._asked(point)[2], point.number)
        return stage.product(str([student.name for student in stage.students].index(wanted.name)))

    def fine_tuned(self, point: Point) -> FineTune | Static:
        """What makes a point's model: its fine-tuning, mostly."""
        own, variant, targets = self.settings, self.variant(point), self.settings.groups[point.group]
        if variant.model == "static":
            assert self.method.labelled is not None
            return Static(teacher=self.method.trimmed().product("model"), labelled=self.method.labelled)
        if point.number is None:
            settings = with_rate(variant.teacher_settings(own.finetune), point.learning_rate)
            if variant.language_sfts:
                return self.method.lt_sft(settings, point.seed)
            return self.method.fine_tuned_teacher(settings, point.seed)
        text = TargetText(
            texts={language: self.method.texts[language] for language in targets},
            left_out=self._kept_out,
            count=variant.target_sentences or own.target_sentences,
            lines=tuple(variant.lines),
        )
        return self.method.student(
            point.number,
            variant,
            languages=self.languages(variant.phase1_group or point.group),
            text=text,
            seed=point.seed,
            distilled=self.distilled(point),
            learning_rate=point.learning_rate,
        )

    def models(self, point: Point) -> dict[str, Product]:
        """The task models of a point, by the part that they are scored on; one for all parts, or one per target."""
        variant, learnt = self.variant(point), self.fine_tuned(point)
        model = learnt.product("model")
        parts = [f"{target}/{part}" for target in self.settings.groups[point.group]
                 for part in self.settings.targets[target]]  # fmt: skip
        if variant.language_sfts and variant.exchange:
            assert isinstance(learnt, FineTune)
            worn = {target: self.method.exchanged(learnt, target) for target in self.settings.groups[point.group]}
            found = {part: worn[part.partition("/")[0]] for part in parts}
            if variant.whole_vocabulary:
                found = {part: self.method.restored(one) for part, one in found.items()}
            return {DEV: model, **found}
        if variant.whole_vocabulary:
            model = self.method.restored(model)
        return dict.fromkeys((DEV, *parts), model)

    def scores(self, point: Point) -> list[Evaluate]:
        """Scores on the source's dev set, and on dev and test sets of the group's targets: a stage per model."""
        found: dict[str, tuple[Product, list[str]]] = {}
        for part, model in self.models(point).items():
            found.setdefault(model.stage.key, (model, []))[1].append(part)
        return [self._evaluate(model, parts) for model, parts in found.values()]

    def _evaluate(self, model: Product, parts: Iterable[str]) -> Evaluate:
        assert self.method.labelled is not None
        exam = Exam(labelled=self.method.labelled, parts=tuple(parts), examples=self.settings.test_examples)
        return Evaluate(model=model, exam=exam, device=self.settings.phase2.training.device)

    # The search for a learning rate

    def rates(self, point: Point) -> list[float]:
        """The learning rates that are tried; none: the settings' is taken."""
        search = self.settings.search
        if self.variant(point).model == "static":
            return []
        return self.variant(point).learning_rates or (search.learning_rates if search else [])

    def trials(self, point: Point) -> dict[float, tuple[Point, Evaluate]]:
        """Per rate, the point that tries it and its score on the source's dev set alone.

        A student's first seed in its variant's first group tries for all seeds and groups.
        """
        variant = self.variant(point)
        first = replace(
            point,
            group=self.settings.groups_of(variant)[0],
            seed=seeds_of(variant, self.settings)[0],
            learning_rate=None,
        )
        found = {}
        for rate in self.rates(point):
            tried = replace(first, learning_rate=rate)
            found[rate] = (tried, self._evaluate(self.fine_tuned(tried).product("model"), (DEV,)))
        return found

    def chosen(self, run: RunFolder, point: Point) -> Point | None:
        """A point with the learning rate that is best on dev, of equals the first; None while a trial is missing."""
        rates = self.rates(point)
        if len(rates) < 2:
            return replace(point, learning_rate=rates[0]) if rates else point
        scores = {}
        for rate, (_, stage) in self.trials(point).items():
            made = run.known(stage, whole=False)
            if made is None:
                return None
            scores[rate] = made.result.parts[DEV].score
        return replace(point, learning_rate=max(scores, key=lambda rate: scores[rate]))

    def stages(self, points: Iterable[Point], run: RunFolder | None = None) -> Iterator[Stage[Any]]:
        """Everything that points take, in the order in which it is made.

        Args:
            run: knows what was chosen; until then, a search is taken to choose the rate in the middle.
        """
        wanted = list(self._wanted(points, run))
        # Of points that are scored nobody trains, and their vocabulary may be gone.
        if any(run is None or run.known(stage, whole=False) is None for stage in wanted):
            yield self.coverage()
        yield from wanted

    def coverage(self) -> Cover:
        """Whether the vocabulary fits the study's files."""
        cover = self.method.coverage()
        assert cover is not None
        return cover

    def _wanted(self, points: Iterable[Point], run: RunFolder | None) -> Iterator[Stage[Any]]:
        """Trials and scores of points."""
        for point in points:
            found, rates = None if run is None else self.chosen(run, point), sorted(self.rates(point))
            if len(rates) > 1:
                yield from (stage for _, stage in self.trials(point).values())
            if found is None:
                found = replace(point, learning_rate=rates[len(rates) // 2]) if rates else point
            yield from self.scores(found)

    # What goes when it is scored

    def losers(self, settled: Point) -> list[Point]:
        """The points that tried another learning rate than the one that was chosen."""
        if len(self.rates(settled)) < 2:
            return []
        return [tried for rate, (tried, _) in self.trials(settled).items() if rate != settled.learning_rate]

    def passing(self, point: Point) -> dict[str, Stage[Any]]:
        """A point's models, by key, which go when it is scored; the students' teachers stay."""
        stages = {product.stage.key: product.stage for product in self.models(point).values()}
        below = {one.key: one for stage in stages.values() for one in stage.stands_on() if one.KIND in PASSING}
        found = below | stages | {self.fine_tuned(point).key: self.fine_tuned(point)}
        return {key: stage for key, stage in found.items() if key not in self.lasting}

    @cached_property
    def lasting(self) -> set[str]:
        """Keys of the students' teachers, which serve all points."""
        teachers = self._teachers()
        return {one.key for one in teachers} | {self.method.task_teacher(one).stage.key for one in teachers}

    @property
    def taught(self) -> list[Variant]:
        """The systems whose students learn from a task teacher."""
        return [one for one in self.settings.variants.values() if one.teacher and one.model == "student"]

    def _teachers(self) -> list[FineTune]:
        """As many fine-tuned teachers as any student learns from; at least the one that sizes are measured on."""
        return self.method.fine_tuned_teachers(
            max([1, *(one.teachers or self.settings.phase2.teachers for one in self.taught)])
        )

    # What models cost

    def shapes(self) -> dict[str, Product]:
        """Per name, a model of each size: the teacher whole and trimmed, and the students, that have learnt nothing."""
        assert self.method.labelled is not None
        teacher = self.method.fine_tuned_teacher().product("model")
        found = {"teacher": self.method.restored(teacher), TRIMMED_TEACHER: teacher}
        for number, student in enumerate(self.settings.shapes):
            bare = Bare(start=self.method.copied(number), labelled=self.method.labelled)
            found[student.name] = bare.product("model")
        return found

    def speed(self) -> Benchmark:
        """Size and speed of `shapes` on the first target's test set."""
        assert self.method.labelled is not None
        text = Exam(labelled=self.method.labelled, parts=(f"{next(iter(self.settings.targets))}/test",))
        return Benchmark(models=tuple(self.shapes().values()), text=text, examples=MEASURED)

    # Names

    def open(self, output: Path, *, look: bool = False) -> RunFolder:
        """The study's folder, which several processes may work in.

        Args:
            look: only to look at what is there.

        Raises:
            InputError: it holds something else.
        """
        return RunFolder(output, identity={"kind": "study"}, names=self.names, shared=True, look=look)

    @cached_property
    def names(self) -> dict[str, Name]:
        """What stages are called in progress lines; where their products lie is nobody's business."""
        found: dict[str, Name] = {}
        for key, label in self._labels():
            found.setdefault(key, Name(label))
        return found

    def _labels(self) -> Iterator[tuple[str, str]]:
        method = self.method
        yield method.trimmed().key, "vocabulary"
        yield self.coverage().key, "coverage"
        teachers = self._teachers()
        yield from zip((one.key for one in teachers), numbered("task teacher", len(teachers)), strict=True)
        if method.head is not None:
            yield method.masked_lm().stage.key, "masked-LM head"
        for language in method.texts:
            yield method.language_sft(language).key, f"language SFT, {language}"
        yield self.speed().key, "size and speed"
        for point in self.points():
            student, rates, variant = self.student_of(point), self.rates(point), self.variant(point)
            words = [point.variant] if student is None else [point.group, student.name, point.variant]
            for own in [replace(point, learning_rate=rate) for rate in rates] or [point]:
                tried = "" if own.learning_rate is None else f", rate {own.learning_rate:g}"
                label = f"{', '.join(words)}, seed {point.seed}{tried}"
                yield self.fine_tuned(own).key, label
                for part, model in self.models(own).items():
                    where = f"{label}, {part.partition('/')[0]}" if variant.language_sfts else label
                    yield model.stage.key, where
                    yield from ((one.key, where) for one in model.stage.stands_on() if one.KIND == Exchange.KIND)
                for stage in self.scores(own):
                    where = f", {stage.exam.parts[0].partition('/')[0]}" if variant.language_sfts else ""
                    yield stage.key, f"{label}{where}, scores"
            for rate, (_, stage) in self.trials(point).items():
                yield stage.key, f"{', '.join(words)}, rate {rate:g} on dev"
            if (distil := self.bilingual(point)) is not None:
                yield distil.key, f"phase 1, {', '.join(distil.texts)}, {', '.join(s.name for s in distil.students)}"
