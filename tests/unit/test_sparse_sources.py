"""Multi-source training, other optimizers, and the baselines that LT-SFT is compared with."""

import numpy as np
import pytest
import torch
from test_sparse_artefact import random_sft
from test_sparse_training import HEADS, LABELS, bits, collate, examples, quick_collections, run, tagger
from torch import nn

from bistil.errors import ArtefactError, InputError
from bistil.settings.recipe import SparseSettings, TrainingSettings
from bistil.sparse import SourceBatches, baseline_mask, train_sparse
from bistil.sparse.parametrisation import parametrised

__all__ = ["quick_collections"]


@pytest.mark.parametrize("sizes, steps", [((30, 10), 8), ((7, 7, 7), 5), ((1, 50), 20), ((3,), 4)])
def test_every_batch_is_in_one_language(sizes, steps):
    data = SourceBatches({f"l{n}": list(range(size)) for n, size in enumerate(sizes)}, collate=lambda rows: {"x": rows})
    order = data.training_order(items=steps * 4, batch_size=4, seed=0)
    rows = [[data[int(i)] for i in batch] for batch in order.reshape(-1, 4)]
    languages = [{language for language, _ in batch} for batch in rows]
    assert len(order) == steps * 4 and all(len(own) == 1 for own in languages)
    counts = [sum(f"l{n}" in own for own in languages) for n in range(len(sizes))]
    assert sum(counts) == steps
    assert all(abs(count - steps * size / sum(sizes)) <= 1 for count, size in zip(counts, sizes, strict=True))
    assert data.collate(rows[0])["language"] in languages[0]
    assert np.array_equal(order, data.training_order(items=steps * 4, batch_size=4, seed=0))


def test_no_examples():
    with pytest.raises(InputError, match="sw"):
        SourceBatches({"en": [1], "sw": []}, collate=dict)


def test_wearing_inside_equals_wearing():
    """The forward pass of the current language is that of the model with its SFT put on."""
    module = tagger()
    sfts = {language: random_sft(tagger().model, seed=seed) for seed, language in enumerate(("en", "sw"))}
    batch = collate(examples())
    expected = {}
    for language, sft in sfts.items():
        with sft.applied(module.model, heads=False):
            expected[language] = module(**batch)["loss"]
    expected[None] = module(**batch)["loss"]
    with parametrised(module.model, None, sfts) as (deltas, languages):
        assert not deltas
        for language in ("en", None, "sw", "en"):
            languages.current = language
            assert torch.equal(module(**batch)["loss"], expected[language])
    assert torch.equal(module(**batch)["loss"], expected[None])


def test_both_languages_train_one_sft(tmp_path):
    """One step per language, by hand: the gradient of each batch is that of the model that wears its language."""
    module = tagger()
    base = bits(module.model)
    sfts = {language: random_sft(tagger().model, seed=seed) for seed, language in enumerate(("en", "sw"))}
    data = SourceBatches({"en": examples(4), "sw": examples(8)[4:]}, collate)
    mask = {"bert.encoder.layer.0.output.dense.weight": torch.arange(0, 2048, 3)}
    sft = train_sparse(
        module,
        data,
        model=module.model,
        dense_parameters=HEADS,
        settings=SparseSettings(sparse_steps=2),
        training=TrainingSettings(epochs=1, batch_size=4, learning_rate=1e-2, max_grad_norm=0.0),
        collate=data.collate,
        folder=tmp_path,
        seed=1,
        mask=mask,
        sources=sfts,
    )
    sft.revert(module.model)
    assert all(torch.equal(base[name], value) for name, value in bits(module.model).items())

    plain = tagger()
    weight = plain.model.bert.encoder.layer[0].output.dense.weight
    delta = torch.zeros(683, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [delta, *(plain.model.get_parameter(name) for name in HEADS)], lr=1e-2, weight_decay=0.0
    )
    theta = weight.detach().clone()
    for step, index in enumerate(data.training_order(items=8, batch_size=4, seed=1).reshape(2, 4)):
        rows = [data[int(i)] for i in index]
        with torch.no_grad():
            weight.copy_(
                theta.flatten().index_add(0, mask["bert.encoder.layer.0.output.dense.weight"], delta).view_as(theta)
            )
        with sfts[rows[0][0]].applied(plain.model, heads=False):
            loss = plain(**collate([row for _, row in rows]))["loss"]
            gradients = torch.autograd.grad(loss, [weight, *(plain.model.get_parameter(name) for name in HEADS)])
        delta.grad = gradients[0].flatten()[mask["bert.encoder.layer.0.output.dense.weight"]]
        for name, gradient in zip(HEADS, gradients[1:], strict=True):
            plain.model.get_parameter(name).grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 2)
        optimizer.step()
    torch.testing.assert_close(sft.deltas["bert.encoder.layer.0.output.dense.weight"].values, delta.detach())


def test_sources_of_another_base_shape(tmp_path):
    module = tagger()
    other = random_sft(tagger(hidden=16).model, seed=1)
    with pytest.raises(ArtefactError, match="shape"):
        run(tmp_path, module, sources={"en": other})
    assert not any("parametrizations" in name for name, _ in module.named_parameters())
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5, amsgrad=True),
        lambda parameters: torch.optim.Adagrad(parameters, lr=0.1, weight_decay=0.1),
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.1, momentum=0.5, weight_decay=0.1),
    ],
    ids=["SGD", "AdamW", "Adagrad", "RMSprop"],
)
def test_frozen_entries_stay_under_any_optimizer(optimizer):
    module = tagger()
    base = bits(module.model)
    mask = baseline_mask(module.model, "random", count=300, seed=0, dense=HEADS)
    with parametrised(module.model, mask) as (deltas, _):
        stepper = optimizer(list(module.parameters()))
        for _ in range(3):
            stepper.zero_grad()
            module(**collate(examples()))["loss"].backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            stepper.step()
        moved = {name: value.detach().clone() for name, value in deltas.items()}
        inside = {name: p.detach().clone() for name, p in _effective(module.model, mask).items()}
    assert sum(int((value != 0).sum()) for value in moved.values()) > 100
    for name, indices in mask.items():
        same = torch.ones(base[name].numel(), dtype=torch.bool)
        same[indices] = False
        assert torch.equal(inside[name].flatten().view(torch.int32)[same], base[name].flatten()[same])
    for name, value in bits(module.model).items():
        assert name in HEADS or torch.equal(value, base[name])


def _effective(model, mask):
    """The parameters that the forward pass sees."""
    found = {}
    for name in mask:
        path, _, attribute = name.rpartition(".")
        found[name] = getattr(model.get_submodule(path), attribute)
    return found


def test_biases_only(tmp_path):
    module = tagger()
    mask = baseline_mask(module.model, "biases", dense=HEADS)
    _, sft = run(tmp_path, module, mask=mask)
    assert all(name.endswith("bias") for name in sft.deltas)
    assert sft.count == sum(p.numel() for n, p in module.model.named_parameters() if n.endswith("bias")) - LABELS
