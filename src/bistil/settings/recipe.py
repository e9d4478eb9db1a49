"""The typed recipe: one dataclass per stage, TOML in and out.

The string beside each field is its documentation, in a recipe's reference as in `--help`.
Defaults suit two CPU cores; `recipes/paper-mbert.toml` holds the paper's settings.
"""

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from bistil.errors import RecipeError

Settings = TypeVar("Settings")
Kind = Literal["sequence-classification", "token-classification", "dependency-parsing", "question-answering"]
PresetName = Literal["paper", "short"]
TagScheme = Literal["iob1", "iob2", "iobes", "bilou", "bmes", "types", "none"]


def option(default: Any = MISSING, help: str = "", *, factory: Any = MISSING) -> Any:
    """A dataclass field that carries its own help text; without default the recipe must give it."""
    metadata = {"help": help}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def help_of(settings: type, name: str) -> str:
    """The help string of a settings field."""
    return next(str(f.metadata.get("help", "")) for f in fields(settings) if f.name == name)


def _at_least(settings: Any, name: str, least: int) -> None:
    value = getattr(settings, name)
    if value is not None and not least <= value < float("inf"):
        raise RecipeError(f"{name} is {value}; it must be at least {least}")


@dataclass(kw_only=True, frozen=True)
class TrimSettings:
    """Vocabulary reduction (paper, section 3.1)."""

    ALTERNATIVES: ClassVar = (("threshold", "vocabulary_size"),)

    threshold: float | None = option(1e-6, "keep a token whose unigram probability reaches this in any corpus")
    vocabulary_size: int | None = option(None, "keep this many tokens instead, the most probable first")
    keep_characters: bool = option(True, "always keep single-character tokens that the corpora contain")
    keep: str | None = option(None, "file of words or tokens to keep besides, one a line; for small corpora")


@dataclass(kw_only=True, frozen=True)
class TrainingSettings:
    """How one training run is carried out; what is trained is the caller's business."""

    ALTERNATIVES: ClassVar = (("steps", "epochs"),)

    steps: int | None = option(None, "optimizer steps; give either steps or epochs")
    epochs: float | None = option(None, "passes over the training data")
    least_steps: int | None = option(None, "with epochs: at least so many steps, by more passes over little data")
    most_steps: int | None = option(None, "with epochs: at most so many steps, by fewer passes over much data")
    batch_size: int = option(16, "examples per optimizer step, over all processes and accumulated parts")
    accumulation: int = option(1, "parts that a batch is cut into to save memory")
    learning_rate: float = option(1e-4, "peak learning rate; decays linearly to 0")
    warmup_steps: float = option(0.0, "steps of linear warm-up; below 1: share of all steps")
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this L2 norm; 0 is off")
    precision: Literal["float32", "bf16"] = option("float32", "number format of the matrix products")
    compile: bool = option(False, "torch.compile the student")
    checkpoint_steps: int = option(100, "steps between checkpoints; at most this much work is ever lost")
    evaluate_steps: int | None = option(None, "steps between evaluations on held-out data; none: only at the end")
    patience: int | None = option(None, "stop after this many evaluations without improvement")
    log_steps: int = option(10, "steps between lines of train_log.jsonl")
    loggers: list[str] = option(factory=list, help="extra loggers of the Trainer, such as tensorboard or trackio")
    workers: int = option(0, "processes that load data")

    def __post_init__(self) -> None:
        """Raises RecipeError for a number that no training can have."""
        for name in (
            "steps",
            "least_steps",
            "most_steps",
            "batch_size",
            "accumulation",
            "checkpoint_steps",
            "evaluate_steps",
            "patience",
            "log_steps",
        ):
            _at_least(self, name, 1)
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "workers"):
            _at_least(self, name, 0)
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise RecipeError(f"{name} is {value}; it must be above 0")
        if self.least_steps is not None and self.most_steps is not None and self.least_steps > self.most_steps:
            raise RecipeError(f"least_steps is {self.least_steps}, above most_steps, {self.most_steps}")
        if self.warmup_steps > 1 and self.warmup_steps % 1:
            raise RecipeError(
                f"warmup_steps is {self.warmup_steps}; give a whole number of steps, or a share of all steps below 1"
            )
        if self.patience is not None and self.evaluate_steps is None:
            raise RecipeError(f"patience is {self.patience}, but nothing is evaluated before the end: evaluate_steps")

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Raises RecipeError for bounds of a length in epochs beside a number of steps (see `parse`)."""
        for name in ("least_steps", "most_steps") if given.get("steps") is not None else ():
            if given.get(name) is not None:
                raise RecipeError(f"{name} is {given[name]} beside steps, which are exact: give it with epochs")


@dataclass(kw_only=True, frozen=True)
class ObjectiveSettings:
    """Weights of the distillation losses; a term with weight 0 is not computed."""

    attention: float = option(1.0, "MSE of the attention probabilities of aligned layers")
    hidden: float = option(1.0, "MSE of the hidden states of aligned layers and of the embedding output")
    prediction: float = option(0.0, "soft cross-entropy against the teacher's predictions")
    temperature: float = option(2.0, "softmax temperature of the prediction loss, on both sides")
    hard_labels: float = option(0.0, "the task's own loss on labelled examples (phase 2), or MLM loss (phase 1)")
    relations: float = option(0.0, "MiniLMv2 self-attention relations of the last aligned layer")
    relation_heads: int = option(12, "number of relation heads")
    cosine: float = option(0.0, "DistilBERT's cosine loss between last hidden states")


@dataclass(kw_only=True, frozen=True)
class StudentSettings:
    """Which teacher layers a student starts from (paper, section 3.2)."""

    ALTERNATIVES: ClassVar = (("reduction", "layers", "depth"),)

    name: str = option(help="the student's folder name, such as lrf2")
    reduction: int | None = option(None, "layer reduction factor s: keep every s-th layer")
    layers: list[int] | None = option(None, "explicit 1-based teacher layers instead of a reduction")
    depth: int | None = option(None, "number of layers (any depth) instead of a reduction")
    spread: Literal["even", "first", "last"] = option("even", "where a depth takes its layers from")
    start: Literal["copy", "random"] = option("copy", "copied or random weights")
    objective: ObjectiveSettings | None = option(
        None, "this student's own weights of the phase 1 losses, instead of phase1.objective"
    )

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Raises RecipeError for a spread without the depth that it spreads (see `parse`)."""
        if given.get("spread") is not None and self.depth is None:
            raise RecipeError(f"spread is {self.spread!r}, which is a depth's: give depth instead of the layers")


