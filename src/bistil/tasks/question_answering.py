"""Extractive question answering in SQuAD's format."""

import json
import re
import string
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from bistil.artefacts import whole_file
from bistil.errors import InputError
from bistil.models import load_tokenizer
from bistil.reading import read_text, require_examples
from bistil.tasks.base import (
    IGNORED,
    Example,
    Feature,
    Metrics,
    PredictionPair,
    Task,
    boundaries,
    build_head,
    position_limit,
    ratio,
    run,
)
from bistil.tasks.hub import is_dataset, read_dataset
from bistil.tasks.words import run_of_words

# Of each window, so many best starts and ends are combined; an answer has at most so many tokens (BERT's SQuAD script).
N_BEST = 20
MAX_ANSWER_TOKENS = 30
# Context sentences that make up a passage out of plain text.
PASSAGE_SENTENCES = 4
# Words at most of a question made out of plain text.
QUESTION_WORDS = 12


@dataclass(frozen=True, kw_only=True)
class Question(Example):
    """A question about a passage. `answers` are texts with their start, in characters of the context."""

    id: str
    text: str
    context: str
    answers: list[tuple[str, int]]


@dataclass(frozen=True)
class Answer:
    """A span of the context and the sum of its start and end logits."""

    text: str
    start: int
    score: float


