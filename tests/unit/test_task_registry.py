"""How tasks are found: those of the package by their modules, one's own once they are registered."""

from importlib import import_module
from pkgutil import iter_modules

import pytest
import tiny

from bistil import tasks
from bistil.errors import InputError, RecipeError
from bistil.prediction import load
from bistil.settings import kinds
from bistil.settings.recipe import TaskSettings, load_recipe, parse, task_preset
from bistil.tasks import KINDS, Task, get_task, register_task
from bistil.tasks.sequence_classification import SequenceClassification
from bistil.tasks.token_classification import TokenClassification

RECIPE = """
teacher = "x"
source = "en"
target = "sw"
text = { en = "en.txt", sw = "sw.txt" }
[task]
kind = "topics"
preset = "short"
train = "train.jsonl"
"""


@pytest.fixture
def topics(monkeypatch):
    """A task that is no module of the package."""
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    monkeypatch.setattr(kinds, "_ELSEWHERE", set(kinds._ELSEWHERE))

    @register_task
    class Topics(SequenceClassification):
        kind = "topics"

    return Topics


def test_a_module_of_two_words_is_a_task_and_no_other_is():
    for module in iter_modules(tasks.__path__):
        names = vars(import_module(f"bistil.tasks.{module.name}")).values()
        found = {one.kind for one in names if isinstance(one, type) and issubclass(one, Task) and hasattr(one, "kind")}
        kind = module.name.replace("_", "-")
        assert found == ({kind} if "_" in module.name else set()), module.name
        assert (kind in KINDS) == bool(found)
    assert {"sequence-classification", "question-answering"} < set(KINDS)
    assert [get_task(kind).kind for kind in KINDS] == list(KINDS)


def test_one_s_own_task_is_known_wherever_kinds_are(topics, tmp_path):
    assert isinstance(get_task("topics"), topics) and "topics" in kinds.task_kinds()
    (tmp_path / "r.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.toml")
    assert recipe.task.kind == "topics" and "topics" not in KINDS
    # Presets do not name it: it is learnt as texts are classified.
    assert recipe.finetune == task_preset("short", "sequence-classification").finetune


def test_one_s_own_task_is_asked_like_the_one_that_it_is_made_of(topics, tmp_path):
    tiny.save(tiny.model("bert", layers=2), tmp_path / "encoder")
    tiny.save(get_task(topics.kind).build_model(tmp_path / "encoder", ["x", "y"], seed=1), tmp_path / "model")
    own, plain = (load(tmp_path / "model", task=task) for task in ("topics", None))
    assert own.task.kind == "topics" and own("a cat") == plain("a cat")

    register_task(type("Other", (Task,), {"kind": "other", **dict.fromkeys(Task.__abstractmethods__)}))
    with pytest.raises(InputError, match="models for other cannot be asked yet"):
        load(tmp_path / "model", task="other")


def test_without_it_the_kind_is_unknown(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"task.kind is 'topics'; it must be one of 'dependency-parsing'"):
        load_recipe(tmp_path / "r.toml")
    with pytest.raises(RecipeError, match=r"no task 'topics'; kinds: .*bistil.tasks.register_task"):
        get_task("topics")


@pytest.mark.usefixtures("topics")
def test_a_registered_task_may_take_the_place_of_another():
    @register_task
    class Own(TokenClassification):
        pass

    assert type(get_task("token-classification", scheme="bilou")) is Own


def test_what_a_task_has_no_use_for_is_refused(topics):
    with pytest.raises(RecipeError, match="scheme is 'bilou', but topics has no use for it"):
        get_task("topics", scheme="bilou")
    with pytest.raises(RecipeError, match="parser_projection is 8, but token-classification has no use"):
        get_task("token-classification", parser_projection=8)
    # Settings know what the package's tasks take; of others their class says it.
    values = {"train": ["a"], "scheme": "bilou"}
    with pytest.raises(RecipeError, match="scheme is of token-classification"):
        parse(TaskSettings, {"kind": "sequence-classification", **values}, "recipe: task")
    assert parse(TaskSettings, {"kind": topics.kind, **values}, "recipe: task").scheme == "bilou"
