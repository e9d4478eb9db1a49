"""Models in memory: all four steps where nothing can be written, the README's example, and what people hand in."""

import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import live
import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForTokenClassification, AutoTokenizer, pipeline

import bistil
from bistil.distillation import finetune as live_finetuning
from bistil.distillation import general
from bistil.distillation.finetune import as_task_data
from bistil.settings.presets import TaskPreset
from bistil.tasks import get_task
from bistil.text.sources import as_texts

ROOT = Path(__file__).parents[2]
PHASE1 = bistil.Phase1Settings(block_length=16, training=live.TRAINING)
DENSE = bistil.FinetuneSettings(sparse=None, training=live.TASK)
ROWS = live.tagged(tiny.ENGLISH)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def teacher():
    model = tiny.model("bert")
    model.tokenizer = tiny.tokenizer("bert")
    return model


def test_all_four_steps_write_nothing_and_give_what_a_folder_gives():
    tests = str(ROOT / "tests")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "live.py")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    assert found["record"] == found["written"]
    assert found["record"]["score"] > 50


def test_the_readme_s_example(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    (code,) = (block for block in blocks if "bistil.distill(" in block)
    tiny.save(tiny.model("xlm-roberta"), tmp_path / "teacher", "xlm-roberta")
    phase2 = bistil.Phase2Settings(sparse=None, training=live.TASK, target_text=1.0)
    presets = TaskPreset(max_length=32, finetune=DENSE, phase2=phase2)
    monkeypatch.setattr(general, "phase1_preset", lambda name: {"short": PHASE1}[name])
    monkeypatch.setattr(live_finetuning, "task_preset", lambda name, _: {"short": presets}[name])
    monkeypatch.chdir(tmp_path)
    names = {
        "english": tiny.ENGLISH.splitlines(),
        "swahili": tiny.SWAHILI.splitlines(),
        "train": ROWS,
        "dev": ROWS[:4],
        "test": live.tagged(tiny.SWAHILI),
    }
    exec(code.replace("xlm-roberta-base", str(tmp_path / "teacher")), names)
    saved = AutoModelForTokenClassification.from_pretrained("swahili-names")
    assert saved.config.num_hidden_layers == 3
    assert equal(weights(saved), weights(names["tagger"]))
    tag = pipeline("token-classification", model="swahili-names", aggregation_strategy="simple")
    assert tag("Rais alizungumza na watu wa Nairobi.")
    card = (tmp_path / "swahili-names" / "README.md").read_text()
    assert "token-classification" in card
    assert json.loads((tmp_path / "swahili-names" / "bistil.json").read_text())["task"] == "token-classification"


@pytest.mark.parametrize("layers", [[2, 4], [3, 6]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_teacher_stays_as_it_is(teacher, layers, dtype):
    teacher.to(dtype).train()
    teacher.encoder.layer[0].requires_grad_(False)
    before, config = weights(teacher), teacher.config.to_dict()
    required = {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}
    students = bistil.distill(
        teacher, None, live.TEXT, students=[bistil.Student(layers=layers)], settings=PHASE1,
        language_sfts={"sw": _sft(copy.deepcopy(teacher).float())}, force_sfts=True,
    )  # fmt: skip
    student = students["layers-" + "-".join(map(str, layers))]
    assert student.dtype == torch.float32
    assert equal(before, weights(teacher))
    assert required == {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}
    assert config == teacher.config.to_dict()
    assert teacher.training
    assert len(teacher.encoder.layer) == 6
    ids = torch.tensor([[2, 7, 9, 3]])
    assert teacher.eval()(input_ids=ids).last_hidden_state.dtype == dtype


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_teacher_stays_as_it_is_when_a_call_is_stopped(teacher, monkeypatch, error):
    """In the middle of training, wearing an SFT, with attention that looks for the students."""
    sft = _sft(teacher)
    ids = torch.tensor([[2, 7, 9, 3]])
    before, implementation = weights(teacher), teacher.config._attn_implementation
    output = teacher(input_ids=ids).last_hidden_state.detach()
    steps, plain = [], general.Distiller.forward

    def stopped(self, **batch):
        found = plain(self, **batch)
        steps.append(self.teacher.get_input_embeddings().weight.clone())
        if len(steps) > 5 and not torch.equal(steps[-1], before["embeddings.word_embeddings.weight"]):
            raise error
        return found

    monkeypatch.setattr(general.Distiller, "forward", stopped)
    with pytest.raises(error):
        bistil.distill(
            teacher, None, live.TEXT, students=[bistil.Student(reduction=2)], settings=PHASE1, language_sfts={"sw": sft}
        )
    assert equal(before, weights(teacher))
    assert teacher.config._attn_implementation == implementation
    assert torch.equal(teacher(input_ids=ids).last_hidden_state, output)


def test_windows_of_all_positions_are_not_padded_beyond_them(teacher):
    """140 positions are no multiple of 8."""
    rows = [{"text": " ".join(["mkeka"] * 300), "label": label} for label in ("a", "b")] * 2
    settings = replace(DENSE, training=replace(live.TASK, steps=2, evaluate_steps=None))
    model = bistil.finetune(teacher, rows, task="sequence-classification", settings=settings, max_length=140)
    assert bistil.evaluate(model, None, rows, max_length=140)["examples"] == 4
    phase2 = bistil.Phase2Settings(sparse=None, training=settings.training, target_text=0.0)
    bistil.finetune(teacher, rows, teacher=model, settings=phase2, max_length=140)
    with pytest.raises(bistil.InputError, match="140 positions"):
        bistil.evaluate(model, None, rows, max_length=141)


def _sft(model):
    tuned = bistil.finetune(
        model, {"train": ROWS}, task="token-classification", seed=1,
        settings=bistil.FinetuneSettings(sparse=bistil.SparseSettings(density=0.1, dense_steps=2, sparse_steps=2)),
    )  # fmt: skip
    return tuned.bistil.facts["sft"]


def test_a_start_in_memory_gives_what_its_folder_gives(teacher, tmp_path):
    """Encoders, encoders with a masked-LM head, and task models with other labels; new heads are drawn alike."""
    from fitting import fit

    data = as_task_data({"train": ROWS}, get_task("token-classification"))
    settings = replace(DENSE, training=replace(live.TASK, steps=3, evaluate_steps=None))
    masked = tiny.model("bert", head=AutoModelForMaskedLM)
    other = bistil.finetune(
        teacher, [{"tokens": ["a"], "labels": ["X"]}, {"tokens": ["b"], "labels": ["Y"]}], task="token-classification",
        settings=settings,
    )  # fmt: skip
    for name, start in {"encoder": teacher, "masked": masked, "other": other}.items():
        before = weights(start)
        found = bistil.finetune(start, data, settings=settings, tokenizer=teacher.tokenizer, max_length=32)
        assert equal(before, weights(start))
        tiny.save(start, tmp_path / name, "bert")
        fit(tmp_path / name, data, tmp_path / f"{name}-tuned", work=tmp_path / f"{name}-work", settings=settings,
            max_length=32)  # fmt: skip
        written = AutoModelForTokenClassification.from_pretrained(tmp_path / f"{name}-tuned")
        assert equal(weights(found), weights(written))


def test_labelled_data_in_every_form_are_the_same(tmp_path):
    task = get_task("token-classification")
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:8]))
    (tmp_path / "dev.jsonl").write_text("\n".join(lines[8:]))
    names = datasets.ClassLabel(names=["O", "B-PER"])
    typed = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names)})
    numbered = [{"tokens": row["tokens"], "ner_tags": [names.str2int(one) for one in row["labels"]]} for row in ROWS]
    whole = datasets.Dataset.from_list(numbered, features=typed)
    forms = [
        {"train": ROWS[:8], "dev": ROWS[8:]},
        {"train": tmp_path / "train.jsonl", "validation": str(tmp_path / "dev.jsonl")},
        {"train": [tmp_path / "train.jsonl"], "dev": ROWS[8:]},
        datasets.DatasetDict(train=whole.select(range(8)), validation=whole.select(range(8, 10))),
    ]
    found = [as_task_data(form, task) for form in forms]
    for one in found:
        assert [(e.words, e.tags) for e in one.train] == [(e.words, e.tags) for e in found[0].train]
        assert len(one.dev) == 2
    several = as_task_data({"train": {"en": ROWS[:5], "sw": ROWS[5:]}, "test": {"sw": ROWS[:1]}}, task)
    assert [len(part) for part in several.sources.values()] == [4, 5]  # one stands in the test set
    assert len(several.left_out.train) == 1


