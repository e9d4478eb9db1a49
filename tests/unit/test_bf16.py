"""bf16: its linear maps and attention maps against float32 ones, what is kept of frozen weights, and resumed runs."""

import json

import pytest
import tiny
import torch
from fitting import RANDOM
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from bistil.distillation.aligned_attention import AttentionInputs, aligned_attention, attention_with_map
from bistil.distillation.module import Distiller
from bistil.distillation.objectives import attention_loss
from bistil.distillation.student import make_student
from bistil.distillation.task import SelfTaught
from bistil.runtime import fast_linear as module
from bistil.runtime.fast_linear import fast_linear
from bistil.runtime.precision import precision_here
from bistil.settings.recipe import ObjectiveSettings, TrainingSettings
from bistil.training.loop import train


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def cosine(one, other):
    return float(F.cosine_similarity(one.double().flatten(), other.double().flatten(), 0))


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


# --- linear maps


@pytest.mark.parametrize("shape", [(40, 24), (4, 10, 24), (2, 24), (8, 5, 1, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_maps_are_those_of_rounded_matrices(shape, with_bias):
    """Values and gradients are those of float64 products of the rounded matrices, rounded once more at the end."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(one, generator=generator) for one in [shape, (16, 24), *([(16,)] if with_bias else [])]]
    upstream = torch.randn(*shape[:-1], 16, generator=generator).bfloat16()
    ours = [tensor.clone().requires_grad_() for tensor in drawn]
    with bf16(), fast_linear():
        got = F.linear(*ours)
    exact = [tensor.bfloat16().double().requires_grad_() for tensor in drawn]
    expected = F.linear(*exact)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-3)
    gradients = torch.autograd.grad(got, ours, upstream)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-2)


def test_a_frozen_weight_is_cast_until_it_changes_and_a_trained_one_each_time(monkeypatch):
    weight, input = torch.nn.Parameter(torch.randn(8, 8), requires_grad=False), torch.randn(4, 8)

    def wanted():
        return F.linear(input.bfloat16(), weight.detach().bfloat16())

    def got():
        with bf16(), fast_linear():
            return F.linear(input, weight).detach()

    def kept():
        return module._COPIES.get(weight)

    assert torch.equal(got(), wanted())
    first = kept()[1]
    assert torch.equal(got(), wanted()) and kept()[1] is first
    # As a language SFT is put on (`sparse.ledger`).
    with torch.no_grad():
        weight.put_(torch.tensor([3]), torch.tensor([9.0]))
    assert torch.equal(got(), wanted()) and kept()[1] is not first
    # The fused optimizer does not count its changes.
    weight.requires_grad_(True)
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for _ in range(2):
        with bf16(), fast_linear():
            F.linear(input, weight).float().sum().backward()
        optimizer.step()
        assert torch.equal(got(), wanted())
    weight.requires_grad_(False)
    assert torch.equal(got(), wanted())
    # What was cast in inference mode can be learnt with afterwards.
    with torch.no_grad():
        weight.mul_(2)
    with torch.inference_mode():
        got()
    other = torch.randn(4, 8, requires_grad=True)
    with bf16(), fast_linear():
        F.linear(other, weight).float().sum().backward()
    assert other.grad is not None
    # Of long batches nothing is kept: see `_FEW_ROWS`.
    module._COPIES.pop(weight)
    monkeypatch.setattr(module, "_FEW_ROWS", 3)
    assert torch.equal(got(), wanted()) and kept() is None


def test_without_autocast_nothing_is_rounded():
    input, weight = torch.randn(40, 8), torch.randn(8, 8)
    with fast_linear():
        assert F.linear(input, weight).dtype == torch.float32


# --- attention with its loss


def drawn(*, seed, scale=1.0, heads=3, tokens=20, width=8):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(4, heads, tokens, width, generator=generator)).bfloat16() for _ in "qkv"]


@pytest.mark.parametrize("given", ["nothing", "boolean", "added"])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("output_counts", [True, False])
def test_attention_and_its_loss_against_float64(given, keeps, output_counts):
    """With scores up to 40, as trained models have; also where only the loss gives a gradient, not the output."""
    scaling, tokens = 8**-0.5, 20
    lengths = torch.tensor([20, 13, 5, 20])
    real = (torch.arange(tokens)[None] < lengths[:, None]) if given != "nothing" else None
    mask = None if real is None else real[:, None, None]
    if given == "added":
        mask = torch.zeros(4, 1, 1, tokens).masked_fill(~mask, torch.finfo(torch.float32).min)
    theirs, ours = drawn(seed=1, scale=3.0), drawn(seed=2, scale=3.0)
    ours[:2] = [(one + 0.2 * other).bfloat16() for one, other in zip(theirs, ours[:2], strict=False)]
    teacher = AttentionInputs(theirs[0], theirs[1], mask, scaling)
    if keeps:
        output, teacher = attention_with_map(*theirs, mask=mask, scaling=scaling)
        assert teacher.map is not None and teacher.map.dtype == torch.bfloat16
        expected = F.scaled_dot_product_attention(
            *(one.double() for one in theirs), attn_mask=mask if mask is None or given == "boolean" else mask.double()
        )
        torch.testing.assert_close(output.double(), expected, rtol=2**-6, atol=2e-2)
    leaves = [one.clone().requires_grad_() for one in ours]
    output, loss = aligned_attention(*leaves, mask=mask, scaling=scaling, teacher=teacher, real=real)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)) * 1e-3 * output_counts
    (loss + (output * upstream).sum()).backward()

    exact = [one.double().requires_grad_() for one in ours]
    maps = [
        AttentionInputs(q, k, mask, scaling).probabilities()
        for q, k in (exact[:2], [one.double() for one in theirs[:2]])
    ]
    wanted_output, wanted = maps[0] @ exact[2], attention_loss(*maps, real)
    (wanted + (wanted_output * upstream.double()).sum()).backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-2)
    for got, other in zip(leaves, exact, strict=True):
        if other.grad.abs().max() == 0:
            assert got.grad.abs().max() == 0
        else:
            assert cosine(got.grad, other.grad) > 0.9998
            assert float((got.grad - other.grad).norm() / other.grad.norm()) < 0.02


# --- whole models


def batch():
    ids = torch.randint(5, 60, (6, 24), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for row, length in enumerate((24, 17, 24, 9, 24, 3)):
        mask[row, length:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def distilled(family, **weights):
    """A distiller whose student has moved away from its teacher, as after some training."""
    teacher = tiny.masked_lm(family)
    student = make_student(teacher, [3, 6])
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    objective = ObjectiveSettings(**{"attention": 0.0, "hidden": 0.0, **weights})
    return Distiller(teacher, {"s": student}, objectives={"s": objective}).train()


def gradients_of(module, inputs):
    parameters = [p for p in module.parameters() if p.requires_grad]
    plain = module(**inputs)["loss"]
    wanted = flat(torch.autograd.grad(plain, parameters, allow_unused=True))
    with bf16():
        loss = module(**inputs)["loss"]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert {gradient.dtype for gradient in found if gradient is not None} == {torch.float32}
    return (float(loss.detach()), flat(found)), (float(plain.detach()), wanted)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("term", ["attention", "hidden", "relations", "cosine", "prediction", "hard_labels"])
def test_the_gradient_of_each_term_by_itself(family, term):
    inputs = batch()
    labels = torch.where((torch.arange(144).view(6, 24) % 5 == 0) & inputs["attention_mask"].bool(), 7, -100)
    heads = {"relation_heads": 4} if term == "relations" else {}
    (loss, found), (plain, wanted) = gradients_of(
        distilled(family, **{term: 1.0}, **heads), {**inputs, "labels": labels}
    )
    assert loss == pytest.approx(plain, rel=0.03)
    assert cosine(found, wanted) > 0.998
    assert float((found - wanted).norm() / wanted.norm()) < 0.06


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_with_dropout_the_same_is_dropped(family):
    name = "attention_dropout" if family == "modernbert" else "hidden_dropout_prob"
    model = tiny.model(family, head=AutoModelForSequenceClassification, layers=2)
    rates = [one for one in model.modules() if isinstance(one, torch.nn.Dropout)]
    for one in rates:
        one.p = 0.3
    assert rates and hasattr(model.config, name)
    learner = SelfTaught(model).train()
    inputs = {**batch(), "labels": torch.tensor([0, 1, 0, 1, 1, 0])}
    parameters = list(model.parameters())
    found = []
    for low in (False, True):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = learner(**inputs)["loss"]
        found.append(flat(torch.autograd.grad(loss, parameters, allow_unused=True)))
    assert cosine(*found) > 0.998


# --- training


def collate(rows):
    return {"input_ids": torch.stack([row["input_ids"] for row in rows])}


DATA = [{"input_ids": torch.randint(5, 60, (24,), generator=torch.Generator().manual_seed(i))} for i in range(64)]


class Stopping(Distiller):
    """Ends like a killed process at a call."""

    stop_at: int | None = None
    calls = 0

    def forward(self, **inputs):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return super().forward(**inputs)


def run(folder, *, precision, stop_at=None, steps=8):
    teacher = tiny.model("bert")
    student = make_student(teacher, [3, 6], RANDOM, seed=1)
    module = Stopping(teacher, {"s": student}, objectives={"s": ObjectiveSettings()})
    module.stop_at = stop_at
    settings = TrainingSettings(
        steps=steps, batch_size=8, learning_rate=1e-3, checkpoint_steps=3, log_steps=1, precision=precision
    )
    result = train(module, DATA, collate=collate, settings=settings, folder=folder, seed=7)
    return result, {name: value.detach().clone() for name, value in student.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "train_log.jsonl").read_text().splitlines()]


def test_thirty_steps_learn_what_float32_learns(tmp_path):
    for precision in ("float32", "bf16"):
        run(tmp_path / precision, precision=precision, steps=30)
    plain, low = losses(tmp_path / "float32"), losses(tmp_path / "bf16")
    assert plain[-1] < 0.7 * plain[0]
    assert low == pytest.approx(plain, rel=0.02) and low != plain


def test_a_resumed_bf16_run_ends_bit_identical(tmp_path):
    _, whole = run(tmp_path / "whole", precision="bf16")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", precision="bf16", stop_at=6)
    _, resumed = run(tmp_path / "cut", precision="bf16")
    assert same(resumed, whole)


@pytest.mark.parametrize(("here", "elsewhere"), [("bf16", "float32"), ("float32", "bf16")])
def test_auto_goes_on_as_it_began_on_a_machine_of_another_kind(tmp_path, monkeypatch, here, elsewhere):
    _, whole = run(tmp_path / "whole", precision=here)
    monkeypatch.setenv("BISTIL_PRECISION", here)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", precision="auto", stop_at=6)
    monkeypatch.setenv("BISTIL_PRECISION", elsewhere)
    result, resumed = run(tmp_path / "cut", precision="auto")
    assert result.precision == here and same(resumed, whole)
    again, finished = run(tmp_path / "cut", precision="auto")
    assert again == result and same(finished, whole)
    fresh, other = run(tmp_path / "fresh", precision="auto")
    assert fresh.precision == elsewhere and not same(other, whole)


def test_float32_after_bf16_in_one_process_is_float32(tmp_path):
    _, alone = run(tmp_path / "alone", precision="float32")
    run(tmp_path / "low", precision="bf16")
    _, after = run(tmp_path / "after", precision="float32")
    assert same(after, alone)


# --- the rule


def test_auto_is_a_rule_on_the_hardware(monkeypatch):
    import bistil.runtime.precision as rule

    monkeypatch.delenv("BISTIL_PRECISION", raising=False)
    for units in (True, False):
        monkeypatch.setattr(rule, "has_bf16_units", lambda units=units: units)
        assert precision_here("cpu") == ("bf16" if units else "float32")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda units=units: units)
        assert precision_here("cuda:0") == ("bf16" if units else "float32")
        assert precision_here("mps") == "float32"
    monkeypatch.setenv("BISTIL_PRECISION", "bf16")
    assert precision_here("cpu") == "bf16"
