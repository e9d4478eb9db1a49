"""Extractive question answering in SQuAD's format."""

import json
import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from bistil.errors import InputError
from bistil.models.complete import tokenizer_of
from bistil.models.families import position_limit
from bistil.models.heads import build_head
from bistil.models.loading import ModelSource
from bistil.runtime.documents import parse_json
from bistil.tasks import register_task
from bistil.tasks.base import Decoded, Example, PredictionPair, Task
from bistil.tasks.batches import TOKEN_AXIS, Feature, Outputs, PerExample, as_array, softmax
from bistil.tasks.boundaries import boundaries
from bistil.tasks.hub import Source, is_file
from bistil.tasks.metrics import Metrics, ratio
from bistil.tasks.reading import (
    NoLabelError,
    Reading,
    RowReport,
    mended_text,
    plain_name,
    read_text,
    require_short,
)
from bistil.tasks.rows import read_rows
from bistil.tasks.words import PLAIN, run_of_words
from bistil.text import IGNORED

# Of each window, so many best starts and ends are combined; an answer has at most so many tokens (BERT's SQuAD script).
N_BEST = 20
MAX_ANSWER_TOKENS = 30
# Context sentences that make up a passage out of plain text.
PASSAGE_SENTENCES = 4
# Words at most of a question made out of plain text.
QUESTION_WORDS = 12


@dataclass(frozen=True, kw_only=True)
class Question(Example):
    """A question about a passage. `answers` are texts with their start, in characters of the context.

    None: it cannot be answered from the passage (SQuAD 2.0).
    """

    id: str
    text: str
    context: str
    answers: list[tuple[str, int]]
    impossible: bool = field(
        default=False, repr=False, metadata={"help": "whether the file says that it has no answer"}
    )


@dataclass(frozen=True)
class Answer:
    """A span of the context and the sum of its start and end logits; an empty text says that there is no answer."""

    text: str
    start: int
    score: float


