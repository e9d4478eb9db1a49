"""What every task gives to training and evaluation; how a task is trained is not its business."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil._moved import left_names
from bistil.errors import InputError
from bistil.models.loading import ModelSource, task_of
from bistil.runtime.artefacts import whole_file
from bistil.tasks.batches import Batch, Collator, Engine, Feature, Outputs, PerExample, TorchEngine, mean_of, run
from bistil.tasks.hub import Rows, Source
from bistil.tasks.metrics import Metrics
from bistil.tasks.reading import Reading, RowReport

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.tasks.base")

logger = logging.getLogger(__name__)


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
class Decoded:
    """What a model says of an example.

    Attributes:
        value: in the task's own type.
        confidence: probabilities, of what the task says in `decode`.
    """

    value: Any
    confidence: np.ndarray


class Task(ABC):
    """The interface behind which all tasks look the same to training, distillation and evaluation."""

    kind: str
    """Name in a recipe."""

    pipeline_tag: str | None = None
    """The hub's name of the task; None where it has none."""

    usage: str | None = None
    """Python that runs a model of the task, for cards and reports, with {folder} for its folder."""

    padding: Mapping[str, int] = {}
    """Feature keys, one value per token or per example, that become tensors too, with their padding value."""

    word_padding: Mapping[str, int] = {}
    """The same for keys with one value per word or per class."""

    means_labels: bool = True
    """Whether the head's outputs stand for the data's labels: then a teacher's must be the same ones."""

    passages: bool = False
    """Whether an example's texts are passages: then a sentence of one counts as evaluation text too."""

    of_plain_text: bool = False
    """Whether a line of text is all that a model is asked about: then two are compared without labels (`answered`)."""

    teacher_outputs: Mapping[str, PerExample | None] | None = None
    """What `prediction_pairs` reads of the teacher's output, so that it can be kept from epoch to epoch; None beside a
    name: the same for all examples. Without it nothing is kept; it stands beside the `prediction_pairs` it is about."""

    @classmethod
    def fits(cls, config: Any) -> bool:
        """Whether a model of this configuration is for this task, as the class that it names is called."""
        return cls.kind in map(task_of, config.architectures or ())

    @abstractmethod
    def metric(self, labels: Sequence[str]) -> str:
        """Name of the score that chooses a checkpoint and is reported, for a data set with these labels."""

    columns: tuple[str, ...] = ()
    """What `Reading.columns` may name, besides "ignore"."""

    takes: tuple[str, ...] = ()
    """What of `Reading` this task takes and others do not: "scheme", "separator"."""

    def read(
        self,
        paths: Sequence[str | Source],
        *,
        label_map: Mapping[str, str] | None = None,
        how: Reading | None = None,
        reports: list[RowReport] | None = None,
    ) -> list[Any]:
        """Labelled examples of files, data sets or rows in memory, in their order.

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
        for path in (one if isinstance(one, Rows) else Path(one) for one in paths):
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
                logger.warning(line)
        if reports is not None:
            reports += found
        return examples

    @abstractmethod
    def read_file(self, path: Source, how: Reading, report: RowReport) -> Iterable[Any]:
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

    def _check_reading(self, paths: Sequence[str | Source], how: Reading) -> None:
        """Refuse a reading that no file of this task can have."""
        if not paths:
            raise InputError("no file was given: name at least one labelled file")
        for name in ("scheme", "separator"):
            value = getattr(how, name)
            if value is not None and name not in self.takes:
                raise InputError(f"{name} is {value!r}, but {self.kind} has no use for it: leave it out")
        if how.label_map and not self.means_labels:
            raise InputError(f"label_map renames labels, and {self.kind} has none: leave it out")
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
    def build_model(self, folder: ModelSource, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
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

    @classmethod
    def kept_outputs(cls) -> Mapping[str, PerExample | None] | None:
        """`teacher_outputs`, unless a subclass has another `prediction_pairs` and does not say what that one reads."""
        for one in cls.__mro__:
            if "teacher_outputs" in vars(one):
                return cls.teacher_outputs
            if "prediction_pairs" in vars(one):
                return None
        return None

    def mean_output(self, outputs: Iterable[Any]) -> Any:
        """Several teachers' outputs on a batch as one, for which `prediction_pairs` gives the mean of their logits.

        It is the mean of `teacher_outputs`; a task whose logits are no linear function of these has another one.

        Args:
            outputs: taken one after the other.
        """
        return mean_of(outputs, self.teacher_outputs or ())

    @abstractmethod
    def decode(
        self, examples: Sequence[Any], features: Sequence[Feature], outputs: Outputs, labels: Sequence[str]
    ) -> list[Decoded]:
        """Predictions, one per example and in their order, out of the outputs of `run`.

        Args:
            labels: the model's, in the order of its logits.
        """

    def predict(
        self,
        model: PreTrainedModel | Engine,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Any],
        features: Sequence[Feature],
        *,
        batch_size: int = 32,
    ) -> list[Any]:
        """Predictions, one per example and in their order, in the task's own type."""
        engine = TorchEngine(model) if isinstance(model, torch.nn.Module) else model
        outputs = run(engine, features, self.collate(tokenizer, positions=engine.positions), batch_size=batch_size)
        return [one.value for one in self.decode(examples, features, outputs, engine.labels)]

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

    def answered(self, example: Any, prediction: Any) -> Any:
        """The example with what a model says of it in place of its labels; of tasks that are `of_plain_text` alone."""
        raise NotImplementedError(f"{self.kind} has no examples of plain text")

    def in_words(self, example: Any, prediction: Any = None, *, labels: Sequence[str]) -> str:
        """A prediction in a line, for people to look at.

        Args:
            prediction: None: the example's own labels.
            labels: the model's.
        """
        del example, labels
        return "" if prediction is None else str(prediction)

    def check_writable(self, examples: Sequence[Any]) -> None:
        """Make sure that predictions on these examples can be written; asked before they are made.

        Raises:
            InputError: with file and line.
        """
        del examples

    @abstractmethod
    def predicted(self, examples: Sequence[Any], predictions: Sequence[Any]) -> Iterator[str]:
        """Predictions in the format that the examples were read in, in pieces of text."""

    def write_predictions(
        self, path: Path, examples: Sequence[Any], predictions: Sequence[Any], *, known: Collection[str] = ()
    ) -> None:
        """Write predictions in the format the examples were read in, whole or not at all.

        Args:
            known: SHA-256 of earlier predictions, which may give way; predictions do not say whose they are.

        Raises:
            InputError: something else is there, or as `check_writable`.
        """
        self.check_writable(examples)
        with (
            whole_file(path, replace=bool(known), known=known) as partial,
            partial.open("w", encoding="utf-8", newline="\n") as stream,
        ):
            stream.writelines(self.predicted(examples, predictions))

    def collate(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        teacher: PreTrainedTokenizerBase | None = None,
        positions: int | None = None,
    ) -> Callable[[list[Feature]], Batch]:
        """A function that pads features to the longest of the batch (a multiple of 8) and stacks them to tensors.

        Args:
            teacher: the teacher's tokenizer, whose padding token "teacher_input_ids" get; default: the same one.
            positions: that the model has (`models.families.position_limit`), beyond which nothing is padded.
        """
        return Collator(tokenizer, self.padding, self.word_padding, teacher or tokenizer, positions)


def _nothing_left(paths: Sequence[str | Source], reports: Sequence[RowReport]) -> str:
    named = ", ".join(map(str, paths))
    first = next((report.unlabelled.first for report in reports if report.unlabelled.count), None)
    if first is not None:
        return f"no examples in {named}: every label is missing (the first: {first}); give labelled files"
    return f"no examples in {named}: the files are empty"
