"""All four steps in memory in a process that may write nothing, then the same again in a folder; for `test_live.py`."""

import json
import resource
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import tiny
import torch

import bistil
from bistil import FinetuneSettings, Phase1Settings, Phase2Settings, SparseSettings, Student, TrainingSettings

TEXT = {"en": tiny.ENGLISH.splitlines(), "sw": tiny.SWAHILI.splitlines()}
TRAINING = TrainingSettings(steps=6, batch_size=4, evaluate_steps=3, learning_rate=1e-3)
TASK = replace(TRAINING, steps=80, evaluate_steps=40, learning_rate=5e-3)
SPARSE = SparseSettings(density=0.3, dense_steps=40, sparse_steps=40)


def tagged(text: str) -> list[dict[str, object]]:
    """Sentences whose words with a capital letter are names."""
    words = [line.rstrip(".").split() for line in text.splitlines()]
    return [{"tokens": own, "labels": ["B-PER" if word[0].isupper() else "O" for word in own]} for own in words]


def all_four(folder: Path | None) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Weights of the student and its record of scores; all work in a folder, or nowhere."""

    def work(name: str) -> Path | None:
        return None if folder is None else folder / name

    teacher, tokenizer = tiny.model("xlm-roberta"), tiny.tokenizer("xlm-roberta")
    small = bistil.trim(teacher, tokenizer, TEXT, settings=bistil.TrimSettings(threshold=1e-3))
    students = bistil.distill(
        small, small.tokenizer, TEXT, students=[Student(reduction=2), Student(depth=2)], folder=work("phase1"),
        settings=Phase1Settings(block_length=16, training=TRAINING),
    )  # fmt: skip
    data = {"train": tagged(tiny.ENGLISH)[:7], "dev": tagged(tiny.ENGLISH)[7:]}
    task_teacher = bistil.finetune(
        small, data, task="token-classification", folder=work("teacher"),
        settings=FinetuneSettings(sparse=SPARSE, training=replace(TASK, steps=None)),
    )  # fmt: skip
    student = bistil.finetune(
        students["lrf2"], data, teacher=task_teacher, text=TEXT["sw"][:5], folder=work("student"),
        settings=Phase2Settings(sparse=None, training=TASK, target_text=1.0),
    )  # fmt: skip
    return student.state_dict(), bistil.evaluate(student, student.tokenizer, tagged(tiny.SWAHILI))


def refuse_writing() -> None:
    """From now on nothing can be written: not through Python, and no byte by any library."""
    writing = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime"}

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        # Flags of an open for reading alone have neither O_WRONLY nor O_RDWR.
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
        if (opened and not str(arguments[0]).startswith(("/dev/", "/proc/"))) or event in writing:
            raise OSError(30, "Read-only file system", str(arguments[0]))

    sys.addaudithook(hook)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        written = all_four(Path(place))
        assert {path.name for path in Path(place).iterdir()} == {"phase1", "teacher", "student"}
    refuse_writing()
    try:
        Path("anything").write_text("x")
    except OSError as error:
        assert error.errno == 30
    else:
        raise AssertionError("the file system can be written to")
    weights, record = all_four(None)
    same = all(torch.equal(weights[name], value) for name, value in written[0].items())
    print(json.dumps({"same": same, "names": len(weights), "record": record, "written": written[1]}))


if __name__ == "__main__":
    main()
