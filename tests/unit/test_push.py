"""What of a folder goes to the hub: all that a model needs, nothing that belongs to the machine, and whole."""

import json
import shutil

import pytest
import small_hub
import tiny
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from bistil.cli import app
from bistil.errors import BistilError, InputError
from bistil.models.upload import check_repository, shipment, upload
from bistil.models.writing import write_model
from bistil.runtime.artefacts import check_product, open_work, write_json

LITTER = (
    "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin", "train_log.jsonl",
    "checkpoint-40/model.safetensors", "tensorboard/events.out.tfevents.1", ".hidden", ".m.ab12-1-x.partial/weights",
    "half.partial", "modeling_own.py",
)  # fmt: skip


@pytest.fixture
def model(tmp_path):
    """A model whose record and card say more than the world needs to know, with a training's litter around it."""
    folder = tmp_path / "lrf2"
    own = tiny.model("bert", head=AutoModelForSequenceClassification, layers=1, num_labels=2)
    own.config.id2label = {0: "/a/b", 1: "c"}
    record = {
        "kind": "task model",
        "settings": {"train": ["/home/someone/secret/train.conll", "de.conll"], "window": "C:\\data\\x.txt"},
        "parents": {"teacher": {"name": "~/models/teacher"}},
    }
    write_model(folder, own, tiny.tokenizer("bert"), record=record, title="m", summary="s", languages=["sw"])
    # A record of its own beside the weights, on the list.
    sealed = json.loads((folder / "bistil.json").read_text())
    assert "model.safetensors" in sealed["files"]
    for name in LITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("litter")
    open_work(folder / "kept")
    (folder / "LICENSE").write_text("mine")
    (folder / "link.json").symlink_to(folder / "config.json")
    return folder


def test_what_is_uploaded_is_whole_and_says_nothing_of_this_machine(model, tmp_path, monkeypatch):
    before = {one: one.read_bytes() for one in model.rglob("*") if one.is_file()}
    with small_hub.serving(tmp_path / "cache", monkeypatch) as client:
        address = upload(model, "someone/lrf2", message="a model", api=client)
        pushed = dict(small_hub.Hub.repositories["someone/lrf2"])
    assert address.endswith(small_hub.COMMIT)
    assert set(pushed) == {
        "README.md", "LICENSE", "bistil.json", "config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert before == {one: one.read_bytes() for one in model.rglob("*") if one.is_file()}
    for name in pushed:
        assert b"someone/secret" not in pushed[name]
    record = json.loads(pushed["bistil.json"])
    assert record["settings"] == {"train": ["train.conll", "de.conll"], "window": "x.txt"}
    assert record["parents"]["teacher"]["name"] == "teacher"
    # A label may look like a path.
    assert json.loads(pushed["config.json"])["id2label"]["0"] == "/a/b"
    (tmp_path / "there").mkdir()
    for name, content in pushed.items():
        (tmp_path / "there" / name).write_bytes(content)
    check_product(tmp_path / "there")


def test_a_listed_file_that_changes_or_stays_is_listed_so(model, tmp_path):
    config = json.loads((model / "config.json").read_text()) | {"_name_or_path": "/home/someone/secret/base"}
    write_json(model / "config.json", config, inner=True)
    (model / "train_log.jsonl").write_text("{}")
    record = json.loads((model / "bistil.json").read_text())
    record["files"] |= {"train_log.jsonl": "0" * 64}
    write_json(model / "bistil.json", record, inner=True)
    sent = shipment(model)
    (tmp_path / "there").mkdir()
    for name, own in sent.files.items():
        if own is None:
            shutil.copyfile(model / name, tmp_path / "there" / name)
        else:
            (tmp_path / "there" / name).write_bytes(own)
    assert json.loads((tmp_path / "there/config.json").read_text())["_name_or_path"] == "base"
    check_product(tmp_path / "there")
    assert "train_log.jsonl" not in json.loads((tmp_path / "there/bistil.json").read_text())["files"]


def test_a_dry_run_lists_what_would_go_and_needs_no_network(model, monkeypatch):
    def nobody(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", nobody)
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", nobody)
    done = CliRunner().invoke(app, ["push", str(model), "someone/lrf2", "--private", "--dry-run"])
    assert done.exit_code == 0, done.output
    sent = shipment(model)
    sizes = {name: sent.size(name) for name in sent.files}
    listed = {row.split()[1]: int(row.split()[0].replace(",", "")) for row in done.stdout.splitlines()[: len(sizes)]}
    assert listed == sizes and sizes["model.safetensors"] == (model / "model.safetensors").stat().st_size
    assert f"{sum(sizes.values()):,}  bytes in {len(sizes)} files" in done.stdout
    assert "someone/lrf2 (private)" in done.stdout and "optimizer.pt" in done.stdout.partition("left out: ")[2]


def test_offline_is_one_line(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = CliRunner().invoke(app, ["push", str(model), "someone/lrf2"])
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 2
    assert str(done.exception).startswith("cannot push to someone/lrf2: the hub refused or cannot be reached (")
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("name", ["lrf2", "a/b/c", "a/", "/b", "", "a b/c", "../x"])
def test_what_is_no_repository_is_refused_without_a_network(name):
    with pytest.raises(InputError, match=r"cannot push to .*: write OWNER/NAME"):
        check_repository(name)


def test_what_is_no_model_is_one_line(model, tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/sft_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged, symlinks=True)
    (damaged / "model.safetensors").write_bytes(b"short")
    code, known = tmp_path / "code", tmp_path / "known"
    for folder, changes in ((code, {"model_type": "mine"}), (known, {})):
        shutil.copytree(model, folder, symlinks=True)
        config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoConfig": "mine.Own"}, **changes}
        write_json(folder / "config.json", config, inner=True)
        # Without the list of what was written, as others' folders are.
        (folder / "bistil.json").unlink()
    assert CliRunner().invoke(app, ["push", str(known), "someone/x", "--dry-run"]).exit_code == 0
    for folder, line in (
        (code, "code of its own"),
        (tmp_path / "sft", "bistil sft push"),
        (tmp_path / "empty", "holds no model"),
        (tmp_path / "nothing", "no such folder"),
        (damaged, "is damaged"),
    ):
        done = CliRunner().invoke(app, ["push", str(folder), "someone/x", "--dry-run"])
        assert isinstance(done.exception, BistilError) and line in str(done.exception)
    # Python's ways to the hub go through the same.
    with pytest.raises(BistilError, match="code of its own"):
        upload(code, "someone/x", message="a model")