def test_text_in_every_form_is_the_same(tmp_path):
    lines = tiny.SWAHILI.splitlines()
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI)
    forms = [lines, [tiny.SWAHILI], [tmp_path / "sw.txt"], str(tmp_path / "sw.txt"), [{"text": one} for one in lines],
             datasets.Dataset.from_dict({"text": lines}), iter(lines)]  # fmt: skip
    model, tokenizer = tiny.model("bert"), tiny.tokenizer("bert")
    found = [
        bistil.trim(model, tokenizer, {"sw": form}, settings=bistil.TrimSettings(threshold=1e-3)) for form in forms
    ]
    found.append(bistil.trim(model, tokenizer, lines, settings=bistil.TrimSettings(threshold=1e-3)))
    assert len(found[0].tokenizer) < len(tokenizer)
    for one in found:
        assert one.tokenizer.get_vocab() == found[0].tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda folder: [str(folder / "sw.txt")], r"sw.txt is a file; give pathlib.Path"),
        (lambda _: ["a", 3], "a list of strings, of paths or of mappings"),
        (lambda _: ["a", "b\ud800"], "the text of sw, text 2: half a surrogate pair"),
        (lambda _: {"text": "a"}, "give texts, files or a data set, not a dict"),
        (lambda _: 3, "give texts, files or a data set, not a int"),
        (lambda _: [], "holds no text"),
        (lambda _: datasets.Dataset.from_dict({"line": ["a"]}), "a column 'text' is expected; found: line"),
    ],
)
def test_text_that_is_none(tmp_path, given, said):
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI)
    with pytest.raises(bistil.InputError, match=said):
        bistil.trim(tiny.model("bert"), tiny.tokenizer("bert"), {"sw": given(tmp_path)})