@dataclass(kw_only=True, frozen=True)
class Phase1Settings:
    """General bilingual distillation (paper, section 3.2)."""

    block_length: int = option(128, "tokens per training block")
    held_out: float = option(0.05, "share of each language's blocks kept for the held-out loss")
    held_out_shares: dict[str, float] = option(factory=dict, help="per language, another share than held_out")
    held_out_blocks: int | None = option(64, "at most this many blocks per language are held out; false: no limit")
    freeze_embeddings: bool = option(False, "the student's embeddings stay the teacher's and get no gradient")
    probabilities: dict[str, float] = option(factory=dict, help="per language, of a batch; default: equal")
    objective: ObjectiveSettings = option(factory=ObjectiveSettings, help="weights of the losses")
    training: TrainingSettings = option(
        factory=lambda: TrainingSettings(steps=600, learning_rate=5e-4, evaluate_steps=200), help="the training run"
    )


@dataclass(kw_only=True, frozen=True)
class SparseSettings:
    """Lottery-ticket sparse fine-tuning (Ansell et al. 2022, section 3)."""

    ALTERNATIVES: ClassVar = (
        ("density", "count"),
        ("dense_epochs", "dense_steps"),
        ("sparse_epochs", "sparse_steps"),
    )

    density: float | None = option(0.08, "share of the maskable entries that stay free in the sparse phase")
    count: int | None = option(None, "number of free entries instead of a density")
    dense_epochs: float | None = option(3.0, "length of the dense phase in epochs")
    sparse_epochs: float | None = option(5.0, "length of the sparse phase in epochs")
    dense_steps: int | None = option(None, "length of the dense phase in steps instead")
    sparse_steps: int | None = option(None, "length of the sparse phase in steps instead")
    freeze_embeddings: bool = option(False, "input embeddings are neither masked nor trained")
    freeze_layer_norms: bool = option(False, "layer norms are neither masked nor trained")


