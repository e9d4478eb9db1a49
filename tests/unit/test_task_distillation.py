"""Phase 2: batches of two kinds, the head's parameters, one path for teacher-forced, self-taught, sparse and dense."""

import json

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from bistil.distillation.task import MixedData, fit_task, head_parameters, read_task_data
from bistil.errors import ArtefactError, InputError
from bistil.recipe import FinetuneSettings, Phase2Settings, SparseSettings, TaskSettings, TrainingSettings
from bistil.student import copy_student


def features(count, start=0):
    return [{"input_ids": [1] * (3 + i % 7), "number": start + i} for i in range(count)]


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 3.0])
def test_batches_are_of_one_kind_in_the_given_ratio(ratio):
    data = MixedData(features(40), features(30, 1000), ratio=ratio)
    order = data.training_order(items=4 * 60, batch_size=4, seed=3)
    of_target = order.reshape(60, 4) >= 40
    assert (of_target.all(axis=1) | ~of_target.any(axis=1)).all()
    assert of_target[:, 0].mean() == pytest.approx(ratio / (1 + ratio), abs=1 / 60)
    # Spread evenly: no stretch of batches is far from the ratio.
    running = np.cumsum(of_target[:, 0]) - np.arange(1, 61) * ratio / (1 + ratio)
    assert np.abs(running).max() <= 1
    assert np.array_equal(order, data.training_order(items=4 * 60, batch_size=4, seed=3))
    assert not np.array_equal(order, data.training_order(items=4 * 60, batch_size=4, seed=4))


def test_an_epoch_sees_every_labelled_example_once():
    data = MixedData(features(40), features(30, 1000), ratio=1.0)
    assert data.epoch_size == 80
    order = data.training_order(items=80, batch_size=4, seed=0)
    assert sorted(order[order < 40]) == list(range(40))


def test_without_target_text_there_are_only_labelled_batches():
    data = MixedData(features(8), [], ratio=1.0)
    assert data.epoch_size == 8
    assert data.training_order(items=16, batch_size=4, seed=0).max() < 8


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_head_is_what_lies_outside_the_encoder(family):
    model = tiny.model(family, head=AutoModelForSequenceClassification, num_labels=3)
    head = head_parameters(model)
    assert head
    assert any("classifier" in name for name in head)
    assert not any("embeddings" in name or ".layer" in name for name in head)


@pytest.fixture
def task(tmp_path):
    rows = [
        {"text": line, "label": "capital" if line.startswith(("The", "My")) else "other"}
        for line in tiny.ENGLISH.splitlines()
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = TaskSettings(kind="sequence-classification", train=[str(path)], dev=[str(path)])
    return read_task_data(settings, target_sentences=tiny.SWAHILI.splitlines())


@pytest.fixture
def models(tmp_path):
    teacher = tiny.model("xlm-roberta", layers=4, initializer_range=0.1)
    teacher.save_pretrained(tmp_path / "mmt")
    tiny.tokenizer("xlm-roberta").save_pretrained(tmp_path / "mmt")
    copy_student(tmp_path / "mmt", [2, 4], output=tmp_path / "small")
    return tmp_path / "mmt", tmp_path / "small"


TRAINING = TrainingSettings(epochs=25.0, batch_size=5, learning_rate=3e-3)
SPARSE = SparseSettings(density=0.2, dense_epochs=10.0, sparse_epochs=25.0)


def fit(start, task, output, **options):
    return fit_task(
        start,
        task,
        output=output,
        max_length=32,
        work=output.with_name(output.name + "-work"),
        seed=0,
        label="",
        **options,
    )


@pytest.mark.parametrize("sparse", [SPARSE, None])
def test_teacher_then_student_learn_the_task(models, task, tmp_path, sparse):
    mmt, small = models
    figures = fit(mmt, task, tmp_path / "teacher", settings=FinetuneSettings(sparse=sparse, training=TRAINING))
    assert figures["dev"]["accuracy"] >= 90
    settings = Phase2Settings(sparse=sparse, training=TRAINING, target_text=1.0)
    figures = fit(small, task, tmp_path / "student", settings=settings, teacher=tmp_path / "teacher")
    assert figures["target_text"] == 10
    assert figures["dev"]["accuracy"] >= 80
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert model.config.num_hidden_layers == 2
    assert model.config.id2label == {0: "capital", 1: "other"}
    # The capturing attention was for training; the saved model runs as any other.
    assert model.config._attn_implementation == "sdpa"


def test_a_teacher_of_other_labels_is_refused(models, task, tmp_path):
    mmt, small = models
    other = AutoModelForSequenceClassification.from_pretrained(
        mmt, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}
    )
    other.save_pretrained(tmp_path / "other")
    tiny.tokenizer("xlm-roberta").save_pretrained(tmp_path / "other")
    settings = Phase2Settings(sparse=None, training=TRAINING)
    with pytest.raises(ArtefactError, match="labels"):
        fit(small, task, tmp_path / "student", settings=settings, teacher=tmp_path / "other")
    assert not (tmp_path / "student").exists()


def test_target_text_must_be_there_when_it_is_wanted(models, task, tmp_path):
    mmt, small = models
    fit(mmt, task, tmp_path / "teacher", settings=FinetuneSettings(sparse=None, training=TRAINING))
    task.target_sentences = []
    settings = Phase2Settings(sparse=None, training=TRAINING, target_text=1.0)
    with pytest.raises(InputError, match="target_text"):
        fit(small, task, tmp_path / "student", settings=settings, teacher=tmp_path / "teacher")


def test_tagging_runs_through_the_same_path(models, tmp_path):
    mmt, small = models
    lines = tiny.ENGLISH.splitlines()
    conll = "\n\n".join("\n".join(f"{w} {'B-X' if w[0].isupper() else 'O'}" for w in line.split()) for line in lines)
    (tmp_path / "train.conll").write_text(conll + "\n")
    path = str(tmp_path / "train.conll")
    task = read_task_data(
        TaskSettings(kind="token-classification", train=[path], dev=[path]), target_sentences=tiny.SWAHILI.splitlines()
    )
    fit(mmt, task, tmp_path / "teacher", settings=FinetuneSettings(sparse=None, training=TRAINING))
    settings = Phase2Settings(sparse=SPARSE, training=TRAINING, target_text=0.5)
    figures = fit(small, task, tmp_path / "student", settings=settings, teacher=tmp_path / "teacher")
    assert figures["dev"]["f1"] > 50
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "student").config.num_labels == 2
    assert torch.isfinite(torch.tensor(figures["dev"]["f1"]))
