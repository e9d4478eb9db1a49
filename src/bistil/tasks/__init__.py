"""Tasks behind one small interface: reading, encoding, the head, what L_pred compares, decoding, scoring.

A task is a module of this package that is called like its kind and registers its class, token_classification for
"token-classification"; modules with names of one word are what tasks share. One's own is registered from anywhere.
"""

from importlib import import_module
from inspect import signature
from typing import Any, TypeVar

from bistil.errors import ArtefactError, RecipeError
from bistil.models.loading import task_of
from bistil.settings.kinds import add_kind, module_of, own_kinds, task_kinds
from bistil.tasks.base import Example, PredictionPair, Task
from bistil.tasks.batches import Feature, model_inputs
from bistil.tasks.boundaries import differing_boundaries
from bistil.tasks.metrics import Metrics, bootstrap, paired_gap, resampled

KINDS = own_kinds()
"""Of this package's tasks."""

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
    "register_task",
    "resampled",
]

AnyTask = TypeVar("AnyTask", bound=type[Task])
_TASKS: dict[str, type[Task]] = {}


def register_task(task: AnyTask) -> AnyTask:
    """Make a task known to recipes and commands by its `kind`, or take the place of one; returns the class.

    Example:
        >>> @register_task  # doctest: +SKIP
        ... class Ranking(Task):
        ...     kind = "ranking"
    """
    _TASKS[task.kind] = task
    add_kind(task.kind)
    return task


def get_task(kind: str, *, parser_projection: int | None = None, scheme: str | None = None) -> Task:
    """The task of that kind; a module of this package that is called like it is imported when it is first asked for.

    What is given besides the kind goes to the task's class, if that takes an argument of this name.

    Args:
        kind: one of `KINDS`, or of a task that was registered.
        parser_projection: dependency parsing only: dimensions before the biaffine; None: the paper's full head.
        scheme: tagging only: the scheme of the tags (`tasks.spans.SCHEMES`); None: it shows in them.

    Raises:
        RecipeError: there is no such kind, or it has no use for what is given.
        InputError: there is no such scheme.
    """
    module = module_of(kind)
    if kind not in _TASKS and module is not None:
        import_module(module)
    if kind not in _TASKS:
        raise RecipeError(
            f"there is no task {kind!r}; kinds: {', '.join(task_kinds())}; one of your own is made known with "
            "bistil.tasks.register_task"
        )
    task: Any = _TASKS[kind]
    options = {"parser_projection": parser_projection, "scheme": scheme}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - signature(task).parameters.keys():
        raise RecipeError(f"{name} is {given[name]!r}, but {kind} has no use for it: leave it out")
    made: Task = task(**given)
    return made


def kind_of(config: Any, name: str) -> str:
    """The kind of task that a model is for, by the class that its configuration names.

    Args:
        config: of the model (`models.read_config`).
        name: of the model, for the message.

    Raises:
        ArtefactError: it is for no known task.
    """
    found = [task_of(one) for one in config.architectures or ()]
    kind = next((one for one in found if one in task_kinds()), None)
    if kind is None:
        what = f"a model for {found[0]}" if found and found[0] else "an encoder without a head"
        raise ArtefactError(f"{name} is {what}, not for a task: fine-tune it first, with `bistil finetune`")
    return kind
