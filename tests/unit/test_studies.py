"""Studies: their files, points, stages and jobs; nothing is trained here but in the sparse studies."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import tiny_study

from bistil.errors import RecipeError
from bistil.runs.cost import Kind
from bistil.runs.data import TargetText
from bistil.runs.stages import Exchange, FineTune, Headed, Restore
from bistil.settings.recipe import load_recipe
from bistil.settings.schema import Phase1Settings, StudentSettings, TrainingSettings
from bistil.settings.study import PRESETS, SYSTEMS, Variant, load_study
from bistil.study import Only, Point, Study, jobs, study_at

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STUDIES = sorted(file for file in (BENCHMARKS / "transfer").glob("*.toml") if file.stem != "variants")
# All that score test sets.
MEASURED = [*STUDIES, *(BENCHMARKS / "studies").glob("*.toml")]
MEASURED += [file for file in (BENCHMARKS / "gaps").glob("*.toml") if not file.stem.endswith("-choice")]
COMMITTED = [BENCHMARKS / "studies" / f"{name}.toml" for name in ("ner", "dp")]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
@pytest.mark.usefixtures("benchmarks")
def test_a_study_has_the_rows_of_all_studies_and_its_own(file: Path) -> None:
    import transfer_figure

    settings = load_study(file)
    variants = settings.variants
    assert settings.name == file.stem
    assert set(transfer_figure.SHOWN) <= set(variants)
    assert {group for variant in variants.values() for group in variant.groups} <= set(settings.groups)
    steps = [variants[name].phase1_settings(settings.phase1).training.steps for name in
             ("teacher-forced", "phase 1 four times, teacher-forced")]  # fmt: skip
    assert steps[1] == 4 * steps[0]
    # Rows with and without target text differ in nothing else.
    for name, variant in variants.items():
        if variant.target_text and (twin := variants.get(name.removesuffix(", target text"))):
            assert (twin.phase1_length, twin.epochs, twin.seeds) == (
                variant.phase1_length,
                variant.epochs,
                variant.seeds,
            )


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_the_committed_studies_have_every_system(file):
    settings = load_study(file)
    # model2vec's embeddings are of whole texts.
    assert {variant.kind for variant in settings.variants.values()} == set(SYSTEMS) - {"model2vec"}
    assert len(settings.search.learning_rates) == 3


def test_the_shared_student_is_compared_at_equal_tokens():
    settings = load_study(BENCHMARKS / "studies/shared.toml")
    steps, targets = settings.phase1.training.steps, [*settings.targets]
    assert len(targets) == 4 and settings.seeds == [0, 1, 2]

    def tokens(name):
        """Steps of phase 1 of all models of a system, of each model, and of these in each target's text."""
        variant = settings.variants[name]
        groups = settings.groups_of(variant)
        each = variant.phase1_length * steps
        return len(groups) * each, each, each / (1 + len(settings.groups[groups[0]]))

    for ending in ("", ", target text"):
        bilingual = tokens(f"bilingual{ending}")
        assert tokens(f"shared, as one{ending}")[1] == bilingual[1]
        assert tokens(f"shared, per language{ending}")[2] == bilingual[2]
        assert tokens(f"shared, in all{ending}")[0] == bilingual[0]
        whole = settings.variants[f"shared, in all{ending}"]
        assert whole.epochs == 4 * settings.phase2.training.epochs
    four = settings.variants["shared, in all, target text"].target_sentences
    assert four == 4 * settings.target_sentences


def test_the_sweep_over_sib_has_its_systems_and_says_what_the_teacher_may_have_seen():
    settings = load_study(BENCHMARKS / "studies/sib200.toml")
    assert settings.parallel and "may have seen" in settings.note
    assert [variant.kind for variant in settings.variants.values()] == [
        "trim-only", "trim-only", "bistil", "bistil", "model2vec"
    ]  # fmt: skip
    assert settings.reductions == [2, 3] and len(settings.groups_of(settings.variants["BiStil-TF"])) == 21


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "gaps").glob("*-choice.toml")), ids=lambda file: file.stem)
def test_settings_are_not_chosen_on_test_sets(file):
    settings = load_study(file)
    tested = {files["test"] for path in MEASURED for files in load_study(path).targets.values()}
    scored = {files["test"] for files in settings.targets.values()}
    assert tested and not scored & tested
    if settings.task.kind != "question-answering":  # it has no other sets: other languages stand in for them
        assert all("test" not in Path(one).name for one in scored)


