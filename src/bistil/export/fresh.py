"""Run as a script, in a process that can import neither torch nor transformers nor bistil: does an exported model
give, from its own files, what the PyTorch model gave?

    python fresh.py FOLDER CASES

FOLDER holds model.onnx and tokenizer.json, CASES one .npz per batch, with arrays "in.NAME" and "out.NAME" (NaN where an
output does not count), and texts.json, texts with their ids. The result is one line of JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def alone() -> None:
    """From here on this process cannot import what made the model."""
    for name in ("torch", "transformers", "bistil"):
        sys.modules[name] = None  # type: ignore[assignment]  # importing it is an ImportError


def largest_difference(session: Any, case: Path) -> float:
    """Between the outputs of the graph and those of a case, where they count; infinite where only one is infinite."""
    arrays = dict(np.load(case))
    wanted = {one.name for one in session.get_inputs()}
    given = {name[3:]: values for name, values in arrays.items() if name.startswith("in.")}
    names = [one.name for one in session.get_outputs()]
    found = dict(zip(names, session.run(None, {name: given[name] for name in wanted}), strict=True))
    largest = 0.0
    for name in names:
        expected = arrays[f"out.{name}"]
        if found[name].shape != expected.shape:
            return float("inf")
        counts = ~np.isnan(expected) & ~(np.isinf(expected) & (found[name] == expected))
        if counts.any():
            largest = max(largest, float(np.abs(found[name][counts] - expected[counts]).max()))
    return largest


def run_cases(folder: Path, cases: Path) -> None:
    """Run graph and tokenizer on the cases, and print what came out."""
    import onnxruntime
    import tokenizers

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    differences = [largest_difference(session, case) for case in sorted(cases.glob("*.npz"))]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = json.loads((cases / "texts.json").read_text(encoding="utf-8"))
    other = [text for text, ids in texts if tokenizer.encode(text).ids != ids]
    print(json.dumps({"largest_difference": max(differences), "batches": len(differences), "other_tokens": other}))


if __name__ == "__main__":
    alone()
    run_cases(Path(sys.argv[1]), Path(sys.argv[2]))
