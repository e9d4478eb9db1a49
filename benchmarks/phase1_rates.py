"""Which peak learning rate phase 1 wants under each system's losses, by its own held-out loss, before and after.

    python benchmarks/phase1_rates.py --teacher HEADED --text eng=eng.txt --text swa=swa.txt --record rates.jsonl \\
        --system distilmbert --system scratch --rate 1e-4 --rate 5e-4 --steps 40

A study has one rate of phase 1 for all systems, chosen for the paper's losses; a system that ends above its start under
it needs another (`phase1_learning_rate`). The teacher is a trimmed one with a masked-LM head, as a study makes it
(`made/masked-lm-head-*` in its folder) or `bistil adapt` writes it. A row of the record is a system at a rate.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from bistil.commands.options import pairs
from bistil.distillation.general import distill_general
from bistil.measuring.benchmark import machine
from bistil.settings.recipe import Phase1Settings, StudentSettings, TrainingSettings
from bistil.settings.study import PRESETS


def main() -> None:
    """Add a row per system and rate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True, help="folder of a model with a masked-LM head")
    parser.add_argument("--text", action="append", required=True, metavar="LANGUAGE=FILE")
    parser.add_argument("--system", action="append", required=True, choices=list(PRESETS))
    parser.add_argument("--rate", action="append", type=float, required=True)
    parser.add_argument("--start", choices=("copy", "random", "scratch"), help="instead of the system's own")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    texts = {language: [Path(file)] for language, file in pairs(options.text, "--text", "LANGUAGE=FILE")}
    training = TrainingSettings(steps=options.steps, batch_size=16, evaluate_steps=max(1, options.steps // 2))
    for system in options.system:
        for rate in options.rate:
            variant = replace(PRESETS[system], phase1_learning_rate=rate)
            if options.start:
                variant = replace(variant, start=options.start)
            settings = variant.phase1_settings(Phase1Settings(block_length=128, held_out_blocks=64, training=training))
            with tempfile.TemporaryDirectory() as folder:
                distill_general(
                    options.teacher,
                    [variant.student(StudentSettings(name="lrf2", reduction=2))],
                    texts,
                    Path(folder) / "students",
                    settings=settings,
                    seed=0,
                    work=Path(folder) / "work",
                )
                report = json.loads((Path(folder) / "students/phase1.json").read_text(encoding="utf-8"))
            held_out = report["students"]["lrf2"]["held_out"]
            row = {
                "system": system,
                "start": variant.start or "copy",
                "rate": rate,
                "steps": options.steps,
                "tokens": report["tokens"],
                "seconds": report["seconds"],
                "before": held_out["start"],
                "after": held_out["end"],
                "masked_lm": report.get("held_out_masked_lm"),
                "languages": list(texts),
                "machine": machine(),
            }
            with options.record.open("a", encoding="utf-8") as record:
                record.write(json.dumps(row) + "\n")
            print(f"{system}, {rate:g}: {held_out['start']['loss']:.4g} -> {held_out['end']['loss']:.4g}", flush=True)


if __name__ == "__main__":
    main()
