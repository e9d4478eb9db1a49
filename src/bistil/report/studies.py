"""The records of a study, `study.jsonl`: one JSON object a line, added when a point is finished, and never changed.

Nothing here needs torch. A line that is damaged is named and skipped; of two lines about one point the later counts.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from filelock import FileLock

from bistil.errors import ArtefactError, InputError, RecipeError
from bistil.report.paper import paper_figure
from bistil.runtime.artefacts import check_plain, json_digest
from bistil.runtime.documents import check_file, parse_json
from bistil.settings.recipe import TRIMMED_TEACHER, option, parse
from bistil.settings.study import EACH

RECORDS = "study.jsonl"
"""In a study's folder."""
BESIDES = ("search", "scoring")
"""Work that sums of what a model took leave out."""
TEACHERS = ("lt-sft", "trim-only")
"""Kinds of systems that are no opponents but what students are made of."""


def without_besides(seconds: Mapping[str, float]) -> float:
    """The sum of seconds by kind of work, but for `BESIDES`."""
    return sum(value for work, value in seconds.items() if work not in BESIDES)


@dataclass(kw_only=True, frozen=True)
class PartRecord:
    """A model's score on one set, in percent."""

    score: float = option(help="the task's own figure")
    interval: list[float] = option(help="95% bootstrap interval [low, high]")
    examples: int = option(help="in the set")
    scores: dict[str, float] = option(factory=dict, help="all figures of the task, those of each label too")
    resamples: list[float] = option(factory=list, help="the score on resampled sets, the same for all models")


@dataclass(kw_only=True, frozen=True)
class Identity:
    """Which point of a study a record is about."""

    system: str = option(help="system or variant")
    group: str = option(help="of targets")
    student: str | None = option(None, "none of the teacher itself")
    seed: int = option(help="of the fine-tuning")

    @property
    def place(self) -> tuple[str, str, str | None, int]:
        """What makes two records be about one point."""
        return self.system, self.group, self.student, self.seed


@dataclass(kw_only=True, frozen=True)
class PointRecord(Identity):
    """A finished point."""

    TYPE: ClassVar[str] = "point"

    key: str = option(help="digest of everything that the scores depend on")
    targets: list[str] = option(help="languages that the model serves")
    shape: str = option(help="whose size and speed it has")
    paper: str | None = option(None, "what the paper calls this system")
    learning_rate: float | None = option(None, "peak rate of the fine-tuning")
    search: dict[str, float] = option(factory=dict, help="per learning rate that was tried, the score on dev")
    metric: str = option(help="name of the score")
    scores: dict[str, PartRecord] = option(help='by set, such as "swa/test"')
    tokens: dict[str, int] = option(factory=dict, help="that each training saw")
    seconds: dict[str, float] = option(factory=dict, help="of each kind of work; shared ones divided by who shares")
    steps: dict[str, int] = option(factory=dict, help="optimizer steps of each training")
    phase1_languages: list[str] = option(factory=list, help="whose text phase 1 read, if in equal shares")
    held_out: dict[str, list[float]] = option(
        factory=dict, help="phase 1: losses on held-out text, and the steps at which they were measured"
    )
    precision: list[str] = option(factory=list, help="number formats of the trainings")
    machine: dict[str, str] = option(factory=dict, help="that did the fine-tuning")
    peak_memory_bytes: int | None = option(None, "highest of a stage")


@dataclass(kw_only=True, frozen=True)
class WithdrawnRecord(Identity):
    """A point whose earlier record no longer holds: the study's file says something else now."""

    TYPE: ClassVar[str] = "withdrawn"


@dataclass(kw_only=True, frozen=True)
class SystemRecord:
    """What a system is."""

    kind: str | None = option(None, "of system; none of a variant")
    what: str = option("", "in words")
    reference: str | None = option(None, "the system that its gaps are to, instead of the study's")


