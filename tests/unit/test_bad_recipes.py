"""What a run would refuse for its settings is refused when its recipe is read: one line that names the key."""

from dataclasses import fields

import pytest

from bistil.errors import RecipeError
from bistil.settings.recipe import (
    AdaptSettings,
    LanguageSettings,
    ObjectiveSettings,
    Phase1Settings,
    Phase2Settings,
    Recipe,
    SparseSettings,
    StudentSettings,
    TaskSettings,
    TrainingSettings,
    TrimSettings,
    load_recipe,
)

WHOLE = """
teacher = "e5-small"
source = "en"
target = "it"
[text]
en = "english.txt"
it = "italian.txt"
de = "german.txt"
[[students]]
name = "a"
reduction = 2
[[students]]
name = "b"
depth = 3
[task]
kind = "token-classification"
train = "train.txt"
dev = "dev.txt"
test = { it = "test.txt" }
"""


def refusal(tmp_path, *assignments):
    path = tmp_path / "r.toml"
    path.write_text(WHOLE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, assignments=assignments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TRAININGS = ("phase1.training", "finetune.training", "phase2.training", "language.training")
WRONG_VALUES = [
    *(
        (f"{training}.{key}={value}", f"{training}.{key} is ")
        for training, key, value in zip(
            TRAININGS * 5,
            (
                "batch_size", "batch_size", "accumulation", "checkpoint_steps", "evaluate_steps", "log_steps",
                "patience", "learning_rate", "learning_rate", "learning_rate", "learning_rate", "warmup_steps",
                "warmup_steps",
                "weight_decay", "weight_decay", "max_grad_norm", "max_grad_norm", "workers", "precision", "compile",
            ),
            (
                "0", "-3", "0", "0", "0", "0", "0", "0", "nan", "inf", "-1e-4", "-1", "nan", "-0.1", "inf", "-1", "nan",
                "-1", "fp8", "maybe",
            ),
            strict=True,
        )
    ),
    ("phase1.training.steps=0", "phase1.training.steps is 0"),
    ("phase1.training.epochs=0", "phase1.training.epochs is 0"),
    ("phase1.training.epochs=nan", "phase1.training.epochs is nan"),
    ("phase1.training.epochs=-2", "phase1.training.epochs is -2"),
    ("phase1.block_length=3", "phase1.block_length is 3"),
    ("phase1.objective.terms={ cosine = 1 }", "phase1.objective.terms has 'cosine', which is a key of its own"),
    ("phase1.objective.terms={ patient = -1 }", "phase1.objective.terms.patient is -1"),
    ("phase1.objective.pairs=[[1, 2, 3]]", "phase1.objective.pairs has [1, 2, 3]"),
    ("phase1.held_out=1", "phase1.held_out is 1.0; it must be at least 0 and below 1"),
    ("phase1.held_out=-0.1", "phase1.held_out is -0.1"),
    ("phase1.held_out=nan", "phase1.held_out is nan"),
    ("phase1.held_out_shares.it=1.5", "phase1.held_out_shares.it is 1.5"),
    ("phase1.held_out_blocks=0", "phase1.held_out_blocks is 0"),
    ("phase1.probabilities={en=1, it=-1, de=1}", "phase1.probabilities.it is -1"),
    ("phase1.probabilities={en=1, it=nan, de=1}", "phase1.probabilities.it is nan"),
    *(
        (f"{table}.{key}={value}", f"{table}.{key} is ")
        for table in ("phase1.objective", "phase2.objective", "students.0.objective")
        for key, value in (
            ("attention", "-1"), ("hidden", "nan"), ("prediction", "inf"), ("temperature", "0"), ("temperature", "nan"),
            ("hard_labels", "-0.5"), ("relations", "-1"), ("relation_heads", "0"), ("cosine", "-inf"),
        )
        if not table.startswith("students")
    ),
    (f"trim.threshold={'9' * 400}", "trim.threshold is inf"),
    (f"students.0.name={'x' * 101}", "students[0].name has 101 bytes"),
    ("students.0.objective.temperature=-2", "students[0].objective.temperature is -2"),
    ("students.0.reduction=0", "students[0].reduction is 0"),
    ("students.1.depth=0", "students[1].depth is 0"),
    ("students.1.layers=[]", "students[1].layers is []"),
    ("students.1.layers=[2, 2]", "students[1].layers is [2, 2]"),
    ("students.1.layers=[0, 2]", "students[1].layers is [0, 2]"),
    ("students.1.layers=[3, 1]", "students[1].layers is [3, 1]"),
    ("students.1.spread=middle", "students[1].spread is 'middle'"),
    ("trim.threshold=2", "trim.threshold is 2.0"),
    ("trim.threshold=-1", "trim.threshold is -1"),
    ("trim.threshold=nan", "trim.threshold is nan"),
    ("trim.vocabulary_size=0", "trim.vocabulary_size is 0"),
    *(
        (f"{stage}.sparse.{key}={value}", f"{stage}.sparse.{key} is ")
        for stage in ("finetune", "phase2")
        for key, value in (
            ("density", "0"), ("density", "2"), ("density", "nan"), ("count", "0"), ("dense_epochs", "0"),
            ("sparse_epochs", "-1"), ("dense_steps", "0"), ("sparse_steps", "0"), ("sparse_epochs", "inf"),
        )
    ),
    ("phase2.target_text=-1", "phase2.target_text is -1"),
    ("phase2.target_text=inf", "phase2.target_text is inf"),
    ("phase2.target_sentences=0", "phase2.target_sentences is 0"),
    ("task.max_length=3", "task.max_length is 3"),
    ("task.kind=tagging", "task.kind is 'tagging'"),
    ("task.scheme=iob", "task.scheme is 'iob'"),
    ("language.density=0", "language.density is 0"),
    ("language.steps=0", "language.steps is 0"),
    ("language.block_length=1", "language.block_length is 1"),
    ("language.held_out=1", "language.held_out is 1"),
    ("seed=-1", "seed is -1"),
    ("seed=1.5", "seed is 1.5; expected int"),
    ("seed=99999999999", "seed is 99999999999"),
]  # fmt: skip
WRONG_COMBINATIONS = [
    (["source=it"], "source and target are both 'it'"),
    (["target=sw"], "text has no files for sw"),
    (["source=sw"], "text has no files for sw"),
    (["text.fr=[]"], "text has no files for fr"),
    (["phase1.training.accumulation=3"], "phase1.training.batch_size 16 cannot be cut into 3 equal parts"),
    (["phase1.training.warmup_steps=1.5"], "phase1.training.warmup_steps is 1.5; give a whole number"),
    (["phase1.training.steps=false"], "phase1.training.steps and training.epochs are both none"),
    (["phase1.training={steps=1, epochs=1}"], "give only one of 'steps' and 'epochs'"),
    (["phase1.training={epochs=1, least_steps=9, most_steps=8}"], "least_steps is 9, above most_steps"),
    (["phase1.training={steps=1, least_steps=9}"], "least_steps is 9 beside steps"),
    (["phase2.training.patience=2"], "phase2.training.patience is 2, but nothing is evaluated before the end"),
    (["task.dev=[]", "finetune.training={patience=2, evaluate_steps=1}"], "finetune.training.patience is given, but"),
    (["phase1.objective={attention=0, hidden=0}"], "phase1.objective.every weight of the objective is 0"),
    (["phase2.objective={attention=0, hidden=0, prediction=0}"], "phase2.objective.every weight of the objective is 0"),
    (["students.0.objective={attention=0, hidden=0}"], "students[0].objective.every weight of the objective is 0"),
    (["students.0.objective={hard_labels=1}"], "hard_labels masks the text for all of a run, but only a asks"),
    (["students.0={name='a'}", "students.0.reduction=false"], "reduction: give one of reduction, layers, depth"),
    (["students.0.spread=first"], "spread is 'first', which is a depth's"),
    (["phase1.probabilities={en=1}"], "phase1.probabilities has no number for 'de'"),
    (["phase1.probabilities={en=0, it=0, de=0}"], "phase1.probabilities are all 0"),
    (["phase1.probabilities={en=1, it=1, de=1, sw=1}"], "phase1.probabilities has 'sw', which has no text"),
    (["phase1.held_out_shares.sw=0.1"], "phase1.held_out_shares has 'sw', which has no text"),
    (["language_sfts.sw=sfts/sw"], "language_sfts has 'sw', which has no text"),
    (["force_sfts=true"], "force_sfts is on, but language_sfts names none"),
    (["language.languages=[\"sw\"]"], "language.languages has 'sw', which has no text"),
    (["language.languages=[\"it\", \"it\"]"], "name each language once"),
    (["language.languages=it", "language_sfts.it=sfts/it"], "language.languages has 'it', which language_sfts gives"),
    (["language={}", "language_sfts={en='a', it='b', de='c'}"], "language is given, but language_sfts gives every"),
    (["language.training.steps=5"], "language.training.steps is 5, which has no effect here"),
    (["trim={threshold=0.1, vocabulary_size=9}"], "give only one of 'threshold' and 'vocabulary_size'"),
    (["trim.threshold=false"], "trim.threshold and vocabulary_size are both none"),
    (["finetune.sparse.density=false"], "finetune.sparse.density and count are both none"),
    (["finetune.sparse.dense_epochs=false"], "finetune.sparse.dense_epochs and dense_steps are both none"),
    (["finetune.training.steps=5"], "finetune.training.steps is 5, but the fine-tuning is sparse"),
    (["finetune.sparse=false", "finetune.training.epochs=false"], "finetune.training.steps and training.epochs are"),
    (["phase2.target_text=0", "phase2.target_sentences=3"], "phase2.target_sentences is 3, but target_text is 0"),
    (["phase2.teacher_forced=false", "phase2.target_text=1"], "phase2.target_text is given, but teacher_forced"),
    (["phase2.teacher_forced=false", "compare.self_taught=true"], "compare.self_taught is on"),
    (["phase2.target_text=0", "compare.no_target_text=true"], "compare.no_target_text is on"),
    (["task.test={}", "compare.majority=true"], "task.test"),
    (["task=false", "compare.copied=true"], "compare is given, but there is no task"),
    (["task=false", "phase2.target_text=1"], "phase2 is given, but there is no task"),
    (["task.test.sw=x.txt"], "task.test has 'sw', which has no text"),
    (["task.test.it=[]"], "task.test.it is empty"),
    (["task.train=[]"], "task.train or sources must name labelled files, and none is given"),
    (["task.sources={en='a'}"], "task.train or sources must name labelled files, and both are given"),
    (["task.train=[]", "task.sources={it='a'}"], "task.sources has no files for the source, 'en'"),
    (["task.train=[]", "task.sources={en=[]}"], "task.sources.en is empty"),
    (["task.parser_projection=8"], "task.parser_projection is of dependency-parsing"),
    (["task.kind=question-answering", "task.label_map={a='b'}"], "task.label_map renames labels"),
    (["task.kind=sequence-classification", "task.scheme=iob2"], "task.scheme is of token-classification"),
    (["task.separator=''"], "task.separator is empty"),
]  # fmt: skip
WRONG_NAMES = [
    *((f"students.0.name='{name}'", "students[0].name is ") for name in (
        "", " ", "a/b", "../a", "a.b", "a\\b", "_a", ".a", "a ", "teacher", "Teacher", "teacher, trimmed",
        "majority class", "task-teacher", "b-copied", "b-self-taught", "B-no-target-text", "b, copied", "tensorboard",
        "record", "task-teacher-2", "task-teacher-8",
    )),
    ("students.0.name=b", "each with a name of its own"),
    ("students.0.name=B", "each with a name of its own"),
    ("students=[]", "students need at least one"),
    ("teacher=''", "teacher is empty"),
    ("source='e/n'", "text has the language 'e/n'"),
    ("text.''=x", "text has the language ''"),
    ("text.'a b'=x", "text has the language 'a b'"),
    ("task.preset=papr", "task.preset is 'papr'; it must be one of 'paper', 'short'"),
    ("phase1.trainin.steps=3", "did you mean 'training'?"),
    ("phase1.training.step=3", "did you mean 'steps'?"),
    ("languages=it", "did you mean 'language'?"),
    ("students.2.name=c", "reduction: give one of reduction, layers, depth; given: none"),
    ("students.3.name=c", "--set students.3: there are 2 of them"),
    ("phase1", "write KEY=VALUE"),
    ("a b=3", "write KEY=VALUE"),
    ("phase1.training.steps=many", "phase1.training.steps is 'many'; expected int"),
    ("phase1=3", "phase1 must be a table"),
]  # fmt: skip


@pytest.mark.parametrize(("assignment", "said"), WRONG_VALUES)
def test_a_wrong_value(tmp_path, assignment, said):
    assert f"r.toml.{said}" in refusal(tmp_path, assignment)


@pytest.mark.parametrize(("assignments", "said"), WRONG_COMBINATIONS)
def test_a_wrong_combination(tmp_path, assignments, said):
    assert said in refusal(tmp_path, *assignments)


@pytest.mark.parametrize(("assignment", "said"), WRONG_NAMES)
def test_a_wrong_name(tmp_path, assignment, said):
    assert said in refusal(tmp_path, assignment)


def test_the_recipe_itself_is_right_and_takes_changes(tmp_path):
    (tmp_path / "r.toml").write_text(WHOLE)
    plain = load_recipe(tmp_path / "r.toml")
    changes = [
        "phase1.objective.cosine=1", "students.0.reduction=3", "students.1.layers=[1, 2]", "phase1.training.epochs=2",
        "text.it=[\"x.txt\", \"y.txt\"]", "task.label_map.B-DATE=O", "task.language=no", "finetune.sparse=false",
        "language.languages=it", "students.2={name='c', depth=1}",
    ]  # fmt: skip
    changed = load_recipe(tmp_path / "r.toml", assignments=changes)
    assert changed.phase1.objective.cosine == 1.0 and plain.phase1.objective.cosine == 0
    assert changed.students[0] == StudentSettings(name="a", reduction=3)
    assert changed.students[1] == StudentSettings(name="b", layers=[1, 2])
    assert changed.students[2] == StudentSettings(name="c", depth=1)
    assert (changed.phase1.training.steps, changed.phase1.training.epochs) == (None, 2.0)
    assert changed.text["it"] == [str(tmp_path / "x.txt"), str(tmp_path / "y.txt")]
    assert (changed.task.label_map, changed.task.language, changed.finetune.sparse) == ({"B-DATE": "O"}, "no", None)
    assert changed.language == LanguageSettings(languages=["it"])


def test_sources_and_languages(tmp_path):
    sources = ["task.train=[]", "task.sources={en='a.txt', de=['b.txt', 'dataset:x/y:train']}", "language={}"]
    (tmp_path / "r.toml").write_text(WHOLE)
    recipe = load_recipe(tmp_path / "r.toml", assignments=sources)
    wanted = {"en": [str(tmp_path / "a.txt")], "de": [str(tmp_path / "b.txt"), "dataset:x/y:train"]}
    assert (recipe.task.train, recipe.task.sources) == ([], wanted)
    # A table of nothing is one of defaults, those of `bistil adapt`.
    shared = {one.name: getattr(recipe.language, one.name) for one in fields(AdaptSettings)}
    assert AdaptSettings(**shared) == AdaptSettings() and recipe.language.languages == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainingSettings(batch_size=0),
        lambda: TrainingSettings(steps=1, epochs=1.0),
        lambda: ObjectiveSettings(attention=0, hidden=0),
        lambda: SparseSettings(density=2.0),
        lambda: StudentSettings(name="a"),
        lambda: StudentSettings(name="a", reduction=2, depth=3),
        lambda: StudentSettings(name="a", reduction=2, spread="first"),
        lambda: TrimSettings(threshold=None),
        lambda: Phase1Settings(training=TrainingSettings()),
        lambda: Phase2Settings(target_text=0, target_sentences=5),
        lambda: TaskSettings(kind="token-classification"),
        lambda: AdaptSettings(density=0),
        lambda: Recipe(teacher="x", source="en", target="en", text={"en": ["a"]}),
    ],
)
def test_settings_made_in_python_are_checked_too(make):
    with pytest.raises(RecipeError):
        make()
