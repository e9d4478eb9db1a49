"""Writes docs/recipe.md from the dataclasses of `bistil.settings.recipe`: `make docs`."""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from bistil.settings.kinds import own_kinds
from bistil.settings.recipe import Recipe, TaskSettings, task_preset
from bistil.training.loop import planned_steps

INTRODUCTION = """# The recipe

A recipe is a TOML file. `bistil run RECIPE.toml --check` says what is wrong with it without doing any work, and
[what the run will take](plan.md); relative paths are relative to the recipe's own folder. Every table may be left out
or given in part: what is not given keeps its default. `--set KEY=VALUE` changes a key for one run, items of lists by
their numbers from 0: `bistil run r.toml --set phase1.objective.cosine=1 --set students.0.reduction=3`. This page is
written from the code (`make docs`).

Shortest recipe, for your own language and labels:

```toml
teacher = "xlm-roberta-base"     # a hub name, a folder, or e5-small
source = "en"                    # the language with labels
target = "sw"                    # the language that the model is for

[text]                           # plain text, one sentence or paragraph per line; .gz is fine
en = "english.txt"
sw = ["news.sw.txt", "web.sw.txt.gz"]

[task]
kind = "sequence-classification" # or another kind of task: tasks.md
train = "train.en.jsonl"         # {"text": "...", "label": "..."} per line
dev = "dev.en.jsonl"
test = { en = "test.en.jsonl", sw = "test.sw.jsonl" }
```
"""


def main() -> None:
    """Write the page beside this script."""
    # What a recipe of nothing but the required keys comes to: a stage's own defaults, not its settings classes'.
    recipe = Recipe(teacher="x", source="en", target="sw", text={"en": ["en.txt"], "sw": ["sw.txt"]})
    lines = [INTRODUCTION, *section(Recipe, "", recipe), *presets()]
    Path(__file__).with_name("recipe.md").write_text("\n".join(lines), encoding="utf-8")


def presets() -> list[str]:
    """What `task.preset` sets, a line per preset and task."""
    hints = get_type_hints(TaskSettings)
    names = get_args(next(iter(get_args(hints["preset"]))))
    lines = [
        "## Presets of a task",
        "",
        "`preset` under `[task]` sets these defaults of `[finetune]`, `[phase2]` and `max_length`; explicit keys",
        "win. `paper` is the paper's table (where that is silent, its released code): sparse, density 8%. `short` is",
        "a start for two CPU cores, close to [the studies](tasks.md#what-is-measured); students of few",
        "labels learn from [more target text](gaps.md) than those had. It is dense, for a",
        "sparse fine-tuning takes half as many steps again for the same score. For an SFT write `[phase2.sparse]` and",
        "its epochs.",
        "",
        *small_data(),
        "",
        "| preset | task | epochs, dense / sparse | batch | learning rate, teacher / student | warm-up "
        "| evaluated every | max_length | target text |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        for task in own_kinds():
            one = task_preset(name, task)
            sparse, training, student = one.finetune.sparse, one.finetune.training, one.phase2.training
            epochs = (
                f"{sparse.dense_epochs:g} / {sparse.sparse_epochs:g}"
                if sparse
                else f"teacher {training.epochs:g}, student {student.epochs:g} / none"
            )
            warmup = f"{training.warmup_steps:.0%}"
            every = f"{training.evaluate_steps:,} steps" if training.evaluate_steps else "at the end"
            lines.append(
                f"| `{name}` | {task} | {epochs} | {training.batch_size} "
                f"| {training.learning_rate:g} / {student.learning_rate:g} | {warmup} | {every} | {one.max_length} "
                f"| {one.phase2.target_text:g} |"
            )
    return [*lines, ""]


def small_data() -> list[str]:
    """How the lengths of `short` follow the size of the data, computed by what training uses."""
    short = task_preset("short", "token-classification")
    teacher, student = short.finetune.training, short.phase2.training
    lines = [
        f"Lengths of `short` follow the size of the data: passes over it, but at least {teacher.least_steps:,}",
        f"optimizer steps (`least_steps`; of a student {student.least_steps:,}) and at most",
        f"{teacher.most_steps:,} (`most_steps`). For tagging, in steps of 16 examples:",
        "",
        "| labelled examples | teacher: 2 passes | student: 1 pass, and as much target text |",
        "| --- | --- | --- |",
    ]
    for examples in (500, 5_000, 50_000):
        seen = round(examples * (1 + short.phase2.target_text))
        lines.append(f"| {examples:,} | {planned_steps(examples, teacher):,} | {planned_steps(seen, student):,} |")
    return lines


def section(settings: type, path: str, effective: Any = None) -> list[str]:
    """A table of one settings class, and those of the classes inside it.

    Args:
        effective: what a recipe gets that gives nothing of this table; None: the table has to be written to be there.
    """
    hints = get_type_hints(settings)
    title = f"`[{path}]`" if path else "Top level"
    lines = [f"## {title}", "", (settings.__doc__ or "").split("\n\n")[0], "", "| key | type | default | meaning |"]
    lines.append("| --- | --- | --- | --- |")
    below: list[str] = []
    for one in fields(settings):
        inner = next((t for t in (hints[one.name], *get_args(hints[one.name])) if is_dataclass(t)), None)
        value = default(one, effective)
        what = kind(hints[one.name], one.metadata.get("choices"))
        lines.append(f"| `{one.name}` | {what} | {shown(value)} | {one.metadata['help']} |")
        if isinstance(inner, type):
            name = f"{path.strip('[]')}.{one.name}" if path else one.name
            of_list = get_origin(hints[one.name]) is list
            below += section(inner, f"[{name}]" if of_list else name, value if is_dataclass(value) else None)
    return [*lines, "", *below]


def kind(hint: Any, choices: Callable[[], list[str]] | None = None) -> str:
    """A type as a reader of TOML would say it.

    Args:
        choices: of a text.
    """
    if choices is not None:
        return " / ".join(f"`{one}`" for one in choices())
    arguments = [a for a in get_args(hint) if a is not type(None)]
    if is_dataclass(hint):
        return "table"
    if get_origin(hint) is dict:
        return "table of " + kind(arguments[1])
    if get_origin(hint) is list:
        return "list of " + kind(arguments[0])
    if isinstance(hint, type):
        return {"str": "text", "int": "whole number", "float": "number", "bool": "true/false"}[hint.__name__]
    if all(isinstance(a, str) for a in arguments):
        return " / ".join(f"`{a}`" for a in arguments)
    return kind(arguments[0]) + ", or none"


def default(one: Field[Any], effective: Any) -> Any:
    """What a key has when it is not given; MISSING where it must be."""
    if one.default is MISSING and one.default_factory is MISSING:
        return MISSING
    if effective is not None:
        return getattr(effective, one.name)
    return one.default_factory() if one.default_factory is not MISSING else one.default


def shown(value: Any) -> str:
    """A default for the table; tables of their own show theirs below."""
    if value is MISSING:
        return "must be given"
    if value is None:
        return "none"
    if is_dataclass(value):
        return "see below"
    if value in ([], {}):
        return "empty"
    if isinstance(value, list):
        return "one student, LRF 2"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    main()