@dataclass(kw_only=True, frozen=True)
class StudyRecord:
    """What the study is."""

    TYPE: ClassVar[str] = "study"

    name: str = option(help="of the study")
    task: str = option(help="kind of the task")
    source: str = option(help="language with labels")
    targets: list[str] = option(help="languages that are tested")
    systems: dict[str, SystemRecord] = option(help="in their order")
    students: dict[str, str] = option(help="in words, in their order")
    reference: str | None = option(None, "the system that gaps are to")
    budgets: dict[str, str] = option(factory=dict, help="what every system gets, in words")
    parallel: bool = option(False, "the targets' sets hold the same examples, translated")
    note: str | None = option(None, "what a reader of the scores must know")
    points: int = option(help="planned")
    teacher_learning_rate: float | None = option(
        None, "of the students' task teacher, which is not searched; none: nobody is taught"
    )
    file: str = option("", "the study's file, which repeats it")
    versions: dict[str, str] = option(factory=dict, help="of Python and the libraries")


@dataclass(kw_only=True, frozen=True)
class SpeedRecord:
    """Size and speed of one shape; see `summary.json` for the fields."""

    name: str = option(help="of the shape")
    parameters: int = option(help="number of parameters, tied ones once")
    bytes: int = option(help="bytes on disk of the model folder")
    vocabulary: int = option(help="rows of the token embedding")
    layers: int = option(help="Transformer layers")
    milliseconds: float = option(help="median CPU milliseconds per example at batch 1")
    speed_ratio: float = option(help="the teacher's time divided by this shape's")
    speed_ratio_range: list[float] = option(help="least and greatest of a round")
    flops: int = option(help="floating-point operations per example")


@dataclass(kw_only=True, frozen=True)
class SpeedRecords:
    """Size and speed of all shapes, measured in turn."""

    TYPE: ClassVar[str] = "speed"

    shapes: list[SpeedRecord] = option(help="the teacher first")
    threads: int | None = option(None, "of the measurement")


AnyRecord = StudyRecord | PointRecord | WithdrawnRecord | SpeedRecords
_TYPES: Mapping[str, type[Any]] = {one.TYPE: one for one in (StudyRecord, PointRecord, WithdrawnRecord, SpeedRecords)}


def append_record(file: Path, record: AnyRecord) -> None:
    """Add a line, and see to it that it is on the disk; several processes may.

    Raises:
        InputError: something that is no plain file is there.
    """
    check_plain(file)
    plain = json.loads(json.dumps({"type": record.TYPE, **asdict(record)}, allow_nan=False))
    line = json.dumps({**plain, "seal": json_digest(plain)}, ensure_ascii=False) + "\n"
    with FileLock(file.with_name(f".{file.name}.lock")), file.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            # What was cut off by a full disk or a power cut stays a line of its own.
            line = line if stream.read(1) == b"\n" else "\n" + line
        stream.write(line.encode("utf-8"))
        stream.flush()
        os.fsync(stream.fileno())


