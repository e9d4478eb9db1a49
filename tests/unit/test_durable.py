"""What a kill, a power cut or a signal leaves, and what the next call makes of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from test_training import Regression, run

from bistil.errors import DivergenceError, InputError
from bistil.runtime import litter as names_of
from bistil.runtime import process, whole_folders
from bistil.runtime.artefacts import open_work, whole_file, whole_folder, work_beside, work_for, write_json
from bistil.runtime.insides import order_metadata
from bistil.settings.recipe import TrainingSettings
from bistil.training.checkpoints import newest_checkpoint


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Litter


@pytest.fixture
def dead():
    """The number of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def litter(path, process_id, suffix):
    return path.with_name(f".{path.name}.{names_of._machine()}-{process_id}-abcd1234{suffix}")


def test_what_killed_processes_left_beside_an_output_is_removed(tmp_path, dead):
    out = tmp_path / "out"
    litter(out, dead, ".partial").mkdir()
    (litter(out, dead, ".partial") / "half").touch()
    litter(tmp_path / "a.json", dead, ".partial").touch()
    kept = [litter(out, os.getpid(), ".partial"), litter(out, os.getppid(), ".partial"), tmp_path / ".out.x.partial"]
    for path in (*kept, litter(tmp_path / "other", dead, ".partial")):
        path.touch()
    with whole_folder(out) as partial:
        (partial / "model").touch()
    write_json(tmp_path / "a.json", {})
    assert {"out", "a.json"} | {path.name for path in kept} | {
        litter(tmp_path / "other", dead, ".partial").name
    } == set(names(tmp_path))


def test_a_folder_that_was_being_replaced_comes_back(tmp_path, dead):
    """Killed between the two renames, there is no folder of the name: the old one is beside it."""
    retired = litter(tmp_path / "out", dead, ".retired")
    (retired / "old").mkdir(parents=True)
    write_json(retired / "old" / "bistil.json", {"kind": "folder", "versions": {"bistil": "0"}, "files": {}})
    with pytest.raises(InputError, match="already exists"), whole_folder(tmp_path / "out"):
        raise AssertionError
    assert names(tmp_path) == ["out"]


def test_the_name_says_which_process_it_is_of(tmp_path):
    with whole_file(tmp_path / "a") as partial:
        assert f"-{os.getpid()}-" in partial.name and len(partial.name) - 1 <= 40


# Refused and interrupted work


@pytest.mark.parametrize(
    ("error", "checkpoint", "earlier", "left"),
    [
        (InputError("x"), False, False, False), (InputError("x"), True, False, True),
        (InputError("x"), False, True, True), (DivergenceError("x"), False, False, True),
        (KeyboardInterrupt(), False, False, True), (None, True, True, False),
    ],
)  # fmt: skip
def test_work_is_kept_where_there_is_something_to_go_on_from(tmp_path, error, checkpoint, earlier, left):
    output = tmp_path / "out"
    if earlier:
        open_work(work_beside(output))
    try:
        with work_for(output) as work:
            open_work(work)
            if checkpoint:
                (work / "training" / "checkpoint-3").mkdir(parents=True)
                (work / "training" / "checkpoint-3" / "complete").touch()
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    assert work_beside(output).exists() == left


# Checkpoints


