"""Vectors of texts, out of an encoder of sentences."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bistil.errors import InputError
from bistil.prediction.inputs import Input, Place
from bistil.prediction.predictor import Format, Predictor, Said, Wanted
from bistil.prediction.sentence_task import TextForVector
from bistil.runtime.quiet import kept_threads
from bistil.tasks.batches import run

DIGITS = 6
"""Behind the point, of numbers that are written."""


class SentenceEncoder(Predictor):
    """The vector of a text."""

    texts = "pair"
    forms = ("text", "jsonl", "tsv", "csv")
    formats = ("jsonl",)

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Vectors (texts, width) of float32, one per text and in their order, of empty ones too.

        Raises:
            InputError: one of them is no text.
        """
        if isinstance(texts, str) or not all(isinstance(one, str) for one in texts):
            raise InputError("a list of texts is expected")
        examples = [TextForVector(file="", line=0, text=one) for one in texts]
        with kept_threads(self.threads):
            features = self.task.encode(examples, self.tokenizer, self.max_length, labels=[])
            collate = self.task.collate(self.tokenizer, positions=self.engine.positions)
            outputs = run(self.engine, features, collate, batch_size=batch_size)
            found = [one.value for one in self.task.decode(examples, features, outputs, [])]
        return np.stack(found) if found else np.zeros((0, 0), np.float32)

    def asked(self, given: Any) -> Input:
        if not isinstance(given, str):
            raise InputError(f"a text is expected, not {given!r:.60}")
        return Input(where="the text", line=0, text=given)

    def examples(self, one: Input, wanted: Wanted) -> list[tuple[Any, list[Place]]]:
        del wanted
        if one.second is not None:
            raise InputError(f"{one.where}: a pair of texts has no vector; give one text")
        return [(TextForVector(file="", line=one.line, text=one.text), [])] if one.text.strip() else []

    def record(self, one: Input, said: Sequence[Said], wanted: Wanted) -> dict[str, Any]:
        del wanted
        row = one.source if isinstance(one.source, dict) else {"text": one.text}
        vector = [round(float(x), DIGITS) for x in said[0].prediction.value] if said else None
        return {**row, "embedding": vector, **({"truncated": True} if any(own.truncated for own in said) else {})}

    def native(
        self, inputs: Sequence[Input], said: Sequence[Sequence[Said]], wanted: Wanted, *, format: Format, first: bool
    ) -> Iterator[str]:
        del inputs, said, wanted, first
        raise InputError(f"vectors are written as jsonl, not as {format}")
