"""One teacher pass, any number of students: the weighted objective as a module that a training loop can call."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bistil.distillation.aligned_attention import AttentionInputs
from bistil.distillation.objectives import attention_loss, cosine_loss, hidden_loss, prediction_loss, relation_loss
from bistil.distillation.representations import Capture, Captured, probabilities
from bistil.distillation.student import choose_layers
from bistil.errors import RecipeError
from bistil.models.families import family_of
from bistil.models.masked_lm import masked_lm_loss
from bistil.runtime.fast_linear import fast_linear
from bistil.settings.recipe import ObjectiveSettings, StudentSettings
from bistil.text import IGNORED

# Rows of the vocabulary-sized output layer that exist at a time.
HEAD_ROWS = 256


class Pair(Protocol):
    """What a task compares: rows of logits (rows, classes), with masks of rows and of classes that count, or None."""

    student: Tensor
    teacher: Tensor
    mask: Tensor | None
    valid: Tensor | None


@dataclass(frozen=True)
class _Plan:
    """How one student is compared with the teacher."""

    name: str
    student: nn.Module
    layers: list[int]
    objective: ObjectiveSettings
    capture: Capture

    @property
    def hidden_pairs(self) -> list[tuple[int, int]]:
        return [(0, 0), *enumerate(self.layers, start=1)]


class _Students(nn.ModuleDict):
    """Students by name; any name will do, also one that is a method of modules, such as "half"."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        assert module is not None
        self._modules[name] = module


