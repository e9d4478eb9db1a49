"""Target text that is selected by its likeness to the labelled texts: which lines, and what follows for a run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from tiny_recipe import SHORT_RECIPE, write_recipe

from bistil.errors import RecipeError
from bistil.method import plan_recipe, run_recipe
from bistil.runs.inputs import check_inputs
from bistil.runs.stages import selection
from bistil.runs.stages.selection import apart, nearest_in_turn, select_lines, vectors_of
from bistil.settings.recipe import SelectionSettings, load_recipe
from bistil.tasks.overlap import comparable

RECIPE = (
    SHORT_RECIPE.replace("max_length", 'dev = "dev.jsonl"\ntest = { sw = "test.sw.jsonl" }\nmax_length')
    .replace("[phase2]\n", "[phase2]\ntarget_sentences = 5\n")
    .replace("[compare]", "[selection]\ncandidates = 8\nexamples = 4\n\n[compare]")
)


def unit(rows, width=8, seed=0):
    found = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return apart(found, np.zeros((1, width), np.float32))


@pytest.mark.parametrize("count", [1, 5, 20, 49, 50, 99])
def test_each_text_in_its_turn_takes_the_nearest_line_that_is_free(count, monkeypatch):
    # Several blocks of cosines, in both directions.
    monkeypatch.setattr(selection, "ROWS", 3)
    asked, offered = unit(7), unit(50, seed=1)
    cosines = asked @ offered.T
    taken: list[int] = []
    while len(taken) < min(count, 50):
        for one in cosines:
            free = [int(row) for row in np.argsort(-one) if row not in taken]
            if free and len(taken) < min(count, 50):
                taken.append(free[0])
    found, _ = nearest_in_turn(asked, offered, count)
    assert found.tolist() == sorted(taken)


def test_texts_with_the_same_neighbours_still_get_as_many_lines_as_were_asked_for(monkeypatch):
    monkeypatch.setattr(selection, "SPARE_NEIGHBOURS", 1)
    asked = np.repeat(unit(1), 4, axis=0)
    offered = unit(30, seed=1)
    found, cosine = nearest_in_turn(asked, offered, 12)
    best = np.argsort(-(offered @ asked[0]))[:12]
    assert found.tolist() == sorted(best.tolist())
    assert cosine == pytest.approx((offered @ asked[0])[best].mean(), abs=1e-6)


def test_what_sets_the_labelled_texts_apart_counts_and_not_the_language():
    """Two languages that lie far apart: what is shared is the direction of a subject in each."""
    subjects = np.eye(4, dtype=np.float32)
    languages = {"en": 10 * subjects[3], "sw": -10 * subjects[3]}
    texts = {f"{one} {subject} {i}": languages[one] + subjects[subject] * (1 + 0.1 * i)
             for one in languages for subject in (0, 1) for i in range(5)}  # fmt: skip

    def encode(_what, asked):
        return np.stack([texts[text] for text in asked])

    chosen, cosine, of_all = select_lines(
        encode,
        like=[text for text in texts if text.startswith("en 1")],
        beside=[text for text in texts if text.startswith("en")],
        lines=[text for text in texts if text.startswith("sw")],
        count=4,
    )
    assert len(chosen) == 4 and all(text.startswith("sw 1") for text in chosen)
    assert chosen == sorted(chosen)
    assert cosine > of_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    write_recipe(folder)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def test_vectors_are_made_once_and_the_call_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "PART_LINES", 4)
    texts = tiny.SWAHILI.splitlines()[:10]
    first = vectors_of(folder / "teacher", texts, work=tmp_path, label="texts")
    assert first.shape == (10, 32) and np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    parts = sorted(tmp_path.glob("*.npy"))
    assert len(parts) == 3
    parts[1].unlink()
    parts[2].write_bytes(b"damaged")
    kept = parts[0].stat().st_mtime_ns
    assert np.array_equal(vectors_of(folder / "teacher", texts, work=tmp_path, label="texts"), first)
    assert parts[0].stat().st_mtime_ns == kept


def test_a_run_learns_from_what_is_selected_and_from_nothing_that_is_scored(folder):
    recipe = load_recipe(folder / "recipe.toml")
    output = folder / "run"
    run_recipe(recipe, output)
    lines = (output / "selected-text/selected.txt").read_text().splitlines()
    tested = {comparable(json.loads(line)["text"]) for line in (folder / "test.sw.jsonl").read_text().splitlines()}
    assert len(lines) == 5 and not tested & set(map(comparable, lines))
    records = {one["name"]: one["result"] for one in
               map(json.loads, (path.read_text() for path in (output / "stages").glob("*.json")))}  # fmt: skip
    assert records["select"]["lines"] == 5 and records["select"]["candidates"] == 8
    assert records["phase2-lrf2"]["target_text"] == 5
    before = {path: path.stat().st_mtime_ns for path in (output / "stages").glob("*.json")}
    run_recipe(recipe, output)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_selection_changes_the_students_on_target_text_and_nothing_else(folder):
    recipe = load_recipe(folder / "recipe.toml")
    recipe = replace(recipe, compare=replace(recipe.compare, no_target_text=True))

    def keys(of):
        plan = plan_recipe(of, check_inputs(of))
        return {plan.names[stage.key].label: stage.key for stage in plan.stages()}

    selected, drawn = keys(recipe), keys(replace(recipe, selection=None))
    other = keys(replace(recipe, selection=SelectionSettings(candidates=7, examples=4)))
    assert selected.keys() - drawn.keys() == {"select"}
    follows = {"phase2-lrf2", "evaluate lrf2", "benchmark"}
    assert {name for name in drawn if drawn[name] != selected[name]} == follows
    assert {name for name in selected if other[name] != selected[name]} == follows | {"select"}


@pytest.mark.parametrize(
    ("old", "new"),
    [("target_sentences = 5\n", ""), ("target_sentences = 5\n", "teacher_forced = false\n")],
)
def test_a_selection_of_no_stated_number_is_refused(folder, tmp_path, old, new):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.replace(old, new))
    with pytest.raises(RecipeError, match=r"phase2\.target_sentences does not say how many lines"):
        load_recipe(file, folder=folder)
