"""Sorted flat indices on disk: gaps of one byte each, or plain integers where those are smaller."""

import numpy as np
import torch
from torch import Tensor

from bistil.errors import ArtefactError


def encode_gaps(indices: Tensor) -> Tensor:
    """Distances between neighbouring indices, uint8: r in 1..255 steps r ahead to an entry, 0 steps 255 to none.

    The first distance counts from position -1. K indices below N take at most K + N / 255 bytes.

    Args:
        indices: (K,) strictly increasing int64.
    """
    gaps = np.diff(indices.numpy(), prepend=-1)
    skips = (gaps - 1) // 255
    encoded = np.zeros(len(gaps) + int(skips.sum()), dtype=np.uint8)
    encoded[np.arange(len(gaps)) + np.cumsum(skips)] = gaps - 255 * skips
    return torch.from_numpy(encoded)


def decode_gaps(encoded: Tensor) -> Tensor:
    """Inverse of `encode_gaps`: (K,) strictly increasing int64 indices, whatever the bytes are."""
    steps = encoded.numpy().astype(np.int64)
    entry = steps != 0
    steps[~entry] = 255
    return torch.from_numpy((np.cumsum(steps) - 1)[entry])


def encode_indices(indices: Tensor, size: int) -> tuple[str, Tensor]:
    """The smaller of the two forms: ("gaps", uint8) or ("indices", int32, or int64 beyond 2^31 entries)."""
    plain = indices.to(torch.int32 if size <= 2**31 else torch.int64)
    if len(indices) + size // 255 < plain.numel() * plain.element_size():
        return "gaps", encode_gaps(indices)
    gaps = encode_gaps(indices) if len(indices) else plain
    return ("gaps", gaps) if gaps.nbytes < plain.nbytes else ("indices", plain)


def check_indices(indices: Tensor, size: int, where: str) -> None:
    """Raises ArtefactError unless the indices are strictly increasing and within 0..size-1."""
    if not len(indices):
        return
    if int(indices[0]) < 0 or int(indices.max()) >= size:
        worst = int(indices.max()) if int(indices.max()) >= size else int(indices[0])
        raise ArtefactError(f"{where}: index {worst} is out of range for {size} entries: the file is damaged")
    steps = torch.diff(indices)
    if bool((steps <= 0).any()):
        first = int(torch.nonzero(steps <= 0)[0])
        fault = "appears twice" if int(steps[first]) == 0 else "is followed by a smaller one"
        raise ArtefactError(f"{where}: index {int(indices[first])} {fault}: the file is damaged")
