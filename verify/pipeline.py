"""A small run of all stages and the commands around it, each in a forked child that may be hindered at a chosen moment."""

import logging
import os
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import workspace

RECIPE = (
    workspace.RECIPE.replace("steps = 2", "steps = 6")
    + workspace.TASK
    + """
[finetune]
sparse = {dense_epochs = 1, sparse_epochs = 1}
training = {batch_size = 4, checkpoint_steps = 1}

[phase2]
target_text = 0.5
sparse = {dense_epochs = 3, sparse_epochs = 3}
training = {batch_size = 4, checkpoint_steps = 1}
"""
)
# Of a run: stages under way.
WORK = "work"
TRAIN = ["--steps", "6", "--batch-size", "2"]
# "OUT" is the output; the parts of the run are there before the others begin.
COMMANDS = {
    "run": ["run", "p.toml", "--output", "OUT"],
    "adapt": ["adapt", "--model", "m", "--language", "sw", "--text", "sw.txt", "--block-length", "16", *TRAIN, "--output", "OUT"],
    "predict": ["predict", "c", "long.txt", "--output", "OUT.jsonl"],
    "export": ["export", "c", "--labelled", "dev.jsonl", "--task", "sequence-classification", "--most-loss", "100", "--output", "OUT"],
    "evaluate": ["evaluate", "--model", "c", "--file", "test.jsonl", "--record", "OUT.json"],
    "benchmark": ["benchmark", "--model", "c", "--examples", "2", "--rounds", "2", "--output", "OUT.json"],
    "trim": ["trim", "--model", "m", "--text", "en.txt", "--text", "sw.txt", "--output", "OUT"],
    "distill": ["distill", "--teacher", "m", "--text", "en=en.txt", "--text", "sw=sw.txt", "--block-length", "16", *TRAIN, "--output", "OUT"],
    "finetune": ["finetune", "--model", "m", "--train", "c.jsonl", "--task", "sequence-classification", "--no-sparse", *TRAIN, "--max-length", "32", "--output", "OUT"],
    "sft merge": ["sft", "merge", "m", "s", "--output", "OUT"],
    "sft convert": ["sft", "convert", "s", "--to", "legacy", "--output", "OUT"],
}  # fmt: skip
# What a stage of the run does on the way and says nothing about.
PARTS = {
    "blocks": ("bistil.distillation.corpus", "token_blocks"),
    "teacher's outputs": ("bistil.distillation.kept_teacher", "KeptTeacher.fill"),
    "report": ("bistil.method", "write_report"),
}
MODULES = (
    "bistil.cli",
    "bistil.method",
    "bistil.export.folder",
    "bistil.prediction.files",
    "bistil.sparse.language",
    "bistil.sparse.legacy",
    *(module for module, _ in PARTS.values()),
)
BEGINS = re.compile(r"(.+): (?:started|going on)")
# A child that is not done by then hangs; in seconds.
HANGS_AFTER = 300


@dataclass(frozen=True)
class Moment:
    """When a stage, a part of one or a command begins, and how long that takes."""

    command: str
    name: str
    seconds: float = 0.0


@dataclass
class Ended:
    """How a command ended that was hindered, or was not."""

    code: int
    lines: list[str]
    reached: str | None
    """Name of the moment at which it was hindered; None: it was over before."""
    seconds: float
    """From then to its end."""
    began: list[tuple[str, float]] = field(default_factory=list)
    """Names of the moments that it came by, and when."""

    @property
    def errors(self) -> list[str]:
        return [line for line in self.lines if line.startswith("bistil: ")]


