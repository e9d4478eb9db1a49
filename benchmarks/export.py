"""Size and speed of exported models against a teacher in PyTorch float32: one thread, batch 1, 32 tokens.

    python benchmarks/export.py TEACHER FOLDER [FOLDER...]

Folders are models of transformers or exported ones, for any engine, all for one task. In every round each runs on the
same shape one after the other, and ratios are taken per round. The clock counts this process's processor time, so that
other work on the machine does not. The teacher runs twice: as transformers runs it, and through bistil's own engine,
which is faster; ratios are to the faster of the two.

The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bistil.engines import open_engine
from bistil.engines.alone import ENCODER, HEAD
from bistil.engines.onnx import GRAPH
from bistil.export.quantise import PARTS
from bistil.measuring.benchmark import load_for_inference, machine
from bistil.models.exported import exported_record
from bistil.models.families import family_of
from bistil.models.loading import read_config
from bistil.runtime.insides import has_vnni
from bistil.tasks import get_task, kind_of

MODEL = f"{ENCODER}/model.bin"


def milliseconds(call: Callable[[], Any], times: int) -> float:
    """Median processor time of a call."""
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(1000 * (time.process_time() - start))
    return statistics.median(found)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the folder, of its tokenizer, and of the token table and all else of an exported model's weights."""
    names = [one for one in folder.rglob("*") if one.is_file()]
    files = {one.relative_to(folder).as_posix(): one.stat().st_size for one in names}
    found = {"folder": sum(files.values()), "tokenizer": files["tokenizer.json"]}
    if GRAPH in files:
        import onnx

        graph = onnx.load(folder / GRAPH).graph
        weights = {one.name: onnx.numpy_helper.to_array(one).nbytes for one in graph.initializer}
        # Of a float32 table the name is the parameter's own.
        marks = ("word_embeddings.weight", "tok_embeddings.weight")
        words = sum(size for name, size in weights.items() if name.removesuffix(_part(name)).endswith(marks))
        found |= {"token_table": words, "rest_of_graph": files[GRAPH] - words}
    elif MODEL in files:
        config, record = read_config(folder), exported_record(folder) or {}
        # A row of int8 has a scale.
        row = (
            family_of(config).width(config) + 4
            if record["embeddings"] == "int8"
            else 4 * family_of(config).width(config)
        )
        words = config.vocab_size * row
        found |= {"token_table": words, "rest_of_graph": files[MODEL] + files[HEAD] - words}
    return found


def _part(name: str) -> str:
    return next((part for part in PARTS if name.endswith(part)), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--times", type=int, default=15, help="runs of each model in a round")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws = np.random.default_rng(0)

    def inputs(folder: Path) -> dict[str, torch.Tensor]:
        rows = read_config(folder).vocab_size
        ids = torch.from_numpy(draws.integers(min(10, rows - 1), rows, (1, options.tokens)))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def engine(folder: Path) -> Callable[[], Any]:
        task = get_task(kind_of(read_config(folder), str(folder)))
        opened, given = open_engine(folder, task, device="cpu", threads=1), inputs(folder)
        return lambda: opened(given)

    plain, given = load_for_inference(options.teacher), inputs(options.teacher)

    def teacher() -> None:
        with torch.inference_mode():
            plain(**given)

    calls = {"teacher": teacher, "teacher, own engine": engine(options.teacher)}
    calls |= {str(folder): engine(folder) for folder in options.folders}
    for call in calls.values():
        milliseconds(call, 5)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(options.rounds):
        for name, call in calls.items():
            times[name].append(milliseconds(call, options.times))
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {own[-1]:.2f} ms" for name, own in times.items()), flush=True
        )
    fastest = [min(both) for both in zip(times["teacher"], times["teacher, own engine"], strict=True)]
    whole = sizes(options.teacher)
    record = {
        "machine": {**machine(), "vnni": has_vnni()},
        "threads": 1,
        "clock": "cpu",
        "tokens": options.tokens,
        "rounds": options.rounds,
        "teacher": {
            "bytes": whole,
            "milliseconds": statistics.median(times["teacher"]),
            "own_engine_milliseconds": statistics.median(times["teacher, own engine"]),
        },
        "models": {},
    }
    for folder in options.folders:
        ratios = [theirs / ours for theirs, ours in zip(fastest, times[str(folder)], strict=True)]
        own = sizes(folder)
        exported = exported_record(folder) or {}
        record["models"][folder.name] = {
            "engine": exported.get("engine", "torch"),
            "precision": exported.get("precision", "float32"),
            "bytes": own,
            "teacher_over_bytes": round(whole["folder"] / own["folder"], 1),
            "milliseconds": round(statistics.median(times[str(folder)]), 3),
            "times_as_fast": round(statistics.median(ratios), 2),
            "times_as_fast_range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
