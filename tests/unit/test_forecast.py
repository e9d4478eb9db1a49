"""What a run will take, said before: FLOPs, steps, states, rates, and the lengths that a budget comes to."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tiny
import torch
from small_stages import Write, named
from tiny_recipe import RECIPE, write_recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from bistil.commands.run import say_what_next
from bistil.distillation.module import Distiller
from bistil.distillation.student import make_student
from bistil.errors import InputError, RecipeError
from bistil.measuring.benchmark import count_flops, count_parameters
from bistil.measuring.shape import EncoderShape
from bistil.method import forecast_recipe, plan_recipe, run_recipe
from bistil.runs import budget as budgets
from bistil.runs.budget import LEAST_STEPS, LENGTHS, MOST_TIMES, fix_lengths
from bistil.runs.cost import Cost, Passes, Training
from bistil.runs.folder import RunFolder, State
from bistil.runs.forecast import Estimate, Forecast, Forecaster
from bistil.runs.inputs import check_inputs
from bistil.runs.rates import MOST_FACTORS, MOST_RATES, Rate, Rates
from bistil.settings.durations import rough_duration, seconds_of
from bistil.settings.recipe import ObjectiveSettings, load_recipe

# Durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("45m", 2700), ("2h", 7200), ("90s", 90), ("1h30m", 5400), ("1.5 h", 5400)]
)
def test_durations_are_read(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "45", "m", "0m", "-5m", "30m1h", "1h 1x", "1e3m", "٣m…"])
def test_what_is_no_duration_is_one_line(text):
    with pytest.raises(RecipeError, match="45m, 2h, 90s or 1h30m"):
        seconds_of(text)


def test_durations_are_said_no_finer_than_they_are_known():
    said = [rough_duration(one) for one in (3.4, 89, 95, 3540, 3600, 5400, 100_000, 260_000)]
    assert said == ["3 s", "89 s", "2 min", "59 min", "1 h", "1 h 30 min", "27 h 47 min", "3 d"]


# Shapes


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_shape_counts_what_the_benchmark_counts_of_the_model(family):
    config = tiny.config(family, layers=3)
    shape, model = EncoderShape.of(config), AutoModel.from_config(config).eval().requires_grad_(False)
    assert shape.parameters == count_parameters(model)
    # The two-layer way, of families that look at numbers, leaves out nothing either.
    for tokens in (8, 24, 80):
        exact = count_flops(
            model, [{"input_ids": (ids := torch.full((1, tokens), 7)), "attention_mask": torch.ones_like(ids)}]
        )
        assert shape.flops(tokens) == pytest.approx(exact, rel=1e-6)


def test_layers_and_vocabulary_change_a_shape():
    shape = EncoderShape.of(tiny.config("bert"))
    assert shape.with_layers([3, 6]).depth == 2
    more = shape.with_vocabulary(shape.vocabulary + 10)
    assert more.parameters["total"] - shape.parameters["total"] == 10 * shape.width


# Stages


@pytest.fixture(scope="module")
def recipe_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    write_recipe(folder)
    # Fewer rows: whole runs are made of it below.
    fewer = RECIPE.replace('[[students]]\nname = "lrf3"\nreduction = 3\n', "").replace(
        "no_target_text", "copied = false\nself_taught"
    )
    (folder / "recipe.toml").write_text(fewer)
    return folder


@pytest.fixture(scope="module")
def recipe(recipe_folder):
    return load_recipe(recipe_folder / "recipe.toml")


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "run"
    run_recipe(recipe, output)
    return output


def by_name(forecast):
    return {one.name: one for one in forecast.stages}


def test_steps_and_places_are_those_of_the_run(recipe, finished):
    foretold = by_name(forecast_recipe(recipe))
    steps = {}
    for path in (finished / "stages").glob("*.json"):
        record = json.loads(path.read_text())
        result = record["result"]
        phases = [(result.get("phases", {}).get(name) or {}).get("steps", 0) for name in ("dense", "sparse")]
        steps[record["name"]] = result.get("steps") or sum(phases)
        assert record["name"] in foretold, record["name"]
    assert {name: one.steps for name, one in foretold.items()} == steps
    assert steps["phase1"] == 12 and steps["task-teacher"] > 0
    trained = [one for one in foretold.values() if one.steps]
    assert len(trained) == 4 and all(one.seconds > 0 and one.memory > 0 and one.disk > 0 for one in trained)


def test_the_work_of_a_step_is_what_its_passes_do(recipe):
    """FLOPs of a step of phase 1, counted by PyTorch while the module that is trained runs it, forward and backward."""
    inputs = check_inputs(recipe)
    stage = plan_recipe(recipe, inputs).bilingual()
    forecaster = Forecaster()
    step = forecaster.cost(stage).trainings[0].step
    teacher = AutoModel.from_config(forecaster.ahead.shape(stage.teacher).config)
    students = {"lrf2": make_student(teacher, [2, 4, 6])}
    module = Distiller(teacher, students, objectives={"lrf2": ObjectiveSettings()}, fast=False)
    ids = torch.randint(5, 20, (int(step.sequences), int(step.tokens)))
    with FlopCounterMode(display=False) as counter:
        module(input_ids=ids)["loss"].backward()
    # The pooler is no part of training, and the first layer's inputs get no gradient of text.
    assert step.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert sum(loop.evaluations for loop in forecaster.cost(stage).trainings) == 2


@pytest.mark.parametrize(
    ("weights", "taught"),
    [({"prediction": 1.0}, 1), ({"hard_labels": 1.0}, 0), ({"prediction": 5.0, "hard_labels": 2.0, "cosine": 1.0}, 1)],
)
def test_the_work_of_masked_lm_heads_is_what_pytorch_counts(weights, taught):
    from torch.utils.flop_counter import FlopCounterMode

    from bistil.runs.stages.work import head_flops, is_taught

    objective = ObjectiveSettings(attention=0, hidden=0, **weights)
    teacher = tiny.masked_lm("bert")
    student = make_student(teacher, [2, 4, 6])
    for model in (teacher, student):  # fused attention is not counted
        model.set_attn_implementation("eager")
    module = Distiller(teacher, {"s": student}, objectives={"s": objective}, layers={"s": [2, 4, 6]}, fast=False)
    ids = torch.randint(5, 20, (8, 100))
    labels = torch.where(torch.arange(100) % 20 < 3, ids, -100)  # 15%
    with FlopCounterMode(display=False) as counter:
        module(input_ids=ids, labels=labels)["loss"].backward()
    theirs, ours = EncoderShape.of(teacher.config), EncoderShape.of(student.config)
    assert is_taught(objective) == bool(taught)
    step = taught * theirs.flops(100) + 3 * ours.flops(100) + 100 * head_flops(objective, ours, theirs)
    assert 8 * step == pytest.approx(counter.get_total_flops(), rel=0.07)


def test_more_teachers_cost_a_fine_tuning_and_a_pass_each(recipe):
    """A pass per step, or one of each over the data where what they say is kept."""

    def foretold(**phase2):
        own = replace(recipe, phase2=replace(recipe.phase2, **phase2))
        plan, forecaster = plan_recipe(own, check_inputs(own)), Forecaster()
        stages = {plan.names[stage.key].label: stage for stage in plan.stages()}
        return stages, {name: forecaster.cost(stage) for name, stage in stages.items()}, plan.groups()["finetune"]

    (_, one, _), (stages, three, tuned) = (foretold(teachers=count) for count in (1, 3))
    teachers = ["task-teacher", "task-teacher 2 of 3", "task-teacher 3 of 3"]
    assert three.keys() - one.keys() == set(teachers[1:]) and [stages[name] for name in teachers] == tuned
    assert three[teachers[2]].trainings == one["task-teacher"].trainings
    own, student = one["phase2-lrf2"], three["phase2-lrf2"]
    assert student.memory > own.memory and student.seconds > own.seconds
    assert student.trainings == own.trainings and student.passes[0].flops == pytest.approx(3 * own.passes[0].flops)
    assert three["phase2-lrf2-self-taught"].memory == one["phase2-lrf2-self-taught"].memory
    # Not kept, each step has as many passes as there are teachers.
    steps = [foretold(teachers=count, kept_gigabytes=0.0)[1]["phase2-lrf2"].trainings[0].step.flops for count in (1, 3)]
    without = own.trainings[0].step.flops
    assert steps[0] > without and steps[1] - without == pytest.approx(3 * (steps[0] - without))


def test_what_is_done_begun_and_done_again_is_told_with_its_reason(recipe, finished, tmp_path):
    assert {one.state.word for one in forecast_recipe(recipe).stages} == {"to do"}
    whole = forecast_recipe(recipe, finished)
    assert {one.state.word for one in whole.stages} == {"done"}
    assert whole.line() == f"all {len(whole.stages)} stages are done" and whole.seconds == 0
    assert forecast_recipe(recipe, tmp_path / "nothing").to_do
    changed = replace(recipe, phase2=replace(recipe.phase2, training=replace(recipe.phase2.training, batch_size=2)))
    again = by_name(forecast_recipe(changed, finished))
    assert again["phase2-lrf2"].state.why == "settings.training.batch_size was 4 and is 2"
    assert again["evaluate lrf2"].state.why == "it stands on phase2-lrf2"
    assert again["phase1"].state.word == again["task-teacher"].state.word == "done"
    before = (finished / "students/lrf2/config.json").read_bytes()
    try:
        (finished / "students/lrf2/config.json").write_bytes(before + b" ")
        damaged = by_name(forecast_recipe(recipe, finished))
        assert damaged["phase2-lrf2"].state.why == "students/lrf2/config.json was damaged or deleted"
        assert damaged["evaluate lrf2"].state.word == "done"
    finally:
        (finished / "students/lrf2/config.json").write_bytes(before)


def test_looking_changes_nothing_and_follows_what_is_needed(tmp_path):
    base = Write(text="base")
    top = Write(text="top", after=base.product("out"))
    look = RunFolder(tmp_path / "run", identity={}, look=True)
    assert [one.key for one in Forecaster(look).forecast([top]).stages] == [base.key, top.key]
    assert not (tmp_path / "run").exists()
    with RunFolder(tmp_path / "run", identity={}) as run:
        run.make(top)
        run.drop(base)
        before = sorted(path for path in (tmp_path / "run").rglob("*"))
        # Another process looks while this one works; what only the finished stage stood on is not asked for.
        look = RunFolder(tmp_path / "run", identity={"other": 1}, names=named(top, new="elsewhere"), look=True)
        assert [one.state.word for one in Forecaster(look).forecast([top]).stages] == ["done"]
        assert Forecaster(look).forecast([base]).stages[0].state.why == "it was removed to save room"
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before


def test_a_check_and_a_run_say_what_it_takes(recipe_folder, finished, command_line):
    code, out, _ = command_line("run", recipe_folder / "recipe.toml", "--check")
    assert code == 0 and "\nthe run's folder is runs/tiny; --output names another\n" in out
    assert "phase2-lrf2-self-taught" in out and " stages to do: " in out.splitlines()[-2]
    assert re.fullmatch(r"fine: about .+, .+ of memory of .+ that are free, .+ of disk of .+, nothing is done again",
                        out.splitlines()[-1])  # fmt: skip
    code, out, _ = command_line("run", recipe_folder / "recipe.toml", "--check", "--output", finished)
    assert code == 0 and out.splitlines()[-2].startswith("all ")
    assert out.splitlines()[-1].startswith("fine: all ") and out.endswith("nothing is done again\n")
    code, out, said = command_line("run", recipe_folder / "recipe.toml", "--output", finished)
    assert code == 0 and "[bistil] plan: all " in said
    assert out.splitlines()[-2:] == [
        f"report: {finished}/report.html",
        f"next: bistil predict {finished}/students/lrf2 FILE",
    ]


@pytest.mark.parametrize(
    ("name", "folder"), [("tiny", "tiny"), ("a b/../c", "a-b-..-c"), ("run", "mine"), ("//", "run")]
)
def test_a_run_without_an_output_goes_to_a_folder_after_its_name(tmp_path, command_line, monkeypatch, name, folder):
    write_recipe(tmp_path)
    (tmp_path / "mine.toml").write_text(RECIPE.replace('name = "tiny"', f'name = "{name}"'))
    outputs = []
    monkeypatch.setattr("bistil.method.run_recipe", lambda _recipe, output, **_: outputs.append(output))
    code, out, said = command_line("run", tmp_path / "mine.toml")
    assert code == 0 and outputs == [Path("runs") / folder]
    assert said == f"[bistil] the run's folder is runs/{folder}; --output names another\n"
    assert out == f"next: bistil predict runs/{folder}/students/lrf2 FILE\n"


def test_a_check_refuses_the_folders_that_a_run_refuses(recipe_folder, finished, tmp_path, command_line):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    cases = [("mine", [], "holds no run of bistil"), ("file", [], "file"), (finished, ["--seed", "5"], "another run")]
    for folder, more, message in cases:
        words = ["run", recipe_folder / "recipe.toml", "--output", tmp_path / folder, *more]
        code, out, said = command_line(*words, "--check")
        assert code == 2 and not out and said.count("\n") == 1 and message in said
        assert command_line(*words)[2] == said
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "mine"]


def test_what_to_type_next_is_quoted(capsys):
    say_what_next(Path("runs/my run"), "lrf2")
    say_what_next(Path("runs/my run"), "lrf2", task=False)
    assert capsys.readouterr().out.splitlines() == [
        "next: bistil predict 'runs/my run/students/lrf2' FILE",
        "next: bistil finetune --model 'runs/my run/phase1/lrf2' --task KIND --train FILE --output DIR",
    ]


def test_a_verdict_says_what_is_wrong_and_what_is_done_again(tmp_path, monkeypatch):
    def stage(key, state, **values):
        return Estimate(name=key, kind="x", key=key, state=state, seconds=80, memory=2**30, disk=2**30, **values)

    again = Forecast([stage("a", State("done")), stage("b", State("again", "settings changed"))])
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=3 * 2**30))
    assert again.verdict(tmp_path).startswith("fine: about 80 s, 1.0 GiB of memory of 3.0 GiB that are free, ")
    assert again.verdict(tmp_path).endswith("1 of 2 stages are done, again: b (settings changed)")
    assert again.verdict(tmp_path, jobs=4).startswith("not fine: too little memory for b (--jobs 1, ")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert again.verdict(tmp_path / "none" / "yet").startswith("not fine: too little room on the disk")


# Rates


def passes(kind="labels", **changes):
    shape = EncoderShape.of(tiny.config("bert", layers=2))
    values = {"kind": kind, "teacher": shape, "students": (shape,), "sequences": 2, "tokens": 16, "flops": 1e9}
    return Passes(**{**values, **changes})


@pytest.mark.parametrize("kind", ["phase1", "phase2", "labels", "language", "score", "single"])
def test_a_rate_is_measured_once_and_kept(kind, tmp_path, monkeypatch):
    objective = ObjectiveSettings(prediction=1.0) if kind.startswith("phase") else None
    one = passes(kind, objective=objective, parameters=1e6)
    state = torch.get_rng_state()
    seconds = Rates(tmp_path / "rates.json").seconds(one)
    assert seconds > 0 and torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr("bistil.runs.rates.measured", None)
    assert Rates(tmp_path / "rates.json").seconds(one) == pytest.approx(seconds)
    assert Rates(tmp_path / "rates.json").seconds(replace(one, flops=2e9, parameters=2e6)) == pytest.approx(2 * seconds)


def test_an_objective_that_random_models_cannot_have_is_measured_by_what_they_can(tmp_path):
    odd = ObjectiveSettings(attention=0.0, hidden=0.0, hard_labels=1.0, terms={"nowhere:Norms": 1.0}, pairs=[[3, 6]])
    for kind in ("phase1", "phase2"):
        one = passes(kind, objective=odd, teacher=EncoderShape.of(tiny.config("bert", layers=1)))
        assert Rates(tmp_path / "rates.json").seconds(one) > 0


def test_a_rate_that_is_measured_on_a_busy_machine_is_that_of_an_idle_one(monkeypatch):
    from bistil.runs import rates

    # A process that had a tenth of its core, and one with two threads on two cores.
    clocks = {"perf_counter": 0.0, "process_time": 0.0}
    monkeypatch.setattr(rates, "_wait", lambda _: None)
    for name in clocks:
        monkeypatch.setattr(rates.time, name, lambda name=name: clocks[name])

    def step(wall, own):
        clocks["perf_counter"] += wall
        clocks["process_time"] += own

    assert rates._seconds(lambda: step(10.0, 1.0), "cpu") == 1.0
    assert rates._seconds(lambda: step(10.0, 19.0), "cpu") == 10.0
    assert rates._seconds(lambda: step(10.0, 0.5), "gpu") == 10.0


def test_stages_that_were_made_correct_a_rate_and_outliers_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr("bistil.runs.rates.measured", lambda _: Rate(1e-9, 0.0))
    one, file = passes(), tmp_path / "rates.json"
    assert Rates(file).seconds(one) == 1.0
    Rates(file).correct(one, 2.0)
    assert Rates(file).seconds(one) == 2.0
    Rates(file).correct(one, 1.5)  # of what was foretold by then
    assert Rates(file).seconds(one) == 2.5  # the median of 2 and 3
    for absurd in (0.0, 1e-6, 1e6, float("inf"), float("nan")):
        Rates(file).correct(one, absurd)
    assert Rates(file).seconds(one) == 2.5
    for _ in range(20):
        Rates(file).correct(one, 1.0)
    (entry,) = json.loads(file.read_text())["rates"].values()
    assert len(entry["factors"]) == MOST_FACTORS


def test_a_damaged_file_of_rates_counts_as_none_and_many_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("bistil.runs.rates.measured", lambda _: Rate(1e-9, 0.0))
    file = tmp_path / "rates.json"
    sound = {"flop": 1e-9, "parameter": 0.0, "factors": []}
    Rates(file).seconds(passes())
    whole = file.read_text()
    others = ["", "[1]", whole[:30], whole.replace("1e-09", "2e-09"), "\x00", '{"rates": 3}']
    odd = [{"flop": "x"}, 4, {**sound, "flop": -1.0}, {**sound, "factors": [0]}, {**sound, "factors": None}]
    others.append(json.dumps({"rates": {str(i): one for i, one in enumerate(odd)}}))
    for content in others:
        file.write_text(content)
        assert Rates(file)._known == {}, content
        assert Rates(file).seconds(passes()) == 1.0
        assert file.read_text() == whole
    file.write_text(json.dumps({"rates": {str(i): sound for i in range(3 * MOST_RATES)}}))
    Rates(file).seconds(passes())
    kept = json.loads(file.read_text())["rates"]
    assert len(kept) == MOST_RATES and Rates(file).of_stage(passes()) in kept
    file.unlink()
    file.mkdir()  # no place for it: forgotten, and no error
    assert Rates(file).seconds(passes()) == 1.0


def test_a_made_stage_teaches_the_rate_of_its_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("bistil.runs.rates.measured", lambda _: Rate(1e-9, 0.0))
    monkeypatch.setattr("bistil.runs.forecast.STEP_SECONDS", 0.0)

    class Trains(Write):
        def cost(self, ahead):
            del ahead
            return Cost(trainings=[Training(steps=10, step=passes())], seconds=5.0)

    rates = Rates(tmp_path / "rates.json")
    with RunFolder(tmp_path / "run", identity={}) as run:
        forecaster = Forecaster(run, rates=rates)
        stage = Trains()
        assert forecaster.forecast([stage]).seconds == 15.0
        forecaster.made(stage, replace(run.make(stage), seconds=35.0))
    assert rates.seconds(passes()) == 3.0


# Budgets


@pytest.fixture
def slow(monkeypatch):
    """A machine on which time is known: a second per step of each model of a kind."""
    monkeypatch.setattr("bistil.runs.rates.measured", lambda one: Rate(1.0 / max(one.flops, 1.0), 0.0))
    monkeypatch.setattr("bistil.runs.rates.Rates._keep", lambda _: None)
    monkeypatch.setattr("bistil.runs.rates._read", lambda _: {})


def long(recipe, budget, **changes):
    """The recipe with lengths that can be cut."""
    sparse = {"dense_steps": 400, "sparse_steps": 400, "dense_epochs": None, "sparse_epochs": None}
    return replace(
        recipe,
        budget=budget,
        phase1=replace(recipe.phase1, training=replace(recipe.phase1.training, steps=600)),
        finetune=replace(recipe.finetune, sparse=replace(recipe.finetune.sparse, **sparse)),
        phase2=replace(recipe.phase2, sparse=replace(recipe.phase2.sparse, **sparse)),
        **changes,
    )


def fixed(recipe, output=None):
    inputs = check_inputs(recipe)
    return fix_lengths(recipe, lambda one: plan_recipe(one, inputs).groups(), output)


def foretold(recipe):
    return Forecaster().forecast(plan_recipe(recipe, check_inputs(recipe)).stages()).seconds


@pytest.mark.usefixtures("slow")
def test_one_factor_makes_all_trainings_fit_the_budget(recipe):
    own = foretold(long(recipe, None))
    short, same = long(recipe, f"{own / 2:.0f}s"), long(recipe, f"{own:.0f}s")
    got = fixed(short)
    settled = got.applied(short)
    assert foretold(settled) == pytest.approx(own / 2, rel=0.02) and foretold(settled) <= own / 2
    factors = [
        settled.phase1.training.steps / 600,
        settled.finetune.sparse.dense_steps / 400,
        settled.phase2.sparse.sparse_steps / 400,
    ]
    assert max(factors) - min(factors) < 0.01 and max(factors) < 0.6
    assert fixed(same).applied(same).phase1.training.steps == pytest.approx(600, rel=0.02)
    # The lengths are the stages' own, and so of their keys; all else is as it was.
    inputs = check_inputs(short)
    assert plan_recipe(settled, inputs).bilingual().key != plan_recipe(short, inputs).bilingual().key
    assert plan_recipe(settled, inputs).method.trimmed().key == plan_recipe(short, inputs).method.trimmed().key


@pytest.mark.usefixtures("slow")
def test_fine_tunings_grow_to_a_bound_and_phase_1_takes_the_rest(recipe):
    wide = long(recipe, "200h")
    settled = fixed(wide).applied(wide)
    assert settled.finetune.sparse.dense_steps == settled.phase2.sparse.sparse_steps == MOST_TIMES * 400
    assert settled.phase1.training.steps == budgets.MOST_PHASE1_STEPS
    between = long(recipe, "8h")
    settled = fixed(between).applied(between)
    assert settled.finetune.sparse.dense_steps == MOST_TIMES * 400
    assert 2 * 600 < settled.phase1.training.steps < budgets.MOST_PHASE1_STEPS
    assert foretold(settled) == pytest.approx(8 * 3600, rel=0.01)


@pytest.mark.usefixtures("slow")
def test_epochs_and_bounds_are_lengths_too(recipe):
    training = replace(
        recipe.finetune.training, steps=None, epochs=300.0, least_steps=50, most_steps=4000, warmup_steps=0.1
    )
    dense = replace(long(recipe, "1h"), finetune=replace(recipe.finetune, sparse=None, training=training))
    got = fixed(dense).applied(dense).finetune.training
    assert got.epochs != 300.0 and got.warmup_steps == 0.1
    assert got.least_steps / 50 == pytest.approx(got.epochs / 300, rel=0.02)
    assert got.most_steps / 4000 == pytest.approx(got.epochs / 300, rel=0.01)


def test_a_budget_that_is_too_small_is_one_line_and_writes_nothing(recipe_folder, tmp_path, command_line):
    line = ("run", recipe_folder / "recipe.toml", "--output", tmp_path / "run", "--set")
    code, _, said = command_line(*line, "budget=0.001s")
    assert code == 2 and said.count("\n") == 1
    assert "budget is 0.001s, but this run takes about" in said and f"({LEAST_STEPS} steps)" in said
    assert not (tmp_path / "run").exists()
    code, _, said = command_line(*line, "budget=soon")
    assert code == 2 and said.count("\n") == 1 and "budget is 'soon'; give a duration such as 45m" in said


def test_a_resumed_run_keeps_the_lengths_that_were_fixed(recipe, tmp_path, monkeypatch):
    # Everything is below the least number of steps, so the least is the recipe's own; any budget is large.
    generous = replace(recipe, budget="10h")
    monkeypatch.setattr(budgets, "MOST_PHASE1_STEPS", 24)
    output = tmp_path / "run"
    run_recipe(generous, output)
    lengths = json.loads((output / LENGTHS).read_text())["lengths"]
    assert lengths["phase1"]["training"]["steps"] == 24
    assert json.loads((output / "recipe.json").read_text())["phase1"]["training"]["steps"] == 24
    # Another machine, another rule: the folder's lengths stay, and nothing is done again.
    monkeypatch.setattr(budgets, "MOST_PHASE1_STEPS", 48)
    assert {one.state.word for one in forecast_recipe(generous, output).stages} == {"done"}
    assert {one.skipped for one in run_recipe(generous, output).stages} == {True}
    # The same time said otherwise is the same budget; another recipe or budget is fixed anew.
    assert fixed(replace(generous, budget="600m"), output).lengths == lengths
    assert fixed(replace(generous, budget="9h"), output).lengths["phase1"]["training"]["steps"] == 48
    longer = replace(generous, phase1=replace(generous.phase1, training=replace(generous.phase1.training, steps=14)))
    assert fixed(longer, output).own != fixed(generous, output).own
    (output / LENGTHS).write_text((output / LENGTHS).read_text().replace("24", "25"))
    with pytest.raises(InputError, match=rf"{LENGTHS} is damaged.*remove it"):
        fixed(generous, Path(output))
