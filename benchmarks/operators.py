"""Where an exported model's time goes in onnxruntime, and what its int8 products could reach.

    python benchmarks/operators.py runs/ner/export-lrf2 runs/ner/export-lrf3 --record benchmarks/records/operators.json

Batch 1, one thread, 32 and 128 tokens. onnxruntime's own profile gives the time of each kind of operator. Beside it
stands the rate of the matrix products in operations a second, and that of the same kernel on a large product: a model
whose products ran at that rate, and in which all else took no time, would be `bound` times as fast.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from bistil.measuring.benchmark import machine

ROUNDS, WARM = 200, 20
TOKENS = (32, 128)
LARGE = 1024
"""Rows and columns of the large product."""
PRODUCTS = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


def session_of(model: Any, *, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """A model on one thread; with a profile, its prefix."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = profile is not None
    if profile is not None:
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def milliseconds(session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray]) -> float:
    """Of one pass, the median."""
    found = []
    for _ in range(WARM + ROUNDS):
        before = perf_counter()
        session.run(None, feed)
        found.append(1000 * (perf_counter() - before))
    return median(found[WARM:])


def feed_of(session: onnxruntime.InferenceSession, tokens: int) -> dict[str, np.ndarray]:
    """Ids that every vocabulary has, none of them padding."""
    ids = np.random.default_rng(0).integers(10, 1000, (1, tokens))
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {one.name: values.get(one.name, np.zeros_like(ids)) for one in session.get_inputs()}


def profiled(model: Path, tokens: int) -> dict[str, float]:
    """Milliseconds of a pass by kind of operator."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(str(model), profile=Path(folder) / "profile")
        feed = feed_of(session, tokens)
        for _ in range(WARM + ROUNDS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"], event["name"]].append(event["dur"] / 1000)
    kinds: dict[str, float] = defaultdict(float)
    for (kind, _), own in times.items():
        kinds[kind] += median(own[WARM:])
    return dict(sorted(kinds.items(), key=lambda one: -one[1]))


def large_rate() -> float:
    """The int8 kernel's operations a second on one large product, in 1e9."""
    size, rng = LARGE, np.random.default_rng(0)
    weight = helper.make_tensor("w", TensorProto.INT8, [size, size], rng.integers(-127, 127, size * size).tolist())
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [size, size])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feed = {"x": rng.integers(0, 255, (size, size)).astype(np.uint8)}
    return 2e-6 * size**3 / milliseconds(session_of(model.SerializeToString()), feed)


def operations(model: Path, tokens: int, *, kinds: Collection[str]) -> float:
    """Of the int8 products with weights in nodes of some kinds, in 1e9.

    QAttention holds the product that gives queries, keys and values, and the attention itself, so that its time says
    nothing of a rate.
    """
    graph = onnx.load(str(model)).graph
    weights = {one.name: one.dims for one in graph.initializer}
    shapes = (weights[node.input[1]] for node in graph.node if node.op_type in kinds)
    return 2e-9 * tokens * sum(int(rows) * int(columns) for rows, columns in shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="of an export for onnxruntime")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    large, rows = large_rate(), []
    for folder in options.folder:
        model = folder / "model.onnx"
        for tokens in TOKENS:
            session = session_of(str(model))
            whole = milliseconds(session, feed_of(session, tokens))
            kinds = profiled(model, tokens)
            products = sum(kinds.get(kind, 0.0) for kind in PRODUCTS)
            counted = operations(model, tokens, kinds=PRODUCTS)
            least = 1000 * operations(model, tokens, kinds=(*PRODUCTS, "QAttention")) / large
            row = {
                "model": folder.name,
                "tokens": tokens,
                "milliseconds": round(whole, 3),
                "by_operator": {kind: round(value, 3) for kind, value in kinds.items()},
                "gigaoperations_per_second": round(1000 * counted / products, 1),
                "least_milliseconds": round(least, 3),
                "bound": round(whole / least, 2),
            }
            rows.append(row)
            print(json.dumps(row))
    record = {"large_gigaoperations_per_second": round(large, 1), "threads": 1, "machine": machine(), "rows": rows}
    print(json.dumps(record))
    if options.record is not None:
        options.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