class Distiller(nn.Module):
    """Students that learn from one teacher; `forward` gives the sum of their losses and every term by name.

    Only what the objectives ask for is computed. The teacher is held outside the module tree: it is neither trained
    nor saved nor wrapped for several processes. One student's results do not depend on the others beside it.

    Args:
        teacher: of a supported family; kept in evaluation mode.
        students: by name.
        objectives: weights per student.
        layers: per student, the teacher layer (1-based) that each of its layers is aligned with; default: what the
            student's configuration says it was copied from, else spread evenly.
        prediction_pairs: what L_pred compares, from the outputs of student and teacher on a batch (phase 2). Without
            it, L_pred and the hard-label loss use the masked-language-modelling heads (phase 1).
        fast: linear maps as in `fast_linear`; false under torch.compile.
        wear: called with a batch's "language" before the teacher runs, to put on that language's SFT.

    Raises:
        RecipeError: an objective that these models cannot be compared by.
    """

    def __init__(
        self,
        teacher: nn.Module,
        students: Mapping[str, nn.Module],
        *,
        objectives: Mapping[str, ObjectiveSettings],
        layers: Mapping[str, list[int]] | None = None,
        prediction_pairs: Callable[[Any, Any, Mapping[str, Tensor]], list[Any]] | None = None,
        wear: Callable[[str], None] | None = None,
        fast: bool = True,
    ) -> None:
        super().__init__()
        self._fast = fast
        self._linear_maps: Callable[[], AbstractContextManager[None]] = fast_linear if fast else nullcontext
        self.students = _Students(dict(students))
        self._outside: dict[str, Any] = {"teacher": teacher.eval().requires_grad_(False)}
        self._pairs = prediction_pairs
        self._wear = wear
        self._plans = [
            self._plan(name, student, objectives[name], (layers or {}).get(name)) for name, student in students.items()
        ]
        self._head = prediction_pairs is not None and any(plan.objective.prediction for plan in self._plans)
        self._target_capture = self._teacher_capture()

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        teacher: nn.Module = self._outside["teacher"]
        return teacher

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """The trained parameters of each student: gradients are clipped in each group on its own."""
        return [[p for p in student.parameters() if p.requires_grad] for student in self.students.values()]

    def parts(self) -> dict[str, str]:
        """Per student, the prefix of its parameters' names: what counts as one model when the best one is kept."""
        return {name: f"students.{name}." for name in self.students}

    def close(self) -> None:
        """Give teacher and students their own attention back, and drop the teacher: the students are plain models."""
        for plan in self._plans:
            plan.capture.close()
        self._target_capture.close()
        self._outside.clear()

    def train(self, mode: bool = True) -> "Distiller":
        """Set the students' mode; the teacher stays in evaluation mode."""
        super().train(mode)
        return self

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Losses of all students on a batch.

        Args:
            batch: input_ids, attention_mask, ... each (batch, tokens), labels if the objective needs them,
                "language" (a str) for the teacher's SFT, and "teacher_..." where the teacher reads other inputs.

        Returns:
            "loss", the sum over students; per student "NAME/loss" and "NAME/TERM", unweighted. All scalars.
        """
        language = batch.pop("language", None)
        if self._wear is not None and language is not None:
            self._wear(language)
        target = self._run_teacher(batch)
        mask = batch.get("attention_mask")
        total: Tensor | float = 0.0
        report: dict[str, Tensor] = {}
        for plan in self._plans:
            terms = self._terms(plan, batch, target, mask)
            loss = torch.stack([getattr(plan.objective, name) * term for name, term in terms.items()]).sum()
            total = total + loss
            report[f"{plan.name}/loss"] = loss.detach()
            report.update({f"{plan.name}/{name}": term.detach() for name, term in terms.items()})
        assert isinstance(total, Tensor)
        return {"loss": total, **report}

    def _run_teacher(self, batch: Mapping[str, Tensor]) -> Captured:
        prefix = "teacher_"
        own = {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
        inputs = {**{name: value for name, value in batch.items() if not name.startswith(prefix)}, **own}
        device = inputs["input_ids"].device
        if next(self.teacher.parameters()).device != device:
            self.teacher.to(device)
        with torch.no_grad():
            return self._target_capture.run(_inputs_of(self.teacher, inputs, head=self._head), head=self._head)

    def _terms(
        self, plan: _Plan, batch: Mapping[str, Tensor], target: Captured, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms with a weight, unweighted, under the names of their weights."""
        weights = plan.objective
        # Phase 2's students run under their own head; in phase 1 the head sees chosen rows only.
        head = self._pairs is not None and bool(weights.prediction or weights.hard_labels)
        targets = {
            ours: theirs
            for ours, layer in enumerate(plan.layers, start=1)
            if weights.attention and isinstance(theirs := target.attention[layer], AttentionInputs)
        }
        inputs = _inputs_of(plan.student, batch, head=head, labels=bool(weights.hard_labels))
        got = plan.capture.run(inputs, head=head, targets=targets)
        terms: dict[str, Tensor] = {}
        if weights.attention:
            losses = []
            for ours, layer in enumerate(plan.layers, start=1):
                loss = got.attention_losses.get(ours)
                if loss is None:
                    student, teacher = got.attention[ours], target.attention[layer]
                    loss = attention_loss(probabilities(student), probabilities(teacher), mask)
                losses.append(loss)
            terms["attention"] = torch.stack(losses).mean()
        if weights.hidden:
            pairs = plan.hidden_pairs
            terms["hidden"] = torch.stack(
                [hidden_loss(got.hidden[ours], target.hidden[layer], mask) for ours, layer in pairs]
            ).mean()
        if weights.relations:
            kinds = zip(got.vectors[len(plan.layers)], target.vectors[plan.layers[-1]], strict=True)
            terms["relations"] = torch.stack(
                [relation_loss(ours, theirs, weights.relation_heads, mask) for ours, theirs in kinds]
            ).sum()
        if weights.cosine:
            assert got.last is not None and target.last is not None
            terms["cosine"] = cosine_loss(got.last, target.last, mask)
        if self._pairs is not None:
            self._task_terms(terms, weights, got, target, batch)
        elif weights.prediction or weights.hard_labels:
            self._masked_lm_terms(terms, plan, got, target, batch, mask)
        return terms

    def _task_terms(
        self,
        terms: dict[str, Tensor],
        weights: ObjectiveSettings,
        got: Captured,
        target: Captured,
        batch: Mapping[str, Tensor],
    ) -> None:
        assert self._pairs is not None
        if weights.prediction:
            pairs: list[Pair] = self._pairs(got.output, target.output, batch)
            terms["prediction"] = torch.stack([_pair_loss(pair, weights.temperature) for pair in pairs]).sum()
        # Batches of unlabelled target text have no labels to learn from.
        if weights.hard_labels and getattr(got.output, "loss", None) is not None:
            terms["hard_labels"] = got.output.loss

    def _masked_lm_terms(
        self,
        terms: dict[str, Tensor],
        plan: _Plan,
        got: Captured,
        target: Captured,
        batch: Mapping[str, Tensor],
        mask: Tensor | None,
    ) -> None:
        assert got.last is not None and target.last is not None
        ours, theirs = family_of(plan.student), family_of(self.teacher)
        weights = plan.objective
        if weights.prediction:
            real = slice(None) if mask is None else mask.bool().flatten()
            student, teacher = got.last.flatten(0, 1)[real], target.last.flatten(0, 1)[real]

            def soft(student: Tensor, teacher: Tensor) -> Tensor:
                with self._linear_maps():
                    with torch.no_grad():
                        wanted = theirs.masked_lm_logits(self.teacher, teacher)
                    logits = ours.masked_lm_logits(plan.student, student)
                return prediction_loss(logits, wanted, weights.temperature) * len(student)

            parts = [
                checkpoint(soft, s, t, use_reentrant=False)
                for s, t in zip(student.split(HEAD_ROWS), teacher.split(HEAD_ROWS), strict=True)
            ]
            terms["prediction"] = torch.stack(parts).sum() / max(len(student), 1)
        if weights.hard_labels:
            labels = batch["labels"].flatten()
            chosen = labels != IGNORED
            with self._linear_maps():
                logits = ours.masked_lm_logits(plan.student, got.last.flatten(0, 1)[chosen])
            terms["hard_labels"] = masked_lm_loss(logits, labels[chosen])

    def _plan(self, name: str, student: nn.Module, objective: ObjectiveSettings, layers: list[int] | None) -> _Plan:
        theirs, ours = family_of(self.teacher), family_of(student)
        teacher_config: Any = self.teacher.config
        student_config: Any = student.config
        depth = ours.depth(student_config)
        layers = layers or _aligned_layers(name, student_config, depth, theirs.depth(teacher_config))
        if len(layers) != depth:
            raise RecipeError(f"student {name!r}: {depth} layers, but {len(layers)} teacher layers to align them with")
        check_objective(name, objective, student_config, teacher_config)
        capture = Capture(
            student,
            hidden_layers=range(depth + 1) if objective.hidden else (),
            attention_layers=range(1, depth + 1) if objective.attention else (),
            relation_layers=[depth] if objective.relations else (),
            # The final norm belongs to the teacher's last layer; a layer from below is compared before it.
            fast=self._fast,
            final_norm=layers[-1] == theirs.depth(teacher_config),
        )
        return _Plan(name, student, layers, objective, capture)

    def _teacher_capture(self) -> Capture:
        hidden = {layer for plan in self._plans if plan.objective.hidden for layer in (0, *plan.layers)}
        attention = {layer for plan in self._plans if plan.objective.attention for layer in plan.layers}
        relations = {plan.layers[-1] for plan in self._plans if plan.objective.relations}
        return Capture(
            self.teacher, hidden_layers=hidden, attention_layers=attention, relation_layers=relations, fast=self._fast
        )


