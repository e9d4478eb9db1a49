"""SIGTERM and SIGINT in every stage: the end within ten seconds, one line, nothing half-written, and the same products.

    python verify/signals.py                       every stage and command
    python verify/signals.py --only predict,export
    python verify/signals.py --every 6             every sixth moment

A small run of the whole method (`pipeline.py`) and the other commands are stopped at each stage's beginning and at a random
moment in it, each time going on from where the stop before left them; what comes of them is compared with what comes of
commands that nobody stopped. Ends with one JSON line; exit code 1 if anything was found.
"""

import os
import random
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from pipeline import COMMANDS, Ended, Moment, Pipeline, raised
from tally import Tally, parser

LONGEST = 10.0
STOPPING = (signal.SIGTERM, signal.SIGINT)
LINE = "bistil: interrupted; the same command goes on from the last checkpoint"


def problems(ended: Ended, number: int) -> list[str]:
    """What is wrong with the end of a command that got a signal."""
    found = []
    if ended.code != 128 + number:
        found.append(f"exit code {ended.code}")
    if ended.seconds > LONGEST:
        found.append(f"ended after {ended.seconds:.1f} s")
    if len(ended.errors) != 1 or not ended.errors[0].startswith(LINE):
        found.append(f"lines {ended.errors[:3]}")
    other = [line for line in ended.lines if "Traceback" in line or "Exception ignored" in line or "Error" in line]
    return found + [f"says {line[:100]!r}" for line in other[:1]]


def stopped(pipeline: Pipeline, moment: Moment, draw: random.Random) -> dict[str, object]:
    """Stop a command twice: when a moment begins, and, going on, after some of its time."""
    command, output = moment.command, f"cut-{moment.command.replace(' ', '-')}"
    longest, sent, wrong = 0.0, [], []
    for number, delay in ((signal.SIGTERM, 0.0), (draw.choice(STOPPING), draw.uniform(0, moment.seconds))):
        ended = pipeline.launch(command, output, moment, partial(raised, number), delay)
        if ended.reached is None or (ended.code == 0 and delay):
            # It was done before the signal came.
            pipeline.remove(output)
            continue
        sent.append(ended.reached)
        longest = max(longest, ended.seconds)
        wrong += [f"{delay:.2f} s in: {one}" for one in problems(ended, number)]
    return {"signals": len(sent), "longest": round(longest, 2), "moments": sent, "wrong": wrong}


def ends_the_same(pipeline: Pipeline, command: str) -> dict[str, object]:
    """Let a command that was stopped go on to its end."""
    output = f"cut-{command.replace(' ', '-')}"
    return {"signals": 0, "longest": 0.0, "moments": [], "wrong": pipeline.ends_the_same(command, output)}


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--only", default=",".join(COMMANDS), help="commands, with commas")
    made.add_argument("--every", type=int, default=1, help="of the moments of a command, every so many")
    options = made.parse_args(arguments)
    tally = Tally(options)
    with tempfile.TemporaryDirectory(prefix="signals-") as place:
        pipeline = Pipeline(Path(place))
        for command in options.only.split(","):
            if f"{command}: end" in tally.items or tally.is_late():
                continue
            moments = {f"{command}: {one.name}": one for one in pipeline.moments(command)[:: options.every]}
            for name in tally.left([*moments, f"{command}: end"]):
                if name in moments:
                    tally.put(name, stopped(pipeline, moments[name], random.Random(name)))
                else:
                    tally.put(name, ends_the_same(pipeline, command))
        os.chdir("/")
    longest = max((item["longest"] for item in tally.items.values()), default=0)
    return tally.end(signals=tally.total("signals"), longest_seconds=longest)


if __name__ == "__main__":
    sys.exit(main())
