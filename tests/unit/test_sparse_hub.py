"""Hub names wherever a path does: against a small hub on this machine that speaks the hub's HTTP."""

import pytest
import torch
from small_hub import Hub, serving
from test_sparse_artefact import random_sft, tagger

from bistil.errors import ArtefactError, InputError
from bistil.sparse import SparseFineTuning, push_to_hub


@pytest.fixture
def api(tmp_path, monkeypatch):
    with serving(tmp_path / "cache", monkeypatch) as client:
        yield client


def test_pushed_and_loaded_by_name(api):
    sft = random_sft(tagger(), seed=1, heads=("classifier.bias",))
    url = push_to_hub(sft, "someone/tagger-sft", api=api)
    assert url.startswith(api.endpoint)
    files = Hub.repositories["someone/tagger-sft"]
    assert {"README.md", "sft.safetensors", "sft_config.json"} <= files.keys()
    assert b"sparse-fine-tuning" in files["README.md"]
    loaded = SparseFineTuning.load("someone/tagger-sft")
    assert loaded.name == "someone/tagger-sft"
    for name, delta in sft.deltas.items():
        assert torch.equal(loaded.deltas[name].values, delta.values)


def test_a_damaged_folder_is_not_pushed(api, tmp_path):
    random_sft(tagger(), seed=1).save(tmp_path / "sft")
    path = tmp_path / "sft/sft.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match="damaged"):
        push_to_hub(tmp_path / "sft", "someone/x", api=api)
    assert Hub.repositories == {}


def test_names_that_are_nowhere(api):
    with pytest.raises(InputError, match="nobody/nothing"):
        SparseFineTuning.load("nobody/nothing")
    with pytest.raises(InputError, match="no such folder"):
        SparseFineTuning.load("./not/a/folder/at all")
    Hub.repositories["someone/model"] = {"README.md": b"a model"}
    with pytest.raises(ArtefactError, match="no sparse fine-tuning"):
        SparseFineTuning.load("someone/model")
    with pytest.raises(InputError, match="cannot push"):
        push_to_hub(random_sft(tagger(), seed=1), "someone/two words", api=api)
