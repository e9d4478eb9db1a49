"""Held-out loss against tokens seen: copied start at reduction 2 and 3, and random layers at reduction 2.

    python benchmarks/learning_curves.py --text en=eng.txt --text sw=swa.txt --output runs/curves

The teacher is e5-small, its vocabulary trimmed to the text. All students learn from one teacher pass, so that every
batch is the same for all. Goes on where it stopped. Leaves curves.json and curves.svg in the output folder; the last
line is one JSON object with each curve's end point.
"""

import argparse
import json
from pathlib import Path
from typing import Any

NAMES = {"copied2": "copied, reduction 2", "copied3": "copied, reduction 3", "random2": "random layers, reduction 2"}


Curves = dict[str, list[tuple[int, float]]]


def curves(report: dict[str, Any], tokens_per_step: int) -> Curves:
    """Per student (tokens, mean over languages of attention + hidden) from the start."""
    found = {}
    for name, student in report["students"].items():
        points = [(0, student["held_out"]["start"]["loss"])]
        points += [(int(entry["step"] * tokens_per_step), entry[f"{name}/loss"]) for entry in report["history"]]
        found[name] = points
    return found


def draw(found: Curves, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8))
    for name, points in found.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=NAMES[name])
    axes.set(xlabel="tokens seen", ylabel="held-out attention + hidden loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    from bistil.distillation.general import distill_general
    from bistil.pretrained import e5_small_folder
    from bistil.settings.recipe import Phase1Settings, StudentSettings, TrainingSettings
    from bistil.vocabulary import trim_vocabulary

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", action="append", required=True, help="LANGUAGE=FILE")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--evaluate-steps", type=int, default=50)
    options = parser.parse_args()
    texts = {language: [Path(file)] for language, _, file in (pair.partition("=") for pair in options.text)}
    teacher = options.output / "trimmed"
    if not teacher.exists():
        trim_vocabulary(e5_small_folder(), texts, teacher, verify=False)
    settings = Phase1Settings(
        block_length=128,
        held_out_blocks=32,
        training=TrainingSettings(
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=5e-4,
            evaluate_steps=options.evaluate_steps,
            checkpoint_steps=50,
        ),
    )
    students = [
        StudentSettings(name="copied2", reduction=2),
        StudentSettings(name="copied3", reduction=3),
        StudentSettings(name="random2", reduction=2, start="random"),
    ]
    report = distill_general(
        teacher,
        students,
        texts,
        options.output / "students",
        settings=settings,
        seed=0,
        work=options.output / "work",
        replace=True,
    )
    found = curves(report, options.batch_size * settings.block_length)
    draw(found, options.output / "curves.svg")
    result = {
        "tokens": report["tokens"],
        "tokens_per_second": report["tokens_per_second"],
        "curves": found,
        "held_out": {name: student["held_out"] for name, student in report["students"].items()},
    }
    (options.output / "curves.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: {"start": points[0][1], "end": points[-1][1]} for name, points in found.items()}))


if __name__ == "__main__":
    main()
