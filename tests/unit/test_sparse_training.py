"""Sparse fine-tuning: what is free moves, what is not stays bit-identical; interruption changes nothing."""

import gc
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModelForTokenClassification

import bistil.sparse.training as sparse_training
from bistil.errors import InputError
from bistil.models.families import family_of
from bistil.settings.recipe import SparseSettings, TrainingSettings
from bistil.sparse import SparseFineTuning, fingerprint, train_sparse

LABELS = 5


@pytest.fixture(autouse=True, scope="module")
def quick_collections():
    """The Trainer collects garbage after every run, which takes long over everything that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Tagger(nn.Module):
    """Any module with a loss around the model that is tuned."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, labels):
        return {"loss": self.model(input_ids=input_ids, labels=labels).loss}


def tagger(**options):
    return Tagger(tiny.model(head=AutoModelForTokenClassification, layers=2, num_labels=LABELS, **options))


def examples(count=24):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 100, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row % LABELS} for row in ids]


def collate(batch):
    return {key: torch.stack([example[key] for example in batch]) for key in batch[0]}


HEADS = ("classifier.weight", "classifier.bias")


def run(folder, module=None, *, settings=None, training=None, **options):
    module = module or tagger()
    sft = train_sparse(
        module,
        examples(),
        model=module.model,
        dense_parameters=options.pop("dense_parameters", HEADS),
        settings=settings or SparseSettings(density=0.05, dense_steps=4, sparse_steps=6),
        training=training or TrainingSettings(epochs=1, batch_size=4, learning_rate=5e-3, checkpoint_steps=2),
        collate=collate,
        folder=folder,
        seed=1,
        **options,
    )
    return module, sft


def bits(model):
    return {name: p.detach().clone().view(torch.int32) for name, p in model.named_parameters()}


@pytest.mark.parametrize("decay, clip, mean", [(0.0, 1.0, None), (0.5, 0.01, None), (0.1, 0.0, None), (0.0, 1.0, 3)])
def test_only_free_entries_and_heads_move(tmp_path, decay, clip, mean):
    base = tagger().model
    training = TrainingSettings(
        epochs=1, batch_size=4, learning_rate=5e-3, weight_decay=decay, max_grad_norm=clip, average_last=mean
    )
    module, sft = run(tmp_path, training=training)
    total = sum(p.numel() for name, p in base.named_parameters() if name not in HEADS)
    assert sft.count == round(0.05 * total)
    assert sft.provenance.maskable_entries == total
    assert set(sft.dense) == set(HEADS)
    moved = 0
    for (name, before), after in zip(bits(base).items(), bits(module.model).values(), strict=True):
        if name in HEADS:
            assert (before != after).any()
            continue
        changed = torch.nonzero((before != after).flatten()).flatten().tolist()
        free = sft.deltas[name].indices.tolist() if name in sft.deltas else []
        assert set(changed) <= set(free), name
        moved += len(changed)
    assert moved > 0.9 * sft.count


def test_model_wears_the_sft_and_can_take_it_off(tmp_path):
    base = tagger().model
    module, sft = run(tmp_path)
    other = tagger().model
    sft.apply(other)
    for name, value in bits(module.model).items():
        assert torch.equal(value, bits(other)[name]), name
    sft.revert(module.model)
    for name, value in bits(base).items():
        assert torch.equal(value, bits(module.model)[name]), name
    assert [name for name, _ in module.model.named_parameters()] == [name for name, _ in base.named_parameters()]
    assert all(p.requires_grad for p in module.model.parameters())
    assert sft.provenance.fingerprint == fingerprint(base)


@pytest.mark.parametrize("file", ["mask.safetensors", "mask.json"])
def test_a_damaged_mask_is_chosen_again(tmp_path, capfd, file):
    whole = run(tmp_path / "whole")[1].digest()
    assert not (tmp_path / "whole/dense/final.safetensors").exists()
    # Finished, and called again: nothing is trained.
    assert run(tmp_path / "whole")[1].digest() == whole
    assert capfd.readouterr().err == ""
    path = tmp_path / "whole" / file
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    assert run(tmp_path / "whole")[1].digest() == whole
    assert f"{path} was damaged or deleted since: the dense phase is done again" in capfd.readouterr().err
    path.unlink()
    assert run(tmp_path / "whole")[1].digest() == whole


