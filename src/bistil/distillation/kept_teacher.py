"""What a frozen task teacher says of each example, kept from one epoch of phase 2 to the next.

A teacher without dropout says the same of an example in every epoch. Before training it reads each example that will be
seen once, in batches of equal length, and every epoch reads what was kept: hidden states, attention maps and vectors of
aligned layers and the head's outputs, at real positions only. All epochs do, the first one too, so that a run that goes
on after an interruption sees the same values.

Maps are kept and not the queries and keys that they are made of: up to twice a head's width of tokens (64 or 128) maps
are smaller, nothing has to be multiplied again, and it goes for every kind of attention.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from filelock import FileLock
from torch import Tensor, nn

from bistil.distillation.aligned_attention import AttentionInputs
from bistil.distillation.representations import Captured, Vectors, probabilities
from bistil.distillation.terms import Needs
from bistil.errors import ArtefactError
from bistil.models.families import family_of
from bistil.models.fingerprint import module_digest, tensor_digest
from bistil.runtime.artefacts import (
    discard_work,
    is_marked_whole,
    json_digest,
    mark_whole,
    open_work,
    read_sealed,
    whole_file,
    write_sealed,
)
from bistil.runtime.progress import Progress
from bistil.settings.schema import ObjectiveSettings
from bistil.tasks.batches import TARGETS, TOKEN_AXIS, Axis, Feature, PerExample
from bistil.training.processes import processes

logger = logging.getLogger(__name__)

ROW = "example_row"
"""Of a batch: (batch,) which features are in it."""
IDENTITY = "kept.json"
# The teacher reads so many tokens at a time, and so many bytes are written at a time.
BATCH_TOKENS, PART_BYTES = 2048, 1 << 26
# Without a work folder it is kept in memory: in so much of what is free.
SHARE_OF_MEMORY = 0.25


@dataclass(frozen=True)
class _Field:
    """A tensor that is kept of each example."""

    name: str
    axes: tuple[Axis | int, ...]
    dtype: torch.dtype
    padding: float = 0.0

    def shape(self, feature: Feature) -> tuple[int, ...]:
        """Of an example's part."""
        return tuple(axis if isinstance(axis, int) else axis.of_feature(feature) for axis in self.axes)

    def padded(self, batch: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Of a batch's."""
        return (len(batch[ROW]), *(axis if isinstance(axis, int) else axis.of_batch(batch) for axis in self.axes))


@dataclass(frozen=True)
class _Place:
    """Where an example's bytes are."""

    part: int
    start: int
    end: int


def kept_bytes(config: Any, objective: ObjectiveSettings, *, layers: int, tokens: float, low_precision: bool) -> float:
    """About how many bytes are kept of an example, before any is: states and maps; a head's outputs are few.

    Args:
        config: of the teacher.
        layers: how many of its layers are compared.
        tokens: of the example.
        low_precision: they are kept in bf16.
    """
    family = family_of(config)
    states = (layers + 1) * family.width(config) * tokens if objective.hidden else 0.0
    maps = layers * family.heads(config) * tokens**2 if objective.attention else 0.0
    vectors = 3 * family.width(config) * tokens if objective.relations else 0.0
    return (2 if low_precision else 4) * (states + maps + vectors)


class KeptTeacher:
    """What a teacher says of chosen features; `fill` before `captured`.

    Args:
        features: all that batches are made of.
        rows: indices of those that training sees.
        collate: features to a batch, as in training.
        outputs: how the head's output is divided into examples (`Task.teacher_outputs`).
        folder: a work folder; what an interrupted call left there is gone on with. None: in memory.
        shared: others keep theirs in the folder too: what is equal is kept once, and whose the folder is removes it.
        most_bytes: room that there is; in memory also a quarter of what is free.
        label: of the progress line.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        rows: Sequence[int],
        *,
        collate: Callable[[list[Feature]], dict[str, Any]],
        outputs: Mapping[str, PerExample | None],
        folder: Path | None,
        shared: bool = False,
        most_bytes: float,
        label: str,
    ) -> None:
        self._features, self._collate, self._outputs = features, collate, outputs
        self._folder, self._shared, self._most, self._label = folder, shared, most_bytes, label
        # Equal lengths together: little padding, and what a batch holds depends on nothing but the data.
        self._rows = sorted(rows, key=lambda row: (TOKEN_AXIS.of_feature(features[row]), row))
        self._fields: list[_Field] = []
        self._constant: dict[str, Tensor] = {}
        self._places: dict[int, _Place] = {}
        self._parts: list[np.ndarray] = []
        self._first: dict[str, Tensor] = {}

    def batch(self, features: list[Feature]) -> dict[str, Any]:
        """A batch of training, which says what is in it."""
        return {**self._collate(features), ROW: torch.tensor([feature[ROW] for feature in features])}

    def fill(
        self,
        run: Callable[[dict[str, Any]], Captured],
        needs: Needs,
        teachers: Sequence[nn.Module],
        *,
        low_precision: bool,
    ) -> bool:
        """Let the teacher say all that will be needed; several processes share the work.

        Args:
            run: the teacher's pass on a batch.
            needs: what of it is needed.
            teachers: all that take part in the pass; they are known by their weights.
            low_precision: its products are in bf16; then states and maps are kept in bf16, else as they are.

        Returns:
            Whether there is room for it; if not, nothing is kept.
        """
        states = torch.bfloat16 if low_precision else None
        batches = list(self._batches())

        def said(rows: list[int]) -> dict[str, Tensor]:
            return _flat(run(self._collate([self._features[row] for row in rows])), needs, self._outputs, states)

        # The first batch shows what a pass leaves, and is not read again.
        found = said(batches[0])
        self._first = {name: value.cpu() for name, value in found.items()}
        self._constant = {name: found.pop(f"output.{name}") for name, how in self._outputs.items() if how is None}
        self._fields = sorted(
            (self._field(name, value) for name, value in found.items()),
            # The widest numbers first: each begins at a multiple of its size.
            key=lambda one: -one.dtype.itemsize,
        )
        sizes = {row: _rounded_up(sum(self._bytes(self._features[row]))) for row in self._rows}
        whole = sum(sizes.values())
        room = self._most if self._folder else min(self._most, SHARE_OF_MEMORY * psutil.virtual_memory().available)
        if whole > room:
            much = f"{whole / 1e9:.1f} GB, above {room / 1e9:.1f}"
            logger.info(f"{self._label}: what the task teacher says is not kept, for it takes {much}")
            return False
        parts = list(_parts(batches, sizes))
        for number, part in enumerate(parts):
            start = 0
            for row in (row for rows in part for row in rows):
                self._places[row] = _Place(number, start, start + sizes[row])
                start += sizes[row]
        identity = json_digest({
            "teacher": "".join(map(module_digest, teachers)), "low_precision": low_precision,
            "fields": list(map(str, self._fields)),
            "places": json_digest([[row, place.part, place.start] for row, place in self._places.items()]),
            "inputs": self._inputs_digest(batches),
        })  # fmt: skip
        if self._folder is None:
            self._parts = [self._made(part, sizes, said) for part in self._shown(parts)]
            return True
        with self._alone(self._folder):
            self._open(self._folder, identity)
            own = [
                number
                for number in range(len(parts))
                if number % processes().num_processes == processes().process_index
                and not is_marked_whole(self._file(number))
            ]
            for number, part in zip(own, self._shown([parts[number] for number in own]), strict=True):
                path = self._file(number)
                with whole_file(path, inner=True) as partial:
                    partial.write_bytes(self._made(part, sizes, said).data)
                mark_whole(path)
        self._first = {}
        processes().wait_for_everyone()
        # Copied where it is written to, which nobody does: torch wants arrays that could be.
        self._parts = [np.memmap(self._file(number), dtype=np.uint8, mode="c") for number in range(len(parts))]
        return True

    def captured(self, batch: Mapping[str, Tensor]) -> Captured:
        """What the teacher's pass on a batch would have left, on the batch's device; padding is 0 everywhere.

        Args:
            batch: made by `batch`.
        """
        rows, device = batch[ROW].tolist(), batch["input_ids"].device
        values = {one.name: torch.full(one.padded(batch), one.padding, dtype=one.dtype) for one in self._fields}
        for number, row in enumerate(rows):
            for field, part in self._read(row):
                values[field.name][number][tuple(slice(size) for size in part.shape)] = part
        return _captured({name: value.to(device) for name, value in values.items()}, self._constant)

    def close(self, *, remove: bool) -> None:
        """Let go of what was kept, and remove its files unless they are shared."""
        self._parts = []
        if remove and not self._shared and self._folder is not None and processes().is_main_process:
            discard_work(self._folder)

    def _field(self, name: str, value: Tensor) -> _Field:
        kind, _, of = name.partition(".")
        shape: tuple[int, ...] = value.shape[1:]
        if kind == "attention":
            return _Field(name, (shape[0], TOKEN_AXIS, TOKEN_AXIS), value.dtype)
        if kind == "output":
            how = self._outputs[of]
            assert how is not None
            return _Field(name, (*how.axes, *shape[len(how.axes) :]), value.dtype, how.padding)
        return _Field(name, (TOKEN_AXIS, *shape[1:]), value.dtype)

    def _bytes(self, feature: Feature) -> list[int]:
        """Of each field."""
        return [prod(field.shape(feature)) * field.dtype.itemsize for field in self._fields]

    def _batches(self) -> Iterator[list[int]]:
        """Rows that the teacher reads together."""
        batch: list[int] = []
        for row in self._rows:
            if batch and (len(batch) + 1) * TOKEN_AXIS.of_feature(self._features[row]) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _shown(self, parts: Sequence[list[list[int]]]) -> Iterator[list[list[int]]]:
        """The same, with progress."""
        if not parts:
            return
        total, done, tokens = sum(map(len, parts)), 0, 0
        with Progress(f"{self._label}: the teacher's part", total=total) as progress:
            for part in parts:
                yield part
                done += len(part)
                tokens += sum(TOKEN_AXIS.of_feature(self._features[row]) for rows in part for row in rows)
                progress.advance_to(done, tokens=tokens)

    def _made(
        self,
        part: list[list[int]],
        sizes: Mapping[int, int],
        said: Callable[[list[int]], dict[str, Tensor]],
    ) -> np.ndarray:
        """A part's bytes."""
        buffer = np.zeros(sum(sizes[row] for rows in part for row in rows), dtype=np.uint8)
        for rows in part:
            values = self._first if self._first and rows[0] == self._rows[0] else said(rows)
            found = {field.name: values[field.name].cpu() for field in self._fields}
            self._first = {}
            for number, row in enumerate(rows):
                place = self._places[row]
                data = torch.from_numpy(buffer)[place.start : place.end]
                for field, target in self._cut(data, self._features[row]):
                    whole = found[field.name][number]
                    target.copy_(whole[tuple(slice(size) for size in target.shape)])
        return buffer

    def _read(self, row: int) -> Iterator[tuple[_Field, Tensor]]:
        place = self._places[row]
        return self._cut(torch.from_numpy(self._parts[place.part][place.start : place.end]), self._features[row])

    def _cut(self, data: Tensor, feature: Feature) -> Iterator[tuple[_Field, Tensor]]:
        """An example's bytes as its fields."""
        start = 0
        for field, size in zip(self._fields, self._bytes(feature), strict=True):
            yield field, data[start : start + size].view(field.dtype).view(field.shape(feature))
            start += size

    def _file(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"part-{number:05}.bin"

    def _alone(self, folder: Path) -> AbstractContextManager[Any]:
        """Of students that are made side by side one lets the teacher speak; the others wait, and read the same."""
        if not self._shared or processes().num_processes > 1:
            return nullcontext()
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_name(f".{folder.name}.lock"))

    def _open(self, folder: Path, identity: str) -> None:
        """What another teacher said, or of other examples, is removed, unless it is for others."""
        if self._shared:
            if processes().is_main_process:
                open_work(folder)
            folder = self._folder = folder / identity[:16]
        mark = folder / IDENTITY
        if processes().is_main_process:
            try:
                known = read_sealed(mark).get("digest") if mark.exists() else None
            except ArtefactError:
                known = None
            if known != identity:
                open_work(folder, anew=True)
                write_sealed(mark, {"digest": identity})
        processes().wait_for_everyone()

    def _inputs_digest(self, batches: Sequence[list[int]]) -> str:
        """Of all that the teacher reads."""
        whole = hashlib.sha256()
        for rows in batches:
            batch = self._collate([self._features[row] for row in rows])
            for name in sorted(batch.keys() - TARGETS):
                whole.update(tensor_digest(name, batch[name]))
        return whole.hexdigest()


def _flat(
    captured: Captured, needs: Needs, outputs: Mapping[str, PerExample | None], states: torch.dtype | None
) -> dict[str, Tensor]:
    """What of a pass is kept, by name; states, maps and vectors in the number format `states`, None: their own."""
    found = {f"hidden.{layer}": captured.hidden[layer] for layer in sorted(needs.hidden)}
    found |= {f"attention.{layer}": _map_of(captured.attention[layer]) for layer in sorted(needs.attention)}
    for layer in sorted(needs.relations):
        found |= {f"vectors.{layer}.{kind}": one for kind, one in enumerate(captured.vectors[layer])}
    if needs.last:
        assert captured.last is not None
        found["last"] = captured.last
    found = {name: value if states is None else value.to(states) for name, value in found.items()}
    return found | {f"output.{name}": getattr(captured.output, name) for name in outputs}


def _map_of(attention: Tensor | AttentionInputs) -> Tensor:
    """A layer's attention map, as it was kept in the pass if it was."""
    if isinstance(attention, AttentionInputs) and attention.map is not None:
        return attention.map
    return probabilities(attention)


def _captured(values: Mapping[str, Tensor], constant: Mapping[str, Tensor]) -> Captured:
    """The other way round."""
    found, output = Captured(), dict(constant)
    for name, value in values.items():
        kind, *of = name.split(".")
        if kind == "hidden":
            found.hidden[int(of[0])] = value
        elif kind == "attention":
            nothing = value.new_empty((*value.shape[:3], 0))
            found.attention[int(of[0])] = AttentionInputs(nothing, nothing, None, 1.0, map=value)
        elif kind == "last":
            found.last = value
        elif kind == "output":
            output[of[0]] = value
    layers = {int(name.split(".")[1]) for name in values if name.startswith("vectors.")}
    for layer in layers:
        vectors: Vectors = (
            values[f"vectors.{layer}.0"], values[f"vectors.{layer}.1"], values[f"vectors.{layer}.2"],
        )  # fmt: skip
        found.vectors[layer] = vectors
    found.output = SimpleNamespace(**output) if output else None
    return found


def _parts(batches: Sequence[list[int]], sizes: Mapping[int, int]) -> Iterator[list[list[int]]]:
    """Batches that are written together."""
    part: list[list[int]] = []
    size = 0
    for rows in batches:
        part.append(rows)
        size += sum(sizes[row] for row in rows)
        if size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _rounded_up(size: int) -> int:
    """To a multiple of eight bytes, so that every example begins at one."""
    return -(-size // 8) * 8