def test_the_file_of_the_docs_is_read(tmp_path):
    page = (BENCHMARKS.parent / "docs/studies.md").read_text()
    file = tmp_path / "study.toml"
    file.write_text(re.search(r"```toml\n(.*?)```", page, flags=re.S)[1])
    study = load_study(file)
    assert [variant.kind for variant in study.variants.values()] == ["lt-sft", "bistil", "distilmbert"]
    assert study.groups == {"all": ["swa", "kin"], "swa": ["swa"], "kin": ["kin"]}
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", page, flags=re.M)) >= set(SYSTEMS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    tiny_study.write_study(folder)
    return folder


@pytest.fixture(scope="module")
def study(folder):
    return study_at(folder / "study.toml", load_study(folder / "study.toml"))


def kinds_of(study, point):
    """Kinds of all stages that a point stands on."""
    from bistil.study.records import closure

    return {stage.KIND for stage in closure(study.scores(point))}


def first(study, system):
    return replace(next(point for point in study.points() if point.variant == system), learning_rate=1e-3)


# Points


def test_points_are_systems_times_groups_times_students_times_seeds(study):
    assert list(study.points()) == [
        Point("all", None, "LTSFT", 0), Point("all", None, "LTSFT", 1), Point("all", None, "trim only", 0),
        Point("sw", 0, "TF", 0), Point("ha", 0, "TF", 0), Point("all", 0, "ST", 0), Point("sw", 0, "SCRATCH", 0),
        Point("sw", 0, "monolingual", 0), Point("all", 0, "DistilmBERT-style", 0),
        Point("all", 1, "MiniLMv2-style", 0),
    ]  # fmt: skip


def test_a_teacher_is_scored_on_all_targets_or_on_those_of_its_groups(study):
    own = study.settings
    fewer = {"trim only": replace(own.variants["trim only"], groups=["ha"])}
    other = Study(replace(own, variants={**own.variants, **fewer}), study.data, study.teacher)
    before, after = first(study, "trim only"), first(other, "trim only")
    assert (before.group, after.group) == ("all", "ha")
    assert [stage.exam.parts for stage in other.scores(after)] == [("dev", "ha/test")]
    # It is the same model.
    assert other.models(after)["dev"] == study.models(before)["dev"]


def test_only_takes_what_all_of_its_words_name(study):
    def chosen(*words):
        return [(point.variant, point.group, point.seed) for point in study.points(Only.of(words, study.settings))]

    assert chosen("TF", "ha") == [("TF", "ha", 0)]
    assert chosen("LTSFT", "seed=1") == chosen("1") == [("LTSFT", "all", 1)]
    assert chosen("narrow") == [("MiniLMv2-style", "all", 0)]
    assert chosen("narrow", "TF") == []
    assert len(chosen("TF", "ST")) == 3 and len(chosen()) == 10
    for word, near in (("TFF", "TF"), ("seed=3", "seed=1"), ("MiniLM-style", "MiniLMv2-style")):
        with pytest.raises(RecipeError, match=f"called '{word}'; did you mean '{near}'"):
            chosen(word)


# Systems as stages


