"""Students of sentence encoders: folders of SentenceTransformers, vectors through every engine."""

import importlib.util
import json

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel, AutoTokenizer

import bistil
from bistil.errors import ArtefactError, InputError
from bistil.export.folder import export_model
from bistil.measuring.benchmark import benchmark
from bistil.models.sentences import E5, SentenceForm, sentence_form, write_sentence_form
from bistil.runtime.artefacts import RECORD
from bistil.vocabulary import trim_vocabulary

TEXTS = [*tiny.ENGLISH.splitlines(), *tiny.SWAHILI.splitlines()[:3], "", "a"]
MEAN, FIRST = SentenceForm("mean", "query: ", True), SentenceForm("first", "", False)
FILES = {"modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", "sentence_bert_config.json"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("sentences")


def encoder(place, family="bert", form=MEAN):
    folder = place / f"{family}-{form.pooling}"
    if not folder.exists():
        tiny.save(tiny.model(family, layers=4), folder, family)
        write_sentence_form(folder, form, width=32, length=138)
    return folder


def plain(folder, texts, form):
    """Vectors by transformers alone."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        with torch.inference_mode():
            states = model(**tokenizer(form.prefix + text, return_tensors="pt")).last_hidden_state[0]
        vector = states.mean(0) if form.pooling == "mean" else states[0]
        found.append((vector / vector.norm() if form.normalise else vector).numpy())
    return np.stack(found)


@pytest.mark.parametrize("form", [MEAN, FIRST])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert"])
def test_vectors_are_those_of_transformers(place, family, form):
    folder = encoder(place, family, form)
    assert sentence_form(folder) == form
    found = bistil.load(folder).encode(TEXTS, batch_size=4)
    assert found.shape == (len(TEXTS), 32) and found.dtype == np.float32
    assert np.allclose(found, plain(folder, TEXTS, form), atol=1e-5)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5) == form.normalise


@pytest.mark.parametrize("form", [MEAN, FIRST])
def test_sentence_transformers_loads_the_folder(place, form):
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer

    folder = encoder(place, "bert", form)
    model = SentenceTransformer(str(folder), device="cpu")
    assert np.allclose(model.encode(TEXTS), bistil.load(folder).encode(TEXTS), atol=1e-5)
    assert model.max_seq_length == 138
    # And back again.
    model.save(str(place / f"again-{form.pooling}"))
    assert sentence_form(place / f"again-{form.pooling}") == form


def test_what_is_made_of_a_sentence_encoder_is_one(tmp_path):
    """The packaged teacher has no files of SentenceTransformers; what is trimmed and distilled out of it has."""
    teacher = tmp_path / "e5"
    tiny.save(tiny.model(layers=4), teacher)
    assert sentence_form(teacher) is None
    (teacher / RECORD).write_text(json.dumps({"kind": "pretrained", "name": "e5-small"}))
    assert sentence_form(teacher) == E5 == MEAN
    texts = {name: tmp_path / f"{name}.txt" for name in ("en", "sw")}
    texts["en"].write_text(tiny.ENGLISH)
    texts["sw"].write_text(tiny.SWAHILI)
    trim_vocabulary(teacher, {name: [file] for name, file in texts.items()}, tmp_path / "trimmed")
    assert sentence_form(tmp_path / "trimmed") == E5
    # What the texts are made of is as it was.
    sentences = tiny.ENGLISH.splitlines()
    expected = plain(teacher, sentences, SentenceForm("mean", "", True))
    assert np.allclose(
        bistil.load(tmp_path / "trimmed", sentences=SentenceForm("mean", "", True)).encode(sentences),
        expected,
        atol=1e-5,
    )
    from bistil.distillation.general import distill_general

    training = bistil.TrainingSettings(steps=2, batch_size=2)
    settings = bistil.Phase1Settings(training=training, block_length=32)
    files = {name: [file] for name, file in texts.items()}
    students = [bistil.Student(reduction=2)]
    distill_general(
        tmp_path / "trimmed", students, files, tmp_path / "out", settings=settings, seed=0, work=tmp_path / "work"
    )
    student = tmp_path / "out/lrf2"
    assert sentence_form(student) == E5
    record = json.loads((student / RECORD).read_text())
    assert set(record["files"]) > FILES
    card = (student / "README.md").read_text()
    assert "sentence-transformers" in card and "SentenceTransformer(" in card
    vectors = bistil.load(student).encode(sentences)
    assert np.allclose(vectors, plain(student, sentences, E5), atol=1e-5)
    # In memory too, and written again.
    loaded = AutoModel.from_pretrained(tmp_path / "trimmed")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    found = bistil.distill(loaded, tokenizer, files, students=students, settings=settings)["lrf2"]
    found.save_pretrained(tmp_path / "saved")
    assert sentence_form(tmp_path / "saved") == E5


@pytest.mark.parametrize("engine", ["onnxruntime", "ctranslate2"])
def test_exported_vectors(place, tmp_path, engine, command_line):
    pytest.importorskip(engine, reason="an extra")
    folder = encoder(place)
    exact = bistil.load(folder).encode(TEXTS)
    record = export_model(folder, tmp_path / "float32", engine=engine, precision="float32")
    assert record["task"] == "sentence-embedding" and record["proof"]["float32"]["largest_difference"] <= 1e-4
    assert np.allclose(bistil.load(tmp_path / "float32").encode(TEXTS), exact, atol=1e-4)
    code, said, _ = command_line("export", folder, "--engine", engine, "-o", tmp_path / "int8")
    assert code == 0 and "cosine of the int8 vectors of 12 texts" in said
    close = bistil.load(tmp_path / "int8").encode(TEXTS)
    assert np.abs(close - exact).max() > 0 and (close * exact).sum(axis=1).min() > 0.98
    measured = benchmark({"here": folder, "int8": tmp_path / "int8"}, texts=TEXTS, lengths=[8], rounds=1)
    assert [row.engine for row in measured.values()] == ["pytorch", engine]
    assert measured["int8"].flops == measured["here"].flops > 0
    # Where the folder does not say it, the command does.
    bare = tmp_path / "bare"
    tiny.save(tiny.model(layers=4), bare)
    options = ["--pooling", "mean", "--prefix", "query: ", "--precision", "float32"]
    code, _, said = command_line("export", bare, "--engine", engine, *options, "-o", tmp_path / "said")
    assert code == 0, said
    assert np.allclose(bistil.load(tmp_path / "said").encode(TEXTS), plain(bare, TEXTS, MEAN), atol=1e-4)


def test_vectors_of_a_file(place, tmp_path, command_line):
    source = tmp_path / "in.txt"
    source.write_text("\n".join(TEXTS[:2]) + "\n\n")
    code, _, said = command_line("predict", encoder(place), source, "-o", tmp_path / "out.jsonl")
    assert code == 0, said
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = plain(encoder(place), TEXTS[:2], MEAN)
    assert np.allclose([row["embedding"] for row in rows[:2]], expected, atol=1e-5)
    assert rows[0]["text"] == TEXTS[0] and all(row["embedding"] is None for row in rows[2:])


def test_what_gives_no_vectors_is_one_line(place, tmp_path, command_line):
    bare = tmp_path / "bare"
    tiny.save(tiny.model(layers=1), bare)
    with pytest.raises(ArtefactError, match="fine-tune it first"):
        bistil.load(bare)
    with pytest.raises(InputError, match="name the pooling"):
        bistil.load(bare, task="sentence-embedding")
    with pytest.raises(InputError, match="pooling is 'max'"):
        SentenceForm("max")
    with pytest.raises(InputError, match="a list of texts"):
        bistil.load(encoder(place)).encode("a text")
    code, _, said = command_line("export", encoder(place), "--labelled", __file__, "-o", tmp_path / "out")
    assert code == 2 and "have no labels" in said
    for file, stated, part in (
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.Pooling"}, {"type": "a.Dense"}], "Dense"),
        ("modules.json", [{}], "not as SentenceTransformers does"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools its states in a way"),
    ):
        write_sentence_form(bare, MEAN, width=32, length=None)
        (bare / file).write_text(json.dumps(stated))
        with pytest.raises(ArtefactError, match=part):
            bistil.load(bare)
        for one in FILES:
            (bare / one).unlink()
    for stated in ({"pooling": "mean", "prefix": 5}, {"pooling": ["mean"]}, {"more": 1}, "mean"):
        (bare / RECORD).write_text(json.dumps({"kind": "exported model", "engine": "onnxruntime", "sentences": stated}))
        with pytest.raises(ArtefactError, match="not as SentenceTransformers does"):
            bistil.load(bare)
