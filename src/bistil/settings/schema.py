"""The settings of every stage: one dataclass each, with its help, its defaults and its limits.

The string beside each field is its documentation, in a recipe's reference as in `--help`.
Defaults suit two CPU cores; `recipes/paper-mbert.toml` holds the paper's settings.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from math import isfinite
from typing import Any, ClassVar, Literal, TypeVar, cast

from bistil.errors import RecipeError
from bistil.settings.kinds import own_kinds, task_kinds

Kind = str
"""Of a task; one of `kinds.task_kinds()`."""
PresetName = Literal["paper", "short"]
Device = Literal["auto", "cpu", "cuda", "mps"]
TagScheme = Literal["iob1", "iob2", "iobes", "bilou", "bmes", "types", "none"]

MOST_TEACHERS = 8
# What numpy and transformers take as a seed, with room for the seeds that are counted on from it.
MOST_SEED = 2**31 - 1


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    factory: Any = MISSING,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    flag: str = "",
    entry: str = "",
    empty: bool = False,
    cosmetic: bool = False,
    later: bool = False,
    choices: Callable[[], list[str]] | None = None,
) -> Any:
    """A dataclass field that carries its own help text and limits; without default the recipe must give it.

    Args:
        least, above, most, below: limits of the number, or of each number of a table; see `Checked`.
        flag: what the command line calls it where that is not the field's name: one entry of a list or table.
        entry: how the command line writes one entry of a table, such as LANGUAGE=NUMBER.
        empty: of a table that may be none: one in which nothing is given is all defaults, instead of changing nothing.
        cosmetic: it only says what something is called: no result depends on it (`runs.stage`).
        later: it came after others: while it has its default, what was made without it is not made again.
        choices: gives the texts that it may be, where these are not known when the class is written.
    """
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    given = {how: limit for how, limit in limits.items() if limit is not None}
    metadata: dict[str, Any] = {"help": help, "flag": flag, "entry": entry, "empty": empty, "limits": given}
    metadata |= {"cosmetic": cosmetic, "later": later, "choices": choices}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def help_of(settings: type, name: str) -> str:
    """The help string of a settings field."""
    return next(str(f.metadata.get("help", "")) for f in fields(settings) if f.name == name)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """A field's number, or the numbers of its table, each with its name; nothing for None."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield f"{name}.{key}", one
    elif value is not None:
        yield name, value


def _within(value: float, how: str, limit: float) -> bool:
    if how in ("above", "below"):
        return value > limit if how == "above" else value < limit
    return value >= limit if how == "at least" else value <= limit


def check_value(name: str, value: float, one: Any) -> None:
    """Raises RecipeError for a number beyond its field's limits; infinity and NaN are beyond any."""
    limits = one.metadata.get("limits") or {}
    # A whole number is finite, and may be more than a float holds.
    if limits and not (
        (isinstance(value, int) or isfinite(value)) and all(_within(value, how, limit) for how, limit in limits.items())
    ):
        must = " and ".join(f"{how} {limit:g}" for how, limit in limits.items())
        raise RecipeError(f"{name} is {value!s:.40}; it must be {must} ({one.metadata['help']})")


@dataclass(kw_only=True, frozen=True)
class Checked:
    """Settings whose values are among the choices of their fields, and whose numbers are within the limits."""

    def __post_init__(self) -> None:
        """Raises RecipeError for the first value that is no choice, or a number beyond its limits."""
        for one in fields(self):
            value, choices = getattr(self, one.name), one.metadata.get("choices")
            if choices is not None and value not in choices():
                must = ", ".join(map(repr, choices()))
                raise RecipeError(f"{one.name} is {value!r}; it must be one of {must}")
            for name, number in _numbers(one.name, value) if one.metadata.get("limits") else ():
                check_value(name, number, one)


@dataclass(kw_only=True, frozen=True)
class TrimSettings(Checked):
    """Vocabulary reduction (paper, section 3.1)."""

    ALTERNATIVES: ClassVar = (("threshold", "vocabulary_size"),)

    threshold: float | None = option(
        1e-6, "keep a token whose unigram probability reaches this in any corpus", least=0, most=1
    )
    vocabulary_size: int | None = option(None, "keep this many tokens instead, the most probable first", least=1)
    keep_characters: bool = option(True, "always keep single-character tokens that the corpora contain")
    keep: str | None = option(None, "file of words or tokens to keep besides, one a line; for small corpora")

    def __post_init__(self) -> None:
        """Also refuses a vocabulary of no size."""
        super().__post_init__()
        if self.threshold is None and self.vocabulary_size is None:
            raise RecipeError("threshold and vocabulary_size are both none: give one of them")


