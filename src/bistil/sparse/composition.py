"""Sums and comparisons of SFTs: theta + phi_language + phi_task (LT-SFT, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bistil.errors import ArtefactError, InputError
from bistil.sparse.artefact import SparseFineTuning
from bistil.sparse.delta import Provenance, SparseDelta


def compose(parts: Sequence[SparseFineTuning], *, force: bool = False) -> SparseFineTuning:
    """The sum of SFTs of one base, as an SFT: deltas add up, heads are taken from whoever has them.

    Wearing the sum equals wearing the parts one after another up to the rounding of float32 addition.

    Args:
        parts: at least one.
        force: add them although their bases' fingerprints differ.

    Raises:
        ArtefactError: SFTs of different bases or shapes.
        InputError: nothing to add, or two parts bring different values for one head.
    """
    if not parts:
        raise InputError("there is no sparse fine-tuning to compose")
    known = {part.provenance.fingerprint: part.name for part in parts if part.provenance.fingerprint}
    if len(known) > 1 and not force:
        raise ArtefactError(
            f"{' and '.join(known.values())} have different bases: compose SFTs of one base, or force it "
            "(force=True, --force-sfts)"
        )
    deltas: dict[str, SparseDelta] = {}
    dense: dict[str, Tensor] = {}
    for part in parts:
        for name, delta in _named_alike(part, parts).items():
            deltas[name] = _sum(deltas[name], delta, name) if name in deltas else delta
        for name, value in part.dense.items():
            if name in dense and not (dense[name].shape == value.shape and torch.equal(dense[name], value)):
                raise InputError(f"two of the parts bring the head {name}: leave one of them out")
            dense[name] = value
    first = parts[0].provenance
    # A task's head is what the sum is used through; a language's masked-LM head is not.
    task = next((part.provenance for part in reversed(parts) if part.provenance.kind != "language"), first)
    entries = {part.provenance.maskable_entries for part in parts}
    provenance = Provenance(
        base=first.base,
        fingerprint=next(iter(known), None) if len(known) <= 1 else None,
        kind="+".join(dict.fromkeys(part.provenance.kind for part in parts)),
        maskable_entries=max((n for n in entries if n), default=None),
        architecture=task.architecture,
        labels=task.labels,
        problem_type=task.problem_type,
        parents=[part.name for part in parts],
    )
    return SparseFineTuning(deltas, dense, provenance, " + ".join(part.name for part in parts))


def _named_alike(part: SparseFineTuning, parts: Sequence[SparseFineTuning]) -> dict[str, SparseDelta]:
    """The part's deltas; made in a bare encoder ("x"), under the names that the others have from a head ("bert.x")."""
    for other in parts:
        for prefix in dict.fromkeys(name.partition(".")[0] for name in other.deltas):
            if any(f"{prefix}.{name}" in other.deltas for name in part.deltas):
                return {f"{prefix}.{name}": delta for name, delta in part.deltas.items()}
    return part.deltas


def _sum(one: SparseDelta, other: SparseDelta, name: str) -> SparseDelta:
    if one.shape != other.shape:
        raise ArtefactError(f"{name} has shape {one.shape} in one SFT and {other.shape} in another: different bases")
    indices, place = torch.unique(torch.cat([one.indices, other.indices]), return_inverse=True)
    values = torch.zeros(len(indices)).index_add_(0, place, torch.cat([one.values, other.values]))
    return SparseDelta(indices, values, one.shape)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two SFTs side by side, in one parameter or in all."""

    name: str
    count_a: int
    count_b: int
    shared: int
    norm_a: float
    norm_b: float
    dot: float

    @property
    def overlap(self) -> float:
        """Jaccard index of the two sets of entries, 0 to 1."""
        union = self.count_a + self.count_b - self.shared
        return self.shared / union if union else 1.0

    @property
    def cosine(self) -> float:
        """Cosine between the deltas as vectors over all entries, -1 to 1; 0 where one of them is empty."""
        norms = self.norm_a * self.norm_b
        return self.dot / norms if norms else 0.0


def compare(a: SparseFineTuning, b: SparseFineTuning) -> tuple[Comparison, list[Comparison]]:
    """How much two SFTs have in common: over all parameters, and per parameter.

    Raises:
        ArtefactError: a parameter has different shapes: SFTs of different bases.
    """
    rows = []
    for name in dict.fromkeys([*a.deltas, *b.deltas]):
        one, other = a.deltas.get(name), b.deltas.get(name)
        if one is not None and other is not None and one.shape != other.shape:
            raise ArtefactError(f"{name} has shape {one.shape} in {a.name} and {other.shape} in {b.name}")
        shared, dot = (0, 0.0) if one is None or other is None else _common(one, other)
        rows.append(
            Comparison(
                name=name,
                count_a=0 if one is None else len(one.indices),
                count_b=0 if other is None else len(other.indices),
                shared=shared,
                norm_a=0.0 if one is None else float(one.values.double().norm()),
                norm_b=0.0 if other is None else float(other.values.double().norm()),
                dot=dot,
            )
        )
    whole = Comparison(
        name="all",
        count_a=a.count,
        count_b=b.count,
        shared=sum(row.shared for row in rows),
        norm_a=sum(row.norm_a**2 for row in rows) ** 0.5,
        norm_b=sum(row.norm_b**2 for row in rows) ** 0.5,
        dot=sum(row.dot for row in rows),
    )
    return whole, rows


def _common(one: SparseDelta, other: SparseDelta) -> tuple[int, float]:
    """Number of shared entries, and the dot product of the deltas there."""
    if not len(one.indices) or not len(other.indices):
        return 0, 0.0
    place = torch.searchsorted(other.indices, one.indices).clamp_(max=len(other.indices) - 1)
    both = other.indices[place] == one.indices
    dot = float((one.values[both].double() * other.values[place[both]].double()).sum())
    return int(both.sum()), dot
