"""Stages are found by their keys: skipped, done again, gone on with or moved; other people's files are safe."""

import json
import os
import shutil
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from typing import Any, ClassVar

import pytest
from small_stages import Act, Size, Write, named

from bistil.errors import InputError
from bistil.runs.folder import Name, RunFolder
from bistil.runs.stage import File, Stage, cosmetic
from bistil.runtime import artefacts, digests, litter
from bistil.settings.parsing import typed

IDENTITY = {"teacher": "t", "target": "it"}


def run_folder(tmp_path, names=None, **options):
    return RunFolder(tmp_path / "run", identity=IDENTITY, names=names, **options)


def make(tmp_path, stage, names=None):
    with run_folder(tmp_path, names or named(stage, one="out")) as run:
        return run.make(stage)


def records(tmp_path):
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "run/stages").glob("*.json"))]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_stage_is_skipped_only_while_inputs_and_outputs_are_the_same(tmp_path):
    calls = []
    for text in ("a", "a", "bb"):
        made = make(tmp_path, Write(text=text, calls=calls))
    assert len(calls) == 2
    assert made.result == Size(size=2, parts={"model": 1}) and not made.skipped
    again = make(tmp_path, Write(text="bb", calls=calls))
    assert again.skipped and again.result == made.result and len(calls) == 2
    # What the second wrote is where the first one's was: its record went with it.
    (one,) = records(tmp_path)
    assert one["peak_memory_bytes"] > 1e6
    assert one["inputs"] == {"text": "bb", "names": ["out"], "after": None}
    assert {"python", "torch", "transformers"} <= one["versions"].keys()
    assert one["machine"]["processor"] and one["machine"]["threads"]
    assert not make(tmp_path, Write(text="a", calls=calls)).skipped


def test_a_record_keeps_the_versions_that_made_it(tmp_path, monkeypatch):
    made = make(tmp_path, Write())
    monkeypatch.setattr("bistil.runs.folder.versions", lambda: {"bistil": "9"})
    again = make(tmp_path, Write())
    assert again.skipped and again.versions == made.versions != {"bistil": "9"}
    assert make(tmp_path, Write(text="other")).versions == {"bistil": "9"}


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda run: flip(run / "out/model"), "out/model"),
        (lambda run: (run / "out/deep/part").write_text(""), "out/deep/part"),
        (lambda run: (run / "out/deep/part").unlink(), "out/deep/part"),
        (lambda run: shutil.rmtree(run / "out"), "out"),
    ],
)
def test_a_damaged_output_is_made_again(tmp_path, capfd, damage, what):
    calls = []
    for _ in range(2):
        make(tmp_path, Write(calls=calls))
    assert len(calls) == 1
    damage(tmp_path / "run")
    with run_folder(tmp_path, named(Write(), one="out")) as run:
        assert not run.make(Write(calls=calls)).skipped
    assert f"[bistil] one: {what} was damaged or deleted since: made again\n" in capfd.readouterr().err
    assert make(tmp_path, Write(calls=calls)).skipped
    assert (tmp_path / "run/out/deep/part").read_text() == "more"


def test_an_edited_card_touched_files_and_files_beside_are_no_damage_and_are_not_destroyed(tmp_path):
    out = tmp_path / "run/out"
    make(tmp_path, Write())
    (out / "README.md").write_text("mine")
    (out / "deep/notes.txt").write_text("mine too")
    os.utime(out / "model")
    assert make(tmp_path, Write()).skipped
    for text in ("other", "x"):
        if text == "x":
            flip(out / "model")
        with pytest.raises(InputError, match=r"holds deep/notes\.txt, which bistil did not.*move") as error:
            make(tmp_path, Write(text=text))
        assert len(str(error.value).splitlines()) == 1
    assert (out / "deep/notes.txt").read_text() == "mine too"
    (out / "deep/notes.txt").rename(tmp_path / "notes.txt")
    assert not make(tmp_path, Write(text="other")).skipped


def test_an_untouched_output_is_not_read_again(tmp_path, monkeypatch):
    make(tmp_path, Write())
    monkeypatch.setattr(digests.hashlib, "file_digest", None)
    assert make(tmp_path, Write()).skipped


def test_damaged_records_are_not_done_or_one_line(tmp_path, capfd):
    calls = []
    make(tmp_path, Write(calls=calls))
    (record,) = (tmp_path / "run/stages").glob("*.json")
    sound = record.read_text()
    for content in ("", sound[:40], sound.replace('"size": 1', '"size": 4'), "[1]", "\x00"):
        record.write_text(content)
        assert make(tmp_path, Write(calls=calls)).result.size == 1
        assert f"{record} is damaged and does not count" in capfd.readouterr().err
    assert len(calls) == 6
    for content in ("{", "[]", '{"identity": 3}'):
        (tmp_path / "run/run.json").write_text(content)
        with pytest.raises(InputError, match=r"run\.json is damaged.*name another output folder") as error:
            run_folder(tmp_path)
        assert len(str(error.value).splitlines()) == 1


