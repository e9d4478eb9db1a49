"""Tokens per second of phase-1 training on one CPU machine: two threads, one thread, and two processes of one thread.

    python benchmarks/scaling.py                    # demo size: 12 x 384, vocabulary 24,000, batch 8 x 256
    python benchmarks/scaling.py --size tiny --steps 2 --rounds 1 --record benchmarks/records/NAME.json

Each runs `training.loop.train` on a `Distiller` (random weights and tokens, LRF 2, attention + hidden, float32) in a
process of its own, on the same global batches; the two processes are started by torchrun and talk over gloo. The rate
is that of the steps after the first, median over rounds in which the three take turns. Every run reports the loss of
its last step: they are to be equal but for rounding.

The last line is one JSON object; scaling_efficiency is the two processes' rate over twice that of one process with one
thread.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from phase1_step import SIZES, Size, models

OWN_SIZES = ("demo", "tiny")

# name: processes, threads of each
RUNS = {"one_process_two_threads": (1, 2), "one_process_one_thread": (1, 1), "two_processes_one_thread": (2, 1)}
LANGUAGES = ("en", "sw")


def work(size: Size, steps: int, folder: Path) -> None:
    """Train; every process of a run does this. The main one leaves result.json in the folder."""
    from bistil.runtime.memory import return_freed_memory

    return_freed_memory(size["hidden"])
    import numpy as np
    import torch

    from bistil.distillation.general import _freeze
    from bistil.distillation.module import Distiller
    from bistil.settings.recipe import ObjectiveSettings, TrainingSettings
    from bistil.text.schedule import language_schedule
    from bistil.training.loop import processes, train

    teacher, student = models(size, "BertModel")
    module = Distiller(teacher, {"s": student}, objectives={"s": ObjectiveSettings()})

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.from_numpy(np.stack([row["input_ids"] for row in rows]))
        return {"input_ids": ids, "language": rows[0]["language"]}

    generator = np.random.default_rng(0)
    count = steps * size["batch"]
    shape = (count, size["tokens"])
    blocks = {
        name: [{"input_ids": row} for row in generator.integers(5, size["vocabulary"], shape)] for name in LANGUAGES
    }
    indices = {name: np.arange(count) for name in LANGUAGES}
    schedule = language_schedule(blocks, indices, steps=steps, batch_size=size["batch"], seed=0)
    _freeze(module, collate, schedule[0], embeddings=False)
    settings = TrainingSettings(steps=steps, batch_size=size["batch"], checkpoint_steps=steps + 1, log_steps=1)
    train(module, schedule, collate=collate, settings=settings, folder=folder / "training", seed=0)
    if processes().is_main_process:
        log = (folder / "training" / "train_log.jsonl").read_text().splitlines()
        lines = [line for line in map(json.loads, log) if "loss" in line]
        first, last = lines[0], lines[-1]
        result = {
            "tokens_per_second": (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"]),
            "loss": last["loss"],
            "processes": processes().num_processes,
            "threads": torch.get_num_threads(),
        }
        (folder / "result.json").write_text(json.dumps(result))


def launch(name: str, *, size: str, steps: int) -> dict[str, Any]:
    """One run in processes of its own; its result."""
    count, threads = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        own = [__file__, "--size", size, "--steps", str(steps), "--work", folder]
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        subprocess.run(
            [sys.executable, *(torchrun if count > 1 else []), *own],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""},
            check=True,
            capture_output=True,
            text=True,
        )
        result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    assert (result["processes"], result["threads"]) == (count, threads), result
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="demo", choices=OWN_SIZES)
    parser.add_argument("--steps", type=int, default=8, help="steps of each run; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="also write the JSON here")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be 2 or more: the first is not counted")
    if options.work:
        work(SIZES[options.size], options.steps, options.work)
        return
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    for number in range(options.rounds):
        for name in RUNS:
            results[name].append(launch(name, size=options.size, steps=options.steps))
            rate = results[name][-1]["tokens_per_second"]
            print(f"round {number + 1}, {name.replace('_', ' ')}: {rate:,.0f} tokens/s", flush=True)
    rates = {name: statistics.median(one["tokens_per_second"] for one in found) for name, found in results.items()}
    single = rates["one_process_one_thread"]
    record = {
        "size": options.size,
        **SIZES[options.size],
        "steps": options.steps,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "scaling_efficiency": round(rates["two_processes_one_thread"] / (2 * single), 3),
        "thread_efficiency": round(rates["one_process_two_threads"] / (2 * single), 3),
        "processes_over_threads": round(rates["two_processes_one_thread"] / rates["one_process_two_threads"], 3),
        "loss": {name: found[0]["loss"] for name, found in results.items()},
    }
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
