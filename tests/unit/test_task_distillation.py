"""Phase 2: batches of two kinds, the head's parameters, one path for teacher-forced, self-taught, sparse and dense."""

import json
from dataclasses import replace

import fitting
import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

from bistil.distillation.finetune import finetune
from bistil.distillation.student import copy_student
from bistil.distillation.task import MixedData, _sample, head_parameters, read_task_data
from bistil.distillation.teacher_ids import same_ids
from bistil.errors import ArtefactError, InputError, RecipeError
from bistil.runtime.artefacts import folder_digest
from bistil.settings.recipe import (
    FinetuneSettings,
    ObjectiveSettings,
    Phase2Settings,
    SparseSettings,
    TaskSettings,
    TrainingSettings,
    without_target_text,
)
from bistil.tasks.sequence_classification import SequenceClassification
from bistil.training.loop import planned_steps


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
    tiny.save(teacher, tmp_path / "mmt", "xlm-roberta")
    copy_student(tmp_path / "mmt", [2, 4], output=tmp_path / "small")
    (tmp_path / "small/bistil.json").unlink()  # tests give it other tokenizers
    return tmp_path / "mmt", tmp_path / "small"


TRAINING = TrainingSettings(epochs=25.0, batch_size=5, learning_rate=3e-3)
SPARSE = SparseSettings(density=0.2, dense_epochs=10.0, sparse_epochs=25.0)


def fit(start, task, output, **options):
    return fitting.fit(
        start, task, output, max_length=32, work=output.with_name(output.name + "-work"), label="", **options
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


SHORT = TrainingSettings(epochs=2.0, batch_size=5, learning_rate=3e-3)


def renumber(folder, family, *, keep):
    """Give a task model the same vocabulary under other ids: it computes the same as before."""
    tokenizer, old = tiny.renumbered(family, keep=keep)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight[old])
    model.config.pad_token_id = tokenizer.pad_token_id
    (folder / "bistil.json").unlink(missing_ok=True)  # the folder is no longer as it was written
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(("family", "keep"), [("xlm-roberta", 5), ("bert", 0)])
def test_a_teacher_with_other_ids_teaches_the_same(task, tmp_path, capsys, family, keep):
    """The same vocabulary in another order, for BERT with other ids of the padding and special tokens too."""
    tiny.save(tiny.model(family, layers=4, initializer_range=0.1), tmp_path / "mmt", family)
    copy_student(tmp_path / "mmt", [2, 4], output=tmp_path / "small")
    fit(tmp_path / "mmt", task, tmp_path / "teacher", settings=FinetuneSettings(sparse=None, training=SHORT))
    settings = Phase2Settings(sparse=None, training=SHORT, target_text=1.0)
    found = []
    for name in ("same", "other"):
        figures = fit(tmp_path / "small", task, tmp_path / name, settings=settings, teacher=tmp_path / "teacher")
        found.append((load_file(tmp_path / name / "model.safetensors"), figures))
        other = renumber(tmp_path / "teacher", family, keep=keep)
    assert not same_ids(tiny.tokenizer(family), other)
    (weights, figures), (again, others) = found
    assert "differing" not in figures
    nothing = {"differing": 0, "of": 10}
    assert others.pop("differing") == {"labelled examples": nothing, "sentences of target text": nothing}
    assert others == figures
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert "left out" not in capsys.readouterr().err


def test_sentences_that_the_teacher_cuts_elsewhere_are_counted_and_left_out(models, task, tmp_path, capsys):
    """The student's vocabulary lacks words: where they occur, tokens differ from the teacher's, as offsets show."""
    mmt, small = models
    fit(mmt, task, tmp_path / "teacher", settings=FinetuneSettings(sparse=None, training=SHORT))
    whole = tiny.tokenizer("xlm-roberta")
    state = json.loads(whole.backend_tokenizer.to_str())
    for entry in state["model"]["vocab"]:
        if entry[0] in ("and", "▁ku"):
            entry[0] += "~"
    lacking = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        **{name: str(token) for name, token in whole.special_tokens_map.items()},
    )
    lacking.save_pretrained(small)

    def offsets(tokenizer, text):
        return tokenizer(text, truncation=True, max_length=32, return_offsets_mapping=True)["offset_mapping"]

    texts = {
        "labelled examples": tiny.ENGLISH.splitlines(),
        "sentences of target text": tiny.SWAHILI.splitlines(),
    }
    expected = {
        name: {"differing": sum(offsets(whole, line) != offsets(lacking, line) for line in lines), "of": 10}
        for name, lines in texts.items()
    }
    assert all(0 < one["differing"] < 10 for one in expected.values())
    settings = Phase2Settings(sparse=None, training=SHORT, target_text=1.0)
    figures = fit(small, task, tmp_path / "student", settings=settings, teacher=tmp_path / "teacher")
    assert figures["differing"] == expected
    assert figures["examples"] == 10 - expected["labelled examples"]["differing"]
    assert figures["target_text"] == 10 - expected["sentences of target text"]["differing"]
    said = capsys.readouterr().err
    for name, one in expected.items():
        assert f"{one['differing']} of 10 {name} are left out" in said
    recorded = json.loads((tmp_path / "student/bistil.json").read_text())["metrics"]
    assert recorded["differing"] == expected