def check_language(code: str, where: str) -> None:
    """Refuse what cannot be a language's name in files and folders.

    Raises:
        RecipeError: with where it stands.
    """
    if not re.fullmatch(r"[\w-]+", code):
        raise RecipeError(f"{where} has the language {code!r}; codes are letters, digits, - and _, such as sw")


PrecisionName = Literal["auto", "float32", "bf16"]


@dataclass(kw_only=True, frozen=True)
class TrainingSettings(Checked):
    """How one training run is carried out; what is trained is the caller's business."""

    ALTERNATIVES: ClassVar = (("steps", "epochs"),)

    steps: int | None = option(None, "optimizer steps; give either steps or epochs", least=1)
    epochs: float | None = option(None, "passes over the training data", above=0)
    least_steps: int | None = option(
        None, "with epochs: at least so many steps, by more passes over little data", least=1
    )
    most_steps: int | None = option(None, "with epochs: at most so many steps, by fewer passes over much data", least=1)
    batch_size: int = option(16, "examples per optimizer step, over all processes and accumulated parts", least=1)
    accumulation: int = option(1, "parts that a batch is cut into to save memory", least=1)
    learning_rate: float = option(1e-4, "peak learning rate; decays linearly to 0", above=0)
    warmup_steps: float = option(0.0, "steps of linear warm-up; below 1: share of all steps", least=0)
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay", least=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this L2 norm; 0 is off", least=0)
    precision: PrecisionName = option(
        "auto", "number format of the matrix products; auto: bf16 where the hardware is faster at it"
    )
    compile: bool = option(False, "torch.compile the student")
    # What is made is the same but for rounding: a run that goes on elsewhere is not done again.
    device: Device = option(
        "auto", "where to train: a CUDA GPU if there is one, else the CPU (auto); cpu, cuda, or mps (an Apple GPU)",
        cosmetic=True,
    )  # fmt: skip
    checkpoint_steps: int = option(100, "steps between checkpoints; at most this much work is ever lost", least=1)
    # A run that goes on from another checkpoint makes the same.
    checkpoint_minutes: float = option(
        10.0, "minutes after which a checkpoint is written too, where steps are slow", above=0, cosmetic=True
    )
    evaluate_steps: int | None = option(
        None, "steps between evaluations on held-out data; none: only at the end", least=1
    )
    average_last: int | None = option(
        None, "end with the mean of so many snapshots, one every tenth of the steps up to the end, instead of weights "
        "that held-out data choose (Schmidt et al. 2023); none: no mean", least=2, most=10, later=True,
    )  # fmt: skip
    patience: int | None = option(None, "stop after this many evaluations without improvement", least=1)
    log_steps: int = option(10, "steps between lines of train_log.jsonl", least=1)
    loggers: list[str] = option(
        factory=list, help="extra loggers of the Trainer, such as tensorboard or trackio", flag="logger"
    )
    workers: int = option(0, "processes that load data", least=0)

    def __post_init__(self) -> None:
        """Also refuses lengths that contradict each other, and batches that cannot be cut."""
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise RecipeError(f"steps is {self.steps} and epochs is {self.epochs}: give only one of them")
        if self.least_steps is not None and self.most_steps is not None and self.least_steps > self.most_steps:
            raise RecipeError(f"least_steps is {self.least_steps}, above most_steps, {self.most_steps}")
        if self.warmup_steps > 1 and self.warmup_steps % 1:
            raise RecipeError(
                f"warmup_steps is {self.warmup_steps}; give a whole number of steps, or a share of all steps below 1"
            )
        if self.batch_size % self.accumulation:
            raise RecipeError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulation} equal parts (accumulation): "
                "choose a multiple"
            )
        if self.patience is not None and self.evaluate_steps is None:
            raise RecipeError(f"patience is {self.patience}, but nothing is evaluated before the end: evaluate_steps")
        if self.patience is not None and self.average_last is not None:
            raise RecipeError(
                f"average_last is {self.average_last}, whose snapshots go up to the end, but patience may stop before: "
                "leave one out"
            )

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Raises RecipeError for bounds of a length in epochs beside a number of steps (see `parse`)."""
        for name in ("least_steps", "most_steps") if given.get("steps") is not None else ():
            if given.get(name) is not None:
                raise RecipeError(f"{name} is {given[name]} beside steps, which are exact: give it with epochs")

    def check_length(self) -> None:
        """Raises RecipeError where there is neither a number of steps nor of epochs."""
        if self.steps is None and self.epochs is None:
            raise RecipeError("training.steps and training.epochs are both none: give one of them")


@dataclass(kw_only=True, frozen=True)
class ObjectiveSettings(Checked):
    """Weights of the distillation losses; a term with weight 0 is not computed."""

    WEIGHTS: ClassVar = ("attention", "hidden", "prediction", "hard_labels", "relations", "cosine")

    attention: float = option(1.0, "MSE of the attention probabilities of aligned layers", least=0)
    hidden: float = option(1.0, "MSE of the hidden states of aligned layers and of the embedding output", least=0)
    prediction: float = option(0.0, "soft cross-entropy against the teacher's predictions", least=0)
    temperature: float = option(2.0, "softmax temperature of the prediction loss, on both sides", above=0)
    hard_labels: float = option(
        0.0, "the task's own loss on labelled examples (phase 2), or MLM loss (phase 1)", least=0
    )
    relations: float = option(0.0, "MiniLMv2 self-attention relations of the last aligned layer", least=0)
    relation_heads: int = option(12, "number of relation heads", least=1)
    cosine: float = option(0.0, "DistilBERT's cosine loss between last hidden states", least=0)
    terms: dict[str, float] = option(
        factory=dict,
        help="weights of other terms: a name that a module registered, or package.module:Class (with --trust-code)",
        least=0,
        entry="TERM=NUMBER",
    )
    pairs: list[list[int]] = option(
        factory=list,
        help="[student layer, teacher layer] pairs for attention and hidden, 0 the embedding output; empty: as aligned",
    )

    def __post_init__(self) -> None:
        """Also refuses an objective without any term, and pairs that are none."""
        super().__post_init__()
        for name in self.terms:
            if name in self.WEIGHTS:
                raise RecipeError(f"terms has {name!r}, which is a key of its own: give {name} instead")
        for pair in self.pairs:
            if len(pair) != 2 or min(pair) < 0:
                raise RecipeError(f"pairs has {pair}; each is [student layer, teacher layer], counted from 0")
        if not any(getattr(self, name) for name in self.WEIGHTS) and not any(self.terms.values()):
            raise RecipeError(f"every weight of the objective is 0: give one of {', '.join(self.WEIGHTS)}")


UNNAMED = "(after its layers)"
LONGEST_NAME = 100
"""Bytes of a student's name: folders are called so, with an addition or two, and a file system takes 255."""


