"""Fine-tuning for a task on live objects: the task teacher, or a student that learns from it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil.distillation.task import Fitting, fit_from_labels, fit_from_teacher
from bistil.distillation.task_data import TaskData, gather
from bistil.errors import ArtefactError, InputError, RecipeError
from bistil.models.complete import CompleteModel, tokenizer_of
from bistil.models.loading import config_of, source_name
from bistil.settings.presets import task_preset
from bistil.settings.schema import FinetuneSettings, Phase2Settings, PresetName
from bistil.sparse import SparseFineTuning
from bistil.tasks import Task, get_task, kind_of
from bistil.tasks.hub import as_sources
from bistil.tasks.reading import Reading
from bistil.text.lines import read_sentences
from bistil.text.sources import as_texts
from bistil.vocabulary.trimming import Kept

# Keys of data that come in parts.
DEV = ("dev", "validation")


def finetune(
    model: PreTrainedModel,
    data: Any,
    *,
    task: str | Task | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher: PreTrainedModel | Sequence[PreTrainedModel] | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    text: Any = None,
    settings: FinetuneSettings | PresetName | None = None,
    max_length: int | None = None,
    language_sfts: Mapping[str, SparseFineTuning | str | Path] | None = None,
    seed: int = 0,
    folder: Path | None = None,
) -> CompleteModel:
    """Fine-tune a model for a task, from labels or from a task teacher (paper, section 3.3).

    Args:
        model: an encoder or a task model; it stays as it is.
        data: labelled rows (mappings, a `datasets.Dataset`, or files) to learn from; or a mapping with "train" and, if
            there are any, "dev" (or "validation"), rows that choose the checkpoint, and "test", rows that must not be
            learnt from. "train" and "test" may be mappings from language to rows. Or what `read_task_data` returns.
        task: the task or its kind, such as "token-classification"; default: that of the teacher, or of the model.
        tokenizer: the model's; default: the one that it brings.
        teacher: the task teacher, fine-tuned on the same labels; or several, such as those of other seeds, the mean of
            whose logits makes the soft predictions (states and attention maps are the first one's). Without one the
            model learns from labels alone, as the task teacher itself does.
        teacher_tokenizer: default: the one that the teacher brings, or else the model's.
        text: with a teacher, plain target text to learn from too: texts, files or a data set.
        settings: a preset ("paper", "short"; `Phase2Settings` with a teacher); default: the paper's method.
        max_length: tokens per example or window; default: the preset's, or 128.
        language_sfts: without a teacher, per language of "train", an SFT that the model wears in that language's
            batches (multi-source training).
        seed: of a new head, the order and dropout.
        folder: work folder, from which the same call goes on after an interruption; default: everything is in memory.

    Returns:
        The task model, a model of transformers. It brings its tokenizer and record (`models.complete`); its
        `bistil.facts` have the "figures" and, of a sparse fine-tuning, the "sft".

    Raises:
        InputError, RecipeError: data or settings that cannot be learnt from.
        ArtefactError: a teacher has other labels, or an SFT was made for another base.
        DivergenceError: the loss is no longer a number.
    """
    teachers = [] if teacher is None else [teacher] if isinstance(teacher, PreTrainedModel) else list(teacher)
    if teacher is not None and not teachers:
        raise InputError("teacher is an empty list: give a task teacher, or leave it out")
    known = data.task if isinstance(data, TaskData) else _task(task, *teachers, model)
    found = as_task_data(data, known, text=text)
    stage, length = _settings(settings, known.kind, teacher=bool(teachers), text=bool(found.target_sentences))
    own = tokenizer_of(model, tokenizer)
    how = Fitting(
        data=found,
        settings=stage,
        max_length=max_length or length,
        seed=seed,
        folder=folder,
        label=f"fine-tuning for {known.kind}",
        languages=[language for language in found.sources if language],
    )
    if not teachers:
        return fit_from_labels(model, own, how, language_sfts=language_sfts, kept=Kept.of(model))
    if language_sfts:
        raise InputError("language_sfts are worn in fine-tuning from labels: leave out the teacher")
    theirs = [
        tokenizer_of(one, getattr(one, "tokenizer", own) if teacher_tokenizer is None else teacher_tokenizer)
        for one in teachers
    ]
    return fit_from_teacher(model, own, how, teachers=teachers, teacher_tokenizers=theirs)


def as_task_data(data: Any, task: Task, *, text: Any = None, how: Reading | None = None) -> TaskData:
    """Labelled data as people give them (see `finetune`), read and checked.

    Args:
        text: plain target text.
        how: what the data do not say themselves: columns, renamed labels, scheme of the tags.

    Raises:
        InputError: what is given is no labelled data of this task.
    """
    sentences = read_sentences(as_texts({"the target": text})["the target"]) if text is not None else []
    if isinstance(data, TaskData):
        return data.with_target_text(sentences) if sentences else data
    parts = dict(data) if isinstance(data, Mapping) else {"train": data}
    unknown = sorted(parts.keys() - {"train", *DEV, "test"})
    if "train" not in parts or unknown:
        raise InputError(
            f"data in parts are {{'train': rows, 'dev': rows, 'test': rows}}, of which train must be there; found: "
            f"{', '.join(map(str, parts))}"
        )
    dev = [source for name in DEV if name in parts for source in as_sources(f"the {name} data", parts[name])]
    return gather(
        task,
        _by_language("train", parts["train"]),
        dev=dev,
        test=_by_language("test", parts["test"]) if "test" in parts else None,
        how=lambda language: how if how is not None else Reading(language=language),
        target_sentences=sentences or None,
    )


def _by_language(name: str, given: Any) -> dict[str, Sequence[Any]]:
    if isinstance(given, Mapping):
        return {language: as_sources(f"the {name} data of {language}", own) for language, own in given.items()}
    return {"": as_sources(f"the {name} data", given)}


def _task(task: str | Task | None, *models: PreTrainedModel | None) -> Task:
    if isinstance(task, Task):
        return task
    if task is not None:
        return get_task(task)
    for model in models:
        with suppress(ArtefactError):  # it has no head for a task
            if model is not None:
                return get_task(kind_of(config_of(model), source_name(model)))
    raise InputError("the task is not known: give task=, such as task='token-classification'")


def _settings(
    given: FinetuneSettings | PresetName | None, kind: str, *, teacher: bool, text: bool
) -> tuple[FinetuneSettings, int]:
    """The stage's settings, and the tokens per example that go with them."""
    if isinstance(given, FinetuneSettings):
        if teacher and not isinstance(given, Phase2Settings):
            raise RecipeError("with a teacher, settings are Phase2Settings")
        return given, Fitting.max_length
    preset = task_preset(given, kind) if given is not None else None
    length = preset.max_length if preset is not None else Fitting.max_length
    if not teacher:
        return (FinetuneSettings() if preset is None else preset.finetune), length
    phase2 = Phase2Settings() if preset is None else preset.phase2
    # Whoever gives text wants it learnt from, whatever the preset.
    return replace(phase2, target_text=(phase2.target_text or 1.0) if text else 0.0), length