def test_a_teacher_that_cuts_everything_elsewhere_is_refused(models, task, tmp_path):
    mmt, small = models
    fit(mmt, task, tmp_path / "teacher", settings=FinetuneSettings(sparse=None, training=SHORT))
    tiny.tokenizer("bert").save_pretrained(small)
    settings = Phase2Settings(sparse=None, training=SHORT)
    with pytest.raises(InputError, match="elsewhere than the student's in all 10 labelled examples: "):
        fit(small, task, tmp_path / "student", settings=settings, teacher=tmp_path / "teacher")
    assert not (tmp_path / "student").exists()


def test_a_sample_of_the_target_text_is_in_order_and_nested():
    sentences = [str(i) for i in range(100)]
    small, large = (_sample(sentences, size, seed=3) for size in (10, 40))
    assert len(small) == 10 and set(small) < set(large) and small == sorted(small, key=int)
    assert small == _sample(sentences, 10, seed=3) != _sample(sentences, 10, seed=4)
    assert _sample(sentences, None, seed=0) is sentences and _sample(sentences, 100, seed=0) is sentences
    with pytest.raises(InputError, match="target_sentences is 0"):
        _sample(sentences, 0, seed=0)


def test_target_sentences_limits_what_is_learnt_from(models, task, tmp_path):
    mmt, small = models
    fit(mmt, task, tmp_path / "teacher", settings=FinetuneSettings(sparse=None, training=SHORT))
    settings = Phase2Settings(sparse=None, training=SHORT, target_sentences=4)
    figures = fit(small, task, tmp_path / "student", settings=settings, teacher=tmp_path / "teacher")
    assert figures["target_text"] == 4


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_without_target_text_the_steps_stay(ratio):
    settings = Phase2Settings(sparse=SPARSE, training=TRAINING, target_text=ratio)
    control = without_target_text(settings)
    assert control.target_text == 0 and control.sparse is not None
    for before, after in (
        (SPARSE.dense_epochs, control.sparse.dense_epochs),
        (SPARSE.sparse_epochs, control.sparse.sparse_epochs),
        (TRAINING.epochs, control.training.epochs),
    ):
        mixed = MixedData(features(40), features(30), ratio=ratio).epoch_size
        steps = [planned_steps(n, replace(TRAINING, epochs=e)) for n, e in ((mixed, before), (40, after))]
        assert steps[0] == steps[1]
    by_steps = replace(settings, sparse=None, training=TrainingSettings(steps=7))
    assert without_target_text(by_steps).training.steps == 7


def test_a_teacher_of_other_labels_is_refused(models, task, tmp_path):
    mmt, small = models
    other = AutoModelForSequenceClassification.from_pretrained(
        mmt, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}
    )
    tiny.save(other, tmp_path / "other", "xlm-roberta")
    settings = Phase2Settings(sparse=None, training=TRAINING)
    with pytest.raises(ArtefactError, match="labels"):
        fit(small, task, tmp_path / "student", settings=settings, teacher=tmp_path / "other")
    assert not (tmp_path / "student").exists()


@pytest.fixture
def teachers(models, task, tmp_path):
    """Folders of two task teachers, of two seeds."""
    for seed in (0, 1):
        settings = FinetuneSettings(sparse=None, training=SHORT)
        fit(models[0], task, tmp_path / f"teacher-{seed}", settings=settings, seed=seed)
    return [tmp_path / "teacher-0", tmp_path / "teacher-1"]


def test_two_teachers_stand_as_one_in_folders_and_in_memory(models, task, teachers, tmp_path):
    _, small = models
    settings = Phase2Settings(sparse=None, training=SHORT)
    for name, several in (("one", teachers[:1]), ("two", teachers), ("turned", teachers[::-1])):
        fit(small, task, tmp_path / name, settings=settings, teacher=several)
    fit(small, task, tmp_path / "plain", settings=settings, teacher=teachers[0])
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "turned", "plain")}

    def same(one, other):
        return all(torch.equal(value, weights[other][name]) for name, value in weights[one].items())

    # States and maps are the first one's, so their order counts.
    assert same("one", "plain") and not same("two", "one") and not same("two", "turned")
    record = json.loads((tmp_path / "two/bistil.json").read_text())
    parents = record["parents"]
    assert [parents[name]["name"] for name in ("teacher", "teacher 2")] == ["teacher-0", "teacher-1"]
    assert parents["teacher 2"]["digest"] == folder_digest(teachers[1]) != parents["teacher"]["digest"]
    assert record["settings"]["teachers"] == 2
    card = (tmp_path / "two/README.md").read_text()
    assert "task teachers: `teacher-0`, `teacher-1`" in card
    assert "distilled from the averaged predictions of 2 task teachers" in card
    alone = json.loads((tmp_path / "one/bistil.json").read_text())
    assert alone["parents"].keys() == {"start", "teacher"} and alone["settings"]["teachers"] == 1
    assert "; task teacher: `teacher-0`" in (tmp_path / "one/README.md").read_text()

    loaded = [AutoModelForSequenceClassification.from_pretrained(one) for one in teachers]
    tokenizer = tiny.tokenizer("xlm-roberta")
    found = finetune(
        AutoModel.from_pretrained(small), task, tokenizer=tokenizer, teacher=loaded, settings=settings, max_length=32
    )
    own = found.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in weights["two"].items())
    assert found.bistil.record["settings"]["teachers"] == 2 and "teacher 2" in found.bistil.record["parents"]
    with pytest.raises(InputError, match="teacher is an empty list"):
        finetune(AutoModel.from_pretrained(small), task, tokenizer=tokenizer, teacher=[], settings=settings)


