"""`bistil finetune`: what its options and presets come to, and that it goes through the same path as a recipe."""

import json

import pytest
import tiny
from typer.testing import CliRunner

from bistil.cli import app
from bistil.distillation.task import Fitting
from bistil.errors import BistilError, InputError, RecipeError
from bistil.settings.recipe import FinetuneSettings, task_preset, to_dict

TAGS = "token-classification"


@pytest.fixture
def folder(tmp_path):
    tiny.save(tiny.model("bert", layers=2), tmp_path / "model", "bert")

    def conll(lines):
        return "\n\n".join("\n".join(f"{w} {'B-X' if w[0].isupper() else 'O'}" for w in line.split()) for line in lines)

    english, swahili = tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines()
    (tmp_path / "train.txt").write_text(conll(english) + "\n", encoding="utf-8")
    (tmp_path / "dev.txt").write_text(conll(english[:2]) + "\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text(conll([english[9], *swahili[:3]]).replace("B-X", "B-Y"), encoding="utf-8")
    (tmp_path / "sw.txt").write_text("\n".join(swahili), encoding="utf-8")
    return tmp_path


def finetune(folder, output, *options):
    command = ["finetune", "-m", folder / "model", "--train", folder / "train.txt", "-o", output]
    command += [] if "--task" in options else ["--task", TAGS]
    result = CliRunner().invoke(app, list(map(str, [*command, *options])), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads((output / "bistil.json").read_text()), result


def test_teacher_and_student_with_evaluation_text_kept_out(folder):
    options = ["--dev", folder / "dev.txt", "--test", folder / "test.txt", "--label-map", "B-Y=B-X"]
    options += ["--dense-epochs", "1", "--sparse-epochs", "1", "--learning-rate", "1e-3", "--batch-size", "4"]
    record, _ = finetune(folder, folder / "teacher", *options)
    assert record["metrics"]["left_out"] == {"train_in_test": 1, "target_text_in_evaluation": 0}
    assert record["metrics"]["examples"] == 9
    options += ["--teacher", folder / "teacher", "--text", folder / "sw.txt", "--target-sentences", "5"]
    record, result = finetune(folder, folder / "student", *options)
    assert record["metrics"]["left_out"] == {"train_in_test": 1, "target_text_in_evaluation": 3}
    assert record["metrics"]["target_text"] == 5
    assert record["settings"]["target_text"] == 1.0
    assert "3 of 10 lines of target text are left out" in result.stderr
    assert set(record["metrics"]["dev"]) >= {"f1"}


def test_several_teachers(folder):
    short = ["--no-sparse", "--epochs", "0.4", "--batch-size", "5"]
    for seed in (0, 1):
        finetune(folder, folder / f"teacher-{seed}", *short, "--seed", seed)
    given = [word for seed in (0, 1) for word in ("--teacher", folder / f"teacher-{seed}")]
    record, _ = finetune(folder, folder / "student", *short, *given)
    assert [record["parents"][role]["name"] for role in ("teacher", "teacher 2")] == ["teacher-0", "teacher-1"]
    assert record["settings"]["teachers"] == 2
    for options, message in (
        (["--prediction", "0"], "teachers is 2, but objective.prediction is 0"),
        (["--set", "teachers=3"], "teachers is 3, but 2 are given: leave teachers out"),
    ):
        with pytest.raises(RecipeError, match=message) as caught:
            finetune(folder, folder / "other", *short, *given, *options)
        assert "\n" not in str(caught.value) and not (folder / "other").exists()


def test_without_preset_the_defaults_are_those_of_a_recipe(folder):
    record, _ = finetune(folder, folder / "teacher", "--no-sparse", "--epochs", "0.2")
    default = to_dict(FinetuneSettings())
    assert record["settings"]["sparse"] is None
    assert record["settings"]["training"] == {**default["training"], "epochs": 0.2}


def test_a_preset_and_what_is_given_beside_it(folder):
    record, _ = finetune(
        folder, folder / "teacher", "--preset", "paper", "--dense-epochs", "0.2", "--sparse-epochs", "0.2",
        "--batch-size", "5", "--max-length", "64",
    )  # fmt: skip
    preset = to_dict(task_preset("paper", TAGS).finetune)
    assert record["settings"]["training"] == {**preset["training"], "batch_size": 5}
    assert record["settings"]["sparse"] == {**preset["sparse"], "dense_epochs": 0.2, "sparse_epochs": 0.2}
    assert record["metrics"]["examples"] == 10
    with pytest.raises(InputError, match="max_length is 256, but the model has 140 positions"):
        finetune(folder, folder / "other", "--preset", "paper")


@pytest.mark.parametrize(
    ("options", "epochs", "sparse"),
    [
        (["--preset", "short"], {"teacher": 2.0, "student": 1.0}, None),
        (["--preset", "short", "--no-sparse"], {"teacher": 2.0, "student": 1.0}, None),
        (["--preset", "short", "--epochs", "4"], {"teacher": 4.0, "student": 4.0}, None),
        (["--preset", "short", "--learning-rate", "1e-5"], {"teacher": 2.0, "student": 1.0}, None),
        (["--preset", "short", "--density", "0.1"], None, {"density": 0.1, "dense_epochs": 3.0, "sparse_epochs": 5.0}),
        (["--preset", "paper", "--no-sparse"], {"teacher": 3.0, "student": 3.0}, None),
        (["--no-sparse"], {"teacher": 3.0, "student": 3.0}, None),
        ([], None, {"density": 0.08, "dense_epochs": 3.0, "sparse_epochs": 5.0}),
    ],
)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_preset_stays_dense_unless_something_sparse_is_given(folder, monkeypatch, options, epochs, sparse, role):
    """What training gets, for the teacher and for a student that learns from one."""
    got = {}
    for name in ("write_task_teacher", "write_task_student"):
        monkeypatch.setattr(
            f"bistil.distillation.task_folders.{name}",
            lambda *given, **_: got.update(to_dict(next(one.settings for one in given if isinstance(one, Fitting)))),
        )
    command = ["finetune", "-m", folder / "model", "--task", TAGS, "--train", folder / "train.txt", *options]
    command += ["--teacher", folder / "model"] if role == "student" else []
    result = CliRunner().invoke(app, list(map(str, [*command, "-o", folder / "out"])), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    if sparse is None:
        assert got["sparse"] is None and got["training"]["epochs"] == epochs[role]
    else:
        assert {name: got["sparse"][name] for name in sparse} == sparse


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--no-sparse", "--density", "0.1"], InputError, "--no-sparse and --density exclude each other"),
        (["--no-sparse", "--sparse-epochs", "1"], InputError, "--no-sparse and --sparse-epochs exclude each other"),
        (["--preset", "short", "--dense-epochs", "4"], InputError, "the preset short is dense: give --epochs"),
        (["--hidden", "2"], InputError, "objective is learnt from through a task teacher: give --teacher too"),
        (["--set", "training.batch_sise=2"], RecipeError, "unknown key 'batch_sise'; did you mean 'batch_size'"),
        (["--set", "training.batch_size=many"], RecipeError, "training.batch_size is 'many'; expected int"),
        (["--set", "training"], RecipeError, "write KEY=VALUE"),
        (["--set", "sparse.density=2"], RecipeError, "sparse.density is 2.0; it must be above 0 and at most 1"),
        (["--preset", "papr"], RecipeError, "'papr'; it must be one of 'paper', 'short'"),
        (["--text", "sw.txt"], InputError, "give --teacher too"),
        (["--target-sentences", "5"], InputError, "give --teacher too"),
        (["--target-text", "0.5"], InputError, "give --teacher too"),
        (["--teacher", "t", "--target-text", "0.5"], InputError, "give --text too"),
        (["--label-map", "B-Y"], InputError, "OLD=NEW"),
        (["--column", "tags"], InputError, "NAME=COLUMN"),
        (["--column", "tags=1", "--column", "tags=2"], InputError, "given twice"),
        (["--column", "tags=7"], InputError, "a column's number from 1 to 2"),
        (["--scheme", "iob"], RecipeError, "'iob'; it must be one of 'iob1'"),
        (["--task", "tagging"], RecipeError, "'tagging'; it must be one of"),
    ],
)
def test_mistakes_are_one_line(folder, options, error, message):
    with pytest.raises(error, match=message) as caught:
        finetune(folder, folder / "out", *options)
    assert "\n" not in str(caught.value) and isinstance(caught.value, BistilError)
    assert not (folder / "out").exists()


def test_several_sources_each_wearing_its_sft(folder):
    """What is written is the base and the task's SFT alone; the languages' SFTs went into its training."""
    import shutil

    import torch
    from test_sparse_artefact import random_sft
    from transformers import AutoModel, AutoModelForTokenClassification

    from bistil.sparse import SparseFineTuning

    base = AutoModel.from_pretrained(folder / "model")
    for seed, code in enumerate(("en", "sw")):
        random_sft(base, seed=seed, density=0.02).save(folder / f"sft-{code}")
    shutil.copyfile(folder / "test.txt", folder / "train.sw.txt")
    short = ["--dense-epochs", "1", "--sparse-epochs", "1", "--learning-rate", "1e-3", "--batch-size", "4"]
    command = ["finetune", "-m", folder / "model", "--task", TAGS, "--label-map", "B-Y=B-X", *short]
    sources = ["--train", f"en={folder}/train.txt", "--train", f"sw={folder}/train.sw.txt"]
    sfts = ["--language-sft", f"en={folder}/sft-en", "--language-sft", f"sw={folder}/sft-sw"]

    def run(*options):
        return CliRunner().invoke(app, list(map(str, [*command, *options])), catch_exceptions=False)

    result = run(*sources, *sfts, "--dev", folder / "dev.txt", "--sft", folder / "sft-task", "-o", folder / "tagger")
    assert result.exit_code == 0, result.output
    record = json.loads((folder / "tagger/bistil.json").read_text())
    assert record["metrics"]["sources"] == {"en": 10, "sw": 4}
    tagger = AutoModelForTokenClassification.from_pretrained(folder / "tagger")
    expected = AutoModelForTokenClassification.from_pretrained(folder / "model", num_labels=2)
    task = SparseFineTuning.load(folder / "sft-task", base=expected)
    task.apply(expected)
    own = dict(tagger.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in expected.named_parameters())
    # The SFTs made a difference to what was learnt.
    assert run(*sources, *sfts[:2], "--sft", folder / "other", "-o", folder / "second").exit_code == 0
    other = SparseFineTuning.load(folder / "other")
    assert any(not torch.equal(other.dense[name], value) for name, value in task.dense.items())

    with pytest.raises(InputError, match="write LANGUAGE=FILE"):
        run("--train", folder / "train.txt", *sfts, "-o", folder / "third")
    with pytest.raises(InputError, match="'sw', which no training file"):
        run(*sources[:2], *sfts, "-o", folder / "third")
    with pytest.raises(InputError, match="leave out the teacher"):
        run(*sources, *sfts, "--teacher", folder / "tagger", "-o", folder / "third")
    tiny.save(tiny.model("bert", layers=2, seed=9), folder / "another", "bert")
    command[2] = folder / "another"
    with pytest.raises(BistilError, match="made for base"):
        run(*sources, *sfts, "-o", folder / "third")
    assert not (folder / "third").exists()
    assert run(*sources, *sfts, "--force-sfts", "-o", folder / "third").exit_code == 0
