"""Bad inputs of every format that bistil reads, each given to a command: one line, exit code 2, nothing left behind.

    python verify/bad_inputs.py                every input (minutes)
    python verify/bad_inputs.py --sample 300   so many, drawn from the seed
    python verify/bad_inputs.py --only config  of the formats whose name holds this

All run in one process. An input that may also be read (a text where a number was, in a place that nobody looks at) is
sound if the command ends with exit code 0. Ends with one JSON line; exit code 1 if anything was found.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import mutations
import workspace
from mutations import ESCAPES, Mutation
from tally import Tally, parser

SECONDS = int(os.environ.get("VERIFY_SECONDS", "30"))
# What a command may take beyond what the process has, in bytes.
MEMORY = 6 << 30
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
TRAIN = ["--no-sparse", "--steps", "1", "--batch-size", "2", "--max-length", "32"]


@dataclass(frozen=True)
class Site:
    """A file that commands read: where it is, what reads it, what can be wrong with it."""

    format: str
    file: str
    commands: tuple[str, ...]
    wrong: tuple[Callable[[bytes], Iterable[Mutation]], ...] = ()
    values: int = 0
    """Down to this depth, each value of its JSON is replaced in turn."""
    lines: bool = False
    """It is of JSON lines: the first one is changed."""


@dataclass
class Case:
    """A command on something wrong."""

    name: str
    command: list[str]
    file: str | None = None
    mutation: Mutation | None = None
    refused: bool = True
    problems: list[str] = field(default_factory=list)
    said: str = ""


def _sites() -> list[Site]:
    from_model = (
        "benchmark --model {m} --text en.txt --examples 1 --rounds 1 --output OUT.json",
        "trim --model {m} --text en.txt --output OUT",
        "distill --teacher {m} --text en=en.txt --text sw=sw.txt --steps 1 --batch-size 2 --block-length 16 --output OUT",
        "adapt --model {m} --language sw --text sw.txt --steps 1 --batch-size 2 --block-length 16 --output OUT",
        f"finetune --model {{m}} --task sequence-classification --train c.jsonl {' '.join(TRAIN)} --output OUT",
        "sft merge {m} s --output OUT",
    )  # fmt: skip

    def of(folder: str) -> tuple[str, ...]:
        return tuple(one.replace("{m}", folder) for one in from_model)

    task = (
        "evaluate --model t --file ner.conll --record OUT.json",
        "predict t en.txt --output OUT.txt",
    )
    tune = f"finetune --model m --train {{f}} --task {{t}} {' '.join(TRAIN)} --output OUT"

    def tuned(file: str, kind: str, *more: str) -> tuple[str, ...]:
        return (tune.replace("{f}", file).replace("{t}", kind), *more)

    bytes_ = (lambda _: mutations.places(), mutations.blobs)
    json_ = (*bytes_, mutations.json_texts)
    sites = [
        Site("weights", "m/model.safetensors", of("m"), (*bytes_, mutations.safetensors)),
        Site("weights", "t/model.safetensors", task, (*bytes_, mutations.safetensors)),
        Site("config", "m/config.json", of("m"), json_, values=1),
        Site("config", "t/config.json", task, json_, values=2),
        Site("config", "q/config.json", ("predict q q.jsonl --output OUT.jsonl",), json_, values=1),
        Site("config", "gpt2/config.json", of("gpt2")),
        Site("config", "t5/config.json", of("t5")),
        Site("tokenizer", "m/tokenizer.json", of("m"), json_, values=2),
        Site("tokenizer", "x/tokenizer.json", of("x"), json_, values=3),
        Site("tokenizer", "t/tokenizer.json", task, json_, values=2),
        Site("tokenizer", "m/tokenizer_config.json", of("m"), json_, values=1),
        Site("tokenizer", "t/tokenizer_config.json", task, json_, values=1),
        Site("sft", "s/sft_config.json", ("sft inspect s", "sft merge m s --output OUT"), json_, values=2),
        Site("sft", "s/sft.safetensors", ("sft inspect s", "sft convert s --to legacy --output OUT"), (*bytes_, mutations.safetensors)),
        Site("sft", "l/pytorch_diff.bin", ("sft inspect l", "sft convert l --output OUT"), (*bytes_, pickles)),
        Site("peft", "a/adapter_config.json", ("sft convert a --base m --output OUT",), json_, values=1),
        Site("peft", "a/adapter_model.safetensors", ("sft convert a --base m --output OUT",), (*bytes_, mutations.safetensors)),
        Site("counts", "en.counts", ("trim --model m --text en.counts --text sw.txt --output OUT",), (*bytes_, mutations.safetensors, counts)),
        Site("text", "en.txt", of("m")[1:3], (*bytes_, long_texts)),
        Site("text", "en.txt.gz", ("trim --model m --text en.txt.gz --output OUT", "predict t en.txt.gz --output OUT.txt"), bytes_),
        Site("text", "en.txt.zst", ("trim --model m --text en.txt.zst --output OUT",), (*bytes_, zstds)),
        Site("toml", "r.toml", ("run r.toml --check", "run r.toml --output OUT"), (*bytes_, mutations.tomls)),
        Site("toml", "rt.toml", ("run rt.toml --check",), (mutations.tomls,)),
        Site("jsonl", "c.jsonl", tuned("c.jsonl", "sequence-classification", "evaluate --model c --file c.jsonl --record OUT.json", "predict c c.jsonl --output OUT.jsonl"), json_, values=2, lines=True),
        Site("jsonl", "t.jsonl", tuned("t.jsonl", "token-classification", "evaluate --model t --file t.jsonl --record OUT.json", "predict t t.jsonl --output OUT.jsonl"), json_, values=2, lines=True),
        Site("jsonl", "multi.jsonl", tuned("multi.jsonl", "multi-label-classification"), json_, values=2, lines=True),
        Site("jsonl", "q.jsonl", ("predict q q.jsonl --output OUT.jsonl",), json_, values=1, lines=True),
        Site("json", "c.json", tuned("c.json", "sequence-classification"), json_, values=2),
        Site("squad", "squad.json", tuned("squad.json", "question-answering", "evaluate --model q --file squad.json --record OUT.json"), json_, values=8),
        Site("conll", "ner.conll", tuned("ner.conll", "token-classification", *task[:1], "predict t ner.conll --output OUT.conll"), (*bytes_, columns)),
        Site("conllu", "ud.conllu", tuned("ud.conllu", "dependency-parsing", "predict t ud.conllu --output OUT.conllu"), (*bytes_, columns)),
        Site("table", "c.tsv", tuned("c.tsv", "sequence-classification"), (*bytes_, columns)),
        Site("table", "c.csv", tuned("c.csv", "sequence-classification"), (*bytes_, columns)),
    ]  # fmt: skip
    for file, kind in (
        ("c.jsonl.gz", "sequence-classification"),
        ("c.csv.gz", "sequence-classification"),
        ("ner.conll.gz", "token-classification"),
        ("ud.conllu.gz", "dependency-parsing"),
        ("squad.json.gz", "question-answering"),
    ):
        sites.append(Site("gz", file, tuned(file, kind), (unpacked(mutations.archives), *bytes_)))
    sites.append(
        Site("gz", "en.txt.gz", ("trim --model m --text en.txt.gz --output OUT",), (unpacked(mutations.archives),))
    )
    for name in ("run.json", "summary.json"):
        sites.append(Site("run records", f"run/{name}", ("run r.toml --output run",), json_, values=1))
    sites.append(Site("run records", "STAGE", ("run r.toml --output run",), json_, values=2))
    for name in ("bistil.json", "trim_report.json"):
        sites.append(
            Site(
                "records",
                f"run/trimmed/{name}",
                (
                    "benchmark --model run/trimmed --examples 1 --rounds 1",
                    "distill --teacher run/trimmed --text en=en.txt --steps 1 --batch-size 2 --block-length 16 --output OUT",
                ),
                json_,
                values=1,
            )
        )
    sites.append(
        Site(
            "records",
            "run/trimmed/vocabulary_map.safetensors",
            ("distill --teacher run/trimmed --text en=en.txt --steps 1 --batch-size 2 --block-length 16 --output OUT",),
            (mutations.blobs,),
        )
    )
    return sites


def unpacked(make: Callable[[bytes], Iterable[Mutation]]) -> Callable[[bytes], Iterable[Mutation]]:
    """Mutations of what is in a .gz file."""
    import gzip

    return lambda data: make(gzip.decompress(data))


def zstds(data: bytes) -> Iterator[Mutation]:
    """Damaged .zst files."""
    for name, content in {
        "cut off": data[:-3],
        "a damaged stream": data[:8] + b"\xff" * 8 + data[16:],
        "no frame": b"xyz" * 9,
    }.items():
        yield Mutation(f"zst: {name}", content)
    import zstandard

    yield Mutation(
        "zst: a window of 2 GB",
        zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(window_log=31, compression_level=1)
        )
        .compressobj()
        .compress(b"We sang.\n" * 100)
        + b"x",
        True,
    )


def counts(data: bytes) -> Iterator[Mutation]:
    """Facts of token counts."""
    for old, new in (
        ('\\"lines\\"', '\\"lynes\\"'),
        ('\\"tokenizer\\"', '\\"nkiteozer\\"'),
        ('\\"sources\\": [', '\\"sources\\": [3, '),
    ):
        yield Mutation(f"counts: {new}", data.replace(old.encode(), new.encode()), refused=True)


def pickles(data: bytes) -> Iterator[Mutation]:
    """Pickles with code, and what torch unpickles into something else."""
    import io
    import pickle

    import torch

    class Code:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, ("touch HACKED",)

    def saved(value: object) -> bytes:
        out = io.BytesIO()
        torch.save(value, out)
        return out.getvalue()

    query = "bert.encoder.layer.0.attention.self.query.weight"
    one = {"size": torch.Size([32, 32]), "index_steps": [3], "values": torch.ones(1)}
    for name, content in {
        "a pickle with code": pickle.dumps(Code()),
        "code in torch's archive": saved({"diffs": Code()}),
        "code in torch's old format": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
        + pickle.dumps(1001, 2)
        + pickle.dumps({}, 2)
        + pickle.dumps(Code(), 2),
        "a pickle 100,000 deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a list": saved([1]),
        "names that are numbers": saved({"diffs": {3: one}}),
        "a tensor for a table": saved({"diffs": torch.ones(3)}),
        "a size that is text": saved({"diffs": {query: {**one, "size": "ab"}}}),
        "a size of 2^62": saved({"diffs": {query: {**one, "size": [2**62]}}}),
        "steps of 2^64": saved({"diffs": {query: {**one, "index_steps": [2**64]}}}),
        "steps that are text": saved({"diffs": {query: {**one, "index_steps": "abc"}}}),
        "steps that are None": saved({"diffs": {query: {**one, "index_steps": None}}}),
        "values that are a list": saved({"diffs": {query: {**one, "values": [1.0]}}}),
        "values that are complex": saved({"diffs": {query: {**one, "values": torch.ones(1, dtype=torch.complex64)}}}),
        "values that are sparse": saved({"diffs": {query: {**one, "values": torch.ones(1).to_sparse()}}}),
        "a sparse tensor": saved({"diffs": {query: torch.ones(3, 3).to_sparse()}}),
        "values that are strings of bits": saved(
            {"diffs": {query: {**one, "values": torch.ones(1, dtype=torch.bool)}}}
        ),
        "NaN": saved({"diffs": {query: {**one, "values": torch.full((1,), float("nan"))}}}),
        "abs is a list": saved({"diffs": {query: one}, "abs": [1]}),
        "abs names numbers": saved({"diffs": {query: one}, "abs": {3: torch.ones(1)}}),
        "abs is sparse": saved({"diffs": {query: one}, "abs": {"x": torch.ones(2).to_sparse()}}),
        "names with escapes": saved({"diffs": {ESCAPES: one}}),
        "meta tensors": saved({"diffs": {query: {**one, "values": torch.ones(1, device="meta")}}}),
    }.items():
        yield Mutation(
            f"pickle: {name}",
            content,
            refused=name in ("a pickle with code", "code in torch's archive", "code in torch's old format", "NaN"),
        )
    for i in range(0, len(data), max(1, len(data) // 25)):
        yield Mutation(
            f"pickle: a byte changed at {i}", data[:i] + bytes([data[i] ^ 0x41]) + data[i + 1 :], refused=False
        )


def long_texts(data: bytes) -> Iterator[Mutation]:
    """Texts that are long where nobody expects it; none takes more than seconds."""
    for name, content in {
        "blanks alone": b"\n \n\t\n" * 50,
        "a line of 20 MB without spaces": b"ab" * 10_000_000,
        "20 MB of zeros": bytes(20_000_000),
        "a line of 2 MB": data.replace(b"\n", b" ") * 1000,
        "a word of 2 MB between others": b"We sang " + b"a" * 2_000_000 + b"\n" + data,
        "escapes": (ESCAPES + "\n").encode() * 30,
        "carriage returns alone": data.replace(b"\n", b"\r"),
    }.items():
        yield Mutation(f"text: {name}", content, refused=False)


def columns(data: bytes) -> Iterator[Mutation]:
    """Columns that are too few, too many, too long, or of something else."""
    text = data.decode()
    first, _, rest = text.partition("\n")
    sep = "\t" if "\t" in first else "," if "," in first else " "
    for name, content in {
        "no separators": text.replace(sep, ""),
        "one column more in the first line": first + sep + "x\n" + rest,
        "a column less in all": "\n".join(line.rpartition(sep)[0] for line in text.splitlines()),
        "all values are signs of their column": re.sub(r"\w+", "_", text),
        "all values are 7": re.sub(r"\w+", "7", text),
        "all values are 7 in another script": re.sub(r"\w+", "\u0667", text),
        "numbers of 5,000 digits": re.sub(r"\b2\b|\b1\b", "9" * mutations.DIGITS, text),
        "numbers in another script": text.replace("1", "\u00b9").replace("2", "\u0662"),
        "escapes": re.sub("[BO]-?", ESCAPES.replace(sep, ""), text),
        "no first line": rest,
        "the first line alone": first,
        "twice": text + text,
        "comments alone": "# x = y\n" * 20,
        "empty lines alone": "\n" * 20,
        "quotes": text.replace("e", '"'),
        "a field of 300,000 characters": text.replace("sing", "s" * 300_000, 1),
        "20,000 columns": sep.join(["x"] * 20_000) + "\n" + text,
        "one sentence of 5,000 words": text.replace("\n\n", "\n") * 200,
    }.items():
        yield Mutation(f"columns: {name}", content.encode(), refused=False)


def cases(folder: Path) -> Iterator[Case]:
    """All of them, in a fixed order."""
    for site in _sites():
        file = site.file
        if file == "STAGE":
            file = sorted(one for one in (folder / "run/stages").iterdir())[0].relative_to(folder).as_posix()
        data = (folder / file).read_bytes()
        first, _, rest = data.partition(b"\n") if site.lines else (data, b"", b"")
        behind = b"\n" + rest if site.lines else b""
        wrong = []
        for make in site.wrong:
            if make is mutations.json_texts:
                # One odd row of many is left out.
                alone = not site.lines
                for one in make(first):
                    wrong.append(one._replace(content=(one.content or b"") + behind, refused=one.refused and alone))
            else:
                wrong += make(data)
        if not site.wrong:
            for command in site.commands:
                # Trimming and measuring ask nothing of a family.
                refused = not command.startswith(("trim", "benchmark"))
                yield Case(f"{site.format}: {file} as it is", command.split(), refused=refused)
        if site.values:
            changed = mutations.json_values(json.loads(first), depth=site.values)
            wrong += [Mutation(f"value: {name}", content + behind, refused=False) for name, content in changed]
        lenient = {"run records", "records"}
        for i, one in enumerate(wrong):
            # Each goes to one command, by turns; places and bytes to all.
            common = one.name.startswith(("place", "bytes", "json"))
            for command in site.commands if common else [site.commands[i % len(site.commands)]]:
                # Settings of a tokenizer may be missing.
                refused = one.refused and site.format not in lenient and "tokenizer_config" not in file
                yield Case(f"{site.format}: {file}: {one.name}", command.split(), file, one, refused)
    yield from _lengths()
    yield from _names(folder)


def _lengths() -> Iterator[Case]:
    for length in (141, 10**9):
        for command in (
            f"finetune --model m --train c.jsonl --task sequence-classification --no-sparse --steps 1 --max-length {length} --output OUT",
            f"evaluate --model t --file ner.conll --max-length {length}",
            f"predict t en.txt --max-length {length} --output OUT.txt",
            f"benchmark --model m --max-length {length} --text en.txt --output OUT.json",
            f"distill --teacher m --text en=en.txt --steps 1 --block-length {length} --output OUT",
            f"adapt --model m --language sw --text sw.txt --steps 1 --block-length {length} --output OUT",
            f"run r.toml --set phase1.block_length={length} --output OUT",
            f"run rt.toml --set task.max_length={length} --check",
        ):
            yield Case(f"lengths: {length}", command.split())


def _names(folder: Path) -> Iterator[Case]:
    """Names that mean something to a terminal, to rich, to the file system."""
    for name in (
        ESCAPES.replace("/", ""),
        "[/red]",
        "a\udce9b",
        "x" * 5000,
        "a\nb",
        "\u202egnp.exe",
        "a\rb",
        " ",
        "~nobody/x",
        "//",
        "a\0b",
    ):
        shown = name[:20].encode("unicode_escape").decode()
        for command in (
            ["benchmark", "--model", name, "--output", "OUT.json"],
            ["trim", "--model", "m", "--text", name, "--output", "OUT"],
            ["trim", "--model", "m", "--text", "en.txt", "--output", f"no/{name}", "--sft", name],
            ["run", name, "--output", "OUT"],
            ["evaluate", "--model", "t", "--file", name],
            ["evaluate", "--model", "t", "--file", "ner.conll", "--device", name],
            ["predict", "t", name, "--output", "OUT.txt"],
            ["predict", name, "en.txt", "--output", "OUT.txt"],
            ["finetune", "--model", "m", "--train", name, "--task", "token-classification", *TRAIN, "--output", "OUT"],
            ["finetune", "--model", "m", "--train", "c.jsonl", "--task", name, *TRAIN, "--output", "OUT"],
            ["finetune", "--model", "m", "--train", f"dataset:{name}:train", "--task", "token-classification", *TRAIN, "--output", "OUT"],
            ["adapt", "--model", "m", "--language", "sw", "--text", name, "--output", "OUT"],
            ["sft", "inspect", name],
            ["sft", "compare", "s", name],
            ["run", "r.toml", "--set", f"{name}=1", "--check"],
            ["run", "r.toml", "--set", f"text.en={name}", "--check"],
            ["run", "r.toml", "--set", f"teacher={name}", "--check"],
            ["distill", "--teacher", "m", "--text", f"{name}=en.txt", "--steps", name, "--output", "OUT"],
            ["distill", "--teacher", "m", "--text", f"en={name}", "--steps", "1", "--output", "OUT"],
        ):  # fmt: skip
            yield Case(f"names: {shown}", command)
    for i, text in enumerate(("[/x]", "\x1b[31mred")):
        file = folder / f"odd{i}.jsonl"
        file.write_text("".join(json.dumps({"text": "a b", "label": f"{text}{n % 2}"}) + "\n" for n in range(8)))
        yield Case(f"names: labels {text!r}", ["evaluate", "--model", "c", "--file", file.name])
        yield Case(
            f"names: labels {text!r}", f"run rt.toml --check --set task.train={file.name}".split(), refused=False
        )


@contextmanager
def _heard() -> Iterator[Path]:
    """Standard output and error of this process, C libraries' too, in a file."""
    sys.stdout.flush(), sys.stderr.flush()
    with tempfile.NamedTemporaryFile(prefix="said-") as out, tempfile.NamedTemporaryFile(prefix="heard-") as err:
        kept = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        try:
            yield Path(err.name)
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            for number, saved in enumerate(kept, 1):
                os.dup2(saved, number)
                os.close(saved)


