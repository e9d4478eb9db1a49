"""One teacher pass, any number of students: the weighted objective as a module that a training loop can call."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bistil._moved import left_names
from bistil.distillation.kept_teacher import KeptTeacher
from bistil.distillation.representations import Capture, Captured
from bistil.distillation.student import choose_layers
from bistil.distillation.terms import Compared, Needs, Pairs, Side, Term, terms_of
from bistil.errors import RecipeError
from bistil.models.families import family_of
from bistil.runtime.fast_linear import fast_linear
from bistil.settings.recipe import ObjectiveSettings, StudentSettings

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.distillation.module")


@dataclass(frozen=True)
class _Plan:
    """How one student is compared with the teacher."""

    name: str
    student: nn.Module
    pairs: Pairs
    terms: list[tuple[Term, float]]
    needs: Needs
    capture: Capture


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
        others: with `prediction_pairs`, more teachers: what L_pred compares is made of the outputs of all of them, and
            everything else of the teacher's alone.
        mean_output: makes one output of the teachers' (`Task.mean_output`); they run while it takes them.
        fast: linear maps as in `fast_linear`; false under torch.compile.
        wear: called with a batch's "language" before the teacher runs, to put on that language's SFT.
        kept: keeps what the teacher says, if there is room for it (`prepare`); batches are made by its `batch`.
        beside: teacher layers of students that are trained elsewhere, and for whom it is kept too.

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
        others: Sequence[nn.Module] = (),
        mean_output: Callable[[Iterable[Any]], Any] | None = None,
        wear: Callable[[str], None] | None = None,
        kept: KeptTeacher | None = None,
        beside: Sequence[Sequence[int]] = (),
        fast: bool = True,
    ) -> None:
        super().__init__()
        self._fast = fast
        self._linear_maps: Callable[[], AbstractContextManager[None]] = fast_linear if fast else nullcontext
        self.students = _Students(dict(students))
        self._outside: dict[str, Any] = {"teacher": teacher.eval().requires_grad_(False)}
        self._outside["others"] = [Capture(one.eval().requires_grad_(False), fast=fast) for one in others]
        self._pairs, self._mean_output = prediction_pairs, mean_output
        self._wear = wear
        self._kept, self._reads_kept, self._beside = kept, False, beside
        self._plans = [
            self._plan(name, student, objectives[name], (layers or {}).get(name)) for name, student in students.items()
        ]
        self._taught = any(term.TAUGHT for plan in self._plans for term, _ in plan.terms)
        self._target_needs = self._teacher_needs()
        self._target_capture = self._capture(self.teacher, self._target_needs)

    @property
    def teacher(self) -> nn.Module:
        """The teacher."""
        teacher: nn.Module = self._outside["teacher"]
        return teacher

    def prepare(self, device: torch.device, *, low_precision: bool) -> None:
        """Before training on a device: let the teacher say what is to be kept, if any is; then it is gone.

        Args:
            low_precision: matrix products are in bf16.
        """
        if self._kept is None or self._reads_kept:
            return

        def run(batch: dict[str, Any]) -> Captured:
            on_device = {name: value.to(device) for name, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
                return self._run_teacher(on_device)

        own = self._target_needs
        for needs in dict.fromkeys([self._needs_of_all(), own]):
            # What others need is kept where there is room for all of it.
            self._target_capture.close()
            self._target_capture = self._capture(self.teacher, needs)
            teachers = [self.teacher, *(other.model for other in self._outside["others"])]
            if self._kept.fill(run, needs, teachers, low_precision=low_precision):
                self._reads_kept = True
                self._drop_teacher()
                return
        self._kept = None

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
        self._drop_teacher()

    def _drop_teacher(self) -> None:
        if self._outside:
            self._target_capture.close()
            del self._target_capture
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
        if self._reads_kept:
            assert self._kept is not None
            target = self._kept.captured(batch)
        else:
            target = self._run_teacher(batch)
        total: Tensor | float = 0.0
        report: dict[str, Tensor] = {}
        for plan in self._plans:
            terms = self._terms(plan, batch, target)
            loss = torch.stack([weight * term for weight, term in terms.values()]).sum()
            total = total + loss
            report[f"{plan.name}/loss"] = loss.detach()
            report.update({f"{plan.name}/{name}": term.detach() for name, (_, term) in terms.items()})
        assert isinstance(total, Tensor)
        return {"loss": total, **report}

    def _run_teacher(self, batch: Mapping[str, Tensor]) -> Captured:
        inputs = teacher_inputs(batch)
        head = self._target_needs.head and self._pairs is not None

        def run(capture: Capture) -> Captured:
            model, device = capture.model, inputs["input_ids"].device
            if next(model.parameters()).device != device:
                model.to(device)
            return capture.run(inputs_of(model, inputs, head=head), head=head)

        with torch.no_grad():
            if not self._taught:
                return Captured()
            target, others = run(self._target_capture), self._outside["others"] if head else ()
            if others:
                assert self._mean_output is not None
                target.output = self._mean_output(chain([target.output], (run(one).output for one in others)))
            return target

    def _terms(self, plan: _Plan, batch: Mapping[str, Tensor], target: Captured) -> dict[str, tuple[float, Tensor]]:
        """Weight and unweighted loss of each term, by name."""
        targets = {layer: one for term, _ in plan.terms for layer, one in term.targets(plan.pairs, target).items()}
        # Phase 2's students run under their own head; in phase 1 the head sees chosen rows only.
        head = plan.needs.head and self._pairs is not None
        inputs = inputs_of(plan.student, batch, head=head, labels=plan.needs.labels)
        device = batch["input_ids"].device.type
        autocast = partial(
            torch.autocast, device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
        )

        @contextmanager
        def linear_maps() -> Iterator[None]:
            with autocast(), self._linear_maps():
                yield

        compared = Compared(
            student=plan.student,
            teacher=self._outside.get("teacher"),
            pairs=plan.pairs,
            got=plan.capture.run(inputs, head=head, targets=targets),
            target=target,
            batch=batch,
            row_pairs=self._pairs,
            linear_maps=linear_maps,
        )
        # Losses are float32, whatever the models' matrix products are.
        with torch.autocast(device, enabled=False):
            losses = [(term.NAME, weight, term.loss(compared)) for term, weight in plan.terms]
        return {name: (weight, loss) for name, weight, loss in losses if loss is not None}

    def _plan(self, name: str, student: nn.Module, objective: ObjectiveSettings, layers: list[int] | None) -> _Plan:
        theirs, ours = family_of(self.teacher), family_of(student)
        teacher_config: Any = self.teacher.config
        student_config: Any = student.config
        depth, teacher_depth = ours.depth(student_config), theirs.depth(teacher_config)
        layers = layers or _aligned_layers(name, student_config, depth, teacher_depth)
        if len(layers) != depth:
            raise RecipeError(f"student {name!r}: {depth} layers, but {len(layers)} teacher layers to align them with")
        check_objective(name, objective, student_config, teacher_config)
        pairs = pairs_of(name, objective, layers, teacher_depth)
        terms = terms_of(objective)
        needs = Needs()
        for term, _ in terms:
            needs |= term.needs([own for own, _ in pairs])
        # The final norm belongs to the teacher's last layer; a layer from below is compared before it.
        final_norm = dict(pairs).get(depth, layers[-1]) == teacher_depth
        return _Plan(name, student, pairs, terms, needs, self._capture(student, needs, final_norm=final_norm))

    def _teacher_needs(self) -> Needs:
        needs = Needs()
        for plan in self._plans:
            for term, _ in plan.terms:
                needs |= term.teacher_needs([layer for _, layer in plan.pairs])
        return needs

    def _needs_of_all(self) -> Needs:
        """What the teacher must be asked for the students beside these too."""
        needs, config = self._target_needs, cast(Any, self.teacher.config)
        for plan in self._plans:
            for term, _ in plan.terms if not plan.terms[0][0].objective.pairs else ():
                for layers in self._beside:
                    pairs = pairs_of(plan.name, term.objective, layers, family_of(self.teacher).depth(config))
                    needs |= term.teacher_needs([layer for _, layer in pairs])
        return needs

    def _capture(self, model: nn.Module, needs: Needs, *, final_norm: bool = True) -> Capture:
        return Capture(
            model,
            hidden_layers=needs.hidden,
            attention_layers=needs.attention,
            relation_layers=needs.relations,
            fast=self._fast,
            final_norm=final_norm,
        )


def pairs_of(name: str, objective: ObjectiveSettings, layers: Sequence[int], teacher_depth: int) -> Pairs:
    """The pairs of states that are compared: those of the objective, or embeddings and aligned layers.

    Args:
        layers: per student layer the teacher's, 1-based.

    Raises:
        RecipeError: a pair names a layer that one of the two does not have.
    """
    if not objective.pairs:
        return [(0, 0), *enumerate(layers, start=1)]
    for pair in objective.pairs:
        if not (pair[0] <= len(layers) and pair[1] <= teacher_depth):
            raise RecipeError(
                f"student {name!r}: pairs has {pair}, but the student has {len(layers)} layers and its teacher "
                f"{teacher_depth}"
            )
    return [(ours, theirs) for ours, theirs in objective.pairs]


def _aligned_layers(name: str, config: Any, depth: int, teacher_depth: int) -> list[int]:
    """What the student's configuration says it was copied from, if that fits the teacher; else an even spread."""
    copied = getattr(config, "bistil_teacher_layers", None)
    if copied and len(copied) == depth and copied[-1] <= teacher_depth:
        return list(copied)
    return choose_layers(teacher_depth, StudentSettings(name=name, depth=depth))


def teacher_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as the teacher reads it, which may read other inputs ("teacher_...")."""
    prefix = "teacher_"
    own = {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
    return {**{name: value for name, value in batch.items() if not name.startswith(prefix)}, **own}


def inputs_of(model: nn.Module, batch: Mapping[str, Any], *, head: bool, labels: bool = False) -> dict[str, Any]:
    """The entries of a batch that the model (or, without head, its encoder) takes; answers only if wanted."""
    taker = model if head else family_of(model).encoder(model)
    known = inspect.signature(type(taker).forward).parameters
    answers = ("labels", "start_positions", "end_positions")
    return {name: value for name, value in batch.items() if name in known and (labels or name not in answers)}


def check_objective(name: str, objective: ObjectiveSettings, student: Any, teacher: Any) -> None:
    """Make sure that an objective can be computed between a student and a teacher of these configurations.

    Raises:
        RecipeError: a term says why it cannot be, such as widths or numbers of heads that differ.
    """
    for term, _ in terms_of(objective):
        problem = term.check(Side(student), Side(teacher))
        if problem is not None:
            raise RecipeError(f"student {name!r}: {problem}")
