"""Captured states and maps against transformers' own eager outputs, for every family."""

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from bistil.distillation.objectives import attention_loss
from bistil.distillation.representations import Capture, probabilities


def batch(padding=True):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 60, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    if padding:
        mask[1, 9:] = 0
        mask[2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_states_and_maps_are_those_of_transformers(family, padding):
    model = tiny.model(family, head=AutoModelForSequenceClassification)
    inputs = batch(padding)
    model.set_attn_implementation("eager")
    expected = model(**inputs, output_hidden_states=True, output_attentions=True)
    if family != "deberta-v2":
        model.set_attn_implementation("sdpa")
    with Capture(model, hidden_layers=range(7), attention_layers=[2, 6]) as capture:
        got = capture.run(inputs, head=True)
    real = inputs["attention_mask"].bool()
    assert sorted(got.hidden) == list(range(7)) and sorted(got.attention) == [2, 6]
    for i, state in got.hidden.items():
        torch.testing.assert_close(state[real], expected.hidden_states[i][real], rtol=1e-4, atol=1e-5)
    for layer, attention in got.attention.items():
        rows = probabilities(attention).transpose(1, 2)[real]
        torch.testing.assert_close(rows, expected.attentions[layer - 1].transpose(1, 2)[real], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_vectors_are_the_projections(family):
    model = tiny.model(family)
    with Capture(model, relation_layers=[6]) as capture:
        query, key, value = capture.run(batch()).vectors[6]
    assert query.shape == key.shape == value.shape == (3, 12, 32)
    assert not torch.equal(query, key) and not torch.equal(key, value)
    if family in ("bert", "roberta", "xlm-roberta"):
        states = {}
        layer = model.encoder.layer[5]
        handle = layer.register_forward_pre_hook(lambda _m, args: states.update(x=args[0]))
        model(**batch())
        handle.remove()
        torch.testing.assert_close(query, layer.attention.self.query(states["x"]))


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "deberta-v2"])
def test_a_target_gives_the_loss_with_the_attention(family):
    teacher, student = tiny.model(family), tiny.model(family, seed=1)
    with (
        Capture(teacher, attention_layers=[4]) as theirs,
        Capture(student, hidden_layers=[6], attention_layers=[4]) as ours,
    ):
        with torch.no_grad():
            target = theirs.run(batch()).attention
        plain = ours.run(batch())
        fused = ours.run(batch(), targets=target)
    mask = batch()["attention_mask"]
    expected = attention_loss(probabilities(plain.attention[4]), probabilities(target[4]), mask)
    torch.testing.assert_close(fused.attention_losses[4], expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(fused.last[mask.bool()], plain.last[mask.bool()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_closing_leaves_the_model_as_it_was(family, tmp_path):
    model = tiny.model(family)
    before = model(**batch()).last_hidden_state
    implementation = model.config._attn_implementation
    capture = Capture(model, hidden_layers=[0, 6], attention_layers=[6], relation_layers=[6])
    model.save_pretrained(tmp_path)
    assert "bistil" not in (tmp_path / "config.json").read_text()
    capture.close()
    assert model.config._attn_implementation == implementation
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.testing.assert_close(model(**batch()).last_hidden_state, before)


def test_two_captures_on_two_models_do_not_mix():
    one, two = tiny.model("bert"), tiny.model("bert", seed=1)
    with Capture(one, attention_layers=[1]) as first, Capture(two, attention_layers=[2]) as second:
        assert list(first.run(batch()).attention) == [1]
        assert list(second.run(batch()).attention) == [2]