def test_the_outputs_of_an_earlier_version_s_run_are_replaced(tmp_path):
    """Its records are of another shape, and do not say which files it wrote; the folders say so themselves."""
    make(tmp_path, Write())
    (record,) = (tmp_path / "run/stages").glob("*.json")
    record.unlink()
    artefacts.write_sealed(tmp_path / "run/stages/one.json", {"digest": "1", "figures": {}, "files": {}})
    assert not make(tmp_path, Write(text="new")).skipped
    assert (tmp_path / "run/out/model").read_text() == "new-out"


def interrupting(seen):
    def action(work):
        seen.append((work / "half").exists())
        (work / "half").write_text("1")
        raise KeyboardInterrupt

    return action


def test_a_damaged_clock_starts_the_stage_s_work_anew(tmp_path, capfd):
    seen = []
    for _ in range(2):
        with run_folder(tmp_path) as run, pytest.raises(KeyboardInterrupt):
            run.make(Act(action=interrupting(seen)))
        next((tmp_path / "run/work").glob("act-*/clock.json")).write_text("{")
    assert seen == [False, False]
    assert "clock.json is damaged and does not count" in capfd.readouterr().err


def test_an_interrupted_stage_finds_its_work_and_its_time(tmp_path):
    seen = []
    with run_folder(tmp_path) as run:
        for first, second in (({"a": 1}, {"a": 1}), ({"b": 1}, {"b": 2})):
            with pytest.raises(KeyboardInterrupt):
                run.make(Act(inputs_of_it=first, action=interrupting([])))
            run.make(Act(inputs_of_it=second, action=lambda work: seen.append((work / "half").exists())))
    assert seen == [True, False]


@pytest.mark.parametrize("retired", [False, True])
def test_work_of_a_stage_that_was_killed_at_its_very_end_is_removed(tmp_path, monkeypatch, retired):
    """Its record is there, so that the stage is done; its work is there too, whole or on its way out."""
    monkeypatch.setattr("bistil.runs.folder.discard_work", lambda _: None)
    make(tmp_path, Write())
    monkeypatch.undo()
    (work,) = (tmp_path / "run/work").iterdir()
    if retired:
        child = get_context("spawn").Process(target=int)
        child.start(), child.join()
        old = work.with_name(f".{work.name}.{litter._machine()}-{child.pid}-abcd1234.retired") / "old"
        old.parent.mkdir()
        work.rename(old)
    assert make(tmp_path, Write()).skipped
    assert list((tmp_path / "run/work").iterdir()) == []


@dataclass(frozen=True, kw_only=True)
class InCommon(Stage[Size]):
    """Writes into work that stages have in common, and may be stopped then."""

    KIND: ClassVar[str] = "in-common"

    number: int
    stopped: bool = cosmetic(False)
    seen: list[Any] = cosmetic(factory=list)

    def make(self, place):
        folder = place.common("teacher")
        if folder is not None:
            self.seen.append(sorted(path.name for path in folder.glob("[0-9]")))
            artefacts.open_work(folder)
            (folder / str(self.number)).touch()
        if self.stopped:
            raise KeyboardInterrupt
        return Size(size=0)


def test_work_in_common_stays_until_the_run_is_through(tmp_path):
    seen = []
    with pytest.raises(KeyboardInterrupt), run_folder(tmp_path) as run:
        run.make(InCommon(number=1, seen=seen))
        run.make(InCommon(number=2, seen=seen, stopped=True))
    with run_folder(tmp_path) as run:
        run.make(InCommon(number=1, seen=seen))
        run.make(InCommon(number=2, seen=seen))
        assert run.common.is_dir()
    assert seen == [[], ["1"], ["1", "2"]] and not run.common.exists()
    # Where several processes work, one cannot know when the others are through.
    with run_folder(tmp_path, shared=True) as run:
        run.make(InCommon(number=3, seen=seen))
    assert len(seen) == 3


def test_what_a_stage_stands_on_is_made_first_and_once(tmp_path):
    calls = []
    base = Write(text="base", calls=calls)
    tops = [Write(text=f"top{i}", after=base.product("out"), calls=calls) for i in range(2)]
    with run_folder(tmp_path) as run:
        for top in tops:
            run.make(top)
        assert [made.result.size for made in run.results] == [4, 4, 4]
    assert len(calls) == 3
    # A stage that is done does not ask for what it stood on.
    shutil.rmtree(run.path(base.product("out")))
    with run_folder(tmp_path) as run:
        assert run.make(tops[0]).skipped
        assert not run.make(Write(text="third", after=base.product("out"), calls=calls)).skipped
    assert len(calls) == 5
    assert (run.path(tops[0].product("out")) / "model").read_text() == "base-outtop0-out"


