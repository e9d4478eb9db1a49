"""`study.html` and the terminal's table, from a study's records alone; nothing here needs torch."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bistil.report import numbers
from bistil.report.page import rendered
from bistil.report.schema import SCHEMA, CurveRecord, ModelRecord, Summary
from bistil.report.studies import BESIDES, TEACHERS, Row, StudyRecords, read_records
from bistil.report.table import print_rows
from bistil.runtime.artefacts import claim, whole_file
from bistil.runtime.ownership import CREATOR

logger = logging.getLogger(__name__)

PAGE = "study.html"
# More targets than these are counted in a figure, not named.
NAMED = 4
# Work in the order in which it is done; what is left out of sums (`BESIDES`) comes last.
WORKS = ("vocabulary", "masked-LM head", "language SFTs", "phase 1", "task teacher", "fine-tuning", "putting together")
ROLES = {"lt-sft": "teacher", "trim-only": "trimmed", "bistil": "student", None: "student"}


@dataclass(frozen=True)
class Cell:
    """A score as the table shows it."""

    text: str = ""
    interval: str = ""
    best: bool = False
    paper: str = ""


@dataclass(frozen=True)
class ScoreLine:
    """A line of the table of scores."""

    name: str
    role: str
    serves: str
    source: str
    cells: list[Cell]
    """Per target, and the average."""
    gap: str
    gap_interval: str
    gap_to: str
    """The row that the gap is to, where it is not the study's."""
    seeds: int
    labels: list[str]


@dataclass(frozen=True)
class CostLine:
    """A line of the table of costs."""

    name: str
    languages: int
    phase1: str
    phase1_each: str
    fine_tuning: str
    seconds: list[str]
    total: str
    each: str


def present(folder: Path) -> StudyRecords:
    """Write a study's page and print its table; damaged lines of its records are named.

    Raises:
        InputError: the folder holds no study, or something else is where the page goes.
    """
    records = read_records(folder)
    for problem in records.problems:
        logger.warning(problem)
    write_study_page(records, folder / PAGE, replace=True)
    print_study(records)
    return records


def print_study(records: StudyRecords) -> None:
    """Print scores and gaps."""
    study, lines = records.study, scores_table(records)
    header = ["system", *study.targets, "average", "gap [interval]", "seeds"]
    rows = [
        [line.name, *(f"{cell.text}{'*' if cell.best else ''}" for cell in line.cells),
         f"{line.gap} {line.gap_interval}".strip(), str(line.seeds)]
        for line in lines
    ]  # fmt: skip
    title = f"{study.name}: {study.source} to {', '.join(study.targets)}, {records.metric} in %"
    title += f"; gap to {records.reference_name}" if records.reference_name else ""
    title += "; * best student, beyond the interval" if any(cell.best for line in lines for cell in line.cells) else ""
    print_rows(title, header, rows, bold=set())
    for line in lines:
        if line.gap_to:
            print(f"The gap of {line.name} is to {line.gap_to}.")
    if records.better_teacher:
        print(f"{records.better_teacher}.")
    if study.parallel:
        print("The sets hold the same examples in all languages, which are resampled jointly.")
    if study.note:
        print(study.note)


def write_study_page(records: StudyRecords, path: Path, *, replace: bool = False) -> None:
    """Write the page: tables, figures, cost, and the file that repeats the study. One file that loads nothing.

    The same records give the same bytes.

    Args:
        replace: an earlier page gives way.

    Raises:
        InputError: something else is there, or a page and `replace` is false.
    """
    claim(files=[path], force=replace)
    # matplotlib is slow to import, and only a page needs it.
    from bistil.report.figures import phase1_figure, tradeoff_figure

    summary, lines, study = _as_summary(records), scores_table(records), records.study
    figures = {
        name: None if drawn is None else Markup(drawn)
        for name, drawn in (("tradeoff", tradeoff_figure(summary)), ("curves", phase1_figure(summary)))
    }
    works = [work for work in (*WORKS, *BESIDES) if any(work in row.total("seconds") for row in records.rows)]
    page = rendered(
        "study.html.jinja",
        study=study,
        metric=records.metric,
        headline=study_headline(records),
        notes=[*_notes(records)],
        reference=records.reference_name,
        rows=lines,
        any_paper=any(cell.paper for line in lines for cell in line.cells),
        figures=figures,
        speed=[*records.speed.values()],
        threads=records.threads,
        labels=records.labels,
        works=works,
        costs=[_cost(row, works) for row in records.rows],
        searches=[*_searches(records)],
        finished=len(records.points),
        machines=_machines(records),
        creator=CREATOR,
        n=numbers,
    )
    with whole_file(path, replace=replace) as partial:
        partial.write_text(page, encoding="utf-8")


def study_headline(records: StudyRecords) -> str:
    """What came of the study, in one sentence: the best student, and its gap."""
    parts = [f"{target}/test" for target in records.study.targets]
    students = [row for row in records.rows if row.kind not in TEACHERS and row.mean(parts) is not None]
    best = max(students, key=lambda row: row.mean(parts) or 0.0, default=None)
    if best is None:
        return f"{records.study.name}: no student is scored on all targets yet"
    said = f"{best.name} is the best student on average: {best.mean(parts):.1f} {records.metric}"
    gap, reference = records.gap(best), records.reference_of(best)
    if gap is not None and reference is not None:
        said += f", {_points(gap[0])} points to {reference.system} ({_points(gap[1])} to {_points(gap[2])})"
    if len(students) > 1 and records.best(None) is not best:
        said += "; the next is within the interval"
    return said


