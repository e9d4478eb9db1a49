"""A run's folder: stages are skipped, done again, or gone on with, and other people's files are safe."""

import json
import os
import shutil

import pytest

from bistil.errors import InputError
from bistil.runs.folder import RunFolder
from bistil.runtime import digests
from bistil.runtime.artefacts import whole_folder

IDENTITY = {"teacher": "t", "target": "it"}


def counted(calls, out, text="x"):
    def action(work):
        calls.append(sorted(p.name for p in work.iterdir()))
        out.write_text(text)
        return {"size": len(text)}

    return action


def test_a_stage_is_skipped_only_while_inputs_and_outputs_are_the_same(tmp_path):
    calls, out = [], tmp_path / "run" / "out.txt"
    for inputs in ({"a": 1}, {"a": 1}, {"a": 2}):
        with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
            result = run.stage("one", inputs, [out], counted(calls, out))
    assert len(calls) == 2
    assert result.figures == {"size": 1}
    out.unlink()
    with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
        assert not run.stage("one", {"a": 2}, [out], counted(calls, out)).skipped
        assert run.stage("one", {"a": 2}, [out], counted(calls, out)).skipped
    record = json.loads((tmp_path / "run/stages/one.json").read_text())
    assert record["peak_memory_bytes"] > 1e6
    assert record["inputs"] == {"a": 2}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def model_of(calls, output):
    """A stage that writes a folder of three files."""

    def action(_work):
        calls.append(1)
        with whole_folder(output, record={"kind": "model"}) as partial:
            (partial / "deep").mkdir()
            for name in ("model", "deep/part", "README.md"):
                (partial / name).write_text(f"what {name} holds")
        return {"size": 3}

    return action


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda run: flip(run / "out/model"), "out/model"),
        (lambda run: (run / "out/deep/part").write_text(""), "out/deep/part"),
        (lambda run: (run / "out/deep/part").unlink(), "out/deep/part"),
        (lambda run: shutil.rmtree(run / "out"), "out"),
    ],
)
def test_a_damaged_output_is_made_again(tmp_path, capfd, damage, named):
    calls, out = [], tmp_path / "run/out"
    for _ in range(2):
        with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
            run.stage("one", {}, [out], model_of(calls, out))
        assert len(calls) == 1
    damage(tmp_path / "run")
    with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
        assert not run.stage("one", {}, [out], model_of(calls, out)).skipped
        assert f"[bistil] one: {named} was damaged or deleted since: made again\n" in capfd.readouterr().err
        assert run.stage("one", {}, [out], model_of(calls, out)).skipped
    assert (out / "deep/part").read_text() == "what deep/part holds"


def test_an_edited_card_touched_files_and_files_beside_are_no_damage_and_are_not_destroyed(tmp_path):
    calls, out = [], tmp_path / "run/out"
    with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
        run.stage("one", {}, [out], model_of(calls, out))
    (out / "README.md").write_text("mine")
    (out / "deep/notes.txt").write_text("mine too")
    os.utime(out / "model")
    with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
        assert run.stage("one", {}, [out], model_of(calls, out)).skipped
        for change in ({"other": 1}, {}):
            if not change:
                flip(out / "model")
            with pytest.raises(InputError, match=r"holds deep/notes\.txt, which bistil did not.*move") as error:
                run.stage("one", change, [out], model_of(calls, out))
            assert len(str(error.value).splitlines()) == 1
        assert (out / "deep/notes.txt").read_text() == "mine too"
        (out / "deep/notes.txt").rename(tmp_path / "notes.txt")
        assert not run.stage("one", {"other": 1}, [out], model_of(calls, out)).skipped


def test_an_untouched_output_is_not_read_again(tmp_path, monkeypatch):
    out = tmp_path / "run/out"
    with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
        run.stage("one", {}, [out], model_of([], out))
        monkeypatch.setattr(digests, "_digests", {})
        monkeypatch.setattr(digests.hashlib, "file_digest", None)
        assert run.stage("one", {}, [out], model_of([], out)).skipped


def test_damaged_records_are_not_done_or_one_line(tmp_path, capfd):
    calls, out = [], tmp_path / "run/out"
    with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
        run.stage("one", {}, [out], model_of(calls, out))
    record = tmp_path / "run/stages/one.json"
    sound = record.read_text()
    for content in ("", sound[:40], sound.replace('"size": 3', '"size": 4'), "[1]", "\x00"):
        record.write_text(content)
        with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
            assert run.stage("one", {}, [out], model_of(calls, out)).figures == {"size": 3}
        assert f"one: {record} is damaged and does not count" in capfd.readouterr().err
    assert len(calls) == 6
    # One of version 0.1 has no digests of what was written, and no seal.
    old = json.loads(sound)
    record.write_text(json.dumps({key: value for key, value in old.items() if key not in ("files", "seal")}))
    flip(out / "model")
    with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
        assert run.stage("one", {}, [out], model_of(calls, out)).skipped
    for content in ("{", "[]", '{"identity": 3}'):
        (tmp_path / "run/run.json").write_text(content)
        with pytest.raises(InputError, match=r"run\.json is damaged.*name another output folder") as error:
            RunFolder(tmp_path / "run", identity=IDENTITY)
        assert len(str(error.value).splitlines()) == 1


def test_a_damaged_clock_starts_the_stage_s_work_anew(tmp_path, capfd):
    seen = []

    def interrupted(work):
        seen.append((work / "half").exists())
        (work / "half").write_text("1")
        raise KeyboardInterrupt

    for _ in range(2):
        with RunFolder(tmp_path / "run", identity=IDENTITY) as run, pytest.raises(KeyboardInterrupt):
            run.stage("one", {}, [], interrupted)
        (tmp_path / "run" / "work/one/clock.json").write_text("{")
    assert seen == [False, False]
    assert "clock.json is damaged and does not count" in capfd.readouterr().err


def test_an_interrupted_stage_finds_its_work_and_its_time(tmp_path):
    def interrupted(work):
        (work / "half").write_text("1")
        raise KeyboardInterrupt

    seen = []

    def going_on(work):
        seen.append((work / "half").exists())
        return {}

    with RunFolder(tmp_path / "run", identity=IDENTITY) as run:
        for name, second in (("one", {"a": 1}), ("two", {"a": 2})):
            with pytest.raises(KeyboardInterrupt):
                run.stage(name, {"a": 1}, [], interrupted)
            run.stage(name, second, [], going_on)
    assert seen == [True, False]


def test_folders_that_are_not_this_run_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("!")
    with pytest.raises(InputError, match="already exists: it is not empty and holds no run"):
        RunFolder(tmp_path / "mine", identity=IDENTITY)
    second = pytest.raises(InputError, match="another process")
    with RunFolder(tmp_path / "run", identity=IDENTITY), second:
        RunFolder(tmp_path / "run", identity=IDENTITY)
    with pytest.raises(InputError, match="target is 'it' there and 'sw' here"):
        RunFolder(tmp_path / "run", identity={**IDENTITY, "target": "sw"})
    with pytest.raises(InputError, match="already exists and is a file"):
        RunFolder(tmp_path / "mine/thesis.txt", identity=IDENTITY)
