"""What a run measured, into the cards of its models: scores with intervals, the gap to the teacher, speed, data."""

from pathlib import Path

from bistil.models.cards import add_to_card, markdown_table
from bistil.report.numbers import interval_text, megabytes, milliseconds_text, points, score_text, times
from bistil.report.schema import ModelRecord, Summary
from bistil.report.table import texts_of


def write_measured(summary: Summary, folder: Path, others: tuple[Path, ...] = ()) -> None:
    """Put scores, speed and digests of the data into the cards of a run's models; again, in place of those before.

    Args:
        folder: of the run.
        others: folders of models without scores (the trimmed one, students of phase 1), which get the data alone.
    """
    data = _data(summary)
    for model in summary.models:
        if model.folder is not None:
            add_to_card(folder / model.folder, _measured(summary, model) + "\n\n" + data)
    for other in others:
        add_to_card(other, data)


def _measured(summary: Summary, model: ModelRecord) -> str:
    rows = [
        (f"{model.metric}, target language {summary.target}", model.target_score, model.target_interval),
        (f"{model.metric}, source language {summary.source}", model.source_score, model.source_interval),
    ]
    lines = [
        [name, f"{score_text(score)} {interval_text(interval)}".strip()]
        for name, score, interval in rows
        if score is not None
    ]
    how = summary.agreement
    if how is not None and model.agreement is not None:
        what = f"{how.metric} against the teacher's predictions on {texts_of(how)} of {summary.target}"
        lines.append(
            [
                f"agreement, not accuracy: {what}",
                f"{score_text(model.agreement)} {interval_text(model.agreement_interval)} (the trimmed teacher: "
                f"{score_text(how.trimmed)})",
            ]
        )
    gap = summary.gap(model)
    if gap is not None:
        interval = model.gap_interval
        wide = "" if interval is None else f" [{points(interval[0])} {points(interval[1])}]"
        lines.append(["gap to the teacher on the target, points", points(gap) + wide])
    if model.milliseconds is not None:
        lines.append(["milliseconds per sentence, batch 1, CPU", milliseconds_text(model.milliseconds)])
        lines.append(["times as fast as the teacher", times(model.speed_ratio)])
        lines.append(["MB on disk", megabytes(model.bytes)])
    processor = summary.machine.get("processor")
    told = "In percent, with 95% intervals over test examples; one seed. " if lines else ""
    told += f"Times on: {processor}, {summary.machine.get('threads', '?')} threads." if processor else ""
    return f"## Scores and speed\n\n{told}\n\n{markdown_table(['what', 'value'], lines)}"


def _data(summary: Summary) -> str:
    rows = [
        [name, "" if one.examples is None else f"{one.examples:,}", one.sha256 or ""]
        for name, one in summary.data.items()
    ]
    return "## Data of the run\n\n" + markdown_table(["what", "lines or examples", "SHA-256"], rows)
