"""The command line: wrong use, and what the operating system refuses, in one line each; every help has an example."""

import errno
import logging
import re
import resource
import signal

import pytest
import tiny
import typer
from typer.testing import CliRunner

from bistil._version import __version__
from bistil.cli import COMMANDS, app
from bistil.commands.options import RENAMED, in_new_words
from bistil.errors import InputError
from bistil.runtime import process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "No such command 'nosuch': see bistil --help"),
        (["run"], "Missing argument 'recipe': see bistil run --help"),
        (["run", "x.toml", "--outptu", "y"], "No such option: --outptu"),
        (["demo", "--seed", "x"], "Invalid value for '--seed'"),
        (["sft", "merge"], "see bistil sft merge --help"),
        (["traim"], "No such command 'traim'. Did you mean 'trim'? See bistil --help"),
        (["run", "x.toml", "--set"], "requires an argument: see bistil run --help"),
        (["run", "my", "recipe.toml"], "unexpected 'recipe.toml': leave it out, or quote a name that has spaces"),
        (
            ["run", "x.toml", "-o", "a", "--output=b"],
            "--output/-o is given twice, and takes one value (Folder for the models, records and",
        ),
        (
            ["trim", "-m", "a", "--text", "b", "--verify", "--no-verify"],
            "--verify/--no-verify is given twice, and takes one value (Prove on",
        ),
        # Of the words behind it one is the file.
        (["study", "--only", "A", "B", "s.toml"], "unexpected 's.toml': --only takes one value, and is repeated"),
        (["study", "s.toml", "--only=A", "b c"], "is repeated for each: --only A --only 'b c': see bistil study"),
        (["study", "s.toml", "--table", "--dry-run"], "--table is of what is done"),
        (["study", "s.toml", "--table"], "--output is missing: name the study's folder"),
        # Of a setting the option's name is said.
        (["finetune", "-m", "a", "--train", "b", "-o", "c", "--task", "ner"], "error: --task is 'ner'; it must be"),
        (["trim", "-m", "a", "--text", "b", "-o", "c", "--vocabulary-size", "x"], "error: --vocabulary-size is 'x'"),
    ],
)
def test_wrong_use_is_one_line(command_line, arguments, message):
    code, out, said = command_line(*arguments)
    assert code == 2 and not out
    assert said.startswith("bistil: error: ") and said.count("\n") == 1
    assert message in said


@pytest.mark.parametrize("arguments", [[], ["sft"]])
def test_without_arguments_the_help_is_shown(command_line, arguments):
    code, out, said = command_line(*arguments)
    assert code == 2 and "Usage: bistil" in out and not said


def test_version(command_line):
    assert command_line("--version") == command_line("-V") == (0, f"bistil {__version__}\n", "")


