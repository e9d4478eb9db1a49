"""Evaluation text stays unseen: what training examples and unlabelled text share with dev and test sets is left out.

Two texts are the same when their letters and digits are (NFKC, case folded): tokenisation, spaces, punctuation and case
do not tell them apart. Near copies are not found.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bistil.runtime.artefacts import json_digest
from bistil.tasks.base import Task
from bistil.tasks.reading import words_only

# What has fewer words and also fewer letters and digits, such as "Yes." or "Thank you.", is everybody's: it gives no
# test example away. (The letters are for scripts without spaces.)
SHORT_WORDS, SHORT_LETTERS = 3, 12
# A sentence that stands in a passage has so many letters and digits: fewer are a turn of phrase ("In the morning").
INSIDE_LETTERS = 20


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What was left out of learning, for it stands in a dev or test set."""

    train: list[str] = field(default_factory=list, metadata={"help": "places of labelled examples"})
    target: list[str] = field(default_factory=list, metadata={"help": "sentences of unlabelled text"})

    @property
    def counts(self) -> dict[str, int]:
        """For records."""
        return {"train_in_test": len(self.train), "target_text_in_evaluation": len(self.target)}

    def digests(self) -> dict[str, str]:
        """SHA-256 of either list, without empty ones."""
        return {name: json_digest(found) for name, found in vars(self).items() if found}


def comparable(text: str) -> str:
    """The text's letters and digits, by which it is compared; empty where there are none."""
    return "".join(words_only(text))


def is_short(text: str) -> bool:
    """Whether a text is too short to belong to one example: under 3 words and under 12 letters and digits."""
    words = words_only(text)
    return len(words) < SHORT_WORDS and sum(map(len, words)) < SHORT_LETTERS


def without_test_examples(task: Task, examples: Sequence[Any], test: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Training examples that stand in no test set, and those that do.

    The same is the same sentence, the same text or pair, or, for questions, the same passage. Short ones are kept.
    """
    units = (task.unit_of(example) for example in test)
    tested = {comparable(unit) for unit in units if not is_short(unit)}
    kept: list[Any] = []
    repeats: list[Any] = []
    for example in examples:
        (repeats if comparable(task.unit_of(example)) in tested else kept).append(example)
    return kept, repeats


def without_evaluation_text(
    task: Task, sentences: Sequence[str], held_out: Iterable[Any]
) -> tuple[list[str], list[str]]:
    """Sentences of unlabelled text that no dev or test example holds, and those that one does.

    Here short ones count too: leaving out every "Yes." costs nothing. A sentence is also left out when it stands in a
    passage of a held-out question, from 20 letters and digits on.
    """
    texts = {comparable(text) for example in held_out for text in task.texts_of(example)} - {""}
    keys = [comparable(sentence) for sentence in sentences]
    seen = {key for key in keys if key in texts}
    if task.passages:
        seen |= _inside(texts, {key for key in keys if len(key) >= INSIDE_LETTERS})
    kept = [sentence for sentence, key in zip(sentences, keys, strict=True) if key not in seen]
    return kept, [sentence for sentence, key in zip(sentences, keys, strict=True) if key in seen]


def _inside(texts: Iterable[str], keys: Iterable[str]) -> set[str]:
    """Those of the keys that stand in one of the texts.

    Each place of a text is looked up by its next letters, so that time grows with the texts' length only.
    """
    by_start: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        by_start[key[:INSIDE_LETTERS]].append(key)
    found = set()
    for text in texts:
        for place in range(len(text) - INSIDE_LETTERS + 1):
            for key in by_start.get(text[place : place + INSIDE_LETTERS], ()):
                if text.startswith(key, place):
                    found.add(key)
    return found
