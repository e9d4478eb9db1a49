"""What a stage will cost, in words that a stage can say before it is made: passes through models, and what is fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bistil.measuring.shape import EncoderShape

# What runs: a training step of phase 1, of phase 2, from labels, of masked language modelling; forward passes in
# batches, or one by one.
Kind = Literal["phase1", "phase2", "labels", "language", "score", "single"]

# Seconds to load, check or write a model on an ordinary core: per call, byte of its weights and token.
LOAD_FIXED, LOAD_PER_BYTE, LOAD_PER_TOKEN = 0.5, 3e-9, 1.2e-5


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes through models, as much as one training step or one evaluation makes of them.

    Attributes:
        kind: what is run; passes of a kind have a rate.
        teacher: runs forward only; the model itself where nothing teaches.
        students: shapes that are trained, in "labels" and "language" one.
        objective: how students are compared with the teacher, for the measurement.
        sequences, tokens: of one batch: how many, and their mean padded length.
        flops: of all passes together, backward ones included.
        parameters: that an optimizer moves, in units of a dense one's work.
        precision, device: as settled.
    """

    kind: Kind
    teacher: EncoderShape
    students: tuple[EncoderShape, ...] = ()
    objective: Any = None
    sequences: float
    tokens: float
    flops: float
    parameters: float = 0.0
    precision: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training loop.

    Attributes:
        steps: optimizer steps.
        step: what one of them runs, in the mean.
        evaluation: what one look at held-out data runs.
        evaluations: how many there are, those before and after included.
        checkpoints, checkpoint_bytes: how many are written, and how large one is.
    """

    steps: int
    step: Passes
    evaluation: Passes | None = None
    evaluations: int = 0
    checkpoints: int = 0
    checkpoint_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage will cost.

    Attributes:
        trainings: one after the other.
        passes: forward passes besides.
        seconds: of everything else, such as reading text and writing models.
        memory: bytes that it takes beyond what any process takes.
        disk: bytes that it leaves.
        work: bytes on disk meanwhile.
    """

    trainings: Sequence[Training] = ()
    passes: Sequence[Passes] = ()
    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    work: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps of all trainings."""
        return sum(one.steps for one in self.trainings)


@dataclass(frozen=True, kw_only=True)
class TextFigures:
    """What a sample tells of a text: its bytes (uncompressed), tokens and lines, and the seconds to tokenize it."""

    bytes: float
    tokens: float
    lines: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LessonFigures:
    """What a sample tells of the features that a task is learnt from or scored on.

    Attributes:
        labelled, unlabelled: how many features there are of either kind.
        lengths: padded tokens of each batch of a stretch of training.
        dev: what an evaluation runs over; none without a dev set.
        seconds: to encode all of them.
    """

    labelled: int
    unlabelled: int = 0
    lengths: Sequence[int] = ()
    dev: "ScoredFigures | None" = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScoredFigures:
    """What a sample tells of a set that a model is scored on: features, and the padded length of each of the sample."""

    features: float
    lengths: Sequence[int]
    seconds: float = 0.0


class Ahead(Protocol):
    """What a stage may ask of the future: what its inputs will be like. Nothing is loaded but configurations."""

    def shape(self, of: Any) -> EncoderShape:
        """Of a file's or product's model, or of what a stage starts from."""

    def weights(self, of: Any) -> float:
        """Bytes of a model's folder."""

    def text(self, files: Sequence[Any], model: Any) -> TextFigures:
        """Of plain text, tokenized by a model's tokenizer."""

    def vocabulary(self, texts: Mapping[str, Sequence[Any]], settings: Any, keep: Any, model: Any) -> int:
        """Tokens that trimming a model to texts will keep, about."""

    def lesson(
        self, labelled: Any, text: Any, model: Any, *, ratio: float, batch_size: int,
        sentences: int | None,
    ) -> LessonFigures:  # fmt: skip
        """Of labelled examples, target text, and the dev set."""

    def scored(self, examples: Any, model: Any) -> Sequence[ScoredFigures]:
        """Of the sets of an exam."""

    def settled(self, training: Any) -> tuple[str, str]:
        """Precision and device of a training."""


def evaluations(steps: int, every: int | None) -> int:
    """How often a training looks at held-out data: every so many steps, and at the end."""
    return 1 if every is None else -(-steps // every)


def held(parameters: float, *, trained: bool) -> float:
    """Bytes of a model in memory: float32 weights; a trained one has gradients and two moments besides."""
    return 4.0 * parameters * (4 if trained else 1)


def loading(ahead: Ahead, *models: Any) -> float:
    """Seconds to load, check or write models and their tokenizers, one after the other."""
    return sum(
        LOAD_FIXED + LOAD_PER_BYTE * ahead.weights(model) + LOAD_PER_TOKEN * ahead.shape(model).vocabulary
        for model in models
    )
