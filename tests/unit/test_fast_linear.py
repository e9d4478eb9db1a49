"""oneDNN's linear maps against the default ones."""

import pytest
import tiny
import torch
from torch.nn import functional as F

from bistil.runtime import fast_linear as module
from bistil.runtime.fast_linear import fast_linear
from bistil.tasks.batches import TorchEngine

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this PyTorch")


@pytest.fixture(autouse=True)
def wanted(monkeypatch):
    monkeypatch.setattr(module, "is_wanted", lambda: True)


@pytest.mark.parametrize("shape", [(40, 24), (4, 10, 24), (2, 24), (8, 5, 1, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(shape, with_bias):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator), torch.randn(16, 24, generator=generator)]
    inputs += [torch.randn(16, generator=generator)] if with_bias else []
    inputs = [tensor.requires_grad_() for tensor in inputs]
    upstream = torch.randn(*shape[:-1], 16, generator=generator)
    expected = F.linear(*inputs)
    with fast_linear():
        got = F.linear(*inputs)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad((y * upstream).sum(), inputs) for y in (got, expected)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_strided_inputs_and_partial_gradients():
    weight = torch.randn(16, 24)
    for input in (torch.randn(24, 40).t(), torch.randn(40, 48)[:, ::2], torch.randn(3, 24, 20).transpose(1, 2)):
        with fast_linear():
            torch.testing.assert_close(F.linear(input, weight), F.linear(input.contiguous(), weight))
            leaf = weight.clone().requires_grad_()
            F.linear(input, leaf).sum().backward()
        expected = input.reshape(-1, 24).sum(0).expand(16, -1)
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-4, atol=1e-4)


def test_it_is_used_for_float32_only_and_ends_with_the_block(monkeypatch):
    calls = []
    product = module.linear_pointwise
    monkeypatch.setattr(module, "linear_pointwise", lambda *args: calls.append(args) or product(*args))
    model, ids = tiny.model("bert"), torch.arange(5, 55).view(2, 25)
    expected = model(ids).last_hidden_state
    assert not calls
    with fast_linear():
        torch.testing.assert_close(model(ids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
        assert len(calls) >= 36
        calls.clear()
        F.linear(torch.randn(40, 8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64))
        with torch.autocast("cpu", torch.bfloat16):
            F.linear(torch.randn(40, 8), torch.randn(8, 8))
    F.linear(torch.randn(40, 8), torch.randn(8, 8))
    assert not calls


@pytest.mark.parametrize("least", [32, 256])
def test_an_input_too_short_to_gain_runs_as_it_is(least, monkeypatch):
    calls = []
    product = module.linear_pointwise
    monkeypatch.setattr(module, "_gains_from", lambda: least)
    monkeypatch.setattr(module, "linear_pointwise", lambda *args: calls.append(args) or product(*args))
    model = tiny.model("bert", layers=1)
    model.config.id2label = {0: "a"}
    engine = TorchEngine(model)
    for rows in (least - 8, least):
        ids = torch.arange(rows).view(8, -1) % 50 + 5
        expected = model(ids).last_hidden_state
        given = engine({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["last_hidden_state"]
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
        assert bool(calls) == (rows == least)


def test_an_engine_leaves_every_module_in_the_mode_that_it_had():
    model = tiny.model("bert", layers=2).train()
    model.config.id2label = {0: "a"}
    frozen = model.encoder.layer[0].eval()
    before = [one.training for one in model.modules()]
    ids = torch.arange(5, 15).view(1, -1)
    engine = TorchEngine(model)
    given = [engine({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).last_hidden_state for _ in range(2)]
    # Dropout was off.
    torch.testing.assert_close(given[0], given[1], rtol=0, atol=0)
    assert [one.training for one in model.modules()] == before and not frozen.training and model.training


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("make", ["self-taught", "masked-lm"])
def test_modules_that_are_compiled_go_without(make):
    """torch.compile cannot trace the operator; what trains such modules asks for none."""
    from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

    from bistil.distillation.task import SelfTaught
    from bistil.sparse.language import MaskedLanguageModelling

    ids = torch.arange(5, 85).view(2, 40)
    if make == "self-taught":
        module = SelfTaught(tiny.model("bert", head=AutoModelForSequenceClassification, layers=1), fast=False)
        batch = {"input_ids": ids, "labels": torch.tensor([0, 1])}
    else:
        module = MaskedLanguageModelling(tiny.model("bert", head=AutoModelForMaskedLM, layers=1), fast=False)
        batch = {"input_ids": ids, "labels": torch.where(ids % 7 == 0, ids, -100)}
    plain = module.eval()(**batch)["loss"]
    compiled = torch.compile(module, backend="eager")(**batch)["loss"]
    compiled.backward()
    torch.testing.assert_close(compiled.detach(), plain.detach(), rtol=1e-5, atol=1e-6)
