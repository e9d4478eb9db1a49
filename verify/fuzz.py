"""Fuzzing of the readers: bytes that are changed at random, kept where they reach lines that nothing reached before.

    python verify/fuzz.py --seconds 60              all readers in turn, one minute of the processor in all
    python verify/fuzz.py --seconds 540 --only squad

A reader may return or raise a BistilError of one line; anything else is a crash, which is written into --crashes by the name
READER-ERROR-digest. Coverage is that of this package's own lines (`sys.settrace`), so no other tool is needed. Ends with one
JSON line; exit code 1 if anything crashed. With --results, inputs that reached something new are kept beside that file, and a later
call goes on with them.
"""

import gzip
import hashlib
import json
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import workspace
from tally import Tally, parser

HANGS_AFTER = 10


def readers(folder: Path) -> dict[str, tuple[str, Callable[[Path], object], list[bytes]]]:
    """Name -> (file name, reader, seeds)."""
    from bistil.models.loading import read_config
    from bistil.models.tokenizers import read_tokenizer
    from bistil.prediction.inputs import Lines, read_inputs
    from bistil.report import load_summary
    from bistil.runtime.artefacts import check_product
    from bistil.settings.recipe import load_recipe
    from bistil.sparse import SparseFineTuning
    from bistil.tasks import get_task
    from bistil.tasks.parsing.conllu import heads, read_conllu
    from bistil.text.lines import check_text
    from bistil.vocabulary.counting import TokenCounts

    def task(kind: str) -> Callable[[Path], object]:
        return lambda path: get_task(kind).read([path])

    def inputs(form: Any, texts: Any) -> Callable[[Path], object]:
        return lambda path: list(read_inputs(Lines(path), form, texts=texts, columns={}))

    def seed(name: str) -> list[bytes]:
        return [(folder / name).read_bytes()]

    summary = {
        "schema": 1,
        "name": "a",
        "seed": 0,
        "source": "en",
        "target": "sw",
        "created": "",
        "versions": {},
        "models": [],
    }
    return {
        "conll": ("a.conll", task("token-classification"), seed("ner.conll")),
        "conllu": ("a.conllu", lambda path: [heads(one) for one in read_conllu(path)], seed("ud.conllu")),
        "parsing": ("a.conllu", task("dependency-parsing"), seed("ud.conllu")),
        "squad": ("a.json", task("question-answering"), seed("squad.json")),
        "jsonl": ("a.jsonl", task("sequence-classification"), seed("c.jsonl") + seed("t.jsonl")),
        "tagged": ("a.jsonl", task("token-classification"), seed("t.jsonl")),
        "several": ("a.jsonl", task("multi-label-classification"), seed("multi.jsonl")),
        "csv": ("a.csv", task("sequence-classification"), seed("c.csv")),
        "tsv": ("a.tsv", task("sequence-classification"), seed("c.tsv")),
        "gz": ("a.jsonl.gz", task("sequence-classification"), [gzip.compress((folder / "c.jsonl").read_bytes(), mtime=0)]),
        "text": ("a.txt", check_text, seed("en.txt")),
        "input conll": ("a.conll", inputs("conll", "words"), seed("ner.conll")),
        "input conllu": ("a.conllu", inputs("conllu", "words"), seed("ud.conllu")),
        "input jsonl": ("a.jsonl", inputs("jsonl", "question"), seed("c.jsonl")),
        "input tsv": ("a.tsv", inputs("tsv", "pair"), seed("c.tsv")),
        "toml": ("a.toml", load_recipe, seed("r.toml") + seed("rt.toml")),
        "summary": ("summary.json", load_summary, [json.dumps(summary).encode()]),
        "record": ("bistil.json", lambda path: check_product(path.parent), [b'{"kind": "model", "versions": {"bistil": "0"}, "files": {}}']),
        "config": ("config.json", lambda path: read_config(path.parent), seed("m/config.json")),
        "tokenizer": ("tokenizer.json", lambda path: read_tokenizer(path.parent, "m"), seed("m/tokenizer.json")),
        "sft": ("sft_config.json", lambda path: SparseFineTuning.load(path.parent), seed("s/sft_config.json")),
        "deltas": ("sft.safetensors", lambda path: SparseFineTuning.load(path.parent), seed("s/sft.safetensors")),
        "legacy": ("pytorch_diff.bin", lambda path: SparseFineTuning.load(path.parent), seed("l/pytorch_diff.bin")),
        "counts": ("a.counts", TokenCounts.load, seed("en.counts")),
    }  # fmt: skip


