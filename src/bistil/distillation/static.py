"""Static embeddings of a teacher by model2vec, and a classifier above them: an opponent that sees no context.

model2vec (Tulkens & van Dongen 2024) runs every token of the vocabulary through the teacher by itself, and keeps the
principal components of the outputs, weighted by the tokens' ranks. A sentence is the mean of its tokens.
"""

import copy
import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from bistil.distillation.task_data import TaskData
from bistil.errors import InputError, MissingExtraError
from bistil.models.exported import KIND
from bistil.models.loading import load_model
from bistil.models.static import ENGINE, StaticClassifier, StaticEmbeddings
from bistil.models.tokenizers import load_tokenizer, write_tokenizer
from bistil.runtime.artefacts import whole_folder
from bistil.runtime.quiet import kept_levels, quiet_transformers
from bistil.tasks.batches import Feature

# model2vec's own defaults.
DIMENSIONS, SMOOTHING = 256, 1e-4
# How little the classifier's weights are held back; the dev set chooses.
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
TASK = "sequence-classification"


def static_embeddings(model: Any, tokenizer: Any) -> StaticEmbeddings:
    """What model2vec makes of an encoder, per token of its tokenizer.

    Raises:
        MissingExtraError: model2vec is not installed.
    """
    try:
        from model2vec.distill import distill_from_model
    except ImportError as error:
        raise MissingExtraError("model2vec is not installed: pip install 'bistil[model2vec]'") from error
    # Its bar goes nowhere: there is one of our own for what takes long.
    hushed = kept_levels("model2vec", "skeletoken", level=logging.ERROR)
    with hushed, quiet_transformers(), redirect_stderr(io.StringIO()):
        made = distill_from_model(
            model, tokenizer, device="cpu", pca_dims=DIMENSIONS, sif_coefficient=SMOOTHING, token_remove_pattern=None,
            quantize_to="float32",
        )  # fmt: skip
    vectors = np.zeros((len(tokenizer), made.embedding.shape[1]), dtype=np.float32)
    counted = np.zeros(len(tokenizer), dtype=bool)
    for token, row in made.tokenizer.get_vocab().items():
        own = tokenizer.convert_tokens_to_ids(token)
        if own is not None and own not in tokenizer.all_special_ids:
            vectors[own], counted[own] = made.embedding[row], True
    return StaticEmbeddings(vectors, counted)


def write_static(teacher: Path, data: TaskData, output: Path, *, max_length: int) -> dict[str, float]:
    """A teacher's static embeddings with a classifier learnt on labels, as a folder that `engines` runs.

    Returns:
        The dev set's accuracy by strength of the classifier.

    Raises:
        InputError: the task is another, or there is no dev set.
        MissingExtraError: model2vec is not installed.
    """
    check_static(data.task.kind)
    model, _ = load_model(teacher)
    tokenizer = load_tokenizer(str(teacher))
    embeddings = static_embeddings(model.base_model, tokenizer)
    sets = [
        _read(data.task.encode(some, tokenizer, max_length, labels=data.labels), embeddings)
        for some in (data.train, data.dev)
    ]
    (train, classes), (dev, expected) = sets
    tried = {}
    for strength in STRENGTHS:
        weight, bias = fit_linear(train, classes, len(data.labels), strength)
        accuracy = float(np.mean((dev @ weight.T + bias).argmax(axis=1) == expected))
        tried[strength] = (accuracy, weight, bias)
    _, weight, bias = max(tried.values(), key=lambda one: one[0])
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(data.labels))
    config.label2id = {label: number for number, label in enumerate(data.labels)}
    config.architectures = None
    with whole_folder(output, record={"kind": KIND, "engine": ENGINE, "task": data.task.kind}) as folder:
        config.save_pretrained(folder)
        write_tokenizer(tokenizer, folder)
        StaticClassifier(embeddings, weight, bias).save(folder)
    return {f"{strength:g}": one[0] for strength, one in tried.items()}


def check_static(kind: str) -> None:
    """Make sure that a task is one of whole texts.

    Raises:
        InputError: it is another.
    """
    if kind != TASK:
        raise InputError(f"model2vec's embeddings are of whole texts: they serve {TASK}, and the task is {kind}")


def fit_linear(points: np.ndarray, classes: np.ndarray, count: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression: least sum of cross entropies plus squared weights / (2 x strength).

    Args:
        points: (examples, dimensions).
        classes: (examples,).
        count: of classes.

    Returns:
        Weights (count, dimensions) and biases (count,).
    """
    inputs, wanted = torch.from_numpy(points).double(), torch.from_numpy(classes)
    weight = torch.zeros((count, points.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Any:
        search.zero_grad()
        value = cross_entropy(inputs @ weight.T + bias, wanted, reduction="sum") + weight.square().sum() / (
            2 * strength
        )
        value.backward()
        return value

    search.step(loss)
    return weight.detach().float().numpy(), bias.detach().float().numpy()


def _read(features: Sequence[Feature], embeddings: StaticEmbeddings) -> tuple[np.ndarray, np.ndarray]:
    """Sentences and their classes."""
    if not features:
        raise InputError("a classifier over static embeddings needs labelled data and a dev set")
    rows = []
    for feature in features:
        ids = np.asarray(feature["input_ids"])[None]
        rows.append(embeddings.of(ids, np.ones_like(ids))[0])
    return np.stack(rows), np.asarray([feature["labels"] for feature in features])