def test_all_of_a_checkpoint_is_on_the_disk_before_its_mark(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(handle):
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    run(Regression(), tmp_path / "work", steps=3, checkpoint_steps=3)
    marks = [i for i, name in enumerate(synced) if ".complete." in name]
    assert len(marks) == 1
    before = {Path(name).name for name in synced[: marks[0]]}
    assert {"trained.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "checkpoint-3"} <= before


def test_a_slow_training_has_checkpoints_by_time_and_ends_the_same(tmp_path):
    whole = Regression()
    run(whole, tmp_path / "whole", checkpoint_steps=1_000)
    with pytest.raises(KeyboardInterrupt):
        run(Regression(stop_at=7), tmp_path / "cut", checkpoint_steps=1_000, checkpoint_minutes=1e-9)
    assert newest_checkpoint(tmp_path / "cut").name == "checkpoint-6"
    resumed = Regression()
    # The minutes are no part of what the training is.
    run(resumed, tmp_path / "cut", checkpoint_steps=1_000)
    assert torch.equal(resumed.linear.weight, whole.linear.weight)
    with pytest.raises(KeyboardInterrupt):
        run(Regression(stop_at=7), tmp_path / "none", checkpoint_steps=1_000)
    assert newest_checkpoint(tmp_path / "none") is None


def test_checkpoint_minutes_have_a_default():
    assert TrainingSettings(steps=1).checkpoint_minutes == 10


class Signalled(Regression):
    """Gets a signal in its fifth step: it is called twice in each."""

    def __init__(self, number, slow=0.0):
        super().__init__()
        self.number, self.slow, self.calls = number, slow, 0

    def forward(self, **batch):
        self.calls += 1
        if self.calls == 9:
            os.kill(os.getpid(), self.number)
            time.sleep(self.slow)
        return super().forward(**batch)


@pytest.fixture
def _handlers(monkeypatch):
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    process._stop_with_a_line()
    # The thread that ends a process which a signal has not ended would end this one, in a later test, where it wakes so
    # late that it finds the handler of an earlier test, which is there to stay.
    watched = signal.set_wakeup_fd(-1)
    monkeypatch.setattr(process, "SAVE_SECONDS", 2.0)
    yield
    signal.set_wakeup_fd(watched)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_a_checkpoint_be_written(tmp_path, capsys, number):
    with pytest.raises(SystemExit) as stopped:
        run(Signalled(number), tmp_path / "work", checkpoint_steps=1_000)
    assert stopped.value.code == 128 + number and newest_checkpoint(tmp_path / "work").name == "checkpoint-5"
    assert capsys.readouterr().err.endswith("from the last checkpoint, step 5 of 20; 0 steps behind it are lost\n")
    whole, resumed = Regression(), Regression()
    run(whole, tmp_path / "whole", checkpoint_steps=1_000)
    run(resumed, tmp_path / "work", checkpoint_steps=1_000)
    assert torch.equal(resumed.linear.weight, whole.linear.weight)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.usefixtures("_handlers")
def test_a_step_that_takes_too_long_is_not_waited_for(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(Signalled(signal.SIGTERM, slow=60), tmp_path / "work", checkpoint_steps=3)
    assert newest_checkpoint(tmp_path / "work").name == "checkpoint-3"
    assert capsys.readouterr().err.endswith("from the last checkpoint, step 3 of 20; 1 step behind it are lost\n")


@pytest.mark.usefixtures("_handlers")
def test_outside_of_a_training_a_signal_ends_the_process_at_once(capsys):
    with pytest.raises(SystemExit) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert stopped.value.code == 143
    assert capsys.readouterr().err == "bistil: interrupted; the same command goes on from the last checkpoint\n"


STUCK = """
import hashlib, os, signal, subprocess, sys, threading, time
from bistil.runtime import process
process.END_SECONDS = 0.5
process.prepare_process()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
threading.Timer(0.1, os.kill, (os.getpid(), getattr(signal, sys.argv[1]))).start()
while sys.argv[2] == "caught":
    try:
        time.sleep(60)
    except BaseException:
        pass
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize(("number", "how"), [("SIGTERM", "in C"), ("SIGINT", "caught")])
def test_whatever_a_process_is_in_a_signal_ends_it_and_its_children_in_time(number, how):
    """A library works for minutes without coming back to Python, or catches what the signal raises."""
    ran = subprocess.run([sys.executable, "-c", STUCK, number, how], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 128 + getattr(signal, number)
    assert ran.stderr == "bistil: interrupted; the same command goes on from the last checkpoint\n"
    child = int(ran.stdout)
    until = time.monotonic() + 20
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(process_id):
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.usefixtures("_handlers")
def test_a_signal_that_is_passed_on_is_no_second_one(tmp_path):
    class Twice(Signalled):
        def forward(self, **batch):
            if self.calls == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(**batch)

    with pytest.raises(SystemExit):
        run(Twice(signal.SIGTERM), tmp_path / "work", checkpoint_steps=1_000)
    assert newest_checkpoint(tmp_path / "work").name == "checkpoint-5"


# Bytes


def test_the_bytes_of_a_file_with_metadata_do_not_depend_on_the_library_s_order(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    facts = {name: name * 3 for name in ("full_size", "parameters", "fingerprint", "é", "a", "b")}
    written = set()
    for i in range(20):
        path = tmp_path / f"{i}.safetensors"
        save_file({"kept_ids": torch.arange(5)}, path, metadata=facts)
        order_metadata(path)
        written.add(path.read_bytes())
        with safe_open(path, framework="pt") as stored:
            assert stored.metadata() == facts and torch.equal(stored.get_tensor("kept_ids"), torch.arange(5))
    assert len(written) == 1


def test_work_whose_removal_was_killed_half_way_does_not_come_back(tmp_path, monkeypatch):
    work = tmp_path / "work"
    open_work(work)
    (work / "part").write_text("1")

    def killed(folder):
        next(folder.rglob("bistil.json")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(whole_folders.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            whole_folders.discard_work(work)
    monkeypatch.setattr(names_of, "_is_alive", lambda _: False)
    whole_folders.discard_work(work)
    assert list(tmp_path.iterdir()) == []
