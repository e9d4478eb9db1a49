"""Fewer bytes and faster products: tables of embeddings in blocks of 4 or 8 bits, matrices in int8.

A table is read by `GatherBlockQuantized` of onnxruntime: each row is cut into blocks, each block has a scale of its
own in float16, and only the rows that a text needs are multiplied out. What is cut is the standardised table: tables of
encoders have columns that are large in all rows, beside which the others of their block would become 0 in 4 bits.
Activations are quantised while the model runs.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bistil.runtime.insides import PRODUCTS, int8_products

Precision = Literal["int8", "float32"]
Embeddings = Literal["auto", "int8", "int4", "float32"]

# Bits of a weight -> columns that share a scale. The operator wants powers of two from 16 on.
BLOCKS = {4: 32, 8: 128}
LEAST_BLOCK = 16
# A table of fewer numbers is not worth an operator of its own.
LEAST_TABLE = 4096
# Behind a table's name: what it consists of in blocks.
PARTS = (".data", ".scales", ".deviations", ".means")
# Shares of a block's largest number that are tried as the end of its range: a few of its outliers may be cut.
RANGES = np.linspace(0.7, 1.0, 13, dtype=np.float32)
# Blocks handled at a time: bounds the memory of the search.
BLOCKS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Table:
    """A matrix of a graph of which rows are looked up.

    Attributes:
        name: of the initializer.
        numbers: rows times width.
    """

    name: str
    numbers: int


def tables(model: Any) -> list[Table]:
    """The tables of a graph (`onnx.ModelProto`), largest first: what look-ups of rows read, and nothing else."""
    matrices = {one.name: one for one in model.graph.initializer if len(one.dims) == 2}
    rows = {node.input[0] for node in model.graph.node if _looks_up_rows(node)}
    others = {name for node in model.graph.node for name in (node.input[1:] if _looks_up_rows(node) else node.input)}
    found = [Table(name, int(np.prod(matrices[name].dims))) for name in rows & matrices.keys() - others]
    return sorted((one for one in found if one.numbers >= LEAST_TABLE), key=lambda one: (-one.numbers, one.name))


def products(model: Any) -> dict[str, int]:
    """Names of a graph's products with a constant matrix, and that matrix's number of weights."""
    constants = {one.name: int(np.prod(one.dims)) for one in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS]
    return {node.name: constants[node.input[1]] for node in nodes if node.input[1] in constants}


def quantise(source: Path, target: Path, *, embeddings: Embeddings, kept: Collection[str] = ()) -> None:
    """Write a float32 graph again with quantised weights.

    Args:
        embeddings: of the largest table; smaller ones (positions) are of 8 bits, unless it is float32.
        kept: names of products that stay in float32.
    """
    import onnx

    int8_products(source, target, kept=kept)
    if embeddings == "float32":
        return
    model = onnx.load(target)
    for number, table in enumerate(tables(model)):
        replace_table(model, table.name, bits=4 if embeddings == "int4" and number == 0 else 8)
    if not any(one.domain == "com.microsoft" for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, target)


def in_blocks(values: np.ndarray, *, bits: int) -> tuple[np.ndarray, np.ndarray, int]:
    """A table in blocks of 4 or 8 bits: row = (data - 2^(bits - 1)) * scale, block by block.

    Of 4 bits, two stand in a byte, the first one low. Their scale is the one of a few with the least squared error; it
    may be negative, so that the largest number of a block has the end of the range that reaches farther.

    Args:
        values: (rows, width) of float32; of 4 bits the width is even.

    Returns:
        The data (rows, width * bits / 8) as uint8, the scales (rows, blocks) as float16, and the block's columns.
    """
    rows, width = values.shape
    block = BLOCKS[bits]
    while block > max(width, LEAST_BLOCK):
        block //= 2
    count = -(-width // block)
    padded = np.zeros((rows, count * block), np.float32)
    padded[:, :width] = values
    blocks = padded.reshape(-1, block)
    half = 1 << (bits - 1)
    scales = np.empty(len(blocks), np.float16)
    data = np.empty(blocks.shape, np.uint8)
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = slice(start, start + BLOCKS_AT_ONCE)
        scales[part] = _scales(blocks[part], bits)
        data[part] = np.clip(np.rint(blocks[part] / scales[part, None].astype(np.float32)), -half, half - 1) + half
    data = data.reshape(rows, -1)[:, :width]
    if bits == 4:
        data = np.bitwise_or(data[:, 0::2], data[:, 1::2] << 4, dtype=np.uint8)
    return np.ascontiguousarray(data), scales.reshape(rows, count), block


def standardised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A table (rows, width) with columns of mean 0 and deviation 1; and the deviations and means (width,) taken out."""
    means, deviations = values.mean(axis=0), values.std(axis=0)
    deviations[deviations < np.finfo(np.float32).tiny] = 1
    return (values - means) / deviations, deviations, means


def _scales(blocks: np.ndarray, bits: int) -> np.ndarray:
    """Scales (blocks,) of float16, none of them 0."""
    half = 1 << (bits - 1)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)[:, 0]
    if bits == 8:
        return _not_zero(np.abs(largest) / (half - 1))
    best, least = _not_zero(np.zeros_like(largest)), np.full(len(blocks), np.inf, np.float32)
    for share in RANGES:
        scale = _not_zero(-largest * share / half)
        wide = scale.astype(np.float32)[:, None]
        error = np.square(np.clip(np.rint(blocks / wide), -half, half - 1) * wide - blocks).sum(1)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def _not_zero(scales: np.ndarray) -> np.ndarray:
    rounded = scales.astype(np.float16)
    # A block of zeros, or of numbers that float16 does not tell from them.
    rounded[rounded == 0] = np.finfo(np.float16).tiny
    return rounded


def replace_table(model: Any, name: str, *, bits: int) -> None:
    """Let all look-ups of a table read it in blocks."""
    from onnx import TensorProto, helper, numpy_helper

    place = next(i for i, one in enumerate(model.graph.initializer) if one.name == name)
    even, deviations, means = standardised(numpy_helper.to_array(model.graph.initializer[place]))
    data, scales, block = in_blocks(even, bits=bits)
    del model.graph.initializer[place]
    parts = dict(zip(PARTS, (data, scales, deviations, means), strict=True))
    model.graph.initializer.extend(numpy_helper.from_array(part, f"{name}{which}") for which, part in parts.items())
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if not (_looks_up_rows(node) and node.input[0] == name):
            model.graph.node.append(node)
            continue
        stages = [f"{node.output[0]}.{stage}" for stage in ("float16", "even", "centred")]
        model.graph.node.extend(
            [
                helper.make_node(
                    "GatherBlockQuantized",
                    [f"{name}.data", node.input[1], f"{name}.scales"],
                    stages[:1],
                    name=node.name,
                    domain="com.microsoft",
                    gather_axis=0,
                    quantize_axis=1,
                    block_size=block,
                    bits=bits,
                ),
                helper.make_node("Cast", stages[:1], stages[1:2], name=f"{node.name}.float32", to=TensorProto.FLOAT),
                helper.make_node("Mul", [stages[1], f"{name}.deviations"], stages[2:], name=f"{node.name}.deviations"),
                helper.make_node("Add", [stages[2], f"{name}.means"], list(node.output), name=f"{node.name}.means"),
            ]
        )


def _looks_up_rows(node: Any) -> bool:
    """Whether a node gathers along the first axis."""
    return node.op_type == "Gather" and next((one.i for one in node.attribute if one.name == "axis"), 0) == 0
