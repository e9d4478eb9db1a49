"""Zero-shot transfer on real benchmarks: the paper's comparison for one task and several target languages.

    python benchmarks/transfer.py benchmarks/transfer/ner.toml --data DATA --output runs/ner
    python benchmarks/transfer.py benchmarks/transfer/ner.toml --data DATA --output runs/ner --table

The study's file names languages, budgets, groups and variants (those of all studies are in variants.toml beside it);
the teacher is e5-small. `bistil.study` says what a study is. The same command goes on where it stopped, and several may
run side by side on different `--group`, `--variant`, `--student` or `--seed`: what they share is made by one of them,
for which the others wait. A changed study file redoes what follows from the change. `--plan` says what it will take.
`--speed` measures cost per model, on an otherwise idle machine. `--table` prints what is there, and its last line is
one JSON object.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar

from bistil.models import load_tokenizer
from bistil.pretrained import e5_small_folder
from bistil.runs.data import Exam, Labelled
from bistil.runs.folder import RunFolder
from bistil.runs.stage import Place, Product, Stage
from bistil.runs.stages import Benchmark, Nothing, Score
from bistil.runtime.artefacts import whole_folder
from bistil.settings.study import load_study
from bistil.study import TRIM_ONLY, UNDISTILLED, Point, Study, mean_gap


@dataclass(frozen=True, kw_only=True)
class Headed(Stage[Nothing]):
    """A student under a new head, to measure: weights do not change what a model costs."""

    KIND: ClassVar[str] = "headed"

    start: Product
    labelled: Labelled

    def parts(self) -> tuple[str, ...]:
        return ("model",)

    def make(self, place: Place) -> Nothing:
        data, start = self.labelled.everything(place), place.path(self.start)
        with whole_folder(place.output("model"), record={"kind": "task model"}) as folder:
            data.task.build_model(start, data.labels).save_pretrained(folder)
            load_tokenizer(str(start)).save_pretrained(folder)
        return Nothing()


def costs(study: Study) -> tuple[list[str], Benchmark]:
    """Names, and the stage that measures both teachers and all students of the first group on the first test set."""
    group = next(iter(study.settings.groups))
    names = [UNDISTILLED, TRIM_ONLY, *(student.name for student in study.settings.students)]
    models = [study.model(point) for point in study.teachers(group)]
    labelled = study.method.labelled
    assert labelled is not None
    bilingual = study.method.bilingual(study.languages(group))
    models += [
        Headed(start=bilingual.product(str(number)), labelled=labelled).product("model")
        for number in range(len(study.settings.students))
    ]
    first = next(f"{target}/{part}" for target, parts in study.settings.targets.items() for part in parts)
    return names, Benchmark(models=tuple(models), text=Exam(labelled=labelled, parts=(first,)), examples=50)


def table(study: Study, run: RunFolder) -> dict[str, Any]:
    """Per group and row: scores, mean over targets, and the gap to the trimmed teacher with its interval."""
    rows = []
    for group, targets in study.settings.groups.items():
        found: dict[tuple[str, str], dict[Point, dict[str, Score]]] = {}
        for point in [*study.teachers(group), *study.points(groups=[group])]:
            scores = study.scores(run, point)
            if scores is not None:
                student = "teacher" if point.number is None else study.settings.students[point.number].name
                found.setdefault((student, point.variant), {})[point] = scores
        reference = next(iter(found.get(("teacher", TRIM_ONLY), {}).values()), None)
        if reference is None:
            continue
        print(f"\n{study.settings.name}: {group}\n")
        print(f"| model | source dev | {' | '.join(targets)} | mean | gap to the teacher | seeds |")
        print("| --- |" + " --- |" * (len(targets) + 4))
        for (student, variant), own in sorted(found.items(), key=lambda one: (one[0][0] != "teacher", one[0][0])):
            row = _row(study, run, group, student, variant, own, reference)
            rows.append(row)
            cells = [_spread(row["scores"][part]) for part in (f"{study.settings.source}/dev", *row["parts"])]
            low, high = row["interval"]
            print(f"| {student}, {variant} | {' | '.join(cells)} | {_spread(row['means'])} | "
                  f"{row['gap']:+.1f} [{low:+.1f}, {high:+.1f}] | {len(own)} |")  # fmt: skip
    names, measured = costs(study)
    made = run.known(measured, whole=False)
    dev = f"{study.settings.source}/dev"
    teacher = study.scores(run, study.teachers(next(iter(study.settings.groups)))[1])
    return {
        "study": study.settings.name,
        "metric": teacher[dev].metric if teacher else None,
        "rows": rows,
        "phase1": _phase1(study, run),
        "machines": _machines(run),
        # Where the models were is nobody's business.
        "speed": [
            {key: value for key, value in asdict(row).items() if key != "folder"} | {"name": name}
            for name, row in zip(names, made.result.rows, strict=True)
        ]
        if made
        else [],
    }


def _row(
    study: Study,
    run: RunFolder,
    group: str,
    student: str,
    variant: str,
    own: dict[Point, dict[str, Score]],
    reference: dict[str, Score],
) -> dict[str, Any]:
    """One line: mean over seeds; the gap's interval resamples each test set, the same way for both models."""
    parts = [f"{target}/test" for target in study.settings.groups[group]]
    first, results = next(iter(own)), list(own.values())
    languages = study.languages(group)
    gap, low, high = mean_gap(([one[part] for part in parts] for one in results), [reference[part] for part in parts])
    distil = study.bilingual(first)
    made = run.known(distil, whole=False) if distil else None
    return {
        "group": group,
        "student": student,
        "variant": variant,
        "parts": parts,
        "scores": {
            part: [one[part].score for one in results] for part in results[0] if part.split("/")[0] in languages
        },
        "phase1_tokens": made.result.tokens if made else None if first.number is None else 0,
        "means": [mean(one[part].score for part in parts) for one in results],
        "gap": gap,
        "interval": [low, high],
        "other": {
            part: {name: mean(one[part].scores[name] for one in results) for name in results[0][part].scores}
            for part in parts
        },
    }