@dataclass
class StudyRecords:
    """What a study's folder has on record.

    Attributes:
        study: what the study is.
        points: finished ones, in the order of the study.
        speed: per shape.
        problems: damaged lines, by number.
    """

    study: StudyRecord
    points: list[PointRecord]
    speed: dict[str, SpeedRecord] = field(default_factory=dict)
    threads: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """Name of the score."""
        return self.points[0].metric if self.points else "score"

    @cached_property
    def rows(self) -> list["Row"]:
        """One line per system, student, and group of several targets; models of one target each are one line."""
        found: dict[tuple[str, str | None, str | None], list[PointRecord]] = {}
        for point in self.points:
            shared = point.group if len(point.targets) > 1 else None
            found.setdefault((point.system, point.student, shared), []).append(point)
        rows = [Row(*place, points=own, kind=self._kind(place[0])) for place, own in found.items()]
        alike = Counter((row.system, row.student) for row in rows)
        for row in rows:
            row.by_group = alike[row.system, row.student] > 1
        if self.reference_name is not None:
            # As in the paper's tables, what gaps are to stands first.
            rows.sort(key=lambda row: row.system != self.reference_name)
        return rows

    def _kind(self, system: str) -> str | None:
        known = self.study.systems.get(system)
        return known.kind if known else None

    @property
    def better_teacher(self) -> str | None:
        """What the search found against the task teacher of the students: another rate is better by a point or more.

        Students that learn from labels alone may then be ahead of those that are taught, for that reason alone.
        """
        rate = self.study.teacher_learning_rate
        search = next((point.search for point in self.points if point.shape == TRIMMED_TEACHER and point.search), {})
        own = None if rate is None else search.get(f"{rate:g}")
        if own is None:
            return None
        best = max(search, key=lambda name: search[name])
        if search[best] - own < 1:
            return None
        return (
            f"The students' task teacher learns at {rate:g}, where the trimmed teacher has {own:.1f} on the source's "
            f"dev set; at {best} it has {search[best]:.1f}: finetune.training.learning_rate = {best}"
        )

    @property
    def reference_name(self) -> str | None:
        """The system that gaps are to: the study's, or lt-sft, or trim-only."""
        if self.study.reference is not None:
            return self.study.reference
        present = {point.system for point in self.points}
        for kind in TEACHERS:
            for name, system in self.study.systems.items():
                if system.kind == kind and name in present:
                    return name
        return None

    @property
    def reference(self) -> "Row | None":
        """The row that gaps are to."""
        return next((row for row in self.rows if row.system == self.reference_name), None)

    def reference_of(self, row: "Row") -> "Row | None":
        """The row that a row's gaps are to: its system's reference with the same student, or the study's.

        Of several with the same student, the one that serves as many languages: a shared model beside a shared one.
        """
        known = self.study.systems.get(row.system)
        if known is None or known.reference is None:
            return self.reference
        rows = [one for one in self.rows if one.system == known.reference]
        return max(rows, key=lambda one: (one.student == row.student, one.shared == row.shared), default=None)

    def gap(self, row: "Row", to: "Row | None" = None) -> tuple[float, float, float] | None:
        """Mean gap of a row over the targets that both have, with its paired 95% interval, in points.

        Args:
            row: whose gap it is.
            to: another row; None: the one that `reference_of` says.
        """
        reference = to or self.reference_of(row)
        if reference is None or reference is row:
            return None
        parts = [part for part in row.tests if part in reference.tests]
        return _gap(row, reference, parts) if parts else None

    def best(self, part: str | None) -> "Row | None":
        """The best student of a column (None: of the means), if it is better than the next beyond the interval."""
        rows = [row for row in self.rows if row.kind not in TEACHERS and row.mean(self._wanted(part)) is not None]
        rows.sort(key=lambda row: -(row.mean(self._wanted(part)) or 0.0))
        if len(rows) < 2:
            return None
        _, low, _ = _gap(rows[0], rows[1], self._wanted(part))
        return rows[0] if low > 0 else None

    def _wanted(self, part: str | None) -> list[str]:
        return [f"{target}/test" for target in self.study.targets] if part is None else [part]

    def paper(self, row: "Row", target: str) -> float | None:
        """The paper's figure for a row and a target; its own students are bilingual."""
        if row.kind in (None, "bistil") and row.shared is not None:
            return None
        return paper_figure(self.study.task, self.metric, row.points[0].paper, target)

    @property
    def labels(self) -> list[str]:
        """Labels that have figures of their own: those named METRIC/LABEL."""
        found: dict[str, None] = {}
        for point in self.points:
            for part in point.scores.values():
                names = (name.split("/", 1) for name in part.scores if name.startswith(f"{point.metric}/"))
                found.update({label: None for _, label in names})
        return list(found)


