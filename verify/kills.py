"""A run that is killed again and again, at random moments of all its stages, ends with the same bytes as one that was not.

    python verify/kills.py             50 kills (SIGKILL)
    python verify/kills.py --kills 5

Rounds of a small run of the whole method (`pipeline.py`): in each it is killed at a random moment of each stage in turn, going on
from there, until it is done; its weights are compared with those of a whole one. Ends with one JSON line; exit code 1 if anything
was found.
"""

import os
import random
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from pipeline import Moment, Pipeline, counted, raised
from tally import Tally, parser

COMMAND, PER_ROUND = "run", 5


def killed(pipeline: Pipeline, moments: list[Moment], draw: random.Random, output: str) -> dict[str, object]:
    """One round: a kill in each of the moments, then the end."""
    at, wrong = [], []
    for moment in moments:
        ended = pipeline.launch(
            COMMAND, output, moment, partial(raised, signal.SIGKILL), draw.uniform(0, moment.seconds)
        )
        if ended.code == -signal.SIGKILL:
            at.append(str(ended.reached))
        elif ended.code == 0:
            pipeline.remove(output)
        else:
            wrong.append(f"{moment.name}: exit code {ended.code}: {ended.lines[-1:]}")
    wrong += pipeline.ends_the_same(COMMAND, output)
    pipeline.remove(output)
    return {"kills": len(at), "stages": counted(iter(at)), "wrong": wrong}


def main(arguments: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--kills", type=int, default=50)
    options = made.parse_args(arguments)
    tally = Tally(options)
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        pipeline: Pipeline | None = None
        moments: list[Moment] = []
        for name in tally.left(f"round {number}" for number in range(1_000)):
            if tally.total("kills") >= options.kills:
                break
            if pipeline is None:
                pipeline = Pipeline(Path(place))
                moments = pipeline.moments(COMMAND)
            draw = random.Random(name)
            chosen = sorted(draw.sample(range(len(moments)), min(options.kills - tally.total("kills"), PER_ROUND)))
            tally.put(name, killed(pipeline, [moments[i] for i in chosen], draw, name.replace(" ", "-")))
        os.chdir("/")
    return tally.end(kills=tally.total("kills"))


if __name__ == "__main__":
    sys.exit(main())