@pytest.mark.parametrize(("rate", "dense_rate"), [(1e-2, None), (1e-4, 1e-2)])
def test_the_mask_is_that_of_the_dense_phase(tmp_path, rate, dense_rate):
    """Against the plain way: train all by hand with the same optimizer, sort all movements."""
    settings = SparseSettings(density=None, count=500, dense_steps=3, sparse_steps=1, dense_learning_rate=dense_rate)
    training = TrainingSettings(epochs=1, batch_size=24, learning_rate=rate, max_grad_norm=0.0)
    _, sft = run(tmp_path, settings=settings, training=training)
    module = tagger()
    start = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 3)
    for _ in range(3):
        optimizer.zero_grad()
        module(**collate(examples()))["loss"].backward()
        optimizer.step()
        schedule.step()
    rows = [
        (float(step), name, place)
        for name, p in module.model.named_parameters()
        if name not in HEADS
        for place, step in enumerate((p.detach() - start[name]).abs().flatten())
    ]
    expected = {(name, place) for _, name, place in sorted(rows, key=lambda row: -row[0])[:500]}
    chosen = {(name, int(place)) for name, delta in sft.deltas.items() for place in delta.indices}
    # The order of summation inside a shuffled batch differs, so entries near the threshold may change places.
    assert len(chosen & expected) >= 495


def test_optimizer_state_is_for_free_entries_only(tmp_path, monkeypatch):
    seen = {}
    original = sparse_training.train

    def spy(module, data, **options):
        seen[options["folder"].name] = sum(p.numel() for p in module.parameters() if p.requires_grad)
        return original(module, data, **options)

    monkeypatch.setattr(sparse_training, "train", spy)
    module, sft = run(tmp_path)
    heads = sum(value.numel() for value in sft.dense.values())
    assert seen["sparse"] == sft.count + heads
    assert seen["dense"] == sum(p.numel() for p in module.model.parameters())


def test_frozen_parts_are_neither_masked_nor_trained(tmp_path):
    settings = SparseSettings(
        density=0.05, dense_steps=2, sparse_steps=2, freeze_embeddings=True, freeze_layer_norms=True
    )
    base = bits(tagger().model)
    module, sft = run(tmp_path, settings=settings)
    frozen = sft.provenance.roles["frozen"]
    assert "bert.embeddings.word_embeddings.weight" in frozen
    assert sum("LayerNorm" in name for name in frozen) == 10
    assert not set(frozen) & set(sft.deltas)
    for name in frozen:
        assert torch.equal(base[name], bits(module.model)[name])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("elsewhere", ["float32", "bf16"])
@pytest.mark.parametrize("stop_at", [("dense", 3), ("sparse", 1), ("sparse", 5)])
def test_resume_is_bit_identical(tmp_path, monkeypatch, stop_at, elsewhere):
    """What began in one precision goes on in it on a machine where `precision = "auto"` would begin in the other."""
    began = "bf16" if elsewhere == "float32" else "float32"
    monkeypatch.setenv("BISTIL_PRECISION", began)
    module, sft = run(tmp_path / "whole")
    phase, step = stop_at

    class Stopping(Tagger):
        calls = 0

        def forward(self, **batch):
            sparse = any("parametrizations" in name for name, _ in self.named_parameters())
            Stopping.calls += sparse == (phase == "sparse")
            if Stopping.calls > step:
                raise Interrupted
            return super().forward(**batch)

    with pytest.raises(Interrupted):
        run(tmp_path / "cut", Stopping(tagger().model))
    monkeypatch.setenv("BISTIL_PRECISION", elsewhere)
    resumed, again = run(tmp_path / "cut")
    assert again.provenance.phases["training"]["precision"] == began
    for name, value in bits(module.model).items():
        assert torch.equal(value, bits(resumed.model)[name]), name
    assert again.count == sft.count
    if phase == "sparse":
        assert not (tmp_path / "cut/dense/final.safetensors").exists()


def test_a_finished_run_is_taken_up_without_training(tmp_path, monkeypatch):
    module, _ = run(tmp_path)

    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(Tagger, "forward", fail)
    again, _ = run(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(bits(module.model).values(), bits(again.model).values(), strict=True))