@dataclass(kw_only=True, frozen=True)
class StudentSettings(Checked):
    """Which teacher layers a student starts from (paper, section 3.2)."""

    ALTERNATIVES: ClassVar = (("reduction", "layers", "depth"),)

    name: str = option(
        UNNAMED, "the student's folder name; default: after its layers, such as lrf2 or 4-layers", cosmetic=True
    )
    reduction: int | None = option(None, "layer reduction factor s: keep every s-th layer", least=1)
    layers: list[int] | None = option(None, "explicit 1-based teacher layers instead of a reduction")
    depth: int | None = option(None, "number of layers (any depth) instead of a reduction", least=1)
    spread: Literal["even", "first", "last"] = option("even", "where a depth takes its layers from")
    hidden_size: int | None = option(None, "narrower than the teacher: width of the hidden states", least=1)
    intermediate_size: int | None = option(
        None, "width of the feed-forward layers; none: in the teacher's proportion to the hidden states", least=1
    )
    attention_heads: int | None = option(None, "number of attention heads; none: as many as the teacher", least=1)
    start: Literal["copy", "random", "scratch"] = option(
        "copy",
        "copied weights, of a narrower student their leading rows and columns; random layers under copied embeddings; "
        "or from scratch: all of it is random",
    )  # fmt: skip
    objective: ObjectiveSettings | None = option(
        None, "this student's own weights of the phase 1 losses, instead of phase1.objective"
    )
    # Nothing of phase 1 depends on it; a fine-tuning holds the weights that it goes by.
    task_objective: ObjectiveSettings | None = option(
        None, "this student's own weights of the phase 2 losses, instead of phase2.objective", cosmetic=True
    )

    def __post_init__(self) -> None:
        """Also refuses a name that no folder can have, and layers that no student can have."""
        super().__post_init__()
        if self.name == UNNAMED:
            object.__setattr__(self, "name", self._named_after_layers())
        if not re.fullmatch(r"[^\W_][^./\\:\x00-\x1f]*(?<! )", self.name):
            raise RecipeError(
                f"name is {self.name!r}; a student's folder is called so: begin with a letter or digit, without dots, "
                "slashes or colons"
            )
        if len(self.name.encode()) > LONGEST_NAME:
            raise RecipeError(f"name has {len(self.name.encode()):,} bytes; a folder's name has {LONGEST_NAME} at most")
        given = [name for name in self.ALTERNATIVES[0] if getattr(self, name) is not None]
        if len(given) != 1:
            raise RecipeError(f"reduction: give one of reduction, layers, depth; given: {', '.join(given) or 'none'}")
        layers = self.layers
        if layers is not None and (not layers or sorted(set(layers)) != layers or layers[0] < 1):
            raise RecipeError(f"layers is {layers}; teacher layers must ascend, without repeats, from 1")
        self.check_given({"spread": None if self.spread == "even" else self.spread})

    @property
    def narrow(self) -> bool:
        """Whether it has another width, feed-forward width or number of heads than its teacher."""
        return (self.hidden_size, self.intermediate_size, self.attention_heads) != (None, None, None)

    def _named_after_layers(self) -> str:
        wide = "" if self.hidden_size is None else f"-{self.hidden_size}"
        if self.reduction is not None:
            return f"lrf{self.reduction}{wide}"
        if self.layers is not None:
            return "layers-" + "-".join(map(str, self.layers)) + wide
        spread = "" if self.spread == "even" else f"{self.spread}-"
        return f"{spread}{self.depth}-layers{wide}" if self.depth is not None else "student"

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Raises RecipeError for a spread without the depth that it spreads (see `parse`)."""
        if given.get("spread") is not None and self.depth is None:
            raise RecipeError(f"spread is {self.spread!r}, which is a depth's: give depth instead of the layers")


@dataclass(kw_only=True, frozen=True)
class Phase1Settings(Checked):
    """General bilingual distillation (paper, section 3.2)."""

    block_length: int = option(128, "tokens per training block", least=4)
    held_out: float = option(
        0.05, "share of each language's blocks kept for the held-out loss; of one language: held_out_shares",
        least=0, below=1,
    )  # fmt: skip
    held_out_shares: dict[str, float] = option(
        factory=dict, help="per language, another share than held_out", least=0, below=1, entry="LANGUAGE=SHARE"
    )
    held_out_blocks: int | None = option(
        64, "at most this many blocks per language are held out; false: no limit", least=1
    )
    freeze_embeddings: bool = option(False, "the student's embeddings stay the teacher's and get no gradient")
    probabilities: dict[str, float] = option(
        factory=dict, help="per language, of a batch; default: equal", least=0, flag="probability",
        entry="LANGUAGE=NUMBER",
    )  # fmt: skip
    objective: ObjectiveSettings = option(factory=ObjectiveSettings, help="weights of the losses")
    training: TrainingSettings = option(
        factory=lambda: TrainingSettings(steps=600, learning_rate=5e-4, evaluate_steps=200), help="the training run"
    )

    def __post_init__(self) -> None:
        """Also refuses a training without length, and languages that are never drawn."""
        super().__post_init__()
        self.training.check_length()
        if self.probabilities and not any(self.probabilities.values()):
            raise RecipeError("probabilities are all 0: no batch would be drawn")


@dataclass(kw_only=True, frozen=True)
class SparseSettings(Checked):
    """Lottery-ticket sparse fine-tuning (Ansell et al. 2022, section 3)."""

    ALTERNATIVES: ClassVar = (
        ("density", "count"),
        ("dense_epochs", "dense_steps"),
        ("sparse_epochs", "sparse_steps"),
    )

    density: float | None = option(
        0.08, "share of the maskable entries that stay free in the sparse phase", above=0, most=1
    )
    count: int | None = option(None, "number of free entries instead of a density", least=1)
    dense_epochs: float | None = option(3.0, "length of the dense phase in epochs", above=0)
    sparse_epochs: float | None = option(5.0, "length of the sparse phase in epochs", above=0)
    dense_steps: int | None = option(None, "length of the dense phase in steps instead", least=1)
    sparse_steps: int | None = option(None, "length of the sparse phase in steps instead", least=1)
    dense_learning_rate: float | None = option(
        None, "peak learning rate of the dense phase; none: training.learning_rate, that of the sparse phase", above=0,
        most=1, later=True,
    )  # fmt: skip
    freeze_embeddings: bool = option(False, "input embeddings are neither masked nor trained")
    freeze_layer_norms: bool = option(False, "layer norms are neither masked nor trained")

    def __post_init__(self) -> None:
        """Also refuses a mask without size and a phase without length."""
        super().__post_init__()
        for group in self.ALTERNATIVES:
            if all(getattr(self, name) is None for name in group):
                raise RecipeError(f"{' and '.join(group)} are both none: give one of them")

    def share(self, entries: float) -> float:
        """Of so many entries, the share that stays free."""
        return min(1.0, self.count / entries) if self.count is not None else self.density or 0.0


@dataclass(kw_only=True, frozen=True)
class AdaptSettings(Checked):
    """How a language SFT is learnt (paper, section 4.3)."""

    # Lengths are those of each phase: a training's own would have no effect.
    NO_EFFECT: ClassVar = ("steps", "epochs", "least_steps", "most_steps")

    density: float = option(0.04, "share of the maskable entries that the language may change", above=0, most=1)
    steps: int | None = option(
        None, "length of each phase; none: 200 epochs, but at least 30,000 steps and at most 100,000", least=1
    )
    block_length: int = option(256, "tokens per training block", least=4)
    held_out: float = option(
        0.05, "share of the blocks kept for the held-out loss, which chooses the weights", least=0, below=1
    )
    freeze_embeddings: bool = option(False, "input embeddings are neither masked nor trained")
    freeze_layer_norms: bool = option(False, "layer norms are neither masked nor trained")
    training: TrainingSettings = option(
        factory=lambda: TrainingSettings(steps=1, batch_size=8, learning_rate=5e-5, evaluate_steps=1000),
        help="everything else of both phases; steps and epochs are overridden",
    )

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Raises RecipeError for a length that the phases' own replaces (see `parse`)."""
        training = given.get("training", {})
        for name in self.NO_EFFECT:
            if training.get(name) is not None:
                raise RecipeError(f"training.{name} is {training[name]}, which has no effect here: give steps instead")


