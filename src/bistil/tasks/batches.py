"""Features to batches, and a model run over them."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil.models.families import position_limit
from bistil.models.loading import labels_of
from bistil.models.masked_lm import at_least_float32
from bistil.runtime.fast_linear import fast_linear

# Sequences are padded to a multiple of this: matrix products like it, and fewer shapes occur.
PADDING_MULTIPLE = 8

# Batch entries that say what is right, not what is seen.
TARGETS = frozenset({"labels", "start_positions", "end_positions", "arc_labels", "relation_labels"})

Feature = dict[str, Any]

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Axis:
    """A dimension as long as one of a feature's lists, and so much longer."""

    key: str
    more: int = 0

    def of_feature(self, feature: Feature) -> int:
        """Its length in an example."""
        return len(feature[self.key]) + self.more

    def of_batch(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Its length in a batch, which is padded."""
        return batch[self.key].shape[1] + self.more


TOKEN_AXIS, WORD_AXIS, HEAD_AXIS = Axis("input_ids"), Axis("word_starts"), Axis("word_starts", more=1)


@dataclass(frozen=True)
class PerExample:
    """How a tensor of a model's output, (batch, ...), is cut into examples.

    Attributes:
        axes: its first dimensions behind the batch; those behind them are equal in all examples.
        padding: what stands beyond an example's own.
    """

    axes: tuple[Axis, ...] = ()
    padding: float = 0.0


@dataclass(frozen=True)
class Collator:
    """Pads to the longest of the batch. Keys that a feature keeps for itself (its example's index ...) stay out.

    Lists are padded on the right: tokens to a multiple of `PADDING_MULTIPLE`, but not beyond the model's `positions`
    (None: any number); per-word lists to the longest.
    A batch may mix features with and without a key, such as labels: those without get the padding value.
    """

    tokenizer: PreTrainedTokenizerBase
    padding: Mapping[str, int]
    word_padding: Mapping[str, int]
    teacher: PreTrainedTokenizerBase
    positions: int | None = None

    def __call__(self, features: list[Feature]) -> Batch:
        per_token = {
            "input_ids": self.tokenizer.pad_token_id or 0,
            "attention_mask": 0,
            "token_type_ids": 0,
            "teacher_input_ids": self.teacher.pad_token_id or 0,
            "teacher_token_type_ids": 0,
            **self.padding,
        }
        tokens = padded(max(len(feature["input_ids"]) for feature in features), self.positions)
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


def padded(longest: int, positions: int | None = None) -> int:
    """Tokens that a batch is padded to: a multiple of `PADDING_MULTIPLE`, but not beyond the model's positions."""
    tokens = -(-longest // PADDING_MULTIPLE) * PADDING_MULTIPLE
    return tokens if positions is None else max(longest, min(tokens, positions))


class Engine(Protocol):
    """What runs a model's forward pass; all that decoding needs of a model.

    Attributes:
        labels: names of the model's classes, in the order of its logits.
        positions: tokens that an input may have; None: any number.
    """

    labels: list[str]
    positions: int | None

    def __call__(self, batch: Batch) -> Mapping[str, Any]:
        """The model's outputs by name, such as "logits" (batch, ...): arrays, or tensors on any device."""


class TorchEngine:
    """Runs a PyTorch model where it is, in evaluation mode and without gradients."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.labels = model, labels_of(model.config)
        self.positions = position_limit(model.config)
        self._named = _named_inputs(model)

    def __call__(self, batch: Batch) -> Mapping[str, Any]:
        # A model that is in evaluation mode stays untouched: setting the mode of every module takes a millisecond.
        training = [module for module in self.model.modules() if module.training]
        device = self.model.device
        inputs = {name: value.to(device) for name, value in batch.items() if name in self._named}
        for module in training:
            module.training = False
        try:
            with torch.inference_mode(), fast_linear(rows=batch["input_ids"].numel()):
                output: Mapping[str, Any] = self.model(**inputs)
            return output
        finally:
            for module in training:
                module.training = True


Outputs = Iterable[tuple[list[int], Mapping[str, Any]]]
"""Indices into the features, and what an engine gave for them."""


def run(
    engine: Engine,
    features: Sequence[Feature],
    collate: Callable[[list[Feature]], Batch],
    *,
    batch_size: int,
) -> Iterator[tuple[list[int], Mapping[str, Any]]]:
    """Run a model over features in batches of similar length.

    Yields:
        Indices into `features` and the model's outputs, longest first: if memory is short, it shows at once.
    """
    order = np.argsort([-len(feature["input_ids"]) for feature in features], kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size].tolist()
        batch = collate([features[i] for i in indices])
        yield indices, engine({name: value for name, value in batch.items() if name not in TARGETS})


def mean_of(outputs: Iterable[Any], names: Collection[str]) -> SimpleNamespace:
    """The mean of several models' outputs on one batch, in float32 at least; what is -inf in all of them stays so.

    Args:
        outputs: taken one after the other, so that the next model runs when the last one's output is added up.
        names: of the tensors; the mean has no others.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for output in outputs:
        found = {name: at_least_float32(getattr(output, name)) for name in names}
        sums = {name: sums[name] + value for name, value in found.items()} if count else found
        count += 1
    return SimpleNamespace(**{name: value / count for name, value in sums.items()})


def as_array(values: Any) -> np.ndarray:
    """An engine's output as an array of float32 or float64 on the CPU."""
    if isinstance(values, torch.Tensor):
        return values.float().cpu().numpy()
    return np.asarray(values)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last dimension; what is -inf has probability 0."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def model_inputs(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries of a batch that the model's `forward` names: some families know no token types."""
    known = _named_inputs(model)
    return {name: value for name, value in batch.items() if name in known}


def _named_inputs(model: PreTrainedModel) -> Collection[str]:
    return inspect.signature(model.forward).parameters
