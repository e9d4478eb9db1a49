"""What tasks of texts and pairs of texts share: columns, labels as texts, encoding, unlabelled text, writing."""

import csv
import io
import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.tasks.base import Example, Task
from bistil.tasks.batches import Feature
from bistil.tasks.boundaries import boundaries
from bistil.tasks.hub import Source, is_dataset
from bistil.tasks.reading import Reading, RowReport, plain_name
from bistil.tasks.rows import Row, column_of, columns_of, is_companion, is_table, text_columns
from bistil.tasks.words import count_words, run_of_words

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
class TextOrPair(Example):
    """A text, or a pair of texts. `fields` holds the whole row as it was read."""

    text: str
    pair: str | None
    fields: Row


@dataclass(frozen=True)
class TextColumns:
    """Which columns of a row are used; None: there is none."""

    text: str | None
    pair: str | None
    label: str | None


class TextTask(Task):
    """A task whose examples are texts or pairs of texts."""

    columns = ("text", "pair", "label")

    def text_of(self, example: Any) -> str:
        return " ".join(self.texts_of(example))

    def texts_of(self, example: Any) -> list[str]:
        return [example.text] if example.pair is None else [example.text, example.pair]

    @abstractmethod
    def target(self, example: Any, labels: Mapping[str, int]) -> Any:
        """What a feature has under "labels".

        Args:
            labels: the index of each class.
        """

    def encode(
        self,
        examples: Sequence[Any],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labels: Sequence[str],
    ) -> list[Feature]:
        """One feature per example; the longer text of a pair is cut first. "truncated" says that something was cut."""
        self.check_labels(examples, labels)
        index = {label: i for i, label in enumerate(labels)}
        features = encode_texts([(e.text, e.pair) for e in examples], tokenizer, max_length)
        for feature, example in zip(features, examples, strict=True):
            feature["labels"] = self.target(example, index)
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
        return encode_texts(texts, tokenizer, max_length)


def choose_columns(
    rows: Sequence[tuple[int, Row]], path: Source, how: Reading, report: RowReport
) -> dict[tuple[str, ...], TextColumns]:
    """The columns that are used, per set of columns that rows have (those of JSON lines may differ).

    Other columns of text are named in the report.

    Raises:
        InputError: the first text's name promises a second one, and another column may hold it.
    """
    texts = text_columns(rows)
    chosen: dict[tuple[str, ...], TextColumns] = {}
    for _, row in rows:
        if tuple(row) in chosen:
            continue
        found = {
            name: how.columns.get(name) or column_of(row, names, ignored=how.ignored)
            for name, names in (("text", FIRST), ("pair", SECOND), ("label", LABEL))
        }
        columns = TextColumns(**{name: column if column in row else None for name, column in found.items()})
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


def texts_in(row: Row, columns: TextColumns, where: str, *, pairs: bool) -> tuple[str, str | None]:
    """The text of a row, and the second one of a pair.

    Args:
        where: for messages.
        pairs: whether some rows of the file are pairs.

    Raises:
        InputError: there is none, or no string.
    """
    if columns.text is None:
        raise no_column("text", FIRST, row, where)
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
    return row[columns.text], row[columns.pair] if columns.pair is not None else None


def no_column(what: str, names: Sequence[str], row: Row, where: str) -> InputError:
    """That a row has no column under one of the names, and what to do."""
    return InputError(
        f"{where}: no column holds a {what} ({', '.join(names)}); found: {', '.join(row)}; name it with --column "
        f"{what}=NAME"
    )


def label_text(value: Any, message: str) -> str:
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


def missing_labels(values: Sequence[Any], path: Source, how: Reading, report: RowReport) -> set[str]:
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


def one_name_each(counts: Counter[str], how: Reading, report: RowReport) -> dict[str, str]:
    """Other names of labels that are certainly the same one, with theirs; what the label map gives stays.

    Args:
        report: gets a notice.
    """
    names = {old: new for old, new in _one_name_each(counts).items() if old not in how.label_map.values()}
    if names:
        report.notice("labels read as one: " + ", ".join(f"{old!r} as {new!r}" for old, new in names.items()))
    return names


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


def encode_texts(
    texts: Sequence[tuple[str, str | None]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Feature]:
    """One feature per text or pair; the longer text of a pair is cut first, and "truncated" says that one was."""
    features = []
    for i, (text, pair) in enumerate(texts):
        # What is longer than the model can read is cut below: no warning of it.
        encoded = tokenizer(text, pair, return_offsets_mapping=True, verbose=False)
        whole = len(encoded["input_ids"])
        if whole > max_length:
            encoded = tokenizer(text, pair, truncation=True, max_length=max_length, return_offsets_mapping=True)
        feature: Feature = {
            k: list(encoded[k]) for k in ("input_ids", "attention_mask", "token_type_ids") if k in encoded
        }
        feature |= {"example": i, "truncated": whole > max_length, "boundaries": boundaries(encoded["offset_mapping"])}
        features.append(feature)
    return features


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


def rows_again(examples: Sequence[TextOrPair], rows: Iterable[Row]) -> Iterator[str]:
    """Rows of examples in the format that these were read in, line by line.

    Rows of one table, or of tables with the same columns, are a table again; everything else is JSON lines.
    """
    formats = {(tuple(example.fields), _delimiter(Path(example.file))) for example in examples}
    delimiter = next(iter(formats))[1] if len(formats) == 1 else None
    for number, row in enumerate(rows):
        if delimiter is None:
            yield json.dumps(row, ensure_ascii=False, default=str) + "\n"
            continue
        for values in ([*row], [*row.values()]) if number == 0 else ([*row.values()],):
            yield comma_separated_line(values) if delimiter == "," else delimiter.join(values) + "\n"


def _delimiter(path: Source) -> str | None:
    """Of a table with this name; None: it is none."""
    if not is_table(path):
        return None
    return "," if plain_name(path).endswith(".csv") else "\t"


def comma_separated_line(values: Sequence[str]) -> str:
    """A row of a `.csv` table, with its end; fields are in quotes where they must be."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