class _TooLong(BaseException):
    pass


def _stop(*_: object) -> None:
    raise _TooLong


def _names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _call(case: Case) -> object:
    """Run a command in this process; its exit code."""
    from bistil import cli

    sys.argv = ["bistil", *case.command]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code
    except _TooLong:
        case.problems.append("too long")
    except MemoryError:
        case.problems.append("memory")
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in last if "/bistil/" in frame.filename][-1:]
        where = f"{Path(own[0].filename).name}:{own[0].lineno}" if own else "?"
        case.problems.append(f"traceback {type(error).__name__} at {where}: {str(error)[:100]!r}")
    finally:
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return None


def _process(case: Case) -> object:
    """Run a command in a process of its own; its exit code."""
    try:
        return subprocess.run([sys.executable, "-m", "bistil", *case.command], timeout=10 * SECONDS).returncode
    except subprocess.TimeoutExpired:
        case.problems.append("too long")
        return None


def run(case: Case, folder: Path, before: set[str], how: Callable[[Case], object] = _call) -> None:
    """Run one case in the folder, note its problems, and put everything back."""
    path = folder / case.file if case.file is not None else None
    aside = folder.parent / "aside"
    backup = folder.parent / "run.aside"
    changes_run = "run" in case.command and "run" in case.command[1:]
    if changes_run or (case.file or "").startswith("run/"):
        shutil.copytree(folder / "run", backup, symlinks=True)
    if path is not None:
        os.replace(path, aside)
        assert case.mutation is not None
        mutations.put(path, case.mutation)
        before = _names_below(folder)
    started = time.monotonic()
    with _heard() as heard:
        code = how(case)
        sys.stdout.flush(), sys.stderr.flush()
        case.said = heard.read_bytes().decode("utf-8", "replace")
    if not case.problems:
        case.problems += _problems(case, code)
    if how is _call and time.monotonic() - started > 15 and "too long" not in case.problems:
        case.problems.append("slow")
    left = _names_below(folder) - before
    if code != 0 and not changes_run:
        if left:
            case.problems.append(f"left behind: {sorted(left)[0]}")
        if before - _names_below(folder):
            case.problems.append("an input is gone")
    if (folder / "HACKED").exists() or Path("HACKED").exists():
        case.problems.append("CODE WAS RUN")
    for name in sorted(left, reverse=True):
        one = folder / name
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one, ignore_errors=True)
        else:
            with suppress(OSError):
                one.unlink()
    if path is not None:
        for one in (path, path.with_name(path.name + ".fifo")):
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one)
            else:
                with suppress(OSError):
                    one.unlink()
        os.replace(aside, path)
    if backup.exists():
        shutil.rmtree(folder / "run", ignore_errors=True)
        os.replace(backup, folder / "run")


