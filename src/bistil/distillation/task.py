"""Phase 2: fine-tuning for a task, from a task teacher (TF) or from labels only (ST) (paper, section 3.3).

The task teacher is made here too: it is the multilingual model, fine-tuned from labels only.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bistil._moved import left_names
from bistil.distillation.kept_teacher import ROW, KeptTeacher
from bistil.distillation.module import Distiller, check_objective
from bistil.distillation.sureness import surest
from bistil.distillation.task_data import MixedData, TaskData, some
from bistil.distillation.task_data import how_to_read as how_to_read
from bistil.distillation.task_data import read_task_data as read_task_data
from bistil.distillation.teacher_ids import same_ids, with_teacher_ids
from bistil.distillation.terms import terms_of
from bistil.errors import ArtefactError, InputError, RecipeError
from bistil.models.complete import CompleteModel, Origin, complete
from bistil.models.families import check_length, family_of, head_names, position_limit
from bistil.models.loading import ModelSource, config_of, labels_of, source_name
from bistil.runtime.artefacts import open_work
from bistil.runtime.fast_linear import fast_linear
from bistil.settings.recipe import FinetuneSettings, Phase2Settings, to_dict
from bistil.sparse import SourceBatches, SparseFineTuning, train_sparse
from bistil.sparse.training import check_sparse, phases
from bistil.sparse.wearing import own_sft
from bistil.tasks import Example, Task, model_inputs
from bistil.tasks.batches import Feature
from bistil.training.identity import inputs_digest
from bistil.training.loop import check_training, planned_steps, processes, train
from bistil.training.precision import settle_precision
from bistil.training.processes import training_device
from bistil.vocabulary.trimming import Kept

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.distillation.task")

logger = logging.getLogger(__name__)

# The teacher's part is kept where examples are seen so often on average.
LEAST_REPEATS = 1.2


class SelfTaught(nn.Module):
    """A task model that learns from labels only; the loss is its own.

    Args:
        fast: linear maps as in `fast_linear`; false under torch.compile.
    """

    def __init__(self, student: PreTrainedModel, *, fast: bool = True) -> None:
        super().__init__()
        self.student = student
        self._linear_maps = fast_linear if fast else nullcontext

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Run the model on a labelled batch; returns its loss, a scalar."""
        with self._linear_maps():
            return {"loss": self.student(**model_inputs(self.student, batch)).loss}


def head_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the parameters that a task brings: outside the encoder, and the encoder's pooler.

    They are trained densely and stored whole (LT-SFT, section 3.1): a newly initialised head has no base to move from.
    """
    return head_names(model, (name for name, _ in model.named_parameters()))


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What every fine-tuning for a task goes by, whoever teaches."""

    data: TaskData
    settings: FinetuneSettings
    """`Phase2Settings` where there is a task teacher."""
    max_length: int = 128
    """Tokens per example or window."""
    seed: int = 0
    """Of a new head, the order and dropout."""
    folder: Path | None = None
    """Work folder, from which the same call goes on after an interruption; None: everything is in memory."""
    teacher_folder: Path | None = None
    """Work folder where fine-tunings by one task teacher keep what it says; None: this one's own, in `folder`."""
    beside: Sequence[Sequence[int]] = ()
    """Teacher layers of the students that share `teacher_folder`: what the teacher says is kept for all of them."""
    label: str = "fine-tuning"
    """Of the progress line."""
    languages: Sequence[str] = ()
    """For the model's card."""


def check_fit(
    configuration: Any,
    settings: FinetuneSettings,
    *,
    max_length: int,
    teacher: Any | None = None,
    target_sentences: Sequence[str] = (),
) -> None:
    """Find what fine-tuning would refuse, as far as settings and the model's configuration tell: no weights.

    Args:
        configuration: of the start; trimmed or not, with all its layers or not, makes no difference.
        teacher: configuration of the task teacher, if there is one.
        target_sentences: plain text of the target language.

    Raises:
        BistilError: as `fit_from_labels` and `fit_from_teacher`.
    """
    family_of(configuration)
    check_length(configuration, max_length)
    if settings.sparse is not None:
        check_sparse(settings.sparse, settings.training)
    else:
        check_training(settings.training)
    if teacher is not None:
        assert isinstance(settings, Phase2Settings)
        check_objective("student", settings.objective, configuration, teacher)
        if settings.target_text:
            if not target_sentences:
                raise InputError("phase2.target_text needs text of the target language, and there is none")
            _sample(list(target_sentences), settings.target_sentences, seed=0)


