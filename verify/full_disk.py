"""Disks that are full, in every stage and for every product: one line, exit code 2, and the same command goes on.

    python verify/full_disk.py                       every stage and command, limits of several sizes
    python verify/full_disk.py --only run --every 6  every sixth stage of the run

For everyone: from a stage's beginning on, files may not grow beyond a limit (RLIMIT_FSIZE), which fails a write in the middle of it
as a full disk does, wherever in Python or in a library it is. Where a small file system can be mounted (tmpfs, by root): the whole
run on one that is full again and again, and grows. Then each command is run without a limit, and what comes of it is compared
with what comes of commands that met none. Ends with one JSON line; exit code 1 if anything was found.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from pipeline import COMMANDS, Ended, Moment, Pipeline
from tally import Tally, parser

# In bytes: those at the ends stop records and weights, those in between the rest.
LIMITS = (0, 700, 5_000, 20_000, 60_000, 100_000)
TMPFS = " on tmpfs"
# Of that file system, in bytes: the run's inputs lie elsewhere.
STEP = 256 << 10


def limited(limit: int) -> None:
    """From here on, files of this process may not grow beyond a limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def problems(ended: Ended) -> list[str]:
    """What is wrong with the end of a command that could not write."""
    found = []
    if ended.code not in (0, 2):
        found.append(f"exit code {ended.code}: {ended.lines[-1:]}")
    if ended.code == 2 and (len(ended.errors) != 1 or "make room" not in ended.errors[0]):
        found.append(f"lines {ended.errors[:2]}")
    if any("Traceback" in line for line in ended.lines):
        found.append(f"a traceback: {ended.lines[-1:]}")
    return found


def without_room(pipeline: Pipeline, moment: Moment, limits: list[int]) -> dict[str, object]:
    """Let a moment of a command meet each limit, going on in between."""
    output, refused, wrong = f"full-{moment.command.replace(' ', '-')}", [], []
    for limit in limits:
        ended = pipeline.launch(moment.command, output, moment, partial(limited, limit))
        wrong += [f"{limit} bytes: {one}" for one in problems(ended)]
        if ended.code == 0:
            pipeline.remove(output)
            break  # larger ones are no limit to it
        refused.append(ended.reached)
    return {"refused": len(refused), "moments": refused, "wrong": wrong}


def on_a_small_disk(pipeline: Pipeline) -> dict[str, object]:
    """The run on a file system that is too small, and grows by a step when it is full."""
    place, size, refused, wrong = pipeline.folder / "small", STEP, 0, []
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        return {"skipped": mounted.stderr.strip() or "mount fails"}
    try:
        while True:
            ended = pipeline.launch("run", "small/run")
            wrong += [f"{size >> 10} KiB: {one}" for one in problems(ended)]
            if ended.code != 2 or wrong:
                break
            refused, size = refused + 1, size + STEP
            subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)
        wrong += [] if wrong else pipeline.ends_the_same("run", "small/run")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    return {"refused": refused, "kib": size >> 10, "wrong": wrong}


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--only", default=",".join([*COMMANDS, f"run{TMPFS}"]), help="commands, with commas")
    made.add_argument("--every", type=int, default=1, help="of the moments of a command, every so many")
    made.add_argument("--limits", type=int, default=len(LIMITS), help="so many of the limits, evenly chosen")
    options = made.parse_args(arguments)
    tally = Tally(options)
    limits = list(LIMITS[:: max(1, len(LIMITS) // options.limits)][: options.limits])
    with tempfile.TemporaryDirectory(prefix="full-") as place:
        pipeline = Pipeline(Path(place))
        for command in options.only.split(","):
            end = f"{command}: end"
            if end in tally.items or tally.is_late():
                continue
            moments = {f"{command}: {one.name}": one for one in pipeline.moments(command.removesuffix(TMPFS))}
            if command.endswith(TMPFS):
                tally.put(end, on_a_small_disk(pipeline))
                continue
            for name in tally.left([*[*moments][:: options.every], end]):
                if name in moments:
                    tally.put(name, without_room(pipeline, moments[name], limits))
                else:
                    wrong = pipeline.ends_the_same(command, f"full-{command.replace(' ', '-')}")
                    tally.put(name, {"wrong": wrong})
        os.chdir("/")
    skipped = [f"{name}: {item['skipped']}" for name, item in tally.items.items() if "skipped" in item]
    return tally.end(refused=tally.total("refused"), **({"skipped": skipped} if skipped else {}))


if __name__ == "__main__":
    sys.exit(main())
