"""The choice of K entries, against sorting."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bistil.sparse.masks as masks
from bistil.errors import DivergenceError, InputError
from bistil.sparse.masks import entries_to_keep, largest_movements, parameter_roles, random_entries


def plain(before, after, count):
    """All movements in one list, sorted: larger first, then by position."""
    rows = []
    for order, name in enumerate(before):
        moved = (after[name] - before[name]).abs().flatten().tolist()
        rows += [(-value, order, place, name) for place, value in enumerate(moved)]
    kept = {name: [] for name in before}
    for _, _, place, name in sorted(rows)[:count]:
        kept[name].append(place)
    return {name: sorted(places) for name, places in kept.items()}


@given(st.integers(0, 10_000), st.integers(1, 200), st.booleans())
@settings(max_examples=100, deadline=None)
def test_same_as_sorting(seed, count, ties):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 9), "b": (40,), "c": (3, 5, 7)}
    before = {name: torch.zeros(shape) for name, shape in shapes.items()}
    after = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if ties:
        after = {name: value.round() for name, value in after.items()}
    chosen = largest_movements(before, after, min(count, 208))
    assert {name: indices.tolist() for name, indices in chosen.items()} == plain(before, after, min(count, 208))


def test_chunks_make_no_difference(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    before = {"a": torch.randn(50, 50, generator=generator), "b": torch.randn(999, generator=generator)}
    after = {name: (value * 1.5).round() for name, value in before.items()}
    whole = largest_movements(before, after, 700)
    monkeypatch.setattr(masks, "CHUNK", 64)
    parts = largest_movements(before, after, 700)
    assert all(torch.equal(whole[name], parts[name]) for name in before)
    assert sum(len(indices) for indices in whole.values()) == 700


def test_tiny_and_huge_movements():
    before = {"a": torch.zeros(6)}
    after = {"a": torch.tensor([1e-45, -1e38, 0.0, float("inf"), 1e-38, -0.0])}
    assert largest_movements(before, after, 4)["a"].tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("bad", [float("nan"), -float("nan")])
def test_nan_is_divergence(bad):
    after = {"a": torch.tensor([0.0, bad, 1.0])}
    with pytest.raises(DivergenceError, match="NaN"):
        largest_movements({"a": torch.zeros(3)}, after, 1)


@pytest.mark.parametrize("count", [1, 40, 999, 1000])
def test_random_entries(count):
    chosen = random_entries({"a": 300, "b": 700}, count, seed=1)
    assert sum(len(indices) for indices in chosen.values()) == count
    assert all((torch.diff(indices) > 0).all() for indices in chosen.values())
    again = random_entries({"a": 300, "b": 700}, count, seed=1)
    assert all(torch.equal(chosen[name], again[name]) for name in chosen)
    if count == 40:
        other = random_entries({"a": 300, "b": 700}, count, seed=2)
        assert any(not torch.equal(chosen[name], other[name]) for name in chosen)


def test_how_many():
    assert entries_to_keep(1000, density=0.08, count=None) == 80
    assert entries_to_keep(1000, density=None, count=7) == 7
    for density, count in ((None, None), (0.1, 3), (0.0, None), (None, 1001)):
        with pytest.raises(InputError):
            entries_to_keep(1000, density=density, count=count)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layer_norms_of_every_family_are_found(family):
    model = tiny.model(family)
    frozen = parameter_roles(model, freeze_layer_norms=True).frozen
    assert len(frozen) > 6 and set(frozen) == {name for name, _ in model.named_parameters() if "norm" in name.lower()}
