"""Tables for the terminal: rich on a terminal; aligned plain text elsewhere, of 100 columns where names leave them."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bistil.errors import printable
from bistil.report.numbers import (
    giga,
    interval_text,
    megabytes,
    millions,
    milliseconds_text,
    points,
    score_text,
    times,
)
from bistil.report.schema import AgreementRecord, Summary

if TYPE_CHECKING:
    from bistil.measuring.benchmark import BenchmarkRow  # imports torch, which a table of records does not need

WIDTH = 100


def print_table(summary: Summary, *, console: Console | None = None) -> None:
    """Print the models of a run: size, scores with bootstrap intervals, speed."""
    columns = {
        "model": [m.name for m in summary.models],
        "Mpar": [millions(m.parameters) for m in summary.models],
        "MB": [megabytes(m.bytes) for m in summary.models],
        "vocab": ["" if m.vocabulary is None else str(m.vocabulary) for m in summary.models],
        "lay": ["" if m.layers is None else str(m.layers) for m in summary.models],
        summary.source: [score_text(m.source_score) for m in summary.models],
        f"{summary.target} [interval]": [_with_interval(m.target_score, m.target_interval) for m in summary.models],
        "agrees [interval]": [_with_interval(m.agreement, m.agreement_interval) for m in summary.models],
        "gap": [points(summary.gap(m)) for m in summary.models],
        "ms": [milliseconds_text(m.milliseconds) for m in summary.models],
        "speed": [times(m.speed_ratio) for m in summary.models],
        "GFLOP": [giga(m.flops) for m in summary.models],
    }
    # What no model has is left out.
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    header, rows = [*columns], [list(row) for row in zip(*columns.values(), strict=True)]
    title = f"{summary.name}: {summary.source} to {summary.target}, {summary.metric} in %, seed {summary.seed}"
    print_rows(title, header, rows, bold={m.name for m in summary.students}, console=console)
    if summary.agreement is not None:
        (console or Console()).print(agreement_note(summary), markup=False, highlight=False, soft_wrap=True)


def agreement_note(summary: Summary) -> str:
    """What the agreement with the teacher is, where there is one; that there is none, and why; else nothing."""
    how = summary.agreement
    if how is None:
        return ""
    none = f"There are no test data of {summary.target}"
    if how.why is not None:
        return f"{none}, and no agreement with the teacher stands for them: {how.why}."
    return (
        f"{none}. What stands for them is agreement, not accuracy: {how.metric} on {texts_of(how)} that nothing was "
        f"learnt from, with what the teacher says in place of labels (the trimmed teacher: "
        f"{_with_interval(how.trimmed, how.trimmed_interval)}). Where the teacher is wrong, a model that agrees is too."
    )


def texts_of(how: AgreementRecord) -> str:
    """How many texts two models are compared on."""
    return f"{how.examples:,} text{'s' * (how.examples != 1)}"


def _with_interval(score: float | None, interval: Sequence[float] | None) -> str:
    return f"{score_text(score)} {interval_text(interval)}".strip()


def print_benchmark(models: "Sequence[BenchmarkRow]", *, console: Console | None = None) -> None:
    """Print a benchmark: size, CPU time per example, speed against the first model."""
    first = models[0]
    batch, memory = first.batch_size is not None, first.peak_memory_bytes is not None
    header = ["model", "Mpar", "embed", "MB", "vocab", "lay", "tokens", "ms", "speed [min max]", "GFLOP"]
    header += ["ex/s"] * batch + ["peak MB"] * memory
    rows = []
    for m in models:
        low, high = m.speed_ratio_range
        row = [m.name, millions(m.parameters), millions(m.embedding_parameters), megabytes(m.bytes)]
        row += [str(m.vocabulary), str(m.layers), f"{m.tokens:.1f}", milliseconds_text(m.milliseconds)]
        row += [f"{times(m.speed_ratio)} [{low:.2f} {high:.2f}]", giga(m.flops)]
        row += [f"{m.examples_per_second:.1f}"] if m.examples_per_second is not None else []
        row += [megabytes(m.peak_memory_bytes)] if memory else []
        rows.append(row)
    title = f"{first.examples} examples, {first.rounds} rounds, batch 1, CPU threads: {first.threads}"
    alike = len({m.batch_size for m in models}) == 1
    title += "" if not batch else f"; ex/s at batch {first.batch_size}" if alike else "; ex/s at each one's best batch"
    print_rows(title, header, rows, bold=set(), console=console)
    _print_engines(models, console=console)


def _print_engines(models: "Sequence[BenchmarkRow]", *, console: Console | None) -> None:
    """What runs each model, its time at fixed lengths, and what it takes of the processor."""
    first = models[0]
    counted, several = first.joules is not None, len(first.throughputs) > 1
    header = ["model", "engine", "weights"]
    for one in first.latencies:
        header += [f"ms at {one.tokens}", "p95", "speed"]
    header += ["batch"] * several + ["CPU ms"] + ["joules"] * counted
    rows = []
    for m in models:
        row = [m.name, m.engine, m.precision]
        for one in m.latencies:
            row += [milliseconds_text(one.milliseconds), milliseconds_text(one.p95), times(one.speed_ratio)]
        row += [str(m.batch_size)] * several + [milliseconds_text(m.cpu_milliseconds)]
        row += ["" if m.joules is None else f"{m.joules:.3g}"] * counted
        rows.append(row)
    print_rows("engines, and batch 1 at fixed numbers of tokens", header, rows, bold=set(), console=console)


# A name is shortened to so many columns and no further; beside numbers that leave no room for that, to so many.
LEAST_NAME, MOST_NAME = 8, 40


def plain_table(header: list[str], rows: list[list[str]], *, width: int = WIDTH) -> str:
    """Aligned text, first column to the left and numbers to the right; long names are shortened to keep to `width`, as
    long as they can be told apart."""
    widths = [max(_columns(row[i]) for row in [header, *rows]) for i in range(len(header))]
    spare = width - 2 * (len(widths) - 1) - sum(widths[1:])
    # Where the numbers alone are too wide, names that cannot be told apart help nobody.
    names = shortened_names([row[0] for row in [header, *rows]], spare if spare >= LEAST_NAME else MOST_NAME)
    widths[0] = max(map(_columns, names))
    lines = []
    for name, row in zip(names, [header, *rows], strict=True):
        cells = [_padded(name, widths[0], right=False)]
        cells += [_padded(cell, w, right=True) for cell, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(_columns(line) for line in lines))
    return "\n".join(lines)


def shortened_names(names: Sequence[str], width: int) -> list[str]:
    """Names of at most so many columns, or of as many more as it takes to tell them apart."""
    different = len(set(names))
    while len({_shortened(name, width) for name in names}) < different:
        width += 1
    return [_shortened(name, width) for name in names]


def print_rows(
    title: str, header: list[str], rows: list[list[str]], *, bold: set[str], console: Console | None = None
) -> None:
    """Print a table; lines whose first cell is among `bold` stand out on a terminal."""
    console = console or Console()
    title, rows = printable(title), [[printable(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        console.print(title + "\n" + plain_table(header, rows), markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(title=escape(title), title_justify="left")
    for i, name in enumerate(header):
        table.add_column(escape(name), justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
    for row in rows:
        table.add_row(*[escape(cell) for cell in row], style="bold" if row[0] in bold else None)
    console.print(table)


def _columns(text: str) -> int:
    """Terminal columns of a text: wide East Asian characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _shortened(text: str, width: int) -> str:
    if _columns(text) <= width:
        return text
    while text and _columns(text) > width - 1:
        text = text[:-1]
    return text + "…"


def _padded(text: str, width: int, *, right: bool) -> str:
    space = " " * max(0, width - _columns(text))
    return space + text if right else text + space
