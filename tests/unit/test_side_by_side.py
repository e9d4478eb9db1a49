"""Stages side by side: which may begin, who makes them, what becomes of one that fails, and how long it takes."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from small_stages import Size, Write

from bistil.errors import InputError
from bistil.runs.board import Board
from bistil.runs.folder import RunFolder, State
from bistil.runs.forecast import Estimate, Forecast
from bistil.runs.side_by_side import _Start, _work, _Worker, check_jobs, how_many, make_side_by_side
from bistil.runs.stage import Product, Stage

# Longer than two processes take to begin on a busy machine.
PATIENCE = 120.0


@dataclass(frozen=True, kw_only=True)
class Meets(Stage[Size]):
    """Is made only while another is made too."""

    KIND: ClassVar[str] = "meets"

    name: str
    other: str
    place: str

    def make(self, _place):
        mine, theirs = (Path(self.place, name) for name in (self.name, self.other))
        mine.touch()
        until = time.monotonic() + PATIENCE
        while not theirs.exists():
            if time.monotonic() > until:
                raise InputError(f"{self.other} never came")
            time.sleep(0.01)
        return Size(size=1)


@dataclass(frozen=True, kw_only=True)
class Ends(Stage[Size]):
    """Refuses, or takes its process with it."""

    KIND: ClassVar[str] = "ends"

    after: Product | None = None
    dies: bool = False

    def make(self, _place):
        if self.dies:
            os._exit(7)
        raise InputError("the soup is cold")


@dataclass(frozen=True, kw_only=True)
class Measures(Stage[Size]):
    """Says how many threads it has."""

    KIND: ClassVar[str] = "measures"
    ALONE: ClassVar[bool] = True

    def make(self, _place):
        return Size(size=torch.get_num_threads())


@dataclass(frozen=True, kw_only=True)
class Warns(Stage[Size]):
    """Says something that people want to know before anything long begins."""

    KIND: ClassVar[str] = "warns"
    FIRST: ClassVar[bool] = True

    after: Product
    wrong: bool = False

    def make(self, place):
        if self.wrong:
            raise InputError("nothing can be said")
        return Size(size=len(place.path(self.after).joinpath("model").read_text()))

    def notices(self, result, place):
        return [f"mind the {result.size} in {place.path(self.after).name}"]


def made(folder, *stages, jobs=2):
    with RunFolder(folder, identity={}) as run:
        make_side_by_side(Board(run, stages), jobs, Forecast([]))
        return [run.make(stage) for stage in stages]


@pytest.mark.usefixtures("two_cores")
def test_stages_are_made_at_the_same_time_by_processes_that_are_gone_afterwards(tmp_path):
    base = Write(text="base")
    pair = [Meets(name=a, other=b, place=str(tmp_path)) for a, b in (("a", "b"), ("b", "a"))]
    above = Write(text="above", after=base.product("out"))
    results = made(tmp_path / "run", *pair, above, Measures())
    assert [one.skipped for one in results] == [False] * 4
    assert (tmp_path / "run" / "made").is_dir() and not list((tmp_path / "run" / "work").glob("*"))
    assert multiprocessing.active_children() == []
    # What measures has all threads.
    assert results[-1].result.size == torch.get_num_threads()
    again = made(tmp_path / "run", *pair, above)
    assert [one.skipped for one in again] == [True] * 3


@pytest.mark.usefixtures("two_cores")
def test_what_fails_is_one_line_and_all_else_is_made(tmp_path, caplog):
    base = Write(text="base")
    refuses, dies = Ends(after=base.product("out")), Ends(after=base.product("out"), dies=True)
    others = [Write(text=str(i), after=base.product("out")) for i in range(3)]
    with pytest.raises(InputError, match=r"the stage 'ends \w+' and 1 more failed: .*; the same command goes on"):
        made(tmp_path / "run", refuses, dies, *others)
    said = [one.getMessage() for one in caplog.records if "failed: " in one.getMessage()]
    assert len(said) == 2 and any("the soup is cold" in one for one in said)
    assert any("its process ended with code 7; a process that takes too much memory is killed" in one for one in said)
    with RunFolder(tmp_path / "run", identity={}) as run:
        assert all(run.known(stage) is not None for stage in others)
    assert multiprocessing.active_children() == []


def test_a_process_that_ends_before_it_reads_its_stage_is_one_line_too(tmp_path):
    stage = Write(text="a")
    with RunFolder(tmp_path, identity={}) as run:
        worker = _Worker(run)
    worker.stage, worker.process = stage, SimpleNamespace(join=lambda: None, exitcode=-9)
    worker.connection, theirs = multiprocessing.Pipe()
    worker.connection.send("a stage")
    # What is unread then makes it a reset, and not an end.
    theirs.close()
    same, wrong = worker.take()
    assert same is stage and wrong.startswith("its process ended with code -9")


class Hasty:
    """A connection whose other end, as soon as it has an answer, ends the process that sent it."""

    def __init__(self, connection):
        self.connection = connection

    def recv(self):
        return self.connection.recv()

    def send(self, what):
        self.connection.send(what)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_process_that_is_ended_when_all_is_done_was_not_interrupted(tmp_path, capfd):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with RunFolder(tmp_path / "run", identity={}) as run:
        start = _Start(run.folder, run.names, run.shared, shown=True, progress="lines")
        worker = context.Process(target=_work, args=(Hasty(theirs), start))
        worker.start()
        ours.send((Write(text="a"), 1))
        assert ours.poll(PATIENCE) and ours.recv() is None
        worker.join(PATIENCE)
    assert worker.exitcode == 128 + signal.SIGTERM and "interrupted" not in capfd.readouterr().err


def said_of(caplog):
    return [one.getMessage() for one in caplog.records if "mind the" in one.getMessage()]


@pytest.mark.usefixtures("two_cores")
def test_what_people_should_know_is_said_before_anything_else_begins(tmp_path, caplog):
    base = Write(text="base")
    warns, above = Warns(after=base.product("out")), Write(text="above", after=base.product("out"))
    with RunFolder(tmp_path / "board", identity={}) as run:
        board = Board(run, [above, warns])
        assert board.ready() == [base]
        run.make(base)
        board.done(base)
        assert board.ready() == [warns] and board.ready() == []
        run.make(warns)
        board.done(warns)
        assert board.ready() == [above]
        # Made by an earlier call, it is said again, and nothing waits.
        caplog.clear()
        run.look_again()
        assert Board(run, [above, warns]).ready() == [above] and len(said_of(caplog)) == 1
        # What cannot be said holds nothing up.
        failing = replace(warns, wrong=True)
        board = Board(run, [above, failing])
        assert board.ready() == [failing]
        board.done(failing, "nothing can be said")
        assert board.ready() == [above]
    caplog.clear()
    made(tmp_path / "run", above, warns)
    assert said_of(caplog) == ["mind the 8 in out"]  # by who hands out the stages, once


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr("bistil.runs.side_by_side.cores", lambda: 2)


def test_as_many_stages_are_made_as_cores_and_memory_allow(monkeypatch):
    from bistil.runs import side_by_side

    monkeypatch.setattr(side_by_side, "cores", lambda: 4)
    monkeypatch.setattr(side_by_side.psutil, "virtual_memory", lambda: SimpleNamespace(available=7.0))
    needs = SimpleNamespace(memory=2.0)
    assert how_many(8, needs) == (3, "memory for 3")
    assert how_many(2, needs) == (2, "")
    monkeypatch.setattr(side_by_side, "cores", lambda: 1)
    assert how_many(2, needs) == (1, "cores for 1")


def test_processes_that_share_trainings_make_no_stages_side_by_side(monkeypatch):
    check_jobs(2)
    monkeypatch.setattr("bistil.runs.side_by_side.processes", lambda: SimpleNamespace(num_processes=2))
    check_jobs(1)
    with pytest.raises(InputError, match="--jobs and torchrun are two ways to use several processes: leave one out"):
        check_jobs(2)


def estimate(name, seconds, *below, alone=False, state="to do"):
    return Estimate(
        name=name, kind="k", key=name, seconds=seconds, stands_on=below, alone=alone, state=State(state), memory=2.0**30
    )


def test_the_time_of_stages_side_by_side_is_that_of_the_longest_way():
    plan = Forecast([
        estimate("done", 100.0, state="done"),
        estimate("trim", 10.0, "done"),
        estimate("phase1", 60.0, "trim"),
        estimate("teacher", 30.0, "trim"),
        estimate("student", 40.0, "phase1", "teacher"),
        estimate("copied", 20.0, "teacher"),
        estimate("benchmark", 5.0, "student", "copied", alone=True),
    ])  # fmt: skip
    assert plan.seconds == plan.side_by_side(1) == 165.0
    assert plan.side_by_side(2) == plan.side_by_side(3) == 10 + 60 + 40 + 5
    assert plan.urgency()["trim"] == 115.0 and plan.urgency()["copied"] == 25.0
    assert "2 side by side, 2.0 GiB of memory" in plan.line(2) and "side by side" not in plan.line()
    assert Forecast([]).side_by_side(2) == 0.0


def test_what_measures_begins_when_nothing_else_is_made():
    plan = Forecast([estimate("measure", 5.0, alone=True), estimate("a", 10.0), estimate("b", 20.0)])
    assert plan.side_by_side(2) == 25.0
