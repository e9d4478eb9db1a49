"""What another number of threads changes in what is made: bytes, losses, weights, scores.

    python benchmarks/threads.py --record benchmarks/records/threads.json

A shortened demo (one student) is run four times in fresh processes: twice with one thread and twice with two, with the
same seed. Equal threads must give equal bytes of every weight file; how far the results of one and of two threads are
apart is what the table says. Give --precision float32 and bf16 where the processor has both. Nothing here is timed.

The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from bistil.demo.run import demo_recipe
from bistil.measuring.benchmark import machine
from bistil.pretrained import cache_folder

# One student and no copy of it, and a short way.
SHORT = {
    "phase1.training.steps": "60",
    "phase1.training.evaluate_steps": "30",
    "finetune.sparse.dense_epochs": "2",
    "finetune.sparse.sparse_epochs": "2",
    "phase2.sparse.dense_epochs": "1",
    "phase2.sparse.sparse_epochs": "2",
    "students": '[{name = "lrf2", reduction = 2}]',
    "compare.copied": "false",
}
RUNS = {"one": 1, "one, again": 1, "two": 2, "two, again": 2}


def weights(run: Path) -> dict[str, Path]:
    """Weight files of models, by their place in the run."""
    return {
        str(path.relative_to(run)): path
        for path in sorted(run.rglob("*.safetensors"))
        if "work" not in path.relative_to(run).parts
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return sha256(path.read_bytes()).hexdigest()


def distance(a: Path, b: Path) -> float | None:
    """Euclidean distance of two files' tensors, relative to the first's size.

    None: a sparse fine-tuning has other entries, or the file holds whole numbers alone.
    """
    one, other = load_file(a), load_file(b)
    if any(one[name].shape != other[name].shape for name in one):
        return None
    apart = sum(float((one[n].double() - other[n].double()).square().sum()) for n in one if one[n].is_floating_point())
    whole = sum(float(one[n].double().square().sum()) for n in one if one[n].is_floating_point())
    return float((apart / whole) ** 0.5) if whole else None


def losses(run: Path) -> list[float]:
    """Of phase 1's training, in the order of its log."""
    lines = (run / "phase1" / "record" / "train_log.jsonl").read_text().splitlines()
    return [one["loss"] for line in lines if "loss" in (one := json.loads(line))]


def scores(run: Path) -> dict[str, dict[str, float | None]]:
    """Per model the scores of source and target."""
    models = json.loads((run / "summary.json").read_text())["models"]
    return {one["name"]: {key: one[key] for key in ("source_score", "target_score")} for one in models}


def compare(folder: Path, precision: str) -> dict[str, Any]:
    """Run four times and compare."""
    recipe = cache_folder() / "demo" / "seed-0" / "recipe.toml"
    for name, threads in RUNS.items():
        command = [sys.executable, "-m", "bistil", "run", str(recipe), "--output", str(folder / name)]
        for key, value in SHORT.items():
            command += ["--set", f"{key}={value}"]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "BISTIL_PRECISION": precision,
            "BISTIL_RATES": str(folder / "rates.json"),
        }
        subprocess.run(command, env=environment, check=True)
    files = {name: {place: digest(path) for place, path in weights(folder / name).items()} for name in RUNS}
    one, two = folder / "one", folder / "two"
    pairs = list(zip(losses(one), losses(two), strict=True))
    result = {
        "weight_files": len(files["one"]),
        "equal_with_equal_threads": files["one"] == files["one, again"] and files["two"] == files["two, again"],
        "equal_with_other_threads": sum(files["one"][place] == files["two"][place] for place in files["one"]),
        "phase1_loss_apart": {
            "first": abs(pairs[0][0] - pairs[0][1]) / pairs[0][0],
            "most": max(abs(a - b) / a for a, b in pairs),
        },
        "weights_apart": {place: distance(path, two / place) for place, path in weights(one).items()},
        "scores": {name: {"one": scores(one)[name], "two": scores(two)[name]} for name in scores(one)},
    }
    print(precision, json.dumps(result, indent=1), flush=True)
    return result


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=["float32", "bf16"])
    parser.add_argument("--record", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    demo_recipe(seed=0)
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for precision in options.precision:
            results[precision] = compare(Path(folder) / precision, precision)
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
