"""The record of a study of `bistil study`, for `transfer_figure.py` and for benchmarks/records.

    bistil study benchmarks/transfer/ner.toml --data DATA --output runs/ner
    python benchmarks/transfer.py runs/ner > benchmarks/records/transfer-ner.json

Per system or variant, student and group: scores per seed, means, the gap to the reference and to every teacher that the
study scores with its interval, and seconds of each kind of work (what several models share, divided by who shares it).
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bistil.report.studies import TEACHERS, Row, StudyRecords, read_records


def record(records: StudyRecords) -> dict[str, Any]:
    """All of it as one JSON object."""
    machines = {(one.machine["processor"], one.machine["threads"]) for one in records.points if one.machine}
    return {
        "study": records.study.name,
        "metric": records.metric,
        "reference": records.reference_name,
        "rows": [_row(records, row) for row in records.rows],
        "machines": [{"processor": processor, "threads": threads} for processor, threads in sorted(machines)],
        "speed": [asdict(one) for one in records.speed.values()],
    }


def _row(records: StudyRecords, row: Row) -> dict[str, Any]:
    gap = records.gap(row) or (0.0, 0.0, 0.0)
    names = dict.fromkeys(name for part in row.tests for one in row.of(part) for name in one.scores)
    return {
        "group": row.shared or ", ".join(row.targets),
        "student": row.student or "teacher",
        "variant": row.system,
        "parts": row.tests,
        "scores": {part: row.values(part) for part in dict.fromkeys(part for one in row.points for part in one.scores)},
        "phase1_tokens": row.points[0].tokens.get("phase 1", 0),
        "means": row.means(row.tests),
        "gap": gap[0],
        "interval": [*gap[1:]],
        "gaps": {
            one.name: records.gap(row, one)
            for one in records.rows
            if one.kind in TEACHERS and one is not row and set(row.tests) <= set(one.tests)
        },
        "seconds": {kind: round(seconds) for kind, seconds in row.total("seconds").items()},
        "other": {
            part: {name: sum(one.scores[name] for one in row.of(part)) / len(row.of(part)) for name in names}
            for part in row.tests
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a study's folder")
    print(json.dumps(record(read_records(parser.parse_args().output))))


if __name__ == "__main__":
    main()
