"""What a run came to, for the report: the records of its stages put together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from bistil.measuring.benchmark import BenchmarkRow
from bistil.report.schema import (
    SCHEMA,
    AgreementRecord,
    CoverageRecord,
    CurveRecord,
    DataRecord,
    ModelRecord,
    ShownPrediction,
    StageRecord,
    Summary,
)
from bistil.runs.data import labelled_parts
from bistil.runs.folder import Made, RunFolder
from bistil.runs.inputs import Inputs
from bistil.runs.stage import Product
from bistil.runs.stages import Agree, Agreed, Benchmark, BilingualStudent, Cover, Distil, Evaluate, Guess, Score
from bistil.settings.recipe import TRIMMED_TEACHER, Recipe
from bistil.tasks import get_task
from bistil.vocabulary.coverage import TextCoverage

Role = Literal["teacher", "trimmed", "copied", "student", "baseline"]


@dataclass(frozen=True)
class Candidate:
    """A task model that is evaluated: a line of the final table."""

    name: str
    role: Role
    model: Product
    place: str
    """Of its folder, relative to the run's."""
    measured_as: str
    """The candidate of the same shape that stands for its size and speed."""


class Planned(Protocol):
    """What a summary needs of a plan."""

    @property
    def candidates(self) -> list[Candidate]: ...

    def coverage(self) -> Cover | None: ...

    def bilingual(self) -> Distil: ...

    def scores(self) -> Mapping[str, Evaluate | Guess]: ...

    def agreements(self) -> Mapping[str, Agree]: ...

    def costs(self) -> Benchmark: ...


def summarise(recipe: Recipe, inputs: Inputs, plan: Planned, run: RunFolder) -> Summary:
    """The summary of a run whose stages are all done.

    Versions and machine are those that made the stages, whenever that was.
    """
    bilingual, cover = run.make(plan.bilingual()).result, plan.coverage()
    covered = {} if cover is None else run.make(cover).result.files
    scores = {name: run.make(stage).result.parts for name, stage in plan.scores().items()}
    agreed = {name: run.make(stage).result for name, stage in plan.agreements().items()}
    costs: dict[str, BenchmarkRow] = {}
    if plan.candidates:
        measured = [one.name for one in plan.candidates if one.name == one.measured_as]
        costs = dict(zip(measured, run.make(plan.costs()).result.rows, strict=True))
    reference = scores[plan.candidates[0].name].get(recipe.target) if plan.candidates else None
    lines = {one.name: one for one in plan.candidates}
    task = get_task(recipe.task.kind) if recipe.task else None
    return Summary(
        schema=SCHEMA,
        name=recipe.name,
        task=task.kind if task else "",
        pipeline_tag=task.pipeline_tag if task else None,
        usage=task.usage if task else None,
        seed=recipe.seed,
        source=recipe.source,
        target=recipe.target,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_together(made.versions for made in run.results),
        machine=_together(made.machine for made in run.results),
        models=[
            _model_record(
                name,
                lines.get(name),
                str(run.path(lines[name].model).relative_to(run.folder)) if name in lines else None,
                parts.get(recipe.source),
                parts.get(recipe.target),
                None if name == plan.candidates[0].name else reference,
                agreed[name].score if name in agreed else None,
                costs.get(lines[name].measured_as) if name in lines else None,
                next(iter(parts.values())).metric if parts else "",
            )
            for name, parts in scores.items()
            # No span is found by the most frequent tag: a score of 0 would say nothing.
            if name in lines or not parts or any(part.score for part in parts.values())
        ],
        stages=[_stage_record(made) for made in run.results],
        coverage={name: _coverage_record(one) for name, one in covered.items()},
        agreement=_agreement(recipe, agreed),
        phase1={
            student.name: curve
            for student, own in zip(recipe.students, bilingual.students, strict=True)
            if (curve := _curve(own)) is not None
        },
        data=_data_records(recipe, inputs),
    )