def fit_from_labels(
    start: ModelSource,
    tokenizer: PreTrainedTokenizerFast,
    how: Fitting,
    *,
    language_sfts: Mapping[str, SparseFineTuning | str | Path] | None = None,
    kept: Kept | None = None,
    force_sfts: bool = False,
) -> CompleteModel:
    """Fine-tune a model on labelled examples alone: the task teacher, or a student that has none (self-taught).

    Several processes share the training.

    Args:
        start: with or without a task head; one in memory stays as it is.
        tokenizer: encodes the examples.
        language_sfts: per language of `data.sources`, an SFT of `start` (or its folder) that the model wears in that
            language's batches, so that what is learnt goes with other languages' SFTs (multi-source training, LT-SFT
            section 5). Each batch is then in one language; the dev set is scored wearing the first one's. The result
            wears none.
        kept: what was kept of the start's vocabulary; an SFT of the untrimmed one is trimmed along.
        force_sfts: wear them although they were made for another base.

    Returns:
        The model with its tokenizer and record (`models.complete`). Its `bistil.facts` have "sft" (of a sparse
        fine-tuning) and "figures": steps, tokens, dev scores; "examples" and "target_text", how many features there
        are of either kind; "truncated", labelled texts that were cut to `max_length`; "left_out", what was kept out as
        evaluation text; "read", what became of each file's rows.

    Raises:
        InputError: language SFTs without their language's examples or in dense fine-tuning; `max_length` exceeds the
            model's positions.
        ArtefactError: a language SFT was made for another base.
        DivergenceError: the loss is no longer a number.
    """
    data, task = how.data, how.data.task
    check_fit(config_of(start), how.settings, max_length=how.max_length)
    given = _worn(language_sfts or {}, data, how.settings)
    student = task.build_model(start, data.labels, seed=how.seed)
    worn = {language: own_sft(sft, student, kept, force=force_sfts) for language, sft in given.items()}

    def encode(examples: Sequence[Any]) -> list[Feature]:
        return task.encode(examples, tokenizer, how.max_length, labels=data.labels)

    collate = task.collate(tokenizer, positions=position_limit(student.config))
    module = SelfTaught(student, fast=not how.settings.training.compile)
    if worn:
        parts = {language: encode(own) for language, own in data.sources.items()}
        batches = SourceBatches(parts, collate)
        lesson = _Lesson(
            module=module, student=student, tokenizer=tokenizer, data=batches, collate=batches.collate,
            labelled=[feature for part in parts.values() for feature in part], sources=worn,
            inputs=_inputs(how, [module], batches),
            figures={"sources": {language: len(part) for language, part in parts.items()}},
        )  # fmt: skip
    else:
        labelled = encode(data.train)
        alone = MixedData(labelled, [], ratio=0.0)
        lesson = _Lesson(
            module=module, student=student, tokenizer=tokenizer, data=alone, collate=collate, labelled=labelled,
            inputs=_inputs(how, [module], alone),
        )  # fmt: skip
    return _learn(lesson, how, start=start, teachers=[])


