"""The whole method on a tiny teacher: results, files, resumption, and what is said of bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tiny
import torch
from forking import free_port
from safetensors.torch import load_file
from tiny_recipe import RECIPE, write_recipe
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bistil.errors import BistilError, RecipeError
from bistil.method import plan_recipe, run_recipe
from bistil.runs.folder import RunFolder
from bistil.runs.inputs import check_inputs
from bistil.settings.recipe import load_recipe


@pytest.fixture(scope="module")
def recipe_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    write_recipe(folder)
    return folder


@pytest.fixture(scope="module")
def finished(recipe_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "run"
    return output, run_recipe(load_recipe(recipe_folder / "recipe.toml"), output)


def record(output, name):
    """What a stage of a run left on record."""
    found = [json.loads(path.read_text()) for path in (output / "stages").glob("*.json")]
    return next(one for one in found if one["name"] == name)


def work_folder(recipe_file, output, name):
    """Where a stage of a run keeps its checkpoints."""
    recipe = load_recipe(recipe_file)
    plan = plan_recipe(recipe, check_inputs(recipe))
    stage = next(stage for stage in plan.stages() if plan.names[stage.key].label == name)
    return output / "work" / f"{stage.KIND}-{stage.key[:16]}"


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def test_the_students_are_ordinary_models(finished):
    output, _ = finished
    for name, layers in (("lrf2", 3), ("lrf3", 2)):
        folder = output / "students" / name
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.num_hidden_layers == layers
        assert set(model.config.id2label.values()) == {"even0", "even1"}
        answer = pipeline("text-classification", model=str(folder), device="cpu")("Paka aliketi kwenye mkeka.")
        assert answer[0]["label"] in ("even0", "even1")
        assert {p.name for p in folder.iterdir()} >= {
            "config.json", "model.safetensors", "tokenizer.json", "README.md", "bistil.json",
        }  # fmt: skip
        bilingual = AutoModel.from_pretrained(output / "phase1" / name)
        assert bilingual.config.num_hidden_layers == layers


def columns(lines):
    """Each capitalised word a name."""
    return "".join(
        "".join(f"{word} {'B-PER' if word[0].isupper() else 'O'}\n" for word in line.split()) + "\n" for line in lines
    )


def trees(lines):
    """Each word hangs on the one before."""
    return "".join(
        "".join(
            f"{i}\t{word}\t_\tX\t_\t_\t{i - 1}\t{'root' if i == 1 else 'dep'}\t_\t_\n"
            for i, word in enumerate(line.split(), 1)
        )
        + "\n"
        for line in lines
    )


def questions(lines):
    """The first word of each line is asked for."""
    paragraphs = [
        {"context": line, "qas": [{"id": line, "question": "Who?", "answers": [{"text": word, "answer_start": 0}]}]}
        for line in lines
        for word in line.split()[:1]
    ]
    return json.dumps({"data": [{"title": "", "paragraphs": paragraphs}]})


def sets_of_labels(lines):
    """Some lines have a label, some two, some none."""
    rows = [{"text": text, "labels": [x for x in ("cat", "a") if x in text.lower()]} for text in lines]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("kind", "write", "ending", "architecture"),
    [
        ("multi-label-classification", sets_of_labels, "labels.jsonl", "BertForSequenceClassification"),
        ("token-classification", columns, "conll", "BertForTokenClassification"),
        ("dependency-parsing", trees, "conllu", "BertForDependencyParsing"),
        ("question-answering", questions, "json", "BertForQuestionAnswering"),
    ],
)
def test_the_other_tasks_run_to_the_end(kind, write, ending, architecture, recipe_folder, tmp_path):
    english, swahili = tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines()
    parts = {"train": english[:8], "dev": english[6:8], "test.en": english[8:], "test.sw": swahili[:4]}
    for part, lines in parts.items():
        (recipe_folder / f"{part}.{ending}").write_text(write(lines))
    recipe = RECIPE.replace("sequence-classification", kind).replace(".jsonl", f".{ending}")
    recipe = recipe.replace("dense_epochs = 3\nsparse_epochs = 3", "dense_epochs = 1\nsparse_epochs = 1")
    recipe = recipe.replace("no_target_text = true", "copied = false\ntrimmed = false")
    (recipe_folder / f"{kind}.toml").write_text(recipe)
    summary = run_recipe(load_recipe(recipe_folder / f"{kind}.toml"), tmp_path / "run")
    rows = {row.name: row for row in summary.models}
    # The most frequent tag finds no span: a line of 0 would say nothing.
    majority = ["majority class"] * (kind != "token-classification")
    assert list(rows) == ["teacher", "lrf2", "lrf3", *majority]
    said = (tmp_path / "run/report.html").read_text()
    assert "A few predictions" in said and swahili[0] not in (tmp_path / "run/summary.json").read_text()
    assert rows["lrf2"].flops < rows["teacher"].flops and rows["lrf2"].milliseconds > 0
    for row in rows.values():
        assert 0 <= row.target_score <= 1
    config = json.loads((tmp_path / "run/students/lrf2/config.json").read_text())
    assert config["architectures"] == [architecture]
    assert (tmp_path / "run/report.html").exists()


def test_a_student_is_its_start_plus_its_sparse_fine_tuning(finished):
    from bistil.sparse import SparseFineTuning

    output, _ = finished
    start, end = weights(output / "phase1/lrf2"), weights(output / "students/lrf2")
    sft = SparseFineTuning.load(output / "sfts/lrf2")
    changed = sum(
        int((end[name] != value).sum())
        for key, value in start.items()
        if (name := f"bert.{key}" if f"bert.{key}" in end else key) and "pooler" not in name
    )
    assert 0 < changed <= sft.count
    assert sft.density == pytest.approx(0.08, rel=0.01)


def test_the_record_of_a_run_makes_its_products_again_byte_by_byte(finished, tmp_path):
    """Out of recipe.json alone: seed, settings, and where the inputs are, whose digests the stages' keys hold."""
    output, _ = finished
    recipe = load_recipe(output / "recipe.json")
    plan = plan_recipe(recipe, check_inputs(recipe))
    wanted = ("trim", "phase1", "task-teacher", "phase2-lrf2")
    with RunFolder(tmp_path / "again", identity={}, names=plan.names) as run:
        for stage in plan.stages():
            if plan.names[stage.key].label in wanted:
                assert (output / "stages" / f"{stage.KIND}-{stage.key[:16]}.json").is_file()
                run.make(stage)
    # Records besides say what the stages took, and where an SFT's base lay.
    named = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    again = [path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()]
    made = {path for path in again if path.suffix == ".safetensors" or path.name in named}
    made = {path for path in made if "work" not in path.parts}
    weights = {str(path) for path in made if path.suffix == ".safetensors"}
    assert {"students/lrf2/model.safetensors", "trimmed/vocabulary_map.safetensors"} <= weights
    assert any(name.startswith("sfts/lrf2/") for name in weights)
    for path in made:
        assert (tmp_path / "again" / path).read_bytes() == (output / path).read_bytes(), path


