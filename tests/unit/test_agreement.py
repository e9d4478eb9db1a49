"""Without labels of the target: text that is held out for good, and how far a student agrees with its teacher on it."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from task_models import LABELS, TEXTS, model_in
from tiny_recipe import SHORT_RECIPE, labelled, write_recipe

import bistil
from bistil.distillation.task_data import read_task_data
from bistil.measuring.evaluation import measure
from bistil.method import plan_recipe, run_recipe
from bistil.runs.agreement import answered_lines
from bistil.runs.data import MOST_HELD_OUT_LINES, Rest, hold_out, sentences_of, without_lines
from bistil.runs.inputs import HELD_OUT, check_inputs, keep_held_out
from bistil.runs.stage import File
from bistil.settings.recipe import TaskSettings, load_recipe
from bistil.tasks import KINDS, get_task
from bistil.tasks.overlap import comparable

# Different lines of words that the tiny vocabulary knows.
LINES = [
    f"{one} {two}"
    for one in tiny.SWAHILI.splitlines()
    for two in ("Paka aliketi.", "Mvua ilinyesha.", "Treni ya pwani.")
]


@pytest.fixture
def recipe_folder(tmp_path):
    write_recipe(tmp_path)
    # Each line stands there once more, in capitals.
    (tmp_path / "sw.txt").write_text("\n".join([*LINES, *map(str.upper, LINES)]) + "\n")
    (tmp_path / "recipe.toml").write_text(SHORT_RECIPE)
    return tmp_path


def test_a_run_without_target_labels_says_how_far_its_students_agree_with_the_teacher(recipe_folder):
    output = recipe_folder / "run"
    summary = run_recipe(load_recipe(recipe_folder / "recipe.toml"), output)
    kept = (output / HELD_OUT.format("sw")).read_text().splitlines()
    assert len(kept) == 3 and set(map(comparable, kept)) <= set(map(comparable, LINES))

    # By hand: what both models say of these lines.
    says = {name: bistil.load(output / name, max_length=32)(kept) for name in ("teacher", "students/lrf2")}
    same = np.mean([ours["label"] == theirs["label"] for ours, theirs in zip(*says.values(), strict=True)])
    rows = {row.name: row for row in summary.models}
    assert rows["lrf2"].agreement == pytest.approx(same) and rows["lrf2"].target_score is None
    assert rows["lrf2"].agreement_interval[0] <= same <= rows["lrf2"].agreement_interval[1]
    assert summary.agreement.examples == 3 and summary.agreement.trimmed == rows["teacher, trimmed"].agreement
    assert "agreement, not accuracy" in (output / "report.html").read_text()
    assert "agreement, not accuracy" in (output / "students/lrf2/README.md").read_text()


def test_what_is_held_out_is_not_learnt_from_and_stays_so_when_labels_come(recipe_folder):
    recipe = load_recipe(recipe_folder / "recipe.toml")
    inputs = check_inputs(recipe)
    lines, plan = inputs.held_out.lines, plan_recipe(recipe, inputs)
    gone = set(map(comparable, lines))
    assert len(sentences_of(inputs.learnt["sw"])) == 2 * (len(LINES) - 3)
    for files in (inputs.learnt, plan.bilingual().texts, plan.method.trimmed().texts, inputs.target_text.texts):
        assert not gone & set(map(comparable, sentences_of(files["sw"])))
    assert [name for stage in plan.stages() if (name := plan.names[stage.key].label).startswith("agree")] == [
        "agree teacher, trimmed",
        "agree lrf2",
    ]

    output = recipe_folder / "run"
    output.mkdir()
    keep_held_out(inputs, "sw", output)
    (recipe_folder / "test.sw.jsonl").write_text(labelled(["Wageni walipika wali sokoni.", "Marafiki wanasoma barua."]))
    scored = replace(recipe, task=replace(recipe.task, test={"sw": [str(recipe_folder / "test.sw.jsonl")]}))
    later = plan_recipe(scored, check_inputs(scored, output))
    learnt = [stage.key for stage in plan.stages() if stage.KIND in ("trim", "phase1", "finetune")]
    assert learnt == [stage.key for stage in later.stages() if stage.KIND in ("trim", "phase1", "finetune")]
    assert not later.agreements() and later.scores()
    # Elsewhere nothing is held out: there is a test set.
    assert check_inputs(scored).held_out is None and check_inputs(scored).learnt == check_inputs(scored).texts


def test_lines_are_drawn_by_the_seed_and_bounded(tmp_path):
    (tmp_path / "train.jsonl").write_text(labelled([f"Mkulima {i} aliuza kondoo sokoni." for i in range(50)]))
    data = read_task_data(TaskSettings(kind="sequence-classification", train=[str(tmp_path / "train.jsonl")]))
    text = [f"Mkulima {i} aliuza kondoo sokoni." for i in range(9000)] + ["Ndiyo."] * 9000
    drawn = hold_out(data, text, seed=0)
    assert len(set(drawn)) == len(drawn) == MOST_HELD_OUT_LINES and "Ndiyo." not in drawn
    assert not set(drawn) & {example.text for example in data.train}
    assert hold_out(data, text, seed=0) == drawn != hold_out(data, text, seed=1)
    assert len(hold_out(data, text[:150], seed=0)) == 10 and hold_out(data, text[:55], seed=0) == []

    path = tmp_path / "sw.txt"
    path.write_text("\n".join(text[:100]) + "\n", encoding="utf-8")
    (rest,) = without_lines([File.at(path)], text[:100], text[:3])
    assert isinstance(rest, Rest) and rest != File.at(path)
    assert rest.write(tmp_path / "work").read_text(encoding="utf-8").splitlines() == text[3:100]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if get_task(kind).of_plain_text])
def test_a_model_agrees_with_itself_and_less_with_another(kind, tmp_path):
    folder = model_in(tmp_path, "bert", kind)
    (tmp_path / "other").mkdir()
    other = model_in(tmp_path / "other", "bert", kind)
    tiny.save(get_task(kind).build_model(tmp_path / "bert", LABELS[kind], seed=7), other, "bert")
    task = get_task(kind)
    examples, said = answered_lines(folder, task, TEXTS, max_length=32, pairs=kind == "sequence-classification")
    metrics = task.score(examples, said, labels=LABELS[kind])
    assert metrics.scores[metrics.primary] == 100
    assert measure(folder, task, examples, max_length=32).scores == metrics.scores
    assert measure(other, task, examples, max_length=32).scores[metrics.primary] < 100
