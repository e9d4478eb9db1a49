"""Classification of sentences and sentence pairs: topics, natural language inference."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from bistil._moved import left_names
from bistil.models.cards import pipeline_code
from bistil.models.heads import build_head
from bistil.models.loading import ModelSource
from bistil.tasks import register_task
from bistil.tasks.base import Decoded, PredictionPair
from bistil.tasks.batches import Feature, Outputs, PerExample, as_array, softmax
from bistil.tasks.hub import Source
from bistil.tasks.metrics import Metrics, macro_f1, ratio
from bistil.tasks.reading import NoLabelError, Reading, RowReport, renamed, require_known_labels
from bistil.tasks.rows import Row, check_named, read_rows
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

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.tasks.sequence_classification")

# What configurations call it where each text has one label.
PROBLEM = "single_label_classification"


@dataclass(frozen=True, kw_only=True)
class TextExample(TextOrPair):
    """A text, or a pair of texts, with its label; `column` is where that stands in the row."""

    label: str
    column: str = field(default="label", repr=False)


@register_task
class SequenceClassification(TextTask):
    """One label per text or pair of texts, from the first token: `AutoModelForSequenceClassification`."""

    kind = "sequence-classification"
    of_plain_text = True
    pipeline_tag = "text-classification"
    usage = pipeline_code('"text-classification"')
    teacher_outputs: Mapping[str, PerExample | None] = {"logits": PerExample()}
    padding: Mapping[str, int] = {"labels": IGNORED}

    @classmethod
    def fits(cls, config: Any) -> bool:
        # Published models mostly do not say what loss they were trained by.
        return super().fits(config) and getattr(config, "problem_type", None) in (None, PROBLEM)

    def metric(self, labels: Sequence[str]) -> str:
        del labels
        return "accuracy"

    def read_file(self, path: Source, how: Reading, report: RowReport) -> Iterator[TextExample]:
        """JSON lines, tables with a header and data sets."""
        rows = read_rows(path, how, report)
        check_named(rows, path, how)
        chosen = choose_columns(rows, path, how, report)
        pairs = any(columns.pair is not None for columns in chosen.values())
        missing = missing_labels([row.get(chosen[tuple(row)].label or "") for _, row in rows], path, how, report)
        for line, row in rows:
            with report.row(line):
                yield _example(
                    row, chosen[tuple(row)], path, line, pairs=pairs, missing=missing, how=how, report=report
                )

    def settled(self, examples: list[TextExample], how: Reading, report: RowReport) -> list[TextExample]:
        """Labels that are certainly the same one get one name; what the label map gives stays."""
        names = one_name_each(Counter(example.label for example in examples), how, report)
        return [
            replace(example, label=names[example.label]) if example.label in names else example for example in examples
        ]

    def labels(self, examples: Sequence[TextExample]) -> list[str]:
        return sorted({example.label for example in examples})

    def check_labels(self, examples: Sequence[TextExample], labels: Sequence[str]) -> None:
        require_known_labels(((example.label, example.where) for example in examples), labels)

    def build_model(self, folder: ModelSource, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
        return build_head(
            AutoModelForSequenceClassification,
            folder,
            labels,
            seed=seed,
            problem=PROBLEM,
        )

    def target(self, example: TextExample, labels: Mapping[str, int]) -> int:
        return labels[example.label]

    def prediction_pairs(self, student: Any, teacher: Any, batch: Mapping[str, torch.Tensor]) -> list[PredictionPair]:
        """All rows: logits (batch, classes)."""
        del batch
        return [PredictionPair(student.logits, teacher.logits)]

    def decode(
        self, examples: Sequence[TextExample], features: Sequence[Feature], outputs: Outputs, labels: Sequence[str]
    ) -> list[Decoded]:
        """The likeliest label of each example; confidences (classes,) are of all labels."""
        found = [Decoded("", np.zeros(len(labels)))] * len(examples)
        for indices, output in outputs:
            logits = as_array(output["logits"])
            for i, best, shares in zip(indices, logits.argmax(-1), softmax(logits), strict=True):
                found[features[i]["example"]] = Decoded(labels[best], shares)
        return found

    def score(
        self, examples: Sequence[TextExample], predictions: Sequence[str], *, labels: Sequence[str] | None = None
    ) -> Metrics:
        """Accuracy and macro F1 (mean over the classes that occur as gold or predicted label, as scikit-learn's)."""
        del labels
        gold = [example.label for example in examples]
        classes = sorted({*gold, *predictions})
        index = {label: i for i, label in enumerate(classes)}
        k = len(classes)
        # Counters: one per example, correct, then per class: both, predicted, gold.
        counts = np.zeros((len(gold), 2 + 3 * k))
        counts[:, 0] = 1
        for row, (right, predicted) in enumerate(zip(gold, predictions, strict=True)):
            counts[row, 1] = right == predicted
            counts[row, 2 + index[right]] = right == predicted
            counts[row, 2 + k + index[predicted]] = 1
            counts[row, 2 + 2 * k + index[right]] = 1

        def formula(sums: np.ndarray) -> dict[str, np.ndarray]:
            both, found, wanted = sums[..., 2 : 2 + k], sums[..., 2 + k : 2 + 2 * k], sums[..., 2 + 2 * k :]
            return {"accuracy": ratio(sums[..., 1], sums[..., 0]), "macro_f1": macro_f1(both, found, wanted)}

        return Metrics("accuracy", counts, formula)

    def majority(self, train: Sequence[TextExample], test: Sequence[TextExample]) -> list[str]:
        """The most frequent training label."""
        return [Counter(example.label for example in train).most_common(1)[0][0]] * len(test)

    def answered(self, example: TextExample, prediction: str) -> TextExample:
        return replace(example, label=prediction)

    def in_words(self, example: TextExample, prediction: str | None = None, *, labels: Sequence[str]) -> str:
        """The label."""
        del labels
        return example.label if prediction is None else prediction

    def predicted(self, examples: Sequence[TextExample], predictions: Sequence[str]) -> Iterator[str]:
        rows = ({**e.fields, e.column: label} for e, label in zip(examples, predictions, strict=True))
        yield from rows_again(examples, rows)


def _example(
    row: Row,
    columns: TextColumns,
    path: Source,
    line: int,
    *,
    pairs: bool,
    missing: set[str],
    how: Reading,
    report: RowReport,
) -> TextExample:
    where = f"{path}, line {line}"
    text, pair = texts_in(row, columns, where, pairs=pairs)
    if columns.label is None:
        raise no_column("label", LABEL, row, where)
    value = row[columns.label]
    label = label_text(value, f"{where}: the label is {value!r}; a non-empty string is expected")
    if label in missing:
        raise NoLabelError(f"{where}: the label is {value!r}")
    if isinstance(value, str) and label != value:
        report.mend(line, line, f"spaces around the label {value!r}")
    return TextExample(
        file=str(path),
        line=line,
        text=text,
        pair=pair,
        label=renamed(label, how.label_map),
        fields=row,
        column=columns.label,
    )
