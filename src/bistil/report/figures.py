"""The report's figures as inline SVG: same bytes for the same numbers, colours from the page's style sheet."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bistil.report.numbers import millions, score_text
from bistil.report.schema import ModelRecord, Summary
from bistil.report.table import shortened_names

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

# matplotlib wants fixed colours, a page in light and dark does not: every colour here is a stand-in that becomes a
# variable of the style sheet.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
ROLE_COLOURS = {
    "teacher": "#050505",
    "trimmed": "#060606",
    "copied": "#070707",
    "student": "#080808",
    "baseline": "#090909",
}
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--{role}" for role, colour in ROLE_COLOURS.items()
}
# Points that a letter of a name takes, in the mean.
LETTER = 5.5
LONGEST_NAME = 24
"""Beside a point, unless two names are alike so far."""
LINE_STYLES = ("-", "--", ":", "-.")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bistil",
    # Names are the user's: a dollar sign in one is no formula.
    "text.parse_math": False,
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def tradeoff_figure(summary: Summary) -> str | None:
    """Speed against target score, with interval bars; the area of a circle is the number of parameters."""
    shown = [m for m in summary.models if m.speed_ratio is not None and m.target_score is not None]
    if len(shown) < 2:
        return None
    largest = max((m.parameters or 0) for m in shown) or 1
    with _figure(5.6, 4.6) as (figure, axes):
        fastest = max(m.speed_ratio_range[1] if m.speed_ratio_range else m.speed_ratio or 0 for m in shown)
        for m in shown:
            colour, x, y = ROLE_COLOURS[m.role], m.speed_ratio or 0.0, m.target_score or 0.0
            axes.errorbar(
                x,
                y,
                xerr=_bars(x, m.speed_ratio_range),
                yerr=_bars(y, m.target_interval),
                color=colour,
                elinewidth=1.3,
                alpha=0.75,
            )
            area = 1500 * (m.parameters or 0) / largest
            axes.scatter(x, y, s=max(area, 12), color=colour, alpha=0.22, linewidth=0)
            axes.scatter(x, y, s=22, color=colour, zorder=3)
        axes.margins(y=0.12)
        # What has no speed is a line; it stretches no axis, so that one far below is told in words.
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        for m in summary.models:
            if m.speed_ratio is None and m.target_score is not None:
                if not low <= m.target_score <= high:
                    where = "below" if m.target_score < low else "above"
                    axes.annotate(
                        f"{where}: {m.name} {score_text(m.target_score)}",
                        (1, 0 if where == "below" else 1),
                        xycoords="axes fraction",
                        xytext=(-2, 4 if where == "below" else -12),
                        textcoords="offset points",
                        ha="right",
                        fontsize=10,
                        color=MUTED,
                    )
                    continue
                axes.axhline(m.target_score, color=ROLE_COLOURS[m.role], linestyle="--", linewidth=1.2)
                axes.annotate(
                    f"{m.name} {score_text(m.target_score)}",
                    (1, m.target_score),
                    xycoords=("axes fraction", "data"),
                    xytext=(-2, 4),
                    textcoords="offset points",
                    ha="right",
                    fontsize=10,
                    color=MUTED,
                )
        axes.set_xlim(0, max(1.0, fastest) * 1.3)
        axes.set_xlabel("times as fast as the teacher (CPU, batch 1)")
        axes.set_ylabel(f"{shown[0].metric} ({summary.target}{'' if summary.target_labels else ', zero-shot'})")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _label_points(axes, shown)
        return _svg(figure, "tradeoff", "Speed, size and score", _described(shown))


def scores_figure(summary: Summary) -> str | None:
    """Source and target score of every model, with bootstrap intervals."""
    shown = [m for m in summary.models if m.source_score is not None or m.target_score is not None]
    if not shown:
        return None
    both = any(m.target_score is not None for m in shown)
    apart = 0.19 if both else 0.0
    with _figure(5.6, 1.3 + 0.55 * len(shown)) as (figure, axes):
        for i, m in enumerate(shown):
            colour = ROLE_COLOURS[m.role]
            for offset, score, interval, alpha in (
                (-apart, m.source_score, m.source_interval, 0.35 if both else 0.95),
                (apart, m.target_score, m.target_interval, 0.95),
            ):
                if score is None:
                    continue
                axes.barh(i + offset, score, height=0.34, color=colour, alpha=alpha, linewidth=0)
                axes.errorbar(score, i + offset, xerr=_bars(score, interval), color=INK, elinewidth=1.1, capsize=2)
                end = interval[1] if interval else score
                axes.annotate(
                    score_text(score), (end, i + offset), (4, 0), textcoords="offset points", va="center", fontsize=10
                )
        axes.set_yticks(range(len(shown)), shortened_names([m.name for m in shown], LONGEST_NAME))
        axes.tick_params(axis="y", labelcolor=INK)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1.1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(
            f"{shown[0].metric}; " + (f"pale {summary.source}, full {summary.target}" if both else summary.source)
        )
        described = "; ".join(
            f"{m.name}: {summary.source} {score_text(m.source_score) or 'not measured'},"
            f" {summary.target} {score_text(m.target_score) or 'not measured'}"
            for m in shown
        )
        return _svg(figure, "scores", "Scores with bootstrap intervals, in percent", described)


def phase1_figure(summary: Summary) -> str | None:
    """Held-out loss of phase 1 over optimizer steps, one line per student and language."""
    curves = {name: curve for name, curve in summary.phase1.items() if len(curve.steps) > 1}
    if not curves:
        return None
    # Names of many lines stand below the axes: within they would cover the lines.
    lines = sum(len(curve.losses) for curve in curves.values())
    below = lines > 4
    with _figure(5.6, 4.2 + below * 0.21 * lines) as (figure, axes):
        described = []
        for i, (name, curve) in enumerate(curves.items()):
            for j, (language, losses) in enumerate(curve.losses.items()):
                axes.plot(
                    curve.steps,
                    losses,
                    color=list(ROLE_COLOURS.values())[(3 - i) % len(ROLE_COLOURS)],
                    # Beyond the colours that there are, other strokes.
                    linestyle=LINE_STYLES[(j + i // len(ROLE_COLOURS)) % len(LINE_STYLES)],
                    marker="o",
                    markersize=3,
                    label=f"{name}, {language}",
                )
                described.append(f"{name}, {language}: from {losses[0]:.4g} to {losses[-1]:.4g}")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("held-out loss")
        values = [loss for curve in curves.values() for losses in curve.losses.values() for loss in losses]
        if min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if below:
            figure.legend(loc="outside lower left")
        else:
            axes.legend()
        return _svg(figure, "phase1", "Held-out loss of phase 1", "; ".join(described))


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    # A Figure without pyplot: no global state, no window system.
    style: Any = STYLE
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _bars(value: float, interval: list[float] | None) -> list[list[float]] | None:
    """Interval as matplotlib wants it: distances below and above, (2, 1)."""
    if interval is None:
        return None
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _label_points(axes: Axes, shown: list[ModelRecord]) -> None:
    """Names beside their points, none upon another: left of slow models where there is room, and right of fast ones."""
    axes.figure.canvas.draw()
    points = [(m.speed_ratio or 0.0, m.target_score or 0.0) for m in shown]
    at = axes.transData.transform(points)
    middle = sum(axes.get_xlim()) * 0.4
    scale, edge = axes.figure.dpi / 72, axes.get_window_extent().x0
    placed: list[tuple[float, float]] = []
    names = shortened_names([m.name for m in shown], LONGEST_NAME)
    for i in sorted(range(len(shown)), key=lambda i: -at[i][1]):
        x, y = at[i]
        for other_x, other_y in placed:
            if abs(other_x - x) < 80 * scale and abs(other_y - y) < 15 * scale:
                y = other_y - 15 * scale
        placed.append((x, y))
        name = names[i]
        left = points[i][0] < middle and x - (10 + LETTER * len(name)) * scale > edge
        axes.annotate(
            name,
            points[i],
            (-10 if left else 7, (y - at[i][1]) / scale + 9),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=11,
        )


def _described(shown: list[ModelRecord]) -> str:
    return "; ".join(
        f"{m.name}: {m.speed_ratio:.2f} times as fast, {millions(m.parameters) or '?'} million parameters, "
        f"score {score_text(m.target_score)}"
        for m in shown
    )


def _svg(figure: Figure, prefix: str, title: str, described: str) -> str:
    """The figure as an `<svg>` element that stands in a page: own ids, page's colours and font, title and text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{prefix}-{value}")
            elif key == f"{{{XLINK}}}href":
                element.set(key, value.replace("#", f"#{prefix}-"))
            else:
                element.set(key, _themed(value.replace("url(#", f"url(#{prefix}-")))
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    del root.attrib["width"], root.attrib["height"]
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-text")
    for i, (tag, identifier, text) in enumerate((("title", "title", title), ("desc", "text", described))):
        child = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{prefix}-{identifier}"})
        child.text = text
        root.insert(i, child)
    return ElementTree.tostring(root, encoding="unicode")


def _themed(style: str) -> str:
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return re.sub(r"'DejaVu Sans'.*?sans-serif", "var(--font)", style)
