"""Dependency parsing of CoNLL-U sentences with the biaffine parser."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.models.auto import AutoModelForDependencyParsing
from bistil.models.complete import tokenizer_of
from bistil.models.heads import build_head
from bistil.models.loading import ModelSource
from bistil.models.parser import arc_scores, relation_scores
from bistil.tasks import register_task
from bistil.tasks.base import Decoded, Example, PredictionPair, Task
from bistil.tasks.batches import HEAD_AXIS, WORD_AXIS, Feature, Outputs, PerExample, as_array, mean_of
from bistil.tasks.hub import Source, is_file
from bistil.tasks.metrics import Metrics, ratio
from bistil.tasks.parsing.conllu import (
    COLUMNS,
    DEPREL,
    FORM,
    HEAD,
    UPOS,
    Sentence,
    heads,
    read_conllu,
    write_sentence,
)
from bistil.tasks.parsing.trees import spanning_tree
from bistil.tasks.reading import NoLabelError, Reading, RowReport, renamed, require_known_labels
from bistil.tasks.rows import column_of, read_rows
from bistil.tasks.words import WORDS, check_words, encode_words, split_words
from bistil.text import IGNORED

# https://universaldependencies.org/u/dep/: the part of a relation before the colon.
RELATIONS = (
    *("acl", "advcl", "advmod", "amod", "appos", "aux", "case", "cc", "ccomp", "clf", "compound", "conj", "cop"),
    *("csubj", "dep", "det", "discourse", "dislocated", "expl", "fixed", "flat", "goeswith", "iobj", "list", "mark"),
    *("nmod", "nsubj", "nummod", "obj", "obl", "orphan", "parataxis", "punct", "reparandum", "root", "vocative"),
    "xcomp",
)
Tree = list[tuple[int, str]]
"""Per word its head (from 1; 0 is the root) and relation."""


@dataclass(frozen=True, kw_only=True)
class ParsedSentence(Example):
    """A sentence of words with its tree. `source` is None for a sentence that is in no file."""

    words: list[str]
    heads: list[int]
    relations: list[str]
    source: Sentence | None = field(repr=False)

    def at(self, word: int) -> str:
        """The place of a word (from 0) for messages."""
        return self.where if self.source is None else self.source.where(word)


@register_task
class DependencyParsing(Task):
    """A head and a universal relation per word: `AutoModelForDependencyParsing`.

    Args:
        parser_projection: map words to this many dimensions before the biaffine; None: the full head of the paper.
    """

    kind = "dependency-parsing"
    of_plain_text = True
    usage = """from bistil.tasks.dependency_parsing import Parser
from bistil.tasks.words import split_words

