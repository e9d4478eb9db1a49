"""What a training starts and learns from, as a digest: work that another call left behind is not gone on with."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from bistil.models.fingerprint import module_digest
from bistil.training.order import Sized


def inputs_digest(models: Iterable[nn.Module], data: Sized, *more: Any) -> str:
    """SHA-256 of all that decides a training's result besides its settings.

    Args:
        models: with the weights that they have before it; what is trained, and teachers.
        data: examples by index: mappings, tuples and lists of numbers, strings, arrays; or it has a `digest()` itself.
        more: such as the examples that choose the best weights.
    """
    whole = hashlib.sha256()
    for model in models:
        whole.update(module_digest(model).encode())
    whole.update(f"{len(data)} examples".encode())
    if hasattr(data, "digest"):
        whole.update(data.digest().encode())
    else:
        for index in range(len(data)):
            _add(whole, data[index])
    _add(whole, more)
    return whole.hexdigest()


def _add(whole: Any, value: Any) -> None:
    """Kinds and lengths are counted too: [1, [2]] is not [[1], 2]."""
    if isinstance(value, Mapping):
        whole.update(f"{{{len(value)}".encode())
        for key in sorted(value):
            _add(whole, key)
            _add(whole, value[key])
    elif isinstance(value, Tensor):
        _add(whole, value.detach().cpu().numpy())
    elif isinstance(value, list | tuple) and not all(type(one) is int for one in value):
        whole.update(f"[{len(value)}".encode())
        for one in value:
            _add(whole, one)
    elif isinstance(value, np.ndarray | list | tuple):
        array = np.asarray(value)
        whole.update(f"({array.dtype}{array.shape}".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    else:
        whole.update(f"<{type(value).__name__} {value!r}>".encode())
