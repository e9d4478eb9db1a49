"""Tagging of words: named entities, parts of speech."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from bistil.artefacts import whole_file
from bistil.errors import InputError
from bistil.parsing.conllu import FORM as CONLLU_FORM
from bistil.parsing.conllu import UPOS, Sentence, read_conllu, write_sentence
from bistil.reading import (
    plain_name,
    read_jsonl,
    read_lines,
    renamed,
    require_examples,
    require_known_label,
)
from bistil.tasks.base import IGNORED, Example, Feature, Metrics, PredictionPair, Task, build_head, ratio, run
from bistil.tasks.hub import is_dataset, read_dataset
from bistil.tasks.words import encode_words, split_words

UPOS_TAGS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
WORDS = ("tokens", "words")
TAGS = ("labels", "tags", "ner_tags", "pos_tags", "upos")


@dataclass(frozen=True, kw_only=True)
class TaggedSentence(Example):
    """A sentence of words with a tag each. `source` is what it takes to write it back in its format."""

    words: list[str]
    tags: list[str]
    lines: list[int] = field(repr=False, metadata={"help": "line of each word; one line for all in JSON lines"})
    source: "Sentence | list[str] | dict[str, Any]" = field(repr=False)


class TokenClassification(Task):
    """One tag per word, read at its first subword with text: `AutoModelForTokenClassification`."""

    kind = "token-classification"
    pipeline_tag = "token-classification"
    padding: Mapping[str, int] = {"labels": IGNORED}

    def metric(self, labels: Sequence[str]) -> str:
        """Span F1 where the tags mark spans (B-, I-, E-, S-, O), accuracy elsewhere."""
        return "f1" if marks_spans(labels) else "accuracy"

    def read(self, paths: Sequence[str | Path], *, label_map: Mapping[str, str] | None = None) -> list[TaggedSentence]:
        """Read `.conllu` (UPOS), `.jsonl` and data sets ("tokens" and "labels") or, else, CoNLL columns.

        In CoNLL columns the first is the word and the last its tag.
        """
        examples: list[TaggedSentence] = []
        for path in map(Path, paths):
            name = plain_name(path)
            if is_dataset(path) or name.endswith((".jsonl", ".json")):
                examples += _read_objects(path, label_map)
            elif name.endswith(".conllu"):
                examples += _read_upos(path, label_map)
            else:
                examples += _read_columns(path, label_map)
        require_examples(examples, paths)
        return examples

    def text_of(self, example: TaggedSentence) -> str:
        return " ".join(example.words)

    def labels(self, examples: Sequence[TaggedSentence]) -> list[str]:
        """The tags in use, sorted, "O" first; for CoNLL-U the 17 universal ones."""
        if all(isinstance(example.source, Sentence) for example in examples):
            extra = {tag for example in examples for tag in example.tags} - set(UPOS_TAGS)
            return [*UPOS_TAGS, *sorted(extra)]
        return sorted({tag for example in examples for tag in example.tags}, key=lambda tag: (tag != "O", tag))

    def check_labels(self, examples: Sequence[TaggedSentence], labels: Sequence[str]) -> None:
        known = set(labels)
        for example in examples:
            if not known.issuperset(example.tags):
                unknown = next(i for i, tag in enumerate(example.tags) if tag not in known)
                line = example.lines[unknown]
                require_known_label(example.tags[unknown], labels, f"{example.file}, line {line}")

    def build_model(self, folder: str | Path, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
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

    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[TaggedSentence],
        features: Sequence[Feature],
        *,
        batch_size: int = 32,
    ) -> list[list[str]]:
        predictions = [[""] * len(example.words) for example in examples]
        names = model.config.id2label
        for indices, output, _ in run(model, features, self.collate(tokenizer), batch_size=batch_size):
            classes = output.logits.argmax(-1).cpu().numpy()
            for row, i in enumerate(indices):
                for position, word in features[i]["targets"]:
                    predictions[features[i]["example"]][word] = names[int(classes[row, position])]
        return predictions

    def score(self, examples: Sequence[TaggedSentence], predictions: Sequence[Sequence[str]]) -> Metrics:
        """Accuracy over words and, where the tags mark spans, F1 over spans, overall and per type (as seqeval's)."""
        for example, tags in zip(examples, predictions, strict=True):
            if len(tags) != len(example.words):
                raise InputError(f"{example.where}: {len(tags)} predicted tags for {len(example.words)} words")
        words = np.array(
            [[len(e.tags), sum(map(str.__eq__, e.tags, p))] for e, p in zip(examples, predictions, strict=True)],
            dtype=np.float64,
        )
        if not marks_spans({t for e in examples for t in e.tags} | {t for p in predictions for t in p}):
            return Metrics("accuracy", words, lambda s: {"accuracy": ratio(s[..., 1], s[..., 0])})

        from seqeval.metrics.sequence_labeling import get_entities

        spans = [
            (set(get_entities(e.tags)), set(get_entities(list(p)))) for e, p in zip(examples, predictions, strict=True)
        ]
        types = sorted({span[0] for both in spans for side in both for span in side})
        index = {name: i for i, name in enumerate(types)}
        # Per example and type: spans in common, predicted, gold.
        counts = np.zeros((len(spans), 3, len(types)))
        for row, (gold, predicted) in enumerate(spans):
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

        return Metrics("f1", np.concatenate([words, counts.reshape(len(spans), -1)], axis=1), formula)

    def majority(self, train: Sequence[TaggedSentence], test: Sequence[TaggedSentence]) -> list[list[str]]:
        """The most frequent training tag for every word."""
        tag = Counter(tag for example in train for tag in example.tags).most_common(1)[0][0]
        return [[tag] * len(example.words) for example in test]

    def write_predictions(
        self,
        path: Path,
        examples: Sequence[TaggedSentence],
        predictions: Sequence[Sequence[str]],
        *,
        known: Collection[str] = (),
    ) -> None:
        with (
            whole_file(path, replace=bool(known), known=known) as partial,
            partial.open("w", encoding="utf-8", newline="\n") as stream,
        ):
            for example, tags in zip(examples, predictions, strict=True):
                if isinstance(example.source, Sentence):
                    stream.write(write_sentence(example.source, columns={UPOS: tags}))
                elif isinstance(example.source, dict):
                    row = dict(example.source)
                    row[_key(row, TAGS) or "labels"] = list(tags)
                    stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                else:
                    stream.writelines(f"{front}{tag}\n" for front, tag in zip(example.source, tags, strict=True))
                    stream.write("\n")


def marks_spans(tags: Any) -> bool:
    """Whether all tags are of a span scheme: O, or B-, I-, E-, S- and a type."""
    return all(re.fullmatch(r"O|[BIES]-.+", tag) for tag in tags)


def _read_upos(path: Path, label_map: Mapping[str, str] | None) -> Iterator[TaggedSentence]:
    for sentence in read_conllu(path):
        tags = [renamed(tag, label_map) for tag in sentence.column(UPOS)]
        for i, tag in enumerate(tags):
            if tag == "_":
                raise InputError(f"{sentence.where(i)}: the word has no UPOS tag; rename _ with a label map or tag it")
        yield TaggedSentence(
            file=str(path),
            line=sentence.line,
            words=sentence.column(CONLLU_FORM),
            tags=tags,
            lines=[sentence.lines[i] for i in sentence.words],
            source=sentence,
        )


def _read_objects(path: Path, label_map: Mapping[str, str] | None) -> Iterator[TaggedSentence]:
    for line, row in read_dataset(path) if is_dataset(path) else read_jsonl(path):
        where = f"{path}, line {line}"
        words_key, tags_key = _key(row, WORDS), _key(row, TAGS)
        if words_key is None or tags_key is None:
            raise InputError(f'{where}: {{"tokens": [...], "labels": [...]}} is expected; found: {", ".join(row)}')
        words, tags = row[words_key], row[tags_key]
        for key, values in ((words_key, words), (tags_key, tags)):
            if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
                raise InputError(f"{where}: {key!r} must be a list of non-empty strings")
        if len(words) != len(tags):
            raise InputError(f"{where}: {len(words)} tokens and {len(tags)} labels; one label per token is expected")
        tags = [renamed(tag, label_map) for tag in tags]
        yield TaggedSentence(file=str(path), line=line, words=words, tags=tags, lines=[line] * len(words), source=row)


def _read_columns(path: Path, label_map: Mapping[str, str] | None) -> Iterator[TaggedSentence]:
    """CoNLL columns, split at tabs if the line has any, at single spaces else; `-DOCSTART-` lines are left out."""
    lines: list[int] = []
    words: list[str] = []
    tags: list[str] = []
    fronts: list[str] = []
    expected = 0
    # The line after the last closes the last sentence, whether the file ends in an empty line or not.
    for number, line in itertools.chain(read_lines(path), [(0, "")]):
        if line.strip(" \t") == "" or line.startswith("-DOCSTART-"):
            if words:
                yield TaggedSentence(file=str(path), line=lines[0], words=words, tags=tags, lines=lines, source=fronts)
                lines, words, tags, fronts = [], [], [], []
            continue
        separator = "\t" if "\t" in line else " "
        columns = line.rstrip(" \t").split(separator)
        where = f"{path}, line {number}"
        if len(columns) < 2 or not columns[0] or not columns[-1]:
            raise InputError(f"{where}: a word and its label are expected, separated by a space or a tab")
        expected = expected or len(columns)
        if len(columns) != expected:
            raise InputError(
                f"{where}: {len(columns)} columns where the lines before have {expected}; correct the line"
            )
        lines.append(number)
        words.append(columns[0])
        tags.append(renamed(columns[-1], label_map))
        fronts.append(separator.join(columns[:-1]) + separator)


def _key(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)