def test_what_cannot_be_learnt_from(teacher):
    for data, said in (
        ({"training": ROWS}, "of which train must be there; found: training"),
        ({"train": ROWS, "held-out": ROWS}, "found: train, held-out"),
        ([1, 2], "the train data, row 1: a mapping from column to value is expected, not 1"),
        ({"train": 3}, "give a list of rows, a data set or files, not a int"),
        ([{"tokens": ["a"]}], "the train data, line 1: "),
    ):
        with pytest.raises(bistil.InputError, match=said):
            bistil.finetune(teacher, data, task="token-classification", settings=DENSE)
    with pytest.raises(bistil.InputError, match="the task is not known: give task="):
        bistil.finetune(teacher, ROWS, settings=DENSE)
    with pytest.raises(bistil.InputError, match="the BertModel brings no tokenizer: give tokenizer="):
        bistil.finetune(tiny.model("bert"), ROWS, task="token-classification", settings=DENSE)
    with pytest.raises(bistil.RecipeError, match="settings are Phase2Settings"):
        bistil.finetune(teacher, ROWS, task="token-classification", settings=DENSE, teacher=teacher)
    with pytest.raises(bistil.RecipeError, match="tensorboard writes files: give a folder"):
        logged = replace(DENSE, training=replace(live.TASK, loggers=["tensorboard"]))
        bistil.finetune(teacher, ROWS, task="token-classification", settings=logged)
    with pytest.raises(bistil.ArtefactError, match="is an encoder without a head, not for a task"):
        bistil.evaluate(teacher, None, ROWS)


