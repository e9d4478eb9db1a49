"""The SFT artefact: exact wearing, round trips, sizes, trims, arithmetic, and damaged files."""

import copy
import json
import random
import re
import struct
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForTokenClassification

from bistil.errors import ArtefactError, InputError
from bistil.sparse import Provenance, SparseDelta, SparseFineTuning, compare, compose, fingerprint
from bistil.sparse.encoding import decode_gaps, encode_gaps


def random_sft(model, *, seed, density=0.1, heads=(), name="sft"):
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for key, p in model.named_parameters():
        if key in heads:
            continue
        indices = torch.nonzero(torch.rand(p.numel(), generator=generator) < density).flatten()
        deltas[key] = SparseDelta(indices, torch.randn(len(indices), generator=generator), tuple(p.shape))
    own = dict(model.named_parameters())
    dense = {key: torch.randn(own[key].shape, generator=generator) for key in heads}
    total = sum(p.numel() for key, p in own.items() if key not in heads)
    return SparseFineTuning(
        deltas,
        dense,
        Provenance(base="base", fingerprint=fingerprint(model), maskable_entries=total),
        name,
    )


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(model, expected):
    for name, p in model.named_parameters():
        assert torch.equal(p.detach().view(torch.int32), expected[name].view(torch.int32)), name


HEADS = ("classifier.weight", "classifier.bias")


def tagger(**options):
    return tiny.model(head=AutoModelForTokenClassification, layers=2, num_labels=5, **options)


# Wearing


def test_ten_thousand_random_applies_and_reverts_leave_no_trace():
    model = tiny.model(layers=1, hidden=16, heads=2)
    base = snapshot(model)
    sfts = [random_sft(model, seed=s, density=0.02) for s in range(5)]
    generator = random.Random(0)
    worn = []
    for _ in range(10_000):
        sft = generator.choice(sfts)
        if sft in worn:
            sft.revert(model)
            worn.remove(sft)
        else:
            sft.apply(model)
            worn.append(sft)
    # What is on now is what putting these on a fresh base gives, whatever happened in between.
    fresh = tiny.model(layers=1, hidden=16, heads=2)
    for sft in worn:
        sft.apply(fresh)
    assert_same(model, snapshot(fresh))
    for sft in worn:
        sft.revert(model)
    assert_same(model, base)


def test_wearing_adds_the_deltas_and_replaces_heads():
    model = tagger()
    base = snapshot(model)
    sft = random_sft(model, seed=1, heads=HEADS)
    with sft.applied(model) as worn:
        assert worn is model
        for name, p in model.named_parameters():
            if name in HEADS:
                assert torch.equal(p, sft.dense[name])
                continue
            expected = base[name].flatten().clone()
            for place, value in zip(sft.deltas[name].indices.tolist(), sft.deltas[name].values, strict=True):
                expected[place] = expected[place] + value
            assert torch.equal(p.flatten(), expected)
    assert_same(model, base)


def test_context_manager_takes_off_after_an_error():
    model = tagger()
    base = snapshot(model)
    with pytest.raises(ZeroDivisionError), random_sft(model, seed=1).applied(model):
        raise ZeroDivisionError
    assert_same(model, base)


def test_twice_on_or_off_without_on_is_an_error():
    model = tagger()
    sft = random_sft(model, seed=1)
    with pytest.raises(InputError, match="does not wear"):
        sft.revert(model)
    sft.apply(model)
    with pytest.raises(InputError, match="already"):
        sft.apply(model)


