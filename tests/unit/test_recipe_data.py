"""The download of the shipped recipes' data: what comes is whole and what was meant, and the recipes name just that."""

import hashlib
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
SCRIPT = runpy.run_path(str(RECIPES / "ner_en_sw_data.py"))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls the script on a mirror of two small files; gives status and what it said."""
    files = {
        "text.en.txt": ("owner/one/main/train.en", None),
        "dev.en.conll": ("owner/two/main/dev.txt", hashlib.sha256(b"Nairobi B-LOC\n").hexdigest()),
    }
    mirror = tmp_path / "mirror"
    for (place, _), content in zip(files.values(), (b"Water boils.\n", b"Nairobi B-LOC\n"), strict=True):
        (mirror / place).parent.mkdir(parents=True)
        (mirror / place).write_bytes(content)
    main = SCRIPT["main"]
    monkeypatch.setitem(main.__globals__, "FILES", files)
    output = tmp_path / "data"

    def calling():
        monkeypatch.setattr(sys, "argv", ["script", "--mirror", mirror.as_uri(), "--output", str(output)])
        return main(), capsys.readouterr()

    calling.mirror, calling.output = mirror, output
    return calling


def test_all_files_come_once(call):
    assert call()[0] == 0
    assert {path.name: path.read_bytes() for path in call.output.iterdir()} == {
        "text.en.txt": b"Water boils.\n",
        "dev.en.conll": b"Nairobi B-LOC\n",
    }
    (call.output / "text.en.txt").write_text("one's own\n")
    status, said = call()
    assert status == 0 and "bytes" not in said.out, "what is there stays"
    assert (call.output / "text.en.txt").read_text() == "one's own\n"


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "digest"), (b"Nairobi O\n", "digest"), (None, "No such file")], ids=str
)
def test_another_file_is_refused_in_a_line(call, content, reason):
    file = call.mirror / "owner/two/main/dev.txt"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    status, said = call()
    assert status == 2 and reason in said.err and said.err.count("\n") == 1
    assert [path.name for path in call.output.iterdir()] == ["text.en.txt"]


def test_an_empty_text_is_refused(call):
    (call.mirror / "owner/one/main/train.en").write_bytes(b"")
    status, said = call()
    assert status == 2 and "empty" in said.err and not any(call.output.iterdir())


@pytest.mark.parametrize("recipe", ["ner-en-sw.toml", "ner-few-labels.toml"])
def test_the_recipes_name_what_is_downloaded(recipe):
    def strings(value):
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from strings(part)
        elif isinstance(value, str) and "/" in value:
            yield value

    named = set(strings(tomllib.loads((RECIPES / recipe).read_text())))
    assert named and named <= {f"data/{name}" for name in SCRIPT["FILES"]}
