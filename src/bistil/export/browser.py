"""What a page in a browser must know of a student besides its graph: how texts become tokens, and outputs labels."""

import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

from bistil.engines.onnx import OnnxEngine
from bistil.errors import InputError
from bistil.models.tokenizers import definition
from bistil.prediction.predictor import Predictor
from bistil.tasks import Task
from bistil.tasks.batches import PADDING_MULTIPLE
from bistil.tasks.multi_label_classification import THRESHOLD, MultiLabelClassification
from bistil.tasks.spans import role_of
from bistil.tasks.token_classification import TokenClassification
from bistil.tasks.words import Frame

TASKS = ("token-classification", "sequence-classification", "multi-label-classification")
"""Kinds of tasks that the page shows."""
# What page/tokenizer.mjs does, by the part of tokenizer.json.
KNOWN = {
    "normalizer": {
        *("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Replace", "Lowercase", "Strip", "StripAccents", "Prepend"),
        *("BertNormalizer", "Precompiled"),
    },
    "pre_tokenizer": {
        *("Sequence", "Metaspace", "WhitespaceSplit", "Whitespace", "BertPreTokenizer", "Punctuation", "Digits"),
        *("Split", "ByteLevel"),
    },
    "model": {"Unigram", "WordPiece", "BPE", "WordLevel"},
}
# Where parts stand within a part.
WITHIN = ("normalizers", "pretokenizers")


def student_values(predictor: Predictor) -> dict[str, Any]:
    """What page/student.mjs reads in `student.json`.

    Args:
        predictor: with an `OnnxEngine`.

    Raises:
        InputError: the page does not know a part of the tokenizer.
    """
    task, tokenizer = predictor.task, predictor.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast) and isinstance(predictor.engine, OnnxEngine)
    check_tokenizer(tokenizer)
    values: dict[str, Any] = {
        "task": task.kind,
        "labels": predictor.labels,
        "max_length": predictor.max_length,
        "positions": predictor.engine.positions,
        "padding": {"multiple": PADDING_MULTIPLE, "id": tokenizer.pad_token_id or 0},
        "unicode": unicode_tables(tokenizer),
    }
    if isinstance(task, TokenClassification):
        frame = Frame.of(tokenizer)
        unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id
        scheme = task.span_scheme(predictor.labels)
        return values | {
            "form": "words",
            "frame": [frame.before, frame.after],
            "unknown": unknown,
            "markers": _markers(tokenizer),
            "roles": None if scheme is None else [role_of(label, scheme) for label in predictor.labels],
        }
    several = isinstance(task, MultiLabelClassification)
    return values | {
        "form": "texts",
        "templates": [_template(tokenizer, pair=False), _template(tokenizer, pair=True)],
        "threshold": THRESHOLD if several else None,
    }


def shown_in_browser(task: Task) -> bool:
    """Whether the page shows what a model of this task says; one of your own is shown like what it is made of."""
    return any(getattr(one, "kind", "") in TASKS for one in type(task).__mro__)


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make sure that the page knows every part of a tokenizer.

    Raises:
        InputError: it does not.
    """
    state = definition(tokenizer)
    for part, known in KNOWN.items():
        for kind in _kinds(state[part]):
            if kind not in known:
                raise InputError(f"the page in the browser has no {kind}, which the tokenizer has as a {part}")
    if state["model"].get("dropout"):
        raise InputError("the tokenizer drops merges at random: the page in the browser does not")


def _kinds(part: Any) -> Iterator[str]:
    if part is None:
        return
    yield part["type"]
    for name in WITHIN:
        for one in part.get(name, ()):
            yield from _kinds(one)


def unicode_tables(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What the library tokenizers knows of characters, as far as this tokenizer uses it: browsers know a later Unicode.

    Returns:
        "canonical" and "compatible" (what the latter has besides): character -> its parts in normal form; "classes":
        canonical combining class -> its characters; and the characters that are "punctuation" to the library,
        "marks" and "accents" (which it strips) and "controls" (which it drops).
    """
    state = definition(tokenizer)
    kinds = {*_kinds(state["normalizer"]), *_kinds(state["pre_tokenizer"])}
    canonical = _normal("NFD") if kinds & {"NFC", "NFD", "NFKC", "NFKD", "BertNormalizer"} else {}
    compatible = _normal("NFKD") if kinds & {"NFKC", "NFKD"} else {}
    return {
        "canonical": canonical,
        "compatible": {char: parts for char, parts in compatible.items() if canonical.get(char) != parts},
        "classes": _classes() if canonical else {},
        "punctuation": _punctuation() if kinds & {"BertPreTokenizer", "Punctuation"} else "",
        "marks": _dropped("StripAccents") if "StripAccents" in kinds else "",
        "accents": _dropped("BertNormalizer", strip_accents=True) if "BertNormalizer" in kinds else "",
        "controls": _dropped("BertNormalizer", clean_text=True) if "BertNormalizer" in kinds else "",
    }


