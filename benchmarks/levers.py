"""What each lever is worth: a study's rows with gaps to both teachers, and to a row that lacks the lever, per hour.

    bistil study benchmarks/gaps/ner-choice.toml --data DATA --output runs/ner-choice
    python benchmarks/levers.py runs/ner-choice --base "1 epoch"

Gaps are means over the targets, with 95% intervals over resampled examples (the same for all rows); ± is the standard
deviation over seeds. Hours are those of all work but the search for rates and the scoring, as they were
measured; what several models share is divided by who shares it. `--base` names a system, or a row as the study's table
does.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from bistil.errors import InputError
from bistil.report.numbers import spread_text
from bistil.report.studies import Row, StudyRecords, read_records


def table(records: StudyRecords, teachers: list[str], base: str | None) -> Iterator[str]:
    """The rows in Markdown.

    Raises:
        InputError: a name is no row's.
    """
    references = {name: named(records, name) for name in teachers}
    start = None if base is None else named(records, base)
    source, targets = f"{records.study.source}/dev", [f"{one}/test" for one in records.study.targets]
    heads = ["", source, *records.study.targets, "mean", *(f"to {name}" for name in references), "hours"]
    heads += [f"to {base}", "points an hour"] if base else []
    yield f"| {' | '.join(heads)} |"
    yield "| " + " | ".join(["---"] * len(heads)) + " |"
    for row in records.rows:
        means = row.means(row.tests)
        cells = [
            row.name,
            spread_text(row.values(source)),
            *(spread_text(row.values(part)) for part in targets),
            spread_text(means),
        ]
        cells += [_gap(records, row, one) for one in references.values()]
        cells.append(f"{hours(row):.2f}")
        if start is not None:
            gap, more = records.gap(row, start) if row is not start else None, hours(row) - hours(start)
            cells += [_gap(records, row, start), f"{gap[0] / more:+.1f}" if gap and more > 0 and row.student else ""]
        yield f"| {' | '.join(cells)} |"


def named(records: StudyRecords, name: str) -> Row:
    """The row, or the first of a system."""
    found = next((row for row in records.rows if name in (row.name, row.system)), None)
    if found is None:
        raise InputError(f"no row is named {name!r}; there are: {'; '.join(row.name for row in records.rows)}")
    return found


def hours(row: Row) -> float:
    """What the row's models took."""
    return row.seconds / 3600


def _gap(records: StudyRecords, row: Row, to: Row) -> str:
    found = records.gap(row, to) if row is not to else None
    return "" if found is None else f"{found[0]:+.1f} [{found[1]:+.1f}, {found[2]:+.1f}]"


def main() -> None:
    """Print the table of a study's folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a study's")
    parser.add_argument("--to", action="append", help="systems that gaps are to (undistilled, trim only)")
    parser.add_argument("--base", help="the row that lacks every lever")
    options = parser.parse_args()
    try:
        print("\n".join(table(read_records(options.folder), options.to or ["undistilled", "trim only"], options.base)))
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
