"""Phase 2: fine-tuning for a task, from a task teacher (TF) or from labels only (ST) (paper, section 3.3).

The task teacher is made here too: it is the multilingual model, fine-tuned from labels only.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bistil._moved import left_names
from bistil.distillation.module import Distiller, check_objective
from bistil.distillation.task_data import MixedData, TaskData, some
from bistil.distillation.task_data import how_to_read as how_to_read
from bistil.distillation.task_data import read_task_data as read_task_data
from bistil.distillation.teacher_ids import same_ids, with_teacher_ids
from bistil.errors import ArtefactError, InputError
from bistil.models.families import check_length, head_names
from bistil.models.loading import labels_of
from bistil.models.masked_lm import supported_config
from bistil.models.tokenizers import load_tokenizer
from bistil.models.writing import write_model
from bistil.runtime.artefacts import claim, folder_digest, open_work, whole_folder
from bistil.runtime.fast_linear import fast_linear
from bistil.settings.recipe import FinetuneSettings, Phase2Settings, to_dict
from bistil.sparse import SourceBatches, SparseFineTuning, train_sparse
from bistil.sparse.delta import RECORD
from bistil.sparse.training import check_sparse
from bistil.sparse.wearing import own_sft
from bistil.tasks import model_inputs
from bistil.tasks.batches import Feature
from bistil.training.loop import check_training, processes, train

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.distillation.task")

logger = logging.getLogger(__name__)


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


def check_fit(
    start: str | Path,
    settings: FinetuneSettings,
    *,
    max_length: int,
    teacher: bool = False,
    target_sentences: Sequence[str] = (),
) -> None:
    """Find what `fit_task` would refuse, as far as settings and the model's configuration tell: no weights.

    Args:
        start: a model folder; trimmed or not, with all its layers or not, makes no difference.
        teacher: whether there is a task teacher.
        target_sentences: plain text of the target language.

    Raises:
        BistilError: as `fit_task`.
    """
    configuration = supported_config(Path(start))
    check_length(configuration, max_length)
    if settings.sparse is not None:
        check_sparse(settings.sparse, settings.training)
    else:
        check_training(settings.training)
    if teacher:
        assert isinstance(settings, Phase2Settings)
        check_objective("student", settings.objective, configuration, configuration)
        if settings.target_text:
            if not target_sentences:
                raise InputError("phase2.target_text needs text of the target language, and there is none")
            _sample(list(target_sentences), settings.target_sentences, seed=0)


def fit_task(
    start: str | Path,
    data: TaskData,
    *,
    output: Path,
    sft_output: Path | None = None,
    teacher: Path | None = None,
    settings: FinetuneSettings,
    max_length: int,
    work: Path,
    seed: int,
    label: str,
    languages: Sequence[str] = (),
    language_sfts: Mapping[str, str | Path] | None = None,
    force_sfts: bool = False,
    replace: bool = False,
) -> dict[str, Any]:
    """Fine-tune a model for a task, sparsely or densely, from a task teacher or from labels only.

    Several processes share the training; one of them writes.

    Args:
        start: the model, with or without a task head; its tokenizer encodes the examples.
        output: gets the fine-tuned model, an ordinary folder.
        sft_output: gets the sparse fine-tuning by itself, if it is sparse.
        teacher: folder of the task teacher, with the same labels; none: self-taught.
        settings: `Phase2Settings` when there is a teacher.
        max_length: tokens per example or window.
        work: checkpoints.
        seed: of the head, the order and dropout.
        label: for the progress line.
        languages: for the model's card.
        language_sfts: per language of `data.sources`, an SFT of `start` (folder or hub name) that the model wears in
            that language's batches, so that what is learnt goes with other languages' SFTs (multi-source training,
            LT-SFT section 5). Each batch is then in one language; the dev set is scored wearing the first one's. What
            is written wears none of them.
        force_sfts: wear them although they were made for another base.
        replace: output folders of ours give way.

    Returns:
        Figures for the record: steps, tokens, dev scores; "examples" and "target_text", how many features there are of
        either kind; "truncated", labelled texts that were cut to `max_length`; "left_out", what was kept out as
        evaluation text; "read", what became of each file's rows; and for a teacher with other token ids "differing",
        per kind how many examples of how many cannot be compared, for its tokens begin or end elsewhere.

    Raises:
        ArtefactError: the teacher has other labels; a language SFT was made for another base.
        InputError: language SFTs without their language's examples, with a teacher or in dense fine-tuning; target
            text is wanted and there is none, the teacher's tokens can be compared in no example, `max_length`
            exceeds the model's positions, or an output may not be written (`runtime.artefacts.claim`).
        DivergenceError: the loss is no longer a number.
    """
    read = [start, teacher, *(language_sfts or {}).values()]
    claim(folders=[output, sft_output], work=work, inputs=read, force=replace)
    check_fit(
        start,
        settings,
        max_length=max_length,
        teacher=teacher is not None,
        target_sentences=data.target_sentences,
    )
    task, tokenizer = data.task, load_tokenizer(str(start))
    student = task.build_model(start, data.labels, seed=seed)
    worn = _worn(language_sfts or {}, data, student, Path(start), settings, teacher=teacher, force=force_sfts)
    fast = not settings.training.compile
    module: nn.Module = SelfTaught(student, fast=fast)
    unlabelled: list[Feature] = []
    ratio = 0.0
    collate: Callable[[list[Any]], dict[str, Any]]
    if teacher is None:
        labelled = task.encode(data.train, tokenizer, max_length, labels=data.labels)
        collate = task.collate(tokenizer)
        figures: dict[str, Any] = {"examples": len(labelled), "target_text": 0}
    else:
        assert isinstance(settings, Phase2Settings)
        theirs = load_tokenizer(str(teacher))
        labelled, unlabelled, compared = _compared(
            data, settings, tokenizer, theirs, max_length=max_length, seed=seed, label=label
        )
        ratio = settings.target_text
        collate = task.collate(tokenizer, teacher=theirs)
        module = Distiller(
            _task_teacher(teacher, data, max_length=max_length),
            {"student": student},
            objectives={"student": settings.objective},
            prediction_pairs=task.prediction_pairs,
            fast=fast,
        )
        figures = {"examples": len(labelled), "target_text": len(unlabelled), **compared}
    figures["left_out"] = data.left_out.counts
    figures["read"] = data.read
    figures["truncated"] = sum(feature.get("truncated", False) for feature in labelled)
    train_data: MixedData | SourceBatches = MixedData(labelled, unlabelled, ratio=ratio)
    if worn:
        parts = {
            language: task.encode(examples, tokenizer, max_length, labels=data.labels)
            for language, examples in data.sources.items()
        }
        train_data = SourceBatches(parts, collate)
        collate = train_data.collate
        figures["sources"] = {language: len(part) for language, part in parts.items()}
    evaluate = _dev_scores(data, student, tokenizer, max_length=max_length)
    with processes().main_process_first():
        open_work(work)
    sft: SparseFineTuning | None = None
    best_by: Any = (data.metric, "max") if evaluate else None
    if settings.sparse is not None:
        sft = train_sparse(
            module,
            train_data,
            model=student,
            dense_parameters=head_parameters(student),
            settings=settings.sparse,
            training=settings.training,
            collate=collate,
            folder=work,
            seed=seed,
            evaluate=evaluate,
            best_by=best_by,
            sources=worn or None,
            label=label,
        )
        figures |= {"dev": sft.provenance.metrics, "density": sft.density, "phases": sft.provenance.phases}
    else:
        result = train(
            module,
            train_data,
            collate=collate,
            settings=settings.training,
            folder=work,
            seed=seed,
            evaluate=evaluate,
            best_by=best_by,
            label=label,
        )
        figures |= {"steps": result.steps, "tokens": result.tokens, "dev": result.best}
    if isinstance(module, Distiller):
        module.close()
    if not processes().is_main_process:
        processes().wait_for_everyone()
        return figures
    # Both at the end: of an interrupted call there is either none or, but for an instant, both.
    with ExitStack() as both:
        if sft is not None and sft_output is not None:
            sft.write_into(both.enter_context(whole_folder(sft_output, replace=replace, record=RECORD)))
        write_model(
            output,
            student,
            tokenizer,
            record={
                "kind": "task model",
                "task": task.kind,
                "settings": to_dict(settings),
                "seed": seed,
                "metrics": figures,
                "parents": {
                    "start": {"name": Path(start).name, "digest": folder_digest(Path(start))},
                    "teacher": {"name": teacher.name, "digest": folder_digest(teacher)} if teacher else None,
                },
            },
            title=output.name,
            summary=f"A model for {task.kind}, "
            + ("distilled from a task teacher" if teacher else "fine-tuned on labelled examples")
            + f" on {len(labelled):,} labelled examples.",
            languages=languages,
            made=[
                f"start: `{Path(start).name}`" + (f"; task teacher: `{teacher.name}`" if teacher else ""),
                "sparse fine-tuning (LT-SFT)" if settings.sparse else "dense fine-tuning",
                *([f"unlabelled target text: {len(unlabelled):,} examples"] if unlabelled else []),
            ],
            metrics={f"dev {name}": f"{value:.1f}" for name, value in (figures["dev"] or {}).items() if name != "step"},
            pipeline_tag=task.pipeline_tag,
            usage=task.usage,
            replace=replace,
        )
    processes().wait_for_everyone()
    return figures


def _worn(
    names: Mapping[str, str | Path],
    data: TaskData,
    student: PreTrainedModel,
    start: Path,
    settings: FinetuneSettings,
    *,
    teacher: Path | None,
    force: bool,
) -> dict[str, SparseFineTuning]:
    """The language SFTs of multi-source training, in the order of the sources."""
    if not names:
        return {}
    if settings.sparse is None or teacher is not None:
        raise InputError(
            "language SFTs are worn in sparse fine-tuning from labels: leave out the teacher, and not dense"
        )
    unknown = sorted(names.keys() - data.sources.keys())
    if unknown:
        raise InputError(
            f"a language SFT for {unknown[0]!r}, which no training file is in: write --train {unknown[0]}=FILE"
        )
    return {code: own_sft(names[code], student, start, force=force) for code in data.sources if code in names}


def _compared(
    data: TaskData,
    settings: Phase2Settings,
    tokenizer: PreTrainedTokenizerFast,
    theirs: PreTrainedTokenizerFast,
    *,
    max_length: int,
    seed: int,
    label: str,
) -> tuple[list[Feature], list[Feature], dict[str, Any]]:
    """What a student is compared with its teacher on: labelled features, features of target text, and figures.

    With other token ids, each example is encoded twice; one whose token boundaries differ is left out and counted.
    """
    task = data.task

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


def _task_teacher(folder: Path, data: TaskData, *, max_length: int) -> PreTrainedModel:
    """The task teacher, after making sure that its classes are the data's."""
    teacher = data.task.build_model(folder, None)
    check_length(teacher.config, max_length)
    if data.task.means_labels and labels_of(teacher.config) != data.labels:
        raise ArtefactError(f"the task teacher {folder} has other labels than the training data: fine-tune it on them")
    return teacher


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