def fit_from_teacher(
    start: ModelSource,
    tokenizer: PreTrainedTokenizerFast,
    how: Fitting,
    *,
    teachers: Sequence[ModelSource],
    teacher_tokenizers: Sequence[PreTrainedTokenizerFast],
) -> CompleteModel:
    """Fine-tune a student by its task teacher, on labelled examples and, if the settings say so, on target text.

    Args:
        start, tokenizer: as for `fit_from_labels`.
        teachers: the task teacher, with the same labels; one in memory stays as it is. Of several the soft predictions
            are softmax(mean of their logits / temperature), and everything else is the first one's.
        teacher_tokenizers: one each.

    Returns:
        As `fit_from_labels`; for a teacher with other token ids the figures have "differing": per kind how many
        examples of how many cannot be compared, for its tokens begin or end elsewhere.

    Raises:
        ArtefactError: a teacher has other labels, or is for another task.
        InputError: target text is wanted and there is none, the teacher's tokens can be compared in no example,
            `max_length` exceeds the model's positions, or no mean can be made of what the teachers say.
        RecipeError: the settings say another number of teachers, or nobody listens to more than one.
        DivergenceError: the loss is no longer a number.
    """
    assert isinstance(how.settings, Phase2Settings)
    data, task, settings = how.data, how.data.task, _of_teachers(how.settings, len(teachers))
    how, sentences, teacher_tokenizer = replace(how, settings=settings), data.target_sentences, teacher_tokenizers[0]
    check_fit(
        config_of(start), settings, max_length=how.max_length, teacher=config_of(teachers[0]),
        target_sentences=sentences,
    )  # fmt: skip
    _check_together(task, teachers, teacher_tokenizers)
    student = task.build_model(start, data.labels, seed=how.seed)
    labelled, unlabelled, differing = _compared(how, settings, tokenizer, teacher_tokenizer)
    models = [_task_teacher(one, data, max_length=how.max_length) for one in teachers]
    limits = [limit for one in (student, *models) if (limit := position_limit(one.config)) is not None]
    collate = task.collate(tokenizer, teacher=teacher_tokenizer, positions=min(limits, default=None))
    if settings.surest < 1 and unlabelled:
        unlabelled = surest(
            unlabelled, settings.surest, teacher=models[0], collate=collate, prediction_pairs=task.prediction_pairs,
            device=training_device(settings.training.device), label=how.label,
            low_precision=settle_precision(settings.training, None).precision == "bf16",
        )  # fmt: skip
    mixed = MixedData(labelled, unlabelled, ratio=settings.target_text)
    kept = _kept_teacher(mixed, how, settings, collate)
    module = Distiller(
        models[0],
        {"student": student},
        objectives={"student": settings.objective},
        prediction_pairs=task.prediction_pairs,
        others=models[1:],
        mean_output=task.mean_output,
        kept=kept,
        beside=how.beside if how.teacher_folder is not None else (),
        fast=not settings.training.compile,
    )
    lesson = _Lesson(
        module=module,
        student=student,
        tokenizer=tokenizer,
        data=mixed,
        collate=collate if kept is None else kept.batch,
        labelled=labelled,
        inputs=_inputs(how, [module, *models], mixed),
        target_text=len(unlabelled),
        figures=differing,
    )
    del models
    finished = False
    try:
        made = _learn(lesson, how, start=start, teachers=teachers)
        finished = True
        return made
    finally:
        module.close()
        if kept is not None:
            kept.close(remove=finished)


def may_keep(settings: Phase2Settings) -> bool:
    """Whether settings let a teacher's part be kept, if it is read often enough and there is room for it."""
    keepable = all(term.KEEPABLE for term, _ in terms_of(settings.objective))
    return bool(settings.kept_gigabytes) and not settings.training.compile and keepable


def _kept_teacher(
    data: MixedData, how: Fitting, settings: Phase2Settings, collate: Callable[[list[Feature]], dict[str, Any]]
) -> KeptTeacher | None:
    """What keeps the teacher's part from epoch to epoch; None where little is seen twice, or not all can be kept."""
    objective, outputs = settings.objective, how.data.task.kept_outputs()
    if not may_keep(settings):
        return None
    if not objective.prediction:
        outputs = {}
    elif outputs is None:
        return None
    seen = np.zeros(len(data), dtype=np.int64)
    for phase in phases(settings.sparse, settings.training) if settings.sparse else [settings.training]:
        items, size = planned_steps(data.epoch_size, phase) * phase.batch_size, phase.batch_size
        seen += np.bincount(data.training_order(items=items, batch_size=size, seed=how.seed), minlength=len(data))
    if seen.sum() < LEAST_REPEATS * np.count_nonzero(seen):
        return None
    for row, feature in enumerate(data.features):
        feature[ROW] = row
    return KeptTeacher(
        data.features,
        np.flatnonzero(seen).tolist(),
        collate=collate,
        outputs=outputs,
        folder=how.teacher_folder or (how.folder and how.folder / "teacher"),
        shared=how.teacher_folder is not None,
        most_bytes=settings.kept_gigabytes * 1e9,
        label=how.label,
    )


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    """What is trained, and on what."""

    module: nn.Module
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    data: MixedData | SourceBatches
    collate: Callable[[list[Any]], dict[str, Any]]
    labelled: list[Feature]
    inputs: str | None
    """`inputs_digest` of it; None: nothing is written that another call could find."""
    target_text: int = 0
    """How many features of it there are."""
    sources: Mapping[str, SparseFineTuning] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    """For the record, besides those of every lesson."""


