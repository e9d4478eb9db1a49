"""What goes on record of a study: what it is, and each point when it is finished."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Any

from bistil.report.paper import DISTILMBERT, LRF2, LRF3, LTSFT
from bistil.report.studies import (
    RECORDS,
    PartRecord,
    PointRecord,
    SpeedRecord,
    SpeedRecords,
    StudyRecord,
    SystemRecord,
    WithdrawnRecord,
    append_record,
    known_records,
    read_records,
)
from bistil.runs.data import DEV
from bistil.runs.folder import Made, RunFolder, versions
from bistil.runs.stage import Stage
from bistil.runs.stages import Adapt, Distil, FineTune, Headed, Score
from bistil.runtime.artefacts import json_digest
from bistil.settings.recipe import TRIMMED_TEACHER
from bistil.settings.schema import StudentSettings, TrainingSettings
from bistil.settings.study import StudySettings, Variant
from bistil.study.plan import Study
from bistil.study.points import Point

# What the work of each kind of stage is called in a table of costs.
WORK = {
    "trim": "vocabulary",
    "masked-lm-head": "masked-LM head",
    "adapt": "language SFTs",
    "phase1": "phase 1",
    "static": "fine-tuning",
    "evaluate": "scoring",
}
# Decimals of resampled scores, which are most of a record.
DECIMALS = 3


# What the study is


def study_record(study: Study, file: str) -> StudyRecord:
    """A study's own record.

    Args:
        file: text of its file.
    """
    own = study.settings
    return StudyRecord(
        name=own.name,
        task=own.task.kind,
        source=own.source,
        targets=[*own.targets],
        systems={
            name: SystemRecord(kind=one.kind, what=described(one, own), reference=one.reference)
            for name, one in own.variants.items()
        },
        students={student.name: shape_in_words(student) for student in own.shapes},
        reference=own.reference,
        budgets=dict(_budgets(own)),
        parallel=own.parallel,
        note=own.note,
        points=sum(1 for _ in study.points()),
        teacher_learning_rate=own.finetune.training.learning_rate if study.taught else None,
        file=file,
        versions=versions(),
    )


def described(variant: Variant, settings: StudySettings) -> str:
    """A system in words, for people who have not read its settings."""
    return "; ".join(_facts(variant, settings))


def _facts(variant: Variant, settings: StudySettings) -> Iterator[str]:
    if variant.model == "static":
        yield "static embeddings of the teacher with trimmed vocabulary, by model2vec; a linear classifier from labels"
        return
    if variant.model == "teacher":
        yield "the undistilled teacher" + (", whole vocabulary" if variant.whole_vocabulary else ", trimmed vocabulary")
        if variant.language_sfts:
            yield "a task SFT over the source's language SFT, used over each target's"
        return
    if not variant.phase1:
        yield "copied layers, no phase 1"
    else:
        group = variant.phase1_group or ("each" if variant.groups == ["each"] else ", ".join(variant.groups))
        whose = "the targets alone" if variant.phase1_languages == "targets" else "source and targets"
        objective = variant.phase1_objective or settings.phase1.objective
        terms = [name for name in objective.WEIGHTS if getattr(objective, name)] + [*objective.terms]
        yield f"phase 1 on text of {whose} (group: {group}), losses: {', '.join(terms)}"
        if variant.start in ("random", "scratch"):
            yield "random layers" if variant.start == "random" else "nothing copied from the teacher"
    yield "phase 2 from the task teacher" if variant.teacher else "fine-tuned from labels"
    if variant.teacher and variant.target_text:
        yield "and on target text"


def shape_in_words(student: StudentSettings) -> str:
    """A student's layers and width."""
    if student.reduction is not None:
        depth = f"every layer whose number {student.reduction} divides"
    elif student.layers is not None:
        depth = f"layers {', '.join(map(str, student.layers))}"
    else:
        depth = f"{student.depth} layers, {student.spread}"
    return depth + (f", hidden size {student.hidden_size}" if student.hidden_size else "")


def _budgets(own: StudySettings) -> Iterator[tuple[str, str]]:
    def length(training: TrainingSettings) -> str:
        return f"{training.steps:,} steps" if training.steps is not None else f"{training.epochs:g} epochs"

    def examples(count: int | None) -> str:
        return "all" if count is None else f"{count:,} examples"

    phase1, text = own.phase1.training, own.phase2.target_text
    batch = f"{phase1.batch_size} x {own.phase1.block_length} tokens"
    tokens = (phase1.steps or 0) * phase1.batch_size * own.phase1.block_length
    yield "phase 1, per student", f"{length(phase1)} of {batch}{f', {tokens:,} tokens' if tokens else ''}"
    yield "labels, teacher", examples(own.teacher_examples)
    yield "labels, students", examples(own.student_examples)
    yield "fine-tuning, teacher", length(own.finetune.training)
    besides = f"; {text:g} batches of target text, or of labels, beside each labelled one" if text else ""
    yield "fine-tuning, students", length(own.phase2.training) + besides
    if own.search is not None:
        rates = f"{len(own.search.learning_rates)} learning rates"
        yield "search, per system and student", f"{rates} on the source's dev set, with the first seed"