@dataclass(kw_only=True, frozen=True)
class LanguageSettings(AdaptSettings):
    """Language SFTs that the run learns itself; phase 1 and the task teacher wear them (paper, sections 3.2, 4.3)."""

    languages: list[str] = option(
        factory=list,
        help="languages to learn one for; empty: every language with text that language_sfts does not give",
    )


@dataclass(kw_only=True, frozen=True)
class TaskSettings(Checked):
    """The labelled data and how they are read."""

    kind: Kind = option(help="which task", flag="task", choices=task_kinds)
    preset: PresetName | None = option(
        None, "`paper` or `short` (two CPU cores): this task's defaults of finetune, phase2 and max_length"
    )
    train: list[str] = option(
        factory=list,
        help="labelled files in the source language, or data sets: dataset:NAME[:CONFIG]:SPLIT; this or sources",
    )
    sources: dict[str, list[str]] = option(
        factory=dict,
        help="instead of train: per source language, the recipe's source among them, labelled files or data sets",
    )
    dev: list[str] = option(
        factory=list, help="labelled files that choose the checkpoint, in the recipe's source language"
    )
    test: dict[str, list[str]] = option(factory=dict, help="per language, labelled files for the last measurement")
    max_length: int = option(128, "tokens per example or window", least=4)
    label_map: dict[str, str] = option(
        factory=dict, help="labels to rename on reading, such as B-DATE to O", entry="OLD=NEW"
    )
    parser_projection: int | None = option(
        None, "dependency parsing: dimensions before the biaffine; none: full head", least=1
    )
    columns: dict[str, str] = option(
        factory=dict,
        help="which column is text, pair or label (classification; if there is one per label all of them, separated by "
        "commas), words or tags (tagging): its name, or its number from 1 in CoNLL columns; "
        "ignore: columns that are left out on purpose, separated by commas",
        flag="column",
        entry="NAME=COLUMN",
    )
    language: str | None = option(
        None, "rows of this language in training and dev files that are in several; all: all rows; none: the source's"
    )
    scheme: TagScheme | None = option(
        None, "scheme of tags that mark spans; the word `none` for tags that mark none; not given: as the tags show"
    )
    separator: str | None = option(
        None,
        "what separates labels that stand in one text, such as a semicolon; the word `none`: each text is one label; "
        "not given: as the labels show",
    )
    strict: bool = option(False, "refuse a file for its first odd row, instead of leaving out a few")

    def __post_init__(self) -> None:
        """Also refuses a task without labelled files, and what this task has no use for."""
        super().__post_init__()
        if bool(self.train) == bool(self.sources):
            both = "both are given" if self.train else "none is given"
            raise RecipeError(f"train or sources must name labelled files, and {both}: give one of them")
        for name, kind in (("parser_projection", "dependency-parsing"), ("scheme", "token-classification")):
            # A task from elsewhere says itself what it takes.
            if getattr(self, name) is not None and self.kind in own_kinds() and self.kind != kind:
                raise RecipeError(f"{name} is of {kind}; {self.kind} has no use for it: leave it out")
        if self.separator == "":
            raise RecipeError("separator is empty: give the character between labels, or the word none")
        if self.label_map and self.kind == "question-answering":
            raise RecipeError("label_map renames labels, and question-answering has none: leave it out")


