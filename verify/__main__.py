"""All parts, one after the other, each going on where it was stopped; then the record, docs/reliability.md.

    python verify                       hours
    python verify kills signals         these parts
    python verify fuzz --minutes 20     so many at most; the same command goes on
    python verify --fresh               from the start: what was found is forgotten
    python verify --sample              some of each part in minutes, for continuous integration; no record

What each part found is kept in runs/verify, by item, with the day and the state of the code.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
RECORD = HERE.parent / "docs" / "reliability.md"
RESULTS = HERE.parent / "runs" / "verify"


class Part(NamedTuple):
    """A part: what it does, its arguments in a sample, and what it must have done at least: as a whole, and as a sample."""

    says: str
    sample: list[str]
    figure: str
    whole: int
    least: int
    total: Callable[[Iterable[float]], float] = sum
    """Of the items' figures."""


PARTS = {
    "bad_inputs": Part("Bad inputs of every format and command", ["--sample", "20", "--real", "1"], "inputs", 300, 20),
    "fuzz": Part("Fuzzing of the readers", ["--seconds", "60", "--slice", "2.5"], "seconds", 3600, 40),
    "kills": Part("SIGKILL in all stages of a run", ["--kills", "5"], "kills", 50, 5),
    "signals": Part("SIGTERM and SIGINT in all stages and commands", ["--only", "run,predict", "--every", "5"], "signals", 30, 4),
    "full_disk": Part("Full disks in all stages and commands", ["--only", "run,predict", "--every", "8", "--limits", "2"], "refused", 30, 2),
    "corpus": Part("Long corpora through trimming and blocks", ["--lines", "100000"], "lines", 10_000_000, 100_000, min),
    "server": Part("Requests that schemathesis thinks of, to all endpoints of all tasks", ["--examples", "10"], "requests", 10_000, 100),
    "notebook": Part("The notebook, from teacher to prediction", ["--tiny"], "cells", 7, 7),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help="some of each part")
    parser.add_argument("--fresh", action="store_true", help="forget what the parts found")
    parser.add_argument("--minutes", type=float, help="per part: start nothing new after so many")
    parser.add_argument("--record", action="store_true", help="write the record of what is there, and do nothing else")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {min(unknown)!r}: choose from {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="verify-") as place:
        results = Path(place) if options.sample else RESULTS
        names = [] if options.record else options.parts or list(PARTS)
        for name in names:
            if options.fresh:
                (results / f"{name}.json").unlink(missing_ok=True)
                if name == "fuzz":
                    shutil.rmtree(results / "fuzz", ignore_errors=True)
        # A sample takes both cores of a machine that has two.
        with ThreadPoolExecutor(min(2, _cores()) if options.sample else 1) as several:
            sound = list(several.map(lambda name: _is_sound(name, results, options), names))
    if not options.sample:
        kept = RECORD.read_text(encoding="utf-8") if RECORD.exists() else ""
        RECORD.write_text(record(RESULTS, kept), encoding="utf-8")
    return 0 if all(sound) else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_sound(name: str, results: Path, options: argparse.Namespace) -> bool:
    """Run a part; whether it found nothing and, as a sample, did what it is for."""
    part, started, sample, minutes = PARTS[name], time.monotonic(), options.sample, options.minutes
    command = [sys.executable, str(HERE / f"{name}.py"), "--results", str(results / f"{name}.json")]
    command += part.sample if sample else []
    command += [] if minutes is None else ["--minutes", str(minutes)]
    ran = subprocess.run(command, capture_output=True, text=True)
    last = (ran.stdout.strip().splitlines() or [""])[-1]
    try:
        done = json.loads(last)[part.figure]
    except (ValueError, KeyError, TypeError):
        done = -1
    sound = ran.returncode == 0 and done >= (part.least if sample else 0)
    print(f"{name}: {'sound' if sound else 'WRONG'}, {time.monotonic() - started:.0f} s: {last}", flush=True)
    if not sound:
        print(f"at least {part.least} {part.figure} were to be done" if 0 <= done < part.least and sample else "")
        print(ran.stdout[-3000:], ran.stderr[-3000:], sep="\n", flush=True)
    return sound