def _learn(lesson: _Lesson, how: Fitting, *, start: ModelSource, teachers: Sequence[ModelSource]) -> CompleteModel:
    """Train, sparsely or densely; the best weights on the dev set stay, if there is one."""
    data, settings, student = how.data, how.settings, lesson.student
    evaluate = _dev_scores(data, student, lesson.tokenizer, max_length=how.max_length)
    best_by: Any = (data.metric, "max") if evaluate else None
    if how.folder is not None:
        with processes().main_process_first():
            open_work(how.folder)
    figures: dict[str, Any] = {"examples": len(lesson.labelled), "target_text": lesson.target_text}
    figures |= {"left_out": data.left_out.counts, "read": data.read, **lesson.figures}
    figures["truncated"] = sum(feature.get("truncated", False) for feature in lesson.labelled)
    common: dict[str, Any] = {
        "collate": lesson.collate, "folder": how.folder, "seed": how.seed, "evaluate": evaluate, "best_by": best_by,
        "inputs": lesson.inputs, "label": how.label,
    }  # fmt: skip
    sft: SparseFineTuning | None = None
    if settings.sparse is not None:
        sft = train_sparse(
            lesson.module,
            lesson.data,
            model=student,
            dense_parameters=head_parameters(student),
            settings=settings.sparse,
            training=settings.training,
            sources=lesson.sources or None,
            **common,
        )
        figures |= {"dev": sft.provenance.metrics, "density": sft.density, "phases": sft.provenance.phases}
    else:
        result = train(lesson.module, lesson.data, settings=settings.training, **common)
        figures |= {"steps": result.steps, "tokens": result.tokens, "dev": result.best}
        figures |= {"precision": result.precision, "device": result.device}
    made = _made(how, figures, start=source_name(start), teachers=list(map(source_name, teachers)))
    return complete(student, lesson.tokenizer, replace(made, facts={"sft": sft, "figures": figures}))


def _inputs(how: Fitting, models: Sequence[nn.Module], data: MixedData | SourceBatches) -> str | None:
    """What a later call in the same work folder must have too; files may have moved."""
    if how.folder is None:
        return None
    places = {field.name for field in fields(Example)}
    chosen_by = [{name: part for name, part in vars(one).items() if name not in places} for one in how.data.dev]
    return inputs_digest(models, data, chosen_by)


def parents_of(start: Any, teachers: Sequence[Any]) -> dict[str, Any]:
    """What a task model is made of, as records name it: "start", "teacher" (None: there is none), "teacher 2" ..."""
    others = {f"teacher {number}": one for number, one in enumerate(teachers[1:], 2)}
    return {"start": start, "teacher": teachers[0] if teachers else None, **others}


def _made(how: Fitting, figures: Mapping[str, Any], *, start: str, teachers: Sequence[str]) -> Origin:
    """What is known of a task model: record and card."""
    task, settings = how.data.task, how.settings
    start, teachers = Path(start).name, [Path(one).name for one in teachers]
    taught = "a task teacher" if len(teachers) == 1 else f"the averaged predictions of {len(teachers)} task teachers"
    called = f"teacher{'s' * (len(teachers) > 1)}: " + ", ".join(f"`{one}`" for one in teachers)
    record = {
        "kind": "task model",
        "task": task.kind,
        "settings": to_dict(settings),
        "seed": how.seed,
        "metrics": figures,
        "parents": parents_of({"name": start}, [{"name": one} for one in teachers]),
    }
    card = {
        "title": f"{start} for {task.kind}",
        "summary": f"A model for {task.kind}, "
        + (f"distilled from {taught}" if teachers else "fine-tuned on labelled examples")
        + f" on {figures['examples']:,} labelled examples.",
        "languages": how.languages,
        "made": [
            f"start: `{start}`" + (f"; task {called}" if teachers else ""),
            "sparse fine-tuning (LT-SFT)" if settings.sparse else "dense fine-tuning",
            *([f"unlabelled target text: {figures['target_text']:,} examples"] if figures["target_text"] else []),
        ],
        "metrics": {f"dev {name}": f"{value:.1f}" for name, value in (figures["dev"] or {}).items() if name != "step"},
        "pipeline_tag": task.pipeline_tag,
        "usage": task.usage,
    }
    return Origin(record=record, card=card)


def _worn(names: Mapping[str, Any], data: TaskData, settings: FinetuneSettings) -> dict[str, Any]:
    """The language SFTs of multi-source training, in the order of the sources."""
    if not names:
        return {}
    if settings.sparse is None:
        raise InputError(
            "language SFTs are worn in sparse fine-tuning from labels: leave out the teacher, and not dense"
        )
    unknown = sorted(names.keys() - data.sources.keys())
    if unknown:
        raise InputError(
            f"a language SFT for {unknown[0]!r}, which no training file is in: write --train {unknown[0]}=FILE"
        )
    return {code: names[code] for code in data.sources if code in names}