@dataclass(kw_only=True, frozen=True)
class FinetuneSettings(Checked):
    """Fine-tuning for a task: the task teacher, or a self-taught student."""

    sparse: SparseSettings | None = option(factory=SparseSettings, help="sparse fine-tuning; false: dense")
    training: TrainingSettings = option(
        factory=lambda: TrainingSettings(epochs=3.0, batch_size=16, learning_rate=1e-4),
        help="the training run; steps and epochs are those of a dense fine-tuning",
    )

    def __post_init__(self) -> None:
        """Also refuses steps that a sparse fine-tuning would not take, and a dense one without length."""
        super().__post_init__()
        if self.sparse is None:
            self.training.check_length()
        elif self.training.steps is not None:
            self._refuse_length({"steps": self.training.steps})

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Refuse a length that is written down and would have no effect.

        Args:
            given: the plain values that the settings were read from.

        Raises:
            RecipeError: steps or epochs of a training run whose phases have lengths of their own.
        """
        if self.sparse is not None:
            self._refuse_length(given.get("training", {}))

    def _refuse_length(self, lengths: Mapping[str, Any]) -> None:
        for name in ("steps", "epochs"):
            if lengths.get(name) is not None:
                raise RecipeError(
                    f"training.{name} is {lengths[name]}, but the fine-tuning is sparse: give sparse.dense_{name} and "
                    f"sparse.sparse_{name}, or sparse = false"
                )


@dataclass(kw_only=True, frozen=True)
class Phase2Settings(FinetuneSettings):
    """Task distillation from the task teacher (paper, section 3.3)."""

    # What only a task teacher teaches.
    FROM_TEACHER: ClassVar = ("teachers", "target_text", "target_sentences", "surest", "kept_gigabytes", "objective")

    teacher_forced: bool = option(True, "learn from the task teacher (TF); false: from labels only (ST)")
    teachers: int = option(
        1, "task teachers, fine-tuned alike from consecutive seeds: the mean of their logits makes the soft "
        "predictions, states and attention maps are the first one's", least=1, most=MOST_TEACHERS, later=True,
    )  # fmt: skip
    objective: ObjectiveSettings = option(
        factory=lambda: ObjectiveSettings(attention=1.0, hidden=1.0, prediction=1.0), help="weights of the losses"
    )
    target_text: float = option(
        1.0, "batches of unlabelled target text per batch of labelled source examples; 0 in the paper", least=0
    )
    target_sentences: int | None = option(
        None, "learn from so many lines of target text, drawn at random; none: all", least=1
    )
    surest: float = option(
        1.0, "of the inputs that are made of target text, learn from this share: those of which the task teacher is "
        "surest", above=0, most=1, later=True,
    )  # fmt: skip

    # What is made is the same but for rounding, as on another device.
    kept_gigabytes: float = option(
        5.0, "room in the work folder for what the task teacher says, which it then says once and not in every epoch; "
        "0: it is not kept", least=0, cosmetic=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Also refuses an amount of target text that is not learnt from, and teachers that nobody listens to."""
        super().__post_init__()
        if self.target_sentences is not None and not self.target_text:
            raise RecipeError(f"target_sentences is {self.target_sentences}, but target_text is 0: leave one out")
        if self.surest < 1 and not self.target_text:
            raise RecipeError(f"surest is {self.surest:g}, but target_text is 0: leave one out")
        if self.teachers > 1 and not self.teacher_forced:
            raise RecipeError(
                f"teachers is {self.teachers}, but teacher_forced = false learns from labels only: leave one out"
            )
        if self.teachers > 1 and not self.objective.prediction:
            raise RecipeError(
                f"teachers is {self.teachers}, but objective.prediction is 0, and it is their predictions that are "
                "averaged: leave teachers out, or give prediction a weight"
            )

    def check_given(self, given: Mapping[str, Any]) -> None:
        """Also refuse what only a task teacher would make use of."""
        super().check_given(given)
        for name in self.FROM_TEACHER if not self.teacher_forced else ():
            if given.get(name):
                raise RecipeError(f"{name} is given, but teacher_forced = false learns from labels only: leave one out")