TOKENS = [
    b"{}", b"[]", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b'"', b"\\u0000", b"\\ud83d", b"\t", b"\n", b"\n\n", b"#", b" ",
    b"_", b"-", b".", b"1-2", b"1.1", b"O", b"B-", b"I-", b"\xef\xbb\xbf", b"\xff", b"\0", b"\r\n", b"9" * 5_000, b"[" * 2_000,
    "\u2028".encode(), "\u0661".encode(), "²".encode(), b"e\xcc\x81", b"\x1b[0m", b"../", b"[/x]", b"\x80\x02", b"PK\x03\x04",
]  # fmt: skip


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """The bytes with some changes: bits, cuts, doublings, tokens of the formats, pieces of other inputs, other JSON values."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at, kind = draw.randrange(len(out) + 1), draw.randrange(7)
        end = min(len(out), at + draw.choice((1, 2, 8, 64)))
        if kind == 0 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del out[at:end]
        elif kind == 2:
            out[at:at] = out[at:end]
        elif kind == 3:
            out[at:at] = draw.choice(TOKENS)
        elif kind == 4:
            out[at:end] = draw.choice(TOKENS)
        elif kind == 5:
            other = draw.choice(others)
            start = draw.randrange(len(other) + 1)
            out[at:end] = other[start : start + 64]
        else:
            fields = [i for i, byte in enumerate(out[:4_000]) if byte in b'\t,:" \n']
            if len(fields) > 1:
                i = draw.randrange(len(fields) - 1)
                out[fields[i] + 1 : fields[i + 1]] = draw.choice(TOKENS)
        del out[100_000:]
    return bytes(out)


class _Hang(BaseException):
    pass


class Coverage:
    """The lines of this package that a call reached."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()
        self.new = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        del argument
        if "/bistil/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            place = (frame.f_code.co_filename, frame.f_lineno)
            if place not in self.seen:
                self.seen.add(place)
                self.new += 1
        return self


def fuzz(
    name: str,
    file: str,
    reader: Callable[[Path], object],
    seeds: list[bytes],
    base: Path,
    *,
    seconds: float,
    seed: str,
    crashes: Path,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Change and read until the time is over, of the processor; what crashed, by kind and place.

    Args:
        kept: folder of inputs that reached something new in earlier calls.
    """
    from bistil.errors import BistilError

    draw, coverage, corpus = random.Random(f"{seed} {name}"), Coverage(), list(seeds)
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        corpus += [one.read_bytes() for one in sorted(kept.iterdir())]
    path, found, runs, begun = base / file, Counter[str](), 0, len(corpus)
    started = time.process_time()
    while time.process_time() < started + seconds:
        data = corpus[runs] if runs < begun else mutated(draw.choice(corpus), corpus, draw)
        path.write_bytes(data)
        runs += 1
        coverage.new = 0
        signal.alarm(HANGS_AFTER)
        sys.settrace(coverage)
        try:
            reader(path)
            problem = None
        except BistilError as error:
            problem = "two lines" if "\n" in str(error).strip() else None
        except _Hang:
            problem = "hang"
        except BaseException as error:
            frames = []
            trace = error.__traceback__
            while trace is not None:
                if "/bistil/" in trace.tb_frame.f_code.co_filename:
                    frames.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
                trace = trace.tb_next
            problem = f"{type(error).__name__} at {frames[-1] if frames else '?'}"
        finally:
            sys.settrace(None)
            signal.alarm(0)
        if problem is not None:
            if not found[problem]:
                crashes.mkdir(parents=True, exist_ok=True)
                kind = problem.split(" ")[0]
                (crashes / f"{name.replace(' ', '_')}-{kind}-{hashlib.sha256(data).hexdigest()[:6]}").write_bytes(data)
            found[problem] += 1
        elif coverage.new and len(data) < 20_000:
            corpus.append(data)
            if kept is not None and runs > begun:
                (kept / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return {
        "runs": runs,
        "seconds": round(time.process_time() - started, 1),
        "inputs": len(corpus),
        "lines": len(coverage.seen),
        "wrong": [f"{problem}, {count} times" for problem, count in found.items()],
    }


def _hang(*_: object) -> None:
    raise _Hang


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=3600, help="of the processor, for all readers together")
    made.add_argument("--slice", type=float, default=10, help="seconds that a reader has at a time")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--only", default="", help="readers whose name holds this")
    made.add_argument("--crashes", type=Path, default=Path("crashes"), help="folder for inputs that crash")
    options = made.parse_args(arguments)
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _hang)
    tally = Tally(options)
    kept = None if tally.file is None else tally.file.parent / "fuzz"
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place)
        workspace.make(folder)
        chosen = {name: one for name, one in readers(folder).items() if options.only in name}
        # A reader of a folder finds the sound files beside the changed one.
        beside = {"config": "m", "tokenizer": "m", "sft": "s", "deltas": "s", "legacy": "l", "record": "m"}
        share = options.seconds / len(chosen)
        while any(_spent(tally, name) < share for name in chosen) and time.monotonic() < tally.until:
            # The one with the least so far.
            name = min(chosen, key=lambda one: _spent(tally, one))
            file, reader, seeds = chosen[name]
            base = folder / beside.get(name, f"fuzz {name}")
            base.mkdir(exist_ok=True)
            sound = (base / file).read_bytes() if (base / file).exists() else None
            found = fuzz(
                name,
                file,
                reader,
                seeds,
                base,
                seconds=min(options.slice, share - _spent(tally, name)),
                seed=f"{options.seed} {_spent(tally, name)}",
                crashes=options.crashes,
                kept=kept and kept / name.replace(" ", "-"),
            )
            before = tally.items.get(name, {})
            for figure in ("runs", "seconds", "wrong"):
                found[figure] = before.get(figure, type(found[figure])()) + found[figure]
            tally.put(name, found | {"lines": max(found["lines"], before.get("lines", 0))})
            (base / file).unlink()
            if sound is not None:
                (base / file).write_bytes(sound)
    least = min((item["seconds"] for item in tally.items.values()), default=0)
    return tally.end(runs=tally.total("runs"), seconds=tally.total("seconds"), least_seconds=round(least))


def _spent(tally: Tally, name: str) -> float:
    return float(tally.items.get(name, {}).get("seconds", 0.0))


if __name__ == "__main__":
    sys.exit(main())
