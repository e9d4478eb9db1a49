"""The notebook of docs/, cell by cell in a folder of its own: every cell runs, and none has an output in git.

    python verify/notebook.py           as it stands: the packaged teacher, minutes
    python verify/notebook.py --tiny    a tiny teacher and fewer steps, seconds

Ends with one JSON line: cells that ran; exit code 1 if one failed. It needs no notebook software.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import workspace  # noqa: F401  (finds `tiny`)
from tally import Tally, parser

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "first_model.ipynb"
# In place of the cell of settings.
TINY = """
from pathlib import Path
TEACHER, FOLDER = Path("teacher"), Path("first-model")
PHASE1_STEPS, BATCH, TEACHER_EPOCHS, STUDENT_EPOCHS, KEEP = 2, 64, 1, 1, None
"""


def cells(notebook: Path) -> list[dict[str, Any]]:
    """Those with code, in their order."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def run(notebook: Path, place: Path, *, tiny: bool) -> dict[str, Any]:
    """Run the cells in a folder, as one program: how many ran, seconds of each, and what is wrong."""
    names: dict[str, Any] = {"__name__": "__main__"}
    seconds, wrong = dict[str, float](), list[str]()
    with contextlib.chdir(place), contextlib.redirect_stdout(sys.stderr):
        if tiny:
            import tiny as models

            models.save(models.model("bert", layers=2), place / "teacher")
        for number, cell in enumerate(cells(notebook), 1):
            if cell["outputs"] or cell["execution_count"] is not None:
                wrong.append(f"cell {cell['id']} has outputs: clear them before a commit")
            settings = tiny and "parameters" in cell["metadata"].get("tags", ())
            started = time.monotonic()
            try:
                exec(compile(TINY if settings else "".join(cell["source"]), f"cell {number}", "exec"), names)
            except Exception as error:
                traceback.print_exc()
                wrong.append(f"cell {cell['id']}: {type(error).__name__}: {error}")
                break
            seconds[cell["id"]] = round(time.monotonic() - started, 1)
    return {"cells": len(seconds), "seconds": seconds, "wrong": wrong}


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--tiny", action="store_true", help="a tiny teacher and fewer steps")
    chosen = options.parse_args()
    tally = Tally(chosen)
    for name in tally.left([NOTEBOOK.stem + (", tiny" if chosen.tiny else "")]):
        with tempfile.TemporaryDirectory(prefix="notebook-") as place:
            tally.put(name, run(NOTEBOOK, Path(place).resolve(), tiny=chosen.tiny))
    return tally.end(cells=tally.total("cells"))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
