"""Classification of sentences and sentence pairs: topics, natural language inference."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from bistil.artefacts import whole_file
from bistil.errors import InputError
from bistil.reading import (
    plain_name,
    read_jsonl,
    read_table,
    renamed,
    require_examples,
    require_known_label,
)
from bistil.tasks.base import (
    IGNORED,
    Example,
    Feature,
    Metrics,
    PredictionPair,
    Task,
    boundaries,
    build_head,
    ratio,
    run,
)
from bistil.tasks.hub import is_dataset, read_dataset
from bistil.tasks.words import count_words, run_of_words

# Column names of the first text, the second text and the label in published files (AmericasNLI, XNLI, SIB-200 ...).
FIRST = ("text", "premise", "sentence1", "sentence")
SECOND = ("hypothesis", "sentence2", "text_pair")
LABEL = ("label", "gold_label", "category")


@dataclass(frozen=True, kw_only=True)
class TextExample(Example):
    """A text, or a pair of texts, with its label. `fields` holds the whole row as it was read."""

    text: str
    pair: str | None
    label: str
    fields: dict[str, Any]


class SequenceClassification(Task):
    """One label per text or pair of texts, from the first token: `AutoModelForSequenceClassification`."""

    kind = "sequence-classification"
    pipeline_tag = "text-classification"
    padding: Mapping[str, int] = {"labels": IGNORED}

    def metric(self, labels: Sequence[str]) -> str:
        del labels
        return "accuracy"

    def read(self, paths: Sequence[str | Path], *, label_map: Mapping[str, str] | None = None) -> list[TextExample]:
        examples = []
        for path in map(Path, paths):
            for line, row in _rows(path):
                where = f"{path}, line {line}"
                first, second, label = (_column(row, names) for names in (FIRST, SECOND, LABEL))
                if first is None or label is None:
                    missing = f"a text ({', '.join(FIRST)})" if first is None else f"a label ({', '.join(LABEL)})"
                    raise InputError(f"{where}: no column holds {missing}; found: {', '.join(row)}")
                for name in (first, second):
                    if name is not None and not isinstance(row[name], str):
                        raise InputError(f"{where}: {name!r} is {row[name]!r}; a string is expected")
                if not isinstance(row[label], str | int) or isinstance(row[label], bool) or row[label] == "":
                    raise InputError(f"{where}: the label is {row[label]!r}; a non-empty string is expected")
                examples.append(
                    TextExample(
                        file=str(path),
                        line=line,
                        text=row[first],
                        pair=row[second] if second is not None else None,
                        label=renamed(str(row[label]), label_map),
                        fields=row,
                    )
                )
        require_examples(examples, paths)
        return examples

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

    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[TextExample],
        features: Sequence[Feature],
        *,
        batch_size: int = 32,
    ) -> list[str]:
        predictions = [""] * len(examples)
        for indices, output, _ in run(model, features, self.collate(tokenizer), batch_size=batch_size):
            for i, label in zip(indices, output.logits.argmax(-1).tolist(), strict=True):
                predictions[features[i]["example"]] = model.config.id2label[label]
        return predictions

    def score(self, examples: Sequence[TextExample], predictions: Sequence[str]) -> Metrics:
        """Accuracy and macro F1 (mean over the classes that occur as gold or predicted label, as scikit-learn's)."""
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

    def write_predictions(
        self, path: Path, examples: Sequence[TextExample], predictions: Sequence[str], *, known: Collection[str] = ()
    ) -> None:
        # Rows of one table are a table again; everything else, and tables of different columns, is JSON lines.
        headers = {tuple(e.fields) if _is_table(Path(e.file)) else None for e in examples}
        table = len(headers) == 1 and None not in headers
        with (
            whole_file(path, replace=bool(known), known=known) as partial,
            partial.open("w", encoding="utf-8", newline="\n") as stream,
        ):
            if table:
                stream.write("\t".join(examples[0].fields) + "\n")
            for example, prediction in zip(examples, predictions, strict=True):
                row = dict(example.fields)
                row[_column(row, LABEL) or "label"] = prediction
                stream.write("\t".join(row.values()) if table else json.dumps(row, ensure_ascii=False, default=str))
                stream.write("\n")


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


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if is_dataset(path):
        return read_dataset(path)
    if plain_name(path).endswith((".jsonl", ".json")):
        return read_jsonl(path)
    if _is_table(path):
        return read_table(path)
    raise InputError(f"{path}: unknown format; give .jsonl, .tsv with a header (also .gz), or dataset:NAME:SPLIT")


def _is_table(path: Path) -> bool:
    return not is_dataset(path) and plain_name(path).endswith((".tsv", ".txt"))


def _column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


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