def test_each_system_stands_on_what_its_kind_is_made_of(study):
    made = {name: kinds_of(study, first(study, name)) for name in study.settings.variants}
    assert made["trim only"] == {"trim", "finetune", "evaluate"}
    assert made["LTSFT"] == {"trim", "masked-lm-head", "adapt", "finetune", "exchange", "restore", "evaluate"}
    assert made["TF"] == made["ST"] == made["monolingual"] == {"trim", "phase1", "finetune", "evaluate"}
    assert made["SCRATCH"] == made["DistilmBERT-style"] == made["TF"] | {"masked-lm-head"}
    assert made["MiniLMv2-style"] == made["TF"]
    texts = {name: [*phase.texts] for name in made if (phase := study.bilingual(first(study, name)))}
    assert texts["TF"] == ["en", "sw"] and texts["monolingual"] == ["sw"]
    assert texts["DistilmBERT-style"] == texts["MiniLMv2-style"] == ["en", "sw", "ha"]
    scratch = study.bilingual(first(study, "SCRATCH"))
    assert scratch.students[0].start == "scratch" and isinstance(scratch.teacher.stage, Headed)
    assert study.fine_tuned(first(study, "ST")).teacher is None
    assert study.fine_tuned(first(study, "TF")).teacher is not None


def test_target_text_is_selected_per_language_equally_much(study):
    point = first(study, "TF")
    variant = replace(study.variant(point), target_text=True, selection=True, target_sentences=6)
    text = study.fine_tuned(point).target_text
    both = TargetText(texts={language: study.method.texts[language] for language in ("sw", "ha")}, count=6)
    learnt = study.method.student(0, variant, languages=("en", "sw", "ha"), text=both, seed=0)
    stages = [product.stage for product in learnt.target_text.selected.values()]
    assert text is None and [stage.KIND for stage in stages] == ["select", "select"]
    assert [stage.count for stage in stages] == [3, 3]
    assert [[*stage.text.texts] for stage in stages] == [["sw"], ["ha"]]


def test_lt_sft_is_scored_with_each_targets_sft_and_the_whole_vocabulary(study):
    models = study.models(first(study, "LTSFT"))
    assert isinstance(models["dev"].stage, FineTune) and models["dev"].stage.settings.sparse is not None
    assert models["sw/dev"] == models["sw/test"] != models["ha/test"]
    restored = models["sw/test"].stage
    assert isinstance(restored, Restore) and isinstance(restored.model.stage, Exchange)
    assert restored.model.stage.language.stage.language == "sw"
    assert [stage.exam.parts for stage in study.scores(first(study, "LTSFT"))] == [
        ("dev",), ("sw/dev", "sw/test"), ("ha/test",)
    ]  # fmt: skip


def test_lt_sft_without_exchange_keeps_the_sources_sft_in_every_language(study):
    point = first(study, "LTSFT")
    kept = {"kept": replace(study.variant(point), exchange=False)}
    other = Study(replace(study.settings, variants={**study.settings.variants, **kept}), study.data, study.teacher)
    models = other.models(first(other, "kept"))
    # One model for all, of the same fine-tuning as with the exchange.
    assert models["sw/test"] == models["ha/test"] == models["dev"]
    assert isinstance(models["dev"].stage, Restore)
    assert models["dev"].stage.model == study.models(point)["dev"]


def test_students_share_a_phase_1_if_all_that_it_depends_on_is_alike(study):
    own = study.settings
    more = {
        "other": Variant(students=["lrf2", "narrow"], phase1_objective=PRESETS["minilmv2"].phase1_objective),
        "self-taught": Variant(students=["lrf2"], teacher=False),
        "masked": Variant(students=["lrf2"], phase1_objective=PRESETS["scratch"].phase1_objective),
    }
    wider = Study(replace(own, variants={**own.variants, **more}), study.data, study.teacher)
    phases = {name: wider.bilingual(first(wider, name)) for name in (*more, "ST", "TF", "DistilmBERT-style")}
    assert [one.name for one in phases["other"].students] == ["lrf2", "narrow"]
    assert phases["self-taught"].key == phases["ST"].key == study.bilingual(first(study, "ST")).key
    assert len({phases[name].key for name in ("masked", "ST", "TF", "DistilmBERT-style")}) == 4
    # A system that is added makes no other anew.
    assert study.scores(first(study, "TF"))[0].key == wider.scores(first(wider, "TF"))[0].key


