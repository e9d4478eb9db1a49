"""The terms of the distillation objective: one class per loss.

A term says what must be kept of the two forward passes, what it asks of the two models, and how its loss is computed
from what was kept. `Distiller` puts terms together, weighted as `ObjectiveSettings` says. A new term is a subclass of
`Term` with a `NAME`; its weight stands in `ObjectiveSettings.terms` under that name. A module of this package that is
called like its term is found without being imported first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bistil.distillation.aligned_attention import AttentionInputs
from bistil.distillation.objectives import attention_loss, cosine_loss, hidden_loss, prediction_loss, relation_loss
from bistil.distillation.representations import Captured, probabilities
from bistil.errors import RecipeError
from bistil.models.families import family_of
from bistil.models.masked_lm import masked_lm_loss
from bistil.settings.recipe import ObjectiveSettings
from bistil.text import IGNORED

# Rows of the vocabulary-sized output layer that exist at a time.
HEAD_ROWS = 256

Pairs = Sequence[tuple[int, int]]
"""Aligned layers, (student's, teacher's), 1-based; state 0 is the embedding output."""


class RowPair(Protocol):
    """What a task compares: rows of logits (rows, classes), with masks of rows and of classes that count, or None."""

    student: Tensor
    teacher: Tensor
    mask: Tensor | None
    valid: Tensor | None


@dataclass(frozen=True)
class Needs:
    """What a forward pass must keep for a term."""

    hidden: frozenset[int] = frozenset()
    """States, 0 to depth."""
    attention: frozenset[int] = frozenset()
    """Layers whose attention maps are compared, 1 to depth."""
    relations: frozenset[int] = frozenset()
    """Layers whose queries, keys and values are kept."""
    last: bool = False
    """The encoder's output."""
    head: bool = False
    """The model runs with its task head, if it has one (phase 2)."""
    labels: bool = False
    """The head gets the labels."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.hidden | other.hidden,
            self.attention | other.attention,
            self.relations | other.relations,
            self.last or other.last,
            self.head or other.head,
            self.labels or other.labels,
        )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A student and its teacher on one batch."""

    student: nn.Module
    teacher: nn.Module | None
    """None: it is gone, and what it said was kept."""
    pairs: Pairs
    got: Captured
    """What was kept of the student's pass."""
    target: Captured
    """What was kept of the teacher's."""
    batch: Mapping[str, Tensor]
    row_pairs: Callable[[Any, Any, Mapping[str, Tensor]], list[Any]] | None = None
    """Phase 2: what the task compares, from both models' outputs."""
    linear_maps: Callable[[], AbstractContextManager[None]]
    """Linear maps that a term computes run inside this, in the precision of the models; all else of it is float32."""

    @property
    def mask(self) -> Tensor | None:
        """(batch, tokens) real tokens; None: all are."""
        return self.batch.get("attention_mask")


@dataclass(frozen=True)
class Side:
    """What is known of a model beforehand."""

    config: Any = field(repr=False)

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return int(family_of(self.config).width(self.config))

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(family_of(self.config).heads(self.config))


class Term(ABC):
    """A loss of a student against its teacher.

    Args:
        objective: the settings that it is one of the terms of.
    """

    NAME: ClassVar[str]
    """Of its weight, and in logs."""
    TAUGHT: ClassVar[bool] = True
    """Whether it looks at the teacher; where no term does, the teacher does not run."""
    KEEPABLE: ClassVar[bool] = False
    """Whether all that `loss` reads of the teacher is named by `teacher_needs`, or is what the task compares: phase 2
    may then keep it from epoch to epoch. Beyond an example's own tokens it is 0 there."""

    def __init__(self, objective: ObjectiveSettings) -> None:
        self.objective = objective

    def needs(self, layers: Sequence[int]) -> Needs:
        """What the student's pass must keep.

        Args:
            layers: the model's own side of the pairs of layers, in their order.
        """
        del layers
        return Needs()

    def teacher_needs(self, layers: Sequence[int]) -> Needs:
        """What the teacher's pass must keep; the same, but that it is never asked for labels."""
        return replace(self.needs(layers), labels=False)

    def check(self, student: Side, teacher: Side) -> str | None:
        """Why the term cannot be computed between two models, and what to do; None if it can."""
        del student, teacher
        return None

    def targets(self, pairs: Pairs, target: Captured) -> dict[int, AttentionInputs]:
        """Per student layer, the teacher's attention whose loss is computed along with the student's attention."""
        del pairs, target
        return {}

    @abstractmethod
    def loss(self, compared: Compared) -> Tensor | None:
        """The loss, a scalar, unweighted; None where the batch has nothing for it."""