parse = Parser({folder})
print(parse([split_words("a sentence of yours")]))  # per word its head (0: the root) and relation"""
    word_padding: Mapping[str, int] = {
        "word_starts": -1,
        "word_ends": -1,
        "labels": IGNORED,
        "relation_labels": IGNORED,
    }
    teacher_outputs: Mapping[str, PerExample | None] = {
        "logits": PerExample((WORD_AXIS, HEAD_AXIS), padding=-torch.inf),
        "dependents": PerExample((WORD_AXIS,)),
        "heads": PerExample((HEAD_AXIS,)),
        "relation_weight": None,
    }

    def __init__(self, *, parser_projection: int | None = None) -> None:
        self.projection = parser_projection

    def metric(self, labels: Sequence[str]) -> str:
        del labels
        return "las"

    def read_file(self, path: Source, how: Reading, report: RowReport) -> Iterator[ParsedSentence]:
        """Trees of `.conllu` files, and of data sets with columns as those of Universal Dependencies have them.

        Relations lose what follows the colon, as in the official evaluation's LAS.
        """
        sentences = list(read_conllu(path, report) if is_file(path) else _of_rows(path, how, report))
        check_words([sentence.column(FORM) for sentence in sentences], path)
        known = {*RELATIONS, *how.label_map.values()}
        for sentence in sentences:
            with report.row(sentence.line):
                yield _parsed(sentence, path, how.label_map, known)

    def text_of(self, example: ParsedSentence) -> str:
        return " ".join(example.words)

    def labels(self, examples: Sequence[ParsedSentence]) -> list[str]:
        """The 37 universal relations, and what else the examples use."""
        return [*RELATIONS, *sorted({r for e in examples for r in e.relations} - set(RELATIONS))]

    def check_labels(self, examples: Sequence[ParsedSentence], labels: Sequence[str]) -> None:
        known = set(labels)
        require_known_labels(
            (
                (relation, example.at(word))
                for example in examples
                for word, relation in enumerate(example.relations)
                if relation not in known
            ),
            labels,
        )

    def build_model(self, folder: ModelSource, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
        sizes = {} if self.projection is None else {"parser_projection": self.projection}
        return build_head(AutoModelForDependencyParsing, folder, labels, seed=seed, sizes=sizes)

    def encode(
        self,
        examples: Sequence[ParsedSentence],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labels: Sequence[str],
    ) -> list[Feature]:
        """Heads and relations of the window's own words; -100 for context words and for heads outside the window.

        "own" holds (first, last) of the window's own words in the sentence, "start" its first word.
        """
        self.check_labels(examples, labels)
        index = {label: i for i, label in enumerate(labels)}
        features = []
        for feature, window in encode_words([example.words for example in examples], tokenizer, max_length):
            example = examples[feature["example"]]
            size = window.stop - window.start
            feature["labels"], feature["relation_labels"] = [IGNORED] * size, [IGNORED] * size
            for word in range(window.first, window.last):
                head = example.heads[word] - window.start if example.heads[word] else 0
                if example.heads[word] == 0 or 1 <= head <= size:
                    feature["labels"][word - window.start] = head
                    feature["relation_labels"][word - window.start] = index[example.relations[word]]
            feature |= {"own": (window.first, window.last), "start": window.start}
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
        """Sentences split into words by `split_words`; L_pred then follows the teacher's own best heads."""
        del pairs, seed
        return [feature for feature, _ in encode_words([split_words(s) for s in sentences], tokenizer, max_length)]

    def prediction_pairs(self, student: Any, teacher: Any, batch: Mapping[str, torch.Tensor]) -> list[PredictionPair]:
        """Arcs (batch * W, W + 1), and relations (batch * W, relations) at the gold heads.

        Without labels, at the teacher's best heads. Heads that are padding are marked as no choice.
        """
        real = batch["word_starts"] >= 0
        valid = torch.isfinite(teacher.logits)
        counted = batch["labels"] != IGNORED if "labels" in batch else real
        best = teacher.logits.argmax(-1)
        chosen = torch.where(counted, batch["labels"], best) if "labels" in batch else best
        student_relations, teacher_relations = (_mean_relations(side, chosen) for side in (student, teacher))
        arcs = [side.logits.masked_fill(~valid, 0.0).flatten(0, 1) for side in (student, teacher)]
        return [
            PredictionPair(arcs[0], arcs[1], counted.flatten(), valid.flatten(0, 1)),
            PredictionPair(student_relations.flatten(0, 1), teacher_relations.flatten(0, 1), counted.flatten()),
        ]

    def mean_output(self, outputs: Iterable[Any]) -> Any:
        """Mean arcs. Relations are scored at heads that are chosen by these: for them the parsers stand side by side.

        Raises:
            InputError: the parsers' words have other widths.
        """
        parsers = list(outputs)
        widths = [one.dependents.shape[-1] for one in parsers]
        if len(set(widths)) > 1:
            raise InputError(
                f"the task teachers' words have {' and '.join(map(str, widths))} dimensions: their relations need "
                "equally many"
            )
        mean = mean_of(parsers, ["logits"])
        mean.dependents, mean.heads = (
            torch.cat([getattr(one, name) for one in parsers], dim=-1) for name in ("dependents", "heads")
        )
        mean.relation_weight = torch.cat([one.relation_weight for one in parsers])
        return mean

    def decode(
        self, examples: Sequence[ParsedSentence], features: Sequence[Feature], outputs: Outputs, labels: Sequence[str]
    ) -> list[Decoded]:
        """Best single-rooted trees. A sentence of several windows is still parsed as one: its words' vectors are
        gathered from the windows, each from where it has context on both sides, and all arcs are scored.

        Confidences (words, 2) are of the head among all heads, and of the relation to it.
        """
        found = [Decoded([], np.zeros((0, 2)))] * len(examples)
        windows = Counter(feature["example"] for feature in features)
        parts: dict[int, dict[int, tuple[torch.Tensor, torch.Tensor]]] = defaultdict(dict)
        weights: dict[str, torch.Tensor] = {}
        for indices, output in outputs:
            dependents, heads = torch.as_tensor(output["dependents"]), torch.as_tensor(output["heads"])
            weights = {name: torch.as_tensor(output[name]) for name in ("arc_weight", "relation_weight")}
            trees = torch.zeros(dependents.shape[:2], dtype=torch.int64)
            whole = []
            for row, i in enumerate(indices):
                feature = features[i]
                if windows[feature["example"]] > 1:
                    first, last = (word - feature["start"] for word in feature["own"])
                    # The root goes with the first window's words.
                    left = 0 if feature["own"][0] == 0 else first + 1
                    parts[feature["example"]][feature["own"][0]] = (
                        dependents[row, first:last],
                        heads[row, left : last + 1],
                    )
                else:
                    words = len(feature["word_starts"])
                    arcs = as_array(output["logits"][row, :words, : words + 1])
                    tree = spanning_tree(arcs)
                    trees[row, :words] = torch.from_numpy(tree)
                    whole.append((row, feature["example"], tree, _head_confidences(arcs, tree)))
            relations, sure = _best_relations(dependents, heads, trees, weights["relation_weight"], labels)
            for row, example, tree, sure_of_heads in whole:
                words = len(tree)
                found[example] = _tree(tree, sure_of_heads, relations[row, :words], sure[row, :words], labels)
        for example, own in parts.items():
            found[example] = _parse_parts([own[first] for first in sorted(own)], weights, labels)
        return found

    def score(
        self, examples: Sequence[ParsedSentence], predictions: Sequence[Tree], *, labels: Sequence[str] | None = None
    ) -> Metrics:
        """UAS and LAS as the official evaluation on gold words, also without punctuation (gold relation punct)."""
        del labels
        counts = np.zeros((len(examples), 6))
        for row, (example, tree) in enumerate(zip(examples, predictions, strict=True)):
            if len(tree) != len(example.words):
                raise InputError(f"{example.where}: {len(tree)} predicted heads for {len(example.words)} words")
            for head, relation, (found, label) in zip(example.heads, example.relations, tree, strict=True):
                hit = np.array([1, head == found, head == found and relation == label.split(":")[0]])
                counts[row, :3] += hit
                if relation != "punct":
                    counts[row, 3:] += hit

        def formula(sums: np.ndarray) -> dict[str, np.ndarray]:
            return {
                "las": ratio(sums[..., 2], sums[..., 0]),
                "uas": ratio(sums[..., 1], sums[..., 0]),
                "las_without_punctuation": ratio(sums[..., 5], sums[..., 3]),
                "uas_without_punctuation": ratio(sums[..., 4], sums[..., 3]),
            }

        return Metrics("las", counts, formula)

    def majority(self, train: Sequence[ParsedSentence], test: Sequence[ParsedSentence]) -> list[Tree]:
        """Every word hangs on its left neighbour with the most frequent training relation."""
        counts = Counter(r for e in train for r in e.relations if r != "root")
        relation = counts.most_common(1)[0][0] if counts else "dep"
        return [[(i, relation if i else "root") for i in range(len(example.words))] for example in test]

    def answered(self, example: ParsedSentence, prediction: Tree) -> ParsedSentence:
        return replace(
            example, heads=[head for head, _ in prediction], relations=[own.split(":")[0] for _, own in prediction]
        )

    def in_words(self, example: ParsedSentence, prediction: Tree | None = None, *, labels: Sequence[str]) -> str:
        """Every word with its relation and its head."""
        del labels
        tree = [*zip(example.heads, example.relations, strict=True)] if prediction is None else prediction
        words = ["root", *example.words]
        return "; ".join(
            f"{word}: {relation} of {words[head]}" for word, (head, relation) in zip(example.words, tree, strict=True)
        )

    def predicted(self, examples: Sequence[ParsedSentence], predictions: Sequence[Tree]) -> Iterator[str]:
        for example, tree in zip(examples, predictions, strict=True):
            assert example.source is not None
            columns = {HEAD: [str(head) for head, _ in tree], DEPREL: [relation for _, relation in tree]}
            yield write_sentence(example.source, columns=columns)


# Columns of a data set that CoNLL-U's are made of, each under the names that it has.
_COLUMNS = {
    FORM: WORDS,
    HEAD: ("head", "heads"),
    DEPREL: ("deprel", "deprels", "relations"),
    UPOS: ("upos",),
}


def _of_rows(path: Source, how: Reading, report: RowReport) -> Iterator[Sentence]:
    """Sentences of a data set as they would stand in a file.

    Raises:
        InputError: a row lacks a column, or its columns have other lengths than its words.
    """
    for line, row in read_rows(path, how, report):
        with report.row(line):
            where = f"{path}, line {line}"
            found = {column: column_of(row, names) for column, names in _COLUMNS.items()}
            lacking = next((column for column in (FORM, HEAD, DEPREL) if found[column] is None), None)
            if lacking is not None:
                raise InputError(f"{where}: no column {' or '.join(_COLUMNS[lacking])}; found: {', '.join(row)}")
            values = {column: row[name] for column, name in found.items() if name is not None}
            words = values[FORM]
            for column, value in values.items():
                if not isinstance(value, list) or not value or len(value) != len(words):
                    raise InputError(f"{where}: {found[column]!r} must be a list with one entry per word")
            if not all(isinstance(word, str) and word.strip() and not set(word) & set("\t\n") for word in words):
                raise InputError(f"{where}: {found[FORM]!r} must hold words, without tabs and line breaks")
            rows = [[str(number)] + ["_"] * (COLUMNS - 1) for number in range(1, len(words) + 1)]
            for column, value in values.items():
                for cells, entry in zip(rows, value, strict=True):
                    cells[column] = "_" if entry is None else str(entry)
            places = {"lines": [line] * len(rows), "words": list(range(len(rows)))}
            yield Sentence(file=str(path), line=line, comments=[], rows=rows, **places)


def _parsed(sentence: Sentence, path: Source, label_map: Mapping[str, str], known: Set[str]) -> ParsedSentence:
    """A sentence with its tree.

    Raises:
        NoLabelError: it has none.
        InputError: its words are not there, its tree is none, or it has an unknown relation; with the line.
    """
    words = sentence.column(FORM)
    if all(word == "_" for word in words):
        raise InputError(f"{sentence.where(0)}: all words are _, which stands for text that is not in the file")
    if all(head == "_" for head in sentence.column(HEAD)):
        raise NoLabelError(f"{sentence.where(0)}: head '_' is not a number: the sentence has no tree")
    tree = heads(sentence)
    relations = [renamed(relation.split(":")[0], label_map) for relation in sentence.column(DEPREL)]
    for word, relation in enumerate(relations):
        if relation not in known:
            raise InputError(
                f"{sentence.where(word)}: {relation!r} is none of the 37 universal relations; rename it with a label "
                f"map, such as {relation}=dep"
            )
    return ParsedSentence(
        file=str(path), line=sentence.line, words=words, heads=tree, relations=relations, source=sentence
    )


class Parser:
    """Parses sentences that are split into words; what `pipeline(...)` is for the other tasks.

    Args:
        model: a parser, or its folder.
        tokenizer: of a parser in memory; default: the one that it brings.
        max_length: tokens per window; longer sentences are parsed over several windows.

    Raises:
        ArtefactError: the folder holds no parser with a tokenizer.

    Example:
        >>> Parser("runs/demo/parser")([["Paka", "amelala"]])  # doctest: +SKIP
        [[(2, 'nsubj'), (0, 'root')]]
    """

    def __init__(
        self, model: ModelSource, *, tokenizer: PreTrainedTokenizerBase | None = None, max_length: int = 128
    ) -> None:
        self.task, self.max_length = DependencyParsing(), max_length
        self.tokenizer = tokenizer_of(model, tokenizer)
        self.model = self.task.build_model(model, None)

    def __call__(self, sentences: Sequence[Sequence[str]], *, batch_size: int = 32) -> list[Tree]:
        """Parse.

        Args:
            sentences: words of each sentence; for plain text, see `bistil.tasks.words.split_words`.

        Returns:
            Per sentence and word, the head's number (from 1; 0: the root) and the relation.
        """
        examples = [unparsed(words) for words in sentences]
        features = self.task.encode(examples, self.tokenizer, self.max_length, labels=["dep"])
        return self.task.predict(self.model, self.tokenizer, examples, features, batch_size=batch_size)


def unparsed(words: Sequence[str], source: Sentence | None = None, *, relation: str = "dep") -> ParsedSentence:
    """A sentence that has no tree yet: words on the root with any relation."""
    size = len(words)
    return ParsedSentence(
        file="", line=0, words=list(words), heads=[0] * size, relations=[relation] * size, source=source
    )


def _mean_relations(output: Any, chosen: torch.Tensor) -> torch.Tensor:
    """Relation logits (batch, W, relations) at chosen heads (batch, W): the mean over the parsers of an output.

    Args:
        output: of one parser, or of several (`mean_output`): words and heads (..., parsers * p), relation_weight
            (parsers * relations, p + 1, p + 1).
    """
    width = output.relation_weight.shape[-1] - 1
    words, heads = (one.split(width, dim=-1) for one in (output.dependents, output.heads))
    weights = output.relation_weight.chunk(len(words))
    scores = [relation_scores(own, head, chosen, weight)
              for own, head, weight in zip(words, heads, weights, strict=True)]  # fmt: skip
    return torch.stack(scores).mean(0)


def _parse_parts(
    parts: list[tuple[torch.Tensor, torch.Tensor]], weights: Mapping[str, torch.Tensor], labels: Sequence[str]
) -> Decoded:
    """Parse one sentence from its windows' own words: dependents (words, p) and heads (words, p), the root first."""
    with torch.inference_mode():
        dependents = torch.cat([part[0] for part in parts])
        candidates = torch.cat([part[1] for part in parts])
        arcs = as_array(arc_scores(dependents, candidates, weights["arc_weight"]))
    tree = spanning_tree(arcs)
    found = []
    # A long sentence's relation scores are made in pieces: they hold (words, relations, p) numbers.
    for start in range(0, len(tree), 256):
        chosen = torch.from_numpy(tree[start : start + 256]).unsqueeze(0)
        piece = dependents[start : start + 256].unsqueeze(0)
        found.append(_best_relations(piece, candidates.unsqueeze(0), chosen, weights["relation_weight"], labels))
    relations, sure = (np.concatenate([piece[i][0] for piece in found]) for i in (0, 1))
    return _tree(tree, _head_confidences(arcs, tree), relations, sure, labels)


def _tree(
    heads: np.ndarray, sure_of_heads: np.ndarray, relations: np.ndarray, sure: np.ndarray, labels: Sequence[str]
) -> Decoded:
    tree = [(head, labels[relation]) for head, relation in zip(heads.tolist(), relations.tolist(), strict=True)]
    return Decoded(tree, np.stack([sure_of_heads, sure], axis=1))


def _head_confidences(arcs: np.ndarray, tree: np.ndarray) -> np.ndarray:
    """(words,) probability of each word's head among all heads but the word itself."""
    words = np.arange(len(tree))
    shares = arcs.copy()
    shares[words, words + 1] = -np.inf
    shares -= shares.max(axis=1, keepdims=True)
    # In place: a sentence of 5,000 words has 25 million arcs.
    np.exp(shares, out=shares)
    sure: np.ndarray = shares[words, tree] / shares.sum(axis=1)
    return sure


def _best_relations(
    dependents: torch.Tensor, heads: torch.Tensor, tree: torch.Tensor, weight: torch.Tensor, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(batch, W) best relations to the heads `tree` (batch, W), and their probabilities.

    `root` goes to the root's child and to nobody else, as UD demands.
    """
    with torch.inference_mode():
        chosen = tree.to(dependents.device)
        scores = relation_scores(dependents, heads, chosen, weight)
        roots = torch.tensor([label == "root" for label in labels], device=scores.device)
        if roots.any():
            scores = scores.masked_fill(roots != (chosen == 0).unsqueeze(-1), -torch.inf)
        best = scores.argmax(-1)
        sure = scores.softmax(-1).gather(-1, best.unsqueeze(-1)).squeeze(-1)
    return best.cpu().numpy(), as_array(sure)
