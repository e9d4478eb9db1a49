"""Teacher and student may know the same tokens under other ids: a trimmed vocabulary against the full one, two trims.

Losses compare position by position, so both must read the same pieces of text. Each example is encoded with both
tokenizers; where the tokens begin and end at the same places, the feature carries the teacher's ids beside the
student's. Where they do not (a word whose token the trimmed vocabulary lacks), the example cannot be compared.
"""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from bistil.tasks import differing_boundaries
from bistil.tasks.batches import Feature


def same_ids(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> bool:
    """Whether two tokenizers turn every text into the same ids, as far as their definitions are the same."""
    if (student.pad_token_id, student.unk_token_id) != (teacher.pad_token_id, teacher.unk_token_id):
        return False
    ours, theirs = (one.backend_tokenizer.to_str() for one in (student, teacher))
    return ours == theirs or _definition(ours) == _definition(theirs)


def with_teacher_ids(student: Sequence[Feature], teacher: Sequence[Feature]) -> tuple[list[Feature], set[int]]:
    """Features that both models can read.

    Args:
        student, teacher: the same examples, encoded with either tokenizer.

    Returns:
        The student's features with "teacher_input_ids" (and "teacher_token_type_ids" where either has types), without
        those of examples whose token boundaries differ; and the indices of these examples.
    """
    differing = differing_boundaries(student, teacher)
    sides = ([one for one in side if one["example"] not in differing] for side in (student, teacher))
    return [_with_ids(ours, theirs) for ours, theirs in zip(*sides, strict=True)], differing


def _with_ids(ours: Feature, theirs: Feature) -> Feature:
    both = ours | {"teacher_input_ids": theirs["input_ids"]}
    if "token_type_ids" in ours or "token_type_ids" in theirs:
        # Some teachers know one type only, and must not get the student's.
        both["teacher_token_type_ids"] = theirs.get("token_type_ids", [0] * len(theirs["input_ids"]))
    return both


def _definition(tokenizer: str) -> dict[str, Any]:
    """A tokenizer's JSON without what depends on its last call."""
    return {key: value for key, value in json.loads(tokenizer).items() if key not in ("truncation", "padding")}