def test_trees_and_answers_in_memory(teacher):
    trees = [{"tokens": ["Paka", "aliketi", "."], "head": ["2", "0", "2"], "deprel": ["nsubj", "root", "punct"]}] * 4
    parser = bistil.finetune(teacher, trees, task="dependency-parsing", settings=DENSE, max_length=32)
    assert bistil.Parser(parser)([["Paka", "aliketi", "."]]) == [[(2, "nsubj"), (0, "root"), (2, "punct")]]
    assert bistil.evaluate(parser, None, trees)["scores"]["las"] == 100
    crooked = [*trees * 30, {"tokens": ["a", "b"], "head": ["2"], "deprel": ["nsubj", "root"]}]
    assert as_task_data(crooked, get_task("dependency-parsing")).read["the train data"]["odd"] == 1
    question = {"id": "1", "question": "Who sat?", "context": "The cat sat on the mat.",
                "answers": {"text": ["The cat"], "answer_start": [0]}}  # fmt: skip
    reader = bistil.finetune(teacher, [question] * 4, task="question-answering", settings=DENSE, max_length=48)
    assert bistil.QuestionAnswerer(reader)("Who sat?", "The cat sat on the mat.")[0].text == "The cat"


def test_results_are_models_that_bring_what_belongs_to_them(teacher, tmp_path, monkeypatch):
    small = bistil.trim(teacher, teacher.tokenizer, live.TEXT, settings=bistil.TrimSettings(threshold=1e-3))
    assert type(small) is type(teacher)
    small.save_pretrained(tmp_path / "small")
    small.save_pretrained(tmp_path / "small")  # ours gives way
    again = AutoModel.from_pretrained(tmp_path / "small")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert equal(weights(again), weights(small))
    assert tokenizer("Paka aliketi").input_ids == small.tokenizer("Paka aliketi").input_ids
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(bistil.InputError, match="mine"):
        small.save_pretrained(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    copied = copy.deepcopy(small)
    copied.pooler.dense.weight.data.zero_()
    copied.save_pretrained(tmp_path / "copied")
    assert AutoModel.from_pretrained(tmp_path / "copied").pooler.dense.weight.abs().sum() == 0

    calls = []

    class Hub:
        def __init__(self, **_):
            pass

        def create_repo(self, name, **options):
            calls.append((name, options))

        def create_commit(self, name, operations, **options):
            assert name == "me/small"
            calls.append(([one.path_in_repo for one in operations], options))
            return type("Done", (), {"commit_url": "https://hub/commit"})

    monkeypatch.setattr("bistil.models.complete.HfApi", Hub)
    assert small.push_to_hub("me/small", private=True) == "https://hub/commit"
    assert calls[0] == ("me/small", {"private": True, "exist_ok": True})
    assert {"README.md", "bistil.json", "config.json", "model.safetensors", "tokenizer.json"} <= set(calls[1][0])


def test_an_sft_of_the_untrimmed_teacher_is_trimmed_along(teacher):
    sft = _sft(teacher)
    small = bistil.trim(teacher, teacher.tokenizer, live.TEXT, settings=bistil.TrimSettings(threshold=1e-3))
    assert small.get_input_embeddings().weight.shape[0] < teacher.get_input_embeddings().weight.shape[0]
    students = bistil.distill(
        small, None, live.TEXT, students=[bistil.Student(depth=2)], settings=PHASE1, language_sfts={"sw": sft}
    )
    plain = bistil.distill(small, None, live.TEXT, students=[bistil.Student(depth=2)], settings=PHASE1)
    assert not equal(weights(students["2-layers"]), weights(plain["2-layers"]))
    other = bistil.trim(
        tiny.model("bert", seed=9), teacher.tokenizer, live.TEXT, settings=bistil.TrimSettings(threshold=1e-3)
    )
    with pytest.raises(bistil.ArtefactError, match="another base"):
        bistil.distill(
            other, None, live.TEXT, students=[bistil.Student(depth=2)], settings=PHASE1, language_sfts={"sw": sft}
        )


def test_an_sft_is_kept_under_transformers_names(teacher, tmp_path):
    sft = _sft(teacher)
    sft.save_pretrained(tmp_path / "sft")
    sft.save_pretrained(tmp_path / "sft")
    assert bistil.SparseFineTuning.from_pretrained(tmp_path / "sft").digest() == sft.digest()


def test_texts_are_named_in_messages():
    (lines,) = as_texts({"sw": ["a", "b"]})["sw"]
    assert str(lines) == "the text of sw"
