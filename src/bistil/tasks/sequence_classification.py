"""Classification of sentences and sentence pairs: topics, natural language inference."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.models.heads import build_head
from bistil.tasks.base import Decoded, Example, PredictionPair, Task
from bistil.tasks.batches import Feature, Outputs, as_array, softmax
from bistil.tasks.boundaries import boundaries
from bistil.tasks.hub import is_dataset
from bistil.tasks.metrics import Metrics, ratio
from bistil.tasks.reading import NoLabelError, Reading, RowReport, plain_name, renamed, require_known_label
from bistil.tasks.rows import (
    Row,
    check_named,
    column_of,
    columns_of,
    is_companion,
    is_table,
    read_rows,
    text_columns,
)
from bistil.tasks.words import count_words, run_of_words
from bistil.text import IGNORED

# Column names of the first text, the second text and the label in published files (AmericasNLI, XNLI, SIB-200 ...).
# The first text's names in `PAIRED` say that there is a second one, those in `ASKED` if another holds text.
PAIRED = ("premise", "sentence1", "text1", "question1")
ASKED = ("question", "query")
FIRST = ("text", *PAIRED, "sentence", "utterance", "utt", "content", "tweet", "review", *ASKED)
SECOND = ("hypothesis", "hypo", "sentence2", "text2", "text_pair", "question2")
LABEL = ("label", "gold_label", "category", "intent", "class", "labels")
# How inference is labelled; MultiNLI in XNLI's translations says "contradictory".
INFERENCE = {
    **dict.fromkeys(("entailment", "entail", "entails", "entailed"), "entailment"),
    "neutral": "neutral",
    **dict.fromkeys(("contradiction", "contradictory", "contradict", "contradicts"), "contradiction"),
}


@dataclass(frozen=True, kw_only=True)
class TextExample(Example):
    """A text, or a pair of texts, with its label.

    `fields` holds the whole row as it was read, `column` is the one of the label.
    """

    text: str
    pair: str | None
    label: str
    fields: dict[str, Any]
    column: str = field(default="label", repr=False)


@dataclass(frozen=True)
class _Columns:
    """Which columns of a row are used; None: there is none."""

    text: str | None
    pair: str | None
    label: str | None


class SequenceClassification(Task):
    """One label per text or pair of texts, from the first token: `AutoModelForSequenceClassification`."""

    kind = "sequence-classification"
    pipeline_tag = "text-classification"
    padding: Mapping[str, int] = {"labels": IGNORED}

    def metric(self, labels: Sequence[str]) -> str:
        del labels
        return "accuracy"

    columns = ("text", "pair", "label")

    def read_file(self, path: Path, how: Reading, report: RowReport) -> Iterator[TextExample]:
        """JSON lines, tables with a header and data sets."""
        rows = read_rows(path, how, report)
        check_named(rows, path, how)
        chosen = _choose(rows, path, how, report)
        pairs = any(columns.pair is not None for columns in chosen.values())
        missing = _missing_labels([row.get(chosen[tuple(row)].label or "") for _, row in rows], path, how, report)
        for line, row in rows:
            with report.row(line):
                yield _example(
                    row, chosen[tuple(row)], path, line, pairs=pairs, missing=missing, how=how, report=report
                )

    def settled(self, examples: list[TextExample], how: Reading, report: RowReport) -> list[TextExample]:
        """Labels that are certainly the same one get one name; what the label map gives stays."""
        counts = Counter(example.label for example in examples)
        names = {old: new for old, new in _one_name_each(counts).items() if old not in how.label_map.values()}
        if not names:
            return examples
        report.notice("labels read as one: " + ", ".join(f"{old!r} as {new!r}" for old, new in names.items()))
        return [
            replace(example, label=names[example.label]) if example.label in names else example for example in examples
        ]

    def text_of(self, example: TextExample) -> str:
        return example.text if example.pair is None else f"{example.text} {example.pair}"

    def texts_of(self, example: TextExample) -> list[str]:
        return [example.text] if example.pair is None else [example.text, example.pair]

    def labels(self, examples: Sequence[TextExample]) -> list[str]:
        return sorted({example.label for example in examples})

    def check_labels(self, examples: Sequence[TextExample], labels: Sequence[str]) -> None:
        for example in examples:
            require_known_label(example.label, labels, example.where)

    def build_model(self, folder: str | Path, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
        return build_head(
            AutoModelForSequenceClassification,
            folder,
            labels,
            seed=seed,
            problem_type="single_label_classification",
        )

    def encode(
        self,
        examples: Sequence[TextExample],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labels: Sequence[str],
    ) -> list[Feature]:
        """One feature per example; the longer text of a pair is cut first. "truncated" says that something was cut."""
        self.check_labels(examples, labels)
        index = {label: i for i, label in enumerate(labels)}
        features = _features([(e.text, e.pair) for e in examples], tokenizer, max_length)
        for feature, example in zip(features, examples, strict=True):
            feature["labels"] = index[example.label]
        return features

    def unlabelled(
        self,
        sentences: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        pairs: bool = False,
        seed: int = 0,
    ) -> list[Feature]:
        """Sentences as they are; as pairs, see `make_pairs`."""
        texts = make_pairs(sentences, seed=seed) if pairs else [(sentence, None) for sentence in sentences]
        return _features(texts, tokenizer, max_length)

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
            f1 = ratio(2 * both, found + wanted)
            occurring = (found + wanted > 0).sum(axis=-1)
            return {
                "accuracy": ratio(sums[..., 1], sums[..., 0]),
                "macro_f1": np.divide(f1.sum(axis=-1), np.maximum(occurring, 1)),
            }

        return Metrics("accuracy", counts, formula)

    def majority(self, train: Sequence[TextExample], test: Sequence[TextExample]) -> list[str]:
        """The most frequent training label."""
        return [Counter(example.label for example in train).most_common(1)[0][0]] * len(test)

    def predicted(self, examples: Sequence[TextExample], predictions: Sequence[str]) -> Iterator[str]:
        # Rows of one table are a table again; everything else, and tables of different columns, is JSON lines.
        headers = {tuple(e.fields) if _is_tabbed(Path(e.file)) else None for e in examples}
        table = len(headers) == 1 and None not in headers
        if table:
            yield "\t".join(examples[0].fields) + "\n"
        for example, prediction in zip(examples, predictions, strict=True):
            row = {**example.fields, example.column: prediction}
            yield ("\t".join(row.values()) if table else json.dumps(row, ensure_ascii=False, default=str)) + "\n"


def make_pairs(sentences: Sequence[str], *, seed: int) -> list[tuple[str, str | None]]:
    """Sentence pairs out of plain text, one per sentence, for distillation of a pair task on unlabelled text.

    In turn, the second text is the following sentence (unrelated or loosely related, as most non-entailments) and a
    contiguous half of the sentence's own words (as most entailments).
    """
    generator = np.random.default_rng(seed)
    pairs: list[tuple[str, str | None]] = []
    for i, sentence in enumerate(sentences):
        words = count_words(sentence)
        if i % 2 == 0 or words < 2:
            pairs.append((sentence, sentences[(i + 1) % len(sentences)]))
        else:
            pairs.append((sentence, run_of_words(sentence, words // 2, generator)))
    return pairs


def _choose(
    rows: Sequence[tuple[int, Row]], path: Path, how: Reading, report: RowReport
) -> dict[tuple[str, ...], _Columns]:
    """The columns that are used, per set of columns that rows have (those of JSON lines may differ).

    Other columns of text are named in the report.

    Raises:
        InputError: the first text's name promises a second one, and another column may hold it.
    """
    texts = text_columns(rows)
    chosen: dict[tuple[str, ...], _Columns] = {}
    for _, row in rows:
        if tuple(row) in chosen:
            continue
        found = {
            name: how.columns.get(name) or column_of(row, names, ignored=how.ignored)
            for name, names in (("text", FIRST), ("pair", SECOND), ("label", LABEL))
        }
        columns = _Columns(**{name: column if column in row else None for name, column in found.items()})
        chosen[tuple(row)] = columns
        labels = [one for one in columns_of(row, LABEL, ignored=how.ignored) if one not in vars(columns).values()]
        if labels and "label" not in how.columns and columns.label is not None:
            report.notice(f"labels are read from {columns.label!r}, not from {', '.join(map(repr, labels))}")
    used = {column for columns in chosen.values() for column in vars(columns).values()}
    others = [name for name in texts if name not in used | how.ignored and not is_companion(name)]
    paired = next((c.text for c in chosen.values() if c.text and c.text.casefold() in (*PAIRED, *ASKED)), None)
    asked = next((name for name in others if name.casefold() in (*PAIRED, *ASKED)), None)
    alone = "text" not in how.columns and not any(c.pair for c in chosen.values())
    if asked and alone and not paired:
        read = next(c.text for c in chosen.values() if c.text)
        raise InputError(
            f"{path}: the text is read from {read!r}, but {asked!r} is the first text of a pair; say so with --column "
            f"text={asked} --column pair={read}, or leave it out with --column ignore={asked}"
        )
    if others and paired and alone:
        raise InputError(
            f"{path}: {paired!r} is the first text of a pair, and no column is known to hold the second, but "
            f"{others[0]!r} holds text; say so with --column pair={others[0]}, or leave it out with "
            f"--column ignore={others[0]}"
        )
    if others and any(c.text for c in chosen.values()):
        named = ", ".join(map(repr, others))
        report.notice(f"text in {named} is not used (--column text=NAME or pair=NAME uses a column, ignore=NAME none)")
    return chosen


def _example(
    row: Row,
    columns: _Columns,
    path: Path,
    line: int,
    *,
    pairs: bool,
    missing: set[str],
    how: Reading,
    report: RowReport,
) -> TextExample:
    where = f"{path}, line {line}"
    if columns.text is None or columns.label is None:
        lacking = f"a text ({', '.join(FIRST)})" if columns.text is None else f"a label ({', '.join(LABEL)})"
        option = "text" if columns.text is None else "label"
        raise InputError(
            f"{where}: no column holds {lacking}; found: {', '.join(row)}; name it with --column {option}=NAME"
        )
    for name in (columns.text, columns.pair):
        if name is not None and isinstance(row[name], dict):
            languages = row[name].get("language", list(row[name]))
            raise InputError(
                f"{where}: {name!r} holds texts of several languages ({', '.join(map(str, languages))[:60]}): name the "
                "data set's configuration of one language, as in dataset:facebook/xnli:sw:validation"
            )
        if name is not None and not isinstance(row[name], str):
            raise InputError(f"{where}: {name!r} is {row[name]!r}; a string is expected")
    if pairs and columns.pair is None and columns.text.casefold() in PAIRED:
        raise InputError(f"{where}: {columns.text!r} has no second text, as other rows have")
    value = row[columns.label]
    label = _label(value, f"{where}: the label is {value!r}; a non-empty string is expected")
    if label in missing:
        raise NoLabelError(f"{where}: the label is {value!r}")
    if isinstance(value, str) and label != value:
        report.mend(line, line, f"spaces around the label {value!r}")
    return TextExample(
        file=str(path),
        line=line,
        text=row[columns.text],
        pair=row[columns.pair] if columns.pair is not None else None,
        label=renamed(label, how.label_map),
        fields=row,
        column=columns.label,
    )


def _label(value: Any, message: str) -> str:
    """A label as text; whole numbers without a fraction, whatever wrote them; "" for what stands for none.

    Raises:
        InputError: it is no label.
    """
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int):
        raise InputError(message)
    return str(value).strip()


def _missing_labels(values: Sequence[Any], path: Path, how: Reading, report: RowReport) -> set[str]:
    """The labels that stand for none: empty, "-" (but beside "+") and -1 (but as a class, as in -1, 0, 1).

    What the label map names is a class.
    """
    known = {str(value).strip() for value in values if isinstance(value, str | int) and not isinstance(value, bool)}
    missing = {"", *({"-"} if "+" not in known else ())}
    others = known - {"-1", ""}
    if "-1" in known:
        # Data sets of the hub have -1 where a label is hidden; in files it may be the class opposed to 1.
        if not others or ("0" in others and (is_dataset(path) or others != {"0", "1"})):
            missing.add("-1")
        elif "-1" not in how.label_map:
            report.notice("the label -1 is a class of its own here")
    return missing - how.label_map.keys()


def _one_name_each(counts: Counter[str]) -> dict[str, str]:
    """Other names of labels that are surely the same: whole numbers with a fraction, case, and words for inference."""
    names: dict[str, str] = {}
    if all(re.fullmatch(r"-?[0-9]+(\.0+)?", label) for label in counts):
        names = {label: label.split(".")[0] for label in counts}
    elif {label.casefold() for label in counts} <= INFERENCE.keys():
        style = next(
            (one for one in (str.lower, str.upper, str.capitalize) if all(one(k) == k for k in counts)), str.lower
        )
        names = {label: style(INFERENCE[label.casefold()]) for label in counts}
    else:
        spelt: dict[str, str] = {}
        for label, _ in counts.most_common():
            names[label] = spelt.setdefault(label.casefold(), label)
    return {old: new for old, new in names.items() if old != new}


def _is_tabbed(path: Path) -> bool:
    return is_table(path) and not plain_name(path).endswith(".csv")


def _features(
    texts: Sequence[tuple[str, str | None]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Feature]:
    features = []
    for i, (text, pair) in enumerate(texts):
        encoded = tokenizer(text, pair, return_offsets_mapping=True)
        whole = len(encoded["input_ids"])
        if whole > max_length:
            encoded = tokenizer(text, pair, truncation=True, max_length=max_length, return_offsets_mapping=True)
        feature: Feature = {
            k: list(encoded[k]) for k in ("input_ids", "attention_mask", "token_type_ids") if k in encoded
        }
        feature |= {"example": i, "truncated": whole > max_length, "boundaries": boundaries(encoded["offset_mapping"])}
        features.append(feature)
    return features
