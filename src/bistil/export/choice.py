"""Which weights are quantised, found by measurement: by the score on labelled examples, or by how far outputs move."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bistil.errors import InputError
from bistil.export.quantise import Embeddings, products, quantise
from bistil.measuring.evaluation import score_engine
from bistil.prediction.inputs import Input
from bistil.prediction.predictor import Predictor, Wanted
from bistil.prediction.sentences import SentenceEncoder
from bistil.runtime.progress import say
from bistil.tasks import Metrics, paired_gap
from bistil.tasks.batches import Engine


@dataclass(frozen=True)
class Chosen:
    """A quantised graph.

    Attributes:
        embeddings: how its largest table is kept.
        kept: products that stay in float32, the costliest first.
        figures: for the record: what it was chosen by.
    """

    embeddings: Embeddings
    kept: list[str]
    figures: dict[str, Any]


@dataclass
class Scorer:
    """The task's score of a graph on labelled examples, against the PyTorch model's.

    Args:
        predictor: with the PyTorch model as its engine.
        name: of the files, for records and messages.
        most_loss: points of the score that may be lost.
    """

    predictor: Predictor
    examples: Sequence[Any]
    name: str
    most_loss: float
    reference: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.reference = self._metrics(self.predictor.engine)

    def _metrics(self, engine: Engine) -> Metrics:
        one = self.predictor
        return score_engine(
            engine, one.tokenizer, one.task, self.examples, max_length=one.max_length, name=one.name
        )[0]  # fmt: skip

    def figures(self, engine: Engine) -> dict[str, Any]:
        """What the graph loses, with the 95% interval of a paired bootstrap, in points."""
        metrics = self._metrics(engine)
        gap, low, high = paired_gap(metrics, self.reference)
        return {
            "metric": metrics.primary,
            "score": metrics.scores[metrics.primary],
            "float32_score": self.reference.scores[metrics.primary],
            "loss": -gap,
            "loss_interval": [-high, -low],
            "most_loss": self.most_loss,
            "examples": len(metrics.counts),
            "file": self.name,
        }


def by_score(
    source: Path, target: Path, scorer: Scorer, embeddings: Embeddings, sensitivity: "Sensitivity", *, opened: Any
) -> Chosen:
    """Write the smallest graph that loses no more than it may.

    What is tried takes ever more bytes: more bits of the table, and more products that stay in float32, those first
    whose quantisation moves the outputs most.

    Args:
        source: the float32 graph.
        opened: graph -> engine.

    Raises:
        InputError: no graph does.
    """
    costly: list[str] | None = None
    for own, count in _ladder(embeddings, len(_names(source))):
        if count and costly is None:
            costly = sensitivity.costliest(source, target, opened)
        kept = (costly or [])[:count]
        quantise(source, target, embeddings=own, kept=kept)
        found = Chosen(own, kept, scorer.figures(opened(target)))
        say(f"embeddings {own}, {count} products in float32: {found.figures['loss']:.2f} points lost")
        if found.figures["loss"] <= scorer.most_loss:
            return found
    raise InputError(refusal(found.figures, alone=", or --embeddings alone"))


def refusal(figures: Mapping[str, Any], *, alone: str = "") -> str:
    """What is said where int8 loses more than it may.

    Args:
        alone: what may be exported in float32 by itself.
    """
    return (
        f"int8 loses {figures['loss']:.2f} points of {figures['metric']} on {figures['file']}, and may lose "
        f"{figures['most_loss']:g}: export in float32 (--precision{alone}), or allow more with --most-loss"
    )


def _ladder(embeddings: Embeddings, most: int) -> Iterator[tuple[Embeddings, int]]:
    """What is tried: how the table is kept, and how many products stay in float32, 0, 1, 2, 4 ... up to all."""
    counts = [0, *(1 << i for i in range(most.bit_length()) if 1 << i < most), most]
    if embeddings == "auto":
        # One matrix of float32 is less than the bits that a table of ordinary size has more in int8.
        yield from (("int4", count) for count in counts[:2])
    yield from (("int8" if embeddings == "auto" else embeddings, count) for count in counts)


def _names(source: Path) -> list[str]:
    """Products of a float32 graph."""
    import onnx

    return list(products(onnx.load(source)))


@dataclass(frozen=True)
class Sensitivity:
    """How far outputs move if one product alone is quantised.

    Args:
        cases: per batch, inputs and float32 outputs by name ("in.NAME", "out.NAME"), NaN where they do not count.
    """

    cases: Sequence[Mapping[str, np.ndarray]]

    def costliest(self, source: Path, target: Path, opened: Any) -> list[str]:
        """Names of all products, those that cost most first. `target` is overwritten."""
        names, costs = _names(source), dict[str, float]()
        for number, name in enumerate(names, 1):
            quantise(source, target, embeddings="float32", kept=[other for other in names if other != name])
            costs[name] = self.distance(opened(target))
            say(f"product {number} of {len(names)} alone in int8: outputs move by {costs[name]:.3g}")
        return sorted(names, key=lambda name: -costs[name])

    def distance(self, engine: Any) -> float:
        """Root of the mean squared difference of the outputs that count."""
        total, count = 0.0, 0
        for case in self.cases:
            given = {name: case[f"in.{name}"] for name in engine.inputs if f"in.{name}" in case}
            for name, values in zip(engine.outputs, engine.session.run(None, given), strict=True):
                expected = case[f"out.{name}"]
                counts = np.isfinite(expected)
                total += float(np.square(values[counts] - expected[counts], dtype=np.float64).sum())
                count += int(counts.sum())
        return float((total / max(count, 1)) ** 0.5)


def agreement(predictor: Predictor, engine: Engine, inputs: Sequence[Input]) -> dict[str, Any]:
    """On how many inputs an engine says what the PyTorch model says, confidences aside; of vectors, their cosine."""
    other = type(predictor)(
        predictor.name, predictor.task, engine, predictor.tokenizer, max_length=predictor.max_length
    )  # fmt: skip
    if isinstance(predictor, SentenceEncoder) and isinstance(other, SentenceEncoder):
        left, right = (one.encode([given.text for given in inputs]) for one in (predictor, other))
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines = (left * right).sum(axis=1) / lengths
        return {"cosine": float(cosines.mean()), "least_cosine": float(cosines.min()), "inputs": len(inputs)}
    both = [[_said(row) for row in one.records(inputs, Wanted())] for one in (predictor, other)]
    same = sum(left == right for left, right in zip(*both, strict=True))
    return {"same_predictions": same, "inputs": len(inputs)}


def _said(record: Any) -> Any:
    """A record without confidences."""
    if isinstance(record, dict):
        return {key: _said(value) for key, value in record.items() if not key.startswith("confidence")}
    return [_said(one) for one in record] if isinstance(record, list) else record