@dataclass
class Row:
    """A line of a study's table: all seeds, and all models that together serve the targets."""

    system: str
    student: str | None
    shared: str | None
    """The group of several targets that share a model; none: each target has one of its own."""
    points: list[PointRecord]
    kind: str | None = None
    by_group: bool = False
    """Whether other groups' models of the system and student are lines of their own."""

    @property
    def name(self) -> str:
        """As tables show it."""
        named = self.system if self.student is None else f"{self.system}, {self.student}"
        return f"{named}, {self.shared or EACH}" if self.by_group else named

    @property
    def shape(self) -> str:
        """Whose size and speed it has."""
        return self.points[0].shape

    @property
    def seeds(self) -> int:
        """How many there are."""
        return len({point.seed for point in self.points})

    @property
    def targets(self) -> list[str]:
        """Languages that it serves."""
        return list(dict.fromkeys(target for point in self.points for target in point.targets))

    @property
    def tests(self) -> list[str]:
        """Test sets of its targets."""
        return [f"{target}/test" for target in self.targets]

    def of(self, part: str) -> list[PartRecord]:
        """Per seed, the figures of a set."""
        return [point.scores[part] for point in self.points if part in point.scores]

    def values(self, part: str) -> list[float]:
        """Per seed, the score of a set."""
        return [one.score for one in self.of(part)]

    def mean(self, parts: Sequence[str]) -> float | None:
        """Mean over sets and seeds; None where a set is missing."""
        found = [self.values(part) for part in parts]
        return float(np.mean([np.mean(own) for own in found])) if found and all(found) else None

    def means(self, parts: Sequence[str]) -> list[float]:
        """Per seed that has all sets, the mean over them."""
        found = []
        for seed in sorted({point.seed for point in self.points}):
            own = {part: one.score for point in self.points if point.seed == seed for part, one in point.scores.items()}
            if all(part in own for part in parts):
                found.append(float(np.mean([own[part] for part in parts])))
        return found

    def resampled(self, parts: Sequence[str]) -> np.ndarray:
        """The mean over sets and seeds on each resample."""
        return np.mean([np.mean([one.resamples for one in self.of(part)], axis=0) for part in parts], axis=0)  # type: ignore[no-any-return]

    def interval(self, parts: Sequence[str]) -> tuple[float, float] | None:
        """95% interval of `mean` over resampled sets; None where a set is missing."""
        return None if self.mean(parts) is None else _interval(self.resampled(parts))

    def label(self, label: str, metric: str) -> float | None:
        """Mean over test sets and seeds of a label's figure; None where no set has it."""
        found = [one.scores[f"{metric}/{label}"] for part in self.tests for one in self.of(part)
                 if f"{metric}/{label}" in one.scores]  # fmt: skip
        return float(np.mean(found)) if found else None

    def total(self, of: Literal["seconds", "tokens", "steps"]) -> dict[str, float]:
        """What it costs to serve all of its targets once: sums over its models, means over seeds."""
        totals: dict[str, float] = {}
        for group in {point.group for point in self.points}:
            own = [point for point in self.points if point.group == group]
            for name in dict.fromkeys(name for point in own for name in getattr(point, of)):
                amounts = [getattr(point, of).get(name, 0) for point in own]
                # A search is made once for all seeds.
                totals[name] = totals.get(name, 0.0) + float(np.sum(amounts) if name == "search" else np.mean(amounts))
        return totals

    @property
    def seconds(self) -> float:
        """Of all work but the search and the scoring, as in `total`."""
        return without_besides(self.total("seconds"))

    @property
    def phase1_share(self) -> float | None:
        """Tokens of phase 1 in each target's language, in the mean; None where it is not known."""
        found = [
            point.tokens["phase 1"] / len(point.phase1_languages)
            for point in self.points
            if point.phase1_languages and "phase 1" in point.tokens
        ]
        return float(np.mean(found)) if found else None

    @property
    def below_start(self) -> bool:
        """Whether a phase 1 ended with a higher held-out loss than it began with: a fault until it is explained."""
        losses = (point.held_out.get("loss", []) for point in self.points)
        return any(len(own) > 1 and own[-1] > own[0] for own in losses)