def _together(facts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Each fact with all values that the stages have of it, in the order of the stages."""
    found: dict[str, dict[str, None]] = {}
    for one in facts:
        for name, value in one.items():
            found.setdefault(name, {})[value] = None
    return {name: ", ".join(values) for name, values in found.items()}


def _stage_record(made: Made[object]) -> StageRecord:
    return StageRecord(
        name=made.name,
        seconds=made.seconds,
        peak_memory_bytes=made.peak_memory,
        skipped=made.skipped,
        versions=made.versions,
        machine=made.machine,
    )


def _model_record(
    name: str,
    model: Candidate | None,
    folder: str | None,
    source: Score | None,
    target: Score | None,
    reference: Score | None,
    agreement: Score | None,
    cost: BenchmarkRow | None,
    metric: str,
) -> ModelRecord:
    """One line of the table. A baseline's copy of a student has its shape, so its size and speed are the student's."""
    gap = target.gap(reference) if target and reference else None
    return ModelRecord(
        name=name,
        role=model.role if model else "baseline",
        folder=folder,
        metric=metric,
        # Scores are in percent in the tasks, 0 to 1 in records.
        source_score=source.score / 100 if source else None,
        source_interval=[value / 100 for value in source.interval] if source else None,
        source_scores=_shares(source),
        target_score=target.score / 100 if target else None,
        target_interval=[value / 100 for value in target.interval] if target else None,
        target_scores=_shares(target),
        gap_to_teacher=gap[0] / 100 if gap else None,
        gap_interval=[value / 100 for value in gap[1:]] if gap else None,
        agreement=agreement.score / 100 if agreement else None,
        agreement_interval=[value / 100 for value in agreement.interval] if agreement else None,
        parameters=cost.parameters if cost else None,
        bytes=cost.bytes if cost else None,
        vocabulary=cost.vocabulary if cost else None,
        layers=cost.layers if cost else None,
        milliseconds=cost.milliseconds if cost else None,
        speed_ratio=cost.speed_ratio if cost else None,
        speed_ratio_range=cost.speed_ratio_range if cost else None,
        flops=cost.flops if cost else None,
    )


def _shares(score: Score | None) -> dict[str, float]:
    """All figures of a set beside the first, 0 to 1."""
    if score is None:
        return {}
    return {name: value / 100 for name, value in score.scores.items() if name != score.metric}


def shown_predictions(recipe: Recipe, plan: Planned, run: RunFolder) -> list[ShownPrediction]:
    """What some models say of a few examples of the target, or else of the source: for the report of this run alone."""
    names = [one.name for one in plan.candidates if one.role in ("teacher", "student")]
    agreements, scores = plan.agreements(), plan.scores()
    rows: dict[str, list[list[str]]] = {}
    for name in names:
        if name in agreements:
            rows[name] = run.make(agreements[name]).result.shown
        elif not agreements and isinstance(stage := scores.get(name), Evaluate):
            parts = run.make(stage).result.shown
            rows[name] = parts.get(recipe.target) or parts.get(recipe.source) or []
    found = []
    for i, (text, wanted, _) in enumerate(next(iter(rows.values()), [])):
        said = {name: own[i][2] for name, own in rows.items() if own}
        if agreements:
            said = {names[0]: wanted, **said}
        found.append(ShownPrediction(text=text, wanted="" if agreements else wanted, said=said))
    return found


def _agreement(recipe: Recipe, agreed: Mapping[str, Agreed]) -> AgreementRecord | None:
    """What stands for scores of the target where there are no labels of it; None where there are."""
    if recipe.task is None or recipe.target in recipe.task.test:
        return None
    if not agreed:
        kind = recipe.task.kind
        plain = get_task(kind).of_plain_text
        why = "there is too little text of it to hold some out" if plain else f"{kind} needs more than text: questions"
        return AgreementRecord(examples=0, why=why)
    own = agreed[TRIMMED_TEACHER]
    if own.score is None:
        return AgreementRecord(examples=own.examples, why="the teacher finds nothing in the text that is held out")
    return AgreementRecord(
        metric=own.score.metric,
        examples=own.examples,
        trimmed=own.score.score / 100,
        trimmed_interval=[value / 100 for value in own.score.interval],
    )


def _coverage_record(one: TextCoverage) -> CoverageRecord:
    (fertility, trimmed_fertility), (unknown, trimmed_unknown) = one.fertility, one.unknown_shares
    return CoverageRecord(
        loses=one.loses,
        texts=one.texts,
        of=one.of,
        unit=one.unit,
        words=one.words,
        fertility=fertility,
        trimmed_fertility=trimmed_fertility,
        unknown=unknown,
        trimmed_unknown=trimmed_unknown,
        changed=one.changed_share,
        missing=one.missing,
        missing_characters=one.missing_characters,
    )


def _curve(student: BilingualStudent) -> CurveRecord | None:
    """Held-out loss over steps; step 0 is the start. None without held-out text."""
    start = {key: value for key, value in student.start.items() if key.endswith("/loss")}
    points = [{"step": 0.0, **start}, *student.history]
    if not start:
        return None
    return CurveRecord(
        steps=[int(point["step"]) for point in points],
        losses={key.removesuffix("/loss"): [point[key] for point in points] for key in start},
    )


def _data_records(recipe: Recipe, inputs: Inputs) -> dict[str, DataRecord]:
    """What was read, by file name."""
    records = {}
    for language, files in inputs.texts.items():
        for number, file in enumerate(files, 1):
            name = f"text, {language}" + (f", {number}" if len(files) > 1 else "")
            records[name] = DataRecord(language=language, sha256=file.digest)
    if recipe.task is not None and inputs.labelled is not None:
        for one in labelled_parts(recipe.task, recipe.source):
            alone = one.name == f"{one.kind}, {one.language}"
            records[one.name] = DataRecord(
                language=one.language,
                examples=inputs.counts.get(f"{one.kind}.{one.language}.examples") if alone else None,
                sha256=inputs.labelled.digests[one.path],
            )
    return records
