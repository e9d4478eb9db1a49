"""The typed recipe: a whole run's settings, out of a TOML file.

The settings of the stages are in `settings.schema`, reading and writing plain values in `settings.parsing`, and what
goes together in `settings.presets`; their names are here too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bistil.errors import RecipeError, first_line
from bistil.runtime.whole_files import read_json
from bistil.settings.durations import seconds_of
from bistil.settings.parsing import Settings, assigned, deciding, load_toml, parse, to_dict, typed
from bistil.settings.presets import SHORT_LEAST_STEPS, SHORT_MOST_STEPS, TaskPreset, phase1_preset, task_preset
from bistil.settings.schema import (
    MOST_SEED,
    MOST_TEACHERS,
    AdaptSettings,
    Checked,
    CompareSettings,
    Device,
    FinetuneSettings,
    Kind,
    LanguageSettings,
    ObjectiveSettings,
    Phase1Settings,
    Phase2Settings,
    PresetName,
    SelectionSettings,
    SparseSettings,
    StudentSettings,
    TagScheme,
    TaskSettings,
    TrainingSettings,
    TrimSettings,
    check_language,
    help_of,
    on_device,
    option,
    phase2_of,
    with_rate,
    without_target_text,
)
from bistil.settings.trust import require_trust

__all__ = [
    "SHORT_LEAST_STEPS",
    "SHORT_MOST_STEPS",
    "TASK_TEACHERS",
    "UNNAMED_RUN",
    "AdaptSettings",
    "Checked",
    "CompareSettings",
    "Device",
    "FinetuneSettings",
    "Kind",
    "LanguageSettings",
    "ObjectiveSettings",
    "Phase1Settings",
    "Phase2Settings",
    "PresetName",
    "Recipe",
    "SelectionSettings",
    "Settings",
    "SparseSettings",
    "StudentSettings",
    "TagScheme",
    "TaskPreset",
    "TaskSettings",
    "TrainingSettings",
    "TrimSettings",
    "deciding",
    "help_of",
    "load_recipe",
    "load_toml",
    "on_device",
    "option",
    "parse",
    "phase1_preset",
    "phase2_of",
    "task_preset",
    "to_dict",
    "with_rate",
    "without_target_text",
]

# What a run is called that has no name.
UNNAMED_RUN = "run"
# What a student may be compared with: "a, copied" in tables, a-copied in folders.
VARIANTS = ("copied", "self-taught", "no target text")
# Where a run keeps its task teachers; with them other lines of the tables, and other folders beside the students'.
TASK_TEACHERS = ("task-teacher", *(f"task-teacher-{number}" for number in range(2, MOST_TEACHERS + 1)))
# The teacher that students learn from, and what it is called in tables.
TRIMMED_TEACHER = "teacher, trimmed"
RESERVED = ("teacher", TRIMMED_TEACHER, "majority class", *TASK_TEACHERS, "record", "tensorboard")


@dataclass(kw_only=True, frozen=True)
class Recipe(Checked):
    """A whole run: from a multilingual teacher to small models for one language pair.

    Paths in a recipe are relative to the recipe's own folder.
    """

    name: str = option(UNNAMED_RUN, "a short name for the reports")
    teacher: str = option(help="hub name or folder of the multilingual model; e5-small is the packaged one")
    source: str = option(help="code of the language with labels, such as en")
    target: str = option(help="code of the language that the model is for")
    text: dict[str, list[str]] = option(help="per language, files of plain text, one sentence or paragraph per line")
    seed: int = option(0, "seed of everything that is drawn", least=0, most=MOST_SEED)
    budget: str | None = option(
        None, "time that the run may take, such as 45m or 1h30m: all trainings become longer or shorter by one factor, "
        "fixed when the run's folder is made (docs/plan.md)",
    )  # fmt: skip
    trim: TrimSettings = option(factory=TrimSettings, help="vocabulary reduction")
    language_sfts: dict[str, str] = option(
        factory=dict, help="per language, the teacher's language SFT", flag="language-sft", entry="LANGUAGE=SFT"
    )
    force_sfts: bool = option(False, "wear language SFTs although they were made for another base")
    language: LanguageSettings | None = option(
        None, "learn language SFTs in the run; without this table none is learnt", empty=True
    )
    students: list[StudentSettings] = option(
        factory=lambda: [StudentSettings(name="lrf2", reduction=2)], help="the students to make"
    )
    phase1: Phase1Settings = option(factory=Phase1Settings, help="general bilingual distillation")
    task: TaskSettings | None = option(None, "the task; without it the run ends after phase 1")
    finetune: FinetuneSettings = option(factory=FinetuneSettings, help="the task teacher")
    phase2: Phase2Settings = option(factory=Phase2Settings, help="task distillation")
    selection: SelectionSettings | None = option(
        None, "phase2.target_sentences are the lines most like the labelled texts; without this table they are drawn",
        empty=True,
    )  # fmt: skip
    compare: CompareSettings = option(factory=CompareSettings, help="rows to compare with")

    def __post_init__(self) -> None:
        """Raises RecipeError for tables that do not go together."""
        super().__post_init__()
        if not self.teacher.strip():
            raise RecipeError("teacher is empty: give a hub name, a folder, or e5-small")
        if self.budget is not None:
            seconds_of(self.budget)
        self._check_languages()
        self._check_language_sfts()
        self._check_students()
        self._check_compare()
        if self.selection is not None and not (self.phase2.teacher_forced and self.phase2.target_sentences):
            raise RecipeError(
                "selection is given, but phase2.target_sentences does not say how many lines are selected: add it"
            )
        if self.task is not None:
            self._check_task(self.task)

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Raises RecipeError for tables that only a task makes use of, where there is none (see `parse`)."""
        for name in ("finetune", "phase2", "selection", "compare") if self.task is None else ():
            if given.get(name):
                raise RecipeError(f"{name} is given, but there is no task: add [task], or leave it out")
        if given.get("force_sfts") and not self.language_sfts:
            raise RecipeError("force_sfts is on, but language_sfts names none: leave it out")
        compare = given.get("compare")
        if self.task is not None and not self.task.test and isinstance(compare, Mapping) and compare.get("majority"):
            raise RecipeError("compare.majority is on, but task.test has no files to score it on")

    def _check_languages(self) -> None:
        if self.source == self.target:
            raise RecipeError(f"source and target are both {self.source!r}; a bilingual student needs two languages")
        for language in (self.source, self.target, *self.text):
            check_language(language, "text")
        missing = sorted(code for code in {self.source, self.target, *self.text} if not self.text.get(code))
        if missing:
            raise RecipeError(f"text has no files for {', '.join(missing)}: add text.{missing[0]} = [...]")
        for name in ("held_out_shares", "probabilities"):
            self._check_text(getattr(self.phase1, name), f"phase1.{name}")
        lacking = sorted(self.text.keys() - self.phase1.probabilities.keys()) if self.phase1.probabilities else []
        if lacking:
            raise RecipeError(f"phase1.probabilities has no number for {lacking[0]!r}: give one for each language")

    def _check_text(self, languages: Iterable[str], what: str, why: str = "") -> None:
        without = sorted(set(languages) - self.text.keys())
        if without:
            raise RecipeError(f"{what} has {without[0]!r}, which has no text{why}")

    def _check_language_sfts(self) -> None:
        self._check_text(self.language_sfts, "language_sfts", ": no batch would wear it")
        if self.language is None:
            return
        self._check_text(self.language.languages, "language.languages", " to learn it from")
        twice = sorted(set(self.language.languages) & self.language_sfts.keys())
        if twice:
            raise RecipeError(f"language.languages has {twice[0]!r}, which language_sfts gives: leave one out")
        if len(set(self.language.languages)) < len(self.language.languages):
            raise RecipeError(f"language.languages is {self.language.languages}: name each language once")
        if not self.text.keys() - self.language_sfts.keys():
            raise RecipeError("language is given, but language_sfts gives every language's already: leave one out")

    def _check_students(self) -> None:
        names = [student.name for student in self.students]
        if not names or len({name.lower() for name in names}) < len(names):
            raise RecipeError(
                f"students need at least one, each with a name of its own (capitals do not count), not {names}"
            )
        taken = dict.fromkeys(RESERVED, "the run's own")
        for name in names:
            for variant in VARIANTS:
                own = f"what {name!r} is compared with"
                taken |= {f"{name}-{variant.replace(' ', '-')}".lower(): own, f"{name}, {variant}".lower(): own}
        for number, name in enumerate(names):
            if name.lower() in taken:
                raise RecipeError(
                    f"students[{number}].name is {name!r}, which is {taken[name.lower()]}: choose another"
                )
        for student in self.students:
            phase2_of(student, self.phase2)
        objectives = [student.objective or self.phase1.objective for student in self.students]
        masking = [name for name, one in zip(names, objectives, strict=True) if one.hard_labels]
        if 0 < len(masking) < len(names):
            raise RecipeError(
                f"students: hard_labels masks the text for all of a run, but only {', '.join(masking)} asks for it: "
                "give it a weight for all or for none"
            )

    def _check_task(self, task: TaskSettings) -> None:
        self._check_text(task.test, "task.test")
        if task.sources and self.source not in task.sources:
            raise RecipeError(
                f"task.sources has no files for the source, {self.source!r}: add task.sources.{self.source}"
            )
        for name in ("sources", "test"):
            for language, files in getattr(task, name).items():
                if not files:
                    raise RecipeError(f"task.{name}.{language} is empty: name labelled files or leave it out")
        for language in task.sources:
            check_language(language, "task.sources")
        for stage in ("finetune", "phase2") if not task.dev else ():
            if getattr(self, stage).training.patience is not None:
                raise RecipeError(f"{stage}.training.patience is given, but nothing is evaluated: add task.dev")

    def _check_compare(self) -> None:
        if self.compare.self_taught and not self.phase2.teacher_forced:
            raise RecipeError("compare.self_taught is on, but phase2.teacher_forced = false: all students are")
        if self.compare.no_target_text and not (self.phase2.teacher_forced and self.phase2.target_text):
            raise RecipeError("compare.no_target_text is on, but phase 2 has no target text: leave it out")


