"""Tagging of words: named entities, parts of speech."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.models.cards import pipeline_code
from bistil.models.heads import build_head
from bistil.models.loading import ModelSource
from bistil.tasks import register_task
from bistil.tasks.base import Decoded, Example, PredictionPair, Task
from bistil.tasks.batches import TOKEN_AXIS, Feature, Outputs, PerExample, as_array, softmax
from bistil.tasks.conll import around_tags, read_blocks
from bistil.tasks.hub import Source, is_file
from bistil.tasks.metrics import Metrics, ratio
from bistil.tasks.parsing.conllu import FORM as CONLLU_FORM
from bistil.tasks.parsing.conllu import UPOS, Sentence, read_conllu, write_sentence
from bistil.tasks.reading import NoLabelError, Reading, RowReport, plain_name, renamed, require_known_labels
from bistil.tasks.rows import check_named, columns_of, is_json, read_rows
from bistil.tasks.spans import OUTSIDE, check_scheme, fits, marks_spans, scheme_of, slips, spans
from bistil.tasks.words import WORDS, check_words, encode_words, split_words, without_language_prefix
from bistil.text import IGNORED

UPOS_TAGS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
TAGS = ("labels", "tags", "ner_tags", "pos_tags", "upos", "chunk_tags", "xpos")
# What stands for a tag that is not there; -1 and -100 are those of data sets.
NO_TAG = {"", "_", "-", "-1", "-100"}


@dataclass(frozen=True, kw_only=True)
class TaggedSentence(Example):
    """A sentence of words with a tag each.

    `source` is what it takes to write it back in its format: a sentence of CoNLL-U, the text before and after each
    word's tag, or a row; `column` is where the tags stand in the first and the last.
    """

    words: list[str]
    tags: list[str]
    lines: list[int] = field(repr=False, metadata={"help": "line of each word; one line for all in JSON lines"})
    source: "Sentence | list[tuple[str, str]] | dict[str, Any]" = field(repr=False)
    column: int | str = field(default=UPOS, repr=False)


@dataclass(kw_only=True)
class _Raw:
    """A sentence as it was read, with its tags as they stand there; None: there is none."""

    words: list[str]
    tags: list[str | None]
    lines: list[int]
    source: Any
    line: int
    column: int | str = UPOS

    def where(self, path: Source, word: int) -> str:
        return f"{path}, line {self.lines[word]}"


@register_task
class TokenClassification(Task):
    """One tag per word, read at its first subword with text: `AutoModelForTokenClassification`."""

    kind = "token-classification"
    of_plain_text = True
    pipeline_tag = "token-classification"
    # Without a strategy the pipeline labels subwords, and cuts a name into as many entities as it has pieces.
    usage = pipeline_code('"token-classification"', 'aggregation_strategy="first"')
    padding: Mapping[str, int] = {"labels": IGNORED}
    teacher_outputs: Mapping[str, PerExample | None] = {"logits": PerExample((TOKEN_AXIS,))}

    columns = ("words", "tags")
    takes = ("scheme",)

    def __init__(self, *, scheme: str | None = None) -> None:
        check_scheme(scheme)
        self.scheme = scheme

    def metric(self, labels: Sequence[str]) -> str:
        """Span F1 where the tags mark spans, accuracy elsewhere."""
        return "accuracy" if self.span_scheme(labels) is None else "f1"

    def span_scheme(self, labels: Iterable[str]) -> str | None:
        """The scheme by which spans are counted: the one asked for, else that of the label set; None: no spans."""
        scheme = self.scheme or scheme_of(labels)
        return None if scheme == "none" else scheme

    def read_file(self, path: Source, how: Reading, report: RowReport) -> Iterator[TaggedSentence]:
        """Read `.conllu` (UPOS), JSON lines and data sets ("tokens" and "labels") or, else, CoNLL columns.

        In CoNLL columns the first is the word and the last its tag, unless the first counts the words.
        """
        check_scheme(how.scheme)
        closed = False
        if not is_file(path) or is_json(path):
            found = list(_read_objects(path, how, report))
        elif plain_name(path).endswith(".conllu"):
            found = list(_read_conllu(path, how, report))
            closed = "tags" not in how.columns
        else:
            found, closed = _read_columns(path, how, report)
        check_words([one.words for one in found], path)
        prefixes = without_language_prefix([one.words for one in found])
        if prefixes is not None:
            report.notice("every word begins with its language's code and a colon, which is left out")
            for one, words in zip(found, prefixes, strict=True):
                one.words = words
        if closed:
            yield from _upos(found, path, how, report)
        else:
            yield from _tagged(found, path, how, report, scheme=how.scheme or self.scheme)

    def text_of(self, example: TaggedSentence) -> str:
        return " ".join(example.words)

    def labels(self, examples: Sequence[TaggedSentence]) -> list[str]:
        """The tags in use, sorted, "O" first; for CoNLL-U the 17 universal ones."""
        if all(isinstance(example.source, Sentence) and example.column == UPOS for example in examples):
            extra = {tag for example in examples for tag in example.tags} - set(UPOS_TAGS)
            return [*UPOS_TAGS, *sorted(extra)]
        return sorted({tag for example in examples for tag in example.tags}, key=lambda tag: (tag != "O", tag))

    def check_labels(self, examples: Sequence[TaggedSentence], labels: Sequence[str]) -> None:
        known = set(labels)
        require_known_labels(
            (
                (tag, f"{example.file}, line {line}")
                for example in examples
                if not known.issuperset(example.tags)
                for tag, line in zip(example.tags, example.lines, strict=True)
            ),
            labels,
        )

    def build_model(self, folder: ModelSource, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
        return build_head(AutoModelForTokenClassification, folder, labels, seed=seed)

    def encode(
        self,
        examples: Sequence[TaggedSentence],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labels: Sequence[str],
    ) -> list[Feature]:
        """Labels (tokens,) stand at first subwords of the words that are the window's own, -100 elsewhere.

        A bare boundary marker before the first subword has the word's label too: `pipeline` reads words there.
        "targets" lists (position of the first subword, index of the word) of the window's own words.
        """
        self.check_labels(examples, labels)
        index = {label: i for i, label in enumerate(labels)}
        features = []
        for feature, window in encode_words([example.words for example in examples], tokenizer, max_length):
            tags = examples[feature["example"]].tags
            feature["labels"] = [IGNORED] * len(feature["input_ids"])
            feature["targets"] = []
            for word in range(window.first, window.last):
                front, position = (feature[key][word - window.start] for key in ("word_fronts", "word_starts"))
                feature["labels"][front : position + 1] = [index[tags[word]]] * (position + 1 - front)
                feature["targets"].append((position, word))
            features.append(feature)
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
        """Sentences split into words by `split_words`. Without labels, every real position counts in L_pred."""
        del pairs, seed
        return [feature for feature, _ in encode_words([split_words(s) for s in sentences], tokenizer, max_length)]

    def prediction_pairs(self, student: Any, teacher: Any, batch: Mapping[str, torch.Tensor]) -> list[PredictionPair]:
        """Rows (batch * tokens, classes): where there is a label; all real positions in a batch without labels."""
        counted = batch["labels"] != IGNORED if "labels" in batch else batch["attention_mask"] != 0
        return [PredictionPair(student.logits.flatten(0, 1), teacher.logits.flatten(0, 1), counted.flatten())]

    def decode(
        self, examples: Sequence[TaggedSentence], features: Sequence[Feature], outputs: Outputs, labels: Sequence[str]
    ) -> list[Decoded]:
        """A tag per word; confidences (words,) are of these tags."""
        found = [Decoded([""] * len(example.words), np.zeros(len(example.words))) for example in examples]
        for indices, output in outputs:
            logits = as_array(output["logits"])
            for row, i in enumerate(indices):
                own = found[features[i]["example"]]
                positions, words = np.array(features[i]["targets"]).T
                scores = logits[row, positions]
                best = scores.argmax(-1)
                own.confidence[words] = softmax(scores)[np.arange(len(best)), best]
                for word, label in zip(words.tolist(), best.tolist(), strict=True):
                    own.value[word] = labels[label]
        return found

    def score(
        self,
        examples: Sequence[TaggedSentence],
        predictions: Sequence[Sequence[str]],
        *,
        labels: Sequence[str] | None = None,
    ) -> Metrics:
        """Accuracy over words and, where the tags mark spans, F1 over spans, overall and per type (as seqeval's)."""
        for example, tags in zip(examples, predictions, strict=True):
            if len(tags) != len(example.words):
                raise InputError(f"{example.where}: {len(tags)} predicted tags for {len(example.words)} words")
        words = np.array(
            [[len(e.tags), sum(map(str.__eq__, e.tags, p))] for e, p in zip(examples, predictions, strict=True)],
            dtype=np.float64,
        )
        if labels is None:
            labels = sorted({t for e in examples for t in e.tags} | {t for p in predictions for t in p})
        scheme = self.span_scheme(labels)
        if scheme is None:
            return Metrics("accuracy", words, lambda s: {"accuracy": ratio(s[..., 1], s[..., 0])})

        both_sides = [(spans(e.tags, scheme), spans(p, scheme)) for e, p in zip(examples, predictions, strict=True)]
        types = sorted({span[0] for both in both_sides for side in both for span in side})
        index = {name: i for i, name in enumerate(types)}
        # Per example and type: spans in common, predicted, gold.
        counts = np.zeros((len(both_sides), 3, len(types)))
        for row, (gold, predicted) in enumerate(both_sides):
            for counter, found in enumerate((gold & predicted, predicted, gold)):
                for span in found:
                    counts[row, counter, index[span[0]]] += 1

        def formula(sums: np.ndarray) -> dict[str, np.ndarray]:
            per_type = sums[..., 2:].reshape(*sums.shape[:-1], 3, len(types))
            both, found, wanted = np.moveaxis(per_type.sum(axis=-1), -1, 0)
            scores = {
                "f1": ratio(2 * both, found + wanted),
                "precision": ratio(both, found),
                "recall": ratio(both, wanted),
                "accuracy": ratio(sums[..., 1], sums[..., 0]),
            }
            for i, name in enumerate(types):
                scores[f"f1/{name}"] = ratio(2 * per_type[..., 0, i], per_type[..., 1, i] + per_type[..., 2, i])
            return scores

        return Metrics("f1", np.concatenate([words, counts.reshape(len(both_sides), -1)], axis=1), formula)

    def majority(self, train: Sequence[TaggedSentence], test: Sequence[TaggedSentence]) -> list[list[str]]:
        """The most frequent training tag for every word."""
        counts = Counter(tag for example in train for tag in example.tags)
        tag = counts.most_common(1)[0][0] if counts else OUTSIDE
        return [[tag] * len(example.words) for example in test]

    def answered(self, example: TaggedSentence, prediction: Sequence[str]) -> TaggedSentence:
        return replace(example, tags=[*prediction])

    def in_words(
        self, example: TaggedSentence, prediction: Sequence[str] | None = None, *, labels: Sequence[str]
    ) -> str:
        """The spans, or every word with its tag where the tags mark none."""
        tags, scheme = example.tags if prediction is None else prediction, self.span_scheme(labels)
        if scheme is None:
            return " ".join(f"{word}/{tag}" for word, tag in zip(example.words, tags, strict=True))
        found = sorted(spans(tags, scheme), key=lambda span: span[1])
        return "; ".join(f"{kind} {' '.join(example.words[first : last + 1])}" for kind, first, last in found) or "none"

    def predicted(self, examples: Sequence[TaggedSentence], predictions: Sequence[Sequence[str]]) -> Iterator[str]:
        for example, tags in zip(examples, predictions, strict=True):
            if isinstance(example.source, Sentence):
                assert isinstance(example.column, int)
                yield write_sentence(example.source, columns={example.column: tags})
            elif isinstance(example.source, dict):
                row = {**example.source, str(example.column): list(tags)}
                yield json.dumps(row, ensure_ascii=False, default=str) + "\n"
            else:
                sides = zip(example.source, tags, strict=True)
                yield "".join(f"{before}{tag}{after}\n" for (before, after), tag in sides) + "\n"


def _read_conllu(path: Path, how: Reading, report: RowReport) -> Iterator[_Raw]:
    """Words and a column of tags of CoNLL-U, UPOS unless another is asked for."""
    column = UPOS
    if "tags" in how.columns:
        number = how.columns["tags"]
        if not number.isdecimal() or not 3 <= int(number) <= 10:
            raise InputError(f"{path}: tags={number}: a column's number from 3 to 10 is expected, such as 5 for XPOS")
        column = int(number) - 1
    for sentence in read_conllu(path, report):
        yield _Raw(
            words=sentence.column(CONLLU_FORM),
            tags=list(sentence.column(column)),
            lines=[sentence.lines[i] for i in sentence.words],
            source=sentence,
            line=sentence.line,
            column=column,
        )


def _read_objects(path: Source, how: Reading, report: RowReport) -> Iterator[_Raw]:
    rows = read_rows(path, how, report)
    check_named(rows, path, how)
    numbers = False
    for line, row in rows:
        with report.row(line):
            where = f"{path}, line {line}"
            words_key, tags_key = _keys(row, where, how, report)
            words, tags = row[words_key], row[tags_key]
            if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
                raise InputError(f"{where}: {words_key!r} must be a list of non-empty strings")
            if tags is None:
                raise NoLabelError(f"{where}: {tags_key!r} is null")
            if not isinstance(tags, list) or not all(_is_tag(tag) for tag in tags):
                raise InputError(f"{where}: {tags_key!r} must be a list of non-empty strings, or of numbers of classes")
            if len(words) != len(tags):
                raise InputError(
                    f"{where}: {len(words)} tokens and {len(tags)} labels; one label per token is expected"
                )
            numbers = numbers or any(isinstance(tag, int) and tag >= 0 for tag in tags)
            yield _Raw(
                words=words,
                tags=[None if tag is None else str(tag) for tag in tags],
                lines=[line] * len(words),
                source=row,
                line=line,
                column=tags_key,
            )
    if numbers and not how.label_map:
        report.notice("the tags are numbers of classes; a label map, such as 1=B-PER, gives them names")


def _keys(row: Mapping[str, Any], where: str, how: Reading, report: RowReport) -> tuple[str, str]:
    """The columns of words and tags; what else could be one is named in the report."""
    keys = []
    for name, known in (("words", WORDS), ("tags", TAGS)):
        found = columns_of(row, known, ignored=how.ignored)
        found = [column for column in found if isinstance(row[column], list) or row[column] is None] or found
        key = how.columns.get(name, found[0] if found else None)
        if key is None or key not in row:
            raise InputError(
                f'{where}: {{"tokens": [...], "labels": [...]}} is expected; found: {", ".join(row)}; name another '
                f"column with --column {name}=COLUMN"
            )
        others = [column for column in found if column != key]
        if others and name not in how.columns:
            report.notice(f"{name} are read from {key!r}, not from {', '.join(map(repr, others))}")
        keys.append(key)
    return keys[0], keys[1]


def _is_tag(tag: Any) -> bool:
    return tag is None or (isinstance(tag, str | int) and not isinstance(tag, bool) and tag != "")


def _read_columns(path: Path, how: Reading, report: RowReport) -> tuple[list[_Raw], bool]:
    """Sentences of CoNLL columns; whether the file turned out to be CoNLL-U, and its tags are UPOS."""
    blocks, layout = read_blocks(path, how, report)
    if layout is None:
        return [], False
    if layout.conllu:
        report.notice("the first column counts the words and there are ten: it is read as CoNLL-U, tags are UPOS")
        return list(_read_conllu(path, how, report)), True
    found = []
    for block in blocks:
        start = block.lines[0].number
        with report.row(start):
            words, tags = [], []
            for line in block.lines:
                where, columns = f"{path}, line {line.number}", line.columns
                if len(columns) < 2 or not columns[0] or not columns[-1]:
                    raise InputError(f"{where}: a word and its label are expected, separated by a space or a tab")
                if len(columns) != layout.width:
                    raise InputError(
                        f"{where}: {len(columns)} columns where the lines before have {layout.width}; correct the line"
                    )
                if not columns[layout.words]:
                    raise InputError(f"{where}: column {layout.words + 1}, the word, is empty")
                words.append(columns[layout.words])
                tags.append(columns[layout.tags])
            sides = around_tags(block, layout)
            lines = [line.number for line in block.lines]
            found.append(_Raw(words=words, tags=[*tags], lines=lines, source=sides, line=start))
    return found, False


def _upos(found: Sequence[_Raw], path: Source, how: Reading, report: RowReport) -> Iterator[TaggedSentence]:
    """Sentences whose tags are universal ones, or what the label map makes of others."""
    known = {*UPOS_TAGS, *how.label_map.values()}
    for one in found:
        with report.row(one.line):
            _require_text(one, path)
            tags = [renamed(tag or "_", how.label_map) for tag in one.tags]
            wrong = next((i for i, tag in enumerate(tags) if tag not in known), None)
            if wrong is not None:
                where = one.where(path, wrong)
                if tags[wrong] == "_":
                    raise InputError(f"{where}: the word has no UPOS tag; rename _ with a label map or tag it")
                raise InputError(
                    f"{where}: {tags[wrong]!r} is none of the 17 universal tags; rename it with a label map, such as "
                    f"{tags[wrong]}=X, or read another column, such as --column tags=5"
                )
            yield _sentence(one, tags, path)


def _tagged(
    found: Sequence[_Raw], path: Source, how: Reading, report: RowReport, *, scheme: str | None
) -> Iterator[TaggedSentence]:
    """Sentences all of whose words have a tag of the file's scheme; slips of `O` are mended."""
    named = how.label_map
    # A hyphen may be the tag of hyphens.
    tags_of_themselves = {
        tag for one in found for word, tag in zip(one.words, one.tags, strict=True) if word == tag and tag in NO_TAG
    }
    missing = NO_TAG - named.keys() - tags_of_themselves
    for one in found:
        one.tags = [None if tag is None or tag.strip() in missing else renamed(tag.strip(), named) for tag in one.tags]
    counts = Counter(tag for one in found for tag in one.tags if tag is not None)
    wrong = _slips(counts, scheme) - set(named.values())
    if scheme is None and scheme_of(counts) == "types":
        report.notice(
            "the tags are types without a prefix, so that neighbours of one type are one span (--scheme none: no spans)"
        )
    for one in found:
        with report.row(one.line):
            _require_text(one, path)
            tags = []
            for i, tag in enumerate(one.tags):
                if tag is None:
                    raise NoLabelError(f"{one.where(path, i)}: the word has no tag")
                if tag in wrong and tag in ("o", "0"):
                    report.mend(one.line, one.line, f"the tag {tag!r} is 'O'")
                    tag = OUTSIDE
                elif tag in wrong:
                    raise InputError(
                        f"{one.where(path, i)}: the tag {tag!r} is neither O nor of a prefix and a type, such as "
                        f"B-PER; rename it with a label map, such as {tag}=O"
                    )
                tags.append(tag)
            yield _sentence(one, tags, path)


def _slips(counts: Counter[str], scheme: str | None) -> set[str]:
    """Tags that are none of the scheme's, which shows in the tags unless it is asked for."""
    if scheme in ("none", "types"):
        return set()
    if scheme is None or marks_spans(counts):
        return slips(counts)
    return {tag for tag in counts if not fits(tag)}


def _require_text(one: _Raw, path: Source) -> None:
    if one.words and all(word == "_" for word in one.words):
        raise InputError(f"{path}, line {one.line}: all words are _, which stands for text that is not in the file")


def _sentence(one: _Raw, tags: list[str], path: Source) -> TaggedSentence:
    return TaggedSentence(
        file=str(path),
        line=one.line,
        words=one.words,
        tags=tags,
        lines=one.lines,
        source=one.source,
        column=one.column,
    )