def test_losses_of_a_variant_stand_instead_of_a_students_own_where_they_are_the_studys_too(study):
    own, losses = study.settings, PRESETS["minilmv2"].phase1_objective
    half = StudentSettings(name="half", reduction=3, objective=losses)
    variants = {"own": Variant(), "study's": Variant(phase1_objective=own.phase1.objective)}
    wider = Study(replace(own, students=[half], reductions=[2], variants=variants, reference=None), study.data,
                  study.teacher)  # fmt: skip
    for name, wanted in (("own", losses), ("study's", None)):
        point = next(one for one in wider.points() if one.variant == name and one.number == 1)
        student = wider.bilingual(point).students[int(wider.distilled(point).part)]
        assert (student.name, student.objective) == ("half", wanted), name


def test_the_search_is_of_a_students_first_seed_and_group_on_the_sources_dev_set_alone(study):
    point = next(one for one in study.points() if one.group == "ha" and one.variant == "TF")
    trials = study.trials(point)
    assert [*trials] == [1e-3, 5e-3]
    assert {tried.group for tried, _ in trials.values()} == {"sw"}
    assert {stage.exam.parts for _, stage in trials.values()} == {("dev",)}
    rates = [tried.learning_rate for tried, _ in trials.values()]
    assert [study.fine_tuned(tried).settings.training.learning_rate for tried, _ in trials.values()] == rates
    assert study.rates(first(study, "ST")) == [1e-3]


def test_a_rate_of_its_own_leaves_the_teacher_as_it_is(study):
    teacher = study.method.fine_tuned_teacher()
    assert study.fine_tuned(replace(first(study, "TF"), learning_rate=0.5)).teacher == teacher.product("model")


def test_a_variant_may_have_several_teachers_which_serve_all_points(study):
    own = study.settings
    more = {"TF of two": Variant(students=["lrf2"], teachers=2), "TF of three": Variant(students=["lrf2"], teachers=3)}
    wider = Study(replace(own, variants={**own.variants, **more}), study.data, study.teacher)
    two, three = (wider.fine_tuned(first(wider, name)) for name in more)
    teachers = [wider.method.fine_tuned_teacher(seed=seed).product("model") for seed in range(3)]
    assert (two.teacher, two.other_teachers) == (teachers[0], (teachers[1],))
    assert (three.teacher, three.other_teachers) == (teachers[0], tuple(teachers[1:]))
    assert (two.settings.teachers, three.settings.teachers) == (2, 3)
    # A system that is added makes no other anew, and its teachers stay when one of its students is scored.
    assert wider.fine_tuned(first(wider, "TF")) == study.fine_tuned(first(study, "TF"))
    assert study.fine_tuned(first(study, "TF")).other_teachers == ()
    assert {one.stage.key for one in teachers} <= wider.lasting
    assert not {one.stage.key for one in teachers} & wider.passing(first(wider, "TF of three")).keys()
    said = [wider.names[one.stage.key].label for one in teachers]
    assert said == ["task teacher", "task teacher 2 of 3", "task teacher 3 of 3"]
    # What the study says goes for every variant that says nothing else and is taught.
    whole = Study(replace(own, phase2=replace(own.phase2, teachers=2)), study.data, study.teacher)
    assert whole.fine_tuned(first(whole, "TF")).other_teachers == (teachers[1],)
    assert whole.fine_tuned(first(whole, "ST")) == study.fine_tuned(first(study, "ST"))
    # The teacher of another seed is what is fine-tuned for itself, too.
    assert wider.fine_tuned(Point("all", None, "trim only", 1)) == teachers[1].stage


# Files


def changed(old, new):
    assert old in tiny_study.STUDY
    return tiny_study.STUDY.replace(old, new, 1)


