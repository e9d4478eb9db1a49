"""Tasks behind one small interface: reading, encoding, the head, what L_pred compares, decoding, scoring."""

from typing import Any

from bistil.errors import ArtefactError, RecipeError
from bistil.models.loading import task_of
from bistil.tasks.base import Example, PredictionPair, Task
from bistil.tasks.batches import Feature, model_inputs
from bistil.tasks.boundaries import differing_boundaries
from bistil.tasks.metrics import Metrics, bootstrap, paired_gap, resampled

KINDS = ("sequence-classification", "token-classification", "dependency-parsing", "question-answering")

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
    "kind_of",
    "model_inputs",
    "paired_gap",
    "resampled",
]


def get_task(kind: str, *, parser_projection: int | None = None, scheme: str | None = None) -> Task:
    """The task of that kind.

    Args:
        kind: one of `KINDS`.
        parser_projection: dependency parsing only: dimensions before the biaffine; None: the paper's full head.
        scheme: tagging only: the scheme of the tags (`tasks.spans.SCHEMES`); None: it shows in them.

    Raises:
        RecipeError: there is no such kind.
        InputError: there is no such scheme.
    """
    if kind == "sequence-classification":
        from bistil.tasks.sequence_classification import SequenceClassification

        return SequenceClassification()
    if kind == "token-classification":
        from bistil.tasks.token_classification import TokenClassification

        return TokenClassification(scheme=scheme)
    if kind == "dependency-parsing":
        from bistil.tasks.dependency_parsing import DependencyParsing

        return DependencyParsing(projection=parser_projection)
    if kind == "question-answering":
        from bistil.tasks.question_answering import QuestionAnswering

        return QuestionAnswering()
    raise RecipeError(f"there is no task {kind!r}; kinds: {', '.join(KINDS)}")


def kind_of(config: Any, name: str) -> str:
    """The kind of task that a model is for, by the class that its configuration names.

    Args:
        config: of the model (`models.read_config`).
        name: of the model, for the message.

    Raises:
        ArtefactError: it is for none of `KINDS`.
    """
    found = [task_of(one) for one in config.architectures or ()]
    kind = next((one for one in found if one in KINDS), None)
    if kind is None:
        what = f"a model for {found[0]}" if found and found[0] else "an encoder without a head"
        raise ArtefactError(f"{name} is {what}, not for a task: fine-tune it first, with `bistil finetune`")
    return kind
