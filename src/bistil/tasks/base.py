"""What every task gives to training and evaluation; how a task is trained is not its business."""

import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from bistil.errors import ArtefactError, InputError
from bistil.fast_linear import fast_linear

# Not a class: cross-entropy leaves such positions out (PyTorch's default).
IGNORED = -100
# Sequences are padded to a multiple of this: matrix products like it, and fewer shapes occur.
PADDING_MULTIPLE = 8
# Batch entries that say what is right, not what is seen.
TARGETS = frozenset({"labels", "start_positions", "end_positions", "arc_labels", "relation_labels"})

Feature = dict[str, Any]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled unit of a file: a sentence, a pair or a question."""

    file: str = field(metadata={"help": "where it was read"})
    line: int = field(metadata={"help": "1-based line of its start in the file; 0 for text that is in no file"})

    @property
    def where(self) -> str:
        """The place for messages, such as `train.txt, line 12`."""
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class PredictionPair:
    """Rows that the prediction loss compares: logits (rows, classes) of student and teacher.

    `mask` (rows,) is True where a row counts; None: everywhere. `valid` (rows, classes) is False where a class is
    no choice (a padded word as head, a padded position as answer); None: all classes are.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    mask: torch.Tensor | None = None
    valid: torch.Tensor | None = None


@dataclass(frozen=True)
class Metrics:
    """Scores of a test set, kept as additive counters per example so that any resample is scored exactly.

    Attributes:
        primary: name of the task's own figure.
        counts: (examples, counters) float64.
        formula: sums (..., counters) -> scores by name, each (...,), in percent.
    """

    primary: str
    counts: np.ndarray
    formula: Callable[[np.ndarray], dict[str, np.ndarray]]

    @property
    def scores(self) -> dict[str, float]:
        """Scores of the whole set, in percent."""
        return {name: float(value) for name, value in self.formula(self.counts.sum(axis=0)).items()}


def resampled(metrics: Metrics, n: int = 1000, seed: int = 0, *, name: str | None = None) -> np.ndarray:
    """A score on `n` resamples of the examples, each as large as the set and drawn with replacement: (n,), percent.

    The same seed gives the same resamples of a file, whatever model was scored on it.
    """
    examples = len(metrics.counts)
    generator = np.random.default_rng(seed)
    share = np.full(examples, 1 / examples)
    values = []
    # How often each example occurs in a resample is multinomial; a chunk of resamples is one matrix product.
    for start in range(0, n, 100):
        times = generator.multinomial(examples, share, size=min(100, n - start)).astype(np.float64)
        values.append(metrics.formula(times @ metrics.counts)[name or metrics.primary])
    return np.concatenate(values)


def bootstrap(metrics: Metrics, n: int = 1000, seed: int = 0, *, name: str | None = None) -> tuple[float, float]:
    """95% percentile interval of a score over resamples of the examples (Efron & Tibshirani 1993, section 13.3).

    Args:
        metrics: the counters per example.
        n: number of resamples.
        seed: of the resamples.
        name: which score; default: the primary one.

    Returns:
        Low and high end, in percent.
    """
    low, high = np.percentile(resampled(metrics, n, seed, name=name), [2.5, 97.5])
    return float(low), float(high)