class Resampled(Protocol):
    """A score with those on resampled sets."""

    @property
    def score(self) -> float: ...

    @property
    def resamples(self) -> Sequence[float]: ...


def mean_gap(rows: Iterable[Iterable[Resampled]], reference: Iterable[Resampled]) -> tuple[float, float, float]:
    """Mean over sets and seeds of the gap to a reference, with the 95% interval of resampled sets, in points.

    Args:
        rows: per seed, a score per set.
        reference: a score per set.
    """
    references = list(reference)
    pairs = [pair for row in rows for pair in zip(row, references, strict=True)]
    gaps = [one.score - other.score for one, other in pairs]
    resampled = [np.subtract(one.resamples, other.resamples) for one, other in pairs]
    return float(np.mean(gaps)), *_interval(np.mean(resampled, axis=0))


def _gap(row: Row, other: Row, parts: Sequence[str]) -> tuple[float, float, float]:
    """The gap of two rows' means; sets are resampled alike for both."""
    ours, theirs = row.mean(parts), other.mean(parts)
    assert ours is not None and theirs is not None
    return ours - theirs, *_interval(row.resampled(parts) - other.resampled(parts))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


# Reading


def read_records(folder: Path) -> StudyRecords:
    """What is on record in a study's folder; damaged lines are named in `problems` and do not count.

    Raises:
        InputError: there are no records, or none that says what the study is.
    """
    file = folder / RECORDS
    if not file.is_file():
        raise InputError(f"{folder} has no {RECORDS}: it is no study's folder, or nothing was begun there")
    study: StudyRecord | None = None
    points: dict[tuple[str, str, str | None, int], PointRecord] = {}
    speed: SpeedRecords | None = None
    problems: list[str] = []
    check_file(file)
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = _record(line, f"{file}, line {number}")
        except ArtefactError as error:
            problems.append(f"{error}: it is skipped")
            continue
        if isinstance(record, StudyRecord):
            study = record
        elif isinstance(record, SpeedRecords):
            speed = record
        elif isinstance(record, PointRecord):
            points[record.place] = record
        else:
            points.pop(record.place, None)
    if study is None:
        raise InputError(f"{file} does not say what the study is: run the study again, which adds it")
    return StudyRecords(
        study=study,
        points=sorted(points.values(), key=_order(study)),
        speed={one.name: one for one in speed.shapes} if speed else {},
        threads=speed.threads if speed else None,
        problems=problems,
    )


def _record(line: bytes, where: str) -> AnyRecord:
    try:
        values = parse_json(line)
        kind = _TYPES[values.pop("type")]
        seal = values.pop("seal")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtefactError(f"{where} is damaged") from None
    if seal != json_digest({"type": kind.TYPE, **values}):
        raise ArtefactError(f"{where} is damaged")
    try:
        record: AnyRecord = parse(kind, values, where)
    except RecipeError as error:
        raise ArtefactError(str(error)) from error
    return record


def _order(study: StudyRecord) -> Any:
    """Points in the order of the study: systems, students, groups, seeds."""
    systems, students = list(study.systems), list(study.students)

    def key(point: PointRecord) -> tuple[int, int, int, str, int]:
        return (
            systems.index(point.system) if point.system in systems else len(systems),
            students.index(point.student) if point.student in students else -1,
            study.targets.index(point.targets[0]) if point.targets and point.targets[0] in study.targets else -1,
            point.group,
            point.seed,
        )

    return key


def known_records(folder: Path) -> StudyRecords | None:
    """`read_records`; None where nothing says what the study is."""
    try:
        return read_records(folder)
    except InputError:
        return None