def test_names_may_change_and_change_places(tmp_path, capfd):
    calls = []
    one, two = Write(text="1", calls=calls), Write(text="2", calls=calls)
    for names in ({"a": "s/a", "b": "s/b"}, {"b": "s/b", "a": "s/a"}, {"c": "s/c", "a": "s/a"}):
        with run_folder(tmp_path, named(one, two, **names)) as run:
            run.make(one), run.make(two)
        first, second = names.values()
        assert (tmp_path / "run" / first / "model").read_text() == "1-out"
        assert (tmp_path / "run" / second / "model").read_text() == "2-out"
        assert all(made.skipped for made in run.results) or names == {"a": "s/a", "b": "s/b"}
    assert calls == ["a", "b"]
    assert sorted(path.name for path in (tmp_path / "run/s").iterdir()) == ["a", "c"]
    assert not list((tmp_path / "run/work").iterdir())
    assert "[bistil] c: now in " in capfd.readouterr().err
    # What somebody else put there stays, and nothing is moved.
    (tmp_path / "run/s/d").mkdir()
    (tmp_path / "run/s/d/mine").write_text("mine")
    with pytest.raises(InputError, match="s/d"):
        run_folder(tmp_path, named(one, two, d="s/d", a="s/a"))
    assert (tmp_path / "run/s/c/model").exists() and (tmp_path / "run/s/d/mine").exists()


def test_an_interrupted_change_of_places_is_gone_on_with(tmp_path, monkeypatch):
    calls = []
    one, two = Write(text="1", calls=calls), Write(text="2", calls=calls)
    with run_folder(tmp_path, named(one, two, a="a", b="b")) as run:
        run.make(one), run.make(two)
    moves = []
    whole = RunFolder._move

    def move(self, *arguments):
        if len(moves) == stop:
            raise KeyboardInterrupt
        moves.append(1)
        whole(self, *arguments)

    monkeypatch.setattr(RunFolder, "_move", move)
    for stop in (0, 1, 2, 3):
        moves.clear()
        with pytest.raises(KeyboardInterrupt):
            run_folder(tmp_path, named(one, two, b="b", a="a") if stop % 2 else named(one, two, a="b", b="a"))
    monkeypatch.setattr(RunFolder, "_move", whole)
    with run_folder(tmp_path, named(one, two, x="b", y="a")) as run:
        assert run.make(one).skipped and run.make(two).skipped
    assert (tmp_path / "run/b/model").read_text() == "1-out" and len(calls) == 2


def test_a_replaced_product_goes_with_all_its_parts(tmp_path):
    wide, narrow = Write(names=("a", "b")), Write(names=("a",))
    names = {
        wide.key: Name("wide", {"a": "s/a", "b": "s/b"}),
        narrow.key: Name("narrow", {"a": "s/a"}),
    }
    make(tmp_path, wide, names)
    make(tmp_path, narrow, names)
    assert [path.name for path in (tmp_path / "run/s").iterdir()] == ["a"]
    assert len(records(tmp_path)) == 1


def share(folder, numbers):
    for number in numbers:
        with RunFolder(folder, identity={}, shared=True) as run:
            run.make(Write(text=f"{number}", after=Write(text="base").product("out")))


def test_processes_share_a_folder_and_each_stage_is_done_once(tmp_path):
    context = get_context("spawn")
    both = [context.Process(target=share, args=(tmp_path / "run", numbers)) for numbers in ((1, 2, 3), (3, 2, 1))]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(records(tmp_path)) == 4
    assert len({record["inputs"]["text"] for record in records(tmp_path)}) == 4


def test_folders_that_are_not_this_run_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("!")
    with pytest.raises(InputError, match="already exists: it is not empty and holds no run"):
        RunFolder(tmp_path / "mine", identity=IDENTITY)
    with run_folder(tmp_path), pytest.raises(InputError, match="another process"):
        run_folder(tmp_path)
    with pytest.raises(InputError, match="target is 'it' there and 'sw' here"):
        RunFolder(tmp_path / "run", identity={**IDENTITY, "target": "sw"})
    with pytest.raises(InputError, match="already exists and is a file"):
        RunFolder(tmp_path / "mine/thesis.txt", identity=IDENTITY)


def test_files_are_known_by_their_content(tmp_path):
    for name, content in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(content)
    a, b, c = (File.at(tmp_path / name) for name in "abc")

    @dataclass(frozen=True)
    class Read(Stage[Size]):
        KIND: ClassVar[str] = "read"
        file: File
        label: str = cosmetic("")

        def make(self, place):
            raise NotImplementedError

    assert Read(a).key == Read(b, "called otherwise").key != Read(c).key

    class Newer(Read):
        VERSION: ClassVar[int] = 2

    assert Newer(a).key != Read(a).key
    with pytest.raises(TypeError, match="cannot be a field"):
        _ = Read(object()).key


def test_results_come_back_as_they_were():
    @dataclass(frozen=True)
    class Deep:
        sizes: list[Size]
        by_name: dict[str, Size | None]
        anything: dict[str, Any]

    deep = Deep([Size(size=1)], {"a": None, "b": Size(size=2, parts={"x": 3})}, {"k": [1, {"z": None}]})
    from dataclasses import asdict

    back = typed(Deep, json.loads(json.dumps(asdict(deep))))
    assert back == deep
    assert {f.name for f in fields(back)} == {"sizes", "by_name", "anything"}
    assert replace(back, sizes=[]) != deep
