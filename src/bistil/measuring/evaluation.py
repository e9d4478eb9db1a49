"""A task model on labelled files: scores, a bootstrap interval, predictions; and the majority baseline."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil._version import __version__
from bistil.engines import open_engine
from bistil.errors import ArtefactError
from bistil.models.complete import tokenizer_of
from bistil.models.exported import engine_of
from bistil.models.families import check_positions
from bistil.models.loading import config_of, read_config, source_name
from bistil.models.tokenizers import load_tokenizer
from bistil.runtime.artefacts import claim, file_digest, folder_digest, write_json
from bistil.runtime.devices import device_for
from bistil.runtime.ownership import recorded_predictions
from bistil.tasks import Metrics, Task, bootstrap, get_task, kind_of
from bistil.tasks.batches import Engine, Feature, TorchEngine
from bistil.tasks.hub import as_sources, labelled_digest, source_of
from bistil.tasks.reading import Reading, RowReport

logger = logging.getLogger(__name__)

# From this share of unknown tokens on, a vocabulary does not fit the text that it is to read.
WORTH_A_WARNING = 0.01


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    data: Any,
    *,
    task: str | Task | None = None,
    batch_size: int = 32,
    max_length: int = 128,
    label_map: Mapping[str, str] | None = None,
    how: Reading | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a task model on labelled data.

    Args:
        model: a task model.
        tokenizer: its fast tokenizer; None: the one that it brings.
        data: labelled rows (mappings or a `datasets.Dataset`), files or data sets (`tasks.hub.as_sources`).
        task: the task or its kind; default: the one that the model's head is for.
        batch_size: windows per forward pass; changes speed, not predictions.
        max_length: tokens per window.
        label_map: labels to rename on reading.
        how: what the data do not say themselves: columns, language, scheme of the tags.
        bootstrap_samples: resamples for the interval; 0: no interval.
        seed: of the resamples.

    Returns:
        "metric" and "score" (the task's own, percent), "scores" (all, percent), "interval" (see `score_record`),
        "examples", "windows", "task" (its kind) and "read" (what became of the rows).

    Raises:
        InputError: the data are not what they must be, or `max_length` exceeds the model's positions.
        ArtefactError: the model has no head for a task.
    """
    if not isinstance(task, Task):
        task = get_task(task or kind_of(config_of(model), source_name(model)), scheme=how.scheme if how else None)
    reports: list[RowReport] = []
    examples = task.read(as_sources("the data", data), label_map=label_map, how=how, reports=reports)
    metrics, _, windows = score_engine(
        TorchEngine(model), tokenizer_of(model, tokenizer), task, examples, max_length=max_length, batch_size=batch_size
    )
    return _figures(metrics, task, windows, reports, samples=bootstrap_samples, seed=seed)


def _figures(
    metrics: Metrics, task: Task, windows: int, reports: Sequence[RowReport], *, samples: int, seed: int
) -> dict[str, Any]:
    """What `evaluate` returns."""
    return {
        **score_record(metrics, samples=samples, seed=seed),
        "task": task.kind,
        "examples": len(metrics.counts),
        "windows": windows,
        "read": {report.file: report.counts for report in reports},
    }


