"""Fewer bytes and faster products: tables of embeddings in blocks of 4 or 8 bits, matrices in int8.

A table is read by `GatherBlockQuantized` of onnxruntime: each row is cut into blocks, each block has a scale of its
own in float16, and only the rows that a text needs are multiplied out. What is cut is the standardised table: tables of
encoders have columns that are large in all rows, beside which the others of their block would become 0 in 4 bits.
Activations are quantised while the model runs, all of a product's with one scale: what is large in few of their columns
is first taken over by the matrix (Xiao et al. 2023, SmoothQuant, section 4).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bistil.engines.alone import SCALES
from bistil.engines.onnx import open_session
from bistil.runtime.insides import PRODUCTS, int8_products

Precision = Literal["int8", "float32"]
Embeddings = Literal["auto", "int8", "int4", "float32"]

# Bits of a weight -> columns that share a scale. The operator wants powers of two from 16 on.
BLOCKS = {4: 32, 8: 128}
LEAST_BLOCK = 16
# How much of the difference between columns of activations the matrix takes over (alpha of equation 4). Of 7,263 tags
# of a Swahili NER student with 6 layers int8 changes 45 without, 35 at 0.5 and 18 at 0.7.
SMOOTHING = 0.7
# A table of fewer numbers is not worth an operator of its own.
LEAST_TABLE = 4096
# Behind a table's name: what it consists of in blocks.
PARTS = (".data", ".scales", ".deviations", ".means")
# Shares of a block's largest number that are tried as the end of its range: a few of its outliers may be cut.
RANGES = np.linspace(0.7, 1.0, 13, dtype=np.float32)
# So many times the median column the largest is where columns are made more even.
UNEVEN = 2
# Smaller numbers are taken for this one where they would be divided by.
SMALLEST = 1e-5
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


def smooth(source: Path, target: Path, cases: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write a float32 graph again whose products have activations of more even columns: x W = (x / s) (s W).

    s = max|x|^alpha / max|W|^(1 - alpha), column of x by row of W, with a geometric mean of 1.

    Args:
        cases: per batch the inputs, "in.NAME", on which the activations are measured.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    matrices = {one.name: one for one in model.graph.initializer}
    known = products(model)
    used = Counter(name for node in model.graph.node for name in node.input)
    # Of a matrix that several products share, one cannot take over what another does not.
    nodes = [one for one in model.graph.node if one.name in known and one.op_type != "Gemm" and used[one.input[1]] == 1]
    inputs = list(dict.fromkeys(node.input[0] for node in nodes))
    if not inputs:
        onnx.save(model, target)
        return
    asked = onnx.load(source)
    asked.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs)
    onnx.save(asked, target)
    session = open_session(target, threads=1)
    given = [one.name for one in session.get_inputs()]
    reach: dict[str, np.ndarray] = {}
    for case in cases:
        found = session.run(inputs, {name: case[f"in.{name}"] for name in given})
        for name, values in zip(inputs, found, strict=True):
            most = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            reach[name] = np.maximum(reach.get(name, most), most)
    smoothed = {node.name for node in nodes if _uneven(reach[node.input[0]])}
    every = list(model.graph.node)
    del model.graph.node[:]
    for node in every:
        if node.name in smoothed:
            matrix = numpy_helper.to_array(matrices[node.input[1]])
            rows = np.maximum(np.abs(matrix).max(axis=1), SMALLEST)
            scales = np.maximum(reach[node.input[0]], SMALLEST) ** SMOOTHING / rows ** (1 - SMOOTHING)
            scales = (scales / np.exp(np.log(scales).mean())).astype(np.float32)
            matrices[node.input[1]].CopyFrom(numpy_helper.from_array(matrix * scales[:, None], node.input[1]))
            shares, even = f"{node.name}.smoothing", f"{node.name}.smooth"
            model.graph.initializer.append(numpy_helper.from_array(1 / scales, shares))
            model.graph.node.append(helper.make_node("Mul", [node.input[0], shares], [even], name=even))
            node.input[0] = even
        model.graph.node.append(node)
    onnx.save(model, target)


def _uneven(reach: np.ndarray) -> bool:
    """Whether the largest column of activations is worth an operation more."""
    return bool(reach.max() > UNEVEN * max(float(np.median(reach)), SMALLEST))


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


def in_rows(tensors: dict[str, np.ndarray], *, int8: bool, least: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors by name, in int8 with a scale per row if asked, which `engines.alone.tensors_of` multiplies out.

    Args:
        least: tensors of fewer numbers stay as they are.
    """
    for name, values in tensors.items():
        if not int8 or values.size < least:
            yield name, values
            continue
        largest = np.abs(values).max(axis=-1, keepdims=True) / 127
        scales = np.where(largest == 0, 1, largest).astype(np.float32)
        yield name + SCALES, scales
        yield name, np.rint(values / scales).astype(np.int8)