def test_another_seed_starts_afresh(tmp_path):
    _, first = run(tmp_path)
    module = tagger(seed=7)
    _, second = run(tmp_path, module)
    assert second.provenance.fingerprint != first.provenance.fingerprint
    second.revert(module.model)
    assert all(
        torch.equal(a, b) for a, b in zip(bits(module.model).values(), bits(tagger(seed=7).model).values(), strict=True)
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tied_embeddings_share_one_delta(tmp_path, family):
    class Masked(Tagger):
        def forward(self, **batch):
            return {"loss": self.model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss}

    def masked_lm():
        return Masked(tiny.masked_lm(family, layers=2))

    base = masked_lm().model
    names = {id(p): name for name, p in base.named_parameters(remove_duplicate=False)}
    bias = base.get_output_embeddings().bias  # EuroBERT's head has none
    module, sft = run(tmp_path, masked_lm(), dense_parameters=[] if bias is None else [names[id(bias)]])
    model = module.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    # Under the encoder's name, so that the encoder wears it under any head.
    words = f"{model.base_model_prefix}.{family_of(model).word_embeddings}"
    assert [name for name, delta in sft.deltas.items() if delta.shape == base.get_input_embeddings().weight.shape] == [
        words
    ]
    assert len(sft.deltas[words].indices)
    assert sft.provenance.fingerprint == fingerprint(base.base_model)


def test_chosen_weights_make_the_sft(tmp_path):
    """With a held-out figure the sparse phase keeps its best step, and the SFT has that figure."""

    def evaluate(module):
        return {"loss": module(**collate(examples()))["loss"].item()}

    training = TrainingSettings(epochs=1, batch_size=4, learning_rate=5e-2, evaluate_steps=1)
    module, sft = run(tmp_path, training=training, evaluate=evaluate, best_by=("loss", "min"))
    assert sft.provenance.metrics["loss"] == pytest.approx(evaluate(module.eval())["loss"], abs=1e-6)


@pytest.mark.parametrize(("dense", "said"), [(44.0, True), (45.0, False)])
def test_a_dense_phase_that_did_not_learn_is_said(tmp_path, capfd, dense, said):
    figures = iter([dense, 90.0])
    run(tmp_path, evaluate=lambda _: {"f1": next(figures)}, best_by=("f1", "max"))
    assert ("the dense phase came to f1 44, the sparse phase to 90" in capfd.readouterr().err) is said


def test_the_mean_of_snapshots_makes_the_sft(tmp_path):
    """Deltas are averaged, which gives the mean of the models; its figure is the SFT's."""
    seen = []

    def evaluate(module):
        seen.append({name: value.detach().clone() for name, value in module.model.named_parameters()})
        return {"loss": module(**collate(examples()))["loss"].item()}

    training = TrainingSettings(epochs=1, batch_size=4, learning_rate=5e-3, evaluate_steps=1, average_last=3)
    settings = SparseSettings(density=0.05, dense_steps=2, sparse_steps=10)
    module, sft = run(tmp_path, settings=settings, training=training, evaluate=evaluate, best_by=("loss", "min"))
    # Ten steps and the mean itself: snapshots are those of steps 8, 9 and 10.
    last = seen[-4:-1]
    for name, value in module.model.named_parameters():
        if name in last[0]:
            wanted = torch.stack([one[name] for one in last]).mean(0)
            torch.testing.assert_close(value.detach(), wanted, rtol=0, atol=1e-6)
    assert sft.provenance.metrics["loss"] == pytest.approx(evaluate(module.eval())["loss"], abs=1e-6)


def test_a_given_mask_skips_the_dense_phase(tmp_path):
    mask = {"bert.encoder.layer.0.output.dense.weight": torch.tensor([0, 5, 9])}
    module, sft = run(tmp_path, mask=mask)
    assert not (tmp_path / "dense").exists()
    assert sft.count == 3 and list(sft.deltas) == list(mask)
    base = bits(tagger().model)
    moved = {name: int((base[name] != value).sum()) for name, value in bits(module.model).items()}
    assert {name for name, count in moved.items() if count} == {*mask, *HEADS}
    assert moved["bert.encoder.layer.0.output.dense.weight"] <= 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"density": 0.0}, "density is 0.0; it must be above 0"),
        ({"density": 1.5}, "density is 1.5; it must be above 0 and at most 1"),
        ({"density": None, "count": None}, "density and count are both none"),
        ({"dense_epochs": None}, "dense_epochs and dense_steps are both none"),
        ({"density": None, "count": 10**9}, "at most all"),
    ],
)
def test_impossible_settings(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, settings=SparseSettings(**settings))


def test_unknown_head(tmp_path):
    with pytest.raises(InputError, match=r"no parameter 'head\.weight'"):
        run(tmp_path, dense_parameters=["head.weight"])


def test_saved_and_loaded_again_it_is_the_same(tmp_path):
    module, sft = run(tmp_path / "work")
    sft.save(tmp_path / "sft")
    base = tagger().model
    loaded = SparseFineTuning.load(Path(tmp_path / "sft"), base=base)
    loaded.apply(base)
    assert all(torch.equal(a, b) for a, b in zip(bits(base).values(), bits(module.model).values(), strict=True))
