"""Classification with any number of labels per text, none included: emotions, topics, kinds of abuse."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bistil.errors import InputError
from bistil.models.cards import pipeline_code
from bistil.models.heads import build_head
from bistil.models.loading import ModelSource, task_of
from bistil.tasks import register_task
from bistil.tasks.base import Decoded, PredictionPair
from bistil.tasks.batches import Feature, Outputs, PerExample, as_array
from bistil.tasks.hub import Source
from bistil.tasks.metrics import Metrics, macro_f1, ratio
from bistil.tasks.reading import NoLabelError, Reading, RowReport, renamed, require_known_labels
from bistil.tasks.rows import Row, check_named, listed, read_rows
from bistil.tasks.texts import (
    LABEL,
    TextColumns,
    TextOrPair,
    TextTask,
    choose_columns,
    label_text,
    missing_labels,
    no_column,
    one_name_each,
    rows_again,
    texts_in,
)
from bistil.text import IGNORED

# What configurations call it.
PROBLEM = "multi_label_classification"
# A label is predicted above this probability.
THRESHOLD = 0.5
# What separates labels in one text where nothing is said. In a file that needs none, predictions get the first.
SEPARATORS = ("|", ";", ",")
# What a column of a label may hold: the text has it, has it not, or nobody knows.
ANSWERS = {"1": True, "true": True, "0": False, "false": False, "-1": None, "": None}
# The ways of saying yes and no, of which a file has one.
STYLES = (("1", "0"), ("true", "false"))
# Columns that number the rows: they are none of a label, even where a short file's hold 0 and 1.
NUMBERS = ("", "id", "idx", "index", "unnamed: 0")
# A list that was written into a table as text, by Python or as JSON.
WRITTEN_LIST = re.compile(r"""\[\s*(\]|['"\d])""")


@dataclass(frozen=True, kw_only=True)
class LabelledText(TextOrPair):
    """A text, or a pair of texts, with its labels, each once.

    `column` is where they stand in the row: with a `separator` as one text, else as a list. Or they have a column each,
    and `indicators` are the labels by their columns.
    """

    labels: tuple[str, ...]
    column: str = field(default="labels", repr=False)
    separator: str | None = field(default=None, repr=False)
    indicators: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class _Form:
    """How a file says labels: in columns of their own, or in one, with what separates them and what stands for none."""

    indicators: Mapping[str, str]
    separator: str | None = None
    missing: frozenset[str] = frozenset()


@register_task
class MultiLabelClassification(TextTask):
    """Any labels per text or pair of texts, each decided on its own: `AutoModelForSequenceClassification`."""

    kind = "multi-label-classification"
    of_plain_text = True
    pipeline_tag = "text-classification"
    usage = pipeline_code('"text-classification"', "top_k=None") + f"  # its labels: those above {THRESHOLD}"
    word_padding: Mapping[str, int] = {"labels": IGNORED}
    teacher_outputs: Mapping[str, PerExample | None] = {"logits": PerExample()}
    takes = ("separator",)

    @classmethod
    def fits(cls, config: Any) -> bool:
        head = "sequence-classification"
        return head in map(task_of, config.architectures or ()) and getattr(config, "problem_type", None) == PROBLEM

    def metric(self, labels: Sequence[str]) -> str:
        del labels
        return "micro_f1"

    def read_file(self, path: Source, how: Reading, report: RowReport) -> Iterator[LabelledText]:
        """JSON lines, tables with a header and data sets; labels as a list, as one text, or in columns of 0 and 1.

        A text may have no label; a file in which none has one is taken for one without labels.
        """
        rows = read_rows(path, how, report)
        stated = _stated_columns(rows, path, how)
        if stated:
            how = replace(how, columns={**how.columns, "label": stated[0]})
        check_named(rows, path, how)
        chosen = choose_columns(rows, path, how, report)
        pairs = any(columns.pair is not None for columns in chosen.values())
        form = _form(rows, chosen, stated, path, how, report)
        examples = []
        for line, row in rows:
            with report.row(line):
                text, pair = texts_in(row, chosen[tuple(row)], f"{path}, line {line}", pairs=pairs)
                labelled = LabelledText(file=str(path), line=line, text=text, pair=pair, fields=row, labels=())
                examples.append(_with_labels(labelled, chosen[tuple(row)].label, form, how, report))
        if any(example.labels for example in examples):
            yield from examples
            return
        for example in examples:
            report.leave_out(NoLabelError(f"{example.where}: no text of the file has a label"))

    def settled(self, examples: list[LabelledText], how: Reading, report: RowReport) -> list[LabelledText]:
        """Labels that are certainly the same one get one name; what the label map gives stays."""
        counts = Counter(label for example in examples for label in example.labels)
        counts.update({label: 0 for example in examples for label in example.indicators.values()})
        names = one_name_each(counts, how, report)
        if not names:
            return examples
        return [
            replace(
                example,
                labels=tuple(dict.fromkeys(names.get(label, label) for label in example.labels)),
                indicators={column: names.get(label, label) for column, label in example.indicators.items()},
            )
            for example in examples
        ]

    def labels(self, examples: Sequence[LabelledText]) -> list[str]:
        """All that a text has or a column stands for, sorted."""
        return sorted({label for example in examples for label in (*example.labels, *example.indicators.values())})

    def check_labels(self, examples: Sequence[LabelledText], labels: Sequence[str]) -> None:
        require_known_labels(((label, example.where) for example in examples for label in example.labels), labels)

    def build_model(self, folder: ModelSource, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
        return build_head(AutoModelForSequenceClassification, folder, labels, seed=seed, problem=PROBLEM)

    def target(self, example: LabelledText, labels: Mapping[str, int]) -> list[float]:
        """(classes,) 1 or 0."""
        return [float(label in example.labels) for label in labels]

    def prediction_pairs(self, student: Any, teacher: Any, batch: Mapping[str, torch.Tensor]) -> list[PredictionPair]:
        """Rows (batch * classes, 2): the logits of no and yes, which are 0 and the model's.

        Classes do not compete, so that a softmax over them would compare what neither model says. Of two logits 0 and z
        it is the sigmoid of z (of z / T at temperature T), and L_pred the mean binary cross-entropy over all decisions.
        """
        del batch
        student_logits, teacher_logits = (
            torch.stack([torch.zeros_like(side.logits), side.logits], dim=-1).flatten(0, 1)
            for side in (student, teacher)
        )
        return [PredictionPair(student_logits, teacher_logits)]

    def decode(
        self, examples: Sequence[LabelledText], features: Sequence[Feature], outputs: Outputs, labels: Sequence[str]
    ) -> list[Decoded]:
        """Per example a tuple of the labels above `THRESHOLD`, in the model's order; confidences (classes,) are of all
        labels and do not sum to 1."""
        found = [Decoded((), np.zeros(len(labels)))] * len(examples)
        for indices, output in outputs:
            for i, shares in zip(indices, torch.as_tensor(as_array(output["logits"])).sigmoid().numpy(), strict=True):
                chosen = tuple(label for label, share in zip(labels, shares, strict=True) if share > THRESHOLD)
                found[features[i]["example"]] = Decoded(chosen, shares)
        return found

    def score(
        self,
        examples: Sequence[LabelledText],
        predictions: Sequence[Sequence[str]],
        *,
        labels: Sequence[str] | None = None,
    ) -> Metrics:
        """F1 over all decisions (micro), its mean over the classes that occur as gold or predicted label (macro), and
        the share of texts with exactly the right labels. As scikit-learn's on these classes, with zero_division=0."""
        del labels
        gold = [example.labels for example in examples]
        index = {label: i for i, label in enumerate(sorted({label for one in (*gold, *predictions) for label in one}))}
        k = len(index)
        # Counters: one per example, all right, then per class: both, predicted, gold.
        counts = np.zeros((len(gold), 2 + 3 * k))
        counts[:, 0] = 1
        for row, (wanted, found) in enumerate(zip(map(set, gold), map(set, predictions), strict=True)):
            counts[row, 1] = wanted == found
            for place, chosen in enumerate((wanted & found, found, wanted)):
                counts[row, [2 + place * k + index[label] for label in chosen]] = 1

        def formula(sums: np.ndarray) -> dict[str, np.ndarray]:
            both, found, wanted = sums[..., 2 : 2 + k], sums[..., 2 + k : 2 + 2 * k], sums[..., 2 + 2 * k :]
            return {
                "micro_f1": ratio(2 * both.sum(axis=-1), (found + wanted).sum(axis=-1)),
                "macro_f1": macro_f1(both, found, wanted),
                "exact_match": ratio(sums[..., 1], sums[..., 0]),
            }

        return Metrics("micro_f1", counts, formula)

    def majority(self, train: Sequence[LabelledText], test: Sequence[LabelledText]) -> list[tuple[str, ...]]:
        """The set of labels with the best micro F1 on the training data, for every text.

        The labels that most texts have would often be none at all. The best set of n labels is that of the n most
        frequent ones.
        """
        counts = Counter(label for example in train for label in example.labels)
        ranked = sorted(counts, key=lambda label: (-counts[label], label))
        right = np.cumsum([counts[label] for label in ranked])
        f1 = 2 * right / (len(train) * np.arange(1, len(ranked) + 1) + right[-1:])
        return [tuple(ranked[: int(f1.argmax()) + 1])] * len(test)

    def answered(self, example: LabelledText, prediction: Sequence[str]) -> LabelledText:
        return replace(example, labels=tuple(prediction))

    def in_words(self, example: LabelledText, prediction: Sequence[str] | None = None, *, labels: Sequence[str]) -> str:
        """The labels."""
        del labels
        return ", ".join(example.labels if prediction is None else prediction) or "none"

    def predicted(self, examples: Sequence[LabelledText], predictions: Sequence[Sequence[str]]) -> Iterator[str]:
        # A label that has no column yet gets one.
        known = sorted({label for found in predictions for label in found})
        yield from rows_again(examples, (_row(e, found, known) for e, found in zip(examples, predictions, strict=True)))


def _row(example: LabelledText, labels: Sequence[str], known: Sequence[str]) -> Row:
    """The row of an example with other labels."""
    if example.indicators:
        columns = {label: column for column, label in example.indicators.items()}
        answers = dict.fromkeys(example.indicators, 0) | {columns.get(one, one): int(one in labels) for one in known}
        kind = type(example.fields[next(iter(example.indicators))])
        return {**example.fields, **{column: kind(yes) for column, yes in answers.items()}}
    value = list(labels) if example.separator is None else example.separator.join(labels)
    return {**example.fields, example.column: value}


def _stated_columns(rows: Sequence[tuple[int, Row]], path: Source, how: Reading) -> list[str]:
    """The columns of labels that `how` names, if it names several."""
    stated = how.columns.get("label", "")
    if "," not in stated or any(stated in row for _, row in rows):
        return []
    columns = [name.strip() for name in stated.split(",")]
    for name in columns:
        check_named(rows, path, replace(how, columns={"label": name}))
    return columns


def _form(
    rows: Sequence[tuple[int, Row]],
    chosen: Mapping[tuple[str, ...], TextColumns],
    stated: Sequence[str],
    path: Source,
    how: Reading,
    report: RowReport,
) -> _Form:
    """How the file says labels, which is said where it does not go without saying.

    Raises:
        InputError: its only column of labels holds answers, or two separators.
    """
    if stated:
        return _Form({column: renamed(column, how.label_map) for column in stated})
    used = {column for columns in chosen.values() for column in vars(columns).values()}
    found = [column for column in _columns_of_answers(rows, how) if column not in used]
    several = len(found) > 1
    label = next((columns.label for columns in chosen.values() if columns.label is not None), None)
    if label is None:
        if several:
            said = f"labels are the {len(found)} columns of 0 and 1, {listed(found)}"
            report.notice(f"{said} (--column label=A,B names others)")
        return _Form({column: renamed(column, how.label_map) for column in found} if several else {})
    if several:
        report.notice(f"labels are read from {label!r}, not from the columns {listed(found)}")
    values = [row.get(chosen[tuple(row)].label or "") for _, row in rows]
    alone = [value for value in values if not isinstance(value, list)]
    held = {_answer(value) for value in alone} - {"", "-1"}
    if len(alone) == len(values) and held and any(held <= {*style} for style in STYLES):
        raise InputError(
            f"{path}: {label!r} holds {' and '.join(sorted(held))} alone: with one label per text this is "
            "sequence-classification; columns of 0 and 1, one per label, are named by --column label=A,B"
        )
    texts = [value for value in alone if isinstance(value, str)]
    if any(not text.strip() for text in texts):
        report.notice("where no label stands, the text has none")
    missing = missing_labels(alone, path, how, report) - {""}
    return _Form({}, _separator(texts, path, how, report), frozenset(missing))


def _columns_of_answers(rows: Sequence[tuple[int, Row]], how: Reading) -> list[str]:
    """Columns that hold 1 or 0 in every row, or, if there are more of these, true or false."""
    names = [
        name for name in (rows[0][1] if rows else {}) if name not in how.ignored and name.casefold() not in NUMBERS
    ]
    held = {name: {_answer(row.get(name)) for _, row in rows} for name in names}
    return max(
        ([name for name in names if held[name] & {*style} and held[name] <= {*style, "", "-1"}] for style in STYLES),
        key=len,
    )


def _answer(value: Any) -> str:
    """A key of `ANSWERS`, or something else."""
    try:
        return label_text(value, "").casefold().removesuffix(".0")
    except InputError:
        return "no answer"


def _separator(texts: Sequence[str], path: Source, how: Reading, report: RowReport) -> str | None:
    """What separates labels that stand in one text: what is said, or the only one of `SEPARATORS` that occurs.

    Raises:
        InputError: several occur, and nothing is said.
    """
    if how.separator is not None:
        return None if how.separator == "none" else how.separator
    found = [mark for mark in SEPARATORS if any(mark in text for text in texts)]
    if len(found) > 1:
        raise InputError(
            f"{path}: labels hold {' and '.join(map(repr, found))}; say with --separator which of them separates "
            "labels (none: each text is one label)"
        )
    for mark in found:
        report.notice(f"labels are separated by {mark!r} (--separator none: each text is one label)")
    return found[0] if found else None


def _with_labels(
    example: LabelledText, column: str | None, form: _Form, how: Reading, report: RowReport
) -> LabelledText:
    """The example with the labels of its row.

    Raises:
        NoLabelError: nobody says which they are.
        InputError: they are no labels.
    """
    row, where = example.fields, example.where
    if form.indicators:
        answers = {name: ANSWERS.get(_answer(row.get(name)), row.get(name)) for name in form.indicators}
        for name, answer in answers.items():
            if answer is None:
                raise NoLabelError(f"{where}: {name!r} is {row.get(name)!r}")
            if not isinstance(answer, bool):
                raise InputError(f"{where}: {name!r} is {answer!r}; 0 or 1 is expected")
        labels = tuple(dict.fromkeys(form.indicators[name] for name, answer in answers.items() if answer))
        return replace(example, labels=labels, indicators=form.indicators)
    if column is None:
        raise no_column("label", LABEL, row, where)
    value = row[column]
    said = f"{where}: the labels are {str(value)[:60]!r}; "
    parts, separator = value, None
    if not isinstance(value, list):
        text, separator = label_text(value, said + "a list or a text is expected"), form.separator
        if text in form.missing or (not text and not isinstance(value, str)):
            raise NoLabelError(f"{where}: the labels are {value!r}")
        if WRITTEN_LIST.match(text):
            raise InputError(said + "a list that is written as text; give JSON lines, or put a ; between labels")
        parts = [part for part in (text.split(separator) if separator else [text]) if part.strip()]
    names = [label_text(part, said + "names are expected") for part in parts]
    if not all(names):
        raise InputError(said + "one of them has no name")
    labels = tuple(dict.fromkeys(renamed(name, how.label_map) for name in names))
    if len(labels) < len(names):
        report.mend(example.line, example.line, "a label that is named twice")
    stands = separator or (None if isinstance(value, list) else SEPARATORS[0])
    return replace(example, labels=labels, column=column, separator=stands)
