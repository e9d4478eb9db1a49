"""Seconds of an epoch of phase 2 where the task teacher's part is kept, and where the teacher reads every batch.

    python benchmarks/kept_teacher.py                                   # the demo's utterances, bf16
    python benchmarks/kept_teacher.py --ner ../shared/data/ner --precision float32 --record benchmarks/records/NAME.json

The teacher is e5-small with its vocabulary trimmed to the texts and a new head (what it says does not matter here), the
student has every second layer. Both ways train from the same start, one after the other. The clock is processor time of
one thread, from the first step of an epoch to that of the next. The last line is one JSON object, with all losses.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

ROWS = 16


def texts_and_rows(options: argparse.Namespace, folder: Path) -> tuple[str, Path, list[str]]:
    """The kind of task, its training file, and target text."""
    from bistil.demo.data import prepare_demo_data
    from bistil.text.lines import read_sentences

    if options.ner is None:
        prepare_demo_data(folder / "demo", target="it")
        lines = (folder / "demo/train.en.jsonl").read_text().splitlines(keepends=True)
        path, kind, text = folder / "train.jsonl", "sequence-classification", folder / "demo/it.txt"
    else:
        sentences = (options.ner / "eng/train.txt").read_text().split("\n\n")
        lines = [one.strip("\n") + "\n\n" for one in sentences if one.strip() and "-DOCSTART-" not in one]
        path, kind, text = folder / "train.txt", "token-classification", folder / "target.txt"
        words = [
            " ".join(line.split()[0] for line in sentence.splitlines() if line.split())
            for sentence in (options.ner / "swa/train.txt").read_text().split("\n\n")
        ]
        text.write_text("\n".join(filter(None, words)) + "\n")
    path.write_text("".join(lines[: options.examples]))
    return kind, path, read_sentences([text])[: options.examples]


class Clock:
    """Processor time at the beginning of each step, and of what comes before the first."""

    def __init__(self) -> None:
        from bistil.distillation.kept_teacher import KeptTeacher
        from bistil.distillation.module import Distiller

        self.steps: list[float] = []
        self.losses: list[float] = []
        self.filled = 0.0
        self.bytes = 0
        forward, fill = Distiller.forward, KeptTeacher.fill

        def timed_forward(module: Any, **batch: Any) -> Any:
            self.steps.append(time.process_time())
            found = forward(module, **batch)
            self.losses.append(float(found["loss"].detach()))
            return found

        def timed_fill(kept: Any, *args: Any, **options: Any) -> bool:
            start = time.process_time()
            found = fill(kept, *args, **options)
            self.filled = time.process_time() - start
            self.bytes = sum(part.nbytes for part in kept._parts)
            return found

        Distiller.forward = timed_forward  # type: ignore[method-assign,assignment]
        KeptTeacher.fill = timed_fill  # type: ignore[method-assign,assignment]

    def begin(self) -> None:
        self.steps, self.losses, self.filled, self.bytes = [], [], 0.0, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--ner", type=Path, help="folder with eng/train.txt and swa/train.txt; default: the demo's data"
    )
    parser.add_argument("--examples", type=int, default=320, help="labelled ones, and as many lines of text")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="bf16")
    parser.add_argument("--record", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        result = compare(options, folder)
    finally:
        shutil.rmtree(folder)
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from bistil.distillation.student import copy_student
    from bistil.distillation.task import Fitting, fit_from_teacher
    from bistil.distillation.task_data import read_task_data
    from bistil.measuring.benchmark import machine
    from bistil.models.tokenizers import load_tokenizer
    from bistil.pretrained import e5_small_folder
    from bistil.settings.recipe import Phase2Settings, TaskSettings, TrainingSettings, TrimSettings
    from bistil.vocabulary import trim_vocabulary

    kind, path, text = texts_and_rows(options, folder)
    data = read_task_data(TaskSettings(kind=kind, train=[str(path)]), target_sentences=text)
    (folder / "all.txt").write_text("\n".join([*text, *(data.task.text_of(one) for one in data.train)]) + "\n")
    trim_vocabulary(
        e5_small_folder(), {"all": [folder / "all.txt"]}, folder / "teacher", settings=TrimSettings(threshold=0.0),
        verify=False,
    )  # fmt: skip
    tokenizer = load_tokenizer(str(folder / "teacher"))
    copy_student(folder / "teacher", [2, 4, 6, 8, 10, 12], output=folder / "student")
    teacher = data.task.build_model(str(folder / "teacher"), data.labels, seed=1)
    training = TrainingSettings(
        epochs=float(options.epochs), batch_size=ROWS, learning_rate=3e-4, precision=options.precision,
        checkpoint_steps=10**6,
    )  # fmt: skip
    settings = Phase2Settings(sparse=None, training=training)
    clock = Clock()
    ways: dict[str, dict[str, Any]] = {}
    for way, gigabytes in (("every batch", 0.0), ("kept", 5.0)):
        how = Fitting(
            data=data, settings=replace(settings, kept_gigabytes=gigabytes), folder=folder / f"work-{bool(gigabytes)}"
        )
        clock.begin()
        fit_from_teacher(folder / "student", tokenizer, how, teachers=[teacher], teacher_tokenizers=[tokenizer])
        starts = [*clock.steps, time.process_time()]
        size = len(clock.steps) // options.epochs
        epochs = [starts[(n + 1) * size] - starts[n * size] for n in range(options.epochs)]
        ways[way] = {
            "epoch_seconds": [round(one, 2) for one in epochs],
            "before_seconds": round(clock.filled, 2),
            "bytes": clock.bytes,
            "losses": [round(one, 6) for one in clock.losses],
        }
    plain, kept = ways["every batch"], ways["kept"]
    differences = [abs(a - b) / b for a, b in zip(kept["losses"], plain["losses"], strict=True)]
    seconds = {way: median(one["epoch_seconds"]) for way, one in ways.items()}
    return {
        "data": "demo" if options.ner is None else "ner", "examples": len(data.train), "text": len(text),
        "rows": ROWS, "precision": options.precision, "threads": 1, "clock": "cpu", "machine": machine(),
        "epoch_seconds": seconds, "ratio": round(seconds["every batch"] / seconds["kept"], 2),
        "largest_relative_difference_of_losses": max(differences), "of_the_first_epoch": max(differences[:size]),
        "ways": ways,
    }  # fmt: skip


if __name__ == "__main__":
    main()
