"""What an exported model must show: the PyTorch model's outputs, in a process that has no PyTorch."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from bistil.errors import ArtefactError
from bistil.prediction.predictor import Predictor
from bistil.tasks.batches import TARGETS, Batch, Feature, as_array

TOLERANCE = 1e-4
"""Largest difference of an output of the float32 graph from the PyTorch model's."""
# Sizes of the batches, drawn over all lengths: alone, together with others, in the company of much longer ones.
BATCHES = (1, 1, 1, 2, 3, 8, 16)
# In one more batch, so many of 10 positions inside the sentences are masked too: not only the padding behind them.
HOLES = 2


@dataclass(frozen=True)
class Interface:
    """What goes into a model and comes out of it.

    Attributes:
        inputs: names of its inputs, each of int64, (batch, tokens) or (batch, words).
        outputs: name -> name of each dimension, "batch" first and "tokens" where it is that of the inputs.
    """

    inputs: list[str]
    outputs: dict[str, list[str]]


@dataclass(frozen=True)
class Windows:
    """What outputs are compared on.

    Attributes:
        features: encoded as the task does it.
        texts: for the tokenizer.
        source: where they come from, for the record.
    """

    features: Sequence[Feature]
    texts: Sequence[str]
    source: str


def why_it_failed(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process said of its end, or its exit code."""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def batches_of(predictor: Predictor, features: Sequence[Feature], *, holes: bool = True) -> list[Batch]:
    """Batches of several lengths, numbers of sequences and masks, always the same ones for the same windows.

    Args:
        holes: one of them with masks that have holes.
    """
    collate = predictor.task.collate(predictor.tokenizer, positions=predictor.engine.positions)
    by_length = sorted(range(len(features)), key=lambda i: (len(features[i]["input_ids"]), i))
    chosen = [[0], [len(features) // 2], [len(features) - 1]]
    chosen += [np.linspace(0, len(features) - 1, size).round().astype(int).tolist() for size in BATCHES[len(chosen) :]]
    found = [
        {name: values for name, values in collate([features[by_length[i]] for i in own]).items() if name not in TARGETS}
        for own in chosen
    ]
    if not holes:
        return found
    # Whatever the positions, the first token stays: none may be left that sees nothing.
    more = {name: values.clone() for name, values in found[-1].items()}
    draws = np.random.default_rng(0).random(tuple(more["attention_mask"].shape)) < HOLES / 10
    draws[:, 0] = False
    more["attention_mask"][draws] = 0
    return [*found, more]


def cases_of(interface: Interface, predictor: Predictor, batches: Sequence[Batch]) -> list[dict[str, np.ndarray]]:
    """Per batch the inputs, "in.NAME", and the PyTorch model's outputs, "out.NAME"; NaN where they do not count.

    Args:
        predictor: with the PyTorch model as its engine.
    """
    return [_case(interface, predictor, batch) for batch in batches]


def prove(
    folder: Path, cases: Sequence[Mapping[str, np.ndarray]], windows: Windows, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float | int | list[int] | str]:
    """Run the model and the tokenizer in `folder` in a fresh process without PyTorch, and compare.

    Args:
        folder: with what the engine opens and tokenizer.json.
        cases: as `cases_of`.
        tokenizer: the model's, whose tokens tokenizer.json must give by itself.

    Returns:
        For the record: "largest_difference", over all "batches" with "tokens" from the least to the most, and on what.

    Raises:
        ArtefactError: the process fails, or tokenizer.json alone gives other tokens.
    """
    with tempfile.TemporaryDirectory() as place:
        there = Path(place)
        for number, case in enumerate(cases):
            np.savez(there / f"{number}.npz", **case)  # type: ignore[arg-type]  # its own arguments have other names
        texts = [[text, _ids(tokenizer, text)] for text in windows.texts]
        (there / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        script = Path(__file__).with_name("fresh.py")
        # Isolated: neither PYTHONPATH nor the working folder leads to anything else.
        done = subprocess.run(
            [sys.executable, "-I", str(script), str(folder), str(there)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    if done.returncode != 0:
        raise ArtefactError(f"the exported model does not run in a process of its own: {why_it_failed(done)}")
    said = json.loads(done.stdout.splitlines()[-1])
    if said["other_tokens"]:
        raise ArtefactError(
            "tokenizer.json alone gives other tokens than the model's tokenizer, first of "
            f"{said['other_tokens'][0]!r:.80}"
        )
    lengths = [int(case["in.input_ids"].shape[1]) for case in cases]
    return {
        "largest_difference": float(said["largest_difference"]),
        "batches": len(cases),
        "tokens": [min(lengths), max(lengths)],
        "texts": len(texts),
        "windows": windows.source,
    }


def _case(interface: Interface, predictor: Predictor, batch: Batch) -> dict[str, np.ndarray]:
    """Inputs and outputs of a batch; outputs of masked tokens do not count."""
    found = predictor.engine(batch)
    arrays = {f"in.{name}": batch[name].numpy() for name in interface.inputs if name in batch}
    hidden = batch["attention_mask"].numpy() == 0
    for name, axes in interface.outputs.items():
        values = as_array(found[name]).copy()
        if axes[:2] == ["batch", "tokens"]:
            values[hidden] = np.nan
        arrays[f"out.{name}"] = values
    return arrays


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"]
    return ids
