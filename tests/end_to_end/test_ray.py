"""A study on a local Ray cluster of two workers, one of which dies; needs the extra `ray`."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import tiny_study

from bistil.report.studies import read_records

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'bistil[ray]'")
# One system with a phase 1 for each of two targets, and a search.
ASKED = ("--only", "TF")


@needs_ray
@pytest.mark.parametrize("listens", [False, True])
def test_an_address_that_does_not_answer_is_one_line(tmp_path, command_line, monkeypatch, listens):
    monkeypatch.setattr("bistil.study.cluster._ANSWER_SECONDS", 1.0)
    file = tiny_study.write_study(tmp_path / "data")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        if listens:
            nobody.listen()
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        code, _, said = command_line("study", file, "--output", tmp_path / "out", "--ray", address)
    assert code == 2 and said.count("\n") == 1 and f"no Ray cluster answers at {address}" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cluster(tmp_path):
    """A head that works nothing, and two workers with a core each: the address, and the workers' processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    program = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
    common = ["--node-ip-address=127.0.0.1", "--object-store-memory=80000000"]
    worker = [f"--address=127.0.0.1:{port}", "--num-cpus=1"]
    started = []
    # Its sockets' paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short:
        head = ["--head", "--num-cpus=0", f"--port={port}", "--include-dashboard=false", f"--temp-dir={short}"]
        try:
            # One after the other: on a small machine a start takes long, and Ray does not wait for ever.
            for number, words in enumerate((head, worker, worker)):
                said = tmp_path / f"ray-{number}.log"
                with said.open("w") as log:
                    started.append(psutil.Popen([*program, *common, *words], stdout=log, stderr=log, env=environment))
                until(lambda said=said: "runtime started" in said.read_text())
            yield f"127.0.0.1:{port}", started[1:]
        finally:
            for process in reversed(started):
                kill(process)


def until(what, seconds=600):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def kill(process):
    """A machine that is switched off: a process with all that it has started."""
    with suppress(psutil.NoSuchProcess):
        own = [process, *process.children(recursive=True)]
        for one in own:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@needs_ray
@pytest.mark.timeout(1800)
def test_of_two_workers_one_dies_and_only_its_stage_is_done_again(tmp_path, cluster, command_line):
    address, machines = cluster
    # Long enough to die in.
    long = "held_out_blocks = 2\n[phase1.training]\ncheckpoint_steps = 20\nsteps = "
    text = tiny_study.STUDY.replace("held_out_blocks = 2\n[phase1.training]\nsteps = 2", f"{long}300")
    assert long in text
    file = tiny_study.write_study(tmp_path / "data", text)
    output, said = tmp_path / "out", tmp_path / "said.log"
    words = ["study", str(file), *ASKED, "--no-report"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with said.open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "bistil", *words, "--output", str(output), "--ray", address],
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip

    def lines():
        """Of the workers: process, stage, what it said."""
        found = [line for file in output.glob("jobs/*.log") for line in file.read_text().splitlines()]
        told = (re.match(r"\S+ \S+ (\d+) (.*): (started|going on|done in)", line) for line in found)
        return [match.groups() for match in told if match]

    def under_way():
        """A machine in a phase 1, when each one that is begun and not done has a checkpoint; else none.

        On a busy machine one worker may have done all before the other has started.
        """
        found = lines()
        done = {name for _, name, word in found if word == "done in"}
        begun = {name: int(pid) for pid, name, _ in found if name.startswith("phase 1") and name not in done}
        saved = {path.parts[len(output.parts) + 1] for path in output.glob("work/phase1-*/**/checkpoint-*")}
        own = {one: {child.pid for child in one.children(recursive=True)} for one in machines}
        working = [one for one in machines if own[one] & set(begun.values())]
        return working[0] if working and len(begun) == len(saved) else None

    try:
        machine = until(lambda: under_way() or driver.poll() is not None)
        assert machine is not True, said.read_text()
        kill(machine)
        assert driver.wait(600) == 0, said.read_text()
    finally:
        driver.kill()
        driver.wait()
    begun = Counter(name for _, name, word in lines() if word != "done in")
    again = [name for name, count in begun.items() if count > 1]
    assert len(again) == 1 and again[0].startswith("phase 1") and begun[again[0]] == 2
    assert [word for _, name, word in lines() if name == again[0]] == ["started", "going on", "done in"]
    code, _, errors = command_line(*words, "--output", tmp_path / "alone")
    assert code == 0, errors
    ours, theirs = ({one.place: one.scores for one in read_records(folder).points}
                    for folder in (output, tmp_path / "alone"))  # fmt: skip
    assert ours == theirs and len(ours) == 2
    kept = [sorted(path.name for path in (folder / "stages").glob("*.json")) for folder in (output, tmp_path / "alone")]
    assert kept[0] == kept[1]
