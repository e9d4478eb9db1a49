"""Losses and gradient norms against numbers made by the official implementation (read from BISTIL_GOLDEN)."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from bistil.distillation.aligned_attention import AttentionInputs
from bistil.distillation.objectives import attention_loss, hidden_loss, prediction_loss
from bistil.distillation.representations import Capture, probabilities
from bistil.distillation.student import choose_layers, make_student
from bistil.settings.recipe import StudentSettings
from bistil.text import IGNORED

FOLDER = Path(os.environ.get("BISTIL_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"))
INDEX = json.loads((FOLDER / "index.json").read_text()) if (FOLDER / "index.json").exists() else []
HEADS = {
    "masked-lm": AutoModelForMaskedLM,
    "token-classification": AutoModelForTokenClassification,
    "sequence-classification": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
}

pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(not INDEX, reason=f"no golden numbers in {FOLDER}"),
]


def load(case):
    config = AutoConfig.for_model(**case["config"])
    teacher = HEADS[case["head"]].from_config(config).eval()
    weights = load_file(FOLDER / f"{case['case']}.teacher.safetensors")
    missing, unexpected = teacher.load_state_dict(weights, strict=False)
    tied = set(teacher.all_tied_weights_keys)
    assert not set(missing) - tied and not unexpected
    batch = json.loads((FOLDER / f"{case['case']}.batch.json").read_text())
    return teacher, {name: torch.tensor(value) for name, value in batch.items()}


def losses(teacher, student, layers, batch, head, *, fused):
    """The three terms through the public functions, as phase 2 uses them."""
    inputs = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask", "token_type_ids")}
    depth = len(layers)
    with (
        Capture(teacher, hidden_layers=[0, *layers], attention_layers=layers) as theirs,
        Capture(student, hidden_layers=range(depth + 1), attention_layers=range(1, depth + 1)) as ours,
    ):
        with torch.no_grad():
            target = theirs.run(inputs, head=True)
        targets = {i: target.attention[layer] for i, layer in enumerate(layers, 1)}
        fused = fused and all(isinstance(t, AttentionInputs) for t in targets.values())
        got = ours.run(inputs, head=True, targets=targets if fused else None)
        mask = inputs.get("attention_mask")
        if fused:
            attention = [got.attention_losses[i] for i in targets]
        else:
            attention = [
                attention_loss(probabilities(got.attention[i]), probabilities(targets[i]), mask) for i in targets
            ]
        hidden = [hidden_loss(got.hidden[i], target.hidden[t], mask) for i, t in enumerate([0, *layers])]
        terms = {"attention": sum(attention) / len(attention), "hidden": sum(hidden) / len(hidden)}
        if head == "question-answering":
            # Spans lie in real tokens: padding gets probability 0 on both sides.
            ours, theirs = (side.logits.masked_fill(mask[..., None] == 0, -1e9) for side in (got, target))
            terms["prediction"] = sum(prediction_loss(ours[..., p], theirs[..., p], 2.0) for p in (0, 1))
        elif head != "masked-lm":
            rows = batch["labels"] != IGNORED if head == "token-classification" else None
            terms["prediction"] = prediction_loss(got.logits, target.logits, 2.0, rows)
        return terms


def gradient_norm(loss, model):
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return torch.stack([g.norm() for g in gradients if g is not None]).norm()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("case", INDEX, ids=lambda case: case["case"])
def test_losses_and_gradient_norms_match_the_official_objective(case, fused):
    teacher, batch = load(case)
    layers = choose_layers(case["config"]["num_hidden_layers"], StudentSettings(name="s", reduction=case["stride"]))
    student = make_student(teacher, layers)
    terms = losses(teacher, student, layers, batch, case["head"], fused=fused)
    expected = case["losses"]
    assert set(terms) == {name for name in expected if not name.endswith("_grad_norm")}
    for name, loss in terms.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-5)
        assert gradient_norm(loss, student).item() == pytest.approx(expected[f"{name}_grad_norm"], rel=1e-5)


@pytest.mark.parametrize("case", [c for c in INDEX if c["stride"] == 2], ids=lambda case: case["case"])
def test_padding_changes_neither_losses_nor_gradients(case):
    teacher, batch = load(case)
    layers = [2, 4, 6]
    length, extra = batch["input_ids"].shape[1], 5
    pad = {"input_ids": case["config"]["pad_token_id"], "attention_mask": 0, "token_type_ids": 0, "labels": IGNORED}
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    padded = {
        name: torch.nn.functional.pad(value, (0, extra), value=pad[name])
        if value.ndim == 2 and value.shape[1] == length
        else value
        for name, value in batch.items()
    }
    results = []
    for one in (batch, padded):
        student = make_student(teacher, layers)
        terms = losses(teacher, student, layers, one, case["head"], fused=True)
        results.append({name: (loss.item(), gradient_norm(loss, student).item()) for name, loss in terms.items()})
    for name, (loss, norm) in results[0].items():
        assert results[1][name] == pytest.approx((loss, norm), rel=2e-5)