def load_recipe(
    path: Path, *, folder: Path | None = None, assignments: Iterable[str] = (), trust_code: bool = False
) -> Recipe:
    """Read, check and resolve a recipe; its relative paths become absolute.

    Args:
        path: a TOML file; or the `recipe.json` that a run left, which is resolved already: the same again.
        folder: what relative paths are relative to; default: the recipe's folder.
        assignments: changes such as `phase1.training.steps=300`, as `bistil run --set` takes them.
        trust_code: code that the recipe names as package.module:Class may be imported.

    Raises:
        RecipeError: unreadable file, unknown key, wrong type, impossible combination, code that is not trusted.
    """
    if path.suffix == ".json":
        return _recorded(path, assignments, trust_code=trust_code)
    read = load_toml(path)
    if {"systems", "variants", "targets"} & read.keys():
        raise RecipeError(f"{path} is a study, not a recipe: `bistil study` takes it")
    values, defaults = _with_preset(assigned(Recipe, read, assignments), str(path))
    recipe = parse(Recipe, values, str(path), defaults=defaults)
    require_trust(recipe, trust_code=trust_code, where=str(path))
    base = (folder or path.parent).absolute()

    def located(files: list[str]) -> list[str]:
        return [_located(file, base) for file in files]

    def all_located(files: Mapping[str, list[str]]) -> dict[str, list[str]]:
        return {language: located(own) for language, own in files.items()}

    teacher = recipe.teacher
    if teacher.startswith((".", "/")) or _is_folder(base / teacher):
        teacher = str(base / teacher)
    task = recipe.task and replace(
        recipe.task,
        train=located(recipe.task.train),
        sources=all_located(recipe.task.sources),
        dev=located(recipe.task.dev),
        test=all_located(recipe.task.test),
    )
    return replace(
        recipe,
        teacher=teacher,
        trim=recipe.trim if recipe.trim.keep is None else replace(recipe.trim, keep=str(base / recipe.trim.keep)),
        text=all_located(recipe.text),
        language_sfts={
            code: str(base / sft) if _is_folder(base / sft) else sft for code, sft in recipe.language_sfts.items()
        },
        task=task,
    )


