"""Interrupted and resumed, or shared by two processes: the same students come out."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from forking import fork, share

TESTS = Path(__file__).parents[1]
# The package that is tested here is tested there.
PATH = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
KILLS = 20


def distill(folder: Path, out: str, *, steps: int = 24, checkpoint_steps: int = 2) -> None:
    """A small phase 1 with two students, held-out losses, and checkpoints every two steps."""
    from bistil.distillation.general import distill_general
    from bistil.settings.recipe import Phase1Settings, StudentSettings, TrainingSettings

    training = TrainingSettings(
        steps=steps,
        batch_size=4,
        learning_rate=3e-3,
        checkpoint_steps=checkpoint_steps,
        evaluate_steps=3,
        log_steps=1,
    )
    distill_general(
        folder / "teacher",
        [StudentSettings(name="lrf2", reduction=2), StudentSettings(name="lrf3", reduction=3, start="random")],
        {"en": [folder / "en.txt"], "sw": [folder / "sw.txt"]},
        folder / out,
        settings=Phase1Settings(block_length=16, held_out=0.2, training=training),
        seed=0,
        work=folder / f"work-{out}",
        replace=True,  # a kill may fall between the last write and the end
    )


def prepare(folder: Path) -> None:
    import tiny

    tiny.masked_lm("bert").save_pretrained(folder / "teacher")
    tiny.tokenizer("bert").save_pretrained(folder / "teacher")
    (folder / "en.txt").write_text(tiny.ENGLISH * 4, encoding="utf-8")
    (folder / "sw.txt").write_text(tiny.SWAHILI * 4, encoding="utf-8")


def interrupt_again_and_again(folder: Path) -> None:
    """One whole run, then one that is killed at random moments until it is done; prints what was done to it."""
    import tqdm

    import bistil.distillation.general  # noqa: F401  (children inherit the imports)

    # datasets makes a bar, shown or not, for every row that it reads, and bars take turns across processes: a child
    # that is killed in its turn would keep the others waiting for good.
    tqdm.tqdm.set_lock(threading.RLock())
    prepare(folder)
    started = time.monotonic()
    child = fork(folder / "log.txt", partial(distill, folder, "whole"))
    assert os.waitpid(child, 0)[1] == 0, (folder / "log.txt").read_text()
    whole = time.monotonic() - started
    generator = random.Random(0)
    signals = [signal.SIGKILL] * KILLS + [signal.SIGINT] * 3 + [signal.SIGTERM] * 3
    generator.shuffle(signals)
    sent, launches, done = [], 0, False
    while not done:
        child = fork(folder / "log.txt", partial(distill, folder, "cut"))
        launches += 1
        if signals:
            # From the very start to well into training; a resumed run is shorter than a whole one.
            time.sleep(generator.uniform(0.02, 0.6) * whole)
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                sent.append(signals.pop())
                os.kill(child, sent[-1])
                os.waitpid(child, 0)
                continue
            # Finished before its turn came: what is left of the signals goes to a run from the start.
            if len(sent) < KILLS:
                compare(folder)
                subprocess.run(["rm", "-r", str(folder / "cut"), str(folder / "work-cut")], check=True)
                continue
            done = True
        else:
            done = os.waitpid(child, 0)[1] == 0
            assert done, (folder / "log.txt").read_text()[-3000:]
    compare(folder)
    kills = sum(1 for one in sent if one == signal.SIGKILL)
    print(json.dumps({"launches": launches, "signals": len(sent), "kills": kills}))


def compare(folder: Path) -> None:
    for name in ("lrf2", "lrf3"):
        files = [folder / out / name / "model.safetensors" for out in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes(), f"{name} differs"
    reports = [json.loads((folder / out / "phase1.json").read_text()) for out in ("whole", "cut")]
    for report in reports:
        del report["seconds"], report["tokens_per_second"]
    assert reports[0] == reports[1]
    logs = []
    for out in ("whole", "cut"):
        lines = [json.loads(line) for line in (folder / out / "train_log.jsonl").read_text().splitlines()]
        logs.append([{key: value for key, value in line.items() if key != "seconds"} for line in lines])
    assert logs[0] == logs[1]


def stop_one(folder: Path) -> None:
    """The second of two processes gets a signal in its fifth step, long before the first checkpoint by number."""
    from bistil.runtime.process import prepare_process
    from bistil.training.recorder import Recorder

    ends_step = Recorder.on_step_end

    def on_step_end(self, args, state, control, **more):
        if os.environ["RANK"] == "1" and state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return ends_step(self, args, state, control, **more)

    prepare_process()
    Recorder.on_step_end = on_step_end
    distill(folder, "stopped", steps=8, checkpoint_steps=1_000)


def alone_and_together(folder: Path) -> None:
    """A run of one process; one of two; one of two that are stopped, and that go on."""
    import bistil.distillation.general  # noqa: F401  (children inherit the imports)

    prepare(folder)
    whole, log = partial(distill, folder, steps=8), folder / "log.txt"
    alone = share(log, partial(whole, "one"), 1)
    both = share(log, partial(whole, "two"))
    assert not any(alone + both), log.read_text()[-4000:]
    stopped = share(folder / "stopped.txt", partial(stop_one, folder))
    assert all(stopped) and (folder / "work-stopped/training/checkpoint-5/complete").exists()
    assert not any(share(log, partial(whole, "stopped"))), log.read_text()[-4000:]


def launch(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.timeout(600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_20_random_moments_the_students_are_bit_identical(tmp_path):
    counts = json.loads(launch(__file__, "interrupt", str(tmp_path)).splitlines()[-1])
    assert counts["kills"] >= KILLS * 3 // 4 and counts["signals"] >= KILLS


@pytest.mark.timeout(600)
def test_two_processes_see_the_same_batches_and_lose_the_same(tmp_path):
    launch(__file__, "share", str(tmp_path))
    one, two = (json.loads((tmp_path / out / "phase1.json").read_text()) for out in ("one", "two"))
    assert two["tokens"] == one["tokens"]
    for first, second in zip(one["history"], two["history"], strict=True):
        assert second == pytest.approx(first, rel=1e-3)
    logs = []
    for out in ("one", "two"):
        lines = [json.loads(line) for line in (tmp_path / out / "train_log.jsonl").read_text().splitlines()]
        logs.append([line for line in lines if "grad_norm" in line])
    assert [line["grad_norm"] for line in logs[1]] == pytest.approx([line["grad_norm"] for line in logs[0]], rel=1e-3)
    # A signal to one of the two: both write the checkpoint, and go on from there to the same students.
    said = (tmp_path / "stopped.txt").read_text()
    lines = [line for line in said.splitlines() if line.startswith("bistil: ")]
    how = "bistil: interrupted; the same command goes on from the last checkpoint"
    assert lines == [f"{how}, step 5 of 8; 0 steps behind it are lost"], said[-4000:]
    for name in ("lrf2", "lrf3"):
        first, second = ((tmp_path / out / name / "model.safetensors").read_bytes() for out in ("two", "stopped"))
        assert first == second, f"{name} differs"


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    {"interrupt": interrupt_again_and_again, "share": alone_and_together}[what](where)
