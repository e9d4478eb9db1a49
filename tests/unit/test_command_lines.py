"""What command lines come to: the same settings as in version 0.1, or one line that names the new option.

`tests/recorded/command_lines.json` was written by the command line of version 0.1 (commit 7aa61ec), with hand-written
options: per command the call of its first line, and of the others what differs from it.
"""

import json
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest

from bistil.cli import main
from bistil.commands.options import in_new_words
from bistil.distillation.task import Fitting

RECORDED = Path(__file__).parents[1] / "recorded" / "command_lines.json"
# Where the work of a command begins.
WORK = (
    "bistil.distillation.general.distill_general",
    "bistil.distillation.task_folders.write_task_teacher",
    "bistil.distillation.task_folders.write_task_student",
    "bistil.sparse.language.adapt",
    "bistil.vocabulary.trim_vocabulary",
    "bistil.vocabulary.trimming.plan",
    "bistil.measuring.evaluation.evaluate_folder",
)


class _CalledError(Exception):
    """Stops a command where its work begins."""


def plain(value):
    """A call's arguments as JSON has them."""
    if is_dataclass(value):
        return {"class": type(value).__name__, **plain(asdict(value))}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def flat(value, path=""):
    """Nested tables as one, keys with dots; lists and empty tables stay values."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {key: one for name, part in value.items() for key, one in flat(part, f"{path}.{name}".lstrip(".")).items()}


def in_one_call(start, *others, language_sfts=None, force_sfts=False):
    """A fine-tuning as the one function of version 0.1 was called, which is two now; of several teachers it had one."""
    *teachers, how, outputs = others
    fields = {name: getattr(how, name) for name in ("settings", "max_length", "seed", "label", "languages")}
    return (start, how.data), {
        **fields,
        "output": outputs.model,
        "sft_output": outputs.sft,
        "replace": outputs.replace,
        "teacher": teachers[0][0] if teachers else None,
        "work": how.folder,
        "language_sfts": language_sfts or {},
        "force_sfts": force_sfts,
    }


def call_of(line, monkeypatch):
    """What a command line would do: the arguments of the function that works."""
    calls = {}

    def stop(*arguments, **options):
        if any(isinstance(one, Fitting) for one in arguments):
            arguments, options = in_one_call(*arguments, **options)
        calls["arguments"], calls["options"] = plain(arguments), plain(options)
        for unknown in ("progress", "along"):
            calls["options"].pop(unknown, None)
        raise _CalledError

    def read(settings, **options):
        calls["data"], calls["reading"] = plain(settings), plain(options)

    for name in WORK:
        monkeypatch.setattr(name, stop)
    monkeypatch.setattr("bistil.distillation.task_data.read_task_data", read)
    monkeypatch.setattr("bistil.models.names.model_folder", lambda name: Path(name))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bistil", *line.split()])
    with pytest.raises(_CalledError):
        main()
    calls["arguments"] = {str(number): one for number, one in enumerate(calls["arguments"])}
    return flat(calls)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("en.txt", "sw.txt", "sw2.txt", "keep.txt", "train.conll", "sw.conll", "dev.conll", "test.conll"):
        Path(name).write_text("Some text.\n")


# Lines of version 0.1 in other words now: what the refusal names (None: they still work), and the line of today.
CHANGED = {
    "--random-start": (None, "--start random"),
    "--masked-lm": (None, "--hard-labels"),
    "--held-out sw=0.3": ("held_out_shares", "--held-out-shares sw=0.3"),
    "--held-out en=0.01": ("held_out_shares", "--held-out-shares en=0.01"),
    "--held-out-blocks 0": ("false: no limit", "--held-out-blocks false"),
    "--dense --dense-epochs": (None, "--no-sparse --epochs"),
    "--dense": (None, "--no-sparse"),
    "--preset short --dense-epochs": ("give --epochs", "--preset short --epochs"),
    "--column ignore=a --column ignore=b": ("--column ignore= is given twice", "--column ignore=a,b"),
    "--size": (None, "--vocabulary-size"),
    "--no-characters": (None, "--no-keep-characters"),
    "--characters": (None, "--keep-characters"),
}
# What is another thing on purpose: command, what the line has or ("not ...") lacks, and the value now.
OTHERWISE = [
    # The class's default, instead of one of 200 that was written by hand.
    ("adapt", "not --checkpoint-steps", "options.settings.training.checkpoint_steps", 100),
    # Sources of several languages stand under the key that they have in recipes; all rows of all files were read as the
    # last one's language.
    ("finetune", "--train en=train.conll", "data.train", []),
    ("finetune", "--train en=train.conll", "data.language", None),
    # Students take more steps where there are few labels (docs/gaps.md).
    ("finetune", "--teacher task-teacher --preset short", "options.settings.training.least_steps", 1250),
    # Settled on the machine where a training begins.
    *(
        (command, "not --precision", "options.settings.training.precision", "auto")
        for command in ("distill", "finetune", "adapt")
    ),
]


def recorded():
    for command, part in json.loads(RECORDED.read_text()).items():
        for line, differs in part["lines"]:
            wanted = {**part["first"], **differs}
            for where, part_of_line, key, value in OTHERWISE:
                if where == command and (part_of_line.removeprefix("not ") in line) != part_of_line.startswith("not "):
                    wanted[key] = value
            yield pytest.param(line, wanted, id=line.removeprefix(part["lines"][0][0]) or command)


def as_now(line):
    """A recorded line, what its refusal says (None: it is not refused), and the line that does the same."""
    for old, (said, new) in CHANGED.items():
        if old == "--dense" and "--dense " not in f"{line} ".replace("--dense-epochs", ""):
            continue
        if f" {old}" in line:
            return said, as_now(line.replace(f" {old}", f" {new}", 1))[1]
    return None, line


@pytest.mark.parametrize(("line", "wanted"), recorded())
@pytest.mark.usefixtures("inputs")
def test_a_command_line_means_what_it_meant(line, wanted, monkeypatch, capsys):
    said, line_now = as_now(line)
    if said is not None:
        monkeypatch.setattr("signal.signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["bistil", *line.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr().err
        assert stopped.value.code == 2 and shown.count("\n") == 1
        assert said in shown
    elif line_now != line:
        assert in_new_words(line.split()) == line_now.split()
    got = json.loads(json.dumps(call_of(line_now, monkeypatch)))
    assert {key: as_far_as_recorded(got.get(key, "(absent)"), one) for key, one in wanted.items()} == wanted


def as_far_as_recorded(got, wanted):
    """Without the settings that came since: within lists they are not flat."""
    if isinstance(got, list) and isinstance(wanted, list) and len(got) == len(wanted):
        return [as_far_as_recorded(one, other) for one, other in zip(got, wanted, strict=True)]
    if isinstance(got, dict) and isinstance(wanted, dict):
        return {key: as_far_as_recorded(got[key], wanted[key]) for key in got if key in wanted}
    return got


@pytest.mark.usefixtures("inputs")
def test_sources_keep_their_languages(monkeypatch):
    line = "finetune -m m --task token-classification --train en=train.conll --train sw=sw.conll"
    got = call_of(f"{line} --language-sft en=x -o out", monkeypatch)
    assert (got["data.sources.en"], got["data.sources.sw"]) == (["train.conll"], ["sw.conll"])
    assert (got["reading.sources.en"], got["reading.sources.sw"]) == (["train.conll"], ["sw.conll"])
