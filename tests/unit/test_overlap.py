"""Evaluation text is kept out of what is learnt from: what counts as the same, and that the fit path does it."""

import json
import random

import pytest
import tiny

from bistil.distillation.task import read_task_data
from bistil.errors import InputError
from bistil.settings.recipe import TaskSettings
from bistil.tasks import get_task
from bistil.tasks.overlap import _inside, comparable, is_short, without_evaluation_text

TAGS, TREES, TEXTS, ANSWERS = (
    "token-classification",
    "dependency-parsing",
    "sequence-classification",
    "question-answering",
)


def test_letters_and_digits_decide():
    assert (
        comparable("Don't PANIC, Ｎairobi!")
        == comparable('"do n\'t panic , nairobi"')
        != comparable("Do panic, Nairobi")
    )
    assert comparable("我 喜欢 猫 。") == comparable("我喜欢猫。")
    assert comparable("...") == ""


@pytest.mark.parametrize(
    ("text", "short"),
    [("Yes.", True), ("Thank you!", True), ("", True), ("EU rejects call", False), ("International Committee", False)],
)
def test_short_texts(text, short):
    assert is_short(text) == short
    assert is_short("我喜欢猫。") and not is_short("我喜欢在星期天和我的猫一起。")


def conll(*sentences):
    return "\n\n".join("\n".join(f"{word} O" for word in sentence.split()) for sentence in sentences) + "\n"


def data(tmp_path, kind, train, *, dev="", test="", target=(), **options):
    names = {TAGS: "txt", TREES: "conllu", TEXTS: "jsonl", ANSWERS: "json"}
    paths = {}
    for part, text in (("train", train), ("dev", dev), ("test", test)):
        path = tmp_path / f"{part}.{names[kind]}"
        path.write_text(text, encoding="utf-8")
        paths[part] = [str(path)] if text else []
    settings = TaskSettings(kind=kind, train=paths["train"], dev=paths["dev"], test={"sw": paths["test"]})
    return read_task_data(settings, target_sentences=list(target), **options)


def test_sentences(tmp_path, capsys):
    """Tokenised in the test set, plain in the text; short ones may stay in training and not in the text."""
    found = data(
        tmp_path,
        TAGS,
        conll("A cat sat .", "Rain fell , all night .", "Yes ."),
        dev=conll("Water boils at 100 degrees ."),
        test=conll("rain fell all night", "Yes !"),
        target=["Rain fell, all night.", "Yes.", "Water boils at 100 degrees!", "Rain fell all day.", "..."],
    )
    assert [" ".join(example.words) for example in found.train] == ["A cat sat .", "Yes ."]
    assert found.target_sentences == ["Rain fell all day.", "..."]
    assert found.left_out.counts == {"train_in_test": 1, "target_text_in_evaluation": 3}
    assert found.left_out.train == [f"{tmp_path / 'train.txt'}, line 6"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("[bistil] 1 of 3 training examples are left out") and "train.txt, line 6" in said[0]
    assert said[1].startswith("[bistil] 3 of 5 lines of target text are left out")


def test_training_may_share_the_dev_set(tmp_path, capsys):
    """Dev examples choose a checkpoint; what is measured in the end are the test sets."""
    found = data(tmp_path, TAGS, conll("A cat sat ."), dev=conll("A cat sat ."))
    assert len(found.train) == 1 and not found.left_out.digests()
    assert not capsys.readouterr().err


def test_trees(tmp_path):
    def tree(*words):
        rows = ("\t".join([str(i), w, "_", "X", "_", "_", str(i - 1), "dep", "_", "_"]) for i, w in enumerate(words, 1))
        return "\n".join(rows) + "\n\n"

    found = data(
        tmp_path, TREES, tree("A", "cat", "sat") + tree("It", "rained", "again"), test=tree("It", "rained", "again"),
        target=["It rained again!", "It rained."],
    )  # fmt: skip
    assert len(found.train) == 1 and found.target_sentences == ["It rained."]


def test_pairs_are_the_same_as_pairs_and_seen_one_by_one(tmp_path):
    """An NLI premise comes with several hypotheses: training keeps another one; plain text must hold neither text."""

    def pairs(*rows):
        return "".join(json.dumps({"premise": a, "hypothesis": b, "label": "x"}) + "\n" for a, b in rows)

    found = data(
        tmp_path, TEXTS,
        pairs(("The cat sat down.", "It moved a lot."), ("The cat sat down.", "A cat was there.")),
        test=pairs(("the cat sat down", "a cat was there")),
        target=["The cat sat down.", "A cat was there.", "It moved a lot."],
    )  # fmt: skip
    assert [example.pair for example in found.train] == ["It moved a lot."]
    assert found.target_sentences == ["It moved a lot."]


def squad(*contexts, question="What is it all about?"):
    paragraphs = [
        {"context": c, "qas": [{"id": f"{i}", "question": question, "answers": [{"text": c[:3], "answer_start": 0}]}]}
        for i, c in enumerate(contexts)
    ]
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


def test_passages(tmp_path):
    """Another question about a test passage is left out, and every sentence of the passage from plain text."""
    passage = "Rain fell all night. The river stayed calm all day. Yes. Nobody crossed."
    found = data(
        tmp_path, ANSWERS, squad(passage, "A cat sat on the mat.", question="Who crossed the river?"),
        test=squad(passage.upper()),
        target=[
            "The river stayed calm all day.", "What is it all about?",
            "Yes.", "Nobody crossed.", "The river stayed calm all night.",
        ],
    )  # fmt: skip
    assert [example.context for example in found.train] == ["A cat sat on the mat."]
    assert found.target_sentences == ["Yes.", "Nobody crossed.", "The river stayed calm all night."]


def test_containment_against_the_plain_way():
    generator = random.Random(0)

    def text(length):
        return "".join(generator.choices("ab", k=length))

    texts = {text(200) for _ in range(50)}
    keys = {text(20) for _ in range(300)} | {one[60 : 80 + i] for i, one in enumerate(sorted(texts)[:9])}
    assert _inside(texts, keys) == {key for key in keys if any(key in one for one in texts)}
    assert 9 <= len(_inside(texts, keys)) < len(keys)


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"every example of .*train.txt stands in a test set"):
        data(tmp_path, TAGS, conll("A cat sat ."), test=conll("a cat sat"))
    with pytest.raises(InputError, match="every line of the target language's text"):
        data(tmp_path, TAGS, conll("A cat sat ."), test=conll("It rained again"), target=["It rained again."])


def test_the_digests_are_those_of_what_is_left_out(tmp_path):
    test, target = conll("It rained again"), ["It rained again!", "A cat sat."]
    one = data(tmp_path, TAGS, conll("A cat sat ."), test=test, target=target).left_out.digests()
    other = data(tmp_path, TAGS, conll("A cat sat .", "It rained again ."), test=test, target=target).left_out.digests()
    more = data(tmp_path, TAGS, conll("A cat sat ."), test=test, target=[*target, "it rained again"]).left_out.digests()
    assert one.keys() == {"target"} and other == {"target": one["target"], "train": other["train"]}
    assert more["target"] != one["target"]


def test_a_large_text_takes_a_second():
    task = get_task(TAGS)
    lines = [f"{line} {i}" for i in range(2000) for line in tiny.ENGLISH.splitlines()]
    kept, seen = without_evaluation_text(task, lines, [])
    assert kept == lines and not seen
