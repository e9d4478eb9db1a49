"""Published `pytorch_diff.bin` files, against parameters that the official code produced."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification, BertConfig

from bistil.errors import ArtefactError, InputError
from bistil.sparse import SparseDelta, SparseFineTuning, read_legacy, write_legacy

FOLDER = Path(os.environ.get("BISTIL_GOLDEN", Path(__file__).parents[3] / "shared/golden")) / "legacy_sft"
HEADS = {"BertForTokenClassification": AutoModelForTokenClassification, "BertForMaskedLM": AutoModelForMaskedLM}


def cases():
    index = FOLDER / "index.json"
    return json.loads(index.read_text()) if index.exists() else []


def base_of(case):
    options = {key: value for key, value in case["config"].items() if key != "model_type"}
    model = HEADS[case["architecture"]].from_config(BertConfig(**options))
    model.load_state_dict(load_file(FOLDER / f"{case['case']}.base.safetensors"), strict=False)
    return model


def assert_applied(model, case):
    expected = load_file(FOLDER / f"{case['case']}.applied.safetensors")
    own = model.state_dict()
    assert own.keys() == expected.keys() - {"bert.embeddings.position_ids"}
    for name, value in expected.items():
        assert torch.equal(own[name], value), name


@pytest.mark.golden
@pytest.mark.parametrize("which", ["task", "language"])
def test_reading_gives_the_official_parameters(which, tmp_path):
    case = next((case for case in cases() if case["case"] == which), None)
    if case is None:
        pytest.skip(f"no golden files in {FOLDER}")
    sft = read_legacy(FOLDER / case["file"])
    assert sft.count == case["deltas"]
    assert sorted(sft.dense) == sorted(case["heads"])
    base = base_of(case)
    with sft.applied(base):
        assert_applied(base, case)
    # Through our own format, and through a written legacy file.
    sft.save(tmp_path / "sft")
    (tmp_path / "legacy").mkdir()
    write_legacy(sft, tmp_path / "legacy/pytorch_diff.bin")
    for folder in ("sft", "legacy"):
        with SparseFineTuning.load(tmp_path / folder).applied(base):
            assert_applied(base, case)


@pytest.mark.golden
def test_the_written_file_is_the_published_form(tmp_path):
    """Value by value the content that the official code wrote."""
    if not cases():
        pytest.skip(f"no golden files in {FOLDER}")
    from bistil.sparse.legacy import _ALLOWED

    for number, case in enumerate(cases()):
        again = tmp_path / f"{number}.bin"
        write_legacy(read_legacy(FOLDER / case["file"]), again)
        with torch.serialization.safe_globals(_ALLOWED):
            official = torch.load(FOLDER / case["file"], weights_only=True)
            own = torch.load(again, weights_only=True)
        assert own.keys() == official.keys()
        assert own["abs"].keys() == official["abs"].keys()
        for name, encoded in official["diffs"].items():
            assert own["diffs"][name]["size"] == encoded["size"]
            assert own["diffs"][name]["index_steps"] == [int(step) for step in encoded["index_steps"]]
            assert torch.equal(own["diffs"][name]["values"], encoded["values"])


def test_column_major_by_hand(tmp_path):
    """Entry (1, 2) of a (2, 3) matrix has the column-major index 1 + 2 * 2 = 5; (0, 1) has 2; (1, 0) has 1."""
    path = tmp_path / "pytorch_diff.bin"
    encoded = {"size": torch.Size([2, 3]), "index_steps": [1, 1, 3], "values": torch.tensor([10.0, 20.0, 30.0])}
    dense = torch.tensor([[0.0, 4.0], [5.0, 0.0]])
    torch.save({"diffs": {"m": encoded, "d": dense}, "abs": {"h": torch.ones(2)}}, path)
    sft = read_legacy(path)
    assert sft.deltas["m"].indices.tolist() == [1, 3, 5]
    assert sft.deltas["m"].values.tolist() == [20.0, 10.0, 30.0]
    assert sft.deltas["d"].indices.tolist() == [1, 2]
    assert sft.dense["h"].tolist() == [1.0, 1.0]


def test_three_dimensions_and_nothing(tmp_path):
    generator = torch.Generator().manual_seed(0)
    indices = torch.nonzero(torch.rand(60, generator=generator) < 0.3).flatten()
    none = torch.empty(0, dtype=torch.int64)
    sft = SparseFineTuning(
        {
            "t": SparseDelta(indices, torch.randn(len(indices)), (3, 4, 5)),
            "e": SparseDelta(none, torch.empty(0), (4, 4)),
        }
    )
    write_legacy(sft, tmp_path / "pytorch_diff.bin")
    again = read_legacy(tmp_path / "pytorch_diff.bin")
    assert torch.equal(again.deltas["t"].indices, indices)
    assert torch.equal(again.deltas["t"].values, sft.deltas["t"].values)
    assert not len(again.deltas["e"].indices)
    write_legacy(sft, tmp_path / "another.bin")
    assert (tmp_path / "another.bin").read_bytes() == (tmp_path / "pytorch_diff.bin").read_bytes()


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    "content, message",
    [
        ({"diffs": {}, "abs": {"x": Evil()}}, "not loaded"),
        ({"weights": {}}, "no table 'diffs'"),
        (
            {"diffs": {"m": {"size": [2, 2], "index_steps": [0, 9], "values": torch.ones(2)}}},
            "index 9 is out of range",
        ),
        ({"diffs": {"m": {"size": [2, 2], "index_steps": [0], "values": torch.ones(2)}}}, "1 indices for 2 values"),
        ({"diffs": {"m": {"size": [2, 2], "index_steps": [1, 0], "values": torch.ones(2)}}}, "appears twice"),
        ({"diffs": {"m": {"size": [2, 2]}}}, "not an encoded sparse tensor"),
        ({"diffs": {"m": {"size": [2, 2], "index_steps": [2**70], "values": torch.ones(1)}}}, "not an encoded"),
        ({"diffs": {"m": {"size": [2**40, 2**40], "index_steps": [1], "values": torch.ones(1)}}}, "not an encoded"),
        ({"diffs": {"m": {"size": [-2, -2], "index_steps": [1], "values": torch.ones(1)}}}, "not an encoded"),
        ({"diffs": {}, "block_sparses": {"x": 1}}, "block-sparse"),
        ({"diffs": {"m": torch.full((2, 2), float("nan"))}}, "NaN"),
    ],
)
def test_bad_files(tmp_path, capsys, content, message):
    path = tmp_path / "pytorch_diff.bin"
    torch.save(content, path)
    with pytest.raises(ArtefactError, match=message) as caught:
        read_legacy(path)
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_truncated_and_missing(tmp_path):
    path = tmp_path / "pytorch_diff.bin"
    torch.save({"diffs": {"m": torch.ones(100, 100)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ArtefactError, match="damaged"):
        read_legacy(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ArtefactError):
        read_legacy(path)
    with pytest.raises(InputError, match="missing"):
        read_legacy(tmp_path / "none.bin")
