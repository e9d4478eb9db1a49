"""What a few labels of the target are worth: 0, 50, 200 and 1,000 of them, student against fine-tuned teacher.

    python benchmarks/few_labels.py --data DATA --output runs/few-labels --dry-run
    python benchmarks/few_labels.py --data DATA --output runs/few-labels --language swa --seed 0
    python benchmarks/few_labels.py --output runs/few-labels --table

MasakhaNER (Swahili, Hausa) beside 2,000 sentences of CoNLL-2003, three seeds. Teacher and student learn from the labels
of both languages together (`[task.sources]`, as in recipes/ner-few-labels.toml); the English dev set chooses. A smaller
draw of target sentences is part of a larger one, and a seed draws its own. The runs of a language and a seed share a
folder, so that trimming and phase 1 are made once. A row is written as it is finished; the same command goes on where
it stopped.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bistil.distillation.task_data import some
from bistil.method import forecast_recipe, run_recipe
from bistil.report.numbers import spread_text
from bistil.runtime.process import prepare_process
from bistil.settings.durations import rough_duration
from bistil.settings.recipe import Recipe, load_recipe

LANGUAGES, LABELS, SEEDS = ("swa", "hau"), (0, 50, 200, 1000), (0, 1, 2)
SOURCE_SENTENCES = 2000
RECIPE = """
name = "few-labels"
teacher = "e5-small"
source = "eng"
target = "{language}"
seed = {seed}
text = {{ eng = "{data}/text/eng.txt", {language} = "{data}/text/{language}.txt" }}

[phase1.training]
steps = 200
batch_size = 16
learning_rate = 5e-4
evaluate_steps = 100

[task]
kind = "token-classification"
preset = "short"
sources = {{ {sources} }}
dev = "{data}/ner/eng/dev.txt"
test = {{ {language} = "{data}/ner/{language}/test.txt" }}
label_map = {{ B-MISC = "O", I-MISC = "O", B-DATE = "O", I-DATE = "O" }}

# As the preset was when the curve was measured.
[phase2.training]
least_steps = 300

[compare]
copied = false
majority = false
"""


@dataclass(frozen=True)
class Point:
    """One run of the curve."""

    language: str
    seed: int
    labels: int

    def folder(self, output: Path) -> Path:
        """Of its run; points that differ in labels alone share it."""
        return output / f"{self.language}-{self.seed}"


def main() -> None:
    """Fill the curve's missing rows, say what they would take, or print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with ner/ and text/")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--language", action="append", choices=LANGUAGES, help="only these")
    parser.add_argument("--labels", action="append", type=int, help="only so many labelled target sentences")
    parser.add_argument("--seed", action="append", type=int, help="only these")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take")
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    rows = options.output / "rows.jsonl"
    if not options.table:
        if options.data is None:
            parser.error("--data is missing")
        wanted = [
            Point(language, seed, labels)
            for language in options.language or LANGUAGES
            for seed in options.seed or SEEDS
            for labels in options.labels or LABELS
        ]
        recipes = {one: recipe_of(one, options.data.resolve(), options.output, options.set) for one in wanted}
        if options.dry_run:
            print(forecast(recipes, options.output))
            return
        prepare_process()  # progress, and signals that leave checkpoints
        for point, recipe in recipes.items():
            fill(point, recipe, options.output, rows)
    print("\n".join(table(read_rows(rows))))


def recipe_of(point: Point, data: Path, output: Path, assignments: list[str]) -> Recipe:
    """The recipe of a point; writes the labelled sentences that it learns from."""
    files = {"eng": drawn(data / "ner/eng/train.txt", SOURCE_SENTENCES, 0, output / "data")}
    if point.labels:
        train = data / f"ner/{point.language}/train.txt"
        files[point.language] = drawn(train, point.labels, point.seed, output / "data")
    sources = ", ".join(f'{language} = "{path}"' for language, path in files.items())
    path = output / "data" / f"{point.language}-{point.seed}-{point.labels}.toml"
    path.write_text(RECIPE.format(**vars(point), data=data, sources=sources), encoding="utf-8")
    return load_recipe(path, assignments=assignments)


def drawn(file: Path, count: int, seed: int, folder: Path) -> Path:
    """So many sentences of CoNLL columns as a file of their own, in their order; all where there are no more."""
    sentences = [one for one in file.read_text(encoding="utf-8").split("\n\n") if one.strip()]
    folder.mkdir(parents=True, exist_ok=True)
    target = (folder / f"{file.parent.name}-{count}-{seed}.conll").resolve()
    target.write_text(
        "\n\n".join(one.strip("\n") for one in some(sentences, count, seed=seed)) + "\n", encoding="utf-8"
    )
    return target


def fill(point: Point, recipe: Recipe, output: Path, rows: Path) -> None:
    """Make a point and write its row, unless it is there."""
    done = {(row["language"], row["seed"], row["labels"]) for row in read_rows(rows)}
    if (point.language, point.seed, point.labels) in done:
        return
    summary = run_recipe(recipe, point.folder(output))
    models = {
        model.name: {
            name: getattr(model, name)
            for name in ("target_score", "target_interval", "gap_to_teacher", "gap_interval", "parameters")
        }
        for model in summary.models
    }
    row = {**vars(point), "models": models, "versions": summary.versions, "machine": summary.machine}
    with rows.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def forecast(recipes: dict[Point, Recipe], output: Path) -> str:
    """What all points take, each stage once: as a table by language and seed."""
    lines, everything = ["| run | stages | steps | time |", "| --- | --- | --- | --- |"], 0.0
    for folder in dict.fromkeys(point.folder(output) for point in recipes):
        found: dict[str, Any] = {}
        for point, recipe in recipes.items():
            if point.folder(output) == folder:
                found |= {one.key: one for one in forecast_recipe(recipe, folder).to_do}
        steps, seconds = (sum(getattr(one, name) for one in found.values()) for name in ("steps", "seconds"))
        everything += seconds
        lines.append(f"| {folder.name} | {len(found)} | {steps:,} | {rough_duration(seconds)} |")
    return "\n".join([*lines, f"| all | | | {rough_duration(everything)} |"])


def read_rows(rows: Path) -> list[dict[str, Any]]:
    """The rows that are there."""
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()] if rows.exists() else []


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The curve as a Markdown table: mean and standard deviation over seeds."""
    yield "| language | target labels | seeds | fine-tuned teacher | student | gap to the teacher |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for language, labels in sorted({(row["language"], row["labels"]) for row in rows}):
        own = [row["models"] for row in rows if (row["language"], row["labels"]) == (language, labels)]
        scores = ([100 * one[name]["target_score"] for one in own] for name in ("teacher", "lrf2"))
        gaps = [100 * one["lrf2"]["gap_to_teacher"] for one in own]
        cells = [*map(spread_text, scores), spread_text(gaps, "+.1f")]
        yield f"| {language} | {labels:,} | {len(own)} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