def _compared(
    how: Fitting, settings: Phase2Settings, tokenizer: PreTrainedTokenizerFast, theirs: PreTrainedTokenizerFast
) -> tuple[list[Feature], list[Feature], dict[str, Any]]:
    """What a student is compared with its teacher on: labelled features, features of target text, and figures.

    With other token ids, each example is encoded twice; one whose token boundaries differ is left out and counted.
    """
    data, task, max_length, seed, label = how.data, how.data.task, how.max_length, how.seed, how.label

    def labelled(one: PreTrainedTokenizerFast) -> list[Feature]:
        return task.encode(data.train, one, max_length, labels=data.labels)

    def unlabelled(one: PreTrainedTokenizerFast) -> list[Feature]:
        pairs = any(getattr(example, "pair", None) is not None for example in data.train)
        return task.unlabelled(sentences, one, max_length, pairs=pairs, seed=seed)

    kinds = {"labelled examples": labelled}
    if settings.target_text:
        sentences = _sample(data.target_sentences, settings.target_sentences, seed=seed)
        kinds["sentences of target text"] = unlabelled
    same = same_ids(tokenizer, theirs)
    found: list[list[Feature]] = []
    differing: dict[str, dict[str, int]] = {}
    for name, encode in kinds.items():
        features = encode(tokenizer)
        if not same:
            total = len({feature["example"] for feature in features})
            features, others = with_teacher_ids(features, encode(theirs))
            differing[name] = {"differing": len(others), "of": total}
            if others:
                logger.warning(
                    f"{label}: {len(others):,} of {total:,} {name} are left out, for the teacher's tokens begin or end "
                    "elsewhere there than the student's"
                )
            if not features:
                raise InputError(
                    f"the teacher's tokens begin or end elsewhere than the student's in all {total:,} {name}: "
                    "make the student from the teacher's own tokenizer, or trim both to the same vocabulary"
                )
        found.append(features)
    return found[0], found[1] if len(found) > 1 else [], {"differing": differing} if not same else {}


def _sample(sentences: list[str], size: int | None, *, seed: int) -> list[str]:
    """So many of the sentences (`task_data.some`).

    Raises:
        InputError: fewer than one are asked for.
    """
    if size is not None and size < 1:
        raise InputError(
            f"phase2.target_sentences is {size}: at least 1 is needed; for none set phase2.target_text = 0"
        )
    return some(sentences, size, seed=seed)


def _of_teachers(settings: Phase2Settings, count: int) -> Phase2Settings:
    """Settings that say how many teachers there are; those of one do not.

    Raises:
        RecipeError: they say another number, or nobody listens to more than one.
    """
    if settings.teachers not in (1, count):
        raise RecipeError(f"teachers is {settings.teachers}, but {count} are given: leave teachers out")
    return replace(settings, teachers=count)


def _check_together(task: Task, teachers: Sequence[ModelSource], tokenizers: Sequence[PreTrainedTokenizerFast]) -> None:
    """Make sure that several teachers can stand as one.

    Raises:
        InputError: they read other ids, or the task does not say what a mean is made of.
    """
    for teacher, tokenizer in zip(teachers[1:], tokenizers[1:], strict=True):
        if not same_ids(tokenizers[0], tokenizer):
            raise InputError(
                f"the task teachers {source_name(teachers[0])} and {source_name(teacher)} have different tokenizers: "
                "fine-tune them from one model"
            )
    if len(teachers) > 1 and task.kept_outputs() is None:
        raise InputError(
            f"{task.kind} does not say in teacher_outputs what its prediction_pairs reads, so that no mean can be made "
            "of it: give one task teacher"
        )


def _task_teacher(teacher: ModelSource, data: TaskData, *, max_length: int) -> PreTrainedModel:
    """The task teacher, after making sure that its classes are the data's."""
    model = data.task.build_model(teacher, None)
    check_length(model.config, max_length)
    if data.task.means_labels and labels_of(model.config) != data.labels:
        raise ArtefactError(
            f"the task teacher {source_name(teacher)} has other labels than the training data: fine-tune it on them"
        )
    return model


def _dev_scores(
    data: TaskData, student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, max_length: int
) -> Callable[[nn.Module], dict[str, float]] | None:
    """A function that scores the student on the source language's dev set; none without one."""
    if not data.dev:
        return None
    features = data.task.encode(data.dev, tokenizer, max_length, labels=data.labels)

    def evaluate(_module: nn.Module) -> dict[str, float]:
        predictions = data.task.predict(student, tokenizer, data.dev, features)
        return data.task.score(data.dev, predictions, labels=data.labels).scores

    return evaluate