def scores_table(records: StudyRecords) -> list[ScoreLine]:
    """The lines of the table of scores."""
    study = records.study
    tests = [f"{target}/test" for target in study.targets]
    best = {part: records.best(part) for part in tests}
    best_mean = records.best(None)
    lines = []
    for row in records.rows:
        cells = []
        for target, part in zip(study.targets, tests, strict=True):
            if not row.values(part):
                cells.append(Cell())
                continue
            paper = records.paper(row, target)
            cells.append(
                Cell(numbers.spread_text(row.values(part)), _interval(row, [part]), best[part] is row,
                     "" if paper is None else f"{paper:.1f}")
            )  # fmt: skip
        mean = row.mean(tests)
        average = Cell()
        if mean is not None:
            average = Cell(numbers.spread_text(row.means(tests) or [mean]), _interval(row, tests), best_mean is row)
        gap = records.gap(row)
        labels = [row.label(label, records.metric) for label in records.labels]
        lines.append(
            ScoreLine(
                name=row.name,
                role=ROLES.get(row.kind, "baseline"),
                serves=_serves(row),
                source=_mean(row.values(f"{study.source}/dev")),
                cells=[*cells, average],
                gap="" if gap is None else _points(gap[0]),
                gap_interval="" if gap is None else f"[{_points(gap[1])} {_points(gap[2])}]",
                gap_to="" if gap is None else _other_reference(records, row),
                seeds=row.seeds,
                labels=["" if value is None else f"{value:.1f}" for value in labels],
            )
        )
    return lines


def _other_reference(records: StudyRecords, row: Row) -> str:
    reference = records.reference_of(row)
    return "" if reference is None or reference is records.reference else reference.name


def _serves(row: Row) -> str:
    if row.student is None or row.shared is not None:
        return f"one model for {len(row.targets)} languages" if len(row.targets) > 1 else "one model"
    return "one model per language" if len(row.targets) > 1 else f"for {row.targets[0]}"


def _notes(records: StudyRecords) -> Iterator[str]:
    missing = records.study.points - len(records.points)
    if missing > 0:
        yield f"Not finished: {len(records.points)} of {records.study.points} models are on record."
    for row in records.rows:
        if row.below_start:
            yield f"{row.name}: a phase 1 ended with a higher held-out loss than it began with, which needs explaining."
    if records.better_teacher:
        yield f"{records.better_teacher}."
    yield from records.problems


def _searches(records: StudyRecords) -> Iterator[tuple[str, list[tuple[str, str, bool]]]]:
    """Per row, the rates that were tried, with the score on dev, and whether it was taken."""
    for row in records.rows:
        found = next((point for point in row.points if point.search), None)
        if found is not None:
            taken = f"{found.learning_rate:g}"
            yield row.name, [(rate, f"{score:.1f}", rate == taken) for rate, score in found.search.items()]


def _cost(row: Row, works: Sequence[str]) -> CostLine:
    seconds, tokens = row.total("seconds"), row.total("tokens")
    count = len(row.targets)
    return CostLine(
        name=row.name,
        languages=count,
        phase1=_millions(tokens.get("phase 1")),
        phase1_each=_millions(row.phase1_share),
        fine_tuning=_millions(tokens.get("fine-tuning")),
        seconds=[numbers.duration(seconds.get(work)) for work in works],
        total=numbers.duration(row.seconds),
        each=numbers.duration(row.seconds / max(count, 1)),
    )


def _millions(value: float | None) -> str:
    return "" if not value else f"{value / 1e6:.2f} M"


def _machines(records: StudyRecords) -> list[str]:
    said = (
        f"{point.machine['processor']}, threads: {point.machine.get('threads', '?')}, {' and '.join(point.precision)}"
        for point in records.points
        if "processor" in point.machine
    )
    return sorted(set(said))


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else ""


def _interval(row: Row, parts: list[str]) -> str:
    found = row.interval(parts)
    return "" if found is None else f"[{found[0]:.1f} {found[1]:.1f}]"


def _points(value: float) -> str:
    return numbers.points(value / 100).replace("-", "−")


def _as_summary(records: StudyRecords) -> Summary:
    """The rows as the models of a run's summary, for its figures: scores are averages over the targets."""
    study = records.study
    tests = [f"{target}/test" for target in study.targets]
    few = len(study.targets) <= NAMED
    averaged = ", ".join(study.targets) if few else f"{len(study.targets)} languages"
    models, curves = [], {}
    for row in records.rows:
        mean, interval, speed = row.mean(tests), row.interval(tests), records.speed.get(row.shape)
        role: Any = ROLES.get(row.kind, "baseline")
        models.append(
            ModelRecord(
                name=row.name,
                role=role,
                metric=records.metric,
                parameters=speed.parameters if speed else None,
                target_score=None if mean is None else mean / 100,
                target_interval=None if interval is None else [end / 100 for end in interval],
                speed_ratio=speed.speed_ratio if speed else None,
                speed_ratio_range=speed.speed_ratio_range if speed else None,
            )
        )
        curve = next((point for point in row.points if len(point.held_out.get("loss", [])) > 1), None)
        if curve is not None and curve.held_out["loss"][0] > 0:
            losses = curve.held_out["loss"]
            steps = [round(step) for step in curve.held_out["steps"]]
            curves[row.name] = CurveRecord(steps=steps, losses={curve.group: [loss / losses[0] for loss in losses]})
    return Summary(
        schema=SCHEMA, name=study.name, task=study.task, seed=0, source=study.source,
        target=f"average of {averaged}", created="", versions={}, models=models, phase1=curves,
    )  # fmt: skip