def phase2_of(student: StudentSettings, settings: Phase2Settings) -> Phase2Settings:
    """A student's own phase 2.

    Raises:
        RecipeError: several teachers, and its own objective does not listen to them.
    """
    if student.task_objective is None:
        return settings
    try:
        return replace(settings, objective=student.task_objective)
    except RecipeError as error:
        raise RecipeError(f"student {student.name!r}: {error}") from None


AnySettings = TypeVar("AnySettings")


def on_device(settings: AnySettings, device: Device) -> AnySettings:
    """The same settings with every training in them on this device."""
    whole: Any = settings
    if isinstance(whole, TrainingSettings):
        return cast(AnySettings, replace(whole, device=device))
    tables = {one.name: getattr(whole, one.name) for one in fields(whole) if is_dataclass(getattr(whole, one.name))}
    return cast(AnySettings, replace(whole, **{name: on_device(table, device) for name, table in tables.items()}))


def with_rate(settings: AnySettings, learning_rate: float | None) -> AnySettings:
    """The same fine-tuning with another peak learning rate; None: with its own."""
    if learning_rate is None:
        return settings
    whole: Any = settings
    return cast(AnySettings, replace(whole, training=replace(whole.training, learning_rate=learning_rate)))


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
    return replace(settings, sparse=sparse, training=training, target_text=0.0, target_sentences=None, surest=1.0)


@dataclass(kw_only=True, frozen=True)
class SelectionSettings(Checked):
    """Which lines of target text phase 2 learns from: those most like the labelled texts, by the teacher's vectors."""

    candidates: int = option(50_000, "choose from so many lines of a language's text, drawn at random", least=1)
    examples: int = option(2_000, "be like so many labelled texts, drawn at random", least=1)


@dataclass(kw_only=True, frozen=True)
class CompareSettings(Checked):
    """What the students are measured against, besides the undistilled teacher."""

    trimmed: bool = option(True, "the teacher with the trimmed vocabulary only")
    copied: bool = option(True, "each student without phase 1: copied layers, same phase 2")
    self_taught: bool = option(False, "each student without the task teacher (ST)")
    no_target_text: bool = option(
        False, "each student without target text, for as many steps: more epochs over the labels"
    )
    majority: bool = option(True, "always the most frequent label of the training data")
