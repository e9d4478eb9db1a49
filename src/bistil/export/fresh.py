"""Run as a script, in a process that can import neither torch nor transformers nor bistil: does an exported model
give, from its own files, what the PyTorch model gave?

    python fresh.py FOLDER CASES

FOLDER holds tokenizer.json and model.onnx, or an encoder of CTranslate2 and a head; CASES holds one .npz per batch,
with arrays "in.NAME" and "out.NAME" (NaN where an output does not count), and texts.json, texts with their ids. The
result is one line of JSON.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from runpy import run_path

import numpy as np

Model = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Inputs by name to outputs by name."""


def alone() -> None:
    """From here on this process cannot import what made the model."""
    for name in ("torch", "transformers", "bistil"):
        sys.modules[name] = None  # type: ignore[assignment]  # importing it is an ImportError


def largest_difference(model: Model, case: Path) -> float:
    """Between the outputs of a model and those of a case, where they count; infinite where only one is infinite."""
    arrays = dict(np.load(case))
    found = model({name[3:]: values for name, values in arrays.items() if name.startswith("in.")})
    largest = 0.0
    for name, expected in ((name[4:], values) for name, values in arrays.items() if name.startswith("out.")):
        if found[name].shape != expected.shape:
            return float("inf")
        counts = ~np.isnan(expected) & ~(np.isinf(expected) & (found[name] == expected))
        if counts.any():
            largest = max(largest, float(np.abs(found[name][counts] - expected[counts]).max()))
    return largest


def opened(folder: Path) -> Model:
    """The model in a folder, by the engine that it was exported for, on one thread."""
    graph = folder / "model.onnx"
    if not graph.is_file():
        # By its path: it needs nothing of the package that it lies in.
        runner: Model = run_path(str(Path(__file__).parents[1] / "engines" / "alone.py"))["Runner"](folder, threads=1)
        return runner
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    wanted = [one.name for one in session.get_inputs()]
    names = [one.name for one in session.get_outputs()]

    def model(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(None, {name: given[name] for name in wanted}), strict=True))

    return model


def run_cases(folder: Path, cases: Path) -> None:
    """Run model and tokenizer on the cases, and print what came out."""
    import tokenizers

    model = opened(folder)
    differences = [largest_difference(model, case) for case in sorted(cases.glob("*.npz"))]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = json.loads((cases / "texts.json").read_text(encoding="utf-8"))
    other = [text for text, ids in texts if tokenizer.encode(text).ids != ids]
    print(json.dumps({"largest_difference": max(differences), "batches": len(differences), "other_tokens": other}))


if __name__ == "__main__":
    alone()
    run_cases(Path(sys.argv[1]), Path(sys.argv[2]))