# Stands between characters, so that all are asked about at once: a letter that nothing is composed with.
BETWEEN = "\U00010000"


@cache
def _characters() -> list[str]:
    """All characters but surrogates, private ones, and Hangul, which is taken apart by a formula."""
    ranges = ((0, 0xAC00), (0xD7A4, 0xD800), (0xF900, 0xF0000))
    return [chr(code) for first, end in ranges for code in range(first, end) if chr(code) != BETWEEN]


def _each(normalizer: Any) -> Iterator[tuple[str, str]]:
    """Each character, and what the normaliser makes of it."""
    made: str = normalizer.normalize_str(BETWEEN.join(_characters()))
    return zip(_characters(), made.split(BETWEEN), strict=True)


@cache
def _normal(form: str) -> dict[str, str]:
    return {char: parts for char, parts in _each(getattr(tokenizers.normalizers, form)()) if char != parts}


@cache
def _classes() -> dict[str, str]:
    found: dict[str, str] = {}
    for char in _characters():
        if kind := unicodedata.combining(char):
            found[str(kind)] = found.get(str(kind), "") + char
    return found


@cache
def _dropped(name: str, **options: bool) -> str:
    """What a normaliser leaves nothing of."""
    nothing = {"clean_text": False, "strip_accents": False, "lowercase": False, "handle_chinese_chars": False}
    made = getattr(tokenizers.normalizers, name)(**(nothing | options if options else {}))
    return "".join(char for char, left in _each(made) if not left)


@cache
def _punctuation() -> str:
    pieces = tokenizers.pre_tokenizers.Punctuation("isolated").pre_tokenize_str(BETWEEN.join(_characters()))
    return "".join(piece for piece, _ in pieces if len(piece) == 1 and piece != BETWEEN)


def _markers(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that stand for no text: bare boundary markers (`tasks.words.encode_words`)."""
    known = tokenizer.get_vocab()
    return sorted(i for token, i in known.items() if not tokenizer.convert_tokens_to_string([token]).strip())


def _template(tokenizer: PreTrainedTokenizerFast, *, pair: bool) -> list[list[Any]]:
    """[id, token type] of each special token around a text or a pair, and ["A" or "B", token type] of the texts."""
    for text in ("a", *tokenizer.get_vocab()):
        encoded = tokenizer(text, text if pair else None)
        types = encoded.get("token_type_ids") or [0] * len(encoded["input_ids"])
        found: list[list[Any]] = []
        for token, kind, sequence in zip(encoded["input_ids"], types, encoded.sequence_ids(), strict=True):
            own = token if sequence is None else "AB"[sequence]
            if sequence is None or not found or found[-1][0] != own:
                found.append([own, kind])
        if {"A", *("B" if pair else ())} <= {own for own, _ in found}:
            return found
    raise InputError("the tokenizer leaves nothing of a text")
