"""`summary.json`: what a run leaves for the report. One dataclass per table; docs/report.md explains every field."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bistil.errors import ArtefactError, RecipeError
from bistil.runtime.artefacts import read_json, write_json
from bistil.settings.recipe import option, parse

SCHEMA = 1


@dataclass(kw_only=True, frozen=True)
class ModelRecord:
    """One line of the table. What a model does not have (the majority class has no size or speed) is null."""

    name: str = option(help="as the table shows it")
    role: Literal["teacher", "trimmed", "copied", "student", "baseline"] = option(
        help="teacher: undistilled; trimmed: teacher with the small vocabulary; copied: student without phase 1"
    )
    folder: str | None = option(None, "model folder, relative to the folder of summary.json")
    parameters: int | None = option(None, "number of parameters, tied ones once")
    bytes: int | None = option(None, "bytes on disk of the model folder")
    vocabulary: int | None = option(None, "rows of the token embedding")
    layers: int | None = option(None, "Transformer layers")
    metric: str = option(help="name of the score, such as accuracy")
    source_score: float | None = option(None, "on held-out source-language examples, 0 to 1")
    source_interval: list[float] | None = option(None, "bootstrap interval [low, high] of source_score")
    source_scores: dict[str, float] = option(factory=dict, help="the task's other figures there, by label too")
    target_score: float | None = option(None, "zero-shot on target-language examples, 0 to 1")
    target_interval: list[float] | None = option(None, "bootstrap interval [low, high] of target_score")
    target_scores: dict[str, float] = option(factory=dict, help="the task's other figures there, by label too")
    gap_to_teacher: float | None = option(None, "target_score minus the teacher's; below 0 is worse than the teacher")
    gap_interval: list[float] | None = option(None, "paired bootstrap interval [low, high] of gap_to_teacher")
    agreement: float | None = option(None, "on target text without labels, against what the teacher says; 0 to 1")
    agreement_interval: list[float] | None = option(None, "bootstrap interval [low, high] of agreement")
    milliseconds: float | None = option(None, "median CPU milliseconds per example at batch 1")
    speed_ratio: float | None = option(None, "teacher's time divided by this model's, median over rounds")
    speed_ratio_range: list[float] | None = option(None, "least and greatest speed_ratio of a round")
    flops: int | None = option(None, "floating-point operations per example, without embedding look-ups")


@dataclass(kw_only=True, frozen=True)
class StageRecord:
    """One stage of the run, in the order of the run."""

    name: str = option(help="as the table shows it")
    seconds: float | None = option(None, "wall time")
    peak_memory_bytes: int | None = option(None, "peak resident memory of the process by the end of the stage")
    skipped: bool = option(False, "the stage was already done; figures are those of the run that did it")
    versions: dict[str, str] = option(factory=dict, help="versions of Python and the libraries that did it")
    machine: dict[str, str] = option(factory=dict, help="the machine that did it, as text")


@dataclass(kw_only=True, frozen=True)
class CurveRecord:
    """Held-out loss of one phase-1 run."""

    steps: list[int] = option(help="optimizer steps at which the loss was measured")
    losses: dict[str, list[float]] = option(help="per language (or 'all'), the loss at each of the steps")


@dataclass(kw_only=True, frozen=True)
class AgreementRecord:
    """How models agree with the teacher on target text that nothing was learnt from. It is agreement, not accuracy:
    where the teacher is wrong, a model that agrees is wrong too."""

    metric: str = option("", "its name, with the teacher's predictions in place of labels")
    examples: int = option(help="sentences, texts or pairs")
    trimmed: float | None = option(None, "that of the trimmed teacher, for comparison; 0 to 1")
    trimmed_interval: list[float] | None = option(None, "bootstrap interval [low, high] of trimmed")
    why: str | None = option(None, "why there is none")


@dataclass(kw_only=True, frozen=True)
class CoverageRecord:
    """What trimming changes in one file, between the teacher's vocabulary and the trimmed one. No text is in it."""

    loses: bool = option(help="noticeably: 3% more tokens, 0.5% of them newly unknown, or 5% of the words changed")
    texts: int = option(help="different texts that were compared")
    of: int = option(help="how many there are; more than 5,000, or 2 million characters, are drawn from")
    unit: str = option(help="word (between white space), or character in running text of scripts without spaces")
    words: int = option(help="number of words, or of characters")
    fertility: float = option(help="tokens per word, the teacher's vocabulary")
    trimmed_fertility: float = option(help="tokens per word, the trimmed vocabulary")
    unknown: float = option(help="share of tokens that are unknown, the teacher's vocabulary")
    trimmed_unknown: float = option(help="share of tokens that are unknown, the trimmed vocabulary")
    changed: float = option(help="share of words whose tokens are others")
    missing: dict[str, int] = option(
        factory=dict, help="characters that the trimmed vocabulary alone lacks, the most frequent, with occurrences"
    )
    missing_characters: int = option(0, "how many such characters there are")

    @property
    def growth(self) -> float:
        """Share of tokens that there are more of."""
        return self.trimmed_fertility / self.fertility - 1.0 if self.fertility else 0.0


@dataclass(kw_only=True, frozen=True)
class DataRecord:
    """One file or corpus that went into the run."""

    language: str | None = option(None, "language code")
    examples: int | None = option(None, "lines of text or labelled examples")
    tokens: int | None = option(None, "tokens of the trimmed tokenizer")
    sha256: str | None = option(None, "digest of the content, hex")


@dataclass(kw_only=True, frozen=True)
class ShownPrediction:
    """A few words of the data and what models say of them: for a run's own report, and in no summary."""

    text: str
    wanted: str
    """Its labels; empty where it has none."""
    said: dict[str, str]
    """By model."""


