"""Models exported for CTranslate2: PyTorch's outputs and predictions without PyTorch, all tasks."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from task_models import LABELS, TAGS, TEXTS, model_in, refused, same_answers, tagged
from task_models import exported as export

import bistil
from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.measuring.evaluation import evaluate_folder
from bistil.models.loading import load_model
from bistil.runtime.artefacts import RECORD

pytest.importorskip("ctranslate2", reason="pip install 'bistil[ctranslate2]'")

from bistil.engines.ctranslate2 import CTranslate2Engine
from bistil.export import encoder as export_encoder
from bistil.export.folder import export_model
from bistil.export.proof import TOLERANCE

FAMILIES = ("bert", "xlm-roberta", "roberta", "distilbert")
CASES = [(family, TAGS) for family in FAMILIES] + [("bert", kind) for kind in LABELS if kind != TAGS]
CASES += [("xlm-roberta", "dependency-parsing"), ("xlm-roberta", "sequence-classification")]
CASES += [("distilbert", "question-answering"), ("distilbert", "sequence-classification")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("ctranslate2")


exported = partial(export, engine="ctranslate2")


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_float32_export_says_what_pytorch_says(place, family, kind):
    same_answers(model_in(place, family, kind), exported(place, family, kind), kind, CTranslate2Engine)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_pytorch_s_for_any_length(place, family):
    """Against the model itself: random tokens and types, lengths up to the positions, padding on the right."""
    engine = CTranslate2Engine(exported(place, family), threads=1)
    model = load_model(model_in(place, family, TAGS))[0]
    generator = torch.Generator().manual_seed(0)
    for rows, tokens in ((1, 1), (1, 7), (2, 16), (5, 33), (3, 138)):
        ids = torch.randint(5, len(tiny.tokenizer(family)), (rows, tokens), generator=generator)
        right = torch.ones_like(ids)
        right[1:, (tokens + 1) // 2 :] = 0
        types = torch.randint(0, 2, ids.shape, generator=generator) if family == "bert" else None
        for mask in (torch.ones_like(ids), right):
            given = {"input_ids": ids, "attention_mask": mask, **({} if types is None else {"token_type_ids": types})}
            with torch.inference_mode():
                expected = model(**given).logits
            found = torch.as_tensor(engine(given)["logits"])
            assert (found - expected)[mask == 1].abs().max() <= TOLERANCE
    # Two types make a difference; a tokenizer that gives more than the model has is not listened to.
    plain = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    same = np.array_equal(engine(plain)["logits"], engine({**plain, "token_type_ids": ids % 2})["logits"])
    assert same == (family != "bert")


def test_the_parser_s_outputs_are_pytorch_s(place):
    """Words of several tokens, sentences of several lengths; what is padded is -inf in both."""
    engine = CTranslate2Engine(exported(place, "bert", "dependency-parsing"), threads=1)
    model = load_model(model_in(place, "bert", "dependency-parsing"))[0]
    ids = torch.arange(10, 34).view(2, 12)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "word_starts": torch.tensor([[1, 3, 4, 7], [1, 2, -1, -1]]),
        "word_ends": torch.tensor([[3, 4, 7, 11], [2, 11, -1, -1]]),
    }
    with torch.inference_mode():
        expected = model(**batch)
    found = engine(batch)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert np.allclose(found[name], values.detach().numpy(), atol=TOLERANCE), name
    assert np.isneginf(found["logits"][1, :, 3:]).all()


def test_the_record_and_the_card_say_what_was_proven(place):
    folder = exported(place)
    record = json.loads((folder / RECORD).read_text())
    assert record["engine"] == "ctranslate2" and record["versions"]["ctranslate2"]
    proof = record["proof"]["float32"]
    assert 0 <= proof["largest_difference"] <= TOLERANCE
    assert proof["batches"] == 7 and proof["tokens"][0] < proof["tokens"][1] and proof["texts"] > 0
    encoder = {f"encoder/{name}" for name in ("config.json", "model.bin", "vocabulary.json")}
    assert set(record["files"]) == {
        "config.json",
        *encoder,
        "head.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert record["bytes"]["encoder/model.bin"] == (folder / "encoder/model.bin").stat().st_size
    card = (exported(place, precision="int8") / "README.md").read_text()
    assert "encoder/model.bin" in card and "not measured" in card and "VNNI" in card and "8 bits" in card


def test_another_encoder_is_refused(place, tmp_path, monkeypatch):
    """An activation that is nearly the right one."""
    monkeypatch.setitem(export_encoder.ACTIVATIONS, "gelu", "GELUSigmoid")
    with pytest.raises(ArtefactError, match="gives other outputs in ctranslate2 than in PyTorch, by up to"):
        export_model(model_in(place, "bert", TAGS), tmp_path / "out", engine="ctranslate2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_smaller_and_says_nearly_the_same(place, family):
    folder, whole = exported(place, family, precision="int8"), exported(place, family)
    sizes = [(one / "encoder/model.bin").stat().st_size for one in (folder, whole)]
    # Positions stay as they are.
    assert sizes[0] < 0.45 * sizes[1]
    record = json.loads((folder / RECORD).read_text())
    assert record["precision"] == record["embeddings"] == "int8" and not record["kept_in_float32"]
    # The PyTorch model that it is compared with is still itself.
    agreed = record["proof"]["agreement"]
    assert agreed["inputs"] / 2 < agreed["same_predictions"] <= agreed["inputs"] and "score" not in record["proof"]
    batch = {"input_ids": torch.arange(5, 45).view(2, 20), "attention_mask": torch.ones(2, 20, dtype=torch.long)}
    close, exact = (CTranslate2Engine(one)(batch)["logits"] for one in (folder, whole))
    assert 0 < np.abs(close - exact).mean() < 0.1 * np.abs(exact).mean()


def test_a_parser_s_weights_are_int8_too(place, monkeypatch):
    monkeypatch.setattr(export_encoder, "LEAST_TENSOR", 0)
    folder = place / "small-parser"
    export_model(model_in(place, "bert", "dependency-parsing"), folder, engine="ctranslate2")
    weight = load_model(model_in(place, "bert", "dependency-parsing"))[0].relations.weight.detach().numpy()
    close = CTranslate2Engine(folder).runner.head.tensors["relation_weight"]
    assert 0 < np.abs(close - weight).max() <= np.abs(weight).max() / 127
    head = (exported(place, "bert", "dependency-parsing") / "head.safetensors").stat().st_size
    assert (folder / "head.safetensors").stat().st_size < 0.6 * head


def test_what_loses_more_than_it_may_is_refused(place, tmp_path):
    sharp = load_model(model_in(place, "bert", TAGS))[0]
    with torch.no_grad():
        for parameter in sharp.bert.encoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20)
    tiny.save(sharp, place / "sharp")
    gold = tagged(place, place / "sharp", "gold.conll")
    options = {"engine": "ctranslate2", "labelled": [gold]}
    free = export_model(place / "sharp", tmp_path / "free", most_loss=100, **options)
    score = free["proof"]["score"]
    assert score["float32_score"] == 100 and score["loss"] == pytest.approx(100 - score["score"]) and score["loss"] > 0
    assert evaluate_folder(tmp_path / "free", files=[gold], bootstrap_samples=0)["score"] == score["score"]
    with pytest.raises(InputError, match=r"int8 loses .* points of f1 on .*gold.conll, and may lose 0:.*onnxruntime"):
        export_model(place / "sharp", tmp_path / "refused", most_loss=0, **options)
    assert [one.name for one in tmp_path.iterdir()] == ["free"]


def test_what_cannot_be_exported_is_one_line(place, command_line, tmp_path):
    out = tmp_path / "out"
    other = "export it for onnxruntime (--engine onnxruntime)"
    for family in ("deberta-v2", "modernbert"):
        model = model_in(place, family, TAGS)
        refused(command_line("export", model, "--engine", "ctranslate2", "-o", out), out, f"kind of {family}", other)
    bert = model_in(place, "bert", TAGS)
    said = "for ctranslate2 it is one of auto, int8"
    call = command_line("export", bert, "--engine", "ctranslate2", "--embeddings", "int4", "-o", out)
    refused(call, out, said)
    with pytest.raises(InputError, match="engine is 'abacus'; choose onnxruntime or ctranslate2"):
        export_model(bert, out, engine="abacus")
    with pytest.raises(ArtefactError, match="exported already"):
        export_model(exported(place), out)


def test_a_missing_engine_says_its_install_line(place, command_line, tmp_path, monkeypatch):
    folder = exported(place)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bistil\[ctranslate2\]'"):
        bistil.load(folder)
    out, bert = tmp_path / "out", model_in(place, "bert", TAGS)
    refused(
        command_line("export", bert, "--engine", "ctranslate2", "-o", out), out, "pip install 'bistil[ctranslate2]'"
    )


def test_what_the_engine_cannot_read_is_refused(place, tmp_path):
    """CTranslate2 itself would read memory that is not its own, or mask other tokens."""
    engine = CTranslate2Engine(exported(place))
    ids = torch.arange(5, 25).view(2, 10)
    mask = torch.ones_like(ids)
    with pytest.raises(ArtefactError, match="input_ids go up to 9999"):
        engine({"input_ids": torch.full_like(ids, 9999), "attention_mask": mask})
    mask[0, 3] = 0
    with pytest.raises(ValueError, match="padded on the right"):
        engine({"input_ids": ids, "attention_mask": mask})
    other = tmp_path / "other"
    (other / "encoder").mkdir(parents=True)
    for name in json.loads((exported(place) / RECORD).read_text())["files"]:
        (other / name).write_bytes((exported(place) / name).read_bytes())
    (other / RECORD).write_bytes((exported(place) / RECORD).read_bytes())
    assert bistil.load(other)(TEXTS[0])
    (other / "encoder/model.bin").write_bytes(b"no model")
    with pytest.raises(ArtefactError, match=r"encoder/model.bin is not what was written"):
        bistil.load(other)
    (other / RECORD).write_text(json.dumps({"kind": "exported model", "engine": "ctranslate2"}))
    with pytest.raises(ArtefactError, match="CTranslate2 cannot open"):
        bistil.load(other)