class Attention(Term):
    """MSE of the attention probabilities of aligned layers (paper, section 3.2, L_attn)."""

    NAME = "attention"
    KEEPABLE = True

    def needs(self, layers: Sequence[int]) -> Needs:
        return Needs(attention=frozenset(layer for layer in layers if layer > 0))

    def check(self, student: Side, teacher: Side) -> str | None:
        if student.heads == teacher.heads:
            return None
        return (
            f"{student.heads} attention heads, teacher {teacher.heads}: the attention loss needs equally many; set its "
            "weight to 0 and use relations"
        )

    def targets(self, pairs: Pairs, target: Captured) -> dict[int, AttentionInputs]:
        return {
            ours: theirs
            for ours, layer in pairs
            if ours > 0 and isinstance(theirs := target.attention[layer], AttentionInputs)
        }

    def loss(self, compared: Compared) -> Tensor | None:
        losses = []
        for ours, layer in compared.pairs:
            if ours == 0:
                continue
            loss = compared.got.attention_losses.get(ours)
            if loss is None:
                student, teacher = compared.got.attention[ours], compared.target.attention[layer]
                loss = attention_loss(probabilities(student), probabilities(teacher), compared.mask)
            losses.append(loss)
        return torch.stack(losses).mean()


class Hidden(Term):
    """MSE of the hidden states of aligned layers and of the embedding output (paper, section 3.2, L_hidden)."""

    NAME = "hidden"
    KEEPABLE = True

    def needs(self, layers: Sequence[int]) -> Needs:
        return Needs(hidden=frozenset(layers))

    def check(self, student: Side, teacher: Side) -> str | None:
        return _needs_equal_widths(student, teacher)

    def loss(self, compared: Compared) -> Tensor | None:
        got, target = compared.got.hidden, compared.target.hidden
        return torch.stack(
            [hidden_loss(got[ours], target[layer], compared.mask) for ours, layer in compared.pairs]
        ).mean()


class Relations(Term):
    """MiniLMv2's self-attention relations of the last aligned layers (Wang et al. 2021)."""

    NAME = "relations"
    KEEPABLE = True

    def needs(self, layers: Sequence[int]) -> Needs:
        return Needs(relations=frozenset(layers[-1:]))

    def check(self, student: Side, teacher: Side) -> str | None:
        heads, widths = self.objective.relation_heads, (student.width, teacher.width)
        if not any(width % heads for width in widths):
            return None
        return f"relation_heads {heads} does not divide the widths {widths[0]} and {widths[1]}"

    def loss(self, compared: Compared) -> Tensor | None:
        ours, layer = compared.pairs[-1]
        kinds = zip(compared.got.vectors[ours], compared.target.vectors[layer], strict=True)
        heads = self.objective.relation_heads
        return torch.stack([relation_loss(one, other, heads, compared.mask) for one, other in kinds]).sum()


class Cosine(Term):
    """DistilBERT's cosine loss between last hidden states (Sanh et al. 2019, section 3)."""

    NAME = "cosine"
    KEEPABLE = True

    def needs(self, layers: Sequence[int]) -> Needs:
        del layers
        return Needs(last=True)

    def check(self, student: Side, teacher: Side) -> str | None:
        return _needs_equal_widths(student, teacher)

    def loss(self, compared: Compared) -> Tensor | None:
        got, target = compared.got.last, compared.target.last
        assert got is not None and target is not None
        return cosine_loss(got, target, compared.mask)


