"""What is not ours stays: every output of every command and function, against everything that may be in its place.

`OUTPUTS` and `INPUTS` name all options that take a path, so that none is forgotten; `CASES` says how each command is
called. Whatever is refused is refused in one line, and what lay on the disk lies there unchanged.
"""

import hashlib
import inspect
import json
import os
import shutil
import signal
import stat
import sys
from dataclasses import replace as changed
from pathlib import Path
from typing import get_type_hints

import pytest
import tiny
import typer
from small_stages import Write, named
from test_sparse_artefact import HEADS, random_sft
from transformers import AutoModel, AutoModelForTokenClassification
from web_library import stand_in

from bistil.cli import app, main
from bistil.errors import InputError
from bistil.export import libraries
from bistil.runs.folder import RunFolder
from bistil.runtime.artefacts import (
    claim,
    discard_output,
    discard_work,
    file_digest,
    open_work,
    whole_file,
    whole_folder,
    write_json,
)
from bistil.runtime.ownership import is_our_file, is_our_folder, not_ours

# Every option of every command that takes a path, by what it is.
OUTPUTS = {
    "adapt --output": "folder",
    "benchmark --output": "file",
    "benchmark --plot": "file",
    "demo --output": "run",
    "distill --output": "folder",
    "evaluate --predictions": "file",
    "evaluate --record": "file",
    "export --output": "folder",
    "export --web": "folder",
    "finetune --output": "folder",
    "finetune --sft": "folder",
    "init --output": "file",
    "predict --output": "file",
    "predict --record": "file",
    "run --output": "run",
    "study --output": "run",
    "sft compose --output": "folder",
    "sft convert --output": "folder",
    "sft merge --output": "folder",
    "trim --counts": "kept",
    "trim --output": "folder",
    "trim --plot": "file",
}
INPUTS = {
    "adapt --text",
    "benchmark --text",
    "evaluate --model",
    "evaluate --file",
    "export --labelled",
    "export --text",
    "export --web-libraries",
    "finetune --teacher",
    "finetune --text",
    "init files",
    "predict file",
    "run recipe",
    "serve --token-file",
    "study file",
    "study --data",
    "trim --check",
    "trim --sft",
}
FOLDERS = [name for name, kind in OUTPUTS.items() if kind == "folder"]
FILES = [name for name, kind in OUTPUTS.items() if kind == "file"]
SHORT = ["--dense-epochs", "0.2", "--sparse-epochs", "0.2", "--batch-size", "4"]
TAGS = "token-classification"
# Per output, the command without that output (a name in capitals is an input), and its inputs.
CASES = {
    "adapt --output": ("adapt -m MODEL -l sw --text SW --steps 1 --batch-size 2 --block-length 16", "MODEL SW"),
    "benchmark --output": (
        "benchmark --model MODEL --model x=TAGGER --text EN --rounds 1 --examples 2 --length 8",
        "MODEL EN",
    ),
    "benchmark --plot": ("benchmark --model MODEL --rounds 1 --examples 2 --length 0 --max-length 8", "MODEL"),
    "demo --output": ("demo", ""),
    "distill --output": (
        "distill -t MODEL --text en=EN --text sw=SW --steps 1 --batch-size 2 --block-length 16 --language-sft sw=LANG",
        "MODEL EN SW LANG",
    ),
    "evaluate --predictions": (f"evaluate --model TAGGER --task {TAGS} --file TEST --record eval.json", "TAGGER TEST"),
    "evaluate --record": (f"evaluate --model TAGGER --task {TAGS} --file TEST", "TAGGER TEST"),
    "export --output": ("export TAGGER --labelled TEST --most-loss 100", "TAGGER TEST"),
    "export --web": ("export TAGGER --web-libraries MODULES", "TAGGER MODULES"),
    "finetune --output": (
        f"finetune -m MODEL --task {TAGS} --train TRAIN --test TEST {' '.join(SHORT)}",
        "MODEL TRAIN TEST",
    ),
    "finetune --sft": (f"finetune -m MODEL --task {TAGS} --train TRAIN -o out-model {' '.join(SHORT)}", "MODEL TRAIN"),
    "init --output": ("init EN SW", "EN SW"),
    "predict --output": ("predict TAGGER EN --record predicted.json", "TAGGER EN"),
    "predict --record": ("predict TAGGER EN --output predicted", "TAGGER EN"),
    "run --output": ("run RECIPE", "EN SW"),
    "study --output": ("study STUDY", "EN SW"),
    "sft compose --output": ("sft compose LANG TASK", "LANG TASK"),
    "sft convert --output": ("sft convert LANG --to legacy", "LANG"),
    "sft merge --output": ("sft merge MODEL LANG TASK", "MODEL LANG TASK"),
    "trim --counts": ("trim --model MODEL --text en=EN --dry-run", "EN"),
    "trim --output": ("trim --model MODEL --text en=EN --text sw=SW --sft LANG --keep KEEP", "MODEL EN LANG KEEP"),
    "trim --plot": ("trim --model MODEL --text en=EN --dry-run", "MODEL EN"),
}
NAMES = {"trim --plot": "out.svg", "benchmark --plot": "out.svg"}
# What the same call made already is left, as in a run.
SKIPPED = "distill --output"
WITHOUT_FORCE = ("demo --output", "run --output", "study --output")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, a tagger, two SFTs, texts, tags and a recipe."""
    folder = tmp_path_factory.mktemp("made")
    base = tiny.model(layers=2)
    tiny.save(base, folder / "model")
    base = AutoModel.from_pretrained(folder / "model")
    language = random_sft(base, seed=1)
    language.provenance.kind = "language"
    language.save(folder / "lang")
    tagger = AutoModelForTokenClassification.from_pretrained(folder / "model", num_labels=5)
    task = random_sft(tagger, seed=2, heads=HEADS)
    task.provenance.architecture = "BertForTokenClassification"
    task.provenance.labels = ["O", "B-X", "I-X", "B-Y", "I-Y"]
    task.save(folder / "task")
    tagger.config.id2label = dict(enumerate(task.provenance.labels))
    tagger.config.label2id = {label: i for i, label in tagger.config.id2label.items()}
    tiny.save(tagger, folder / "tagger")
    (folder / "en.txt").write_text(tiny.ENGLISH)
    (folder / "sw.txt").write_text(tiny.SWAHILI)
    (folder / "keep.txt").write_text("river\n")
    for name, text in (("train", tiny.ENGLISH), ("test", tiny.SWAHILI)):
        lines = [
            "\n".join(f"{w} {'B-X' if w[0].isupper() else 'O'}" for w in line.split()) for line in text.split("\n")
        ]
        (folder / f"{name}.conll").write_text("\n\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text(
        'teacher = "model"\nsource = "en"\ntarget = "sw"\ntext = { en = "en.txt", sw = "sw.txt" }\n'
    )
    (folder / "study.toml").write_text(
        'name = "x"\nteacher = "model"\nsource = "en"\ntext = { en = "en.txt", sw = "sw.txt" }\n'
        'targets = { sw = { test = "test.conll" } }\nsystems = { "trim only" = { kind = "trim-only" } }\n'
        "phase1 = {}\nfinetune = {}\nphase2 = {}\n"
        f'task = {{ kind = "{TAGS}", train = "train.conll", dev = "test.conll" }}\n'
    )
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A working folder with copies of the inputs, and things of somebody else."""
    shutil.copytree(made, tmp_path / "in")
    monkeypatch.setattr(libraries, "FILES", stand_in(tmp_path / "in" / "modules"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "mine.txt").write_text("years of work")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BISTIL_CACHE", str(tmp_path / "cache"))
    return tmp_path


PATHS = {
    "MODEL": "in/model", "TAGGER": "in/tagger", "LANG": "in/lang", "TASK": "in/task", "EN": "in/en.txt",
    "SW": "in/sw.txt", "KEEP": "in/keep.txt", "TRAIN": "in/train.conll", "TEST": "in/test.conll",
    "MODULES": "in/modules", "RECIPE": "in/recipe.toml", "STUDY": "in/study.toml",
}  # fmt: skip


def command(output, path, *, force=True):
    words = CASES[output][0]
    for name, value in PATHS.items():
        words = words.replace(name, value)
    # `--task` is an option, TASK an SFT: only whole words in capitals are inputs.
    option = output.split()[-1]
    return [*words.split(), option, str(path), *(["--force"] if force and output not in WITHOUT_FORCE else [])]


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: exit code and what stands on standard error."""

    def run(arguments):
        monkeypatch.setattr(sys, "argv", ["bistil", *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return stopped.value.code or 0, capsys.readouterr().err

    return run


def tree(folder):
    """Everything below a folder: kind, bytes, link targets and modes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = str(path.readlink())
        elif stat.S_ISREG(mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = ""
        found[str(path.relative_to(folder))] = (mode, path.lstat().st_ino, content)
    return found


def refused(call, place, arguments, message):
    before = tree(place)
    code, said = call(arguments)
    assert code == 2, said
    assert said.startswith("bistil: error: ") and said.count("\n") == 1, said
    assert message in said
    assert tree(place) == before


def commands():
    """Names and functions of all commands."""
    groups = [("", app), *((f"{group.name} ", group.typer_instance) for group in app.registered_groups)]
    for prefix, group in groups:
        for command in group.registered_commands:
            yield f"{prefix}{command.name or command.callback.__name__}", command.callback


def options():
    """All parameters of all commands that take a path."""
    for command, function in commands():
        hints = get_type_hints(function)
        for name, parameter in inspect.signature(function).parameters.items():
            if "pathlib.Path" in str(hints[name]):
                argument = isinstance(parameter.default, typer.models.ArgumentInfo)
                yield f"{command} {name if argument else f'--{name}'.replace('_', '-')}"


def test_every_path_is_in_one_of_the_tables():
    found = set(options())
    assert len(found) > 20
    assert found == OUTPUTS.keys() | INPUTS
    assert CASES.keys() == OUTPUTS.keys()


def test_every_command_with_an_output_can_replace_what_is_ours():
    by_name = dict(commands())
    for output in OUTPUTS.keys() - set(WITHOUT_FORCE):
        name = output.rpartition(" ")[0]
        assert "force" in inspect.signature(by_name[name]).parameters, name


def put(place, state, output):
    """Put something where the output is to be; returns its path and a part of the message."""
    out = place / NAMES.get(output, "out")
    if state == "foreign file":
        out.write_text("years of work")
        return out, "already exists"
    if state == "foreign folder":
        shutil.copytree(place / "mine", out)
        return out, "already exists"
    if state == "symlink to a file":
        out.symlink_to("mine.txt")
        return out, "is a symbolic link (to mine.txt)"
    if state == "symlink to a folder":
        out.symlink_to("mine", target_is_directory=True)
        return out, "is a symbolic link (to mine)"
    if state == "symlink to an empty folder":
        (place / "empty").mkdir()
        out.symlink_to("empty", target_is_directory=True)
        return out, "is a symbolic link (to empty)"
    if state == "dangling symlink":
        out.symlink_to("nowhere")
        return out, "is a symbolic link (to nowhere)"
    if state == "pipe":
        os.mkfifo(out)
        return out, "is a device, pipe or socket"
    if state == "parent is a file":
        return place / "mine.txt" / out.name, "mine.txt is not a folder"
    if state == "long name":
        return place / ("x" * 240 + out.suffix), "bytes at most"
    if state == "no name":
        return Path(".."), "no name for an output"
    raise ValueError(state)


STATES = (
    "foreign file", "foreign folder", "symlink to a file", "symlink to a folder", "symlink to an empty folder",
    "dangling symlink", "pipe", "parent is a file", "long name", "no name",
)  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_whatever_is_there_stays(call, place, output, state):
    if OUTPUTS[output] == "kept" and state == "foreign folder":
        pytest.skip("files are added to it")
    if OUTPUTS[output] in ("kept", "run") and state == "no name":
        pytest.skip("what is there is gone on with, so it may be called . or ..")
    if output == "trim --plot" and state == "no name":
        pytest.skip("a plot has a suffix, so it has a name")
    path, message = put(place, state, output)
    refused(call, place, command(output, path), message)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no devices")
@pytest.mark.parametrize("output", [name for name in FILES if name != "trim --plot"])
def test_a_device_stays(call, place, output):
    before = Path("/dev/null").stat()
    refused(call, place, command(output, "/dev/null"), "/dev/null is a device")
    after = Path("/dev/null").stat()
    assert (before.st_ino, before.st_mode, before.st_rdev) == (after.st_ino, after.st_mode, after.st_rdev)


def inputs_of(output):
    return [PATHS[name] for name in CASES[output][1].split()]


@pytest.mark.parametrize("output", [*FOLDERS, *FILES])
def test_an_input_stays_by_whatever_name(call, place, output):
    if output == "trim --plot":  # which needs its suffix
        path = place / "hard.svg"
        path.hardlink_to(place / "in/en.txt")
        refused(call, place, command(output, path), "is also an input (in/en.txt)")
        refused(call, place, command(output, "in/model/new.svg"), "lies in an input (in/model)")
        return
    for one in inputs_of(output):
        message = f"is also an input ({one})"
        refused(call, place, command(output, one), message)
        refused(call, place, command(output, f"in/../mine/../{one}"), message)
        refused(call, place, command(output, place / one), message)
        (place / "linked").symlink_to("in", target_is_directory=True)
        refused(call, place, command(output, f"linked/{Path(one).name}"), message)
        (place / "linked").unlink()
        if (place / one).is_file():
            (place / "hard").hardlink_to(place / one)
            refused(call, place, command(output, "hard"), message)
            (place / "hard").unlink()
        else:
            refused(call, place, command(output, f"{one}/new"), f"lies in an input ({one})")
            refused(call, place, command(output, f"{one}/deep/new"), f"lies in an input ({one})")
        # A folder of ours that holds it, also if only by a link there.
        if OUTPUTS[output] == "folder":
            refused(call, place, command(output, "in"), "holds an input")


@pytest.mark.parametrize("output", FOLDERS)
def test_ours_with_something_else_in_it_stays(call, place, output):
    shutil.copytree(place / "in/lang", place / "out")
    refused(call, place, command(output, "out", force=False), "out already exists: name another output folder")
    for name in ("notes.txt", "deep/er.txt", "deep/README.md"):
        path = place / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        refused(call, place, command(output, "out"), f"out already exists and holds {name}")
        path.unlink()
    (place / "out/link").symlink_to("../mine")
    refused(call, place, command(output, "out"), "holds link")


@pytest.mark.parametrize("output", FOLDERS)
def test_a_run_and_work_stay(call, place, output):
    with RunFolder(place / "run", identity={"name": "x"}):
        pass
    refused(call, place, command(output, "run"), "holds a run of bistil")
    open_work(place / "kept")
    refused(call, place, command(output, "kept"), "already exists")


@pytest.mark.parametrize("output", ["adapt --output", "distill --output", "finetune --output"])
def test_something_else_where_work_is_kept_stays(call, place, output):
    work = place / ".out.work"
    shutil.copytree(place / "mine", work)
    refused(call, place, command(output, "out"), ".out.work is where work is kept")
    shutil.rmtree(work)
    work.symlink_to("mine", target_is_directory=True)
    refused(call, place, command(output, "out"), ".out.work is a symbolic link")


def test_outputs_of_one_command_are_apart(call, place):
    evaluate = command("evaluate --record", "x.json")
    refused(call, place, [*evaluate, "--predictions", "in/../x.json"], "is named for two outputs")
    finetune = command("finetune --output", "x")
    refused(call, place, [*finetune, "--sft", "x"], "is named for two outputs")
    refused(call, place, [*finetune, "--sft", "x/sft"], "x/sft lies in another output, x")
    refused(call, place, [*finetune, "--sft", ".x.work/sft"], "lies in another output")
    refused(call, place, [*command("trim --output", "x"), "--counts", "x/counts"], "lies in another output, x")


@pytest.mark.parametrize("output", [*FOLDERS, *FILES])
def test_new_then_ours_then_replaced(call, place, output):
    """Below a linked folder, in an empty folder, and again by force; in between nothing is replaced."""
    (place / "disk").mkdir()
    (place / "link").symlink_to("disk", target_is_directory=True)
    out = Path("link") / NAMES.get(output, "out")
    if OUTPUTS[output] == "folder":
        out.mkdir()
    code, said = call(command(output, out, force=False))
    assert code == 0, said
    if output == SKIPPED:
        finished = tree(place)
        code, said = call(command(output, out, force=False))
        assert code == 0 and "is done: the same call made it" in said and tree(place) == finished
        refused(call, place, [*command(output, out, force=False), "--seed", "5"], "already exists")
    else:
        refused(call, place, command(output, out, force=False), "already exists")
    if OUTPUTS[output] == "folder":
        record = json.loads((out / "bistil.json").read_text())
        listed = {name: file_digest(out / name) for name in record["files"]}
        assert listed == record["files"] and "bistil" in record["versions"] and record["kind"] not in ("", "folder")
        there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
        assert {name for name in there - listed.keys() if Path(name).name != "README.md"} == {"bistil.json"}
        assert is_our_folder(out) and not_ours(out) is None
        (out / "README.md").write_text("edited")
    before = out.stat().st_ino
    code, said = call(command(output, out))
    assert code == 0, said
    assert out.stat().st_ino != before
    if output not in ("evaluate --predictions", "predict --output"):
        assert OUTPUTS[output] == "folder" or is_our_file(out)
    assert [p.name for p in place.iterdir() if p.name.startswith(".")] == []
    assert [p.name for p in (place / "disk").iterdir()] == [out.name]


def test_predictions_that_were_edited_stay(call, place):
    assert call(command("evaluate --predictions", "out", force=False))[0] == 0
    (place / "out").write_text((place / "out").read_text() + "a comment\n")
    refused(call, place, command("evaluate --predictions", "out"), "bistil did not make it")


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_a_drawing_says_whose_it_is(place, call, form):
    path = place / f"out.{form}"
    assert call(command("trim --plot", path, force=False))[0] == 0
    assert is_our_file(path)
    from matplotlib.figure import Figure

    other = place / f"other.{form}"
    Figure(figsize=(2, 2)).savefig(other)
    assert not is_our_file(other)


def test_what_the_first_release_wrote_is_ours(place):
    """Its folders have records without lists; names tell then."""
    for record in (
        {"versions": {"bistil": "0.1.0"}, "kind": "task model"},
        {"base": "b", "sparse_fine_tunings": ["s"], "scale": 1.0},
        {"kind": "pretrained", "name": "e5-small", "bistil": "0.1.0"},
    ):
        old = place / "old"
        shutil.copytree(place / "in/model", old)
        (old / "bistil.json").write_text(json.dumps(record))
        (old / "README.md").write_text("card")
        claim(folders=[old], force=True)
        (old / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"holds notes\.txt"):
            claim(folders=[old], force=True)
        (old / "notes.txt").unlink()
        shutil.copytree(place / "in/tagger", old / "tagger")
        with pytest.raises(InputError, match="holds tagger/config"):
            claim(folders=[old], force=True)
        shutil.rmtree(old)
    (place / "in/lang/bistil.json").unlink()
    claim(folders=[place / "in/lang"], force=True)
    (place / "phase1/lrf2").mkdir(parents=True)
    write_json(place / "phase1/phase1.json", {"students": {}, "blocks": {}, "steps": 1})
    write_json(place / "phase1/lrf2/bistil.json", {"versions": {"bistil": "0.1.0"}})
    (place / "phase1/lrf2/config.json").write_text("{}")
    claim(folders=[place / "phase1"], force=True)
    records = {
        "evaluation": {"metric": "f1", "score": 1.0, "scores": {}, "task": "x", "examples": 1,
                       "versions": {"bistil": "0.1.0"}},
        "benchmark": {"schema": 1, "texts": "x", "models": [], "machine": {"bistil": "0.1.0"}},
    }  # fmt: skip
    for name, record in records.items():
        (place / name).write_text(json.dumps(record))
        assert is_our_file(place / name)
    # A model's record is no record that --record wrote.
    assert not is_our_file(place / "phase1/lrf2/bistil.json")


def functions():
    """Every function that writes: called with an output, and leave to replace what is ours."""
    from bistil.demo.data import prepare_demo_data
    from bistil.distillation import general, student, task, task_folders
    from bistil.export.folder import export_model
    from bistil.measuring.evaluation import evaluate_folder
    from bistil.models.writing import write_model
    from bistil.report import save_summary, summary_from, write_report
    from bistil.settings.recipe import FinetuneSettings, Phase1Settings, StudentSettings
    from bistil.sparse import SparseFineTuning, wearing, write_legacy
    from bistil.sparse import language as adaptation
    from bistil.vocabulary import trim_vocabulary
    from bistil.vocabulary.report import draw_dry_run
    from bistil.vocabulary.restoring import restore_vocabulary

    model, lang = Path("in/model"), Path("in/lang")
    texts = {"en": [Path("in/en.txt")], "sw": [Path("in/sw.txt")]}
    fit = task.Fitting(data=None, settings=FinetuneSettings(), folder=Path("w"))

    def write_summary(out):
        from test_report import SUMMARY

        save_summary(out, summary_from(SUMMARY), replace=True)

    def report(out):
        from test_report import SUMMARY

        write_report(summary_from(SUMMARY), out, replace=True)

    def sft():
        return SparseFineTuning.load("in/lang")

    return {
        "trim_vocabulary": ("folder", lambda out: trim_vocabulary(model, texts, out, replace=True)),
        "distill_general": ("folder", lambda out: general.distill_general(
            model, [StudentSettings(name="a", reduction=2)], texts, out, settings=Phase1Settings(), seed=0,
            work=Path("w"), replace=True)),
        "write_task_teacher": ("folder", lambda out: task_folders.write_task_teacher(
            model, fit, task_folders.TaskOutputs(model=out, replace=True))),
        "write_task_teacher, sft": ("folder", lambda out: task_folders.write_task_teacher(
            model, fit, task_folders.TaskOutputs(model=Path("o"), sft=out, replace=True))),
        "write_task_student": ("folder", lambda out: task_folders.write_task_student(
            model, model, fit, task_folders.TaskOutputs(model=out, replace=True))),
        "adapt": ("folder", lambda out: adaptation.adapt(
            "in/model", texts["sw"], out, language="sw", settings=adaptation.AdaptSettings(), work=Path("w"),
            replace=True)),
        "evaluate, predictions": ("file", lambda out: evaluate_folder(
            "in/tagger", task=TAGS, files=["in/test.conll"], predictions=out, replace=True)),
        "evaluate, record": ("file", lambda out: evaluate_folder(
            "in/tagger", task=TAGS, files=["in/test.conll"], record_file=out, replace=True)),
        "export_model": ("folder", lambda out: export_model("in/tagger", out, replace=True)),
        "SparseFineTuning.save": ("folder", lambda out: sft().save(out, replace=True)),
        "copy_student": ("folder", lambda out: student.copy_student(model, [1], output=out, replace=True)),
        "dressed_copy": ("folder", lambda out: wearing.dressed_copy(model, lang, output=out, replace=True)),
        "restore_vocabulary": ("folder", lambda out: restore_vocabulary(
            Path("in/tagger"), base=model, kept=None, output=out, replace=True)),
        "write_model": ("folder", lambda out: write_model(
            out, None, None, record={}, title="", summary="", languages=[], replace=True)),
        "write_legacy": ("file", lambda out: write_legacy(sft(), out)),
        "write_report": ("file", report),
        "save_summary": ("file", write_summary),
        "draw_dry_run": ("file", lambda out: draw_dry_run([], out, form="svg", replace=True)),
        "prepare_demo_data": ("folder", lambda out: prepare_demo_data(out)),
        "RunFolder": ("folder", lambda out: RunFolder(out, identity={})),
        "open_work": ("folder", lambda out: open_work(out, anew=True)),
        "discard_work": ("folder", discard_work),
    }  # fmt: skip


@pytest.mark.parametrize(
    "state", [state for state in STATES if state not in ("parent is a file", "no name", "long name")]
)
@pytest.mark.parametrize("name", functions())
def test_functions_leave_everything_too(place, name, state):
    if name == "prepare_demo_data":
        pytest.importorskip("chatterbot_corpus")
        pytest.importorskip("spellchecker")
    write = functions()[name][1]
    path, _ = put(place, state, name)
    before = tree(place)
    with pytest.raises(InputError) as caught:
        write(path)
    assert "\n" not in str(caught.value)
    assert tree(place) == before


@pytest.mark.parametrize(
    "state", [state for state in STATES if state not in ("parent is a file", "no name", "long name")]
)
def test_writing_alone_refuses_as_well(place, state):
    """Who forgets to ask first destroys nothing either; a file of our own folders may be replaced, but not a link."""
    path, _ = put(place, state, "")
    before = tree(place)
    with pytest.raises(InputError), whole_file(path, replace=True) as partial:
        partial.write_text("new")
    with pytest.raises(InputError), whole_folder(path, replace=True) as partial:
        (partial / "new").write_text("new")
    if state != "foreign file":
        with pytest.raises(InputError):
            write_json(path, {}, inner=True)
        with pytest.raises(InputError):
            discard_output(path)
    assert tree(place) == before


def test_what_comes_in_between_stays(place):
    """Asked again at the moment of replacing."""
    before = tree(place / "mine")
    with (
        pytest.raises(InputError, match="bistil did not make it"),
        whole_folder(place / "out", replace=True) as partial,
    ):
        (partial / "new").write_text("new")
        shutil.copytree(place / "mine", place / "out")
    assert {name: one[2] for name, one in tree(place / "out").items()} == {name: one[2] for name, one in before.items()}
    with pytest.raises(InputError, match="symbolic link"), whole_file(place / "file", replace=True) as partial:
        (place / "file").symlink_to("mine.txt")
    assert (place / "mine.txt").read_text() == "years of work"
    assert not list(place.glob(".*"))


def test_a_stage_leaves_what_it_did_not_make(place):
    """A stage that is done again removes its own output, and nothing that somebody put there."""

    def run(text):
        stage = Write(text=text)
        with RunFolder(place / "run", identity={}, names=named(stage, one="out")) as folder:
            return folder.make(stage)

    out = place / "run/out"
    run("a")
    run("b")
    assert (out / "model").read_text() == "b-out"
    (out / "notes.txt").write_text("mine")
    assert run("b").skipped
    before = tree(out)
    with pytest.raises(InputError, match=r"holds notes\.txt"):
        run("c")
    assert tree(out) == before
    (out / "notes.txt").unlink()
    shutil.move(out, place / "moved")
    out.symlink_to(place / "moved", target_is_directory=True)
    assert run("b").skipped
    before = tree(place / "moved")
    with pytest.raises(InputError, match="symbolic link"):
        run("d")
    assert tree(place / "moved") == before and out.is_symlink()


def test_a_run_whose_input_is_where_a_stage_writes(place):
    from bistil.method import run_recipe
    from bistil.settings.recipe import load_recipe

    recipe = load_recipe(place / "in/recipe.toml")
    with RunFolder(place / "run", identity={}):
        pass
    (place / "run/trimmed").mkdir()
    shutil.copyfile(place / "in/en.txt", place / "run/trimmed/en.txt")
    before = tree(place)
    inside = changed(recipe, text={**recipe.text, "en": [str(place / "run/trimmed/en.txt")]})
    with pytest.raises(InputError, match="trimmed holds an input"):
        run_recipe(inside, place / "run")
    assert tree(place) == before


def test_a_run_may_be_called_by_a_dot(place, monkeypatch):
    with RunFolder(place / "run", identity={}):
        pass
    monkeypatch.chdir(place / "run")
    with RunFolder(Path(), identity={}) as run:
        assert run.make(Write()).skipped is False


def test_a_lock_that_is_a_link_is_not_followed(place):
    with RunFolder(place / "run", identity={}):
        pass
    (place / "run/.lock").unlink()
    (place / "run/.lock").symlink_to(place / "mine.txt")
    with pytest.raises(InputError, match="symbolic link"):
        RunFolder(place / "run", identity={})
    assert (place / "mine.txt").read_text() == "years of work"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(call, place):
    (place / "closed").mkdir(mode=0o500)
    refused(call, place, command("evaluate --record", "closed/out"), "closed is not writable")
