"""Tasks behind one small interface: reading, encoding, the head, what L_pred compares, decoding, scoring."""

from bistil.errors import RecipeError
from bistil.tasks.base import (
    Example,
    Feature,
    Metrics,
    PredictionPair,
    Task,
    bootstrap,
    differing_boundaries,
    model_inputs,
    paired_gap,
)

KINDS = ("sequence-classification", "token-classification")

__all__ = [
    "KINDS",
    "Example",
    "Feature",
    "Metrics",
    "PredictionPair",
    "Task",
    "bootstrap",
    "differing_boundaries",
    "get_task",
    "model_inputs",
    "paired_gap",
]


def get_task(kind: str) -> Task:
    """The task of that kind.

    Raises:
        RecipeError: there is no such kind.
    """
    if kind == "sequence-classification":
        from bistil.tasks.sequence_classification import SequenceClassification

        return SequenceClassification()
    if kind == "token-classification":
        from bistil.tasks.token_classification import TokenClassification

        return TokenClassification()
    raise RecipeError(f"there is no task {kind!r}; kinds: {', '.join(KINDS)}")
