"""How two threads fare on a machine where other work keeps one core busy, by how long OpenMP's threads spin.

    python benchmarks/busy_machine.py                       # a phase-1 step of the demo's size
    python benchmarks/busy_machine.py --threads 4 --busy 2 --record benchmarks/records/NAME.json

A thread of OpenMP that waits for the others spins before it sleeps. Where the others have a core each that is best; on
a busy machine it takes the core from a thread that is waited for. The variable GOMP_SPINCOUNT (of GCC's library, which
PyTorch's packages for Linux bring) says how many turns it spins. A process each runs the same steps with the variable
unset, higher than the command line sets it, as it does, and at 0; they take turns, first on the machine as it is, which
should be idle, then beside processes that do nothing but count. Wall time, medians over steps.

The last line is one JSON object: per value the seconds of a step, idle and busy, and speed relative to the value unset
on the idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from phase1_step import SIZES, ask, our_step, pipes

from bistil.runtime.process import SPIN_COUNT

VALUES = {"unset": None, "20000": "20000", SPIN_COUNT: SPIN_COUNT, "0": "0"}
COUNTING = "while True: pass"


def work(name: str, threads: int) -> None:
    """A process that does one step per line on standard input and answers with its seconds."""
    from bistil.runtime.precision import precision_here

    act = our_step(SIZES[name], device="cpu", precision=precision_here("cpu"))
    import torch

    torch.set_num_threads(threads)
    act()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        act()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="demo", choices=list(SIZES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, default=1, help="processes that keep a core busy each")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--record", type=Path, help="also write the JSON here")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.size, options.threads)
        return
    from bistil.measuring.benchmark import machine

    unset = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, __file__, "--work", "--size", options.size, "--threads", str(options.threads)]
    processes = {}
    for name, value in VALUES.items():
        environment = {**unset, "OMP_NUM_THREADS": str(options.threads)}
        environment |= {} if value is None else {"GOMP_SPINCOUNT": value}
        processes[name] = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert json.loads(pipes(processes[name])[1].readline())["ready"]
    seconds: dict[str, dict[str, float]] = {name: {} for name in processes}
    for state, count in (("idle", 0), ("busy", options.busy)):
        others = [subprocess.Popen([sys.executable, "-c", COUNTING]) for _ in range(count)]
        try:
            took: dict[str, list[float]] = {name: [] for name in processes}
            for _ in range(options.steps):
                for name, process in processes.items():
                    took[name].append(ask(process)["seconds"])
        finally:
            for other in others:
                other.kill()
                other.wait()
        for name in processes:
            seconds[name][state] = statistics.median(took[name])
    for process in processes.values():
        pipes(process)[0].close()
        process.wait()
    best = seconds["unset"]["idle"]
    results: dict[str, Any] = {
        "size": options.size,
        "threads": options.threads,
        "busy": options.busy,
        "steps": options.steps,
        "machine": machine(),
        "seconds": {name: {state: round(one, 3) for state, one in both.items()} for name, both in seconds.items()},
        "speed": {name: {state: round(best / one, 2) for state, one in both.items()} for name, both in seconds.items()},
    }
    for name, both in results["speed"].items():
        print(f"GOMP_SPINCOUNT {name}: idle {both['idle']:.0%}, busy {both['busy']:.0%}", flush=True)
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
