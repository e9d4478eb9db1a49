"""A training that is killed at random moments ends with the same bytes as one that was not.

    python verify/kills.py             100 kills (SIGKILL), and some SIGINT and SIGTERM
    python verify/kills.py --kills 5

Phase 1 of `tests/end_to_end/test_interruptions.py` in forked children. Ends with one JSON line.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from workspace import TESTS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args(arguments)
    os.environ.setdefault("BISTIL_PRECISION", "float32")
    sys.path.insert(0, str(TESTS / "end_to_end"))
    import test_interruptions

    test_interruptions.KILLS = options.kills
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        test_interruptions.interrupt_again_and_again(Path(place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
