"""Time of one fine-tuning step on short texts, in bf16 against float32, as ratios from one run.

    python benchmarks/task_step.py                         # demo size, 16 texts of up to 64 and 128 tokens, one thread
    python benchmarks/task_step.py --sizes mbert --steps 3 --record benchmarks/records/NAME.json

Two steps, as training runs them: that of a task teacher (all layers, dense, from labels) and that of a student from a
task teacher (phase 2: attention, hidden states and predictions). Texts are padded, as tasks pad them. Each runs in
three processes that take turns: float32 with PyTorch's own linear maps, float32 as training has it, and bf16. The clock
is processor time of one thread, so that other work on the machine disturbs little; medians are over steps.

The last line is one JSON object: per size, length and step seconds, and the ratios to the first process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phase1_step import SIZES, Size, ask, models, pipes

STEPS = ("teacher", "student")
# name: precision, and whether linear maps are `fast_linear`'s
WAYS = {"plain": ("float32", False), "float32": ("float32", True), "bf16": ("bf16", True)}


def batch(size: Size) -> dict[str, Any]:
    """Texts of between half and all of the tokens, with two labels."""
    import torch

    rows, tokens = size["batch"], size["tokens"]
    ids = torch.randint(5, size["vocabulary"], (rows, tokens))
    lengths = torch.randint(tokens // 2, tokens + 1, (rows, 1))
    lengths[0] = tokens
    mask = (torch.arange(tokens) < lengths).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask > 0, ids % 2, -100)}


def step_of(kind: str, size: Size, *, precision: str, fast: bool) -> Callable[[], float]:
    """The step as a function."""
    import torch

    from bistil.distillation.module import Distiller
    from bistil.distillation.task import SelfTaught
    from bistil.settings.recipe import ObjectiveSettings
    from bistil.tasks import get_task

    teacher, student = models(size, "BertForTokenClassification")
    module: Any
    if kind == "teacher":
        module = SelfTaught(teacher.requires_grad_(True).train(), fast=fast)
    else:
        module = Distiller(
            teacher,
            {"s": student},
            objectives={"s": ObjectiveSettings(prediction=1.0)},
            prediction_pairs=get_task("token-classification").prediction_pairs,
            fast=fast,
        )
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    torch.manual_seed(0)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = module(**batch(size))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def work(kind: str, way: str, size: Size) -> None:
    """A process that does one step per line on standard input and answers with one line of JSON."""
    import torch

    torch.set_num_threads(1)
    precision, fast = WAYS[way]
    act = step_of(kind, size, precision=precision, fast=fast)
    act()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        loss = act()
        print(json.dumps({"seconds": time.process_time() - start, "loss": loss}), flush=True)


def compare(kind: str, name: str, *, tokens: int, rows: int, steps: int) -> dict[str, Any]:
    processes = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--work", kind, way, "--sizes", name]
        command += ["--tokens", str(tokens), "--rows", str(rows)]
        processes[way] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert json.loads(pipes(processes[way])[1].readline())["ready"]
    answers: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(steps):
        for way, process in processes.items():
            answers[way].append(ask(process))
    for process in processes.values():
        pipes(process)[0].close()
        process.wait()
    seconds = {way: statistics.median(one["seconds"] for one in answers[way]) for way in WAYS}
    result = {
        "seconds": {way: round(value, 3) for way, value in seconds.items()},
        "ratio": {way: round(seconds["plain"] / value, 2) for way, value in seconds.items() if way != "plain"},
        "last_loss": {way: round(answers[way][-1]["loss"], 5) for way in WAYS},
    }
    print(f"{name}, {rows} x {tokens}, {kind}: {result}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["demo"], choices=list(SIZES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--record", type=Path, help="also write the JSON here")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {
        f"{name}-{tokens}": {**SIZES[name], "batch": options.rows, "tokens": tokens}
        for name in options.sizes
        for tokens in options.tokens
    }
    if options.work:
        kind, way = options.work
        work(kind, way, next(iter(sizes.values())))
        return
    from bistil.measuring.benchmark import machine

    results: dict[str, Any] = {"threads": 1, "clock": "cpu", "rows": options.rows, "machine": machine()}
    for name in options.sizes:
        for tokens in options.tokens:
            results[f"{name}-{tokens}"] = {
                kind: compare(kind, name, tokens=tokens, rows=options.rows, steps=options.steps) for kind in STEPS
            }
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
