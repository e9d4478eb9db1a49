"""Small, fast models for one language, distilled out of massively multilingual Transformers.

The public names are loaded when they are first used: `import bistil` itself takes no time.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bistil import _moved
from bistil._version import __version__

if TYPE_CHECKING:
    from bistil._moved import fit_task
    from bistil.distillation.general import distill_general
    from bistil.method import run_recipe
    from bistil.prediction import load
    from bistil.settings.recipe import load_recipe
    from bistil.sparse import SparseFineTuning, train_sparse
    from bistil.vocabulary import trim_vocabulary

_moved.install()
# Messages go to loggers below "bistil"; who wants to see them configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "distill_general": "bistil.distillation.general",
    "fit_task": "bistil._moved",
    "load": "bistil.prediction",
    "load_recipe": "bistil.settings.recipe",
    "run_recipe": "bistil.method",
    "SparseFineTuning": "bistil.sparse",
    "train_sparse": "bistil.sparse",
    "trim_vocabulary": "bistil.vocabulary",
}

__all__ = [
    "SparseFineTuning",
    "__version__",
    "distill_general",
    "fit_task",
    "load",
    "load_recipe",
    "run_recipe",
    "train_sparse",
    "trim_vocabulary",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bistil' has no attribute {name!r}")
