"""The component for spaCy's pipelines, against what the model says of the same words; skipped where spaCy is not."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import bistil
from bistil.errors import InputError
from bistil.tasks.words import split_words

spacy = pytest.importorskip("spacy")
from test_prediction import ANSWERS, LABEL, TAGS, TEXTS, TREES, models  # noqa: E402

from bistil.prediction.spacy_component import SpacyComponent  # noqa: E402

__all__ = ["models"]


def pipe(folder, **config):
    nlp = spacy.blank("xx")
    nlp.add_pipe("bistil", config={"model": str(folder), **config})
    return nlp


def test_the_factory_is_where_spacy_looks_for_it():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["spacy_factories"]["bistil"].partition(":")
    assert callable(getattr(import_module(module), name)) and "spacy>=3.8" in project["optional-dependencies"]["spacy"]


def test_entities_are_those_of_the_same_words(models):
    docs = list(pipe(models / TAGS).pipe([*TEXTS, "", "  two  spaces ", "x"]))
    model = bistil.load(models / TAGS)
    for doc in docs:
        words = [token.text for token in doc if not token.is_space]
        assert words == split_words(doc.text) or "'" in doc.text
        wanted = model([words])[0]["entities"] if words else []
        found = [(one.label_, "".join(one.text.split())) for one in doc.ents]
        assert found == [(one["type"], "".join(one["text"].split())) for one in wanted]
    assert any(doc.ents for doc in docs)
    sure = pipe(models / TAGS, threshold=0.6)
    assert 0 < sum(len(doc.ents) for doc in sure.pipe(TEXTS)) < sum(len(doc.ents) for doc in docs)


def test_parts_of_speech_and_categories(models):
    doc = pipe(models / "pos")(TEXTS[0])
    assert [token.pos_ for token in doc] == bistil.load(models / "pos")(TEXTS[0])["labels"]
    doc = pipe(models / LABEL)(TEXTS[0])
    record = bistil.load(models / LABEL)(TEXTS[0], n_best=3)
    assert doc.cats == pytest.approx({one["label"]: one["confidence"] for one in record["best"]}, abs=1e-4)


def test_trees(models):
    text = f"{TEXTS[0]} {TEXTS[1]}  And (so on)!"
    doc = pipe(models / TREES)(text)
    assert [one.text.strip() for one in doc.sents] == [TEXTS[0], TEXTS[1], "And (so on)!"]
    model = bistil.load(models / TREES)
    for sentence in doc.sents:
        words = [token for token in sentence if not token.is_space]
        (tree,) = model([[token.text for token in words]])[0]["sentences"]
        for token, head, relation in zip(words, tree["heads"], tree["relations"], strict=True):
            assert token.head == (words[head - 1] if head else token)
            assert token.dep_ == (relation if head else "ROOT")
    nlp = spacy.blank("xx")
    nlp.add_pipe("sentencizer", config={"punct_chars": [","]})
    nlp.add_pipe("bistil", config={"model": str(models / TREES)})
    assert len(list(nlp("one two, three. four").sents)) == 2
    for empty in ("", " ", "\n\n"):
        assert nlp(empty).text == empty


def test_what_no_doc_has_a_place_for(models):
    with pytest.raises(InputError, match="is for question-answering, which no Doc has a place for"):
        SpacyComponent(str(models / ANSWERS))
    with pytest.raises(InputError, match="has no use for it"):
        SpacyComponent(str(models / TREES), threshold=0.5)
