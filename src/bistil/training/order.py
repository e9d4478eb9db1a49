"""The order in which training sees examples, drawn beforehand."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset


class Sized(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


class Ordered(Dataset[Any]):
    """A data set in its training order: item i is what step i // batch_size sees.

    Args:
        data: any map-style data set.
        order: (items,) indices into `data`.
    """

    def __init__(self, data: Sized, order: np.ndarray) -> None:
        self.data, self.order = data, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        return self.data[int(self.order[index])]


def epoch_order(
    size: int, *, items: int, batch_size: int, seed: int, lengths: Sequence[int] | None = None
) -> np.ndarray:
    """Indices (items,) that walk through shuffled epochs of `size` examples.

    With `lengths`, examples of similar length share a batch (sorted inside windows of 32 batches, batches shuffled),
    which saves padding and changes nothing else.
    """
    generator = np.random.default_rng(seed)
    epochs = []
    for _ in range(math.ceil(items / size)):
        order = generator.permutation(size)
        if lengths is not None:
            window = 32 * batch_size
            known = np.asarray(lengths)
            for start in range(0, size, window):
                part = order[start : start + window]
                order[start : start + window] = part[np.argsort(known[part], kind="stable")]
            whole = size - size % batch_size
            batches = order[:whole].reshape(-1, batch_size)
            order = np.concatenate([batches[generator.permutation(len(batches))].ravel(), order[whole:]])
        epochs.append(order)
    return np.concatenate(epochs)[:items]