def paired_gap(metrics: Metrics, reference: Metrics, n: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Difference of the primary score to a reference on the same examples, and its 95% paired bootstrap interval.

    Returns:
        Score minus the reference's, low and high end, all in points of percent.
    """
    if len(metrics.counts) != len(reference.counts):
        raise ValueError(f"{len(metrics.counts)} examples against {len(reference.counts)}: the sets must be the same")
    gap = metrics.scores[metrics.primary] - reference.scores[metrics.primary]
    differences = resampled(metrics, n, seed) - resampled(reference, n, seed, name=metrics.primary)
    low, high = np.percentile(differences, [2.5, 97.5])
    return gap, float(low), float(high)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole` in percent, 0 where `whole` is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return 100.0 * np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


class Task(ABC):
    """The interface behind which all tasks look the same to training, distillation and evaluation."""

    kind: str
    """Name in a recipe."""

    pipeline_tag: str | None = None
    """The pipeline of transformers that runs such models; None where there is none."""

    padding: Mapping[str, int] = {}
    """Feature keys, one value per token or per example, that become tensors too, with their padding value."""

    word_padding: Mapping[str, int] = {}
    """The same for keys with one value per word."""

    passages: bool = False
    """Whether an example's texts are passages: then a sentence of one counts as evaluation text too."""

    @abstractmethod
    def metric(self, labels: Sequence[str]) -> str:
        """Name of the score that chooses a checkpoint and is reported, for a data set with these labels."""

    @abstractmethod
    def read(self, paths: Sequence[str | Path], *, label_map: Mapping[str, str] | None = None) -> list[Any]:
        """Labelled examples of the files, in their order; labels are renamed by `label_map`.

        Raises:
            InputError: a file cannot be read or is not what it must be, with file and line.
        """

    @abstractmethod
    def text_of(self, example: Any) -> str:
        """The example's input as one text, for measuring speed and for comparing files."""

    def texts_of(self, example: Any) -> list[str]:
        """All texts of an example; none of a held-out example's may stand in unlabelled text (see `overlap`)."""
        return [self.text_of(example)]

    def unit_of(self, example: Any) -> str:
        """What makes two examples the same one: training leaves out what shares it with a test example."""
        return self.text_of(example)

    @abstractmethod
    def labels(self, examples: Sequence[Any]) -> list[str]:
        """The label set of training examples, in the order of the class indices."""

    @abstractmethod
    def check_labels(self, examples: Sequence[Any], labels: Sequence[str]) -> None:
        """Make sure that a model with `labels` can be trained or scored on these examples.

        Raises:
            InputError: a label is not among them, with file, line and what to do.
        """

    @abstractmethod
    def build_model(self, folder: str | Path, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
        """The encoder in `folder` under the task's head, newly initialised from `seed` where the folder has none.

        Args:
            labels: class names in order; None: those of the task model in `folder`.
        """

    @abstractmethod
    def encode(
        self, examples: Sequence[Any], tokenizer: PreTrainedTokenizerBase, max_length: int, *, labels: Sequence[str]
    ) -> list[Feature]:
        """Model inputs with labels. A feature keeps its example's index under "example"; long ones give several."""

    @abstractmethod
    def unlabelled(
        self,
        sentences: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        pairs: bool = False,
        seed: int = 0,
    ) -> list[Feature]:
        """Model inputs without labels out of plain text, made like the task's own.

        Args:
            pairs: sequence classification only: make sentence pairs.
            seed: draws the pairs and questions where text must be made into some.
        """

    @abstractmethod
    def prediction_pairs(self, student: Any, teacher: Any, batch: Mapping[str, torch.Tensor]) -> list[PredictionPair]:
        """What L_pred compares (paper, section 3.3), from the models' outputs on `batch`."""

    @abstractmethod
    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Any],
        features: Sequence[Feature],
        *,
        batch_size: int = 32,
    ) -> list[Any]:
        """Predictions, one per example and in their order, in the task's own type."""

    @abstractmethod
    def score(self, examples: Sequence[Any], predictions: Sequence[Any]) -> Metrics:
        """Compare predictions with the examples' labels."""

    @abstractmethod
    def majority(self, train: Sequence[Any], test: Sequence[Any]) -> list[Any]:
        """Predictions of the baseline that never looks at the input, fitted on `train`."""

    @abstractmethod
    def write_predictions(
        self, path: Path, examples: Sequence[Any], predictions: Sequence[Any], *, known: Collection[str] = ()
    ) -> None:
        """Write predictions in the format the examples were read in, whole or not at all.

        Args:
            known: SHA-256 of earlier predictions, which may give way; predictions do not say whose they are.

        Raises:
            InputError: something else is there.
        """

    def collate(
        self, tokenizer: PreTrainedTokenizerBase, *, teacher: PreTrainedTokenizerBase | None = None
    ) -> Callable[[list[Feature]], Batch]:
        """A function that pads features to the longest of the batch (a multiple of 8) and stacks them to tensors.

        Args:
            teacher: the teacher's tokenizer, whose padding token "teacher_input_ids" get; default: the same one.
        """
        return Collator(tokenizer, self.padding, self.word_padding, teacher or tokenizer)