def _recorded(path: Path, assignments: Iterable[str], *, trust_code: bool) -> Recipe:
    """The recipe of a run's record, in which nothing is left open."""
    changes = sorted(assignments)
    if changes:
        raise RecipeError(
            f"{path} is the record of a run, which is not changed: leave out {changes[0]}, or write a TOML recipe"
        )
    values = read_json(path)
    try:
        recipe: Recipe = typed(Recipe, values)
        same = to_dict(recipe) == values
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"{path} is not the recipe.json of a run: {first_line(error)}") from error
    if not same:
        raise RecipeError(f"{path} is the recipe.json of another version, or was changed: write a TOML recipe")
    require_trust(recipe, trust_code=trust_code, where=str(path))
    return recipe


def _with_preset(values: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's values with its preset's `max_length`, and the preset's defaults of `finetune` and `phase2`."""
    task = values.get("task")
    if not isinstance(task, dict) or task.get("preset") is None:
        return values, {}
    known = parse(TaskSettings, task, f"{where}.task")
    if known.preset is None:
        return values, {}
    preset = task_preset(known.preset, known.kind)
    values = {**values, "task": {"max_length": preset.max_length, **task}}
    return values, {"finetune": preset.finetune, "phase2": preset.phase2}


def _is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name that is too long for one is a name of something else."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _located(file: str, base: Path) -> str:
    """A file's or data set's name with its relative path made absolute; a name on the hub stays itself."""
    if not file.startswith("dataset:"):
        return str(base / file)
    name, colon, rest = file.removeprefix("dataset:").partition(":")
    return f"dataset:{base / name}{colon}{rest}" if _is_folder(base / name) else file