@register_task
class QuestionAnswering(Task):
    """Start and end of the answer in the passage: `AutoModelForQuestionAnswering`.

    Args:
        unanswerable: whether "no answer" may be predicted; None: if an example of the set has none (SQuAD 2.0).
    """

    kind = "question-answering"
    pipeline_tag = "question-answering"
    # transformers 5 has no pipeline for questions.
    usage = """from bistil.tasks.question_answering import QuestionAnswerer

answer = QuestionAnswerer({folder})
print(answer("a question of yours", "a passage that holds its answer")[0].text)"""
    means_labels = False
    passages = True
    padding: Mapping[str, int] = {"start_positions": IGNORED, "end_positions": IGNORED}
    teacher_outputs: Mapping[str, PerExample | None] = {
        "start_logits": PerExample((TOKEN_AXIS,)),
        "end_logits": PerExample((TOKEN_AXIS,)),
    }

    def metric(self, labels: Sequence[str]) -> str:
        del labels
        return "f1"

    def __init__(self, *, unanswerable: bool | None = None) -> None:
        self.unanswerable = unanswerable

    def read_file(self, path: Source, how: Reading, report: RowReport) -> Iterator[Question]:
        """SQuAD JSON, or one question a row: JSON lines and data sets of its flat layout.

        An answer that stands in its context elsewhere than it says, and only once, is taken from there.
        """
        found = _squad_items(path) if is_file(path) and not plain_name(path).endswith(".jsonl") else None
        if found is None:
            found = [(line, row, row.get("context")) for line, row in read_rows(path, how, report)]
            keys = [line for line, *_ in found]
        else:
            keys = list(range(len(found)))  # many questions may stand in one line
        for key, (line, item, context) in zip(keys, found, strict=True):
            with report.row(key):
                if not isinstance(item, Mapping):
                    raise InputError(f"{path}, line {line}: a question is expected, not {str(item)[:40]}")
                item, context = mended_text([dict(item), context], key, line, report)
                yield _question(item, context, path, line, partial(report.mend, key, line))

    def settled(self, examples: list[Question], how: Reading, report: RowReport) -> list[Question]:
        """Questions with answers, or of SQuAD 2.0, some of whose questions say that they have none."""
        del how
        if not any(example.answers or example.impossible for example in examples):
            raise InputError(
                f"{examples[0].where}: no question has an answer, nor says that it has none (is_impossible); give "
                "files with answers"
            )
        without = sum(not example.answers for example in examples)
        if without:
            report.notice(f"{without:,} of {len(examples):,} questions have no answer: scored as in SQuAD 2.0")
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

    def build_model(self, folder: ModelSource, labels: Sequence[str] | None, *, seed: int = 0) -> PreTrainedModel:
        return build_head(AutoModelForQuestionAnswering, folder, labels, seed=seed, means_labels=self.means_labels)

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

    def decode(
        self, examples: Sequence[Question], features: Sequence[Feature], outputs: Outputs, labels: Sequence[str]
    ) -> list[Decoded]:
        """Per question its best answers over all windows, best first, and their shares of confidence among each other.

        Where questions may be unanswerable, "no answer" comes first if its score is above the best span's: the logits
        of the first token as start and end, in the window where they are lowest (Devlin et al. 2019, section 4.3, with
        a threshold of 0).
        """
        del labels
        found: list[dict[tuple[int, int], float]] = [defaultdict(lambda: -np.inf) for _ in examples]
        none = [np.inf] * len(examples)
        for indices, output in outputs:
            starts, ends = as_array(output["start_logits"]), as_array(output["end_logits"])
            for row, i in enumerate(indices):
                example = features[i]["example"]
                best = found[example]
                none[example] = min(none[example], float(starts[row, 0] + ends[row, 0]))
                for span, score in _best_spans(starts[row], ends[row], features[i]["offsets"]):
                    best[span] = max(best[span], score)
        answers = [_answers(example, spans) for example, spans in zip(examples, found, strict=True)]
        unanswerable = self.unanswerable if self.unanswerable is not None else _of_squad_2(examples)
        predictions = []
        for own, score in zip(answers, none, strict=True):
            if not own:
                predictions.append(Decoded([], np.zeros(0)))
                continue
            scores = [answer.score for answer in own]
            shares = softmax(np.array([*scores, score] if unanswerable else scores))
            if unanswerable and score > scores[0]:
                own.insert(0, Answer("", 0, score))
                shares = np.roll(shares, 1)
            predictions.append(Decoded(own, shares[: len(own)]))
        return predictions

    def in_words(self, example: Question, prediction: Sequence[Answer] | None = None, *, labels: Sequence[str]) -> str:
        """The answer."""
        del labels
        found = [text for text, _ in example.answers] if prediction is None else [one.text for one in prediction]
        return next(iter(found), "") or "no answer"

    def score(
        self,
        examples: Sequence[Question],
        predictions: Sequence[Sequence[Answer]],
        *,
        labels: Sequence[str] | None = None,
    ) -> Metrics:
        """Exact match and token F1 as the official scripts: the best over the gold answers.

        As SQuAD 1.1's if every question has an answer; else as SQuAD 2.0's, also for the questions with an answer
        (HasAns) and without (NoAns) alone.
        """
        del labels
        texts = [answers[0].text if answers else "" for answers in predictions]
        if _of_squad_2(examples):
            return _score_2(examples, texts)
        counts = np.zeros((len(examples), 3))
        for row, (example, text) in enumerate(zip(examples, texts, strict=True)):
            golds = [gold for gold, _ in example.answers]
            counts[row] = 1, max(exact_match(text, gold) for gold in golds), max(token_f1(text, gold) for gold in golds)

        def formula(sums: np.ndarray) -> dict[str, np.ndarray]:
            return {"f1": ratio(sums[..., 2], sums[..., 0]), "exact_match": ratio(sums[..., 1], sums[..., 0])}

        return Metrics("f1", counts, formula)

    def majority(self, train: Sequence[Question], test: Sequence[Question]) -> list[list[Answer]]:
        """The first words of the context, as many as the median training answer has; nothing if none has an answer."""
        lengths = [len(e.answers[0][0].split()) for e in train if e.answers]
        words = int(np.median(lengths)) if lengths else 0
        return [[Answer(" ".join(example.context.split()[:words]), 0, 0.0)] for example in test]

    def check_writable(self, examples: Sequence[Question]) -> None:
        """Predictions are written by id.

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

    def predicted(self, examples: Sequence[Question], predictions: Sequence[Sequence[Answer]]) -> Iterator[str]:
        """The official scripts' input: one JSON object from question id to answer text."""
        best = {e.id: answers[0].text if answers else "" for e, answers in zip(examples, predictions, strict=True)}
        yield json.dumps(best, ensure_ascii=False, indent=1) + "\n"