def test_the_record_of_a_run_is_taken_as_it_is(finished, tmp_path):
    output, _ = finished
    with pytest.raises(RecipeError, match=r"not changed: leave out seed=1"):
        load_recipe(output / "recipe.json", assignments=["seed=1"])
    values = json.loads((output / "recipe.json").read_text())
    for name, text in {
        "list": "[]",
        "empty": "{}",
        "other": json.dumps({**values, "students": 3}),
        "more": json.dumps({**values, "colour": "red"}),
        "broken": "{",
    }.items():
        (tmp_path / f"{name}.json").write_text(text)
        with pytest.raises(BistilError) as caught:
            load_recipe(tmp_path / f"{name}.json")
        assert "\n" not in str(caught.value) and f"{name}.json" in str(caught.value)


def test_the_summary_tells_what_was_made(finished):
    output, _ = finished
    summary = json.loads((output / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["models"]}
    assert list(rows) == [
        "teacher", "teacher, trimmed", "lrf2", "lrf2, no target text", "lrf2, copied",
        "lrf3", "lrf3, no target text", "lrf3, copied", "majority class",
    ]  # fmt: skip
    teacher, student = rows["teacher"], rows["lrf2"]
    loaded = AutoModelForSequenceClassification.from_pretrained(output / "students/lrf2")
    assert student["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert student["parameters"] < rows["teacher, trimmed"]["parameters"] <= teacher["parameters"]
    assert student["flops"] < 0.6 * teacher["flops"]
    assert student["vocabulary"] == len(AutoTokenizer.from_pretrained(output / "students/lrf2"))
    assert rows["majority class"]["target_score"] == 0.5
    for row in (teacher, student):
        assert row["bytes"] > 0 and row["milliseconds"] > 0 and row["speed_ratio"] > 0 and row["layers"] > 0
        assert 0 <= row["source_score"] <= 1 and len(row["target_interval"]) == 2
    assert summary["seed"] == 0 and {"python", "bistil", "torch", "transformers"} <= summary["versions"].keys()
    assert student["target_interval"][0] <= student["target_score"] <= student["target_interval"][1]
    assert student["gap_to_teacher"] == pytest.approx(student["target_score"] - teacher["target_score"])
    assert [s["name"] for s in summary["stages"]][:4] == ["trim", "coverage", "phase1", "task-teacher"]
    assert list(summary["coverage"]) == ["train, en", "dev, en", "test, en", "test, sw"]
    # The vocabulary was counted on these very sentences.
    assert all(one["texts"] and not one["changed"] and not one["loses"] for one in summary["coverage"].values())
    assert all(s["peak_memory_bytes"] > 0 and s["seconds"] >= 0 for s in summary["stages"])
    page = (output / "report.html").read_text()
    assert "lrf2" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_target_text_is_learnt_from_without_the_test_sentences_and_beside_an_equal_step_control(finished):
    """The text holds every test sentence six times."""
    output, _ = finished
    figures, control = (record(output, f"phase2-lrf2{name}")["result"] for name in ("", "-no-target-text"))
    assert figures["left_out"] == {"train_in_test": 0, "target_text_in_evaluation": 24}
    assert (figures["target_text"], control["target_text"]) == (36, 0)
    for phase in ("dense", "sparse"):
        assert figures["phases"][phase]["steps"] == control["phases"][phase]["steps"] > 0
    assert (output / "baselines/lrf2-no-target-text/model.safetensors").exists()


def test_phase_1_lowers_the_held_out_loss(finished):
    output, _ = finished
    curve = json.loads((output / "summary.json").read_text())["phase1"]["lrf2"]
    for language in ("en", "sw"):
        assert curve["losses"][language][-1] < curve["losses"][language][0]


def test_the_undistilled_teacher_equals_the_trimmed_one_on_kept_tokens(finished):
    output, _ = finished
    logits = []
    for folder in ("teacher", "task-teacher"):
        tokenizer = AutoTokenizer.from_pretrained(output / folder)
        model = AutoModelForSequenceClassification.from_pretrained(output / folder).eval()
        with torch.no_grad():
            logits.append(model(**tokenizer(tiny.ENGLISH.splitlines(), padding=True, return_tensors="pt")).logits)
    assert torch.allclose(*logits, atol=1e-5)


def test_a_second_run_does_nothing_and_a_changed_input_only_what_follows(
    recipe_folder, finished, tmp_path, monkeypatch
):
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    before = {p: p.stat().st_mtime_ns for p in output.rglob("model.safetensors")}
    recipe = load_recipe(recipe_folder / "recipe.toml")
    with monkeypatch.context() as later:
        later.setattr("bistil.runs.folder.versions", lambda: {"python": "9"})
        summary = run_recipe(recipe, output)
    assert all(stage.skipped for stage in summary.stages)
    # What made the models is shown, not what looks at them.
    assert summary.versions == finished[1].versions and summary.machine == finished[1].machine
    assert before == {p: p.stat().st_mtime_ns for p in output.rglob("model.safetensors")}

    without = replace(recipe, compare=replace(recipe.compare, majority=False, copied=False))
    summary = run_recipe(without, output)
    assert all(stage.skipped for stage in summary.stages)
    shown = {m.name for m in finished[1].models} - {"lrf2, copied", "lrf3, copied", "majority class"}
    assert {m.name for m in summary.models} == shown
    summary = run_recipe(recipe, output)
    assert all(stage.skipped for stage in summary.stages)
    assert {m.name for m in summary.models} == {m.name for m in finished[1].models}

    changed = replace(
        recipe,
        phase2=replace(recipe.phase2, target_text=0.0),
        compare=replace(recipe.compare, no_target_text=False),
    )
    with monkeypatch.context() as later:
        later.setattr("bistil.runs.folder.versions", lambda: {"python": "9"})
        summary = run_recipe(changed, output)
    skipped = {stage.name: stage.skipped for stage in summary.stages}
    assert summary.versions["python"] == f"{finished[1].versions['python']}, 9"
    assert {stage.versions["python"] for stage in summary.stages if not stage.skipped} == {"9"}
    assert skipped["trim"] and skipped["phase1"] and skipped["task-teacher"]
    assert not skipped["phase2-lrf2"] and not skipped["evaluate lrf2"] and skipped["evaluate teacher"]


def test_the_readme_s_example_is_true(recipe_folder, finished, tmp_path, monkeypatch, capsys):
    """Word for word, but for the task of this recipe; the run is there already, so its stages are skipped."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, flags=re.S) if "run_recipe(" in block)
    code = code.replace("token-classification", "text-classification")
    inputs = [path for path in recipe_folder.iterdir() if path.suffix in (".txt", ".jsonl")]
    for path in inputs:
        shutil.copyfile(path, tmp_path / path.name)
    shutil.copytree(recipe_folder / "teacher", tmp_path / "teacher")
    (tmp_path / "recipe.toml").write_text(RECIPE.replace('teacher = "teacher"', f'teacher = "{recipe_folder}/teacher"'))
    shutil.copytree(finished[0], tmp_path / "runs/mine")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    student = next(model for model in finished[1].models if model.name == "lrf2")
    assert f"lrf2 {student.parameters} {student.target_score}" in out
    assert "'label': 'even" in out


OWN_TERM = """
from bistil.distillation.terms import Needs, Term

class Lengths(Term):
    NAME = "lengths"

    def needs(self, layers):
        return Needs(hidden=frozenset(layers[-1:]))

    def loss(self, compared):
        ours, theirs = compared.pairs[-1]
        return (compared.got.hidden[ours].norm(dim=-1) - compared.target.hidden[theirs].norm(dim=-1)).square().mean()
"""


def test_a_run_learns_by_a_term_of_one_s_own_if_its_code_is_trusted(
    recipe_folder, finished, tmp_path, command_line, monkeypatch
):
    (tmp_path / "own_losses.py").write_text(OWN_TERM)
    monkeypatch.syspath_prepend(tmp_path)
    output = tmp_path / "run"
    line = ("run", recipe_folder / "recipe.toml", "--set", 'phase1.objective.terms={ "own_losses:Lengths" = 0.5 }',
            "--output", output)  # fmt: skip
    code, _, said = command_line(*line)
    assert code == 2
    assert "names code, own_losses:Lengths" in said and "--trust-code" in said
    assert not output.exists() and "own_losses" not in sys.modules
    assert command_line(*line, "--check", "--trust-code")[0] == 0
    assert not output.exists()
    assert command_line(*line, "--trust-code")[0] == 0
    log = [json.loads(one) for one in (output / "phase1/record/train_log.jsonl").read_text().splitlines()]
    assert any(one.get("lrf2/lengths", 0) > 0 for one in log)
    ours, theirs = (weights(folder / "phase1/lrf2") for folder in (output, finished[0]))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((output / "recipe.json").read_text())["phase1"]["objective"]["terms"]
    sys.modules.pop("own_losses", None)


LANGUAGE = """
[language]
density = 0.1
steps = 3
block_length = 16
[language.training]
batch_size = 4
learning_rate = 5e-3
"""


def test_a_run_learns_language_sfts_and_from_labels_in_several_languages(recipe_folder, finished, tmp_path):
    """Phase 1 wears the SFTs; the task teacher learns beside those of its sources and wears the source's for good."""
    from bistil.models import load_model
    from bistil.sparse import SparseFineTuning

    several = RECIPE.replace('train = "train.jsonl"', 'sources = { en = "train.jsonl", sw = "test.sw.jsonl" }').replace(
        'sw = "test.sw.jsonl" }\nmax', 'sw = "dev.jsonl" }\nmax'
    )
    (recipe_folder / "language.toml").write_text(several + LANGUAGE)
    recipe, output = load_recipe(recipe_folder / "language.toml"), tmp_path / "run"
    shutil.copytree(finished[0], output)
    summary = run_recipe(recipe, output)
    # The vocabulary is that of the finished run.
    done = {stage.name: stage.skipped for stage in summary.stages}
    assert done["trim"] and not done["phase1"]
    assert [name for name in done if name.startswith("adapt")] == ["adapt-en", "adapt-sw"]
    sfts = {language: SparseFineTuning.load(output / f"sfts/language-{language}") for language in ("en", "sw")}
    assert sfts["en"].digest() != sfts["sw"].digest()
    assert record(output, "adapt-sw")["result"]["metrics"]["language"] == "sw"
    # Phase 1 is another with a dressed teacher.
    first, dressed = (weights(folder / "phase1/lrf2") for folder in (finished[0], output))
    assert any(not torch.equal(first[name], dressed[name]) for name in first)
    # The teacher: its base plus the task's SFT plus the source's.
    assert record(output, "task-teacher")["result"]["sources"] == {"en": 6, "sw": 4}  # less what is in a test set
    teacher, _ = load_model(output / "task-teacher")
    base, _ = load_model(output / "task-teacher")
    trimmed, _ = load_model(output / "trimmed")
    base.bert.load_state_dict(trimmed.state_dict(), strict=False)
    task = SparseFineTuning.load(output / "sfts/task-teacher")
    with task.applied(base), sfts["en"].applied(base, heads=False):
        for name, value in base.state_dict().items():
            if "pooler" not in name:
                assert torch.allclose(value, teacher.state_dict()[name], atol=1e-6), name
    assert all(stage.skipped for stage in run_recipe(recipe, output).stages)
    # One language learnt otherwise is that language's, and what follows.
    swahili = replace(recipe, language=replace(recipe.language, languages=["sw"]))
    names = {stage.name: stage.skipped for stage in run_recipe(swahili, output).stages}
    assert names["adapt-sw"] and "adapt-en" not in names and not names["phase1"]


def test_names_may_change_without_anything_being_done_again(recipe_folder, finished, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    (recipe_folder / "renamed.toml").write_text(
        RECIPE.replace('name = "tiny"', 'name = "new"').replace('"lrf2"', '"x"').replace('"lrf3"', '"lrf2"')
    )
    summary = run_recipe(load_recipe(recipe_folder / "renamed.toml"), output)
    assert all(stage.skipped for stage in summary.stages)
    assert summary.name == "new"
    for folder, old in (
        ("students/x", "students/lrf2"),
        ("students/lrf2", "students/lrf3"),
        ("phase1/lrf2", "phase1/lrf3"),
    ):
        ours, theirs = weights(output / folder), weights(finished[0] / old)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not (output / "students/lrf3").exists() and (output / "sfts/x").is_dir()
    shown, before = ({m.name: m for m in one.models} for one in (summary, finished[1]))
    assert shown["x"].folder == "students/x"
    assert shown["x, copied"].target_score == before["lrf2, copied"].target_score
    assert summary.phase1["lrf2"] == finished[1].phase1["lrf3"]


def test_a_killed_run_goes_on_and_ends_the_same(recipe_folder, finished, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "bistil", "run", str(recipe_folder / "recipe.toml"), "--output", str(output)]
    command += ["--set", "compare.no_target_text=false", "--set", "compare.copied=false"]
    # Kill it twice: in phase 1 and in a student's training.
    for stage in ("phase1", "phase2-lrf2"):
        work = work_folder(recipe_folder / "recipe.toml", output, stage)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(work.rglob("checkpoint-*/complete")):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert work.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on" in done.stderr
    for name in ("students/lrf2", "students/lrf3", "task-teacher", "phase1/lrf2"):
        whole, resumed = weights(finished[0] / name), weights(output / name)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    assert not list(output.rglob("*.partial"))
    assert not list((output / "work").rglob("*.safetensors"))


def test_a_run_with_two_teachers_goes_on_and_names_both(recipe_folder, finished, tmp_path, monkeypatch, caplog):
    """The first one is the task teacher that was there; the second is made once, and is one of another seed."""
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    recipe = load_recipe(
        recipe_folder / "recipe.toml", assignments=["phase2.teachers=2", "compare.no_target_text=false"]
    )

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("bistil.runs.stages.phase2.write_task_student", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, output)
    assert "task-teacher 2 of 2: started" in caplog.messages and "task-teacher: done before, skipped" in caplog.messages
    summary = run_recipe(recipe, output)
    skipped = {stage.name: stage.skipped for stage in summary.stages}
    assert skipped["phase1"] and skipped["task-teacher"] and skipped["task-teacher 2 of 2"]
    assert not skipped["phase2-lrf2"] and not skipped["phase2-lrf3-copied"]
    first, second = (weights(output / name) for name in ("task-teacher", "task-teacher-2"))
    assert all(torch.equal(value, weights(finished[0] / "task-teacher")[name]) for name, value in first.items())
    assert not all(torch.equal(value, second[name]) for name, value in first.items())
    assert (output / "sfts/task-teacher-2").is_dir()
    ours = record(output, "task-teacher 2 of 2")["inputs"]
    theirs = record(output, "task-teacher")["inputs"]
    assert ours == {**theirs, "seed": theirs["seed"] + 1}
    made = record(output, "phase2-lrf2")["inputs"]
    assert len(made["other_teachers"]) == 1 and made["settings"]["teachers"] == 2
    parents = json.loads((output / "students/lrf2/bistil.json").read_text())["parents"]
    assert [parents[role]["name"] for role in ("teacher", "teacher 2")] == ["task-teacher", "task-teacher-2"]
    assert "task teachers: `task-teacher`, `task-teacher-2`" in (output / "students/lrf2/README.md").read_text()
    # With one teacher again it is the run that it was.
    summary = run_recipe(load_recipe(recipe_folder / "recipe.toml"), output)
    again = weights(output / "students/lrf2")
    assert all(torch.equal(value, weights(finished[0] / "students/lrf2")[name]) for name, value in again.items())


def test_stages_side_by_side_make_what_one_process_makes_however_it_ends(recipe_folder, finished, tmp_path):
    command = [sys.executable, "-m", "bistil", "run", str(recipe_folder / "recipe.toml"), "--jobs", "2"]
    command += ["--output", str(tmp_path / "run"), "--set", "compare.no_target_text=false"]

    def until(marks, log, number=None):
        """Run until all marks were said, then send a signal; the exit code, and processes that are left."""
        with log.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream, stdout=subprocess.DEVNULL)
        while process.poll() is None and not all(mark in log.read_text() for mark in marks):
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True) if number else []
        if number:
            os.kill(process.pid, number)
        code = process.wait(timeout=120)
        _, left = psutil.wait_procs(workers, timeout=5)
        return code, left

    log = tmp_path / "log"
    assert until(["phase1: started", "task-teacher: started"], log, signal.SIGTERM) == (128 + signal.SIGTERM, [])
    said = log.read_text()
    # Every worker says it, and the process above them too where a busy machine leaves them less time than they need.
    assert 1 <= said.count("bistil: interrupted; the same command goes on") <= 3, said
    assert "plan: " in said and "2 side by side" in said
    assert until(["phase2-lrf2: started", "phase2-lrf3: started"], log, signal.SIGKILL) == (-signal.SIGKILL, [])
    assert until([], log) == (0, []), log.read_text()
    whole, _ = finished
    ours = {path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.safetensors")}
    theirs = {path.relative_to(whole) for path in whole.rglob("*.safetensors")}
    assert ours == {path for path in theirs if "no-target-text" not in str(path)} != theirs
    assert [name for name in ours if (tmp_path / "run" / name).read_bytes() != (whole / name).read_bytes()] == []
    scores = [
        {one["name"]: one["target_score"] for one in json.loads((folder / "summary.json").read_text())["models"]}
        for folder in (tmp_path / "run", whole)
    ]
    assert len(scores[0]) == 7 and scores[0].items() <= scores[1].items()
    assert not list((tmp_path / "run" / "work").glob("*"))


def test_two_processes_make_what_one_makes(recipe_folder, finished, tmp_path):
    """They share every training; what only one can do the first one does. Damaged work is done again by both."""
    output = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
        "-m", "bistil", "run", str(recipe_folder / "recipe.toml"), "--output", str(output),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for again in (False, True):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        for name in ("phase1/lrf2", "students/lrf2", "baselines/lrf3-copied", "teacher"):
            ours, theirs = weights(output / name), weights(finished[0] / name)
            far = sum(int(((value - theirs[key]).abs() > 2e-3).sum()) for key, value in ours.items())
            # Sums in another order choose a few other entries of a sparse fine-tuning; phase 1 has none.
            most = 0 if name.startswith("phase1") else 0.01 * sum(value.numel() for value in ours.values())
            assert far <= most, f"{name}: {far} entries"
        stages = json.loads((output / "summary.json").read_text())["stages"]
        assert {stage["name"] for stage in stages if not stage["skipped"]} == ({"phase2-lrf3"} if again else
               {stage.name for stage in finished[1].stages})  # fmt: skip
        said = [line for line in done.stderr.splitlines() if "phase2-lrf3: " in line and "damaged" in line]
        assert len(said) == again
        (output / "students/lrf3/model.safetensors").write_bytes(b"damaged")


def test_an_interrupted_run_says_in_one_line_how_to_go_on(recipe_folder, tmp_path):
    output, number = tmp_path / "run", signal.SIGINT  # SIGTERM is sent to stages side by side
    command = [sys.executable, "-m", "bistil", "run", str(recipe_folder / "recipe.toml"), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((output / "work").rglob("phase1-*/**/checkpoint-*/complete")):
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    how = "bistil: interrupted; the same command goes on from the last checkpoint"
    assert re.fullmatch(rf"{how}, step \d+ of 12; \d steps? behind it are lost", said.splitlines()[-1])
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sw.txt", "missing.txt"), "missing.txt"),
        (('sw = "sw.txt"', 'sw = "empty.txt"'), "empty.txt is empty"),
        (('target = "sw"', 'target = "en"'), "two languages"),
        (("reduction = 3", "reduction = 4"), "reduction 4 does not divide the teacher's 6 layers"),
        (("[phase1.training]", "[phase1.trainig]"), "did you mean 'training'?"),
        (("test.sw.jsonl", "odd.jsonl"), "odd.jsonl, line 1"),
        (('teacher = "teacher"', 'teacher = "./nowhere"'), "nowhere"),
        (('sw = "sw.txt"', 'sw = "latin1.txt"'), "latin1.txt, line 2"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(recipe_folder, tmp_path, command_line, change, message):
    (recipe_folder / "empty.txt").write_text("\n\n")
    (recipe_folder / "odd.jsonl").write_text('{"text": "x", "label": "never seen"}\n')
    (recipe_folder / "latin1.txt").write_bytes(b"fine\ncaf\xe9\n")
    path = recipe_folder / f"bad-{abs(hash(message))}.toml"
    path.write_text(RECIPE.replace(*change))
    code, _, said = command_line("run", path, "--output", tmp_path / "run")
    assert code == 2
    assert said.count("\n") == 1
    assert said.startswith("bistil: error: ")
    assert message in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("block_length = 16", "block_length = 500"), "block_length is 500, but the model has"),
        (("max_length = 32", "max_length = 500"), "max_length is 500, but the model has"),
        (("[phase1.training]\n", "[phase1.training]\naccumulation = 3\n"), "batch_size 4 cannot be cut into 3"),
        (("[phase2.training]\n", "[phase2.training]\naccumulation = 3\n"), "batch_size 4 cannot be cut into 3"),
        (("[phase2.training]\n", '[phase2.training]\nloggers = "nolog"\n'), "unknown logger 'nolog'"),
        (
            ("[finetune.sparse]\n", "[finetune.sparse]\ndensity = 2.0\n"),
            "finetune.sparse.density is 2.0; it must be above 0 and at most 1",
        ),
        (("target_text = 0.5", "target_text = 0.5\ntarget_sentences = 0"), "target_sentences is 0"),
        (("block_length = 16", "block_length = 16\nheld_out = 2.0"), "held_out is 2.0; it must"),
        (
            ("block_length = 16", "block_length = 16\nprobabilities = { en = 1 }"),
            "phase1.probabilities has no number for 'sw'",
        ),
        (
            ("block_length = 16", "block_length = 16\nobjective = { attention = 0.0, hidden = 0.0 }"),
            "every weight of the objective is 0",
        ),
        (('sw = "sw.txt"', 'sw = "train.jsonl"'), "holds JSON lines"),
        (("test.sw.jsonl", "two.jsonl"), "two.jsonl: the column 'language' names 2 languages (de, fr): none is 'sw'"),
    ],
)
def test_what_a_stage_would_refuse_is_said_beforehand(recipe_folder, command_line, change, message):
    rows = [{"text": "x", "label": "even0", "language": code} for code in ("de", "fr")]
    (recipe_folder / "two.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    path = recipe_folder / f"check-{abs(hash(message + change[0]))}.toml"
    path.write_text(RECIPE.replace(*change))
    code, _, said = command_line("run", path, "--check")
    assert (code, said.count("\n")) == (2, 1) and message in said


def test_checking_tells_what_was_left_out(recipe_folder):
    (recipe_folder / "gaps.jsonl").write_text('{"text": "a", "label": null}\n{"text": "b", "label": "even0"}\n')
    (recipe_folder / "gaps.toml").write_text(RECIPE.replace("test.sw.jsonl", "gaps.jsonl"))
    lines = check_inputs(load_recipe(recipe_folder / "gaps.toml")).lines()
    assert any("gaps.jsonl: 1 without a label left out (line 1" in line for line in lines)


def test_too_little_disk_is_said_before_anything_is_written(recipe_folder, tmp_path, command_line, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    code, _, said = command_line("run", recipe_folder / "recipe.toml", "--output", tmp_path / "run")
    assert code == 2
    assert "GiB free and the run needs about" in said
    assert not (tmp_path / "run").exists()


def test_another_run_s_folder_is_left_alone(recipe_folder, finished, command_line):
    output, _ = finished
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file() and p.name != ".lock"}
    (recipe_folder / "other.toml").write_text(RECIPE.replace('name = "tiny"', "seed = 3"))
    code, _, said = command_line("run", recipe_folder / "other.toml", "--output", output)
    assert code == 2
    assert "holds another run" in said
    assert before == {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.is_file() and p.name != ".lock"}
