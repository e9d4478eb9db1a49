"""Small, fast models for one language, distilled out of massively multilingual Transformers.

In memory: `trim` a teacher's vocabulary, `distill` students, `finetune` the task teacher and a student that learns from
it, `evaluate`. From files to a report: `run_recipe`. A finished model: `load`.

The public names are loaded when they are first used: `import bistil` itself takes no time.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bistil import _moved
from bistil._version import __version__

if TYPE_CHECKING:
    from bistil._moved import fit_task
    from bistil.distillation.finetune import finetune
    from bistil.distillation.general import Students, distill, distill_general
    from bistil.errors import ArtefactError, BistilError, DivergenceError, InputError, MissingExtraError, RecipeError
    from bistil.measuring.evaluation import evaluate
    from bistil.method import run_recipe
    from bistil.prediction import load
    from bistil.settings.recipe import load_recipe
    from bistil.settings.schema import (
        AdaptSettings,
        FinetuneSettings,
        ObjectiveSettings,
        Phase1Settings,
        Phase2Settings,
        SparseSettings,
        StudentSettings,
        TaskSettings,
        TrainingSettings,
        TrimSettings,
    )
    from bistil.settings.schema import StudentSettings as Student
    from bistil.sparse import SparseFineTuning, train_sparse
    from bistil.tasks.dependency_parsing import Parser
    from bistil.tasks.question_answering import QuestionAnswerer
    from bistil.vocabulary import trim_vocabulary
    from bistil.vocabulary.trimming import trim

_moved.install()
# Messages go to loggers below "bistil"; who wants to see them configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Where each public name is, by module; `Student` is short for the settings of one.
_HOMES = {
    "AdaptSettings": "bistil.settings.schema",
    "ArtefactError": "bistil.errors",
    "BistilError": "bistil.errors",
    "DivergenceError": "bistil.errors",
    "FinetuneSettings": "bistil.settings.schema",
    "InputError": "bistil.errors",
    "MissingExtraError": "bistil.errors",
    "ObjectiveSettings": "bistil.settings.schema",
    "Parser": "bistil.tasks.dependency_parsing",
    "Phase1Settings": "bistil.settings.schema",
    "Phase2Settings": "bistil.settings.schema",
    "QuestionAnswerer": "bistil.tasks.question_answering",
    "RecipeError": "bistil.errors",
    "SparseFineTuning": "bistil.sparse",
    "SparseSettings": "bistil.settings.schema",
    "StudentSettings": "bistil.settings.schema",
    "Students": "bistil.distillation.general",
    "TaskSettings": "bistil.settings.schema",
    "TrainingSettings": "bistil.settings.schema",
    "TrimSettings": "bistil.settings.schema",
    "distill": "bistil.distillation.general",
    "distill_general": "bistil.distillation.general",
    "evaluate": "bistil.measuring.evaluation",
    "finetune": "bistil.distillation.finetune",
    "fit_task": "bistil._moved",
    "load": "bistil.prediction",
    "load_recipe": "bistil.settings.recipe",
    "run_recipe": "bistil.method",
    "train_sparse": "bistil.sparse",
    "trim": "bistil.vocabulary.trimming",
    "trim_vocabulary": "bistil.vocabulary",
    "Student": "bistil.settings.schema",
}

__all__ = [
    "AdaptSettings",
    "ArtefactError",
    "BistilError",
    "DivergenceError",
    "FinetuneSettings",
    "InputError",
    "MissingExtraError",
    "ObjectiveSettings",
    "Parser",
    "Phase1Settings",
    "Phase2Settings",
    "QuestionAnswerer",
    "RecipeError",
    "SparseFineTuning",
    "SparseSettings",
    "Student",
    "StudentSettings",
    "Students",
    "TaskSettings",
    "TrainingSettings",
    "TrimSettings",
    "__version__",
    "distill",
    "distill_general",
    "evaluate",
    "finetune",
    "fit_task",
    "load",
    "load_recipe",
    "run_recipe",
    "train_sparse",
    "trim",
    "trim_vocabulary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bistil' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), "StudentSettings" if name == "Student" else name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
