"""A benchmark as a picture: what models weigh against how long they take."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bistil.report.numbers import megabytes, milliseconds_text
from bistil.runtime.artefacts import claim, whole_file
from bistil.runtime.ownership import CREATOR

if TYPE_CHECKING:
    from bistil.measuring.benchmark import BenchmarkRow  # imports torch, which a picture does not need

FORMATS = ("svg", "png", "pdf")
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Names are the user's: a dollar sign in one is no formula.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "bistil", "text.parse_math": False, "font.size": 10}


def draw_costs(models: "Sequence[BenchmarkRow]", path: Path, *, replace: bool = False) -> None:
    """Draw the bytes of folders against the time at batch 1, with a line up to the 95th percentile.

    The time is that of the first fixed length, or of the texts where there is none; engines have markers of their own.

    Args:
        path: ends in one of `FORMATS`.
        replace: an earlier drawing of ours gives way.

    Raises:
        InputError: something else is there, or a drawing and `replace` is false.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    claim(files=[path], force=replace)
    fixed = models[0].latencies[0] if models[0].latencies else None
    every = [m.milliseconds if fixed is None else m.latencies[0].milliseconds for m in models]
    # Names stand to the left of slow models and to the right of fast ones.
    middle = math.sqrt(min(every) * max(every)) if len(every) > 1 else math.inf
    kinds = list(dict.fromkeys(f"{m.engine}, {m.precision}" for m in models))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for number, kind in enumerate(kinds):
            own = [m for m in models if f"{m.engine}, {m.precision}" == kind]
            sizes = [m.bytes / 1e6 for m in own]
            shown = [m.milliseconds if fixed is None else m.latencies[0].milliseconds for m in own]
            marker = _MARKERS[number % len(_MARKERS)]
            drawn = axes.plot(shown, sizes, marker=marker, linestyle="none", label=kind)[0]
            if fixed is not None:
                ends = [m.latencies[0].p95 - ms for m, ms in zip(own, shown, strict=True)]
                spread: Any = [[0.0] * len(own), ends]
                axes.errorbar(shown, sizes, xerr=spread, fmt="none", ecolor=drawn.get_color(), elinewidth=1)
            for m, ms, size in zip(own, shown, sizes, strict=True):
                note = f"{m.name}: {megabytes(m.bytes)} MB, {milliseconds_text(ms)} ms"
                left = ms > middle
                axes.annotate(
                    note, (ms, size), (-6 if left else 6, 6), textcoords="offset points", fontsize=8,
                    ha="right" if left else "left",
                )  # fmt: skip
        what = f"{fixed.tokens} tokens" if fixed is not None else f"{models[0].tokens:.1f} tokens on average"
        threads = f"{models[0].threads} thread" + "s" * (models[0].threads != 1)
        axes.set(xscale="log", yscale="log", ylabel="folder (MB)", xlabel=f"ms at batch 1, {what}, {threads}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.25, y=0.15)
        axes.legend()
        form = path.suffix[1:]
        metadata = {"Software": CREATOR} if form == "png" else {"Creator": CREATOR}
        with whole_file(path, replace=replace) as partial:
            figure.savefig(partial, format=form, metadata=metadata)