ONLY_STATES = ObjectiveSettings(attention=1.0, hidden=1.0)


@pytest.mark.parametrize("sparse", [replace(SPARSE, dense_epochs=1.0, sparse_epochs=1.0), None])
def test_a_work_folder_of_another_teacher_or_examples_is_not_gone_on_with(models, task, teachers, tmp_path, sparse):
    _, small = models
    settings = Phase2Settings(sparse=sparse, training=SHORT, target_text=1.0)
    turned = replace(task, train=task.train[::-1])
    learnt = {}
    for name, data, teacher, work in [
        ("first", task, teachers[0], "shared"),
        ("other teacher", task, teachers[1], "shared"),
        ("other examples", turned, teachers[1], "shared"),
        ("other teacher alone", task, teachers[1], "own"),
        ("other examples alone", turned, teachers[1], "another"),
    ]:
        where = {"work": tmp_path / work, "label": ""}
        fitting.fit(small, data, tmp_path / name, settings=settings, teacher=teacher, max_length=32, **where)
        learnt[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert learnt["other teacher"] == learnt["other teacher alone"] != learnt["first"]
    assert learnt["other examples"] == learnt["other examples alone"] != learnt["other teacher"]


REFUSED = {
    "labels": ({}, ArtefactError, "the task teacher .*other has other labels than the training data"),
    "tokenizer": ({}, InputError, "teacher-0 and .*other have different tokenizers: fine-tune them from one model"),
    "task": ({}, ArtefactError, "other has no head for sequence-classification"),
    "count": ({"teachers": 3}, RecipeError, "teachers is 3, but 2 are given: leave teachers out"),
    "unheard": ({"objective": ONLY_STATES}, RecipeError, "teachers is 2, but objective.prediction is 0"),
    "many": ({}, RecipeError, "teachers is 9; it must be at least 1 and at most 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_teachers_that_cannot_stand_as_one_are_refused(models, task, tmp_path, case):
    mmt, small = models
    changes, error, message = REFUSED[case]
    names = ["capital", "other"] if case != "labels" else ["other", "capital"]
    kinds = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    head = AutoModelForTokenClassification if case == "task" else AutoModelForSequenceClassification
    tiny.save(head.from_pretrained(mmt, **kinds), tmp_path / "other", "xlm-roberta")
    kinds = {"id2label": {0: "capital", 1: "other"}, "label2id": {"capital": 0, "other": 1}}
    first = AutoModelForSequenceClassification.from_pretrained(mmt, **kinds)
    tiny.save(first, tmp_path / "teacher-0", "xlm-roberta")
    if case == "tokenizer":
        tiny.renumbered("xlm-roberta", keep=5)[0].save_pretrained(tmp_path / "other")
        (tmp_path / "other/bistil.json").unlink(missing_ok=True)
    several = [tmp_path / "teacher-0", *[tmp_path / "other"] * (8 if case == "many" else 1)]
    settings = Phase2Settings(sparse=None, training=SHORT, **changes)
    with pytest.raises(error, match=message) as caught:
        fit(small, task, tmp_path / "student", settings=settings, teacher=several)
    assert "\n" not in str(caught.value) and not (tmp_path / "student").exists()


def test_a_task_that_does_not_say_what_it_compares_has_no_mean(models, task, teachers, tmp_path):
    class OtherRows(SequenceClassification):
        def prediction_pairs(self, student, teacher, batch):
            return super().prediction_pairs(student, teacher, batch)

    settings, own = Phase2Settings(sparse=None, training=SHORT), replace(task, task=OtherRows())
    with pytest.raises(InputError, match="does not say in teacher_outputs what its prediction_pairs reads"):
        fit(models[1], own, tmp_path / "student", settings=settings, teacher=teachers)
    fit(models[1], own, tmp_path / "student", settings=settings, teacher=teachers[:1])


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