class Prediction(Term):
    """Soft cross-entropy against the teacher's predictions: the task's (paper, section 3.3), or of every token."""

    NAME = "prediction"
    KEEPABLE = True

    def needs(self, layers: Sequence[int]) -> Needs:
        del layers
        return Needs(head=True)

    def loss(self, compared: Compared) -> Tensor | None:
        if compared.row_pairs is None:
            return self._of_every_token(compared)
        pairs: list[RowPair] = compared.row_pairs(compared.got.output, compared.target.output, compared.batch)
        return torch.stack([self._of_rows(pair) for pair in pairs]).sum()

    def _of_rows(self, pair: RowPair) -> Tensor:
        student, teacher = pair.student, pair.teacher
        if pair.valid is not None:
            lowest = torch.finfo(student.dtype).min / 2
            student, teacher = (side.masked_fill(~pair.valid, lowest) for side in (student, teacher))
        return prediction_loss(student, teacher, self.objective.temperature, pair.mask)

    def _of_every_token(self, compared: Compared) -> Tensor:
        """Phase 1: the masked-LM heads' predictions at real tokens, a slice of rows at a time."""
        got, target = compared.got.last, compared.target.last
        whole = compared.teacher
        assert got is not None and target is not None and whole is not None
        ours, theirs = family_of(compared.student), family_of(whole)
        real = slice(None) if compared.mask is None else compared.mask.bool().flatten()
        student, teacher = got.flatten(0, 1)[real], target.flatten(0, 1)[real]

        def soft(student: Tensor, teacher: Tensor) -> Tensor:
            with compared.linear_maps():
                with torch.no_grad():
                    wanted = theirs.masked_lm_logits(whole, teacher)
                logits = ours.masked_lm_logits(compared.student, student)
            return prediction_loss(logits, wanted, self.objective.temperature) * len(student)

        parts = [
            checkpoint(soft, s, t, use_reentrant=False)
            for s, t in zip(student.split(HEAD_ROWS), teacher.split(HEAD_ROWS), strict=True)
        ]
        return torch.stack(parts).sum() / max(len(student), 1)


class HardLabels(Term):
    """The task's own loss on labelled examples (phase 2), or masked language modelling (phase 1)."""

    NAME = "hard_labels"
    TAUGHT = False
    KEEPABLE = True

    def needs(self, layers: Sequence[int]) -> Needs:
        del layers
        return Needs(head=True, labels=True)

    def teacher_needs(self, layers: Sequence[int]) -> Needs:
        del layers
        return Needs()

    def loss(self, compared: Compared) -> Tensor | None:
        if compared.row_pairs is not None:
            # Batches of unlabelled target text have no labels to learn from.
            own: Tensor | None = getattr(compared.got.output, "loss", None)
            return own
        last = compared.got.last
        assert last is not None
        labels = compared.batch["labels"].flatten()
        chosen = labels != IGNORED
        with compared.linear_maps():
            logits = family_of(compared.student).masked_lm_logits(compared.student, last.flatten(0, 1)[chosen])
        return masked_lm_loss(logits, labels[chosen])


BUILT_IN: tuple[type[Term], ...] = (Attention, Hidden, Relations, Cosine, Prediction, HardLabels)
"""In the order in which they are added up."""


def _needs_equal_widths(student: Side, teacher: Side) -> str | None:
    if student.width == teacher.width:
        return None
    return (
        f"width {student.width}, teacher {teacher.width}: hidden and cosine losses need equal widths; set their "
        "weights to 0 and use relations"
    )


def terms_of(objective: ObjectiveSettings) -> list[tuple[Term, float]]:
    """The terms with a weight, and their weights.

    Raises:
        RecipeError: a name in `objective.terms` stands for no term.
    """
    own = [(one, float(getattr(objective, one.NAME))) for one in BUILT_IN]
    own += [(find_term(name), weight) for name, weight in objective.terms.items()]
    return [(kind(objective), weight) for kind, weight in own if weight]


def find_term(name: str) -> type[Term]:
    """The term of a name: a subclass of `Term` that has been imported, one of this package, or "package.module:Class".

    Raises:
        RecipeError: there is none, or it is no `Term`.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"the term {name!r} cannot be imported: {error}") from error
    else:
        if find_spec(f"{__name__}.{name}") if name.isidentifier() else None:
            import_module(f"{__name__}.{name}")
        known = {one.NAME: one for one in _below(Term) if hasattr(one, "NAME")}  # type: ignore[type-abstract]
        if name not in known:
            names = ", ".join(sorted({*known, *(one.name for one in iter_modules(__path__))}))
            raise RecipeError(f"no term is called {name!r}; there are {names}; one of your own is package.module:Class")
        found = known[name]
    if not (isinstance(found, type) and issubclass(found, Term) and hasattr(found, "NAME")):
        raise RecipeError(f"{name} is no term: a subclass of bistil.distillation.terms.Term with a NAME is expected")
    return found


def _below(kind: type[Term]) -> Iterable[type[Term]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)