@dataclass(frozen=True)
class Collator:
    """Pads to the longest of the batch. Keys that a feature keeps for itself (its example's index ...) stay out.

    Lists are padded on the right: token positions to a multiple of `PADDING_MULTIPLE`, per-word lists to the longest.
    A batch may mix features with and without a key, such as labels: those without get the padding value.
    """

    tokenizer: PreTrainedTokenizerBase
    padding: Mapping[str, int]
    word_padding: Mapping[str, int]
    teacher: PreTrainedTokenizerBase

    def __call__(self, features: list[Feature]) -> Batch:
        per_token = {
            "input_ids": self.tokenizer.pad_token_id or 0,
            "attention_mask": 0,
            "token_type_ids": 0,
            "teacher_input_ids": self.teacher.pad_token_id or 0,
            "teacher_token_type_ids": 0,
            **self.padding,
        }
        longest = max(len(feature["input_ids"]) for feature in features)
        tokens = -(-longest // PADDING_MULTIPLE) * PADDING_MULTIPLE
        batch = {}
        for name, value in {**per_token, **self.word_padding}.items():
            rows = [feature.get(name) for feature in features]
            given = [row for row in rows if row is not None]
            if not given:
                continue
            if not isinstance(given[0], list):
                batch[name] = torch.tensor([value if row is None else row for row in rows])
                continue
            width = tokens if name in per_token else max(len(row) for row in given)
            batch[name] = torch.tensor([(row or []) + [value] * (width - len(row or [])) for row in rows])
        return batch


def run(
    model: PreTrainedModel,
    features: Sequence[Feature],
    collate: Callable[[list[Feature]], Batch],
    *,
    batch_size: int,
) -> Iterator[tuple[list[int], Any, Batch]]:
    """Run a model over features in batches of similar length, in evaluation mode and without gradients.

    Yields:
        Indices into `features`, the model's output and the batch, longest first: if memory is short, it shows at once.
    """
    order = np.argsort([-len(feature["input_ids"]) for feature in features], kind="stable")
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size].tolist()
            batch = {name: value.to(model.device) for name, value in collate([features[i] for i in indices]).items()}
            with torch.inference_mode(), fast_linear():
                output = model(**model_inputs(model, {k: v for k, v in batch.items() if k not in TARGETS}))
            yield indices, output, batch
    finally:
        model.train(training)


def model_inputs(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries of a batch that the model's `forward` names: some families know no token types."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in batch.items() if name in known}


def build_head(
    auto_class: Any, folder: str | Path, labels: Sequence[str] | None, *, seed: int, **config_values: Any
) -> PreTrainedModel:
    """Load an encoder under a head; what the folder has no weights for is initialised from `seed`.

    Args:
        auto_class: a class with `from_pretrained`, such as `AutoModelForTokenClassification`.
        folder: a Hugging Face model folder.
        labels: class names in order; None: those that the folder's configuration names.

    Raises:
        ArtefactError: the folder is no loadable model, or has a head with other labels.
    """
    values = dict(config_values)
    if labels is not None:
        values |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    if not Path(folder).is_dir():
        raise ArtefactError(f"{folder} is not a model folder: name a folder with config.json and model.safetensors")
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = auto_class.from_pretrained(str(folder), **values)
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ArtefactError(f"cannot load a model from {folder}: {first}") from error
    return model.float()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the report of newly initialised weights: here a new head is what is asked for."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def boundaries(offsets: Sequence[tuple[int, int]]) -> int:
    """A number that is equal for equal token boundaries: student and teacher must see the same ones."""
    return zlib.crc32(np.asarray(offsets, dtype=np.int32).tobytes())


def differing_boundaries(student: Sequence[Feature], teacher: Sequence[Feature]) -> set[int]:
    """Indices of the examples whose tokens start or end elsewhere for the teacher than for the student.

    So do those that come in another number of windows.
    """
    seen: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
    for side, features in enumerate((student, teacher)):
        for feature in features:
            place = len(feature["input_ids"]), feature["boundaries"]
            seen.setdefault(feature["example"], ([], []))[side].append(place)
    return {example for example, (ours, theirs) in seen.items() if ours != theirs}


def position_limit(config: Any) -> int | None:
    """The longest input in tokens that the model's position embeddings allow; None: no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or limit <= 0 or not getattr(config, "position_biased_input", True):
        return None
    # RoBERTa and its kin count positions from behind the padding id.
    offset = (
        config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl") else 0
    )
    return int(limit) - offset


def check_length(config: Any, length: int, *, name: str = "max_length") -> None:
    """Refuse windows that are longer than the model's position embeddings.

    Args:
        name: how the setting is called in the message.

    Raises:
        InputError: with the longest length that works.
    """
    limit = position_limit(config)
    if limit is not None and length > limit:
        raise InputError(f"{name} is {length}, but the model has {limit} positions: choose at most that")
