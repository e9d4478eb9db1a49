"""What every task gives to training and evaluation; how a task is trained is not its business."""

import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil.errors import ArtefactError, InputError
from bistil.models.loading import PRETRAINED_WITH, HeadRule, load_model, read_config, task_of
from bistil.runtime.fast_linear import fast_linear
from bistil.runtime.progress import say
from bistil.tasks.reading import Reading, RowReport

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
    shares: np.ndarray = 100.0 * np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)
    return shares


def _nothing_left(paths: Sequence[str | Path], reports: Sequence[RowReport]) -> str:
    named = ", ".join(map(str, paths))
    first = next((report.unlabelled.first for report in reports if report.unlabelled.count), None)
    if first is not None:
        return f"no examples in {named}: every label is missing (the first: {first}); give labelled files"
    return f"no examples in {named}: the files are empty"


class Task(ABC):
    """The interface behind which all tasks look the same to training, distillation and evaluation."""

    kind: str
    """Name in a recipe."""

    pipeline_tag: str | None = None
    """The hub's name of the task; None where it has none."""

    padding: Mapping[str, int] = {}
    """Feature keys, one value per token or per example, that become tensors too, with their padding value."""

    word_padding: Mapping[str, int] = {}
    """The same for keys with one value per word."""

    passages: bool = False
    """Whether an example's texts are passages: then a sentence of one counts as evaluation text too."""

    @abstractmethod
    def metric(self, labels: Sequence[str]) -> str:
        """Name of the score that chooses a checkpoint and is reported, for a data set with these labels."""

    columns: tuple[str, ...] = ()
    """What `Reading.columns` may name, besides "ignore"."""

    def read(
        self,
        paths: Sequence[str | Path],
        *,
        label_map: Mapping[str, str] | None = None,
        how: Reading | None = None,
        reports: list[RowReport] | None = None,
    ) -> list[Any]:
        """Labelled examples of the files or data sets, in their order.

        What is certain is mended, rows without a label and a few odd ones are left out; one line per file says so.

        Args:
            label_map: labels to rename, besides `how.label_map`.
            how: what the files do not say themselves; default: nothing.
            reports: gets what became of each file's rows.

        Raises:
            InputError: a file cannot be read or is not what it must be, with file and line; or too many rows are odd.
        """
        how = how or Reading()
        how = replace(how, label_map={**how.label_map, **(label_map or {})})
        self._check_reading(paths, how)
        examples: list[Any] = []
        found: list[RowReport] = []
        for path in map(Path, paths):
            report = RowReport(str(path), strict=how.strict)
            rows = list(self.read_file(path, how, report))
            report.finish(len(rows))
            examples += rows
            found.append(report)
        if not examples:
            raise InputError(_nothing_left(paths, found))
        examples = self.settled(examples, how, found[0])
        for line in [report.line() for report in found] if not how.quiet else []:
            if line is not None:
                say(line)
        if reports is not None:
            reports += found
        return examples

    @abstractmethod
    def read_file(self, path: Path, how: Reading, report: RowReport) -> Iterable[Any]:
        """Labelled examples of one file or data set; each row is read in `report.row()`.

        Raises:
            InputError: the file as a whole is not what it must be, with file and line.
        """

    def settled(self, examples: list[Any], how: Reading, report: RowReport) -> list[Any]:
        """The examples of all files after a look at them together.

        Args:
            report: of the first file, for a notice.

        Raises:
            InputError: they cannot be learnt from or scored together.
        """
        del how, report
        return examples

    def _check_reading(self, paths: Sequence[str | Path], how: Reading) -> None:
        """Refuse a reading that no file of this task can have."""
        if not paths:
            raise InputError("no file was given: name at least one labelled file")
        known = (*self.columns, "ignore") if self.columns else ()
        for name in how.columns:
            if name not in known:
                may = f"it may name {', '.join(known)}" if known else f"{self.kind} has none to name"
                raise InputError(f"column {name}={how.columns[name]}: {may}")

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
        """The encoder in `folder` under the task's head; with `labels` a new one, unless the folder has one for them.

        Args:
            labels: class names in order; None: those of the task model in `folder`, which must have the task's head.
            seed: of a new head.
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
    def score(
        self, examples: Sequence[Any], predictions: Sequence[Any], *, labels: Sequence[str] | None = None
    ) -> Metrics:
        """Compare predictions with the examples' labels.

        Args:
            labels: the model's, by which `metric` chose the figure; None: those of examples and predictions.
        """

    @abstractmethod
    def majority(self, train: Sequence[Any], test: Sequence[Any]) -> list[Any]:
        """Predictions of the baseline that never looks at the input, fitted on `train`."""

    def check_writable(self, examples: Sequence[Any]) -> None:
        """Make sure that predictions on these examples can be written; asked before they are made.

        Raises:
            InputError: with file and line.
        """
        del examples

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
    auto_class: Any,
    folder: str | Path,
    labels: Sequence[str] | None,
    *,
    seed: int,
    means_labels: bool = True,
    sizes: Mapping[str, int] | None = None,
    **config_values: Any,
) -> PreTrainedModel:
    """Load an encoder under a head.

    Without `labels` the folder is that of a task model, with its own head. With them it is a start: a head for these
    labels is gone on with, one for other labels or another task gives way to a new one, drawn from `seed`.

    Args:
        auto_class: a class with `from_pretrained`, such as `AutoModelForTokenClassification`.
        folder: a Hugging Face model folder.
        labels: class names in order; None: those that the folder's configuration names.
        means_labels: whether the labels are what the head was trained for (of a question answering head they are not).
        sizes: of a head that is to be trained, by name in the configuration.
        config_values: replace values of the configuration.

    Raises:
        ArtefactError: the folder is no loadable model, is damaged, or has no head although no labels are given.
    """
    if not Path(folder).is_dir():
        raise ArtefactError(f"{folder} is not a model folder: name a folder with config.json and model.safetensors")
    config = read_config(folder)
    head: HeadRule = "whole"
    if labels is not None:
        head = _head_to_start_from(auto_class, folder, config, labels if means_labels else None, sizes or {})
        config_values |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        config_values |= sizes or {}
    for name, value in config_values.items():
        setattr(config, name, value)
    model: PreTrainedModel = load_model(folder, auto_class, head=head, config=config, seed=seed)[0]
    return model


def _head_to_start_from(
    auto_class: Any, folder: str | Path, config: Any, labels: Sequence[str] | None, sizes: Mapping[str, int]
) -> HeadRule:
    """What becomes of the head in a folder that fine-tuning starts from."""
    wanted, found = task_of(auto_class.__name__), {task_of(name) for name in config.architectures or ()}
    if wanted not in found:
        # Encoders come with the head that they were pretrained with; some families keep a part of it.
        return "optional" if found <= PRETRAINED_WITH else "new"
    own = [config.id2label[i] for i in sorted(config.id2label)]
    if labels is not None and own != list(labels):
        say(f"{folder} has a head for labels {_listed(own)}; a new one is made for {_listed(labels)}")
        return "new"
    if any(getattr(config, name, None) != size for name, size in sizes.items()):
        say(f"{folder} has a head of another size; a new one is made")
        return "new"
    return "whole"


# A message names so many labels.
_LABELS_SHOWN = 12


def _listed(labels: Sequence[str]) -> str:
    more = len(labels) - _LABELS_SHOWN
    return ", ".join(map(str, labels[:_LABELS_SHOWN])) + (f" and {more} more" if more > 0 else "")


def boundaries(offsets: Sequence[tuple[int, ...]]) -> int:
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
