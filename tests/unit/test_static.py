"""Static embeddings as an opponent: the means, the classifier above them, and the folder that they are kept in."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import tiny

from bistil.distillation.static import fit_linear, static_embeddings, write_static
from bistil.distillation.task_data import gather
from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.measuring.evaluation import evaluate_folder
from bistil.models.static import FILE, StaticClassifier, StaticEmbeddings
from bistil.tasks import get_task
from bistil.tasks.reading import Reading

needs_model2vec = pytest.mark.skipif(
    find_spec("model2vec") is None or find_spec("skeletoken") is None,
    reason="model2vec is not installed: pip install 'bistil[model2vec]'",
)
TOPICS = "".join(f"{'sports' if i % 2 else 'health'}\t{line}\n" for i, line in enumerate(tiny.ENGLISH.splitlines()))


def test_a_sentence_is_the_mean_of_the_tokens_that_count():
    own = StaticEmbeddings(np.array([[9, 9], [3, 0], [0, 4]], dtype=np.float32), np.array([False, True, True]))
    found = own.of(
        np.array([[0, 1, 2, 1], [0, 2, 1, 1], [0, 0, 0, 0]]), np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1] * 4])
    )
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 1], [0, 0]], atol=1e-6)


def test_the_classifier_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    points = generator.normal(size=(60, 5)).astype(np.float32)
    classes = (points @ generator.normal(size=(5, 3))).argmax(axis=1)
    weight, bias = fit_linear(points, classes, 3, 2.0)
    oracle = LogisticRegression(C=2.0, tol=1e-8, max_iter=1000).fit(points, classes)
    # Of a softmax a constant is free.
    np.testing.assert_allclose(weight, oracle.coef_, atol=2e-3)
    np.testing.assert_allclose(bias - bias.mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=2e-3)


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(ArtefactError, match=r"static\.safetensors cannot be read"):
        StaticClassifier.load(tmp_path, classes=2)


def test_so_is_one_of_other_sizes(tmp_path):
    own = StaticEmbeddings(np.ones((3, 2), np.float32), np.ones(3, bool))
    made = StaticClassifier(own, np.ones((2, 2), np.float32), np.ones(2, np.float32))
    made.save(tmp_path)
    assert StaticClassifier.load(tmp_path, classes=2).logits(np.array([[1]]), np.array([[1]])).shape == (1, 2)
    with pytest.raises(ArtefactError, match="of other sizes than its 4 labels"):
        StaticClassifier.load(tmp_path, classes=4)
    replace(made, embeddings=replace(own, counted=np.ones(2, bool))).save(tmp_path)
    with pytest.raises(ArtefactError, match="of other sizes"):
        StaticClassifier.load(tmp_path, classes=2)


def test_without_model2vec_the_line_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "model2vec.distill", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bistil\[model2vec\]'"):
        static_embeddings(None, None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tiny.save(tiny.model("bert", layers=2), folder)
    return folder


@needs_model2vec
def test_embeddings_and_means_are_model2vecs(teacher):
    from model2vec.distill import distill_from_model
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(teacher).eval(), AutoTokenizer.from_pretrained(teacher)
    theirs = distill_from_model(model, tokenizer, device="cpu", token_remove_pattern=None, quantize_to="float32")
    lines = tiny.ENGLISH.splitlines()
    given = tokenizer(lines, padding=True, return_tensors="np")
    ours = static_embeddings(model, tokenizer).of(given["input_ids"], given["attention_mask"])
    np.testing.assert_allclose(ours, theirs.encode(lines), atol=1e-5)


@needs_model2vec
def test_a_folder_is_scored_like_any_model(teacher, tmp_path):
    (tmp_path / "en.tsv").write_text(f"label\ttext\n{TOPICS}")
    data = gather(
        get_task("sequence-classification"), {"": [str(tmp_path / "en.tsv")]}, dev=[str(tmp_path / "en.tsv")],
        how=lambda language: Reading(language=language),
    )  # fmt: skip
    tried = write_static(teacher, data, tmp_path / "static", max_length=32)
    found = evaluate_folder(tmp_path / "static", files=[tmp_path / "en.tsv"], task="sequence-classification")
    assert found["score"] == pytest.approx(100 * max(tried.values())) and max(tried.values()) > 0.9


def test_other_tasks_are_refused(teacher, tmp_path):
    (tmp_path / "en.conll").write_text("Asha B-PER\nlives O\n\nhere O\n")
    data = gather(get_task("token-classification"), {"": [str(tmp_path / "en.conll")]}, how=lambda _: Reading())
    with pytest.raises(InputError, match="they serve sequence-classification, and the task is token-classification"):
        write_static(teacher, data, tmp_path / "static", max_length=32)
