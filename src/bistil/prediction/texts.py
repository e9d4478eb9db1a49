"""Classifiers of texts, and answers to questions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bistil.errors import InputError
from bistil.prediction.inputs import Input, Place
from bistil.prediction.predictor import Format, Predictor, Said, Wanted, sure
from bistil.tasks.base import Decoded
from bistil.tasks.multi_label_classification import SEPARATORS, LabelledText
from bistil.tasks.question_answering import Answer, Question, QuestionAnswering
from bistil.tasks.rows import column_of
from bistil.tasks.sequence_classification import TextExample
from bistil.tasks.texts import LABEL, TextOrPair, comma_separated_line


class OfTexts(Predictor):
    """What classifiers and answerers share."""

    formats = ("jsonl", "tsv", "csv")
    _columns: Sequence[str] = ()
    """Of a table that is written: those of the file's first row that go into it."""

    def begin(self, first: Input) -> None:
        self._columns = self._kept(first)

    def _kept(self, one: Input) -> list[str]:
        """The columns of an input's row that are written."""
        return [*one.source] if isinstance(one.source, dict) else []

    def _in_columns(self, one: Input) -> Input:
        """An input whose row has the columns of the file's first one, in their order: a table has one header.

        Raises:
            InputError: its row has others.
        """
        if not isinstance(one.source, dict):
            return one
        more = [name for name in self._kept(one) if name not in self._columns]
        if more:
            raise InputError(
                f"{one.where}: the first row has no {more[0]!r}, and a table has the same columns in every row: write "
                "--format jsonl"
            )
        return replace(one, source={name: one.source.get(name) for name in self._columns})

    def _flat_rows(self, rows: Sequence[Mapping[str, Any]], format: Format, *, first: bool) -> Iterator[str]:
        """Rows of one table, between tabs or commas."""
        if first and rows:
            yield _joined([*rows[0]], format)
        for row in rows:
            yield _joined([_cell(value) for value in row.values()], format)


class Classifier(OfTexts):
    """The label of a text or a pair of texts."""

    texts = "pair"
    forms = ("text", "jsonl", "tsv", "csv")
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
        return [(self.unlabelled(one), [])]

    def unlabelled(self, one: Input) -> TextOrPair:
        """An example of this text."""
        return TextExample(file="", line=one.line, text=one.text, pair=one.second, label=self.labels[0], fields={})

    def answer(self, said: Decoded | None, wanted: Wanted, key: str | None) -> dict[str, Any]:
        """The label, and how sure the model is; no label of an empty text, or where it is not sure enough.

        Args:
            key: of the row's label; None: it has none.
        """
        key = key or "label"
        if said is None:
            return {key: None, "confidence": None}
        confidence = sure(said.confidence[self.labels.index(said.value)])
        return {key: said.value if confidence >= (wanted.threshold or 0) else None, "confidence": confidence}

    def record(self, one: Input, said: Sequence[Said], wanted: Wanted) -> dict[str, Any]:
        row = one.source if isinstance(one.source, dict) else None
        texts = {"text": one.text} if one.second is None else {"text": one.text, "pair": one.second}
        key = None if row is None else column_of(row, LABEL)
        answer = self.answer(said[0].prediction if said else None, wanted, key)
        found = {**(texts if row is None else row), **answer}
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
        rows = [self.record(self._in_columns(one), own, wanted) for one, own in zip(inputs, said, strict=True)]
        # A table has the same columns in every row.
        yield from self._flat_rows(
            [{key: value for key, value in row.items() if key not in ("best", "truncated")} for row in rows],
            format,
            first=first,
        )


class MultiLabelClassifier(Classifier):
    """Any labels of a text or a pair of texts: those that the model is surer of than 0.5, or than the threshold."""

    def unlabelled(self, one: Input) -> TextOrPair:
        return LabelledText(file="", line=one.line, text=one.text, pair=one.second, labels=(), fields={})

    def answer(self, said: Decoded | None, wanted: Wanted, key: str | None) -> dict[str, Any]:
        """The labels, and how sure the model is of each."""
        shares = {} if said is None else dict(zip(self.labels, map(sure, said.confidence), strict=True))
        chosen = () if said is None else said.value
        if wanted.threshold is not None:
            chosen = [label for label, share in shares.items() if share >= wanted.threshold]
        return {key or "labels": list(chosen), "confidences": [shares[label] for label in chosen]}


class Answerer(OfTexts):
    """Spans of a passage that answer a question."""

    texts = "question"
    forms = ("text", "jsonl", "tsv", "csv")
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

    def _kept(self, one: Input) -> list[str]:
        return [name for name in super()._kept(one) if name == "id"]

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
        rows = [self.record(self._in_columns(one), own, wanted) for one, own in zip(inputs, said, strict=True)]
        yield from self._flat_rows([{k: v for k, v in row.items() if k != "best"} for row in rows], format, first=first)


def _joined(cells: Sequence[str], format: Format) -> str:
    """A line of a table; between tabs fields have no tabs and line ends, between commas quotes around them."""
    if format == "csv":
        return comma_separated_line(cells)
    return "\t".join(cell.replace("\t", " ").replace("\n", " ").replace("\r", " ") for cell in cells) + "\n"


def _cell(value: Any) -> str:
    """A value as a field of a table, a list as in files of several labels."""
    if isinstance(value, list):
        return SEPARATORS[0].join(map(_cell, value))
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
