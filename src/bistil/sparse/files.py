"""The files of an SFT's folder: tensors with encoded indices, and a configuration."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_origin

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bistil.errors import ArtefactError, BistilError, first_line
from bistil.runtime.artefacts import read_json, write_json
from bistil.sparse.card import card
from bistil.sparse.delta import CONFIG, FLOATS, FORMAT, TENSORS, Parts, Provenance, SparseDelta
from bistil.sparse.encoding import decode_gaps, encode_indices

# Number formats of the deltas; the half formats round them.
Values = Literal["float32", "float16", "bfloat16"]


def write_files(sft: Parts, folder: Path, *, values: Values = "float32") -> None:
    """Write `sft.safetensors`, `sft_config.json` and a card into a folder that is being made."""
    tensors: dict[str, Tensor] = {}
    for name, delta in sft.deltas.items():
        kind, encoded = encode_indices(delta.indices.cpu(), delta.size)
        tensors[f"{kind}/{name}"] = encoded
        tensors[f"deltas/{name}"] = delta.values.cpu().to(getattr(torch, values)).contiguous()
    tensors.update({f"dense/{name}": value.detach().cpu().contiguous() for name, value in sft.dense.items()})
    config = {
        "format": FORMAT,
        "density": sft.density,
        "count": sft.count,
        **asdict(sft.provenance),
        "shapes": {name: list(delta.shape) for name, delta in sft.deltas.items()},
    }
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)
    (folder / "README.md").write_text(card(sft, folder=folder), encoding="utf-8")


def read_files(folder: Path, name: str) -> Parts:
    """Read what `write_files` wrote.

    Args:
        name: for messages.

    Raises:
        ArtefactError: missing or damaged files.
    """
    if not (folder / CONFIG).exists():
        raise ArtefactError(f"{name} is no sparse fine-tuning: {CONFIG} is missing")
    config = _read_config(folder / CONFIG)
    tensors = read_tensors(folder / TENSORS)
    shapes: Mapping[str, list[int]] = config["shapes"]
    deltas: dict[str, SparseDelta] = {}
    dense: dict[str, Tensor] = {}
    try:
        for key in list(tensors):
            kind, _, parameter = key.partition("/")
            if kind == "dense":
                dense[parameter] = tensors[key]
            elif kind == "deltas":
                deltas[parameter] = _decode_delta(tensors, parameter, shapes)
        missing = shapes.keys() - deltas.keys()
        if missing:
            raise ArtefactError(f"no deltas for {sorted(missing)[0]}, which {CONFIG} lists")
    except ArtefactError as error:
        raise ArtefactError(f"{folder / TENSORS}: {error}") from None
    known = {f.name for f in fields(Provenance)}
    provenance = Provenance(**{key: value for key, value in config.items() if key in known})
    return Parts(deltas, dense, provenance, name)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except BistilError as error:
        raise ArtefactError(str(error)) from error
    shapes = config.get("shapes") if isinstance(config, dict) else None
    sound = isinstance(shapes, dict) and all(
        isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) and math.prod(shape) < 2**63
        for shape in shapes.values()
    )
    if not sound:
        raise ArtefactError(f"{path} is no configuration of a sparse fine-tuning: 'shapes' is missing or malformed")
    if config.get("format") != FORMAT:
        raise ArtefactError(f"{path} has format {config.get('format')!r}, this version reads {FORMAT}: update bistil")
    for known in fields(Provenance):
        value = config.get(known.name)
        # dict[str, list[str]] can only be checked as a dict, str | None as it is.
        kind: Any = get_origin(known.type) if get_origin(known.type) in (dict, list) else known.type
        sound = isinstance(value, kind) and (kind is not list or all(isinstance(one, str) for one in value))
        if known.name in config and not (sound and _is_json(value)):
            raise ArtefactError(f"{path}: {known.name!r} is {value!r}, which it cannot be: the file is damaged")
    found: dict[str, Any] = config
    return found


def _is_json(value: Any) -> bool:
    """Whether a value can be written again: Python reads NaN and infinity, which are no JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file: an SFT's, or an adapter's.

    Raises:
        ArtefactError: the file is missing or damaged.
    """
    if not path.is_file():
        raise ArtefactError(f"{path} is missing: this is no folder of a sparse fine-tuning")
    try:
        # safetensors checks header size, offsets and formats against the file's length before any tensor is made.
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # safetensors' own, torch's for formats that it lacks, the operating system's
        raise ArtefactError(
            f"{path} is damaged or no safetensors file ({first_line(error)}): fetch or make it again"
        ) from error
    check_values(tensors, path)
    return tensors


def check_values(tensors: Mapping[str, Tensor], where: object) -> None:
    """Make sure that tensors out of a file are plain ones of real numbers.

    Raises:
        ArtefactError: one is not.
    """
    for name, value in tensors.items():
        if value.layout is not torch.strided or value.is_complex() or value.is_meta or value.is_quantized:
            raise ArtefactError(f"{where}: {name:.200} is no plain tensor of real numbers: damaged")


def _decode_delta(tensors: Mapping[str, Tensor], name: str, shapes: Mapping[str, list[int]]) -> SparseDelta:
    values = tensors[f"deltas/{name}"]
    if values.dtype not in FLOATS or values.ndim != 1:
        raise ArtefactError(f"deltas of {name} are {values.dtype} of {values.ndim} dimensions; expected a float vector")
    if name not in shapes:
        raise ArtefactError(f"{CONFIG} gives no shape for {name}")
    if (gaps := tensors.get(f"gaps/{name}")) is not None:
        if gaps.dtype != torch.uint8 or gaps.ndim != 1:
            raise ArtefactError(f"gaps of {name} are {gaps.dtype}; expected a vector of uint8")
        indices = decode_gaps(gaps)
    elif (plain := tensors.get(f"indices/{name}")) is not None:
        if plain.dtype not in (torch.int32, torch.int64) or plain.ndim != 1:
            raise ArtefactError(f"indices of {name} are {plain.dtype}; expected a vector of int32 or int64")
        indices = plain.long()
    else:
        raise ArtefactError(f"no indices for {name}")
    return SparseDelta(indices, values.float(), tuple(shapes[name]))