@pytest.fixture
def loggers(monkeypatch):
    """What `-q` and `-v` change is as before afterwards."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "warning")
    before = [(one, one.level, [*one.handlers]) for one in map(logging.getLogger, (None, "bistil"))]
    yield
    for one, level, handlers in before:
        one.setLevel(level)
        one.handlers[:] = handlers


@pytest.mark.usefixtures("loggers")
def test_quiet_leaves_results_and_errors_and_verbose_says_where_an_error_comes_from(command_line, tmp_path):
    (tmp_path / "en.txt").write_text(tiny.ENGLISH)
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI)
    distill = ["distill", "--teacher", "x", "--text", f"en={tmp_path}/en.txt", "--random-start", "-o", tmp_path / "out"]
    assert "--random-start is now" in command_line(*distill)[2]
    said = command_line("-q", *distill)[2]
    assert said.startswith("bistil: error: ") and said.count("\n") == 1
    said = command_line("--verbose", "run", tmp_path / "none.toml")[2]
    assert said.startswith("Traceback") and said.splitlines()[-1].startswith("bistil: error: cannot read recipe")
    assert "exclude each other" in command_line("-q", "-v", "licences")[2]


def test_a_flag_may_be_said_twice(command_line, tmp_path):
    assert "cannot read recipe" in command_line("run", tmp_path / "none.toml", "--check", "--check")[2]


@pytest.mark.parametrize("path", [[], ["run"], ["distill"], ["sft"], ["sft", "merge"]], ids=" ".join)
def test_help_shows_no_type_beside_a_flag(path):
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).output
    assert "--help" in shown and "bool" not in shown.lower()


def commands():
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        for inner in getattr(command, "commands", {}):
            yield [name, inner]
        if not hasattr(command, "commands"):
            yield [name]


def test_the_helps_are_of_all_commands():
    assert {path[0] for path in commands()} == set(COMMANDS)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_help_says_what_to_type(path):
    shown = " ".join(CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).output.split())
    assert re.search(rf"Example[^:]*: bistil {' '.join(path)} ", shown)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_help_shows_all_there_is_at_80_columns(path):
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"}).output
    # A sum of styles between brackets or a name's end would be lost in silence.
    assert "--help" in shown and "\N{HORIZONTAL ELLIPSIS}" not in shown
    options = [name for one in parameters(path) if one.param_type_name == "option" for name in one.opts]
    narrow = re.sub(r"[^\w<>|\[\]-]", "", shown)
    assert all(name[:12] in narrow for name in options)


@pytest.mark.parametrize(
    ("path", "default"),
    [
        (["run"], "runs/NAME, after the recipe"),
        (["study"], "its folder"),
        (["benchmark"], "128"),
        (["distill"], "auto"),
    ],
    ids=str,
)
def test_defaults_that_are_words_are_shown(path, default):
    shown = " ".join(CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).output.split())
    assert f"[default: {default}]" in shown


def parameters(path):
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    return command.params


def repeatable():
    for path in commands():
        for one in parameters(path):
            if getattr(one, "multiple", False) and all(other.nargs == 1 for other in parameters(path)):
                yield pytest.param(path, max(one.opts, key=len), id=f"{' '.join(path)} {one.name}")


@pytest.mark.parametrize(("path", "flag"), list(repeatable()))
def test_two_values_behind_an_option_that_is_repeated(command_line, path, flag):
    words = []
    for one in parameters(path):
        if one.param_type_name == "argument":
            words.append("1")
        elif one.required and flag not in one.opts:
            words += [one.opts[0], "1"]
    code, _, said = command_line(*path, *words, flag, "1", "2")
    assert code == 2 and said.count("\n") == 1
    assert f"unexpected '2': {flag} takes one value, and is repeated for each: {flag} 1 {flag} 2" in said


def test_a_full_disk_is_one_line(command_line, tmp_path):
    """Files may not grow beyond 20 kB here, so the model cannot be written."""
    tiny.model(layers=2).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, _, said = command_line(
            "trim", "--model", tmp_path / "model", "--text", tmp_path / "sw.txt", "--output", tmp_path / "out"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    last = said.splitlines()[-1]
    assert last.startswith("bistil: error: cannot write ") and "make room" in last
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_an_output_below_a_file_is_one_line(command_line, tmp_path):
    tiny.model(layers=2).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI)
    code, _, said = command_line(
        "adapt", "--model", tmp_path / "model", "--language", "sw", "--text", tmp_path / "sw.txt", "--output",
        tmp_path / "sw.txt" / "out", "--block-length", "16", "--steps", "1",
    )  # fmt: skip
    assert code == 2 and said.count("\n") == 1
    assert f"cannot write {tmp_path}/sw.txt/out: {tmp_path}/sw.txt is not a folder" in said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, two texts, and a folder that holds somebody's file."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.model(layers=2).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "en.txt").write_text(tiny.ENGLISH)
    (folder / "sw.txt").write_text(tiny.SWAHILI)
    (folder / "mine").mkdir()
    (folder / "mine/notes.txt").write_text("mine")
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--learning-rate", "nan"], "--learning-rate is nan; it must be above 0"),
        (["--block-length", "0"], "--block-length is 0; it must be at least 4"),
        (["--block-length", "141"], "block_length is 141, but the model has 140 positions"),
        (["--set", "training.batch_sise=2"], "did you mean 'batch_size'"),
        (["--spread", "first"], "give --depth too"),
        (["--output", "mine"], "mine already exists"),
        (["--output", "en.txt"], "en.txt is also an input"),
        (["--reduction", "3"], "does not divide the teacher's 2 layers"),
        (["--language-sft", "fr=model"], "a language SFT for fr"),
        (["--language-sft", "sw=model"], "sft_config.json"),
        (["--language-sft", "sw"], "write LANGUAGE=SFT"),
    ],
)
def test_distill_refuses_in_one_line_and_leaves_nothing(command_line, folder, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    standard = ["--teacher", "model", "--text", "en=en.txt", "--text", "sw=sw.txt"]
    standard += [] if "--output" in options else ["--output", "out"]
    code, _, said = command_line("distill", *standard, *options)
    assert code == 2 and said.count("\n") == 1 and message in said
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_other_errors_keep_their_traceback(command_line, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ECONNRESET, "a fault of the program")

    monkeypatch.setattr("bistil.demo.run.run_demo", fail)
    with pytest.raises(OSError, match="a fault of the program"):
        command_line("demo")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("error", [TimeoutError("of a pool"), InputError("of ours")])
def test_an_error_on_the_way_out_of_a_signal_is_not_shown(command_line, monkeypatch, number, error):
    def stopped_in_a_pool(*_, **__):
        try:
            # As the handler does; after a signal itself, a thread ends this process some seconds later.
            process._end(number)
        finally:
            try:
                raise KeyError("of a worker")
            except KeyError:
                raise error  # noqa: B904

    monkeypatch.setattr("bistil.demo.run.run_demo", stopped_in_a_pool)
    code, out, said = command_line("demo")
    assert (code, out) == (128 + number, "")
    assert said.startswith("bistil: interrupted;") and said.count("\n") == 1


def test_the_whole_demo_has_a_folder_of_its_own(command_line, monkeypatch):
    asked = []
    monkeypatch.setattr("bistil.demo.run.run_demo", lambda output, **how: asked.append((str(output), how["full"])))
    monkeypatch.setattr("bistil.commands.demo.say_what_next", lambda *_: None)
    for options in ((), ("--full",), ("--full", "--output", "own")):
        assert command_line("demo", *options)[0] == 0
    assert asked == [("runs/demo", False), ("runs/demo-full", True), ("own", True)]


@pytest.mark.parametrize("command", RENAMED)
def test_options_of_the_first_version_still_work_and_say_their_new_names(command, capsys):
    for old, new in RENAMED[command].items():
        assert in_new_words([command, old, "x", "-o", "out"]) == [command, *new, "x", "-o", "out"]
        assert capsys.readouterr().err == f"[bistil] {old} is now {' '.join(new)}; the old name goes in 0.3\n"
    assert in_new_words([command, "--no", "old=one"]) == [command, "--no", "old=one"]
    assert in_new_words(["run", "--dense", "--size"]) == ["run", "--dense", "--size"]
    assert not capsys.readouterr().err


def test_the_length_of_a_dense_fine_tuning_had_another_name(capsys):
    assert in_new_words(["finetune", "--dense", "--dense-epochs=2"])[1:] == ["--no-sparse", "--epochs=2"]
    assert capsys.readouterr().err.count("0.3") == 2
    assert in_new_words(["finetune", "--dense-epochs=2"]) == ["finetune", "--dense-epochs=2"]
