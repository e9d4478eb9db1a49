"""`bistil sft` and `bistil adapt` on tiny folders."""

import json

import pytest
import tiny
import torch
import typer
from test_sparse_artefact import HEADS, random_sft, snapshot
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification
from typer.testing import CliRunner

from bistil.commands import adapt, sft
from bistil.errors import ArtefactError, InputError
from bistil.sparse import SparseFineTuning, write_legacy

app = typer.Typer()
sft.register(app)
adapt.register(app)


def call(*arguments):
    """Run a command; errors come out as they are, for `bistil.cli` turns them into one line."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folders(tmp_path):
    """A bare encoder, a language SFT and a task SFT with its head."""
    base = tiny.model(layers=2, head=AutoModel)
    tiny.save(base, tmp_path / "base")
    language = random_sft(base, seed=1)
    language.provenance.kind = "language"
    language.save(tmp_path / "language")
    tagger = AutoModelForTokenClassification.from_pretrained(tmp_path / "base", num_labels=5)
    task = random_sft(tagger, seed=2, heads=HEADS)
    task.provenance.architecture = "BertForTokenClassification"
    task.provenance.labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    task.save(tmp_path / "task")
    return tmp_path


def test_merge_writes_an_ordinary_folder(folders):
    call("sft", "merge", folders / "base", folders / "language", folders / "task", "--output", folders / "merged")
    merged = AutoModelForTokenClassification.from_pretrained(folders / "merged")
    assert merged.config.id2label[3] == "B-LOC"
    expected = AutoModelForTokenClassification.from_pretrained(folders / "base", num_labels=5)
    SparseFineTuning.load(folders / "language").apply(expected)
    SparseFineTuning.load(folders / "task").apply(expected)
    own = snapshot(merged)
    assert all(torch.equal(own[name], value) for name, value in snapshot(expected).items())
    assert json.loads((folders / "merged/bistil.json").read_text())["scale"] == 1.0


def test_a_merged_classifier_is_for_the_problem_that_it_was_trained_for(folders):
    classifier = AutoModelForSequenceClassification.from_pretrained(folders / "base", num_labels=2)
    task = random_sft(classifier, seed=2, heads=HEADS)
    task.provenance.architecture, task.provenance.labels = "BertForSequenceClassification", ["a", "b"]
    task.provenance.problem_type = "multi_label_classification"
    task.save(folders / "labels")
    call("sft", "merge", folders / "base", folders / "language", folders / "labels", "--output", folders / "merged")
    config = json.loads((folders / "merged/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_merge_on_another_base(folders):
    tiny.save(tiny.model(layers=2, head=AutoModel, seed=9), folders / "other")
    arguments = ("sft", "merge", folders / "other", folders / "task", "--output", folders / "merged")
    with pytest.raises(ArtefactError, match="made for base"):
        call(*arguments)
    assert not (folders / "merged").exists()
    call(*arguments, "--force-sfts")
    with pytest.raises(InputError, match="already exists"):
        call(*arguments, "--force-sfts")
    call(*arguments, "--force-sfts", "--force")


def test_a_model_is_no_sparse_fine_tuning(folders):
    with pytest.raises(ArtefactError, match=r"base is no sparse fine-tuning: sft_config\.json is missing"):
        call("sft", "inspect", folders / "base")


@pytest.mark.parametrize("architecture", ["pipeline", "utils", "BertConfig", "NoSuchModel"])
def test_an_architecture_that_is_no_model_is_refused(folders, architecture):
    path = folders / "task/sft_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architecture": architecture}))
    (folders / "task/bistil.json").unlink()
    with pytest.raises(ArtefactError, match=f"{architecture} is not a model class"):
        call("sft", "merge", folders / "base", folders / "task", "--output", folders / "merged")
    assert not (folders / "merged").exists()


@pytest.mark.parametrize("projection", [None, 8])
def test_merge_a_parser(folders, projection):
    from bistil.distillation.task import head_parameters
    from bistil.models.auto import AutoModelForDependencyParsing

    parser = AutoModelForDependencyParsing.from_pretrained(folders / "base", num_labels=3, parser_projection=projection)
    sft = random_sft(parser, seed=3, heads=sorted(head_parameters(parser)))
    sft.provenance.architecture, sft.provenance.labels = type(parser).__name__, ["nsubj", "obj", "root"]
    sft.save(folders / "parser")
    call("sft", "merge", folders / "base", folders / "parser", "--output", folders / "merged")
    merged = AutoModelForDependencyParsing.from_pretrained(folders / "merged")
    sft.apply(parser)
    assert all(torch.equal(snapshot(merged)[name], value) for name, value in snapshot(parser).items())
    assert merged.config.id2label[1] == "obj"


def test_compose_inspect_and_compare(folders):
    out = call("sft", "compose", folders / "language", folders / "task", "--output", folders / "sum")
    total = SparseFineTuning.load(folders / "sum")
    assert f"{total.count:,} entries" in out
    assert total.provenance.architecture == "BertForTokenClassification"
    text = call("sft", "inspect", folders / "sum")
    assert f"entries: {total.count:,}" in text and "kind: language+task" in text and "query" not in text
    rows = {line.split()[1]: line.split() for line in text.splitlines() if "│" in line and "layer" in line.split()[1]}
    first = [delta for name, delta in total.deltas.items() if ".layer.0." in name]
    assert rows["bert.encoder.layer.0"][3] == f"{sum(len(delta.indices) for delta in first):,}"
    assert float(rows["bert.encoder.layer.0"][7]) == pytest.approx(
        float(torch.cat([delta.values for delta in first]).norm()), rel=0.01
    )
    assert "query" in call("sft", "inspect", folders / "sum", "--full")
    table = call("sft", "compare", folders / "task", folders / "task")
    assert "1.000" in table


def test_convert_there_and_back(folders):
    call("sft", "convert", folders / "task", "--to", "legacy", "--output", folders / "legacy")
    call("sft", "convert", folders / "legacy", "--output", folders / "again")
    again, task = SparseFineTuning.load(folders / "again"), SparseFineTuning.load(folders / "task")
    assert all(torch.equal(again.deltas[name].values, delta.values) for name, delta in task.deltas.items())
    with pytest.raises(InputError, match="--base"):
        call("sft", "convert", folders / "task", "--to", "shira", "--output", folders / "adapter")
    with pytest.raises(InputError, match="linear layers only"):
        arguments = ("--to", "shira", "--base", folders / "base", "--output", folders / "adapter")
        call("sft", "convert", folders / "task", *arguments)
    assert not (folders / "adapter").exists()
    linear = SparseFineTuning(
        {name: delta for name, delta in task.deltas.items() if ".encoder." in name and len(delta.shape) == 2},
        provenance=task.provenance,
    )
    linear.save(folders / "linear")
    tiny.model(layers=2, head=AutoModel, seed=9).save_pretrained(folders / "other")
    arguments = ("sft", "convert", folders / "linear", "--to", "shira", "--output", folders / "adapter")
    with pytest.raises(ArtefactError, match="made for base"):
        call(*arguments, "--base", folders / "other")
    assert not (folders / "adapter").exists()
    call(*arguments, "--base", folders / "other", "--force-sfts")
    write_legacy(task, folders / "published/pytorch_diff.bin")
    call("sft", "inspect", folders / "published")


def test_adapt(folders):
    (folders / "sw.txt").write_text(tiny.SWAHILI * 4)
    out = call(
        "adapt", "--model", folders / "base", "--language", "sw", "--text", folders / "sw.txt", "--steps", 4,
        "--batch-size", 4, "--block-length", 24, "--output", folders / "sw",
    )  # fmt: skip
    assert "nats per masked token" in out
    loaded = SparseFineTuning.load(folders / "sw", base=tiny.model(layers=2, head=AutoModel))
    assert loaded.density == pytest.approx(0.04, abs=1e-4)
    assert not list(folders.glob(".sw*"))
