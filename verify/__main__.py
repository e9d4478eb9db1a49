"""All parts, one after the other. A whole run writes a dated record into docs/reliability.md, a sample does not.

python verify            hours
python verify --sample   about three minutes: some of each, for continuous integration
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORD = HERE.parent / "docs" / "reliability.md"
# Part: arguments of a whole run, and of a sample.
PARTS = {
    "bad_inputs": ([], ["--sample", "80"]),
    "fuzz": (["--seconds", "7200"], ["--seconds", "60"]),
    "kills": (["--kills", "100"], ["--kills", "5"]),
    "full_disk": ([], ["--limits", "2"]),
    "corpus": ([], ["--lines", "100000"]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help="some of each part")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    options = parser.parse_args()
    lines, failed = [], []
    for part in options.parts or PARTS:
        started = time.monotonic()
        command = [sys.executable, str(HERE / f"{part}.py"), *PARTS[part][options.sample]]
        ran = subprocess.run(command, capture_output=True, text=True)
        last = (ran.stdout.strip().splitlines() or [""])[-1]
        seconds = round(time.monotonic() - started)
        print(f"{part}: {'sound' if ran.returncode == 0 else 'WRONG'}, {seconds} s: {last}", flush=True)
        if ran.returncode:
            failed.append(part)
            print(ran.stdout[-3000:], ran.stderr[-3000:], sep="\n", flush=True)
        lines.append(f"| {part} | {'sound' if ran.returncode == 0 else 'wrong'} | {seconds:,} | `{_short(last)}` |")
    if not options.sample:
        head = "# Reliability\n\nWhat `make verify` found, newest first; the parts are in `verify/`.\n"
        known = RECORD.read_text(encoding="utf-8").removeprefix(head) if RECORD.exists() else ""
        date = time.strftime("%Y-%m-%d")
        table = ["| part | result | seconds | figures |", "| --- | --- | --- | --- |", *lines]
        machine = f"Python {platform.python_version()}, {platform.machine()}"
        RECORD.write_text(f"{head}\n## {date}, {machine}\n\n" + "\n".join(table) + "\n" + known, encoding="utf-8")
    return 1 if failed else 0


def _short(line: str) -> str:
    """The figures of a part's last line that fit into a table."""
    try:
        values = json.loads(line)
    except ValueError:
        return line[:200]
    return json.dumps({name: value for name, value in values.items() if not isinstance(value, dict) or len(value) < 8})[
        :300
    ]


if __name__ == "__main__":
    sys.exit(main())
