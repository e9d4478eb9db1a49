"""A corpus of many lines through trimming and block building, and one without a line end: linear time, bounded memory.

    python verify/corpus.py                     10 million lines
    python verify/corpus.py --lines 100000

Each step is done by a child for a tenth of the text and for all of it, on one thread. Ends with one JSON line: lines per second
at both sizes and peak memory; exit code 1 if memory grows with the text or the rate falls.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import workspace  # noqa: F401  (finds `tiny`)
from tally import Tally, parser

# Memory of ten times the text, against the text: batches in flight differ by this much.
SPARE = 200 << 20
# The rate at ten times the text, against the text's.
SLOWEST = 0.5


def counted(path: Path, _: Path) -> int:
    """Count the tokens of a text, as trimming does; its lines."""
    from bistil.vocabulary.counting import count_file

    return count_file(_vocabulary(), path).lines


def trimmed(path: Path, place: Path) -> int:
    """Trim a model to a text, from counting to the proof; the text's lines."""
    from bistil.settings.recipe import TrimSettings
    from bistil.vocabulary.trimming import trim_vocabulary

    report = trim_vocabulary(place / "m", {"sw": [path]}, place / "out", settings=TrimSettings(vocabulary_size=200))
    assert report is not None
    return sum(1 for _ in path.open("rb"))


def in_blocks(path: Path, place: Path) -> int:
    """Tokenize a text into blocks on disk, as training reads them; its lines."""
    import tiny

    from bistil.text.blocks import token_blocks

    token_blocks([path], tiny.tokenizer(), length=128, cache=place / "cache", processes=1)
    return sum(1 for _ in path.open("rb"))


STEPS: dict[str, tuple[Callable[[Path, Path], int], bool]] = {
    "trim": (trimmed, True),
    "blocks": (in_blocks, True),
    "one line": (counted, False),
}


def _vocabulary() -> Any:
    import tiny

    from bistil.vocabulary.tokenizer_state import read_vocabulary

    return read_vocabulary(json.loads(tiny.tokenizer().backend_tokenizer.to_str()))


def measured(step: Callable[[Path, Path], int], path: Path, place: Path) -> dict[str, Any]:
    """Do a step in a child; bytes, lines, seconds of the processor, peak memory without files that are mapped."""
    reader, writer = os.pipe()
    if not os.fork():
        code = 1
        try:
            peaks = [0]
            threading.Thread(target=_watch, args=(peaks,), daemon=True).start()
            started = time.process_time()
            lines = step(path, place)
            os.write(writer, json.dumps([time.process_time() - started, lines, peaks[0]]).encode())
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    if os.waitstatus_to_exitcode(os.wait()[1]):
        raise RuntimeError(f"{step.__name__} fails on {path.name}")
    seconds, lines, peak = json.loads(text)
    size = path.stat().st_size
    return {
        "bytes": size,
        "lines": lines,
        "seconds": round(seconds, 2),
        "lines_per_second": round(lines / seconds),
        "mb_per_second": round(size / seconds / 1e6, 2),
        "peak_mb": peak >> 20,
    }


def _watch(peaks: list[int]) -> None:
    """Keep the most memory of this process that no file stands behind."""
    while True:
        status = Path("/proc/self/status").read_text()
        peaks[0] = max(peaks[0], int(status.partition("RssAnon:")[2].split()[0]) << 10)
        time.sleep(0.02)


def write(path: Path, lines: int, *, ends: bool) -> None:
    """A text of so many lines, all different; or as long, without a line end or a space."""
    import tiny

    sentences = [*tiny.SWAHILI.splitlines(), *tiny.ENGLISH.splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, lines, 10_000):
            several = range(start, min(lines, start + 10_000))
            if ends:
                file.writelines(f"{sentences[i % len(sentences)]} {i}\n" for i in several)
            else:
                file.write("kwamkekana" * (5 * len(several)))


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--lines", type=int, default=10_000_000)
    options = made.parse_args(arguments)
    tally = Tally(options)
    os.environ.update(HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        place = Path(folder)
        for name in tally.left(f"{step}, {options.lines:,} lines" for step in STEPS):
            step, ends = STEPS[name.partition(",")[0]]
            if not (place / "m").exists():
                import tiny

                tiny.save(tiny.masked_lm("bert", layers=2), place / "m")
            rows = []
            for share in (10, 1):
                path = place / f"text-{share}.txt"
                write(path, options.lines // share, ends=ends)
                rows.append(measured(step, path, place))
                path.unlink()
                for left in ("out", "cache"):
                    shutil.rmtree(place / left, ignore_errors=True)
            wrong = []
            if (rows[1]["peak_mb"] - rows[0]["peak_mb"]) << 20 > SPARE:
                wrong.append("memory grows with the text")
            if options.lines >= 1_000_000 and rows[1]["mb_per_second"] < SLOWEST * rows[0]["mb_per_second"]:
                wrong.append("the rate falls")
            tally.put(name, {"lines": options.lines, "sizes": rows, "wrong": wrong})
        os.chdir("/")
    return tally.end(
        lines=min((item["lines"] for item in tally.items.values()), default=0),
        steps={
            name: [[row["lines"], row["lines_per_second"], row["peak_mb"]] for row in item["sizes"]]
            for name, item in tally.items.items()
        },
    )


if __name__ == "__main__":
    sys.exit(main())
