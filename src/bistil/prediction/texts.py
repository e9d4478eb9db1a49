"""Classifiers of texts, and answers to questions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bistil.errors import InputError
from bistil.prediction.inputs import Input, Place
from bistil.prediction.predictor import Format, Predictor, Said, Wanted, sure
from bistil.tasks.question_answering import Answer, Question, QuestionAnswering
from bistil.tasks.rows import column_of
from bistil.tasks.sequence_classification import TextExample
from bistil.tasks.texts import LABEL


class OfTexts(Predictor):
    """What classifiers and answerers share."""

    formats = ("jsonl", "tsv")

    def _flat_rows(self, rows: Sequence[Mapping[str, Any]], *, first: bool) -> Iterator[str]:
        """Rows of one table."""
        if first and rows:
            yield "\t".join(rows[0]) + "\n"
        for row in rows:
            yield "\t".join(_cell(value) for value in row.values()) + "\n"


class Classifier(OfTexts):
    """The label of a text or a pair of texts."""

    texts = "pair"
    forms = ("text", "jsonl", "tsv")
    takes = frozenset({"threshold", "n_best"})

    def asked(self, given: Any) -> Input:
        text, pair = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise InputError(f"a text, or a tuple of two, is expected, not {given!r:.60}")
        return Input(where="the text", line=0, text=text, second=pair)

    def examples(self, one: Input, wanted: Wanted) -> list[tuple[Any, list[Place]]]:
        del wanted
        if not one.text.strip():
            return []
        label = self.labels[0]
        return [(TextExample(file="", line=one.line, text=one.text, pair=one.second, label=label, fields={}), [])]

    def _label(self, said: Sequence[Said], wanted: Wanted) -> tuple[str | None, float | None]:
        """The label and its confidence; no label of an empty text, or where the model is not sure enough."""
        if not said:
            return None, None
        prediction = said[0].prediction
        confidence = sure(prediction.confidence[self.labels.index(prediction.value)])
        return (prediction.value if confidence >= (wanted.threshold or 0) else None), confidence

    def record(self, one: Input, said: Sequence[Said], wanted: Wanted) -> dict[str, Any]:
        row = one.source if isinstance(one.source, dict) else None
        label, confidence = self._label(said, wanted)
        key = (row and column_of(row, LABEL)) or "label"
        texts = {"text": one.text} if one.second is None else {"text": one.text, "pair": one.second}
        found = {**(texts if row is None else row), key: label, "confidence": confidence}
        if wanted.n_best > 1 and said:
            shares = said[0].prediction.confidence
            order = (-shares).argsort(kind="stable")[: wanted.n_best].tolist()
            found["best"] = [{"label": self.labels[i], "confidence": sure(shares[i])} for i in order]
        if any(one.truncated for one in said):
            found["truncated"] = True
        return found

    def native(
        self, inputs: Sequence[Input], said: Sequence[Sequence[Said]], wanted: Wanted, *, format: Format, first: bool
    ) -> Iterator[str]:
        del format
        rows = [self.record(one, own, wanted) for one, own in zip(inputs, said, strict=True)]
        # A table has the same columns in every row.
        yield from self._flat_rows(
            [{key: value for key, value in row.items() if key not in ("best", "truncated")} for row in rows],
            first=first,
        )


class Answerer(OfTexts):
    """Spans of a passage that answer a question."""

    texts = "question"
    forms = ("text", "jsonl", "tsv")
    takes = frozenset({"threshold", "n_best", "unanswerable"})
    task: QuestionAnswering

    def asked(self, given: Any) -> Input:
        if not (isinstance(given, tuple) and len(given) == 2 and all(isinstance(one, str) for one in given)):
            raise InputError(f"a tuple of a question and its passage is expected, not {given!r:.60}")
        return Input(where="the question", line=0, text=given[0], second=given[1])

    def examples(self, one: Input, wanted: Wanted) -> list[tuple[Any, list[Place]]]:
        del wanted
        if not one.text.strip() or not (one.second or "").strip():
            return []
        assert one.second is not None
        return [(Question(file="", line=one.line, id="", text=one.text, context=one.second, answers=[]), [])]

    def said(self, inputs: Sequence[Input], wanted: Wanted, *, batch_size: int = 32) -> list[list[Said]]:
        self.task.unanswerable = wanted.unanswerable
        return super().said(inputs, wanted, batch_size=batch_size)

    def _answers(self, said: Sequence[Said], wanted: Wanted) -> list[dict[str, Any]]:
        prediction = said[0].prediction if said else None
        found: list[tuple[Answer, float]] = (
            [] if prediction is None else list(zip(prediction.value, map(sure, prediction.confidence), strict=True))
        )
        return [
            {
                "answer": answer.text or None,
                "start": answer.start if answer.text else None,
                "end": answer.start + len(answer.text) if answer.text else None,
                "confidence": confidence,
            }
            for answer, confidence in found[: wanted.n_best]
            if confidence >= (wanted.threshold or 0)
        ]

    def record(self, one: Input, said: Sequence[Said], wanted: Wanted) -> dict[str, Any]:
        row = one.source if isinstance(one.source, dict) else {}
        answers = self._answers(said, wanted)
        best = answers[0] if answers else {"answer": None, "start": None, "end": None, "confidence": None}
        known = {"id": row["id"]} if "id" in row else {}
        return {**known, "question": one.text, **best, **({"best": answers} if wanted.n_best > 1 else {})}

    def native(
        self, inputs: Sequence[Input], said: Sequence[Sequence[Said]], wanted: Wanted, *, format: Format, first: bool
    ) -> Iterator[str]:
        del format
        rows = [self.record(one, own, wanted) for one, own in zip(inputs, said, strict=True)]
        yield from self._flat_rows([{k: v for k, v in row.items() if k != "best"} for row in rows], first=first)


def _cell(value: Any) -> str:
    """A value as a field of a table: without tabs and line ends."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")