# Points


def point_key(study: Study, point: Point) -> str:
    """Digest of everything that a point's scores depend on."""
    return json_digest(sorted(stage.key for stage in study.scores(point)))


def identity(study: Study, point: Point) -> dict[str, Any]:
    """What names a point in records."""
    student = study.student_of(point)
    return {
        "system": point.variant,
        "group": point.group,
        "student": None if student is None else student.name,
        "seed": point.seed,
    }


def point_record(study: Study, run: RunFolder, point: Point) -> PointRecord | None:
    """A finished point's record; None while a score is missing.

    Args:
        point: with its learning rate.
    """
    own, variant, student = study.settings, study.variant(point), study.student_of(point)
    scores: dict[str, Score] = {}
    for stage in study.scores(point):
        made = run.known(stage, whole=False)
        if made is None:
            return None
        scores.update(made.result.parts)
    source = f"{own.source}/dev"
    learning: Stage[Any] = study.fine_tuned(point)
    learnt = run.known(learning, whole=False)
    trained, phase1 = _trained(study, run, point), study.bilingual(point)
    return PointRecord(
        **identity(study, point),
        key=point_key(study, point),
        targets=list(own.groups[point.group]),
        shape=_shape(variant, student),
        paper=_in_paper(variant, student),
        learning_rate=point.learning_rate,
        search=_search(study, run, point),
        metric=next(iter(scores.values())).metric,
        scores={source if part == DEV else part: _part(one) for part, one in scores.items()},
        tokens={name: value for name, value in trained["tokens"].items() if value},
        seconds=trained["seconds"],
        steps={name: value for name, value in trained["steps"].items() if value},
        phase1_languages=[] if phase1 is None or phase1.settings.probabilities else [*phase1.texts],
        held_out=_held_out(study, run, point),
        precision=sorted(trained["precision"]),
        machine=learnt.machine if learnt else {},
        peak_memory_bytes=trained["peak"] or None,
    )


def _part(score: Score) -> PartRecord:
    return PartRecord(
        score=score.score,
        interval=score.interval,
        examples=score.examples,
        scores=score.scores,
        resamples=[round(value, DECIMALS) for value in score.resamples],
    )


def _shape(variant: Variant, student: StudentSettings | None) -> str:
    """The name in `Study.shapes`."""
    if student is not None:
        return student.name
    if variant.model == "static":
        return "static"
    return "teacher" if variant.whole_vocabulary else TRIMMED_TEACHER


def _in_paper(variant: Variant, student: StudentSettings | None) -> str | None:
    if variant.kind == "lt-sft":
        return LTSFT if variant.exchange else None
    if student is None or student.narrow:
        return None
    if variant.kind == "distilmbert" and student.reduction == 2:
        return DISTILMBERT
    if variant.kind == "bistil" and variant.teacher and not variant.target_text:
        return {2: LRF2, 3: LRF3}.get(student.reduction or 0)
    return None


def _search(study: Study, run: RunFolder, point: Point) -> dict[str, float]:
    if len(study.rates(point)) < 2:
        return {}
    found = {}
    for rate, (_, stage) in study.trials(point).items():
        made = run.known(stage, whole=False)
        if made is not None:
            found[f"{rate:g}"] = made.result.parts[DEV].score
    return found


def _held_out(study: Study, run: RunFolder, point: Point) -> dict[str, list[float]]:
    """The losses of the point's student at each evaluation of phase 1."""
    stage, product = study.bilingual(point), study.distilled(point)
    made = run.known(stage, whole=False) if stage is not None else None
    if made is None or product is None:
        return {}
    one = made.result.students[int(product.part)]
    history = [figures for figures in one.history if "loss" in figures]
    curve = {"steps": [figures["step"] for figures in history], "loss": [figures["loss"] for figures in history]}
    if "loss" in one.start and (not curve["steps"] or curve["steps"][0]):
        curve = {"steps": [0.0, *curve["steps"]], "loss": [one.start["loss"], *curve["loss"]]}
    return curve if curve["steps"] else {}


