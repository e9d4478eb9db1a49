"""What models are worth and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bistil.distillation.task_data import TaskData, some
from bistil.measuring.benchmark import MOST_TOKENS, ROUNDS, BenchmarkRow, benchmark
from bistil.measuring.evaluation import score_examples
from bistil.measuring.shape import EncoderShape
from bistil.models.tokenizers import load_tokenizer, write_tokenizer
from bistil.models.writing import save_weights
from bistil.runs.agreement import answered_lines
from bistil.runs.cost import Ahead, Cost, Passes, held, loading
from bistil.runs.data import Exam, HeldOut, Labelled, sentences_of
from bistil.runs.stage import File, Nothing, Place, Product, Stage, cosmetic
from bistil.runs.stages.phase2 import Copied
from bistil.runs.stages.work import scoring
from bistil.runtime.artefacts import whole_folder
from bistil.runtime.devices import device_for
from bistil.tasks.metrics import Metrics, interval, resampled

# Of each test set so many resamples are scored: all models alike, so that the gap between two has a paired interval.
RESAMPLES = 1000
# Of each set so many predictions are kept for people to look at, and so much of a text.
SHOWN, SHOWN_CHARACTERS = 6, 400
# What cost is measured on: so many sentences.
COST_EXAMPLES = 16
# What a score takes per feature, on an ordinary core, in seconds.
SCORE_PER_FEATURE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Bare(Stage[Nothing]):
    """A student that has learnt nothing under a head of the task, to measure: what a model costs is its shape's."""

    KIND: ClassVar[str] = "bare"
    PARTS: ClassVar[tuple[str, ...]] = ("model",)

    start: Copied
    labelled: Labelled

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
            passes=[scoring(shape, own, device) for own in sets],
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