class QuestionAnswering(Task):
    """Start and end of the answer in the passage: `AutoModelForQuestionAnswering`."""

    kind = "question-answering"
    pipeline_tag = "question-answering"
    passages = True
    padding: Mapping[str, int] = {"start_positions": IGNORED, "end_positions": IGNORED}

    def metric(self, labels: Sequence[str]) -> str:
        del labels
        return "f1"

    def read(self, paths: Sequence[str | Path], *, label_map: Mapping[str, str] | None = None) -> list[Question]:
        """SQuAD 1.1 JSON, or data sets of its flat layout. Every answer must stand in its context where it says."""
        del label_map
        examples: list[Question] = []
        for path in map(Path, paths):
            examples += _read_rows(path) if is_dataset(path) else _read_squad(path)
        require_examples(examples, paths)
        return examples

    def text_of(self, example: Question) -> str:
        return f"{example.text} {example.context}"

    def texts_of(self, example: Question) -> list[str]:
        return [example.text, example.context]

    def unit_of(self, example: Question) -> str:
        """The passage: who has learnt from other questions about it has seen it with answers."""
        return example.context

    def labels(self, examples: Sequence[Question]) -> list[str]:
        """The two outputs of the head; there is nothing to learn from the data."""
        del examples
        return ["start", "end"]

    def check_labels(self, examples: Sequence[Question], labels: Sequence[str]) -> None:
        del examples, labels

    def build_model(self, folder: str | Path, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
        return build_head(AutoModelForQuestionAnswering, folder, labels, seed=seed)

    def encode(
        self,
        examples: Sequence[Question],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        labels: Sequence[str] = ("start", "end"),
    ) -> list[Feature]:
        """Windows over the context that overlap by a third, each with the whole question in front.

        "start_positions" and "end_positions" point to the first answer's tokens; a window without it points to the
        first token. "offsets" (tokens,) hold each context token's characters, None elsewhere.
        """
        del labels
        features = []
        for index, example in enumerate(examples):
            for feature in _windows(index, example, tokenizer, max_length):
                start, end = _positions(feature["offsets"], example.answers[0]) if example.answers else (0, 0)
                features.append(feature | {"start_positions": start, "end_positions": end})
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
        """Passages of 4 consecutive sentences, one per sentence; the question is a random run of at most 12 words of
        one of them."""
        del pairs
        generator = np.random.default_rng(seed)
        features = []
        for i in range(len(sentences)):
            passage = [sentences[(i + k) % len(sentences)] for k in range(min(PASSAGE_SENTENCES, len(sentences)))]
            asked = passage[int(generator.integers(len(passage)))]
            made = Question(
                file="",
                line=0,
                id=str(i),
                text=run_of_words(asked, QUESTION_WORDS, generator),
                context=" ".join(passage),
                answers=[],
            )
            features += _windows(i, made, tokenizer, max_length)
        return features

    def prediction_pairs(self, student: Any, teacher: Any, batch: Mapping[str, torch.Tensor]) -> list[PredictionPair]:
        """Start rows and end rows (batch, tokens) over all positions; padding is marked as no choice."""
        valid = batch["attention_mask"] != 0 if "attention_mask" in batch else None
        return [
            PredictionPair(student.start_logits, teacher.start_logits, None, valid),
            PredictionPair(student.end_logits, teacher.end_logits, None, valid),
        ]

    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Question],
        features: Sequence[Feature],
        *,
        batch_size: int = 32,
    ) -> list[list[Answer]]:
        """Per question its best answers over all windows, best first."""
        found: list[dict[tuple[int, int], float]] = [defaultdict(lambda: -np.inf) for _ in examples]
        for indices, output, _ in run(model, features, self.collate(tokenizer), batch_size=batch_size):
            starts, ends = output.start_logits.float().cpu().numpy(), output.end_logits.float().cpu().numpy()
            for row, i in enumerate(indices):
                best = found[features[i]["example"]]
                for span, score in _best_spans(starts[row], ends[row], features[i]["offsets"]):
                    best[span] = max(best[span], score)
        return [_answers(example, spans) for example, spans in zip(examples, found, strict=True)]

    def score(self, examples: Sequence[Question], predictions: Sequence[Sequence[Answer]]) -> Metrics:
        """Exact match and token F1 as the official SQuAD 1.1 script: the best over the gold answers."""
        counts = np.zeros((len(examples), 3))
        for row, (example, answers) in enumerate(zip(examples, predictions, strict=True)):
            if not example.answers:
                raise InputError(f"{example.where}: question {example.id} has no gold answer to score against")
            text = answers[0].text if answers else ""
            golds = [gold for gold, _ in example.answers]
            counts[row] = 1, max(exact_match(text, gold) for gold in golds), max(token_f1(text, gold) for gold in golds)

        def formula(sums: np.ndarray) -> dict[str, np.ndarray]:
            return {"f1": ratio(sums[..., 2], sums[..., 0]), "exact_match": ratio(sums[..., 1], sums[..., 0])}

        return Metrics("f1", counts, formula)

    def majority(self, train: Sequence[Question], test: Sequence[Question]) -> list[list[Answer]]:
        """The first words of the context, as many as the median training answer has."""
        words = int(np.median([len(e.answers[0][0].split()) for e in train if e.answers]))
        return [[Answer(" ".join(example.context.split()[:words]), 0, 0.0)] for example in test]

    def write_predictions(
        self,
        path: Path,
        examples: Sequence[Question],
        predictions: Sequence[Sequence[Answer]],
        *,
        known: Collection[str] = (),
    ) -> None:
        """The official script's input: one JSON object from question id to answer text.

        Raises:
            InputError: two questions have one id, as those of XQuAD's languages have.
        """
        first: dict[str, Question] = {}
        for example in examples:
            if first.setdefault(example.id, example) is not example:
                raise InputError(
                    f"{example.where}: question {example.id!r} stands in {first[example.id].where} too, and "
                    "predictions are written by id: write those of one file at a time"
                )
        best = {e.id: answers[0].text if answers else "" for e, answers in zip(examples, predictions, strict=True)}
        with whole_file(path, replace=bool(known), known=known) as partial:
            partial.write_text(json.dumps(best, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


class QuestionAnswerer:
    """Answers questions about passages; transformers 5 has no pipeline for it.

    Args:
        folder: of a question-answering model.
        max_length: tokens per window over the passage.

    Raises:
        ArtefactError: the folder holds no such model with a tokenizer.

    Example:
        >>> QuestionAnswerer("runs/demo/qa")("Who sat?", "The cat sat.")[0].text  # doctest: +SKIP
        'The cat'
    """

    def __init__(self, folder: str | Path, *, max_length: int = 384) -> None:
        self.task = QuestionAnswering()
        self.tokenizer = load_tokenizer(str(folder))
        self.model = self.task.build_model(folder, None).eval()
        self.max_length = min(max_length, position_limit(self.model.config) or max_length)

    def __call__(self, question: str, context: str) -> list[Answer]:
        """The best answers, best first: spans of the passage with the sum of their start and end logits."""
        example = Question(file="", line=0, id="", text=question, context=context, answers=[])
        features = self.task.encode([example], self.tokenizer, self.max_length)
        return self.task.predict(self.model, self.tokenizer, [example], features)[0]


def normalise(answer: str) -> str:
    """Lower case, without punctuation (ASCII), English articles and extra spaces, as the official script."""
    kept = "".join(character for character in answer.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(prediction: str, gold: str) -> bool:
    """Whether the normalised answers are equal."""
    return normalise(prediction) == normalise(gold)


def token_f1(prediction: str, gold: str) -> float:
    """F1 over the words of the normalised answers, 0 to 1."""
    found, wanted = normalise(prediction).split(), normalise(gold).split()
    same = sum((Counter(found) & Counter(wanted)).values())
    return (
        0.0 if same == 0 else 2 * (same / len(found)) * (same / len(wanted)) / (same / len(found) + same / len(wanted))
    )


def _windows(index: int, example: Question, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Feature]:
    question = tokenizer(example.text, add_special_tokens=False)["input_ids"]
    special = tokenizer.num_special_tokens_to_add(pair=True)
    room = max_length - special - len(question)
    text = example.text
    if room < max(8, max_length // 4):
        # A question that leaves no room for the passage is cut; that takes far more words than questions have.
        kept = max_length - special - max(8, max_length // 2)
        if kept < 1:
            raise InputError(f"max_length {max_length} leaves no room for a question and its passage")
        text = tokenizer.decode(question[:kept])
        room = max_length - special - len(tokenizer(text, add_special_tokens=False)["input_ids"])
    encoded = tokenizer(
        text,
        example.context,
        truncation="only_second",
        max_length=max_length,
        stride=room // 3,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features = []
    for window in range(len(encoded["input_ids"])):
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded]
        feature: Feature = {name: list(encoded[name][window]) for name in names}
        offsets = encoded["offset_mapping"][window]
        sides = encoded.sequence_ids(window)
        feature |= {
            "example": index,
            "offsets": [tuple(o) if side == 1 else None for o, side in zip(offsets, sides, strict=True)],
            "boundaries": boundaries(offsets),
        }
        features.append(feature)
    return features


def _positions(offsets: Sequence[tuple[int, int] | None], answer: tuple[str, int]) -> tuple[int, int]:
    """First and last token that touch the answer; (0, 0) if the window does not hold all of it."""
    text, begin = answer
    begin, end = begin + len(text) - len(text.lstrip()), begin + len(text.rstrip())
    context = [(i, offset) for i, offset in enumerate(offsets) if offset is not None and offset[0] < offset[1]]
    if not context or begin < context[0][1][0] or end > context[-1][1][1]:
        return 0, 0
    inside = [i for i, (first, last) in context if last > begin and first < end]
    return (inside[0], inside[-1]) if inside else (0, 0)


def _best_spans(
    starts: np.ndarray, ends: np.ndarray, offsets: Sequence[tuple[int, int] | None]
) -> list[tuple[tuple[int, int], float]]:
    """Spans of characters from the window's best starts and ends, with the sum of their logits."""
    context = np.array([i for i, offset in enumerate(offsets) if offset is not None], dtype=np.int64)
    first = context[np.argsort(-starts[context], kind="stable")[:N_BEST]]
    last = context[np.argsort(-ends[context], kind="stable")[:N_BEST]]
    spans = []
    for i in first:
        for j in last:
            if i <= j < i + MAX_ANSWER_TOKENS:
                begin, end = offsets[i], offsets[j]
                assert begin is not None and end is not None
                spans.append(((begin[0], end[1]), float(starts[i] + ends[j])))
    return spans


def _answers(example: Question, spans: Mapping[tuple[int, int], float]) -> list[Answer]:
    ranked = sorted(spans.items(), key=lambda item: (-item[1], item[0]))[:N_BEST]
    answers = []
    for (start, end), score in ranked:
        text = example.context[start:end]
        answers.append(Answer(text.strip(), start + len(text) - len(text.lstrip()), score))
    return answers


def _read_squad(path: Path) -> list[Question]:
    text = read_text(path)
    try:
        articles = json.loads(text)["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(
            f'{path} is not in SQuAD\'s format: {{"data": [{{"paragraphs": [...]}}]}}; missing {error}'
        ) from error
    lines = _Lines(text)
    return [
        _question(item, paragraph.get("context"), path, lines.of(item.get("id")))
        for paragraph in paragraphs
        for item in paragraph.get("qas", ())
    ]


def _read_rows(path: Path) -> Iterator[Question]:
    """A data set with one question a row, whose "answers" hold a list of texts and one of starts, as "squad" has."""
    for number, row in read_dataset(path):
        item = dict(row)
        if isinstance(answers := row.get("answers"), dict):
            pairs = zip(answers.get("text", ()), answers.get("answer_start", ()), strict=False)
            item["answers"] = [{"text": text, "answer_start": start} for text, start in pairs]
        yield _question(item, row.get("context"), path, number)


def _question(item: Mapping[str, Any], context: Any, path: Path, line: int) -> Question:
    """A question after making sure that it is whole and that its answers stand where they say."""
    where = f"{path}, line {line}"
    try:
        question, identity = item["question"], str(item["id"])
        answers = [(answer["text"], int(answer["answer_start"])) for answer in item.get("answers", ())]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: question {item.get('id')!r} is incomplete: {error}") from error
    if not all(isinstance(text, str) for text in (context, question, *(answer for answer, _ in answers))):
        raise InputError(f"{where}: question {identity!r}: context, question and answers must be texts")
    for answer, start in answers:
        if not answer or start < 0 or context[start : start + len(answer)] != answer:
            place = context.find(answer) if answer else -1
            hint = f"it stands at {place}" if place >= 0 else "it is nowhere in it"
            raise InputError(
                f"{where}: question {identity!r}: the answer {answer[:60]!r} is not in its context at "
                f"character {start} ({hint}); correct answer_start"
            )
    return Question(file=str(path), line=line, id=identity, text=question, context=context, answers=answers)


class _Lines:
    """Finds the line of a question id in the file's text, going forward as the questions come."""

    def __init__(self, text: str) -> None:
        self.text, self.position, self.line = text, 0, 1

    def of(self, identity: Any) -> int:
        place = self.text.find(json.dumps(identity), self.position)
        if place >= 0:
            self.line += self.text.count("\n", self.position, place)
            self.position = place
        return self.line
