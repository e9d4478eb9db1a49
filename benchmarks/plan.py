"""Does a plan hold? What a finished run's folder says it took, beside what the plan would have said.

    python benchmarks/plan.py runs/demo runs/ner-en-sw --rates /tmp/rates.json

For each folder that `bistil run` made: per stage seconds and peak memory as they were and as they are foretold on this
machine now, without the stages' own corrections (`--rates` names a file that is not there yet), and their ratios. The
last line is one JSON object. A plan should be off by at most a third in all. Run it where the runs were made, on an
otherwise idle machine, with as many threads.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bistil.method import plan_recipe
from bistil.runs.forecast import Forecaster
from bistil.runs.inputs import check_inputs
from bistil.runs.rates import Rates
from bistil.runtime.artefacts import read_json, read_sealed
from bistil.settings.parsing import typed
from bistil.settings.recipe import Recipe

TOLERATED = 1 / 3


def compared(folder: Path, rates: Rates) -> dict[str, Any]:
    """Per stage of a run what it took and what was foretold; and in all."""
    recipe = typed(Recipe, read_json(folder / "recipe.json"))
    plan = plan_recipe(recipe, check_inputs(recipe))
    foretold = {one.name: one for one in Forecaster(names=plan.names, rates=rates).forecast(plan.stages()).stages}
    # By their names: a later version may give stages other keys.
    records = {one["name"]: one for one in map(read_sealed, sorted((folder / "stages").glob("*.json")))}
    rows: list[dict[str, Any]] = [
        {
            "stage": name,
            "seconds": records[name]["seconds"],
            "foretold": guess.seconds,
            "memory": records[name]["peak_memory_bytes"] / 2**30,
            "foretold_memory": guess.memory / 2**30,
        }
        for name, guess in foretold.items()
        if name in records
    ]
    total = {
        "stage": "all",
        **{name: sum(row[name] for row in rows) for name in ("seconds", "foretold")},
        **{name: max(row[name] for row in rows) for name in ("memory", "foretold_memory")},
    }
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    disk = sum(one.disk for one in foretold.values())
    return {"run": folder.name, "stages": [*rows, total], "disk": written / 2**30, "foretold_disk": disk / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that bistil run made")
    parser.add_argument("--rates", type=Path, help="file of rates; default: this machine's")
    options = parser.parse_args()
    rates, found = Rates(options.rates), []
    for folder in options.runs:
        one = compared(folder, rates)
        found.append(one)
        print(f"\n{one['run']}: {one['disk']:.2f} GiB on disk, foretold {one['foretold_disk']:.2f}\n")
        print("| stage | seconds | foretold | ratio | GiB | foretold | ratio |\n| --- |" + " --- |" * 6)
        for row in one["stages"]:
            ratios = [row["foretold"] / max(row["seconds"], 1e-9), row["foretold_memory"] / max(row["memory"], 1e-9)]
            print(f"| {row['stage']} | {row['seconds']:.1f} | {row['foretold']:.1f} | {ratios[0]:.2f} | "
                  f"{row['memory']:.2f} | {row['foretold_memory']:.2f} | {ratios[1]:.2f} |")  # fmt: skip
        whole = one["stages"][-1]
        ratio = whole["foretold"] / max(whole["seconds"], 1e-9)
        print(f"\n{'holds' if abs(ratio - 1) <= TOLERATED else 'does not hold'}: {ratio:.2f} of the time it took")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
