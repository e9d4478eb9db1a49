"""Spans of tags of every scheme, against seqeval."""

import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOBES, Entities

from bistil.errors import InputError
from bistil.tasks import get_task
from bistil.tasks.spans import scheme_of, spans

TYPES = ("PER", "A-B", "c_d")


def drawn(labels, sentences, seed, longest=9):
    generator = random.Random(seed)
    return [[generator.choice(labels) for _ in range(generator.randrange(longest))] for _ in range(sentences)]


def well_formed(single, begin, inside, end, sentences, seed):
    """Sentences of whole spans, tagged with the given letters."""
    generator = random.Random(seed)
    found = []
    for _ in range(sentences):
        tags = []
        for _ in range(generator.randrange(6)):
            kind, size = generator.choice(TYPES), generator.randrange(4)
            letters = [single] if size == 1 else [begin, *[inside] * (size - 2), end] if size else ["O"]
            tags += [letter if letter == "O" else f"{letter}-{kind}" for letter in letters]
        found.append(tags)
    return found


@pytest.mark.parametrize("labels", [["O", *(f"{p}-{t}" for p in "BIES" for t in TYPES)], ["O", "B", "I", "E", "S"]])
def test_any_sequence_is_read_as_seqeval_reads_it(labels):
    for tags in drawn(labels, 5000, seed=0):
        assert spans(tags, "iobes") == set(get_entities(tags)), tags


@pytest.mark.parametrize(("letters", "scheme"), [("UBIL", BILOU), ("SBIE", IOBES)])
def test_well_formed_spans_are_those_of_the_strict_scheme(letters, scheme):
    sentences = well_formed(*letters, 500, seed=1)
    strict = Entities(sentences, scheme).entities
    for tags, wanted in zip(sentences, strict, strict=True):
        assert spans(tags, "bilou") == {(e.tag, e.start, e.end - 1) for e in wanted}, tags


def test_the_same_spans_in_every_scheme():
    """BILOU and BMES are IOBES under other letters; `_` separates as `-` does; so do small letters."""
    plain = drawn(["O", *(f"{p}-{t}" for p in "BIES" for t in TYPES)], 500, seed=2)
    for tags in plain:
        for letters in ({"E": "L", "S": "U"}, {"I": "M"}, {p: p.lower() for p in "BIESO"}):
            others = [letters.get(tag[0], tag[0]) + tag[1:] for tag in tags]
            assert spans(others, "bilou") == spans(tags, "iobes")
        assert spans([tag.replace("-", "_", 1) for tag in tags], "iobes") == spans(tags, "iobes")


def test_bare_types():
    assert spans(["PER", "PER", "O", "PER", "LOC"], "types") == {("PER", 0, 1), ("PER", 3, 3), ("LOC", 4, 4)}


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (["O", "B-PER", "I-PER"], "iob2"),
        (["O", "I-PER"], "iob2"),
        (["O", "B_PER", "I_PER"], "iob2"),
        (["O", "B-PER", "E-PER", "S-PER"], "iobes"),
        (["O", "B-PER", "L-PER", "U-PER"], "bilou"),
        (["O", "U-PER"], "bilou"),
        (["O", "B-PER", "M-PER", "E-PER"], "bmes"),
        (["B", "M", "E", "S"], "bmes"),
        (["O", "B", "I"], "iob2"),
        (["O"], "iob2"),
        (["O", "person-actor", "art-film"], "types"),
        (["O", "PER", "LOC"], "types"),
        (["O", "NOUN", "VERB"], None),
        (["PER", "LOC"], None),
        (["NN", "VB", "O"], None),
        (["S", "V"], None),
        (["0", "1", "2"], None),
    ],
)
def test_the_scheme_follows_from_the_label_set(labels, scheme):
    assert scheme_of(labels) == scheme
    assert get_task("token-classification").metric(labels) == ("f1" if scheme else "accuracy")


def test_the_metric_follows_from_the_model_s_labels_not_from_a_lucky_file(tmp_path):
    (tmp_path / "a.txt").write_text("Anna U-PER\nsings O\n")
    task = get_task("token-classification")
    examples = task.read([tmp_path / "a.txt"])
    labels = ["O", "U-PER", "B-PER", "L-PER"]
    assert task.score(examples, [["O", "O"]], labels=labels).scores["f1"] == 0
    assert task.score(examples, [["U-PER", "O"]], labels=labels).scores == {
        "f1": 100, "precision": 100, "recall": 100, "accuracy": 100, "f1/PER": 100,
    }  # fmt: skip
    assert task.score(examples, [["O", "O"]], labels=["NOUN", "VERB"]).primary == "accuracy"
    assert get_task("token-classification", scheme="none").score(examples, [["O", "O"]]).primary == "accuracy"
    with pytest.raises(InputError, match="no tag scheme 'iob'; schemes: iob1, iob2"):
        get_task("token-classification", scheme="iob")