class QuestionAnswerer:
    """Answers questions about passages; transformers 5 has no pipeline for it.

    Args:
        model: a question-answering model, or its folder.
        tokenizer: of a model in memory; default: the one that it brings.
        max_length: tokens per window over the passage.
        unanswerable: whether an answer may be empty, for there is none in the passage (models of SQuAD 2.0).

    Raises:
        ArtefactError: the folder holds no such model with a tokenizer.

    Example:
        >>> QuestionAnswerer("runs/demo/qa")("Who sat?", "The cat sat.")[0].text  # doctest: +SKIP
        'The cat'
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int = 384,
        unanswerable: bool = False,
    ) -> None:
        self.task = QuestionAnswering(unanswerable=unanswerable)
        self.tokenizer = tokenizer_of(model, tokenizer)
        self.model = self.task.build_model(model, None)
        self.max_length = min(max_length, position_limit(self.model.config) or max_length)

    def __call__(self, question: str, context: str) -> list[Answer]:
        """The best answers, best first: spans of the passage with the sum of their start and end logits."""
        example = Question(file="", line=0, id="", text=question, context=context, answers=[])
        features = self.task.encode([example], self.tokenizer, self.max_length)
        answers: list[Answer] = self.task.predict(self.model, self.tokenizer, [example], features)[0]
        return answers


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


def _length(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens of a text."""
    return len(tokenizer(text, **PLAIN)["input_ids"])


def _cut(text: str, tokenizer: PreTrainedTokenizerBase, most: int) -> str:
    """The text up to the end of a token of it, so that it has at most so many tokens when it is read again."""
    for _, end in reversed(tokenizer(text, **PLAIN)["offset_mapping"][:most]):
        # What was one word may fall into more pieces without its end.
        if _length(text[:end], tokenizer) <= most:
            return text[:end]
    return ""


def _of_squad_2(examples: Sequence[Question]) -> bool:
    """Whether a question of the set has no answer."""
    return any(not example.answers for example in examples)


def _score_2(examples: Sequence[Question], texts: Sequence[str]) -> Metrics:
    """The official script of SQuAD 2.0 (evaluate-v2.0), at a threshold that the predictions have already passed."""
    # Per question: 1, exact, F1; the same again where it has an answer.
    counts = np.zeros((len(examples), 6))
    for row, (example, text) in enumerate(zip(examples, texts, strict=True)):
        golds = [gold for gold, _ in example.answers if normalise(gold)] or [""]
        counts[row, :3] = 1, max(exact_match(text, g) for g in golds), max(_f1_or_equal(text, g) for g in golds)
        counts[row, 3:] = counts[row, :3] * bool(example.answers)

    def formula(sums: np.ndarray) -> dict[str, np.ndarray]:
        parts = {"": sums[..., :3], "/HasAns": sums[..., 3:], "/NoAns": sums[..., :3] - sums[..., 3:]}
        return {
            f"{name}{part}": ratio(own[..., i], own[..., 0])
            for part, own in parts.items()
            for i, name in ((2, "f1"), (1, "exact_match"))
        }

    return Metrics("f1", counts, formula)


def _f1_or_equal(prediction: str, gold: str) -> float:
    """`token_f1`, but 1 where both normalise to nothing, as in SQuAD 2.0."""
    if not normalise(prediction) or not normalise(gold):
        return float(normalise(prediction) == normalise(gold))
    return token_f1(prediction, gold)


