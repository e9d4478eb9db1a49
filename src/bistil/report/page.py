"""`report.html`: one offline file out of a summary."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bistil.report import numbers
from bistil.report.schema import ModelRecord, ShownPrediction, Summary
from bistil.report.table import agreement_note, texts_of
from bistil.runtime.artefacts import claim, whole_file
from bistil.runtime.ownership import CREATOR

ROLES = {
    "teacher": "undistilled teacher",
    "trimmed": "teacher, trimmed vocabulary",
    "copied": "copied layers, undistilled",
    "student": "distilled student",
    "baseline": "baseline",
}


@dataclass(frozen=True)
class Card:
    """The three figures of one student."""

    name: str
    smaller: str
    faster: str
    third: str
    of_third: str
    """What that is, with its interval."""


def write_report(summary: Summary, path: Path, *, shown: Sequence[ShownPrediction] = (), replace: bool = False) -> None:
    """Write the report: headline, table, figures, cost of the stages, versions. One file that loads nothing.

    The same summary gives the same bytes.

    Args:
        shown: predictions to look at. They hold sentences of the data, so a report that is published has none.
        replace: an earlier report gives way.

    Raises:
        InputError: something else is there, or a report and `replace` is false.
    """
    claim(files=[path], force=replace)
    # matplotlib is slow to import, and only a page needs it.
    from bistil.report.figures import phase1_figure, scores_figure, tradeoff_figure

    figures = {
        name: None if drawn is None else Markup(drawn)
        for name, drawn in (
            ("tradeoff", tradeoff_figure(summary)),
            ("scores", scores_figure(summary)),
            ("phase1", phase1_figure(summary)),
        )
    }
    page = rendered(
        "report.html.jinja",
        summary=summary,
        headline=headline(summary),
        cards=[_card(student, summary) for student in summary.students],
        figures=figures,
        roles=ROLES,
        creator=CREATOR,
        n=numbers,
        gap=summary.gap,
        measured=any(model.target_score is not None for model in summary.models),
        agreed=any(model.agreement is not None for model in summary.models),
        details=_details(summary),
        shown=shown,
        # Columns that nothing has are left out.
        counted={
            name: any(getattr(one, name) is not None for one in summary.data.values())
            for name in ("language", "examples", "tokens")
        },
        agreement_note=agreement_note(summary),
        lost=[name for name, one in summary.coverage.items() if one.loses],
        sampled=any(one.texts < one.of for one in summary.coverage.values()),
        coverage_note=coverage_note(summary),
        code=loading_code(summary),
        slowest=max((stage.seconds or 0 for stage in summary.stages), default=0) or 1,
        total=sum(stage.seconds or 0 for stage in summary.stages),
        peak=max((stage.peak_memory_bytes or 0 for stage in summary.stages), default=0) or None,
    )
    with whole_file(path, replace=replace) as partial:
        partial.write_text(page, encoding="utf-8")


def rendered(template: str, **values: Any) -> str:
    """A page of this package's templates; what it is given is escaped but for `Markup`."""
    environment = Environment(
        loader=PackageLoader("bistil.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def best_student(summary: Summary) -> ModelRecord | None:
    """The student with the best target score; without any, with the best source score; of equals, the faster one."""

    def rank(student: ModelRecord) -> tuple[float, float, float]:
        scores = (student.target_score, student.source_score)
        return *(-1.0 if score is None else score for score in scores), student.speed_ratio or 0.0  # type: ignore[return-value]

    return max(summary.students, key=rank, default=None)


def headline(summary: Summary) -> str:
    """What the run achieved, in one sentence, about its best student."""
    student, teacher = best_student(summary), summary.teacher
    if student is None:
        return f"{summary.name}: no distilled student was scored"
    score, gap = _score_words(student, summary), summary.gap(student)
    if teacher is None:
        return f"The student {student.name} {score}"
    facts = []
    size = _ratio(teacher.parameters, student.parameters)
    if size is not None:
        facts.append(f"{size:.1f} times smaller" if size >= 1 else f"{1 / size:.1f} times larger")
    if student.speed_ratio is not None:
        speed = student.speed_ratio
        facts.append(f"{speed:.1f} times faster" if speed >= 1 else f"{1 / speed:.1f} times slower")
    what = (
        f"The student {student.name} is {' and '.join(facts)} than the teacher"
        if facts
        else f"The student {student.name}"
    )
    joint = " and " if facts else " "
    return f"{what}{joint}{score}" + ("" if gap is None else f", {_gap_words(gap, student.gap_interval)}")


def _score_words(student: ModelRecord, summary: Summary) -> str:
    """What a student scores; without labels of the target language what is known of the source's."""
    if student.target_score is not None:
        where = f"({summary.source} to {summary.target})"
        how = "" if summary.target_labels else "zero-shot "
        return f"scores {numbers.score_text(student.target_score)}% {how}{student.metric} {where}"
    unknown = f"without test data of {summary.target} its score there is unknown{_agreement_words(student, summary)}"
    if student.source_score is None:
        return f"was not scored: {unknown}"
    score = f"scores {numbers.score_text(student.source_score)}% {student.metric} in {summary.source}"
    if summary.teacher is not None and summary.teacher.source_score is not None:
        score += f" (the teacher {numbers.score_text(summary.teacher.source_score)}%)"
    return f"{score}; {unknown}"


def _agreement_words(student: ModelRecord, summary: Summary) -> str:
    """What stands for a score where there are no labels of the target, and that it is none."""
    how = summary.agreement
    if student.agreement is None or how is None:
        return ""
    interval = numbers.interval_text(student.agreement_interval).strip("[]").replace(" ", " to ")
    return (
        f"; on {texts_of(how)} without labels it agrees with the teacher to {numbers.score_text(student.agreement)}% "
        f"({how.metric}{f', interval {interval}' if interval else ''}; the trimmed teacher "
        f"{numbers.score_text(how.trimmed)}%), which is agreement, not accuracy"
    )


def coverage_note(summary: Summary) -> str:
    """What trimming changes at most in any file."""
    files = summary.coverage.values()
    most = (
        max((one.growth for one in files), default=0.0),
        max((one.trimmed_unknown - one.unknown for one in files), default=0.0),
        max((one.changed for one in files), default=0.0),
    )
    more, unknown, changed = (numbers.score_text(max(one, 0.0)) for one in most)
    return (
        f"of {len(summary.coverage)} labelled files none takes more than {more}% more tokens, in none become more than "
        f"{unknown}% unknown, and in none do more than {changed}% of the words change"
    )


def loading_code(summary: Summary) -> str | None:
    """Python that loads and runs the best student, from the folder of the report."""
    # It brings torch, which reading records does not need.
    from bistil.models.cards import usage_code

    student = best_student(summary)
    if student is None or student.folder is None:
        return None
    return usage_code(summary.usage, student.folder)


def _gap_words(gap: float, interval: Sequence[float] | None) -> str:
    amount = numbers.points(abs(gap)).lstrip("+")
    if amount == "0.0":
        return "level with the teacher"
    if interval is not None and interval[0] <= 0 <= interval[1]:
        low, high = map(numbers.points, interval)
        return f"with no measurable distance to the teacher ({numbers.points(gap)} points, interval {low} to {high})"
    return f"{amount} points {'below' if gap < 0 else 'above'} the teacher"


def _card(student: ModelRecord, summary: Summary) -> Card:
    size = _ratio(summary.teacher.parameters if summary.teacher else None, student.parameters)
    if student.target_score is None and student.agreement is not None:
        third, of_third = f"{numbers.score_text(student.agreement)}%", "agreement with the teacher, not accuracy"
    else:
        third, of_third = numbers.points(summary.gap(student)).replace("-", "−"), "points to the teacher"
        if student.gap_interval is not None:
            low, high = (numbers.points(value).replace("-", "−") for value in student.gap_interval)
            of_third += f" ({low} to {high})"
    return Card(
        name=student.name,
        smaller="" if size is None else f"{size:.1f}×",
        faster="" if student.speed_ratio is None else f"{student.speed_ratio:.1f}×",
        third=third,
        of_third=of_third,
    )


@dataclass(frozen=True)
class Details:
    """All figures of a task beside the one that counts, of the teacher and the students."""

    language: str
    models: list[str]
    rows: list[tuple[str, list[str]]]


def _details(summary: Summary) -> Details | None:
    """Those of the target; without labels of it, of the source; None where there are none."""
    models = [model for model in summary.models if model.role in ("teacher", "student")]
    for language, name in ((summary.target, "target_scores"), (summary.source, "source_scores")):
        scores = [getattr(model, name) for model in models]
        figures = list(dict.fromkeys(figure for own in scores for figure in own))
        if figures:
            rows = [(figure, [numbers.score_text(own.get(figure)) for own in scores]) for figure in figures]
            return Details(language, [model.name for model in models], rows)
    return None


def _ratio(whole: int | None, part: int | None) -> float | None:
    return None if not whole or not part else whole / part
