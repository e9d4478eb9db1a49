"""Encoders under a task's head: the one that a folder has, or a new one."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from bistil.errors import ArtefactError
from bistil.models.loading import (
    PRETRAINED_WITH,
    HeadRule,
    ModelSource,
    config_of,
    labels_of,
    load_model,
    source_name,
    task_of,
)

logger = logging.getLogger(__name__)
# A message names so many labels.
_LABELS_SHOWN = 12


def build_head(
    auto_class: Any,
    folder: ModelSource,
    labels: Sequence[str] | None,
    *,
    seed: int,
    means_labels: bool = True,
    problem: str | None = None,
    sizes: Mapping[str, int] | None = None,
    **config_values: Any,
) -> PreTrainedModel:
    """Load an encoder under a head.

    Without `labels` the folder is that of a task model, with its own head. With them it is a start: a head for these
    labels is gone on with, one for other labels or another task gives way to a new one, drawn from `seed`.

    Args:
        auto_class: a class with `from_pretrained`, such as `AutoModelForTokenClassification`.
        folder: a Hugging Face model folder; or a model in memory, whose weights are copied.
        labels: class names in order; None: those that the folder's configuration names.
        means_labels: whether the labels are what the head was trained for (of a question answering head they are not).
        problem: of a classifier, as configurations have it under "problem_type": heads of one class that are trained
            by different losses, such as "multi_label_classification".
        sizes: of a head that is to be trained, by name in the configuration.
        config_values: replace values of the configuration.

    Raises:
        ArtefactError: the folder is no loadable model, is damaged, or has no head, or one for another problem,
            although no labels are given.
    """
    if not isinstance(folder, PreTrainedModel) and not Path(folder).is_dir():
        raise ArtefactError(f"{folder} is not a model folder: name a folder with config.json and model.safetensors")
    config = config_of(folder)
    head: HeadRule = "whole"
    trained_for = getattr(config, "problem_type", None)
    of_another = problem is not None and trained_for not in (None, problem)
    if labels is None and of_another:
        raise ArtefactError(
            f"{source_name(folder)} was trained for {trained_for} (problem_type in its config.json), and this task is "
            f"{problem}: name the task that it was fine-tuned for"
        )
    if labels is not None:
        name = source_name(folder)
        head = _head_to_start_from(auto_class, name, config, labels if means_labels else None, sizes or {})
        if head == "whole" and of_another:
            logger.warning(f"{name} has a head for {trained_for}; a new one is made for {problem}")
            head = "new"
        config_values |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        config_values |= sizes or {}
    if problem is not None:
        config_values["problem_type"] = problem
    for name, value in config_values.items():
        setattr(config, name, value)
    model: PreTrainedModel = load_model(folder, auto_class, head=head, config=config, seed=seed)[0]
    return model


def _head_to_start_from(
    auto_class: Any, folder: str, config: Any, labels: Sequence[str] | None, sizes: Mapping[str, int]
) -> HeadRule:
    """What becomes of the head in a folder that fine-tuning starts from."""
    wanted, found = task_of(auto_class.__name__), {task_of(name) for name in config.architectures or ()}
    if wanted not in found:
        # Encoders come with the head that they were pretrained with; some families keep a part of it.
        return "optional" if found <= PRETRAINED_WITH else "new"
    own = labels_of(config)
    if labels is not None and own != list(labels):
        logger.warning(f"{folder} has a head for labels {_listed(own)}; a new one is made for {_listed(labels)}")
        return "new"
    if any(getattr(config, name, None) != size for name, size in sizes.items()):
        logger.warning(f"{folder} has a head of another size; a new one is made")
        return "new"
    return "whole"


def _listed(labels: Sequence[str]) -> str:
    more = len(labels) - _LABELS_SHOWN
    return ", ".join(map(str, labels[:_LABELS_SHOWN])) + (f" and {more} more" if more > 0 else "")