@dataclass(kw_only=True, frozen=True)
class TaskSettings:
    """The labelled data and how they are read."""

    kind: Kind = option(help="which task")
    preset: PresetName | None = option(
        None, "`paper` or `short` (two CPU cores): this task's defaults of finetune, phase2 and max_length"
    )
    train: list[str] = option(help="labelled files in the source language, or data sets: dataset:NAME[:CONFIG]:SPLIT")
    dev: list[str] = option(factory=list, help="labelled source files that choose the checkpoint")
    test: dict[str, list[str]] = option(factory=dict, help="per language, labelled files for the last measurement")
    max_length: int = option(128, "tokens per example or window")
    label_map: dict[str, str] = option(factory=dict, help="labels to rename on reading, such as B-DATE to O")
    parser_projection: int | None = option(None, "dependency parsing: dimensions before the biaffine; none: full head")
    columns: dict[str, str] = option(
        factory=dict,
        help="which column is text, pair or label (classification), words or tags (tagging): its name, or its number "
        "from 1 in CoNLL columns; ignore: columns that are left out on purpose, separated by commas",
    )
    language: str | None = option(
        None, "rows of this language in training and dev files that are in several; all: all rows; none: the source's"
    )
    scheme: TagScheme | None = option(
        None, "scheme of tags that mark spans; the word `none` for tags that mark none; not given: as the tags show"
    )
    strict: bool = option(False, "refuse a file for its first odd row, instead of leaving out a few")

    def __post_init__(self) -> None:
        """Raises RecipeError for a length or size that no example fits in, and for what this task has no use for."""
        _at_least(self, "max_length", 4)
        _at_least(self, "parser_projection", 1)
        if self.parser_projection is not None and self.kind != "dependency-parsing":
            raise RecipeError(f"parser_projection is of dependency parsing; {self.kind} has no use for it")
        if self.label_map and self.kind == "question-answering":
            raise RecipeError("label_map renames labels, and question-answering has none: leave it out")


@dataclass(kw_only=True, frozen=True)
class FinetuneSettings:
    """Fine-tuning for a task: the task teacher, or a self-taught student."""

    sparse: SparseSettings | None = option(factory=SparseSettings, help="sparse fine-tuning; false: dense")
    training: TrainingSettings = option(
        factory=lambda: TrainingSettings(epochs=3.0, batch_size=16, learning_rate=1e-4),
        help="the training run; steps and epochs are those of a dense fine-tuning",
    )

    def __post_init__(self) -> None:
        """Raises RecipeError for steps that a sparse fine-tuning would not take."""
        if self.training.steps is not None:
            self.check_given({"training": {"steps": self.training.steps}})

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Refuse a length that is written down and would have no effect.

        Args:
            given: the plain values that the settings were read from.

        Raises:
            RecipeError: steps or epochs of a training run whose phases have lengths of their own.
        """
        lengths = given.get("training", {})
        for name in ("steps", "epochs") if self.sparse is not None else ():
            if lengths.get(name) is not None:
                raise RecipeError(
                    f"training.{name} is {lengths[name]}, but the fine-tuning is sparse: give sparse.dense_{name} and "
                    f"sparse.sparse_{name}, or sparse = false"
                )


@dataclass(kw_only=True, frozen=True)
class Phase2Settings(FinetuneSettings):
    """Task distillation from the task teacher (paper, section 3.3)."""

    teacher_forced: bool = option(True, "learn from the task teacher (TF); false: from labels only (ST)")
    objective: ObjectiveSettings = option(
        factory=lambda: ObjectiveSettings(attention=1.0, hidden=1.0, prediction=1.0), help="weights of the losses"
    )
    target_text: float = option(
        1.0, "batches of unlabelled target text per batch of labelled source examples; 0 in the paper"
    )
    target_sentences: int | None = option(None, "learn from so many lines of target text, drawn at random; none: all")

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Also refuse what only a task teacher, or target text, would make use of."""
        super().check_given(given)
        for name in ("target_text", "target_sentences", "objective") if not self.teacher_forced else ():
            if given.get(name):
                raise RecipeError(f"{name} is given, but teacher_forced = false learns from labels only: leave one out")
        if self.target_sentences is not None and not self.target_text:
            raise RecipeError(f"target_sentences is {self.target_sentences}, but target_text is 0: leave one out")


def without_target_text(settings: Phase2Settings) -> Phase2Settings:
    """The same phase 2 on labelled batches only, with as many optimizer steps (up to the rounding of an epoch)."""
    factor = 1 + settings.target_text

    def longer(epochs: float | None) -> float | None:
        return None if epochs is None else epochs * factor

    sparse = settings.sparse and replace(
        settings.sparse,
        dense_epochs=longer(settings.sparse.dense_epochs),
        sparse_epochs=longer(settings.sparse.sparse_epochs),
    )
    training = replace(settings.training, epochs=longer(settings.training.epochs))
    return replace(settings, sparse=sparse, training=training, target_text=0.0, target_sentences=None)


