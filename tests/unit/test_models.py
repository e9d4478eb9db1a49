"""Names to models, on tiny models in folders; no hub."""

import pytest
import tiny
from transformers import AutoTokenizer

from bistil.errors import ArtefactError, InputError
from bistil.models import load_tokenizer, resolve_model


@pytest.fixture
def folder(tmp_path):
    tiny.model("xlm-roberta", layers=2).save_pretrained(tmp_path / "model")
    tiny.tokenizer("xlm-roberta").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_folders_and_hub_names(folder, monkeypatch):
    assert resolve_model(str(folder)) == str(folder)
    monkeypatch.chdir(folder.parent)
    assert resolve_model("model") == "model"
    assert resolve_model("model/") == "model"
    assert resolve_model("xlm-roberta-base") == "xlm-roberta-base"
    assert resolve_model("microsoft/mdeberta-v3-base") == "microsoft/mdeberta-v3-base"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere/", "~/no/such/thing", "runs/one/student"])
def test_paths_that_are_not_there(name):
    with pytest.raises(InputError, match="no such folder"):
        resolve_model(name)


def test_other_things_than_models(tmp_path):
    with pytest.raises(ArtefactError, match=r"config\.json is missing"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.bin").touch()
    with pytest.raises(InputError, match="is a file"):
        resolve_model(str(tmp_path / "model.bin"))
    with pytest.raises(InputError, match="empty"):
        resolve_model(" ")


def test_packaged_teacher_has_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr("bistil.pretrained.e5_small_folder", lambda: tmp_path)
    assert resolve_model("e5-small") == str(tmp_path)


def test_tokenizer_of_a_folder(folder):
    text = "The cat sat on the mat."
    assert load_tokenizer(str(folder))(text)["input_ids"] == tiny.tokenizer("xlm-roberta")(text)["input_ids"]


def one_line(error):
    return len(str(error.value).splitlines()) == 1


def test_tokenizer_that_is_nowhere():
    with pytest.raises(InputError, match="nobody/nothing") as error:
        load_tokenizer("nobody/nothing")
    assert one_line(error)


def test_tokenizer_missing_and_damaged(folder):
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtefactError, match="tokenizer") as error:
        load_tokenizer(str(folder))
    assert one_line(error)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ArtefactError, match="tokenizer") as error:
        load_tokenizer(str(folder))
    assert one_line(error)


def test_slow_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}', encoding="utf-8")
    assert not AutoTokenizer.from_pretrained(folder).is_fast
    with pytest.raises(ArtefactError, match="slow"):
        load_tokenizer(str(folder))
