"""Spans of words by tags of any usual scheme: IOB1, IOB2, IOBES, BILOU, BMES, and bare types.

A tag is a prefix, a separator (`-` or `_`) and a type: B begins a span, I or M goes on with it, E or L ends it, S or U
is one of a single word; O is outside. Bare types ("PER") have no prefix: neighbours of one type are one span.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bistil.errors import InputError

SCHEMES = ("iob1", "iob2", "iobes", "bilou", "bmes", "types", "none")
OUTSIDE = "O"
PREFIXED = re.compile(r"([BIESULM])[-_](.+)", re.IGNORECASE)
# Prefixes without a type, as of word segmentation or chunks of one kind.
BARE = frozenset("BIESULMO")
# The same roles under the letters of IOBES.
ROLES = {"L": "E", "U": "S", "M": "I"}
# A type by itself: letters in words of three or more, such as "person" or "art-broadcast program".
TYPE = re.compile(r"[^\W\d_]{3,}(?:[-_/ &.]?[^\W\d_]+)*")
# Tags of words in Universal Dependencies and in the Penn Treebank that a type could look like.
PARTS_OF_SPEECH = frozenset(
    [
        *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "CONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PREP", "PRON", "PROPN"),
        *("PRT", "PUNCT", "SCONJ", "SYM", "VERB", "JJR", "JJS", "NNP", "NNPS", "NNS", "PDT", "POS", "PRP", "RBR"),
        *("RBS", "VBD", "VBG", "VBN", "VBP", "VBZ", "WDT", "WRB"),
    ]
)
# Where at least this share of the words fits a scheme, what does not is a slip.
NEARLY_ALL = 0.9

Span = tuple[str, int, int]


def scheme_of(labels: Iterable[str]) -> str | None:
    """The scheme that a set of labels is of; None where they mark no spans.

    IOB1 and IOB2 have the same labels and are read alike, so that both are "iob2".

    Example:
        >>> scheme_of(["O", "B-PER", "I-PER"]), scheme_of(["O", "U-PER", "B-LOC", "L-LOC"]), scheme_of(["NOUN", "VERB"])
        ('iob2', 'bilou', None)
    """
    known = set(labels)
    inside = {label for label in known if not _is_outside(label)}
    if not inside:
        # A set in which nothing is marked still marks spans; there are none.
        return "iob2" if known else None
    letters = {match[1].upper() for label in inside if (match := PREFIXED.fullmatch(label))}
    if all(PREFIXED.fullmatch(label) for label in inside):
        return _by_letters(letters)
    if inside <= BARE and "B" in inside and len(inside | (known & {OUTSIDE})) > 1:
        return _by_letters(inside)
    if known != inside and not letters and all(map(TYPE.fullmatch, inside)) and not inside & PARTS_OF_SPEECH:
        return "types"
    return None


def check_scheme(scheme: str | None) -> None:
    """Refuse a scheme that is not known.

    Raises:
        InputError: with those that are.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise InputError(f"there is no tag scheme {scheme!r}; schemes: {', '.join(SCHEMES)}")


def spans(tags: Sequence[str], scheme: str) -> set[Span]:
    """Spans (type, first word, last word) of one sentence.

    Ill-formed sequences are read as conlleval and seqeval do: what follows a span's end or is of another type begins a
    span.
    """
    found: set[Span] = set()
    begin, previous, previous_type = 0, OUTSIDE, ""
    for position, tag in enumerate([*tags, OUTSIDE]):
        role, kind = role_of(tag, scheme)
        if previous != OUTSIDE and (previous in "ES" or role in ("B", "S", OUTSIDE) or kind != previous_type):
            found.add((previous_type, begin, position - 1))
            previous = OUTSIDE
        if role != OUTSIDE and previous == OUTSIDE:
            begin = position
        previous, previous_type = role, kind
    return found


def role_of(tag: str, scheme: str) -> tuple[str, str]:
    """What a tag does in its span, B, I, E, S or O (outside), and the span's type."""
    return _bare_type(tag) if scheme == "types" else _role(tag)


def fits(tag: str) -> bool:
    """Whether a tag is O or has a prefix and a type."""
    return tag == OUTSIDE or PREFIXED.fullmatch(tag) is not None


def marks_spans(counts: Mapping[str, int]) -> bool:
    """Whether tags, counted over the words, are of a scheme with prefixes but for slips."""
    fitting = sum(count for tag, count in counts.items() if fits(tag))
    marked = any(fits(tag) and tag != OUTSIDE for tag in counts)
    others = {tag for tag in counts if not fits(tag)} - {"o", "0"}
    return marked and (not others or fitting >= NEARLY_ALL * sum(counts.values()))


def slips(counts: Counter[str]) -> set[str]:
    """The tags that do not fit where nearly all others do; none where the tags mark no spans."""
    return {tag for tag in counts if not fits(tag)} if marks_spans(counts) else set()


def _by_letters(letters: Iterable[str]) -> str:
    known = set(letters)
    if known & {"U", "L"}:
        return "bilou"
    if "M" in known:
        return "bmes"
    return "iobes" if known & {"E", "S"} else "iob2"


def _is_outside(label: str) -> bool:
    return label in (OUTSIDE, "o")


def _role(tag: str) -> tuple[str, str]:
    """Prefix in the letters of IOBES, and type ("_" where there is none)."""
    if _is_outside(tag):
        return OUTSIDE, ""
    match = PREFIXED.fullmatch(tag)
    letter, kind = (match[1].upper(), match[2]) if match else (tag[:1].upper(), tag[1:].lstrip("-_") or "_")
    letter = ROLES.get(letter, letter)
    # What is of no scheme, such as a slip of a model with other labels, is outside.
    return (letter, kind) if letter in "BIES" else (OUTSIDE, "")


def _bare_type(tag: str) -> tuple[str, str]:
    return (OUTSIDE, "") if _is_outside(tag) else ("I", tag)
