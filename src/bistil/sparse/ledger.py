"""Entries of a model that were overwritten and what stood there: exact putting on and taking off.

Subtracting a delta that was added leaves rounding behind, which drifts over thousands of switches. Here the
overwritten values are kept and written back, so that a model that wears nothing is its base, bit for bit.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bistil.errors import InputError


@dataclass
class Patch:
    """Changes to one model: added to single entries, or in place of whole parameters."""

    names: dict[str, nn.Parameter]
    """The model's name of every changed parameter."""
    sparse: list[tuple[nn.Parameter, Tensor, Tensor]]
    """(parameter, (K,) int64 flat indices, (K,) deltas) per parameter."""
    dense: list[tuple[nn.Parameter, Tensor]]
    heads: bool = True
    """Whether dense parameters are part of it."""
    saved_sparse: list[Tensor] | None = None
    saved_dense: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    """Saved values plus deltas: kept, so that a switch only writes."""

    def fresh(self) -> "Patch":
        """The same changes without saved values, to write on top of another state."""
        sparse = [(p, indices.to(p.device), deltas.to(p.device)) for p, indices, deltas in self.sparse]
        return Patch(self.names, sparse, self.dense, self.heads)

    def fits(self, model: nn.Module) -> bool:
        """Whether the names still mean the same parameters. Layers that were cut off since may be missing."""
        now = dict(model.named_parameters(remove_duplicate=False))
        return all(now.get(name, parameter) is parameter for name, parameter in self.names.items())

    def write(self) -> None:
        """Save what stands there and write the sums; where saved values still hold, only the latter."""
        if self.saved_sparse is None:
            self.saved_sparse = [parameter.take(indices) for parameter, indices, _ in self.sparse]
            self.saved_dense = [parameter.clone() for parameter, _ in self.dense]
            self.sums = [
                (saved + deltas).to(parameter.dtype)
                for (parameter, _, deltas), saved in zip(self.sparse, self.saved_sparse, strict=True)
            ]
        for (parameter, indices, _), total in zip(self.sparse, self.sums, strict=True):
            parameter.put_(indices, total)
        for parameter, value in self.dense:
            parameter.copy_(value)

    def undo(self) -> None:
        """Write the saved values back."""
        assert self.saved_sparse is not None
        for (parameter, indices, _), saved in zip(self.sparse, self.saved_sparse, strict=True):
            parameter.put_(indices.to(parameter.device), saved.to(parameter.device))
        for (parameter, _), saved in zip(self.dense, self.saved_dense, strict=True):
            parameter.copy_(saved)


class Ledger:
    """What one model wears, in the order in which it was put on, and the patches made for it so far."""

    def __init__(self) -> None:
        self.worn: list[tuple[object, Patch]] = []
        self.known: weakref.WeakKeyDictionary[object, Patch] = weakref.WeakKeyDictionary()
        self._places: dict[int, tuple[int, int]] = {}

    def put_on(self, key: object, patch: Patch) -> None:
        """Write a patch on top of those that are worn.

        Raises:
            InputError: `key` is worn already.
        """
        if self.wears(key):
            raise InputError("the model wears this sparse fine-tuning already: take it off first")
        # Saved values stay good as long as nobody else has written to the base since.
        if self._forget_if_written_by_others() or self.worn:
            patch = patch.fresh()
        with torch.no_grad():
            patch.write()
        if not self.worn:
            self.known[key] = patch
        self.worn.append((key, patch))
        self._remember(patch)

    def take_off(self, key: object) -> None:
        """Undo a patch; what was put on later is put on again on top of what remains, in the same order.

        Raises:
            InputError: `key` is not worn.
        """
        place = next((i for i, (one, _) in enumerate(self.worn) if one is key), None)
        if place is None:
            raise InputError("the model does not wear this sparse fine-tuning")
        self._forget_if_written_by_others()
        later = [(one, patch.fresh()) for one, patch in self.worn[place + 1 :]]
        with torch.no_grad():
            while len(self.worn) > place:
                _, patch = self.worn.pop()
                patch.undo()
                self._remember(patch)
            for one, patch in later:
                patch.write()
                self.worn.append((one, patch))
                self._remember(patch)

    def wears(self, key: object) -> bool:
        """Whether `key` is on the model."""
        return any(one is key for one, _ in self.worn)

    def settle(self) -> None:
        """Make what is worn part of the base."""
        self.worn.clear()
        self.known.clear()

    def take_off_all(self) -> None:
        """Undo everything: the model is its base again."""
        while self.worn:
            self.take_off(self.worn[-1][0])

    def _remember(self, patch: Patch) -> None:
        self._places.update((id(p), (p._version, p.data_ptr())) for p in patch.names.values())

    def _forget_if_written_by_others(self) -> bool:
        """Forget all saved values if a parameter's version is not the one that our own last write left."""
        parameters = {id(p): p for patch in self.known.values() for p in patch.names.values()}
        changed = any(self._places.get(i) != (p._version, p.data_ptr()) for i, p in parameters.items())
        if changed:
            for key, patch in list(self.known.items()):
                self.known[key] = patch.fresh()
        return changed


_LEDGERS: "weakref.WeakKeyDictionary[nn.Module, Ledger]" = weakref.WeakKeyDictionary()


def ledger_of(model: nn.Module) -> Ledger:
    """The ledger of a model; a copy of a model starts with an empty one and keeps what it wears for good."""
    return _LEDGERS.setdefault(model, Ledger())


@contextmanager
def undressed(model: nn.Module) -> Iterator[None]:
    """The model without anything that it wears; put back on, in the same order, at the end."""
    ledger = ledger_of(model)
    worn = list(ledger.worn)
    if not worn:
        yield
        return
    ledger.take_off_all()
    try:
        yield
    finally:
        for key, patch in worn:
            ledger.put_on(key, patch.fresh())
