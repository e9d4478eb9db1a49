"""Draw what `transfer.py --table` found: the gap to the task teacher per row, with its interval, one panel per study.

python benchmarks/transfer_figure.py benchmarks/records/transfer-*.json --output docs/transfer.svg
"""

import argparse
import json
from pathlib import Path
from typing import Any

SHOWN = ["teacher-forced, target text", "teacher-forced", "self-taught"]


def rows_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that all studies have, of the students that serve all targets: best students at the top."""
    rows = [row for row in record["rows"] if row["group"] == "all" and row["variant"] in SHOWN]
    return sorted(rows, key=lambda row: (row["student"], SHOWN.index(row["variant"])), reverse=True)


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    records = [json.loads(file.read_text()) for file in options.records]
    figure, panels = pyplot.subplots(len(records), 1, figsize=(7.2, 1.75 * len(records)), squeeze=False, sharex=True)
    for record, axes in zip(records, panels[:, 0], strict=True):
        rows = rows_of(record)
        for place, row in enumerate(rows):
            color = f"C{SHOWN.index(row['variant'])}"
            axes.plot(row["interval"], [place, place], color=color, linewidth=2)
            axes.plot(row["gap"], place, marker="o", color=color)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [f"{row['student']}, {row['variant']}" for row in rows], fontsize=7)
        axes.set_title(f"{record['study']}: {record['metric']}, mean over languages", fontsize=8, loc="left")
        axes.grid(axis="x", alpha=0.3)
    panels[-1, 0].set_xlabel("points to the task teacher (bar: 95% interval over test examples)")
    figure.tight_layout()
    figure.savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
