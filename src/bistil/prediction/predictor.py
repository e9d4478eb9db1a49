"""What all predictors share: inputs to examples, the task's own encoding and decoding, records and formats."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.prediction.inputs import Form, Input, Place
from bistil.runtime.quiet import kept_threads
from bistil.tasks import Task
from bistil.tasks.base import Decoded
from bistil.tasks.batches import Engine, run

Format = Literal["conll", "conllu", "jsonl", "tsv", "csv"]
Sentences = Literal["line", "split"]
SPLITTING = {
    "bistil": "split at spaces and around punctuation and ideographs",
    "given": "as they were given",
}
"""How words came about, by what records say under "splitting"."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is wanted of predictions, beyond the likeliest one.

    Attributes:
        threshold: what the model is less sure of than this is left out: spans, a label, answers.
        n_best: so many labels of a text, or answers to a question, in place of one.
        sentences: whether a line of running text is one sentence or is split into several; None: a parser splits.
        unanswerable: whether a question may have no answer (models of SQuAD 2.0).
    """

    threshold: float | None = None
    n_best: int = 1
    sentences: Sentences | None = None
    unanswerable: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            InputError: one is.
        """
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"threshold is {self.threshold}; it must be a probability, from 0 to 1")
        if self.n_best < 1:
            raise InputError(f"n_best is {self.n_best}; it must be at least 1")
        if self.sentences not in (None, *get_args(Sentences)):
            raise InputError(f"sentences is {self.sentences!r}; choose {' or '.join(get_args(Sentences))}")


@dataclass(frozen=True)
class Said:
    """An example of an input, the places of its words in the text, what the model says, and whether it was cut."""

    example: Any
    places: list[Place]
    prediction: Decoded
    truncated: bool = False


class Predictor(ABC):
    """A finished model with its task, ready for use; `load` makes one.

    Args:
        name: of the model, for messages.
        max_length: tokens per window.
        threads: of PyTorch while it runs; None: as PyTorch is set.
    """

    texts: Literal["words", "pair", "question"]
    """What an input is made of (`read_inputs`)."""
    forms: tuple[Form, ...]
    """That a file of inputs may have."""
    formats: tuple[Format, ...]
    """That predictions can be written in, the task's own first."""
    takes: frozenset[str] = frozenset()
    """Keys of `Wanted` that change something here."""

    def __init__(
        self,
        name: str,
        task: Task,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        threads: int | None = None,
    ) -> None:
        self.name, self.task, self.engine, self.tokenizer = name, task, engine, tokenizer
        self.max_length, self.threads = max_length, threads
        self.labels = engine.labels

    def __call__(self, inputs: Any, *, batch_size: int = 32, **wanted: Any) -> Any:
        """Answer one input, or a list of them.

        Args:
            inputs: a text; for taggers and parsers also the list of a sentence's words; for pairs of texts, and for a
                question and its passage, a tuple. Or a list of such; words in it are lists.
            batch_size: windows per forward pass.
            wanted: `Wanted`: threshold, n_best, sentences, unanswerable.

        Returns:
            The record of the input (docs/predict.md), or a list of them.

        Raises:
            InputError: an input is none that the task reads, or something is wanted that the task does not have.
        """
        alone = isinstance(inputs, str | tuple)
        asked = [self.asked(one) for one in ([inputs] if alone else inputs)]
        found = self.records(asked, Wanted(**wanted), batch_size=batch_size)
        return found[0] if alone else found

    @abstractmethod
    def asked(self, given: Any) -> Input:
        """What a caller gave, as an input.

        Raises:
            InputError: it is none of this task.
        """

    @abstractmethod
    def examples(self, one: Input, wanted: Wanted) -> list[tuple[Any, list[Place]]]:
        """The examples of an input with the places of their words; none of an empty one."""

    @abstractmethod
    def record(self, one: Input, said: Sequence[Said], wanted: Wanted) -> dict[str, Any]:
        """What was said of an input, for JSON."""

    @abstractmethod
    def native(
        self, inputs: Sequence[Input], said: Sequence[Sequence[Said]], wanted: Wanted, *, format: Format, first: bool
    ) -> Iterator[str]:
        """What was said of inputs, in another format than JSON lines, in pieces of text.

        Args:
            first: whether they are the first of a file.
        """

    def begin(self, first: Input) -> None:
        """Look at the first input of a file, before what is said of any of them is written by `native`."""
        del first

    def check_wanted(self, wanted: Wanted) -> None:
        """Refuse what this task has no use for.

        Raises:
            InputError: with the option.
        """
        for name in ("threshold", "n_best", "sentences", "unanswerable"):
            if getattr(wanted, name) != getattr(Wanted(), name) and name not in self.takes:
                raise InputError(
                    f"{name} is {getattr(wanted, name)}, but {self.task.kind} has no use for it: leave it out"
                )

    def said(self, inputs: Sequence[Input], wanted: Wanted, *, batch_size: int = 32) -> list[list[Said]]:
        """Run the model: per input what it says of each of its examples."""
        self.check_wanted(wanted)
        owners, examples, places = list[int](), list[Any](), list[list[Place]]()
        for i, one in enumerate(inputs):
            for example, own in self.examples(one, wanted):
                owners.append(i)
                examples.append(example)
                places.append(own)
        with kept_threads(self.threads):
            features = self.task.encode(examples, self.tokenizer, self.max_length, labels=self.labels)
            cut = {feature["example"] for feature in features if feature.get("truncated")}
            collate = self.task.collate(self.tokenizer, positions=self.engine.positions)
            outputs = run(self.engine, features, collate, batch_size=batch_size)
            predictions = self.task.decode(examples, features, outputs, self.labels)
        found: list[list[Said]] = [[] for _ in inputs]
        for i, owner in enumerate(owners):
            found[owner].append(Said(examples[i], places[i], predictions[i], i in cut))
        return found

    def records(self, inputs: Sequence[Input], wanted: Wanted, *, batch_size: int = 32) -> list[dict[str, Any]]:
        """Per input the record of what is said of it."""
        said = self.said(inputs, wanted, batch_size=batch_size)
        return [self.record(one, own, wanted) for one, own in zip(inputs, said, strict=True)]

    def splitting(self, form: Form) -> str | None:
        """How words of a file of this form come about, a key of `SPLITTING`; None: the task reads no words."""
        del form
        return None


def sure(value: float) -> float:
    """A probability as it is written."""
    return round(float(value), 4)