def test_a_base_that_was_trained_meanwhile_is_noticed():
    """Kept base values are dropped when somebody else writes to the parameters."""
    model = tagger()
    sft = random_sft(model, seed=1)
    with sft.applied(model):
        pass
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    changed = snapshot(model)
    with sft.applied(model):
        pass
    assert_same(model, changed)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_bare_and_with_a_head(family):
    """An SFT made under a head fits the bare encoder, the masked-LM model and another head."""
    made_in = tiny.model(family, head=AutoModelForTokenClassification, layers=2, num_labels=5)
    heads = [name for name, _ in made_in.named_parameters() if name.startswith("classifier")]
    sft = random_sft(made_in, seed=1, heads=heads)
    for model in (tiny.model(family, head=AutoModel, layers=2), tiny.masked_lm(family, layers=2)):
        encoder = dict(model.base_model.named_parameters())
        before = {name: p.detach().clone() for name, p in encoder.items()}
        sft.apply(model)
        own = {name.removeprefix(made_in.base_model_prefix + "."): delta for name, delta in sft.deltas.items()}
        shared = encoder.keys() & own.keys()
        assert len(shared) > 10
        for name in shared:
            moved = torch.nonzero((encoder[name] != before[name]).flatten()).flatten()
            assert torch.equal(moved, own[name].indices)
        sft.revert(model)
        assert all(torch.equal(encoder[name], before[name]) for name in encoder)


def test_half_precision_models_come_back_exactly():
    model = tagger().bfloat16()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    sft = random_sft(tagger(), seed=1)
    with sft.applied(model):
        assert any((p != base[name]).any() for name, p in model.named_parameters())
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters())


# Disk


@given(st.sets(st.integers(0, 3000), max_size=60))
@settings(max_examples=200, deadline=None)
def test_gaps_round_trip(places):
    indices = torch.tensor(sorted(places), dtype=torch.int64)
    encoded = encode_gaps(indices)
    assert torch.equal(decode_gaps(encoded), indices)
    assert len(encoded) <= len(indices) + 3000 // 255 + 1


def test_the_cards_metadata_can_be_read_whatever_the_base_is_called(tmp_path):
    sft = random_sft(tagger(), seed=1)
    sft.provenance.base, sft.provenance.kind = "owner/na: me #1", 'odd" ]: kind'
    sft.save(tmp_path / "sft")
    data = ModelCard.load(tmp_path / "sft/README.md").data.to_dict()
    assert data.pop("base_model") == "owner/na: me #1"
    assert data.pop("tags") == ["sparse-fine-tuning", 'odd" ]: kind-sft']
    assert list(data.values()) == ["bistil"]  # what loads it


def test_round_trip_is_exact(tmp_path):
    model = tagger()
    sft = random_sft(model, seed=1, heads=HEADS)
    sft.deltas["bert.pooler.dense.weight"] = SparseDelta(torch.tensor([2]), torch.tensor([1.0]), (32, 32))
    sft.deltas["bert.embeddings.LayerNorm.bias"] = SparseDelta(torch.empty(0, dtype=torch.int64), torch.empty(0), (32,))
    sft.save(tmp_path / "sft")
    again = SparseFineTuning.load(tmp_path / "sft", base=model)
    assert again.deltas.keys() == sft.deltas.keys()
    for name, delta in sft.deltas.items():
        assert torch.equal(again.deltas[name].indices, delta.indices)
        assert torch.equal(again.deltas[name].values, delta.values)
        assert again.deltas[name].shape == delta.shape
    assert all(torch.equal(again.dense[name], value) for name, value in sft.dense.items())
    assert again.provenance == sft.provenance
    assert again.count == sft.count and again.density == sft.density
    card = (tmp_path / "sft/README.md").read_text()
    assert "base_model: base" in card and sft.provenance.fingerprint in card
    names = ["README.md", "bistil.json", "sft.safetensors", "sft_config.json"]
    assert sorted(p.name for p in (tmp_path / "sft").iterdir()) == names


@pytest.mark.parametrize("density", [0.04, 0.08])
def test_size_on_disk_is_near_the_minimum(tmp_path, density):
    """At most 1.3 times float32 deltas plus the entropy of the choice, the least that any index code can need."""
    size = 2_000_000
    generator = torch.Generator().manual_seed(0)
    indices = torch.nonzero(torch.rand(size, generator=generator) < density).flatten()
    sft = SparseFineTuning({"w.weight": SparseDelta(indices, torch.randn(len(indices)), (2000, 1000))})
    sft.save(tmp_path / "sft")
    share = torch.tensor(density)
    entropy = float(-(share * share.log2() + (1 - share) * (1 - share).log2())) * size / 8
    assert (tmp_path / "sft/sft.safetensors").stat().st_size <= 1.3 * (4 * len(indices) + entropy)


