"""Vectors of sentences, as far as a model without labels is a task: encoding, the encoder, pooling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.models.loading import ModelSource, load_model
from bistil.models.sentences import SentenceForm
from bistil.tasks.base import Decoded, Example, Task
from bistil.tasks.batches import Feature, Outputs, as_array
from bistil.tasks.texts import encode_texts

KIND = "sentence-embedding"


@dataclass(frozen=True, kw_only=True)
class TextForVector(Example):
    """A text whose vector is wanted."""

    text: str


def _no_labels(*_: Any, **__: Any) -> NoReturn:
    raise InputError(
        "sentence vectors have no labels: nothing is trained on or scored by labelled files; give plain text"
    )


class SentenceEmbedding(Task):
    """What `prediction` and `export` ask of a task; it is in no recipe.

    Args:
        form: how a vector is made of a text.
    """

    kind = KIND
    pipeline_tag = "sentence-similarity"
    metric = read_file = labels = check_labels = _no_labels
    unlabelled = prediction_pairs = score = majority = predicted = _no_labels

    def __init__(self, form: SentenceForm) -> None:
        self.form = form

    def text_of(self, example: Any) -> str:
        return f"{self.form.prefix}{example.text}"

    def build_model(self, folder: ModelSource, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
        """The encoder alone, without the pooler that some families have."""
        del labels
        model: Any = load_model(folder, AutoModel, head="optional", seed=seed)[0]
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        encoder: PreTrainedModel = model
        return encoder

    def encode(
        self, examples: Sequence[Any], tokenizer: PreTrainedTokenizerBase, max_length: int, *, labels: Sequence[str]
    ) -> list[Feature]:
        """One feature per text, behind the prefix."""
        del labels
        return encode_texts([(self.text_of(one), None) for one in examples], tokenizer, max_length)

    def decode(
        self, examples: Sequence[Any], features: Sequence[Feature], outputs: Outputs, labels: Sequence[str]
    ) -> list[Decoded]:
        """Vectors (width,) of float32."""
        del labels
        found: list[Any] = [None] * len(examples)
        for indices, given in outputs:
            states = as_array(given["last_hidden_state"])
            for row, i in zip(states, indices, strict=True):
                vector = self.form.pooled(row[: len(features[i]["input_ids"])])
                found[features[i]["example"]] = Decoded(vector.astype(np.float32), np.ones(1))
        return found