def _problems(case: Case, code: object) -> Iterator[str]:
    lines = case.said.splitlines()
    errors = [line for line in lines if line.startswith("bistil: error: ")]
    if code == 0:
        if case.refused:
            yield "accepted"
        if errors:
            yield "an error with exit code 0"
    elif code != 2:
        yield f"exit code {code}"
    elif len(errors) != 1:
        yield f"{len(errors)} error lines"
    other = [
        line
        for line in lines
        if not line.startswith(
            ("bistil: error: ", "[bistil] ", "benchmark: ", "phase 1", "adapt", "finetune", "task", "language")
        )
    ]
    other = [line for line in other if not re.match(r"[\w .:/-]+: step \d", line)]
    if other and code != 0:
        yield f"another line: {other[0][:90]!r}"
    if CONTROL.search(case.said):
        yield "control characters"
    if len(max(lines, key=len, default="")) > 4000:
        yield "a line of over 4,000 characters"


REAL = 10
"""So many inputs are given to a command in a process of its own."""
AT_ONCE = 50


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--sample", type=int, help="so many inputs, drawn from the seed")
    made.add_argument("--real", type=int, default=REAL, help="so many of them in processes of their own too")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--only", default="", help="formats whose name holds this")
    made.add_argument("--log", type=Path, help="write every case's verdict here")
    options = made.parse_args(arguments)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", BISTIL_PRECISION="float32")
    warnings.simplefilter("default")
    tally = Tally(options)
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as place:
        folder = Path(place) / "files"
        folder.mkdir()
        workspace.make(folder)
        (folder / "q.jsonl").write_text(
            json.dumps({"id": "1", "question": "Who?", "context": workspace.PASSAGE}) + "\n"
        )
        import zstandard

        (folder / "en.txt.zst").write_bytes(zstandard.compress((folder / "en.txt").read_bytes()))
        os.chdir(folder)
        from bistil.method import run_recipe
        from bistil.settings.recipe import load_recipe

        run_recipe(load_recipe(Path("r.toml")), Path("run"))
        every = [case for case in cases(folder) if options.only in case.name.partition(":")[0]]
        # In an order of their own: those that come first are of all formats.
        random.Random(options.seed).shuffle(every)
        chosen = every[: options.sample]
        parts = {f"{start}-{start + len(part) - 1}": part for start, part in _parts(chosen)}
        before = _names_below(folder)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for name in tally.left([*parts, "real"], lambda item: "inputs" in item):
            if name == "real":
                refused = [case for case in every if case.refused and case.mutation is not None][: options.real]
                tally.put(name, _found(refused, folder, before, _process, options.log))
                continue
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
            tally.put(name, _found(parts[name], folder, before, _call, options.log))
            resource.setrlimit(resource.RLIMIT_AS, limits)
        os.chdir("/")
    formats = Counter[str]()
    for item in tally.items.values():
        formats.update(item["formats"])
    return tally.end(
        inputs=tally.total("inputs"),
        of=len(every),
        real=tally.items.get("real", {}).get("inputs", 0),
        formats=dict(sorted(formats.items())),
    )


def _parts(found: list[Case]) -> Iterator[tuple[int, list[Case]]]:
    for start in range(0, len(found), AT_ONCE):
        yield start, found[start : start + AT_ONCE]


def _found(
    several: list[Case], folder: Path, before: set[str], how: Callable[[Case], object], log: Path | None
) -> dict[str, object]:
    for case in several:
        run(case, folder, before, how)
        if log:
            with log.open("a") as stream:
                stream.write(
                    json.dumps([case.problems, case.name, " ".join(case.command)[:120], case.said[-300:]]) + "\n"
                )
    return {
        "inputs": len(several),
        "formats": Counter(case.name.partition(":")[0] for case in several),
        "wrong": [
            f"{case.problems[0]} | {case.name} | {' '.join(case.command)[:100]}" for case in several if case.problems
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