def test_half_precision_values(tmp_path):
    sft = random_sft(tagger(), seed=1)
    sft.save(tmp_path / "half", values="bfloat16")
    again = SparseFineTuning.load(tmp_path / "half")
    for name, delta in sft.deltas.items():
        assert torch.equal(again.deltas[name].values, delta.values.bfloat16().float())


def test_another_base_is_refused_unless_forced(tmp_path):
    random_sft(tagger(), seed=1).save(tmp_path / "sft")
    other = tagger(seed=5)
    with pytest.raises(ArtefactError, match="made for base"):
        SparseFineTuning.load(tmp_path / "sft", base=other)
    SparseFineTuning.load(tmp_path / "sft", base=other, force=True).apply(other)
    SparseFineTuning.load(tmp_path / "sft", base=tiny.masked_lm(layers=2))


def test_fingerprint_sees_one_changed_bit_and_no_head():
    model = tagger()
    before = fingerprint(model)
    with torch.no_grad():
        model.classifier.weight.add_(1)
    assert fingerprint(model) == before == fingerprint(model.base_model)
    with random_sft(model, seed=1).applied(model):
        assert fingerprint(model) == before
    halved = tagger().bfloat16()
    assert fingerprint(halved) == fingerprint(copy.deepcopy(halved).float())
    assert fingerprint(halved) != before
    weight = model.bert.encoder.layer[1].output.dense.weight
    weight.data.view(torch.int32)[3, 3] ^= 1
    assert fingerprint(model) != before


# Damage


def without_record(folder: Path) -> Path:
    """The folder as a hub has it that knows nothing of records: what is broken shows in the files themselves."""
    (folder / "bistil.json").unlink()
    return folder


def tampered(folder: Path, change):
    without_record(folder)
    tensors = load_file(folder / "sft.safetensors")
    change(tensors)
    save_file(tensors, folder / "sft.safetensors")


NAME = "bert.encoder.layer.0.output.dense.weight"