@dataclass(kw_only=True, frozen=True)
class TaskPreset:
    """Settings of one task that go together; what a recipe or a command line gives explicitly wins."""

    max_length: int
    finetune: FinetuneSettings
    phase2: Phase2Settings


@dataclass(kw_only=True, frozen=True)
class _Lengths:
    """One line of a preset's table: teacher and student train alike but for the student's rate and dense epochs."""

    dense_epochs: float
    student_epochs: float | None = None
    sparse_epochs: float | None
    batch_size: int
    learning_rate: float
    student_rate: float
    warmup_steps: float = 0.0
    least_steps: int | None = None
    most_steps: int | None = None
    evaluate_steps: int | None
    max_length: int


SHORT_LEAST_STEPS, SHORT_MOST_STEPS = 300, 3_000


def _short(*, batch_size: int, max_length: int) -> _Lengths:
    """A line of `short`: lengths for two CPU cores, close to those of the studies in docs/tasks.md.

    Dense: a sparse fine-tuning takes half as many steps again for the same score, for its mask costs training too.
    Lengths follow the size of the data between two bounds: a few hundred examples, in two passes, teach a new head
    hardly anything (benchmarks/records/short_lengths.jsonl), and a hundred thousand would take a night.
    """
    return _Lengths(
        dense_epochs=2, student_epochs=1, sparse_epochs=None, batch_size=batch_size, learning_rate=1.5e-4,
        student_rate=3e-4, warmup_steps=0.1, least_steps=SHORT_LEAST_STEPS, most_steps=SHORT_MOST_STEPS,
        evaluate_steps=None, max_length=max_length,
    )  # fmt: skip


# `paper`: the paper's table; its released code evaluates taggers and parsers after every epoch (of 14,041 and 12,543
# sentences), that of LT-SFT evaluates classifiers every 625 steps; max_length is ours but for question answering.
_PRESETS: dict[tuple[PresetName, Kind], _Lengths] = {
    ("paper", "token-classification"): _Lengths(
        dense_epochs=3, sparse_epochs=10, batch_size=8, learning_rate=5e-5, student_rate=5e-5,
        evaluate_steps=1_755, max_length=256,
    ),
    ("paper", "dependency-parsing"): _Lengths(
        dense_epochs=3, sparse_epochs=10, batch_size=8, learning_rate=5e-5, student_rate=5e-5,
        evaluate_steps=1_568, max_length=256,
    ),
    ("paper", "sequence-classification"): _Lengths(
        dense_epochs=5, sparse_epochs=5, batch_size=32, learning_rate=2e-5, student_rate=2e-5,
        evaluate_steps=625, max_length=128,
    ),
    ("paper", "question-answering"): _Lengths(
        dense_epochs=5, sparse_epochs=5, batch_size=12, learning_rate=3e-5, student_rate=3e-5,
        evaluate_steps=2_000, max_length=384,
    ),
    ("short", "token-classification"): _short(batch_size=16, max_length=128),
    ("short", "dependency-parsing"): _short(batch_size=16, max_length=128),
    ("short", "sequence-classification"): _short(batch_size=32, max_length=128),
    ("short", "question-answering"): _short(batch_size=12, max_length=256),
}  # fmt: skip


def task_preset(name: PresetName, kind: Kind) -> TaskPreset:
    """The settings of a preset for a task: `paper` (sparse, no target text) or `short` (dense, with target text)."""
    line = _PRESETS[name, kind]
    sparse = None
    if line.sparse_epochs is not None:
        sparse = SparseSettings(density=0.08, dense_epochs=line.dense_epochs, sparse_epochs=line.sparse_epochs)

    def training(epochs: float, learning_rate: float) -> TrainingSettings:
        return TrainingSettings(
            epochs=epochs,
            batch_size=line.batch_size,
            learning_rate=learning_rate,
            warmup_steps=line.warmup_steps,
            least_steps=line.least_steps,
            most_steps=line.most_steps,
            evaluate_steps=line.evaluate_steps,
        )

    return TaskPreset(
        max_length=line.max_length,
        finetune=FinetuneSettings(sparse=sparse, training=training(line.dense_epochs, line.learning_rate)),
        phase2=Phase2Settings(
            sparse=sparse,
            training=training(line.student_epochs or line.dense_epochs, line.student_rate),
            target_text=0.0 if name == "paper" else 1.0,
        ),
    )


