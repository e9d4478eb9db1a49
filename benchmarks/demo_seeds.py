"""The demo over several seeds: mean and spread of every model's scores, as a Markdown table and one JSON line.

    for seed in 0 1 2; do bistil demo --output runs/demo-$seed --seed $seed; done
    python benchmarks/demo_seeds.py runs/demo-*/summary.json --record benchmarks/records/demo.json

A seed draws the English train, dev and test sets, the heads and the order of training. The Italian test set is fixed.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bistil.report.schema import ModelRecord, Summary, load_summary


def main() -> None:
    """Read the summaries, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summaries", type=Path, nargs="+")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    runs = [load_summary(path) for path in arguments.summaries]
    rows = {model.name: row(model.name, runs) for model in runs[0].models}
    source, target = runs[0].source, runs[0].target
    print(f"| model | parameters | bytes | {source} | {target} | gap to the teacher, {target} | times as fast |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, one in rows.items():
        size = f"{one['parameters'] / 1e6:.1f} M | {one['bytes'] / 1e6:.0f} MB" if one["parameters"] else "- | -"
        speed = f"{one['speed_ratio']['mean']:.2f}" if one["speed_ratio"] else "-"
        gap = spread(one["gap_to_teacher"], sign=True) if one["gap_to_teacher"] else "-"
        print(f"| {name} | {size} | {spread(one['source_score'])} | {spread(one['target_score'])} | {gap} | {speed} |")
    stages = {
        stage.name: [s.seconds for run in runs for s in run.stages if s.name == stage.name] for stage in runs[0].stages
    }
    record = {
        "seeds": [run.seed for run in runs],
        "metric": runs[0].models[0].metric,
        "models": rows,
        "stage_seconds": stages,
        "total_seconds": [sum(s.seconds or 0 for s in run.stages) for run in runs],
        "peak_memory_bytes": max(s.peak_memory_bytes or 0 for run in runs for s in run.stages),
        "versions": runs[0].versions,
        "machine": {name: runs[0].machine.get(name) for name in ("processor", "cores")},
    }
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"seeds": record["seeds"], "gaps": {k: v["gap_to_teacher"] for k, v in rows.items()}}))


def row(name: str, runs: list[Summary]) -> dict[str, Any]:
    """One model over all runs: sizes of the first, mean, spread and values of the rest."""
    models: list[ModelRecord] = [model for run in runs for model in run.models if model.name == name]
    kept: dict[str, Any] = {
        key: getattr(models[0], key) for key in ("parameters", "bytes", "vocabulary", "layers", "flops")
    }
    for key in ("source_score", "target_score", "gap_to_teacher", "speed_ratio"):
        values = [getattr(model, key) for model in models if getattr(model, key) is not None]
        kept[key] = (
            {"mean": mean(values), "stdev": stdev(values) if len(values) > 1 else 0.0, "values": values}
            if values
            else None
        )
    return kept


def spread(values: dict[str, float], *, sign: bool = False) -> str:
    """Mean and standard deviation over seeds, in points of percent."""
    return f"{100 * values['mean']:{'+' if sign else ''}.1f} ± {100 * values['stdev']:.1f}"


if __name__ == "__main__":
    main()
