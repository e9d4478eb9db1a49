"""Reader and writer for the published `pytorch_diff.bin` files of the official code (cambridgeltl/composable-sft).

The file is a torch-saved {"diffs": {name: enc}, "abs": {name: tensor}, "block_sparses": {...}}, where enc is a dense
tensor or {"size", "index_steps", "values"}: entries sorted by their column-major flat index
sum_k coord_k * prod_{j<k} size_j, the indices stored as first differences. "abs" tensors take a parameter's place.
"""

import math
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bistil._moved import left_names
from bistil.errors import ArtefactError, InputError, first_line
from bistil.runtime.artefacts import whole_file
from bistil.runtime.insides import numpy_scalar_maker
from bistil.sparse.delta import Parts, Provenance, SparseDelta
from bistil.sparse.files import check_values

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.sparse.legacy")

LEGACY_FILE = "pytorch_diff.bin"
# The first index step of a published file is a numpy int64 scalar; nothing else beyond tensors is allowed in.
_ALLOWED: list[Any] = [
    (numpy_scalar_maker(), "numpy.core.multiarray.scalar"),
    (numpy_scalar_maker(), "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.int64)),
    np.int64,
]


def read_parts(path: Path) -> Parts:
    """Read a `pytorch_diff.bin`, by `weights_only` loading alone.

    Raises:
        InputError: the file is missing.
        ArtefactError: damaged, of another structure, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            # What torch warns of in an odd pickle follows as our error, or is of no interest.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = first_line(error)
        raise ArtefactError(f"{path} holds more than tensors and numbers and is not loaded ({reason})") from None
    except Exception as error:  # torch's unpickler takes its opcodes on trust and raises whatever follows
        raise ArtefactError(f"{path} is damaged: {first_line(error)}") from None
    if not isinstance(content, dict) or not isinstance(content.get("diffs"), dict):
        raise ArtefactError(f"{path} has no table 'diffs': it is no sparse fine-tuning of the official code")
    blocks = content.get("block_sparses")
    if isinstance(blocks, Tensor) or blocks:
        raise ArtefactError(f"{path} holds block-sparse tensors, which no published description covers: not read")
    dense = content.get("abs")
    dense = {} if dense is None else dense
    if not isinstance(dense, dict) or not all(isinstance(value, Tensor) for value in dense.values()):
        raise ArtefactError(f"{path}: 'abs' is not a table of tensors")
    if not all(isinstance(name, str) for name in (*content["diffs"], *dense)):
        raise ArtefactError(f"{path}: the names of its parameters are no texts: damaged")
    check_values(dense, path)
    deltas = {name: _decode(encoded, f"{path}, {name}") for name, encoded in content["diffs"].items()}
    return Parts(
        deltas,
        {name: value.detach().float() for name, value in dense.items()},
        Provenance(extra={"read from": LEGACY_FILE}),
        str(path),
    )


def _decode(encoded: Any, where: str) -> SparseDelta:
    if isinstance(encoded, Tensor):
        check_values({"a tensor": encoded}, where)
        flat = encoded.detach().float().reshape(-1)
        indices = torch.nonzero(flat).flatten()
        return SparseDelta(indices, flat[indices], tuple(encoded.shape))
    try:
        shape = tuple(int(n) for n in encoded["size"])
        steps = np.asarray([int(step) for step in encoded["index_steps"]], dtype=np.int64)
        check_values({"values": encoded["values"]}, where)
        values = encoded["values"].detach().float().reshape(-1)
        if min(shape, default=0) < 0 or math.prod(shape) >= 2**63:
            raise ValueError(f"the shape is {shape}")
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError, IndexError, RuntimeError) as error:
        raise ArtefactError(f"{where}: not an encoded sparse tensor ({error!r})") from None
    columns = np.cumsum(steps)
    size = math.prod(shape)
    if len(columns) != len(values):
        raise ArtefactError(f"{where}: {len(columns)} indices for {len(values)} values: damaged")
    if len(columns) and (columns.min() < 0 or columns.max() >= size):
        raise ArtefactError(f"{where}: index {columns.max()} is out of range for {size} entries: damaged")
    rows = np.ravel_multi_index(np.unravel_index(columns, shape, order="F"), shape) if size else columns
    indices, order = torch.sort(torch.from_numpy(np.asarray(rows, dtype=np.int64)))
    return SparseDelta(indices, values[order], shape)


def write_legacy(sft: Parts, path: Path) -> None:
    """Write a file that the official code reads.

    Raises:
        InputError: the file exists; it cannot say whose it is, so it is never replaced.
    """
    diffs: dict[str, Any] = {}
    for name, delta in sft.deltas.items():
        columns = np.ravel_multi_index(np.unravel_index(delta.indices.numpy(), delta.shape), delta.shape, order="F")
        order = np.argsort(columns)
        steps = np.diff(np.asarray(columns)[order], prepend=0)
        diffs[name] = {
            "size": torch.Size(delta.shape),
            "index_steps": steps.tolist(),
            "values": delta.values[torch.from_numpy(order)].clone(),
        }
    # By its path, torch would name what is in the file after the temporary file, and its bytes would never be the same.
    with whole_file(path) as partial, partial.open("wb") as stream:
        torch.save({"diffs": diffs, "abs": dict(sft.dense), "block_sparses": {}}, stream)