def evaluate_folder(
    model_folder: str | Path,
    *,
    task: str | None = None,
    files: Sequence[str | Path],
    batch_size: int = 32,
    max_length: int = 128,
    label_map: Mapping[str, str] | None = None,
    how: Reading | None = None,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    predictions: str | Path | None = None,
    record_file: str | Path | None = None,
    replace: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """`evaluate` of a model in a folder, on labelled files, with what is to be written.

    Args:
        model_folder: a Hugging Face folder of a task model with its tokenizer, or an exported one.
        task: kind of the task, such as "token-classification"; None: the one that the model's head is for.
        files: labelled files or data sets (`tasks.hub`), scored together.
        batch_size: windows per forward pass; changes speed, not predictions.
        max_length: tokens per window.
        label_map: labels to rename on reading.
        how: what the files do not say themselves: columns, language, scheme of the tags, separator of labels.
        bootstrap_samples: resamples for the interval; 0: no interval.
        seed: of the resamples.
        predictions: write predictions here, in the format of the input.
        record_file: write the record here, as JSON.
        replace: a record of an earlier evaluation gives way, and so do the predictions whose digest it holds.
        device: of PyTorch; default: a CUDA GPU if there is one, else the CPU.

    Returns:
        A record for JSON: "metric" and "score" (the task's own, percent), "scores" (all, percent), "interval" (see
        `record`), "examples", "windows", "files", "model" and "predictions" with SHA-256 digests, "read" (what became
        of each file's rows), and the settings.

    Raises:
        InputError: a file is not what it must be, `max_length` exceeds the model's positions, the device is not there,
            or an output may not be written (`runtime.artefacts.claim`).
        ArtefactError: the folder holds no task model with a tokenizer.
    """
    written, recorded = (None if path is None else Path(path) for path in (predictions, record_file))
    earlier = recorded_predictions(recorded)
    read = [model_folder, *map(source_of, files)]
    claim(files=[written, recorded], inputs=read, force=replace, known=earlier)
    device = device_for(device) if engine_of(model_folder) is None else device or "cpu"
    how = how or Reading()
    task = task or kind_of(read_config(model_folder), str(model_folder))
    kind = get_task(task, scheme=how.scheme)
    reports: list[RowReport] = []
    examples = kind.read(files, label_map=label_map, how=how, reports=reports)
    if predictions is not None:
        kind.check_writable(examples)
    folder = Path(model_folder)
    metrics, predicted, windows = score_examples(
        folder, kind, examples, max_length=max_length, batch_size=batch_size, device=device
    )
    if written is not None:
        kind.write_predictions(written, examples, predicted, known=earlier)
    result = {
        "kind": "evaluation",
        **_figures(metrics, kind, windows, reports, samples=bootstrap_samples, seed=seed),
        "files": {str(path): labelled_digest(path) for path in files},
        "model": {"folder": str(folder), "digest": folder_digest(folder)},
        "settings": {
            "max_length": max_length,
            "batch_size": batch_size,
            "label_map": {**how.label_map, **(label_map or {})},
            "columns": dict(how.columns),
            "language": how.language,
            "scheme": how.scheme,
            "separator": how.separator,
            "device": device,
        },
        **({} if written is None else {"predictions": {"file": str(written), "digest": file_digest(written)}}),
        "versions": {"bistil": __version__, "torch": torch.__version__},
    }
    if recorded is not None:
        write_json(recorded, result, replace=replace)
    return result


def score_examples(
    folder: str | Path,
    task: Task,
    examples: Sequence[Any],
    *,
    max_length: int = 128,
    batch_size: int = 32,
    device: str | None = None,
) -> tuple[Metrics, list[Any], int]:
    """Run the task model in `folder` on examples that are already read.

    Returns:
        Counters per example, the predictions, one per example, and the number of windows it took.

    Raises:
        InputError: as `score_engine`.
        ArtefactError: the folder holds no task model with a tokenizer.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ArtefactError(f"{folder} is not a model folder: config.json is missing; name the folder of a task model")
    tokenizer = load_tokenizer(str(folder))
    engine = open_engine(folder, task, device=device)
    return score_engine(
        engine, tokenizer, task, examples, max_length=max_length, batch_size=batch_size, name=str(folder)
    )


def score_engine(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    examples: Sequence[Any],
    *,
    max_length: int = 128,
    batch_size: int = 32,
    name: str = "the model",
) -> tuple[Metrics, list[Any], int]:
    """Run a task model on examples that are already read.

    Args:
        name: of the model, for a notice.

    Returns:
        Counters per example, the predictions, one per example, and the number of windows it took.

    Raises:
        InputError: a label is not the model's, or `max_length` exceeds the model's positions.
    """
    check_positions(engine.positions, max_length)
    features = task.encode(examples, tokenizer, max_length, labels=engine.labels)
    unknown = unknown_share(features, tokenizer)
    if unknown >= WORTH_A_WARNING:
        files = ", ".join(dict.fromkeys(example.file for example in examples))
        logger.warning(
            f"{name}: {unknown:.1%} of the tokens in {files} are unknown to the model's vocabulary; was it trimmed "
            "on text of another script, spelling or domain?"
        )
    predicted = task.predict(engine, tokenizer, examples, features, batch_size=batch_size)
    return task.score(examples, predicted, labels=engine.labels), predicted, len(features)


def unknown_share(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of the features' tokens that are the unknown token; 0 for a vocabulary without one."""
    if tokenizer.unk_token_id is None:
        return 0.0
    tokens = sum(len(feature["input_ids"]) for feature in features)
    unknown: int = sum(feature["input_ids"].count(tokenizer.unk_token_id) for feature in features)
    return unknown / max(tokens, 1)


def measure(
    folder: str | Path,
    task: Task,
    examples: Sequence[Any],
    *,
    max_length: int = 128,
    batch_size: int = 32,
    device: str | None = None,
) -> Metrics:
    """The counters of `score_examples` alone; compare two models by `tasks.paired_gap`."""
    return score_examples(folder, task, examples, max_length=max_length, batch_size=batch_size, device=device)[0]


def score_record(metrics: Metrics, *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Scores of a test set as plain values, in percent.

    Returns:
        "metric" (name of the task's own figure), "score" (its value), "scores" (all by name) and, unless `samples`
        is 0, "interval" ([low, high], 95%, of "score") with "interval_samples" and "interval_seed".
    """
    scores = metrics.scores
    result: dict[str, Any] = {"metric": metrics.primary, "score": scores[metrics.primary], "scores": scores}
    if samples > 0:
        interval = list(bootstrap(metrics, samples, seed))
        result |= {"interval": interval, "interval_samples": samples, "interval_seed": seed}
    return result