@dataclass(kw_only=True, frozen=True)
class CompareSettings:
    """What the students are measured against, besides the undistilled teacher."""

    trimmed: bool = option(True, "the teacher with the trimmed vocabulary only")
    copied: bool = option(True, "each student without phase 1: copied layers, same phase 2")
    self_taught: bool = option(False, "each student without the task teacher (ST)")
    no_target_text: bool = option(
        False, "each student without target text, for as many steps: more epochs over the labels"
    )
    majority: bool = option(True, "always the most frequent label of the training data")


@dataclass(kw_only=True, frozen=True)
class Recipe:
    """A whole run: from a multilingual teacher to small models for one language pair.

    Paths in a recipe are relative to the recipe's own folder.
    """

    name: str = option("run", "a short name for the reports")
    teacher: str = option(help="hub name or folder of the multilingual model; e5-small is the packaged one")
    source: str = option(help="code of the language with labels, such as en")
    target: str = option(help="code of the language that the model is for")
    text: dict[str, list[str]] = option(help="per language, files of plain text, one sentence or paragraph per line")
    seed: int = option(0, "seed of everything that is drawn")
    trim: TrimSettings = option(factory=TrimSettings, help="vocabulary reduction")
    language_sfts: dict[str, str] = option(factory=dict, help="per language, the teacher's language SFT")
    force_sfts: bool = option(False, "wear language SFTs although they were made for another base")
    students: list[StudentSettings] = option(
        factory=lambda: [StudentSettings(name="lrf2", reduction=2)], help="the students to make"
    )
    phase1: Phase1Settings = option(factory=Phase1Settings, help="general bilingual distillation")
    task: TaskSettings | None = option(None, "the task; without it the run ends after phase 1")
    finetune: FinetuneSettings = option(factory=FinetuneSettings, help="the task teacher")
    phase2: Phase2Settings = option(factory=Phase2Settings, help="task distillation")
    compare: CompareSettings = option(factory=CompareSettings, help="rows to compare with")

    def __post_init__(self) -> None:
        """Raises RecipeError for rows to compare with that would be no other than the student's."""
        if self.compare.self_taught and not self.phase2.teacher_forced:
            raise RecipeError("compare.self_taught is on, but phase2.teacher_forced = false: all students are")
        if self.compare.no_target_text and not (self.phase2.teacher_forced and self.phase2.target_text):
            raise RecipeError("compare.no_target_text is on, but phase 2 has no target text: leave it out")


def load_recipe(path: Path, *, folder: Path | None = None) -> Recipe:
    """Read, check and resolve a recipe; its relative paths become absolute.

    Args:
        path: a TOML file.
        folder: what relative paths are relative to; default: the recipe's folder.

    Raises:
        RecipeError: unreadable file, unknown key, wrong type, impossible combination.
    """
    values, defaults = _with_preset(load_toml(path), str(path))
    recipe = parse(Recipe, values, str(path), defaults=defaults)
    base = (folder or path.parent).absolute()

    def located(files: list[str]) -> list[str]:
        return [_located(file, base) for file in files]

    without_text = sorted(recipe.language_sfts.keys() - recipe.text.keys())
    if without_text:
        raise RecipeError(f"{path}: language_sfts has {without_text[0]!r}, which has no text: no batch would wear it")
    languages = {recipe.source, recipe.target}
    if len(languages) < 2:
        raise RecipeError(
            f"{path}: source and target are both {recipe.source!r}; a bilingual student needs two languages"
        )
    missing = sorted(languages - recipe.text.keys())
    if missing:
        raise RecipeError(f"{path}: text has no files for {', '.join(missing)}: add text.{missing[0]} = [...]")
    names = [student.name for student in recipe.students]
    if len(set(names)) != len(names) or not names:
        raise RecipeError(f"{path}: every student needs a name of its own, not {names}")
    teacher = recipe.teacher
    if teacher.startswith((".", "/")) or (base / teacher).is_dir():
        teacher = str(base / teacher)
    trim = recipe.trim if recipe.trim.keep is None else replace(recipe.trim, keep=str(base / recipe.trim.keep))
    task = recipe.task
    if task is not None:
        task = replace(
            task,
            train=located(task.train),
            dev=located(task.dev),
            test={language: located(files) for language, files in task.test.items()},
        )
        unknown = sorted(task.test.keys() - recipe.text.keys())
        if unknown:
            raise RecipeError(f"{path}: task.test has language {unknown[0]!r}, which has no text")
    return replace(
        recipe,
        teacher=teacher,
        trim=trim,
        text={language: located(files) for language, files in recipe.text.items()},
        language_sfts={
            code: str(base / sft) if (base / sft).is_dir() else sft for code, sft in recipe.language_sfts.items()
        },
        task=task,
    )


