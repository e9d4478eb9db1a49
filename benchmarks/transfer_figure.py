"""Draw what `transfer.py` found: the gap to the task teacher per row, with its interval, one panel per study.

python benchmarks/transfer_figure.py benchmarks/records/transfer-*.json --output docs/transfer.svg
python benchmarks/transfer_figure.py benchmarks/records/transfer-*.json --length --output docs/transfer-length.svg
python benchmarks/transfer_figure.py benchmarks/records/gaps-*-choice.json --hours --output docs/gaps.svg

With --length, the gap of students of half the depth against the tokens of phase 1; with --hours, the gap of each
student of half the depth to the undistilled teacher, those that took the least time at the top.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bistil.report.studies import without_besides

SHOWN = ["teacher-forced, target text", "teacher-forced", "self-taught"]


def rows_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that all studies have, of the students that serve all targets: best students at the top."""
    rows = [row for row in record["rows"] if row["group"] == "all" and row["variant"] in SHOWN]
    return sorted(rows, key=lambda row: (row["student"], SHOWN.index(row["variant"])), reverse=True)


def by_length(record: dict[str, Any], ending: str) -> list[dict[str, Any]]:
    """Rows that differ in phase 1 alone, the shortest first."""
    names = [ending, *(f"{start}, {ending}" for start in ("copied", "phase 1 a quarter", "phase 1 four times"))]
    rows = [row for row in record["rows"] if (row["group"], row["student"]) == ("all", "lrf2")]
    return sorted((row for row in rows if row["variant"] in names), key=lambda row: row["phase1_tokens"])


def bars(axes: Any, rows: list[tuple[str, float, float, float, str]]) -> None:
    """Rows from the bottom up: name, gap, interval and color of each."""
    for place, (_, gap, low, high, color) in enumerate(rows):
        axes.plot([low, high], [place, place], color=color, linewidth=2)
        axes.plot(gap, place, marker="o", color=color)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=7)
    axes.grid(axis="x", alpha=0.3)


def draw_rows(records: list[dict[str, Any]], pyplot: Any) -> Any:
    figure, panels = pyplot.subplots(len(records), 1, figsize=(7.2, 1.75 * len(records)), squeeze=False, sharex=True)
    for record, axes in zip(records, panels[:, 0], strict=True):
        bars(
            axes,
            [
                (f"{row['student']}, {row['variant']}", row["gap"], *row["interval"], f"C{SHOWN.index(row['variant'])}")
                for row in rows_of(record)
            ],
        )
        axes.set_title(f"{record['study']}: {record['metric']}, mean over languages", fontsize=8, loc="left")
    panels[-1, 0].set_xlabel("points to the task teacher (bar: 95% interval over test examples)")
    return figure


def draw_length(records: list[dict[str, Any]], pyplot: Any) -> Any:
    figure, panels = pyplot.subplots(1, len(records), figsize=(2.4 * len(records), 2.8), squeeze=False)
    for record, axes in zip(records, panels[0], strict=True):
        for ending in SHOWN[:2]:
            rows = by_length(record, ending)
            low = [row["gap"] - row["interval"][0] for row in rows]
            high = [row["interval"][1] - row["gap"] for row in rows]
            axes.errorbar(
                [row["phase1_tokens"] / 1e6 for row in rows], [row["gap"] for row in rows], yerr=[low, high],
                color=f"C{SHOWN.index(ending)}", marker="o", markersize=3, capsize=2, linewidth=1, label=ending,
            )  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(record["study"], fontsize=8, loc="left")
        axes.set_xscale("symlog", base=2, linthresh=0.1)
        axes.set_xticks([0, 0.1, 0.4, 1.6], ["0", "0.1", "0.4", "1.6"])
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("points to the task teacher", fontsize=8)
    panels[0, len(records) // 2].set_xlabel("phase 1, millions of tokens", fontsize=8)
    panels[0, -1].legend(fontsize=6, loc="lower right")
    return figure


def hours(row: dict[str, Any]) -> float:
    """What a row's models took of one thread."""
    return without_besides(row["seconds"]) / 3600


def draw_hours(records: list[dict[str, Any]], pyplot: Any) -> Any:
    students = [
        sorted((row for row in record["rows"] if (row["group"], row["student"]) == ("all", "lrf2")), key=hours)
        for record in records
    ]
    figure, panels = pyplot.subplots(
        len(records), 1, figsize=(7.2, sum(0.6 + 0.22 * len(rows) for rows in students) + 0.4), squeeze=False,
        gridspec_kw={"height_ratios": [len(rows) for rows in students]},
    )  # fmt: skip
    for record, rows, axes in zip(records, students, panels[:, 0], strict=True):
        bars(axes, [(f"{row['variant']} ({hours(row):.2f} h)", *row["gaps"]["undistilled"], "C0") for row in rows])
        axes.invert_yaxis()
        axes.set_title(f"{record['study']}: {record['metric']}, mean over languages", fontsize=8, loc="left")
    panels[-1, 0].set_xlabel("points to the undistilled teacher (bar: 95% interval); hours of one thread", fontsize=7)
    return figure


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--length", action="store_true", help="against the length of phase 1")
    how.add_argument("--hours", action="store_true", help="in the order of the time that they took")
    options = parser.parse_args()
    records = [json.loads(file.read_text()) for file in options.records]
    draw = draw_hours if options.hours else draw_length if options.length else draw_rows
    figure = draw(records, pyplot)
    figure.tight_layout()
    figure.savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
