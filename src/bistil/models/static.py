"""Sentences as means of static token embeddings, as model2vec makes and reads them, with a linear classifier above."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bistil.errors import ArtefactError, first_line

FILE, ENGINE = "static.safetensors", "static"
"""Name in the folder, and of the engine in its record."""


@dataclass(frozen=True)
class StaticEmbeddings:
    """A vector per token, and what is made of a sentence's.

    Attributes:
        vectors: (vocabulary, dimensions).
        counted: (vocabulary,), whether a token counts; special ones do not.
    """

    vectors: np.ndarray
    counted: np.ndarray

    def of(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Sentences, (batch, dimensions): the mean of the tokens that count, of length 1 (model2vec's `normalize`).

        Args:
            ids, mask: (batch, tokens).
        """
        takes = (mask.astype(bool) & self.counted[ids]).astype(np.float32)
        sums = np.einsum("bt,btd->bd", takes, self.vectors[ids])
        means = sums / np.maximum(takes.sum(axis=1, keepdims=True), 1.0)
        unit: np.ndarray = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return unit


@dataclass(frozen=True)
class StaticClassifier:
    """Embeddings with a linear map: `weight` (classes, dimensions), `bias` (classes,)."""

    embeddings: StaticEmbeddings
    weight: np.ndarray
    bias: np.ndarray

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(batch, classes)."""
        found: np.ndarray = self.embeddings.of(ids, mask) @ self.weight.T + self.bias
        return found

    def save(self, folder: Path) -> None:
        """Write it into a model's folder."""
        own = self.embeddings
        tensors = {"vectors": own.vectors, "counted": own.counted, "weight": self.weight, "bias": self.bias}
        save_file({name: np.ascontiguousarray(one) for name, one in tensors.items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path, *, classes: int) -> "StaticClassifier":
        """Read it.

        Args:
            classes: labels that it must have.

        Raises:
            ArtefactError: it is missing, damaged, or of sizes that do not fit.
        """
        try:
            found = load_file(folder / FILE)
            vectors, counted, weight, bias = (found[name] for name in ("vectors", "counted", "weight", "bias"))
        except (OSError, SafetensorError, KeyError) as error:
            raise ArtefactError(f"{folder / FILE} cannot be read: {first_line(error)}") from error
        sizes = [vectors.ndim, counted.shape, weight.shape, bias.shape]
        if sizes != [2, vectors.shape[:1], (classes, *vectors.shape[1:]), (classes,)]:
            raise ArtefactError(f"{folder / FILE} is of other sizes than its {classes} labels: fetch or make it again")
        return cls(StaticEmbeddings(vectors, counted), weight, bias)