def set_to(key, value):
    def change(tensors):
        tensors.pop(f"gaps/{NAME}", None)
        tensors[f"{key}/{NAME}"] = value(tensors[f"deltas/{NAME}"])

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (set_to("indices", lambda d: torch.arange(len(d), dtype=torch.int32) + 2048), "out of range"),
        (set_to("indices", lambda d: torch.arange(len(d), dtype=torch.int32) - 1), "index -1 is out of range"),
        (set_to("indices", lambda d: torch.zeros(len(d), dtype=torch.int32)), "index 0 appears twice"),
        (set_to("indices", lambda d: torch.arange(len(d), dtype=torch.int64).flip(0)), "followed by a smaller"),
        (set_to("indices", lambda d: torch.arange(len(d)).float()), "torch.float32; expected a vector of int32"),
        (set_to("gaps", lambda d: torch.ones(len(d), dtype=torch.int16)), "torch.int16; expected a vector of uint8"),
        (set_to("gaps", lambda d: torch.full((len(d),), 255, dtype=torch.uint8)), "out of range"),
        (set_to("indices", lambda d: torch.arange(len(d) + 1, dtype=torch.int32)), "damaged"),
        (set_to("deltas", lambda d: d.double()), "torch.float64"),
        (set_to("deltas", lambda d: d.long()), "torch.int64"),
        (lambda t: t[f"deltas/{NAME}"].fill_(float("nan")), "NaN"),
        (lambda t: t["dense/classifier.bias"].fill_(float("inf")), "NaN or infinite"),
        (lambda t: t.update({"dense/classifier.bias": torch.arange(5)}), "torch.int64; expected floats"),
        (lambda t: t.update({"dense/classifier.bias": torch.ones(5).to(torch.float8_e4m3fn)}), "float8_e4m3fn"),
        (lambda t: t.pop(f"gaps/{NAME}"), "no indices"),
        (lambda t: (t.pop(f"gaps/{NAME}"), t.pop(f"deltas/{NAME}")), "no deltas"),
    ],
)
def test_tampered_tensors(tmp_path, change, message):
    random_sft(tagger(), seed=1, heads=HEADS).save(tmp_path / "sft")
    tampered(tmp_path / "sft", change)
    with pytest.raises(ArtefactError, match=re.escape(message)) as caught:
        SparseFineTuning.load(tmp_path / "sft")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:5],
        lambda data: data[:0],
        lambda data: struct.pack("<Q", 2**62) + data[8:],
        lambda data: struct.pack("<Q", len(data) * 10) + data[8:],
        lambda data: data[:8] + b"\xff" * 40 + data[48:],
    ],
    ids=["half", "five bytes", "empty", "huge header", "header beyond the file", "no JSON"],
)
def test_damaged_safetensors(tmp_path, damage):
    random_sft(tagger(), seed=1).save(tmp_path / "sft")
    path = without_record(tmp_path / "sft") / "sft.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtefactError, match="damaged") as caught:
        SparseFineTuning.load(tmp_path / "sft")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda c: c.pop("shapes"), "'shapes' is missing"),
        (lambda c: c.update(format=99), "update bistil"),
        (lambda c: c["shapes"].pop(NAME), "no shape"),
        (lambda c: c["shapes"].update({NAME: [1, "x"]}), "malformed"),
        (lambda c: c.update(maskable_entries="many"), "'maskable_entries' is 'many'"),
        (lambda c: c.update(roles=["x"]), "'roles' is"),
        (lambda c: c.update(base=3), "'base' is 3"),
        (lambda c: c.update(labels=[["O"]]), "'labels' is"),
        (lambda c: c.update(metrics={"loss": float("nan")}), "a number is NaN"),
        (lambda c: c["shapes"].update({NAME: [2**40, 2**40]}), "malformed"),
    ],
)
def test_damaged_configuration(tmp_path, damage, message):
    random_sft(tagger(), seed=1).save(tmp_path / "sft")
    path = without_record(tmp_path / "sft") / "sft_config.json"
    config = json.loads(path.read_text())
    damage(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ArtefactError, match=message):
        SparseFineTuning.load(tmp_path / "sft")


def test_missing_pieces(tmp_path):
    with pytest.raises(InputError, match="is a file"):
        (tmp_path / "a.safetensors").write_bytes(b"")
        SparseFineTuning.load(tmp_path / "a.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=re.escape("sft_config.json")):
        SparseFineTuning.load(tmp_path / "empty")


@pytest.mark.parametrize(
    "other, message",
    [
        (lambda: tiny.model("distilbert", layers=2), "another architecture"),
        (lambda: tiny.model("bert", layers=1), "another architecture"),
        (lambda: tiny.model("bert", layers=2, hidden=16), "has shape"),
        (lambda: tiny.model(head=AutoModelForTokenClassification, layers=2, num_labels=7), "another label set"),
    ],
)
def test_another_architecture_and_nothing_is_applied(other, message):
    sft = random_sft(tagger(), seed=1, heads=HEADS)
    model = other()
    before = snapshot(model)
    with pytest.raises(ArtefactError, match=message):
        sft.apply(model)
    assert_same(model, before)
    with pytest.raises(InputError, match="does not wear"):
        sft.revert(model)


# Arithmetic


def test_compose_equals_wearing_one_after_another():
    model = tagger()
    one, other = random_sft(model, seed=1), random_sft(model, seed=2, heads=HEADS)
    both = compose([one, other])
    one.apply(model)
    other.apply(model)
    stacked = snapshot(model)
    other.revert(model)
    one.revert(model)
    both.apply(model)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), stacked[name], rtol=0, atol=1e-6)