def _with_preset(values: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's values with its preset's `max_length`, and the preset's defaults of `finetune` and `phase2`."""
    task = values.get("task")
    if not isinstance(task, dict) or task.get("preset") is None:
        return values, {}
    known = parse(TaskSettings, task, f"{where}.task")
    assert known.preset is not None
    preset = task_preset(known.preset, known.kind)
    values = {**values, "task": {"max_length": preset.max_length, **task}}
    return values, {"finetune": preset.finetune, "phase2": preset.phase2}


def _located(file: str, base: Path) -> str:
    """A file's or data set's name with its relative path made absolute; a name on the hub stays itself."""
    if not file.startswith("dataset:"):
        return str(base / file)
    name, colon, rest = file.removeprefix("dataset:").partition(":")
    return f"dataset:{base / name}{colon}{rest}" if (base / name).is_dir() else file


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def parse(
    settings: type[Settings],
    values: Any,
    where: str,
    *,
    base: Settings | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Build a settings dataclass from plain values, checking names and types.

    Args:
        settings: a dataclass type of this module.
        values: what TOML or JSON gave for it.
        where: how to name the place in messages, such as "recipe.toml: phase1.training".
        base: where keys that are not given come from, instead of the class's own defaults.
        defaults: the same for some keys only.

    Raises:
        RecipeError: unknown key (with the nearest known one), missing key, value of another type or out of range.
    """
    if not isinstance(values, dict):
        raise RecipeError(f"{where} must be a table, not {values!r}")
    hints = get_type_hints(settings)
    known: dict[str, Field[Any]] = {f.name: f for f in fields(settings)}  # type: ignore[arg-type]
    defaults = defaults or {}
    parsed: dict[str, Any] = dict(defaults)
    for name, value in values.items():
        if name not in known:
            raise RecipeError(f"{where}: unknown key {name!r}; {_suggest(name, list(known))}")
        default = defaults[name] if name in defaults else _default(known[name], base)
        parsed[name] = _value(hints[name], value, f"{where}.{name}", base=default)
    for group in getattr(settings, "ALTERNATIVES", ()):
        given = [name for name in group if parsed.get(name) is not None]
        if len(given) > 1:
            raise RecipeError(f"{where}: give only one of {' and '.join(map(repr, given))}")
        if given:
            # Whoever says steps does not want the default epochs as well.
            parsed.update({name: None for name in group if name != given[0]})
    for name, one in known.items() if base is None else ():
        if name not in parsed and one.default is MISSING and one.default_factory is MISSING:
            raise RecipeError(f"{where}: {name!r} is missing ({one.metadata.get('help', '')})")
    try:
        made: Any = settings(**parsed) if base is None else replace(base, **parsed)  # type: ignore[type-var]
        # What is written down must have an effect.
        if hasattr(made, "check_given"):
            made.check_given(values)
    except RecipeError as error:  # a value that the settings themselves refuse
        raise RecipeError(f"{where}.{error}") from None
    return cast(Settings, made)


def _default(one: Field[Any], base: Any) -> Any:
    if base is not None:
        return getattr(base, one.name)
    return one.default_factory() if one.default_factory is not MISSING else None


def _value(hint: Any, value: Any, where: str, *, base: Any = None) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None or (value is False and type(None) in arguments):
            return None
        if value == {} and base is None and _may_be_empty(arguments):
            # A table in which nothing is given changes nothing: what is none stays none.
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where, base=base)
    if origin is Literal:
        if value not in arguments:
            raise RecipeError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is list:
        # One file or label is as welcome as a list of one.
        items = value if isinstance(value, list) else [value]
        return [_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{where} must be a table, not {value!r}")
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and is_dataclass(hint):
        return parse(hint, value, where, base=base)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise RecipeError(f"{where} is {value!r}; expected {hint.__name__}")
    return value


def _may_be_empty(types_: tuple[Any, ...]) -> bool:
    """Whether the settings class among these types needs no key."""
    settings = next((one for one in types_ if is_dataclass(one)), None)
    return settings is not None and not any(
        one.default is MISSING and one.default_factory is MISSING for one in fields(settings)
    )


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        RecipeError: the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain values, for JSON and digests."""
    return asdict(settings)