@dataclass(kw_only=True, frozen=True)
class Summary:
    """All of `summary.json`."""

    schema: int = option(help="version of this layout: 1")
    name: str = option(help="name of the recipe")
    task: str = option("", "kind of the task, such as token-classification")
    seed: int = option(help="seed of the run")
    source: str = option(help="source language, such as en")
    target: str = option(help="target language, such as it")
    pipeline_tag: str | None = option(None, "the hub's name of the task, such as text-classification")
    usage: str | None = option(None, "Python that runs a model of the task, with {folder} for its folder")
    created: str = option(help="UTC time of writing, ISO 8601")
    versions: dict[str, str] = option(help="versions of Python and the libraries of the stages, all there were")
    machine: dict[str, str] = option(factory=dict, help="processor, cores and the like of the stages, all there were")
    models: list[ModelRecord] = option(help="the table, in its order; empty for a run without a task")
    stages: list[StageRecord] = option(factory=list, help="wall time and memory")
    coverage: dict[str, CoverageRecord] = option(factory=dict, help="per labelled file, what trimming changes in it")
    agreement: AgreementRecord | None = option(
        None, "without labels of the target: how models were compared with the teacher"
    )
    phase1: dict[str, CurveRecord] = option(factory=dict, help="per student, the held-out loss over steps")
    data: dict[str, DataRecord] = option(factory=dict, help="per name, what was read")

    @property
    def metric(self) -> str:
        """Name of the score."""
        scored = self.models[0].metric if self.models else ""
        return scored or (self.agreement.metric if self.agreement is not None else "")

    @property
    def target_labels(self) -> int:
        """How many labelled examples of the target language were learnt from; 0: none, the scores are zero-shot."""
        name = f"train, {self.target}"
        own = [one for key, one in self.data.items() if key == name or key.startswith(f"{name}, ")]
        return sum(one.examples or 1 for one in own)

    @property
    def teacher(self) -> ModelRecord | None:
        """The undistilled teacher, if the run has one."""
        return next((m for m in self.models if m.role == "teacher"), None)

    @property
    def students(self) -> list[ModelRecord]:
        """The distilled students, in the order of the table."""
        return [m for m in self.models if m.role == "student"]

    def gap(self, model: ModelRecord) -> float | None:
        """Target score minus the teacher's: as recorded, else computed; none for the teacher itself."""
        if model.gap_to_teacher is not None or model.role == "teacher" or self.teacher is None:
            return model.gap_to_teacher
        if model.target_score is None or self.teacher.target_score is None:
            return None
        return model.target_score - self.teacher.target_score


def summary_from(values: Any, *, where: str = "summary") -> Summary:
    """Check plain values against the schema.

    Raises:
        ArtefactError: a key is unknown or missing, a value is of another type or out of range; one line.
    """
    if not isinstance(values, dict):
        raise ArtefactError(f"{where} must hold a JSON object, not {type(values).__name__}")
    if values.get("schema") != SCHEMA:
        raise ArtefactError(f"{where} has schema {values.get('schema')!r}; this version of bistil reads {SCHEMA}")
    try:
        summary = parse(Summary, values, where)
    except RecipeError as error:
        raise ArtefactError(str(error)) from error
    for problem in _problems(summary):
        raise ArtefactError(f"{where}: {problem}")
    return summary


def load_summary(path: Path) -> Summary:
    """Read and check a `summary.json`.

    Raises:
        InputError: the file is missing or is not JSON.
        ArtefactError: it is not a summary; the message names the key.
    """
    return summary_from(read_json(path), where=str(path))


def save_summary(path: Path, summary: Summary, *, replace: bool = False) -> None:
    """Write a summary, whole or not at all, after checking it.

    Args:
        replace: an earlier summary gives way.

    Raises:
        ArtefactError: a value is out of range.
        InputError: something else is there, or a summary and `replace` is false.
    """
    write_json(path, asdict(summary_from(asdict(summary), where=path.name)), replace=replace)


def _problems(summary: Summary) -> Iterator[str]:
    names = [model.name for model in summary.models]
    for name in {n for n in names if names.count(n) > 1}:
        yield f"two models are called {name!r}"
    if sum(model.role == "teacher" for model in summary.models) > 1:
        yield "more than one model has the role 'teacher'"
    for model in summary.models:
        at = f"models[{model.name!r}]"
        for key, name in (("source", "source_score"), ("target", "target_score"), ("agreement", "agreement")):
            score, interval = getattr(model, name), getattr(model, f"{key}_interval")
            if score is not None and not 0 <= score <= 1:
                yield f"{at}.{name} is {score}; scores run from 0 to 1"
            yield from _pair(interval, f"{at}.{key}_interval")
        yield from _pair(model.gap_interval, f"{at}.gap_interval")
        yield from _pair(model.speed_ratio_range, f"{at}.speed_ratio_range")
        for key in ("parameters", "bytes", "milliseconds", "speed_ratio"):
            value = getattr(model, key)
            if value is not None and not (value > 0 and math.isfinite(value)):
                yield f"{at}.{key} is {value}; it must be above 0, or null where it does not exist"
    for name, curve in summary.phase1.items():
        for language, losses in curve.losses.items():
            if len(losses) != len(curve.steps):
                yield f"phase1[{name!r}].losses[{language!r}] has {len(losses)} values for {len(curve.steps)} steps"
            if not all(math.isfinite(loss) for loss in losses):
                yield f"phase1[{name!r}].losses[{language!r}] holds a value that is not finite"


def _pair(interval: list[float] | None, at: str) -> Iterator[str]:
    if interval is not None and (len(interval) != 2 or not interval[0] <= interval[1]):
        yield f"{at} is {interval}; it must be [low, high]"
