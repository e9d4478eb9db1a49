"""Killed while the task teacher speaks and while the student learns: the same student comes out."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from forking import fork

TESTS = Path(__file__).parents[1]
PATH = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
KILLS = 8


def prepare(folder: Path) -> None:
    import tiny
    from transformers import AutoModelForSequenceClassification

    from bistil.distillation.student import copy_student

    rows = [{"text": line, "label": str(i % 2)} for i, line in enumerate(tiny.ENGLISH.splitlines() * 4)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = tiny.model("bert", layers=4, head=AutoModelForSequenceClassification, num_labels=2)
    teacher.config.id2label, teacher.config.label2id = {0: "0", 1: "1"}, {"0": 0, "1": 1}
    tiny.save(teacher, folder / "teacher", "bert")
    copy_student(folder / "teacher", [2, 4], output=folder / "small")


def fit(folder: Path, out: str) -> None:
    import fitting
    import tiny

    from bistil.distillation import kept_teacher
    from bistil.distillation.task import read_task_data
    from bistil.settings.recipe import Phase2Settings, SparseSettings, TaskSettings, TrainingSettings

    # Many parts, so that kills fall between and within them.
    kept_teacher.BATCH_TOKENS, kept_teacher.PART_BYTES = 40, 1
    path = [str(folder / "train.jsonl")]
    data = read_task_data(
        TaskSettings(kind="sequence-classification", train=path, dev=path),
        target_sentences=tiny.SWAHILI.splitlines(),
    )
    training = TrainingSettings(batch_size=8, learning_rate=3e-3, checkpoint_steps=2, log_steps=1)
    sparse = SparseSettings(density=0.2, dense_epochs=1.0, sparse_epochs=1.0)
    fitting.fit(
        folder / "small", data, folder / out, max_length=32, work=folder / f"work-{out}", label="", replace=True,
        settings=Phase2Settings(sparse=sparse, training=training), teacher=folder / "teacher",
    )  # fmt: skip


def interrupt(folder: Path) -> None:
    """One whole run, and runs that are killed at random moments until they are done; prints where the kills fell."""
    import bistil.distillation.task_folders  # noqa: F401  (children inherit the imports)

    prepare(folder)
    started = time.monotonic()
    child = fork(folder / "log.txt", partial(fit, folder, "whole"))
    assert os.waitpid(child, 0)[1] == 0, (folder / "log.txt").read_text()
    whole, generator = time.monotonic() - started, random.Random(0)
    kills = speaking = 0
    while True:
        child = fork(folder / "log.txt", partial(fit, folder, "cut"))
        if kills < KILLS:
            time.sleep(generator.uniform(0.05, 0.7) * whole)
        ended, status = os.waitpid(child, os.WNOHANG if kills < KILLS else 0)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            speaking += not list((folder / "work-cut").glob("*/checkpoint-*"))
            continue
        assert status == 0, f"status {status}: {(folder / 'log.txt').read_text()[-3000:]}"
        files = [folder / out / "model.safetensors" for out in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()
        if kills >= KILLS:
            break
        subprocess.run(["rm", "-r", str(folder / "cut"), str(folder / "work-cut")], check=True)
    assert not (folder / "work-cut/teacher").exists()
    print(json.dumps({"kills": kills, "before the first checkpoint": speaking}))


@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_the_student_is_bit_identical(tmp_path):
    result = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert json.loads(result.stdout.splitlines()[-1])["kills"] == KILLS


if __name__ == "__main__":
    interrupt(Path(sys.argv[1]))