def _phase1(study: Study, run: RunFolder) -> dict[str, Any]:
    """Per group and length, the tokens of phase 1 and its held-out figures."""
    found = {}
    for point in study.points():
        distil, variant = study.bilingual(point), study.variant(point)
        made = run.known(distil, whole=False) if distil else None
        if made is not None:
            name = variant.phase1_group or point.group
            name += "" if variant.phase1_length == 1 else f"-{made.result.steps}"
            name += "" if variant.precision is None else f", {variant.precision}"
            found[name] = {
                "tokens": made.result.tokens,
                "precision": made.result.precision,
                "held_out": {
                    student.name: {"start": figures.start, "end": figures.end}
                    for student, figures in zip(study.settings.students, made.result.students, strict=True)
                },
            }
    return found


def _machines(run: RunFolder) -> list[dict[str, str]]:
    """What the study's stages ran on: processors and their threads."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run.folder / "stages").glob("*.json"))]
    found = {(one["machine"]["processor"], one["machine"]["threads"]) for one in records if "machine" in one}
    return [{"processor": processor, "threads": threads} for processor, threads in sorted(found)]


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    for name, kind in (("group", str), ("variant", str), ("student", str), ("seed", int)):
        parser.add_argument(f"--{name}", action="append", type=kind, help="only this one; may be repeated")
    parser.add_argument("--speed", action="store_true", help="only measure cost per model")
    parser.add_argument("--plan", action="store_true", help="only print what it will take: time, memory and disk")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    study = Study(load_study(options.study), options.data, Path(e5_small_folder()))
    points = [
        *study.teachers(next(iter(study.settings.groups))),
        *study.points(options.group, options.variant, options.student, options.seed),
    ]
    if options.plan:
        study.forecast(points, options.output).print()
        return
    if options.speed:
        with study.open(options.output) as run:
            run.make(costs(study)[1])
    elif not options.table:
        study.run(options.output, points)
    with study.open(options.output) as run:
        print(json.dumps(table(study, run)))


if __name__ == "__main__":
    main()
