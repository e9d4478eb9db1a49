"""How long a task teacher must be trained on few labelled examples: dev scores against optimizer steps.

    python benchmarks/short_lengths.py --data DATA --output runs/short-lengths
    python benchmarks/short_lengths.py --output runs/short-lengths --table

The model is e5-small, its vocabulary trimmed to English and Swahili, trained densely with the `short` preset's rate,
batch and warm-up. Scored on dev sets alone; test sets are not read. A row is written as it is finished, with processor
and threads, and the same command goes on where it stopped. The rule of `short` (docs/recipe.md) comes from this table.
"""

import argparse
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bistil.distillation.task import Fitting
from bistil.distillation.task_data import TaskData, read_task_data
from bistil.distillation.task_folders import TaskOutputs, write_task_teacher
from bistil.measuring.benchmark import machine
from bistil.measuring.evaluation import measure
from bistil.pretrained import e5_small_folder
from bistil.settings.recipe import FinetuneSettings, Kind, TaskSettings, task_preset
from bistil.vocabulary import trim_vocabulary

MASKED = {"B-MISC": "O", "I-MISC": "O", "B-DATE": "O", "I-DATE": "O"}
DEV_EXAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A small labelled set: how many of its first examples are learnt from, and for how many steps."""

    kind: Kind
    train: str
    dev: str
    target_dev: str
    examples: int
    """The first ones of `train`; where `dev` is the same file, the rest of it is the dev set."""
    steps: tuple[int, ...]


SETTINGS = {
    "topics": Setting(
        kind="sequence-classification",
        train="topics/sib200/eng_Latn/train.tsv",
        dev="topics/sib200/eng_Latn/dev.tsv",
        target_dev="topics/sib200/swh_Latn/dev.tsv",
        examples=701,
        steps=(44, 150, 300, 600),
    ),
    "entities": Setting(
        kind="token-classification",
        train="ner/eng/train.txt",
        dev="ner/eng/dev.txt",
        target_dev="ner/swa/dev.txt",
        examples=500,
        steps=(63, 150, 300, 600),
    ),
    "intents": Setting(
        kind="sequence-classification",
        train="intents/injongo/eng/train.tsv",
        dev="intents/injongo/eng/train.tsv",
        target_dev="intents/injongo/swa/dev.tsv",
        examples=500,
        steps=(32, 150, 300, 600),
    ),
    "entities, 5,000": Setting(
        kind="token-classification",
        train="ner/eng/train.txt",
        dev="ner/eng/dev.txt",
        target_dev="ner/swa/dev.txt",
        examples=5000,
        steps=(313, 625, 1250),
    ),
}


def main() -> None:
    """Fill the table's missing rows, or print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with topics/, ner/ and text/")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--setting", action="append", choices=list(SETTINGS), help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    rows = options.output / "rows.jsonl"
    if not options.table:
        if options.data is None:
            parser.error("--data is missing")
        fill(rows, options.data, options.output, names=options.setting or list(SETTINGS), seed=options.seed)
    print_table(read_rows(rows))


def fill(rows: Path, data: Path, output: Path, *, names: list[str], seed: int) -> None:
    """Train and score each (setting, steps) that has no row yet."""
    trimmed = output / "trimmed"
    if not trimmed.exists():
        trim_vocabulary(e5_small_folder(), {one: [data / f"text/{one}.txt"] for one in ("eng", "swa")}, trimmed)
    for name in names:
        setting = SETTINGS[name]
        done = {(row["setting"], row["steps"], row["seed"]) for row in read_rows(rows)}
        for steps in setting.steps:
            if (name, steps, seed) not in done:
                row = train_and_score(setting, data, output, trimmed=trimmed, steps=steps, seed=seed)
                with rows.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"setting": name, **row}) + "\n")


def train_and_score(
    setting: Setting, data: Path, output: Path, *, trimmed: Path, steps: int, seed: int
) -> dict[str, object]:
    """One row: scores in percent on the source's and the target's dev set."""
    preset = task_preset("short", setting.kind)
    label_map = MASKED if setting.kind == "token-classification" else {}
    task = TaskSettings(
        kind=setting.kind,
        train=[str(data / setting.train)],
        dev=[str(data / setting.dev)],
        max_length=preset.max_length,
        label_map=label_map,
    )
    found = read_task_data(task, quiet=True)
    dev = found.dev[setting.examples :] if setting.dev == setting.train else found.dev
    labels = found.labels
    few = TaskData(task=found.task, labels=labels, train=found.train[: setting.examples], dev=[], test={})
    training = replace(preset.finetune.training, epochs=None, steps=steps)
    model, work = output / "model", output / "work"
    shutil.rmtree(model, ignore_errors=True)
    how = Fitting(
        data=few,
        settings=FinetuneSettings(sparse=None, training=training),
        max_length=preset.max_length,
        seed=seed,
        folder=work,
        label=f"{setting.kind}, {len(few.train)} examples, {steps} steps",
    )
    result = write_task_teacher(trimmed, how, TaskOutputs(model=model))
    shutil.rmtree(work)
    target = found.task.read([data / setting.target_dev], label_map=label_map)
    scores = {
        "source": measure(model, found.task, dev[:DEV_EXAMPLES], max_length=preset.max_length),
        "target": measure(model, found.task, target, max_length=preset.max_length),
    }
    metric = found.task.metric(labels)
    return {
        "examples": len(few.train),
        "steps": steps,
        "epochs": round(steps * training.batch_size / len(few.train), 2),
        "batch_size": training.batch_size,
        "seed": seed,
        "metric": metric,
        **{f"{side} dev": round(one.scores[metric], 2) for side, one in scores.items()},
        "tokens": result["tokens"],
        "processor": machine()["processor"],
        "threads": torch.get_num_threads(),
        "bf16": False,
        "cores": os.cpu_count(),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that are there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_table(rows: list[dict[str, Any]]) -> None:
    """A Markdown table, a line per row."""
    print("| setting | examples | steps | epochs | metric | source dev | target dev | seed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['setting']} | {row['examples']:,} | {row['steps']:,} | {row['epochs']:g} | {row['metric']} "
            f"| {row['source dev']:.1f} | {row['target dev']:.1f} | {row['seed']} |"
        )


if __name__ == "__main__":
    main()