def _windows(index: int, example: Question, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Feature]:
    text = example.text
    special = tokenizer.num_special_tokens_to_add(pair=True)
    room = max_length - special - _length(text, tokenizer)
    if room < max(8, max_length // 4):
        # A question that leaves no room for the passage is cut; that takes far more words than questions have.
        kept = max_length - special - max(8, max_length // 2)
        if kept < 1:
            raise InputError(f"max_length {max_length} leaves no room for a question and its passage")
        text = _cut(text, tokenizer, kept)
        room = max_length - special - _length(text, tokenizer)
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


def _squad_items(path: Path) -> list[tuple[int, Mapping[str, Any], Any]] | None:
    """Line, question and context of each question in SQuAD's JSON, nested or flat; None: the file is of JSON lines.

    Raises:
        InputError: the file is neither.
    """
    text = read_text(path)
    try:
        value = parse_json(text, lenient=True)
    except ValueError as error:
        first = text.lstrip().split("\n", 1)[0]
        if first.startswith("{") and '"question"' in first:
            return None
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if isinstance(value, list) or (isinstance(value, dict) and "question" in value):
        return None
    try:
        data = list(value["data"])
        flat = [{"context": row.get("context"), "qas": [row]} for row in data if "question" in row]
        paragraphs = flat or [paragraph for article in data for paragraph in article["paragraphs"]]
        items = [(item, paragraph.get("context")) for paragraph in paragraphs for item in paragraph.get("qas", ())]
        lines = _Lines(text)
        return [
            (lines.of(item.get("id") if isinstance(item, dict) else item), item, context) for item, context in items
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} is not in SQuAD\'s format: {{"data": [{{"paragraphs": [...]}}]}}; missing {error}'
        ) from error


def _question(item: Mapping[str, Any], context: Any, path: Source, line: int, mend: Callable[[str], None]) -> Question:
    """A question after making sure that it is whole and that its answers stand in its context.

    Args:
        mend: called with what was mended.
    """
    where = f"{path}, line {line}"
    if item.get("answers") is None and not item.get("is_impossible"):
        raise NoLabelError(f"{where}: question {item.get('id')!r} has no answers")
    try:
        question, identity = item["question"], str(item["id"])
        answers = _given_answers(item.get("answers") or ())
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{where}: question {item.get('id')!r} is incomplete: {error}") from error
    where = f"{where}: question {identity!r}"
    if not all(isinstance(text, str) for text in (context, question, *(answer for answer, _ in answers))):
        raise InputError(f"{where}: context, question and answers must be texts")
    require_short(context, where)
    require_short(question, where)
    told = [(answer, start) for answer, start in answers if answer.strip()]
    if told and item.get("is_impossible"):
        raise InputError(f"{where}: it is_impossible, but has the answer {told[0][0][:60]!r}; correct one of them")
    placed = []
    for answer, start in told:
        place = _place(context, answer, start)
        if place is None:
            count = context.count(answer)
            hint = "it is nowhere in it" if not count else f"it stands there {count} times"
            hint = f"it stands at {context.find(answer)}" if count == 1 else hint
            raise InputError(
                f"{where}: the answer {answer[:60]!r} is not in its context at character {start} ({hint}); correct "
                "answer_start"
            )
        if place != start:
            mend(f"question {identity!r}: the answer {answer[:60]!r} stands at {place}, not at {start}")
        placed.append((answer, place))
    return Question(
        file=str(path),
        line=line,
        id=identity,
        text=question,
        context=context,
        answers=placed,
        impossible=bool(item.get("is_impossible") or (answers and not told)),
    )


def _given_answers(answers: Any) -> list[tuple[Any, int | None]]:
    """Texts and starts (None: not said), out of a list of answers or, in flat rows, lists of texts and of starts."""
    if isinstance(answers, Mapping):
        texts, starts = answers["text"], answers.get("answer_start", [])
        texts, starts = ([one] if isinstance(one, str | int) else list(one or ()) for one in (texts, starts))
        answers = [
            {"text": text, "answer_start": starts[i] if i < len(starts) else None} for i, text in enumerate(texts)
        ]
    found = []
    for answer in answers:
        start = answer["answer_start"]
        found.append((answer["text"], None if start is None else int(start)))
    return found


def _place(context: str, answer: str, start: int | None) -> int | None:
    """Where the answer stands: where it says, or else at its only place; None: that is not certain."""
    if start is not None and start >= 0 and context.startswith(answer, start):
        return start
    first = context.find(answer)
    if first >= 0 and context.find(answer, first + 1) < 0:
        return first
    if start is None or start < 0:
        return None
    # JavaScript counts in UTF-16, and some tools in bytes.
    for coding, size in (("utf-16-le", 2), ("utf-8", 1)):
        front = context.encode(coding)[: start * size].decode(coding, errors="replace")
        if len(front) != start and context.startswith(answer, len(front)):
            return len(front)
    return None


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
