"""Writes that fail, in every stage of a run: one line, exit code 2, and the same command goes on once there is room.

    python verify/full_disk.py            limits of many sizes
    python verify/full_disk.py --limits 4

Files may not grow beyond a limit (RLIMIT_FSIZE), which fails a write in the middle of it as a full disk does, wherever in
Python or in a library it is. The run of the recipe is made in forked children, first with the limit, then without, and what
comes of it is compared with a run that met none. Ends with one JSON line; exit code 1 if anything was found.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import workspace

# In bytes: those at the ends stop records and weights, those in between the rest.
LIMITS = (0, 100, 700, 2_000, 5_000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 150_000, 200_000, 300_000)


def command(arguments: list[str], log: Path, limit: int | None) -> tuple[int, str]:
    """Exit code and standard error of the command line in a child."""
    child = os.fork()
    if not child:
        code: object = 1
        try:
            stream = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            # A pipe's end would not be limited; what is said goes into a file of this process's.
            os.dup2(stream, 1), os.dup2(stream, 2)
            reader, writer = os.pipe()
            if os.fork():
                os.close(writer)
                with os.fdopen(reader, "rb") as said:
                    os.write(stream, said.read())
                _, status = os.wait()
                os._exit(os.waitstatus_to_exitcode(status) & 255)
            os.close(reader)
            os.dup2(writer, 2)
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            from bistil import cli

            sys.argv = ["bistil", *arguments]
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code or 0
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code if isinstance(code, int) else 1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def weights(run: Path) -> dict[str, bytes]:
    """All weights that a run made."""
    return {
        str(one.relative_to(run)): one.read_bytes() for one in run.rglob("*.safetensors") if "work" not in one.parts
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", type=int, default=len(LIMITS), help="so many of the sizes, evenly chosen")
    options = parser.parse_args(arguments)
    os.environ.update(BISTIL_PRECISION="float32", HF_HUB_OFFLINE="1")
    found: list[str] = []
    failed = 0
    with tempfile.TemporaryDirectory(prefix="full-") as place:
        folder = Path(place)
        workspace.make(folder)
        os.chdir(folder)
        import bistil.method  # noqa: F401  (children inherit the imports)

        def run(output: str, limit: int | None) -> tuple[int, str]:
            return command(["run", "rt.toml", "--output", output], folder / "log", limit)

        code, said = run("whole", None)
        if code:
            print(said[-3000:])
            return 1
        expected = weights(folder / "whole")
        step = max(1, len(LIMITS) // options.limits)
        for limit in LIMITS[::step][: options.limits]:
            output = f"cut{limit}"
            code, said = run(output, limit)
            errors = [line for line in said.splitlines() if line.startswith("bistil: error: ")]
            failed += code != 0
            if (
                code not in (0, 2)
                or (code == 2 and (len(errors) != 1 or "make room" not in errors[0]))
                or "Traceback" in said
            ):
                found.append(f"limit {limit}: exit code {code}: {said.splitlines()[-1:]}")
            if list(folder.glob(f".{output}*")):
                found.append(f"limit {limit}: left behind")
            code, said = run(output, None)
            if code or weights(folder / output) != expected:
                found.append(f"limit {limit}: the run did not end as without: {code} {said.splitlines()[-1:]}")
        os.chdir("/")
    print(json.dumps({"limits": options.limits, "refused": failed, "wrong": len(found), "found": found}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
