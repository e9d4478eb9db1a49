"""What a sparse fine-tuning consists of: sparse deltas per parameter, dense heads, and where they come from."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bistil.errors import ArtefactError, InputError
from bistil.models.names import SFT_CONFIG
from bistil.sparse.encoding import check_indices

TENSORS, CONFIG = "sft.safetensors", SFT_CONFIG
FORMAT = 1
# What `bistil.json` says of every form of an SFT.
RECORD = {"kind": "sparse fine-tuning"}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(eq=False)
class SparseDelta:
    """What is added to one parameter.

    Attributes:
        indices: (K,) int64, strictly increasing flat row-major positions.
        values: (K,) float32, what is added there.
        shape: of the parameter.
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Entries of the whole parameter."""
        return math.prod(self.shape)

    def rows_selected(self, kept_ids: Tensor, name: str) -> "SparseDelta":
        """The rows `kept_ids` of a parameter (rows, ...), in that order.

        Raises:
            InputError: there is no such row; `name` is the parameter's.
        """
        rows, width = self.shape[0], self.size // self.shape[0]
        if len(kept_ids) and (int(kept_ids.max()) >= rows or int(kept_ids.min()) < 0):
            raise InputError(f"kept ids reach {int(kept_ids.max())}, but {name} has {rows} rows")
        new_of_old = torch.full((rows,), -1, dtype=torch.int64)
        new_of_old[kept_ids] = torch.arange(len(kept_ids))
        stays = new_of_old[self.indices // width] >= 0
        return self._moved(new_of_old, len(kept_ids), stays)

    def rows_placed(self, kept_ids: Tensor, rows: int) -> "SparseDelta":
        """Inverse of `rows_selected`: row i becomes row `kept_ids[i]` of `rows`."""
        return self._moved(kept_ids, rows, torch.ones_like(self.indices, dtype=torch.bool))

    def _moved(self, new_row: Tensor, rows: int, stays: Tensor) -> "SparseDelta":
        width, indices = self.size // self.shape[0], self.indices[stays]
        indices, order = torch.sort(new_row[indices // width] * width + indices % width)
        return SparseDelta(indices, self.values[stays][order], (rows, *self.shape[1:]))


@dataclass(kw_only=True)
class Provenance:
    """What `sft_config.json` holds beside the shapes: where an SFT comes from."""

    base: str | None = None
    """Hub name or folder of the base model."""
    fingerprint: str | None = None
    """`sparse.fingerprint` of the base; none where it is not known (legacy files)."""
    kind: str = "task"
    """"language" or "task", for people and cards."""
    maskable_entries: int | None = None
    """Entries among which the free ones were chosen."""
    roles: dict[str, list[str]] = field(default_factory=dict)
    """Names of the parameters that were maskable, dense and frozen."""
    phases: dict[str, Any] = field(default_factory=dict)
    """Settings and length of the dense and sparse phases."""
    seed: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    architecture: str | None = None
    """Class of the model with its head, to build one to merge into."""
    labels: list[str] = field(default_factory=list)
    """Names of the head's classes, in order."""
    problem_type: str | None = None
    """Of a classifier's head, as its configuration has it."""
    parents: list[str] = field(default_factory=list)
    """How an SFT was made out of others, such as "composed of a, b"."""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Parts:
    """The contents of an SFT, checked.

    Attributes:
        deltas: per parameter name of the model that it was trained in.
        dense: whole tensors that take the place of parameters (model heads).
        provenance: what is known about its origin.
        name: for messages: the folder or hub name it was loaded from.

    Raises:
        ArtefactError: indices that are not strictly increasing or out of range, values that are no finite floats.
    """

    deltas: dict[str, SparseDelta]
    dense: dict[str, Tensor] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    name: str = "this sparse fine-tuning"

    def __post_init__(self) -> None:
        for name, delta in self.deltas.items():
            where = f"{self.name}, {name}"
            if delta.indices.shape != delta.values.shape or delta.indices.ndim != 1:
                raise ArtefactError(
                    f"{where}: {tuple(delta.indices.shape)} indices for {tuple(delta.values.shape)} deltas: damaged"
                )
            check_indices(delta.indices, delta.size, where)
            if not bool(torch.isfinite(delta.values).all()):
                raise ArtefactError(f"{where}: a delta is NaN or infinite: the file is damaged or training diverged")
        for name, value in self.dense.items():
            if value.dtype not in FLOATS:
                raise ArtefactError(f"{self.name}, {name}: dense values are {value.dtype}; expected floats")
            if not bool(torch.isfinite(value).all()):
                raise ArtefactError(f"{self.name}, {name}: a dense value is NaN or infinite")

    @property
    def count(self) -> int:
        """Number of sparse entries."""
        return sum(len(delta.indices) for delta in self.deltas.values())

    @property
    def density(self) -> float:
        """Share of the maskable entries (where known; else of the entries of the touched parameters) that is free."""
        total = self.provenance.maskable_entries or sum(delta.size for delta in self.deltas.values())
        return self.count / total if total else 0.0
