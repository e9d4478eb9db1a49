"""A loss is one class: what is built in, a term of one's own, pairs of layers of one's own, code that is named."""

import sys

import pytest
import tiny
import torch
from fitting import RANDOM
from test_bad_recipes import WHOLE

from bistil.distillation.module import Distiller
from bistil.distillation.objectives import hidden_loss
from bistil.distillation.student import make_student
from bistil.distillation.terms import BUILT_IN, Needs, Term, find_term, terms_of
from bistil.errors import RecipeError
from bistil.settings.recipe import ObjectiveSettings, load_recipe
from bistil.settings.trust import code_named

OWN = """
import torch
from bistil.distillation.terms import Needs, Term

class Norms(Term):
    \"\"\"Equal lengths of the states of the last aligned layers.\"\"\"

    NAME = "norms"

    def needs(self, layers):
        return Needs(hidden=frozenset(layers[-1:]))

    def check(self, student, teacher):
        return "it wants one head" if student.heads == 1 else None

    def loss(self, compared):
        ours, theirs = compared.pairs[-1]
        lengths = [side.norm(dim=-1) for side in (compared.got.hidden[ours], compared.target.hidden[theirs])]
        return torch.nn.functional.mse_loss(*lengths)

class NoTerm:
    pass
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "house_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "house_losses:Norms"
    sys.modules.pop("house_losses", None)


def batch():
    ids = torch.arange(5, 45).view(2, 20)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def distiller(objective, layers=(2, 4)):
    teacher = tiny.model("bert", layers=4)
    student = make_student(teacher, list(layers), RANDOM, seed=1)
    return Distiller(teacher, {"s": student}, objectives={"s": objective}, layers={"s": list(layers)})


def states(model, ids):
    return model(**ids, output_hidden_states=True).hidden_states


def test_every_built_in_term_has_its_weight():
    assert {one.NAME for one in BUILT_IN} == set(ObjectiveSettings.WEIGHTS)
    objective = ObjectiveSettings(attention=0, hidden=0.5, cosine=2.0)
    assert [(type(term).NAME, weight) for term, weight in terms_of(objective)] == [("hidden", 0.5), ("cosine", 2.0)]


def test_a_term_of_one_s_own(own_module):
    objective = ObjectiveSettings(attention=0, hidden=0, terms={own_module: 3.0})
    module = distiller(objective)
    given = batch()
    with torch.no_grad():
        report = module(**given)
        teacher, student = (states(one, given)[-1].norm(dim=-1) for one in (module.teacher, module.students["s"]))
    expected = torch.nn.functional.mse_loss(student, teacher)
    assert report["s/norms"] == pytest.approx(float(expected), rel=1e-5)
    assert report["loss"] == pytest.approx(3 * float(expected), rel=1e-5)
    # Once its module is imported, its name will do.
    assert find_term("norms").__name__ == "Norms"
    beside = distiller(ObjectiveSettings(attention=1.0, hidden=1.0, terms={"norms": 0.5}))
    assert {"s/attention", "s/hidden", "s/norms"} <= beside(**given).keys()


def test_a_term_defined_beside_is_known_by_its_name_and_asks_for_what_it_needs():
    class Pooled(Term):
        NAME = "mean of the embeddings"

        def needs(self, layers):
            del layers
            return Needs(hidden=frozenset({0}))

        def loss(self, compared):
            return compared.got.hidden[0].mean().square()

    module = distiller(ObjectiveSettings(attention=0, hidden=0, terms={"mean of the embeddings": 1.0}))
    report = module(**batch())
    assert report["s/mean of the embeddings"] > 0
    report["loss"].backward()
    assert module.students["s"].get_input_embeddings().weight.grad is not None


def test_a_module_of_the_package_is_found_by_its_name():
    module = distiller(ObjectiveSettings(attention=0, hidden=0, terms={"patient": 1.0}))
    given = batch()
    with torch.no_grad():
        report = module(**given)
        ours, theirs = states(module.students["s"], given), states(module.teacher, given)
    # |a - b|^2 = 2 - 2 cos(a, b) of vectors of length 1.
    cosines = [torch.cosine_similarity(ours[a][:, 0], theirs[b][:, 0]).mean() for a, b in ((1, 2), (2, 4))]
    assert report["s/patient"] == pytest.approx(2 - 2 * float(torch.stack(cosines).mean()), abs=1e-5)


def test_pairs_of_layers_of_one_s_own():
    pairs = [[0, 0], [1, 1], [2, 3]]
    module = distiller(ObjectiveSettings(attention=1.0, hidden=1.0, pairs=pairs))
    given = batch()
    with torch.no_grad():
        report = module(**given)
        ours, theirs = states(module.students["s"], given), states(module.teacher, given)
        expected = torch.stack([hidden_loss(ours[a], theirs[b]) for a, b in pairs]).mean()
    assert report["s/hidden"] == pytest.approx(float(expected), rel=1e-5)
    aligned = distiller(ObjectiveSettings(attention=1.0, hidden=1.0))(**given)
    same = distiller(ObjectiveSettings(attention=1.0, hidden=1.0, pairs=[[0, 0], [1, 2], [2, 4]]))(**given)
    assert report["s/hidden"] != aligned["s/hidden"]
    assert torch.equal(same["loss"], aligned["loss"])
    with pytest.raises(RecipeError, match=r"pairs has \[2, 5\], but the student has 2 layers and its teacher 4"):
        distiller(ObjectiveSettings(pairs=[[2, 5]]))
    for bad in ([[1]], [[1, -1]], [[1, 2, 3]]):
        with pytest.raises(RecipeError, match="pairs has"):
            ObjectiveSettings(pairs=bad)


def test_what_is_no_term_is_one_line(own_module):
    for name, message in (
        ("nonsense", "no term is called 'nonsense'; there are attention, cosine, .*patient"),
        ("no_such_module:X", "cannot be imported"),
        ("house_losses:Nothing", "cannot be imported"),
        ("house_losses:NoTerm", "is no term"),
    ):
        with pytest.raises(RecipeError, match=message):
            distiller(ObjectiveSettings(terms={name: 1.0}))
    with pytest.raises(RecipeError, match="every weight of the objective is 0"):
        ObjectiveSettings(attention=0, hidden=0, terms={own_module: 0.0})


def test_code_that_a_recipe_names_is_imported_only_if_it_is_trusted(tmp_path, own_module):
    path = tmp_path / "r.toml"
    path.write_text(WHOLE)
    change = [f'phase1.objective.terms={{ "{own_module}" = 0.5 }}']
    with pytest.raises(RecipeError, match=r"names code, house_losses:Norms.*--trust-code"):
        load_recipe(path, assignments=change)
    recipe = load_recipe(path, assignments=change, trust_code=True)
    assert code_named(recipe) == [own_module]
    assert recipe.phase1.objective.terms == {own_module: 0.5}
    assert "house_losses" not in sys.modules