BAD = [
    ('kind = "distilmbert"', 'kind = "distillbert"', "no system is called 'distillbert'; did you mean 'distilmbert'"),
    ('kind = "distilmbert"\n', "", "systems.DistilmBERT-style: 'kind' is missing; it is one of bistil"),
    ("[systems.ST]", "[systems.ST]\ntaecher = true", "did you mean 'teacher'"),
    ('groups = ["all"]', 'groups = ["al"]', "systems.ST.groups: no group is called 'al'; did you mean 'all'"),
    ('students = ["narrow"]', 'students = ["lrf2"]', "minilmv2's students are narrower"),
    ('students = ["narrow"]', 'students = ["narow"]', "no student is called 'narow'; did you mean 'narrow'"),
    ("[systems.LTSFT]", "[variants.TF]\n[systems.LTSFT]", "a system and a variant are both called 'TF'"),
    ('name = "narrow"', 'name = "lrf2"', "two students are called 'lrf2'"),
    ('name = "narrow"', 'name = "ST"', "a system or variant and a student are both called 'ST'"),
    ('ha = { test = "sw.conll" }', 'ha = { dev = "sw.conll" }', "targets.ha has no test set"),
    ('ha = { test = "sw.conll" }', 'en = { test = "sw.conll" }', "targets has the source, 'en'"),
    ('reference = "LTSFT"', 'reference = "LTSF"', "reference: no system or variant is called 'LTSF'"),
    ('dev = ["en.conll"]', "dev = []", "task.dev names no files"),
    ("[1e-3, 5e-3]", "[1e-3, 0]", "learning_rates has 0.0; a learning rate is between"),
    ("[targets]", '[text]\nswa = ["x"]\n[targets]', "text: no language is called 'swa'; did you mean 'sw'"),
    ("[targets]", '[groups]\nall = ["sw", "xx"]\n[targets]', "groups.all: no target is called 'xx'"),
    ("[targets]", '[groups]\neach = ["sw"]\n[targets]', "groups has 'each'"),
    ("[systems.ST]", '[systems.ST]\nreference = "LTSF"', "systems.ST.reference: no system or variant is called 'LTSF'"),
    ("[systems.ST]", "[systems.ST]\nteachers = 2", "systems.ST.teachers is 2, but it learns from labels only"),
    ('kind = "trim-only"', 'kind = "trim-only"\nteachers = 2', "systems.trim only.teachers is 2, but it learns from"),
    ("[systems.TF]", "[systems.TF]\nteachers = 9", "systems.TF.teachers is 9; it must be at least 1 and at most 8"),
    (
        "[systems.TF]",
        "[systems.TF]\nteachers = 2\ntask_objective = { hidden = 1 }",
        "systems.TF: teachers is 2, but objective.prediction is 0",
    ),
    ("target_text = 1.0", "target_text = 1.0\nteachers = 0", "phase2.teachers is 0; it must be at least 1"),
    ("[systems.ST]", '[systems.static]\nkind = "model2vec"\n[systems.ST]', "systems.static: static embeddings are of"),
    (
        "[systems.TF]",
        "[systems.TF]\ngroups = ['all']\ntarget_text = true\ntarget_sentences = 1",
        "systems.TF: target_sentences is 1, shared by up to 2 languages",
    ),
    ("[systems.ST]", "[systems.ST]\nexchange = false", "systems.ST.exchange is false, but no language SFT is worn"),
    ("[systems.ST]", "[systems.ST]\nselection = true", "systems.ST.selection selects target text: add"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_bad_files_are_one_line(old, new, message, tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(changed(old, new))
    with pytest.raises(RecipeError) as error:
        load_study(file)
    assert message in str(error.value) and "\n" not in str(error.value) and str(file) in str(error.value)


def test_a_recipe_and_a_study_are_told_apart(tmp_path):
    recipe, study = tmp_path / "recipe.toml", tmp_path / "study.toml"
    recipe.write_text('teacher = "e5-small"\nsource = "en"\ntarget = "sw"\n')
    study.write_text(changed("[targets]", "[targets]"))
    with pytest.raises(RecipeError, match=r"recipe.toml is a recipe, not a study: `bistil run` takes it"):
        load_study(recipe)
    with pytest.raises(RecipeError, match=r"study.toml is a study, not a recipe: `bistil study` takes it"):
        load_recipe(study)


def test_presets_say_how_each_system_is_made_and_files_change_that(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(changed('kind = "distilmbert"', 'kind = "distilmbert"\nteacher = true\nphase1_length = 2'))
    own = load_study(file).variants["DistilmBERT-style"]
    assert own == replace(PRESETS["distilmbert"], kind="distilmbert", students=["lrf2"], teacher=True, phase1_length=2)


def test_a_variant_s_phase_1_has_its_own_rate_and_nothing_else_of_its_own():
    phase1 = Phase1Settings(training=TrainingSettings(steps=10, learning_rate=5e-4))
    own = replace(PRESETS["distilmbert"], phase1_learning_rate=1e-4).phase1_settings(phase1)
    assert own.training == replace(phase1.training, learning_rate=1e-4)
    assert own.objective == PRESETS["distilmbert"].phase1_objective
    assert PRESETS["bistil"].phase1_settings(phase1) == phase1


def test_what_is_missing_is_said_before_any_work(folder, tmp_path, command_line):
    code, _, said = command_line("study", folder / "study.toml", "--data", tmp_path, "--dry-run")
    assert code == 2 and said.count("\n") == 1
    (tmp_path / "teacher").symlink_to(folder / "teacher")
    code, _, said = command_line("study", folder / "study.toml", "--data", tmp_path, "--dry-run")
    assert code == 2 and said.count("\n") == 1 and "'en' has no text" in said and "text.en" in said
    code, _, said = command_line("study", folder / "study.toml")
    assert code == 2 and "--output is missing" in said
    code, _, said = command_line("study", folder / "study.toml", "--only", "TF", "--only", "narrow", "--dry-run")
    assert code == 2 and "no point of the study is all of this" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ray", "somewhere"), "--ray somewhere: give HOST:PORT of the cluster's head, or auto"),
        (("--ray", "ray://host:10001"), "give HOST:PORT"),
        (("--ray", "host:1", "--cpus", "0"), "--cpus 0: a stage takes more than none"),
        (("--ray", "host:1", "--gpus", "1.5"), "--gpus 1.5: a share of one GPU, or whole ones"),
        (("--ray", "host:1", "--jobs", "2"), "leave one out"),
        (("--cpus", "0.5"), "add --ray ADDRESS"),
    ],
)
def test_what_is_asked_of_a_cluster_is_checked_first(folder, tmp_path, command_line, words, message):
    code, _, said = command_line("study", folder / "study.toml", "--output", tmp_path / "out", *words)
    assert code == 2 and said.count("\n") == 1 and message in said


def test_without_ray_the_line_says_what_installs_it(folder, tmp_path, command_line, monkeypatch):
    monkeypatch.setattr("bistil.study.cluster.find_spec", lambda _: None)
    code, _, said = command_line("study", folder / "study.toml", "--output", tmp_path / "out", "--ray", "auto")
    assert code == 2 and said == "bistil: error: --ray needs Ray: pip install 'bistil[ray]'\n"


# Jobs


def test_jobs_are_disjoint_and_say_their_points_again(study):
    points = list(study.points())
    todo = jobs.jobs_of(study, points)
    taken = [[*study.points(Only.of(job.only, study.settings))] for job in todo]
    assert sorted(repr(point) for own in taken for point in own) == sorted(map(repr, points))
    some = [point for point in points if point.variant == "LTSFT" and point.seed == 1]
    assert [job.only for job in jobs.jobs_of(study, some)] == [("LTSFT", "all", "seed=1")]


def test_printed_jobs_are_commands_and_a_script_that_bash_reads(study, tmp_path):
    todo = jobs.jobs_of(study, study.points())
    words = [job.words(Path("my study.toml"), Path("out"), Path("data")) for job in todo]
    lines = jobs.shell_lines(words)
    assert [shlex.split(line)[1:] for line in lines] == words
    assert all("my study.toml" in own and "--no-report" in own for own in words)
    script = tmp_path / "jobs.sh"
    script.write_text(jobs.slurm_script(words, name="tiny", memory=1.2 * 2**30))
    assert f"--array=0-{len(lines) - 1}" in script.read_text() and "--mem=2G" in script.read_text()
    echo = script.read_text().replace("eval ", "echo ")
    said = subprocess.run(
        ["bash", "-c", echo], env={"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == lines[1]


@pytest.mark.usefixtures("benchmarks")
def test_a_pair_costs_what_another_target_adds_and_all_else_once(folder):
    import scale

    file = folder / "study.toml"
    settings = load_study(file)
    chosen = {name: settings.variants[name] for name in ("trim only", "TF")}
    settings = replace(settings, variants=chosen, reference=None)
    kinds = get_args(Kind)
    machines = {name: scale.Recorded(dict.fromkeys(kinds, rate)) for name, rate in (("slow", 1e6), ("fast", 1e18))}
    alone = replace(settings, targets={"sw": settings.targets["sw"]}, groups={})
    one, both = (scale.planned(study_at(file, own, folder), machines) for own in (alone, settings))
    shared, pair = scale.shared_and_pair(one["slow"], both["slow"], 2)
    for count, whole in ((1, one["slow"]), (2, both["slow"])):
        assert shared.plus(count, pair).flops == pytest.approx(whole.flops)
        assert shared.plus(count, pair).seconds == pytest.approx(whole.seconds)
    assert 0 < pair.flops < one["slow"].flops and shared.flops > 0
    # FLOPs do not depend on the machine, and seconds do by the rate.
    assert one["fast"].flops == one["slow"].flops
    # What else there is, a fraction of a second, is measured, and so not twice the same.
    assert one["slow"].seconds - one["fast"].seconds == pytest.approx(one["slow"].flops / 1e6, abs=2)
    assert one["slow"].flops / 1e6 > 100


@pytest.mark.usefixtures("benchmarks")
def test_the_sparse_studies_run_on_two_languages(folder, tmp_path, monkeypatch, capsys):
    import sparse_transfer

    data = folder
    for language in ("eng", "swa", "hau"):
        source = "en" if language == "eng" else "sw"
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / f"text/{language}.txt").write_text((data / f"text/{source}.txt").read_text())
        for part in ("train", "dev", "test"):
            place = tmp_path / f"ner/{language}/{part}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            sentences = (data / f"{source}.conll").read_text().split("\n\n")
            place.write_text("\n\n".join(sentences[:5] if part == "train" else sentences[5:]) + "\n")
    small = {
        "ADAPTED": ("swa",), "THIRD": ("hau",), "LANGUAGES": ("eng", "swa", "hau"), "HEADED_ON": ("eng", "swa"),
        "HEADED": replace(sparse_transfer.HEADED, steps=1, batch_size=2), "HEADED_SFT_STEPS": 1, "BLOCK_LENGTH": 16,
        "EXAMPLES": 8, "SHARES": (0.5, 1.0), "LANGUAGE_SFTS": {0.04: 1e-3, 0.3: 1e-3},
        "RATES": {"lt-sft": 1e-3, "lt-sft long": 1e-3, "all": 1e-3, "random": 1e-3},
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(sparse_transfer, name, value)
    monkeypatch.setattr(sparse_transfer, "e5_small_folder", lambda: data / "teacher")
    arguments = ["x", "--data", str(tmp_path), "--output", str(tmp_path / "out"), "--adapt-steps", "1", "--seed", "0"]
    tables = []
    for option in ([], ["--table"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *option])
        sparse_transfer.main()
        tables.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert tables[0] == tables[1]
    assert {row.split(":")[0] for row in tables[0]["scores"]} == {"sources", "worn", "headed", "methods"}
    beside = tables[0]["scores"]["methods: lt-sft"]
    assert {"eng/dev", "swa/test", "swa/test at 1, language SFT", "swa/test, chosen, language SFT"} <= beside.keys()
    assert "swa-headed" in tables[0]["language"] and len(tables[0]["language"]) == 4
