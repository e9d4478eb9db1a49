"""A corpus of many lines, and one without a single line end, counted in linear time and bounded memory.

    python verify/corpus.py                     10 million lines
    python verify/corpus.py --lines 200000

Prints lines, seconds and peak memory of both beside a tenth of them, as one JSON line; exit code 1 if memory grows with
the text.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import workspace  # noqa: F401  (finds `tiny`)

# Memory of ten times the text, against the text: batches in flight differ by this much.
SPARE = 300 << 20


def counted(path: Path) -> tuple[float, int, int]:
    """Seconds, lines and peak memory in bytes of counting a text in a child."""
    reader, writer = os.pipe()
    if not os.fork():
        import tiny

        from bistil.vocabulary.counting import count_file
        from bistil.vocabulary.tokenizer_state import read_vocabulary

        started = time.monotonic()
        counts = count_file(read_vocabulary(json.loads(tiny.tokenizer().backend_tokenizer.to_str())), path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.write(writer, json.dumps([time.monotonic() - started, counts.lines, peak]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        seconds, lines, peak = json.load(said)
    os.wait()
    return seconds, lines, peak


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=10_000_000)
    options = parser.parse_args(arguments)
    import tiny

    found = {}
    sound = True
    with tempfile.TemporaryDirectory(prefix="corpus-") as place:
        for name, sentence in (("lines", "\n".join(tiny.SWAHILI.splitlines()) + "\n"), ("one line", "kwamkekana")):
            rows = []
            for share in (10, 1):
                path = Path(place) / "text.txt"
                lines = options.lines // share
                with path.open("w") as file:
                    for _ in range(max(1, lines // 1_000)):
                        file.write(sentence * (100 if "\n" in sentence else 5_000))
                seconds, count, peak = counted(path)
                rows.append(
                    {"bytes": path.stat().st_size, "lines": count, "seconds": round(seconds, 2), "peak_mb": peak >> 20}
                )
            sound = sound and (rows[1]["peak_mb"] - rows[0]["peak_mb"]) << 20 < SPARE
            found[name] = rows
    print(json.dumps(found | {"sound": sound}))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