def _trained(study: Study, run: RunFolder, point: Point) -> dict[str, Any]:
    """Seconds, tokens and steps of all that a point stands on, by kind of work; and its trials, as the search."""
    own = study.fine_tuned(point)
    found: dict[str, Any] = {"seconds": {}, "tokens": {}, "steps": {}, "precision": set(), "peak": 0}

    def add(stage: Stage[Any], work: str) -> None:
        made = run.known(stage, whole=False)
        if made is None:
            return
        if isinstance(stage, (Adapt, Headed)):
            phases = 2 if isinstance(stage, Adapt) and not stage.head_only else 1
            steps = phases * int(made.result.metrics["steps of each phase"])
            batch = stage.settings.training.batch_size * stage.settings.block_length
            amounts = {"steps": steps, "tokens": steps * batch}
        else:
            amounts = _amounts(made)
        # One pass of the teacher serves all students of a phase 1.
        seconds = made.seconds / (len(stage.students) if isinstance(stage, Distil) else 1)
        found["seconds"][work] = round(found["seconds"].get(work, 0.0) + seconds, 2)
        found["peak"] = max(found["peak"], made.peak_memory)
        for name, value in amounts.items():
            found[name][work] = found[name].get(work, 0) + value
        phases_of = getattr(made.result, "phases", {}).values()
        formats = [getattr(made.result, "precision", None), *(one.get("precision") for one in phases_of if one)]
        found["precision"].update(filter(None, formats))

    stages = [*closure(study.scores(point))]
    for stage in stages:
        if isinstance(stage, FineTune):
            add(stage, "fine-tuning" if stage.key == own.key else "task teacher")
        else:
            add(stage, WORK.get(stage.KIND, "putting together"))
    known = {stage.key for stage in stages}
    if len(study.rates(point)) > 1:
        tried = [one for one, _ in study.trials(point).values()]
        # What all seeds and groups have of the search is counted where it was made.
        if (tried[0].group, tried[0].seed) == (point.group, point.seed):
            for stage in map(study.fine_tuned, tried):
                if stage.key not in known:
                    add(stage, "search")
    return found


def _amounts(made: Made[Any]) -> dict[str, int]:
    """Tokens and steps of a stage's trainings."""
    result = made.result
    phases = [one for one in getattr(result, "phases", {}).values() if one]
    return {
        name: int(getattr(result, name, None) or sum(one.get(name) or 0 for one in phases))
        for name in ("tokens", "steps")
    }


def closure(stages: Iterable[Stage[Any]]) -> Iterator[Stage[Any]]:
    """Stages and all that they stand on, each once."""
    seen: set[str] = set()
    left = list(stages)
    while left:
        stage = left.pop()
        if stage.key not in seen:
            seen.add(stage.key)
            yield stage
            left.extend(stage.stands_on())


# Writing them


class PointBook:
    """The records of a study's folder, kept up to date.

    Args:
        study: the study.
        run: its folder.
    """

    def __init__(self, study: Study, run: RunFolder) -> None:
        self.study, self.run, self.file = study, run, run.folder / RECORDS

    def open(self, text: str) -> None:
        """Say what the study is, and which points on record no longer hold.

        Args:
            text: the study's file.
        """
        header = study_record(self.study, text)
        known = known_records(self.run.folder)
        if known is None or known.study != header:
            append_record(self.file, header)
        planned = {tuple(identity(self.study, point).values()): point for point in self.study.points()}
        for record in known.points if known else []:
            point = planned.get(record.place)
            if point is not None:
                point = self.study.chosen(self.run, point)
            if point is None or point_key(self.study, point) != record.key:
                names = {f.name: getattr(record, f.name) for f in fields(WithdrawnRecord)}
                append_record(self.file, WithdrawnRecord(**names))

    def add(self, point: Point) -> None:
        """Put a finished point on record, if that is not there."""
        record = point_record(self.study, self.run, point)
        if record is None:
            return
        known = {one.place: one.key for one in read_records(self.run.folder).points}
        if known.get(record.place) != record.key:
            append_record(self.file, record)

    def add_speed(self) -> None:
        """Put sizes and speeds on record."""
        made = self.run.known(self.study.speed(), whole=False)
        if made is None:
            return
        names = [f.name for f in fields(SpeedRecord) if f.name != "name"]
        shapes = [
            SpeedRecord(name=name, **{key: value for key, value in asdict(row).items() if key in names})
            for name, row in zip(self.study.shapes(), made.result.rows, strict=True)
        ]
        record = SpeedRecords(shapes=shapes, threads=made.result.rows[0].threads)
        if read_records(self.run.folder).speed != {one.name: one for one in shapes}:
            append_record(self.file, record)