_NO_WEIGHTS = ("temperature", "relation_heads")


def _aligned_layers(name: str, config: Any, depth: int, teacher_depth: int) -> list[int]:
    """What the student's configuration says it was copied from, if that fits the teacher; else an even spread."""
    copied = getattr(config, "bistil_teacher_layers", None)
    if copied and len(copied) == depth and copied[-1] <= teacher_depth:
        return list(copied)
    return choose_layers(teacher_depth, StudentSettings(name=name, depth=depth))


def _inputs_of(model: nn.Module, batch: Mapping[str, Any], *, head: bool, labels: bool = False) -> dict[str, Any]:
    """The entries of a batch that the model (or, without head, its encoder) takes; answers only if wanted."""
    taker = model if head else family_of(model).encoder(model)
    known = inspect.signature(type(taker).forward).parameters
    answers = ("labels", "start_positions", "end_positions")
    return {name: value for name, value in batch.items() if name in known and (labels or name not in answers)}


def _pair_loss(pair: Pair, temperature: float) -> Tensor:
    student, teacher = pair.student, pair.teacher
    if pair.valid is not None:
        lowest = torch.finfo(student.dtype).min / 2
        student, teacher = (side.masked_fill(~pair.valid, lowest) for side in (student, teacher))
    return prediction_loss(student, teacher, temperature, pair.mask)


def check_objective(name: str, objective: ObjectiveSettings, student: Any, teacher: Any) -> None:
    """Make sure that an objective can be computed between a student and a teacher of these configurations.

    Raises:
        RecipeError: nothing is to be computed, or a loss needs equal widths or numbers of heads.
    """
    ours, theirs = family_of(student), family_of(teacher)
    where = f"student {name!r}"
    if not any(getattr(objective, f.name) for f in fields(objective) if f.name not in _NO_WEIGHTS):
        raise RecipeError(f"{where}: every weight of the objective is 0")
    widths = (ours.width(student), theirs.width(teacher))
    if (objective.hidden or objective.cosine) and widths[0] != widths[1]:
        raise RecipeError(
            f"{where}: width {widths[0]}, teacher {widths[1]}: hidden and cosine losses need equal widths; "
            "set their weights to 0 and use relations"
        )
    heads = (ours.heads(student), theirs.heads(teacher))
    if objective.attention and heads[0] != heads[1]:
        raise RecipeError(
            f"{where}: {heads[0]} attention heads, teacher {heads[1]}: the attention loss needs equally many; "
            "set its weight to 0 and use relations"
        )
    if objective.relations and any(width % objective.relation_heads for width in widths):
        raise RecipeError(
            f"{where}: relation_heads {objective.relation_heads} does not divide the widths {widths[0]} and {widths[1]}"
        )
