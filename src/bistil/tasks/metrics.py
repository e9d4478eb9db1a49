"""Scores of a test set, and how far they are to be trusted: resampling of its examples."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metrics:
    """Scores of a test set, kept as additive counters per example so that any resample is scored exactly.

    Attributes:
        primary: name of the task's own figure.
        counts: (examples, counters) float64.
        formula: sums (..., counters) -> scores by name, each (...,), in percent.
    """

    primary: str
    counts: np.ndarray
    formula: Callable[[np.ndarray], dict[str, np.ndarray]]

    @property
    def scores(self) -> dict[str, float]:
        """Scores of the whole set, in percent."""
        return {name: float(value) for name, value in self.formula(self.counts.sum(axis=0)).items()}


def resampled(metrics: Metrics, n: int = 1000, seed: int = 0, *, name: str | None = None) -> np.ndarray:
    """A score on `n` resamples of the examples, each as large as the set and drawn with replacement: (n,), percent.

    The same seed gives the same resamples of a file, whatever model was scored on it.
    """
    examples = len(metrics.counts)
    generator = np.random.default_rng(seed)
    share = np.full(examples, 1 / examples)
    values = []
    # How often each example occurs in a resample is multinomial; a chunk of resamples is one matrix product.
    for start in range(0, n, 100):
        times = generator.multinomial(examples, share, size=min(100, n - start)).astype(np.float64)
        values.append(metrics.formula(times @ metrics.counts)[name or metrics.primary])
    return np.concatenate(values)


def bootstrap(metrics: Metrics, n: int = 1000, seed: int = 0, *, name: str | None = None) -> tuple[float, float]:
    """95% percentile interval of a score over resamples of the examples (Efron & Tibshirani 1993, section 13.3).

    Args:
        metrics: the counters per example.
        n: number of resamples.
        seed: of the resamples.
        name: which score; default: the primary one.

    Returns:
        Low and high end, in percent.
    """
    return interval(resampled(metrics, n, seed, name=name))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of resampled values (n,): low and high end."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_gap(metrics: Metrics, reference: Metrics, n: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Difference of the primary score to a reference on the same examples, and its 95% paired bootstrap interval.

    Returns:
        Score minus the reference's, low and high end, all in points of percent.
    """
    if len(metrics.counts) != len(reference.counts):
        raise ValueError(f"{len(metrics.counts)} examples against {len(reference.counts)}: the sets must be the same")
    gap = metrics.scores[metrics.primary] - reference.scores[metrics.primary]
    differences = resampled(metrics, n, seed) - resampled(reference, n, seed, name=metrics.primary)
    return gap, *interval(differences)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole` in percent, 0 where `whole` is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    shares: np.ndarray = 100.0 * np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)
    return shares


def macro_f1(both: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur, as gold or predicted label; in percent, 0 where none does.

    Args:
        both, found, wanted: (..., classes) how often a class is predicted and gold, predicted, gold.
    """
    occurring = (found + wanted > 0).sum(axis=-1)
    mean: np.ndarray = ratio(2 * both, found + wanted).sum(axis=-1) / np.maximum(occurring, 1)
    return mean