def record(results: Path, kept: str) -> str:
    """What the parts found, as a page; of a part that has found nothing in this folder, what the page `kept` says."""
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in kept.splitlines() if line.startswith("| ")}
    sections = {one.partition("\n")[0]: one.rstrip().splitlines() for one in kept.split("\n## ")[1:]}
    lines = [
        "# Reliability",
        "",
        "What `make verify` found; the parts are in `verify/`. Each goes on where it was stopped, so that its figures may be of several",
        "days. A part that has not done all that a whole one does says so.",
        "",
        "| part | done | of a whole | found | days | code |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    details: list[str] = []
    for name, part in PARTS.items():
        file = results / f"{name}.json"
        items = json.loads(file.read_text(encoding="utf-8"))["items"] if file.exists() else {}
        if not items:
            lines.append(rows.get(part.says, f"| {part.says} | nothing yet | {part.whole:,} {part.figure} | | | |"))
            if part.says in sections:
                details += ["", f"## {part.says}", *sections[part.says][1:]]
            continue
        done = round(part.total(one.get(part.figure, 0) for one in items.values()))
        wrong = [f"{item}: {what}" for item, one in items.items() for what in one["wrong"]]
        whole = f"{part.whole:,}" + ("" if done >= part.whole else ", not reached")
        days, states = ({one[key] for one in items.values()} for key in ("date", "commit"))
        lines.append(
            f"| {part.says} | {done:,} {part.figure} | {whole} | {len(wrong) or 'nothing'} | {_span(days)} | {_span(states)} |"
        )
        details += ["", f"## {part.says}", "", *DETAILS[name](items), *(f"- Found: `{one[:200]}`" for one in wrong)]
    return "\n".join([*lines, "", f"Python {platform.python_version()}, {platform.machine()}.", *details]) + "\n"


def _span(values: set[str]) -> str:
    ordered = sorted(values)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


Items = dict[str, dict[str, Any]]


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


def _bad_inputs(items: Items) -> list[str]:
    formats: dict[str, int] = {}
    for one in items.values():
        for name, count in one["formats"].items():
            formats[name] = formats.get(name, 0) + count
    listed = ", ".join(f"{name} {count}" for name, count in sorted(formats.items()))
    real = items.get("real", {}).get("inputs", 0)
    return [f"By format: {listed}. In processes of their own: {real}; the others in one."]


def _fuzz(items: Items) -> list[str]:
    rows = [
        [name, round(one["seconds"]), f"{one['runs']:,}", one["inputs"], one["lines"]] for name, one in items.items()
    ]
    return _table(["reader", "seconds of the processor", "inputs read", "kept", "lines of ours reached"], rows)


def _kills(items: Items) -> list[str]:
    stages: dict[str, int] = {}
    for one in items.values():
        for name, count in one["stages"].items():
            stages[name] = stages.get(name, 0) + count
    listed = ", ".join(f"{name} {count}" for name, count in stages.items())
    return [f"{len(items)} rounds; all final weights are bit-identical unless it says otherwise. By stage: {listed}."]


def _by_command(items: Items, figure: str) -> dict[str, list[dict[str, Any]]]:
    """Items, named "COMMAND: MOMENT", by command."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, one in items.items():
        found.setdefault(name.partition(":")[0], []).append({figure: 0, "moments": [], **one})
    return found


def _moments(several: list[dict[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(moment for one in several for moment in one["moments"]))


def _signals(items: Items) -> list[str]:
    rows = [
        [command, sum(one["signals"] for one in several), max(one["longest"] for one in several), _moments(several)]
        for command, several in _by_command(items, "signals").items()
    ]
    return _table(["command", "signals", "longest end in seconds", "in"], rows)


def _full_disk(items: Items) -> list[str]:
    rows = [
        [
            command,
            next((one["skipped"] for one in several if "skipped" in one), sum(one["refused"] for one in several)),
            _moments(several),
        ]
        for command, several in _by_command(items, "refused").items()
    ]
    return _table(["command", "refused", "in"], rows)


def _notebook(items: Items) -> list[str]:
    rows = [[name, one["cells"], round(sum(one["seconds"].values()))] for name, one in items.items()]
    return _table(["notebook", "cells", "seconds"], rows)


def _server(items: Items) -> list[str]:
    rows = [[name, f"{one['requests']:,}", one["examples"], round(one["seconds"])] for name, one in items.items()]
    return _table(["task", "requests", "wanted of each endpoint", "seconds"], rows)


def _corpus(items: Items) -> list[str]:
    rows = [
        [name.partition(",")[0], f"{size['lines']:,}", f"{size['bytes'] / 1e6:,.1f}", size["seconds"],
         f"{size['lines_per_second']:,}", size["mb_per_second"], size["peak_mb"]]
        for name, one in items.items() for size in one["sizes"]
    ]  # fmt: skip
    return _table(["step", "lines", "MB", "seconds of the processor", "lines/s", "MB/s", "peak memory in MiB"], rows)


DETAILS = {
    "bad_inputs": _bad_inputs,
    "fuzz": _fuzz,
    "kills": _kills,
    "signals": _signals,
    "full_disk": _full_disk,
    "corpus": _corpus,
    "server": _server,
    "notebook": _notebook,
}


if __name__ == "__main__":
    sys.exit(main())
