"""The module that training calls: right sums, several students as if alone, only what is asked for."""

import pytest
import tiny
import torch
from fitting import RANDOM
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from bistil.distillation.module import Distiller
from bistil.distillation.objectives import attention_loss, cosine_loss, hidden_loss, prediction_loss, relation_loss
from bistil.distillation.student import make_student, without_upper_layers
from bistil.errors import RecipeError
from bistil.models.masked_lm import masked_lm_loss
from bistil.settings.recipe import ObjectiveSettings


def batch(padding=True):
    ids = torch.randint(5, 60, (3, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    if padding:
        mask[1, 9:] = 0
        mask[2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def distiller(teacher, layers, **weights):
    students = {name: make_student(teacher, one, RANDOM, seed=1) for name, one in layers.items()}
    objective = ObjectiveSettings(**{"attention": 0.0, "hidden": 0.0, **weights})
    return Distiller(teacher, students, objectives=dict.fromkeys(students, objective))


def eager(model, inputs):
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    model.config._attn_implementation = before
    return output


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_weighted_sum_and_gradients_against_the_plain_way(family):
    teacher = tiny.masked_lm(family)
    module = distiller(teacher, {"s": [3, 6]}, attention=2.0, hidden=0.5, cosine=0.7, prediction=1.5, hard_labels=0.3)
    student, inputs = module.students["s"], batch()
    mask = inputs["attention_mask"]
    labels = torch.where((torch.arange(36).view(3, 12) % 5 == 0) & mask.bool(), inputs["input_ids"], -100)
    got = module(**inputs, labels=labels, language="en")
    parameters = [p for p in student.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(got["loss"], parameters, allow_unused=True)

    ours, theirs = eager(student, inputs), eager(teacher, inputs)
    pairs = [(1, 3), (2, 6)]
    terms = {
        "attention": sum(attention_loss(ours.attentions[i - 1], theirs.attentions[t - 1], mask) for i, t in pairs) / 2,
        "hidden": sum(hidden_loss(ours.hidden_states[i], theirs.hidden_states[t], mask) for i, t in [(0, 0), *pairs])
        / 3,
        "cosine": cosine_loss(ours.hidden_states[-1], theirs.hidden_states[-1], mask),
        "prediction": prediction_loss(ours.logits, theirs.logits, 2.0, mask),
        "hard_labels": masked_lm_loss(ours.logits[labels != -100], labels[labels != -100]),
    }
    for name, term in terms.items():
        torch.testing.assert_close(got[f"s/{name}"], term.detach(), rtol=2e-4, atol=1e-6)
    weights = {"attention": 2.0, "hidden": 0.5, "cosine": 0.7, "prediction": 1.5, "hard_labels": 0.3}
    loss = sum(weights[name] * term for name, term in terms.items())
    torch.testing.assert_close(got["loss"], loss, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(got["s/loss"], got["loss"].detach())
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-6)


def test_relations_between_other_widths_and_heads():
    teacher = tiny.model("xlm-roberta", hidden=48, heads=6)
    student = tiny.model("bert", hidden=32, heads=4, layers=2, seed=1)
    objective = ObjectiveSettings(attention=0.0, hidden=0.0, relations=1.0, relation_heads=8)
    module = Distiller(teacher, {"s": student}, objectives={"s": objective}, layers={"s": [3, 6]})
    loss = module(**batch())["loss"]
    loss.backward()
    assert loss.item() > 0 and student.encoder.layer[1].attention.self.value.weight.grad.any()
    from bistil.distillation.representations import Capture

    with Capture(teacher, relation_layers=[6]) as theirs, Capture(student, relation_layers=[2]) as ours:
        pairs = zip(ours.run(batch()).vectors[2], theirs.run(batch()).vectors[6], strict=True)
        expected = sum(relation_loss(o, t, 8, batch()["attention_mask"]) for o, t in pairs)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_students_beside_each_other_are_what_they_are_alone(family):
    teacher = tiny.model(family)
    choices = {"two": [2, 4, 6], "three": [3, 6], "first": [1, 2]}

    def trained(layers):
        module = distiller(teacher, layers, attention=1.0, hidden=1.0)
        groups = module.clip_groups()
        optimizer = torch.optim.AdamW([p for group in groups for p in group], lr=1e-2)
        for _ in range(5):
            module(**batch())["loss"].backward()
            for group in groups:
                torch.nn.utils.clip_grad_norm_([p for p in group if p.grad is not None], 0.5)
            optimizer.step()
            optimizer.zero_grad()
        return {name: student.state_dict() for name, student in module.students.items()}

    together = trained(choices)
    for name, layers in choices.items():
        alone = trained({name: layers})[name]
        assert all(torch.equal(alone[key], together[name][key]) for key in alone)


def test_the_teacher_is_outside_the_module_tree():
    teacher = tiny.model("bert")
    module = distiller(teacher, {"s": [6]}, hidden=1.0)
    module.train()
    assert not teacher.training and module.students["s"].training
    inside = {id(p) for p in module.parameters()}
    assert not any(id(p) in inside or p.requires_grad for p in teacher.parameters())
    module(**batch())["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_that_no_term_looks_at_does_not_run():
    teacher, ids = tiny.masked_lm("bert"), torch.randint(5, 25, (2, 10))
    ran = []
    teacher.bert.register_forward_hook(lambda *_: ran.append(1))
    alone = ObjectiveSettings(attention=0, hidden=0, hard_labels=1.0)
    student = make_student(teacher, [3, 6])
    with_both = {"a": alone, "b": ObjectiveSettings()}
    for objectives, times in (({"a": alone}, 0), (with_both, 1)):
        ran.clear()
        students = dict.fromkeys(objectives, student)
        module = Distiller(teacher, students, objectives=objectives, layers={name: [3, 6] for name in objectives})
        loss = module(input_ids=ids, labels=ids)["a/hard_labels"]
        module.close()
        # The student is made of other modules, so the hook counts the teacher alone.
        assert len(ran) == times
        expected = student(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(loss, expected)


def test_no_output_layer_and_no_map_unless_asked(monkeypatch):
    teacher = tiny.masked_lm("bert")
    module = distiller(teacher, {"s": [2, 4, 6]}, hidden=1.0)

    def never(*_, **__):
        raise AssertionError

    for model in (teacher, module.students["s"]):
        monkeypatch.setattr(model.cls, "forward", never)
    monkeypatch.setattr("bistil.distillation.aligned_attention.AttentionInputs.probabilities", never)
    assert torch.isfinite(module(**batch())["loss"])


def test_phase_2_pairs_and_labels():
    teacher = tiny.model("bert", head=AutoModelForTokenClassification)
    student = make_student(teacher, [3, 6], RANDOM)

    class Pair:
        def __init__(self, student, teacher, mask, valid=None):
            self.student, self.teacher, self.mask, self.valid = student, teacher, mask, valid

    def pairs(ours, theirs, inputs):
        return [Pair(ours.logits, theirs.logits, inputs["labels"] != -100)]

    objective = ObjectiveSettings(attention=0.0, hidden=0.0, prediction=1.0, hard_labels=1.0)
    module = Distiller(teacher, {"s": student}, objectives={"s": objective}, prediction_pairs=pairs)
    inputs = {**batch(), "labels": torch.where(batch()["attention_mask"].bool(), 1, -100)}
    got = module(**inputs)
    ours, theirs = student(**inputs), teacher(**batch())
    torch.testing.assert_close(got["s/hard_labels"], ours.loss.detach())
    expected = prediction_loss(ours.logits, theirs.logits, 2.0, inputs["labels"] != -100)
    torch.testing.assert_close(got["s/prediction"], expected.detach())


def test_unlabelled_batches_and_classes_that_are_no_choice():
    teacher = tiny.model("xlm-roberta", head=AutoModelForSequenceClassification, num_labels=3)
    student = make_student(teacher, [3, 6], RANDOM)
    valid = torch.tensor([True, True, False]).expand(3, -1)

    class Pair:
        def __init__(self, ours, theirs):
            self.student, self.teacher, self.mask, self.valid = ours.logits, theirs.logits, None, valid

    objective = ObjectiveSettings(attention=1.0, hidden=0.0, prediction=1.0, hard_labels=1.0)
    module = Distiller(
        teacher, {"s": student}, objectives={"s": objective}, prediction_pairs=lambda o, t, _: [Pair(o, t)]
    )
    got = module(**batch())
    assert "s/hard_labels" not in got
    ours, theirs = (m(**batch()).logits[:, :2] for m in (student, teacher))
    torch.testing.assert_close(got["s/prediction"], prediction_loss(ours, theirs, 2.0).detach())


def test_the_teacher_may_read_other_inputs():
    teacher = tiny.model("bert")
    module = distiller(teacher, {"s": [6]}, hidden=1.0)
    other = {f"teacher_{name}": value.roll(1, 0) for name, value in batch().items()}
    assert module(**batch(), **other)["loss"] != module(**batch())["loss"]
    same = {f"teacher_{name}": value for name, value in batch().items()}
    torch.testing.assert_close(module(**batch(), **same)["loss"], module(**batch())["loss"])


def test_alignment_comes_from_the_students_configuration(tmp_path):
    teacher = tiny.model("bert")
    make_student(teacher, [1, 6]).save_pretrained(tmp_path)
    student = type(teacher).from_pretrained(tmp_path)
    module = Distiller(teacher, {"s": student}, objectives={"s": ObjectiveSettings()})
    assert module(**batch())["s/attention"].item() > 0
    assert [layer for _, layer in module._plans[0].pairs[1:]] == [1, 6]


@pytest.mark.parametrize(
    ("student", "weights", "message"),
    [
        ({"hidden": 48}, {"hidden": 1.0}, "width 48, teacher 32.*use relations"),
        ({"heads": 8}, {"attention": 1.0}, "8 attention heads, teacher 4.*use relations"),
        ({}, {"relations": 1.0, "relation_heads": 5}, "relation_heads 5 does not divide"),
        ({}, {}, "every weight of the objective is 0"),
    ],
)
def test_what_cannot_be_compared_is_said(student, weights, message):
    with pytest.raises(RecipeError, match=message):
        objective = ObjectiveSettings(**{"attention": 0.0, "hidden": 0.0, **weights})
        Distiller(tiny.model("bert"), {"s": tiny.model("bert", layers=3, **student)}, objectives={"s": objective})


@pytest.mark.parametrize("layers", [[1, 3], [3, 6]])
def test_modernberts_final_norm_counts_for_the_last_layer_only(layers):
    teacher = tiny.model("modernbert")
    with torch.no_grad():
        teacher.final_norm.weight.fill_(3.0)
    module = distiller(teacher, {"s": layers}, hidden=1.0)
    student = module.students["s"]
    theirs = teacher(**batch(), output_hidden_states=True).hidden_states
    states = []
    handle = student.layers[1].register_forward_hook(lambda _m, _a, output: states.append(output))
    last = student(**batch()).last_hidden_state
    handle.remove()
    ours = [student.embeddings(batch()["input_ids"]), states[0] if layers[-1] == 3 else last]
    mask = batch()["attention_mask"]
    first = student(**batch(), output_hidden_states=True).hidden_states[1]
    expected = (
        hidden_loss(ours[0], theirs[0], mask)
        + hidden_loss(first, theirs[layers[0]], mask)
        + hidden_loss(ours[1], theirs[layers[1]], mask)
    ) / 3
    torch.testing.assert_close(module(**batch())["loss"], expected, rtol=1e-5, atol=1e-7)


def test_masked_lm_students_keep_the_teachers_head():
    teacher = tiny.masked_lm("xlm-roberta")
    student = make_student(teacher, [2, 4, 6])
    assert isinstance(student, type(AutoModelForMaskedLM.from_config(teacher.config)))
    assert torch.equal(student.lm_head.dense.weight, teacher.lm_head.dense.weight)


def test_a_cut_teacher_gives_the_same_targets():
    whole, cut = tiny.model("bert"), without_upper_layers(tiny.model("bert"), 4)
    losses = [
        distiller(teacher, {"s": [2, 4]}, attention=1.0, hidden=1.0)(**batch())["loss"] for teacher in (whole, cut)
    ]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("name", ["half", "train", "apply", "_modules", "training"])
def test_students_may_be_called_like_a_module_s_own_things(name):
    teacher = tiny.model("bert", layers=4)
    layers = [2, 4]
    module = Distiller(
        teacher, {name: make_student(teacher, layers)}, objectives={name: ObjectiveSettings()}, layers={name: layers}
    )
    assert float(module(**batch())["loss"].detach()) >= 0
    assert module.parts() == {name: f"students.{name}."}
    assert all(key.startswith(f"students.{name}.") for key in module.state_dict())
    assert next(iter(module.half().parameters())).dtype == torch.float16
