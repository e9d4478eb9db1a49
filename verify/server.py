"""Requests that schemathesis thinks of, against a server of every kind of task, with a teacher beside the student.

    python verify/server.py --examples 500      so many of each endpoint

Schemathesis makes them of the server's own OpenAPI document: right ones, and wrong ones of every sort. None may be answered
with a server's error (500 and above), and each answer must be as the document has it. Ends with one JSON line; exit code 1 if one was
not.
"""

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import workspace  # noqa: F401  (finds `task_models`)
from tally import Tally, parser


def attack(kind: str, place: Path, examples: int, seed: int) -> dict[str, Any]:
    """Serve tiny models of a task and ask them: how many requests, and what is wrong."""
    from fastapi.testclient import TestClient
    from requests_of_any_kind import ask_anything
    from task_models import model_in

    import bistil
    from bistil.serving.app import make_app
    from bistil.serving.settings import Limits

    student, teacher = (bistil.load(model_in(place, family, kind), threads=1) for family in ("bert", "roberta"))
    app = make_app(student, teacher=teacher, limits=Limits(body=20_000, inputs=4))
    started, requests, wrong = time.monotonic(), 0, list[str]()
    try:
        with TestClient(app):
            for path, asked, error in ask_anything(app, examples, number=seed):
                requests += asked
                if error is not None:
                    traceback.print_exception(error)
                    wrong.append(f"{path}: {type(error).__name__}: {error}")
    finally:
        app.batcher.close(20)
    seconds = round(time.monotonic() - started, 1)
    return {"requests": requests, "examples": examples, "seconds": seconds, "wrong": wrong}


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--examples", type=int, default=1000, help="of each endpoint of each task")
    options.add_argument("--only", default="", help="tasks whose name holds this")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    from task_models import LABELS

    tally = Tally(chosen)
    with tempfile.TemporaryDirectory(prefix="server-") as place:
        for kind in tally.left(
            [one for one in sorted(LABELS) if chosen.only in one],
            lambda done: bool(done["examples"] >= chosen.examples),
        ):
            tally.put(kind, attack(kind, Path(place), chosen.examples, chosen.seed))
    return tally.end(requests=tally.total("requests"))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
