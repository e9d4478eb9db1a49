"""A run's folder: stages are skipped, done again, or gone on with, and other people's files are safe."""

import json

import pytest

from bistil.errors import InputError
from bistil.stages import RunFolder

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
