"""Old import paths: they work for one version more, each with a warning that says the new one."""

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Of version 0.1 -> where its names are now. To go in version 0.3.
MOVED: dict[str, tuple[str, ...]] = {
    "bistil.adaptation": ("bistil.sparse.language", "bistil.models.masked_lm"),
    "bistil.aligned_attention": ("bistil.distillation.aligned_attention",),
    "bistil.artefacts": ("bistil.runtime.artefacts",),
    "bistil.benchmark": ("bistil.measuring.benchmark",),
    "bistil.cards": ("bistil.models.cards",),
    "bistil.corpora": ("bistil.text.blocks", "bistil.text.schedule", "bistil.text.lines"),
    "bistil.evaluation": ("bistil.measuring.evaluation",),
    "bistil.families": ("bistil.models.families",),
    "bistil.fast_linear": ("bistil.runtime.fast_linear",),
    "bistil.memory": ("bistil.runtime.memory",),
    "bistil.objectives": ("bistil.distillation.objectives", "bistil.models.masked_lm", "bistil.text"),
    "bistil.ownership": ("bistil.runtime.ownership",),
    "bistil.parsing": ("bistil.tasks.parsing",),
    "bistil.parsing.conllu": ("bistil.tasks.parsing.conllu",),
    "bistil.parsing.model": ("bistil.models.parser", "bistil.models.auto"),
    "bistil.parsing.trees": ("bistil.tasks.parsing.trees",),
    "bistil.pipeline": (
        "bistil.method",
        "bistil.runs.inputs",
        "bistil.runs.folder",
        "bistil.runs.stages",
        "bistil.runs.stages.measuring",
        "bistil.runs.summary",
    ),
    "bistil.progress": ("bistil.runtime.progress",),
    "bistil.reading": ("bistil.tasks.reading",),
    "bistil.recipe": ("bistil.settings.recipe",),
    "bistil.representations": ("bistil.distillation.representations",),
    "bistil.stages": ("bistil.runs.folder", "bistil.runs.stage"),
    "bistil.student": ("bistil.distillation.student",),
    "bistil.text_files": ("bistil.text.files",),
    "bistil.tokenizer_files": ("bistil.models.tokenizers",),
}
# Modules that are still there, of which some names went elsewhere.
LEFT: dict[str, tuple[str, ...]] = {
    "bistil.distillation.general": ("bistil.sparse.wearing", "bistil.models.masked_lm"),
    "bistil.distillation.module": ("bistil.distillation.terms",),
    "bistil.distillation.task": ("bistil.distillation.task_data", "bistil._moved"),
    "bistil.models": ("bistil.models.loading", "bistil.models.names", "bistil.runtime.quiet"),
    "bistil.sparse.artefact": ("bistil.sparse.delta",),
    "bistil.sparse.base": ("bistil.models.fingerprint",),
    "bistil.sparse.hub": ("bistil.sparse.sharing",),
    "bistil.sparse.legacy": ("bistil.sparse.files", "bistil.sparse.artefact"),
    "bistil.tasks.base": (
        "bistil.tasks.metrics",
        "bistil.tasks.batches",
        "bistil.tasks.boundaries",
        "bistil.models.heads",
        "bistil.models.families",
        "bistil.text",
    ),
    "bistil.tasks.sequence_classification": ("bistil.tasks.texts",),
    "bistil.training": (
        "bistil.training.loop",
        "bistil.training.order",
        "bistil.training.recorder",
        "bistil.training.checkpoints",
        "bistil.training.processes",
    ),
    "bistil.vocabulary.progress": ("bistil.vocabulary.progress",),
    "bistil.vocabulary.selection": ("bistil.vocabulary.selection",),
    "bistil.vocabulary.verification": ("bistil.vocabulary.verification",),
    "bistil.vocabulary.weights": ("bistil.vocabulary.weights",),
}
# Names that have another one in their new home.
RENAMED = {
    ("bistil.benchmark", "record"): "cost_record",
    ("bistil.distillation.general", "model_configuration"): "supported_config",
    ("bistil.distillation.module", "Pair"): "RowPair",
    ("bistil.distillation.task", "reading"): "how_to_read",
    ("bistil.evaluation", "evaluate"): "evaluate_folder",
    ("bistil.evaluation", "record"): "score_record",
    ("bistil.ownership", "versions"): "writer",
    ("bistil.pipeline", "BENCHMARK_EXAMPLES"): "COST_EXAMPLES",
    ("bistil.progress", "PLAIN_SECONDS"): "LINE_SECONDS",
    ("bistil.reading", "read_lines"): "numbered_lines",
    ("bistil.vocabulary.progress", "reading"): "counting_progress",
    ("bistil.vocabulary.selection", "probabilities"): "unigram_probabilities",
    ("bistil.vocabulary.verification", "check_text"): "check_tokens",
    ("bistil.vocabulary.weights", "load_model"): "load_checkpoint",
}


def _found(old: str, parts: tuple[str, ...], name: str) -> tuple[str, Any]:
    """Where a name of an old module is now, and what it stands for.

    Raises:
        AttributeError: it went, or never was.
    """
    wanted = RENAMED.get((old, name), name)
    for part in parts if not name.startswith("__") else ():
        module = import_module(part)
        if wanted in vars(module):
            return f"{part}.{wanted}", getattr(module, wanted)
    raise AttributeError(f"module {old!r} has no attribute {name!r}")


def left_names(old: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module in `LEFT`: names that went elsewhere are found there, with a warning."""

    def find(name: str) -> Any:
        new, value = _found(old, LEFT[old], name)
        warnings.warn(f"{old}.{name} is now {new}; the old name goes in 0.3", DeprecationWarning, stacklevel=2)
        return value

    return find


class _OldModule(ModuleType):
    """Finds its names in the modules that took its place."""

    def __getattr__(self, name: str) -> Any:
        return _found(self.__name__, MOVED[self.__name__], name)[1]


class _OldPaths(MetaPathFinder, Loader):
    """Finds modules that moved."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A spec for a module that moved, None for all others."""
        del path, target
        return ModuleSpec(fullname, self, is_package=fullname == "bistil.parsing") if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module in front of the new ones."""
        new = ", ".join(MOVED[spec.name])
        # The importing line is the first outside of importlib, whose frames `warnings` leaves out.
        warnings.warn(f"{spec.name} is now {new}; the old name goes in 0.3", DeprecationWarning, stacklevel=2)
        return _OldModule(spec.name, f"Now {new}.")

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def fit_task(start: Any, data: Any, **given: Any) -> Any:
    """`fit_task` of version 0.1, which is two functions now."""
    task: Any = import_module("bistil.distillation.task")
    folders: Any = import_module("bistil.distillation.task_folders")
    warnings.warn(
        "bistil.fit_task is now bistil.finetune (in memory), or write_task_teacher and write_task_student of "
        "bistil.distillation.task_folders; the old name goes in 0.3",
        DeprecationWarning,
        stacklevel=2,
    )
    outputs = folders.TaskOutputs(
        model=given["output"], sft=given.get("sft_output"), replace=given.get("replace", False)
    )
    how = {name: given[name] for name in ("settings", "max_length", "seed", "label", "languages") if name in given}
    fitting = task.Fitting(data=data, folder=given["work"], **how)
    if given.get("teacher") is not None:
        return folders.write_task_student(start, given["teacher"], fitting, outputs)
    sfts, force = given.get("language_sfts"), given.get("force_sfts", False)
    return folders.write_task_teacher(start, fitting, outputs, language_sfts=sfts, force_sfts=force)


def install() -> None:
    """Let old import paths work; once, when the package is imported."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(_OldPaths())
