"""What the items of a part came to, kept from call to call: a part that is stopped goes on where it was."""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that all parts have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--results", type=Path, help="file for what was found; what is in it is not done again")
    made.add_argument("--minutes", type=float, default=1e9, help="start nothing new after so many")
    return made


class Tally:
    """Results by item, as JSON values with "wrong": a list of findings.

    Args:
        options: of `parser`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.file: Path | None = options.results and options.results.resolve()
        self.until = time.monotonic() + 60 * options.minutes
        self.items: dict[str, dict[str, Any]] = {}
        if self.file is not None and self.file.exists():
            self.items = json.loads(self.file.read_text(encoding="utf-8"))["items"]

    def left(self, names: Iterable[str], is_done: Callable[[dict[str, Any]], bool] = lambda _: True) -> Iterable[str]:
        """Those of the items that are to be done, as long as there is time; findings in code that is another now are
        looked at again."""
        for name in names:
            item = self.items.get(name)
            if item is None or not is_done(item) or (item["wrong"] and item["commit"] != commit()):
                if self.is_late():
                    return
                yield name

    def is_late(self) -> bool:
        """Whether nothing new is to be started."""
        return time.monotonic() > self.until

    def put(self, name: str, result: dict[str, Any]) -> None:
        """Keep an item's result, with the day and the state of the code."""
        self.items[name] = {"wrong": [], **result, "date": time.strftime("%Y-%m-%d"), "commit": commit()}
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps({"items": self.items}, indent=1), encoding="utf-8")
            os.replace(partial, self.file)

    def total(self, name: str) -> int:
        """Sum of a figure over all items."""
        return sum(int(one.get(name, 0)) for one in self.items.values())

    def end(self, **figures: Any) -> int:
        """Print the figures and what was found as one JSON line; the exit code."""
        wrong = [f"{name}: {one}" for name, item in self.items.items() for one in item["wrong"]]
        for one in wrong[:40]:
            print(one.encode("unicode_escape").decode())
        print(json.dumps({**figures, "items": len(self.items), "wrong": len(wrong)}))
        return 1 if wrong else 0


def commit() -> str:
    """The state of the code, in short."""
    said = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return said.stdout.strip() or "unknown"