def test_compose_refuses_other_bases_and_two_heads():
    one = random_sft(tagger(), seed=1, heads=HEADS)
    with pytest.raises(InputError, match="head"):
        compose([one, random_sft(tagger(), seed=2, heads=HEADS)])
    other = random_sft(tagger(seed=3), seed=2)
    with pytest.raises(ArtefactError, match="different bases"):
        compose([one, other])
    assert compose([one, other], force=True).count > one.count


def test_scaled_by_minus_one_cancels():
    model = tagger()
    sft = random_sft(model, seed=1)
    none = compose([sft, sft.scaled(-1.0)])
    assert all(not delta.values.any() for delta in none.deltas.values())
    half = sft.scaled(0.5)
    assert torch.equal(half.deltas[NAME].values, sft.deltas[NAME].values / 2)


def test_compare_against_dense_vectors():
    model = tagger()
    one, other = random_sft(model, seed=1), random_sft(model, seed=2)

    def dense(sft):
        parts = []
        for delta in sft.deltas.values():
            full = torch.zeros(delta.size, dtype=torch.float64)
            full[delta.indices] = delta.values.double()
            parts.append(full)
        return torch.cat(parts)

    a, b = dense(one), dense(other)
    whole, rows = compare(one, other)
    assert whole.shared == int(((a != 0) & (b != 0)).sum())
    assert whole.overlap == pytest.approx(whole.shared / int(((a != 0) | (b != 0)).sum()))
    assert whole.cosine == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-9)
    assert sum(row.count_a for row in rows) == one.count
    same, _ = compare(one, one)
    assert same.overlap == 1.0 and same.cosine == pytest.approx(1.0)


def test_merge_leaves_a_plain_model():
    model, other = tagger(), tagger()
    sft = random_sft(model, seed=1, heads=HEADS)
    sft.apply(other)
    sft.merge(model)
    assert_same(model, snapshot(other))
    with pytest.raises(InputError, match="does not wear"):
        sft.revert(model)


# Vocabulary trims

EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


def test_trim_commutes_with_wearing():
    model = tagger()
    sft = random_sft(model, seed=1, heads=HEADS)
    kept = torch.randperm(300)[:120]
    kept = kept[kept < model.config.vocab_size]
    trimmed = sft.trimmed(kept, [EMBEDDINGS])
    small = tiny.model(head=AutoModelForTokenClassification, layers=2, num_labels=5, vocab=len(kept))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in small.named_parameters():
            p.copy_(own[name][kept] if name == EMBEDDINGS else own[name])
    trimmed.apply(small)
    sft.apply(model)
    for name, p in small.named_parameters():
        assert torch.equal(p, own[name][kept] if name == EMBEDDINGS else own[name]), name
    assert sft.trimmed(kept, [EMBEDDINGS], base=small).provenance.fingerprint == fingerprint(small)


def test_expand_is_the_inverse():
    model = tagger()
    vocabulary = model.config.vocab_size
    sft = random_sft(model, seed=1)
    kept = torch.randperm(vocabulary)[:100]
    trimmed = sft.trimmed(kept, [EMBEDDINGS])
    again = trimmed.expanded(kept, [EMBEDDINGS], vocabulary).trimmed(kept, [EMBEDDINGS])
    for name, delta in trimmed.deltas.items():
        assert torch.equal(again.deltas[name].indices, delta.indices)
        assert torch.equal(again.deltas[name].values, delta.values)
    rows = trimmed.expanded(kept, [EMBEDDINGS], vocabulary).deltas[EMBEDDINGS].indices // 32
    assert set(rows.tolist()) <= set(kept.tolist())


def test_trim_beyond_the_vocabulary():
    sft = random_sft(tagger(), seed=1)
    with pytest.raises(InputError, match="rows"):
        sft.trimmed(torch.tensor([0, 100_000]), [EMBEDDINGS])
    with pytest.raises(InputError, match="no parameter"):
        sft.trimmed(torch.tensor([0]), ["x"])