class Pipeline:
    """The folder with all inputs, and the commands in it.

    Args:
        folder: gets the inputs; becomes the working folder.
    """

    def __init__(self, folder: Path) -> None:
        os.environ.update(BISTIL_PRECISION="float32", HF_HUB_OFFLINE="1")
        self.folder = folder
        workspace.make(folder)
        (folder / "p.toml").write_text(RECIPE)
        (folder / "long.txt").write_text((folder / "en.txt").read_text() * 20)
        os.chdir(folder)
        # Children inherit the imports.
        for name in MODULES:
            import_module(name)
        import tqdm

        # A child that is killed while it holds the lock of bars would keep the others waiting.
        tqdm.tqdm.set_lock(threading.RLock())
        self._order: dict[str, list[str]] = {}
        self._known: dict[str, list[Moment]] = {}

    def moments(self, command: str) -> list[Moment]:
        """Make the command's reference output, if it is not there; the moments that it comes by, in their order.

        Raises:
            RuntimeError: the command fails as it is.
        """
        if command in self._known:
            return self._known[command]
        ended = self.launch(command, whole(command))
        if ended.code:
            raise RuntimeError(f"{command} fails by itself: " + "\n".join(ended.lines[-20:]))
        seconds: dict[str, float] = {}
        ends = [when for _, when in ended.began[1:]] + [ended.seconds]
        for (name, when), end in zip(ended.began, ends, strict=True):
            seconds[name] = max(seconds.get(name, 0.0), end - when)
        self._order[command] = list(seconds)
        self._known[command] = [Moment(command, name, length) for name, length in seconds.items()]
        return self._known[command]

    def ends_the_same(self, command: str, output: str) -> list[str]:
        """Let a command that was hindered go on to its end; what is other than in the reference output."""
        ended = self.launch(command, output)
        if ended.code:
            return [f"does not go on: {ended.lines[-1:]}"]
        same = products(self.folder / output) == products(self.folder / whole(command))
        return [*([] if same else ["other products"]), *(f"left behind: {one}" for one in self.litter()[:1])]

    def launch(
        self,
        command: str,
        output: str,
        at: Moment | None = None,
        do: Callable[[], None] | None = None,
        delay: float = 0.0,
    ) -> Ended:
        """Run a command in a child; so many seconds after a moment, or a later one, `do` is called there."""
        arguments = [word.replace("OUT", output) for word in COMMANDS[command]]
        later = self._order[command][self._order[command].index(at.name) :] if at is not None else []
        said, notes = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.close(said[0]), os.close(notes[0])
            os.dup2(said[1], 1), os.dup2(said[1], 2)
            os._exit(_child(arguments, command, set(later), do, delay, notes[1]))
        os.close(said[1]), os.close(notes[1])
        started, buffers = time.monotonic(), (bytearray(), bytearray())
        readers = [
            threading.Thread(target=_read, args=(one[0], into), daemon=True)
            for one, into in zip((said, notes), buffers, strict=True)
        ]
        for reader in readers:
            reader.start()
        code = _wait(child)
        over = time.monotonic()
        for reader in readers:
            reader.join(2)
        lines = buffers[0].decode("utf-8", "replace").splitlines()
        began, reached, since = [], None, started
        for name, mark, when in (note.rsplit("|", 2) for note in buffers[1].decode().splitlines()):
            if mark == "hindered":
                reached, since = began[-1][0] if began else command, float(when)
            else:
                began.append((name, float(when) - started))
        return Ended(code, lines, reached, over - since, began)

    def remove(self, output: str) -> None:
        """Remove an output and what is beside it, so that the command begins anew."""
        for one in [*self.folder.glob(f"{output}*"), *self.folder.glob(f".{output}*")]:
            shutil.rmtree(one) if one.is_dir() else one.unlink()

    def litter(self) -> list[str]:
        """What should not be there when no command runs."""
        left = [str(one.relative_to(self.folder)) for one in self.folder.glob(f"*/{WORK}/*")]
        return left + sorted(
            str(one.relative_to(self.folder))
            for one in self.folder.rglob(".*")
            if one.suffix in (".partial", ".retired")
        )


def _wait(child: int) -> int:
    until = time.monotonic() + HANGS_AFTER
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1000


def _read(stream: int, into: bytearray) -> None:
    while part := os.read(stream, 65536):
        into += part
    os.close(stream)


def _child(
    arguments: list[str], command: str, later: set[str], do: Callable[[], None] | None, delay: float, notes: int
) -> int:
    def note(name: str, mark: str) -> None:
        os.write(notes, f"{name}|{mark}|{time.monotonic()}\n".encode())

    def hinder() -> None:
        assert do is not None
        note("", "hindered")
        do()

    hindered: list[str] = []

    def begins(name: str) -> None:
        note(name, "begins")
        if do is not None and name in later and not hindered:
            hindered.append(name)
            if delay:
                threading.Timer(delay, hinder).start()
            else:
                hinder()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := BEGINS.fullmatch(record.getMessage()):
                begins(found[1])

    logging.getLogger("bistil").addHandler(Handler())
    for name, (module, path) in PARTS.items():
        _announce(name, module, path, begins)
    code: object = 1
    try:
        from bistil import cli

        sys.argv = ["bistil", *arguments]
        prepare = cli.prepare_process

        def prepared() -> None:
            prepare()
            begins(command)

        cli.prepare_process = prepared
        cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    return code if isinstance(code, int) else 1


def _announce(name: str, module: str, path: str, begins: Callable[[str], None]) -> None:
    """Let a function say when it begins."""
    place: Any = import_module(module)
    *outer, last = path.split(".")
    for one in outer:
        place = getattr(place, one)
    function = getattr(place, last)

    @wraps(function)
    def announced(*arguments: Any, **named: Any) -> Any:
        begins(name)
        return function(*arguments, **named)

    setattr(place, last, announced)


def whole(command: str) -> str:
    """Where a command's reference output is."""
    return f"whole-{command.replace(' ', '-')}"


def products(output: Path) -> dict[str, bytes]:
    """Weights and predictions that a command made; records hold times and are left out."""
    beside = [one for one in output.parent.glob(f"{output.name}*") if one.is_file()]
    files = [*beside, *(output.rglob("*") if output.is_dir() else ())]
    return {
        str(one.relative_to(output.parent)).removeprefix(output.name): one.read_bytes()
        for one in files
        if one.suffix in (".safetensors", ".jsonl", ".onnx", ".bin")
        and "work" not in one.parts
        and "log" not in one.name
    }


def raised(number: int) -> None:
    """Send a signal to the process that this is called in."""
    os.kill(os.getpid(), number)


def counted(found: Iterator[str]) -> dict[str, int]:
    """How often each name comes."""
    counts: dict[str, int] = {}
    for name in found:
        counts[name] = counts.get(name, 0) + 1
    return counts
