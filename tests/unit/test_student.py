"""Layer choice, copy and alignment."""

import pytest
import tiny
import torch
from fitting import RANDOM
from transformers import AutoModelForMaskedLM

from bistil.distillation.student import alignment, choose_layers, make_student, without_upper_layers
from bistil.errors import ArtefactError, RecipeError
from bistil.models.families import family_of
from bistil.settings.recipe import StudentSettings


def choose(teacher_depth, **settings):
    return choose_layers(teacher_depth, StudentSettings(name="s", **settings))


def test_layer_choice():
    assert choose(12, reduction=2) == [2, 4, 6, 8, 10, 12]
    assert choose(12, reduction=3) == [3, 6, 9, 12]
    assert choose(12, layers=[1, 5, 12]) == [1, 5, 12]
    assert choose(12, depth=2, spread="first") == [1, 2]
    assert choose(12, depth=2, spread="last") == [11, 12]
    assert choose(12, depth=5) == [3, 5, 8, 10, 12]


@pytest.mark.parametrize("depth", range(1, 14))
def test_even_depth_ends_at_the_last_layer_and_agrees_with_every_dividing_factor(depth):
    for student in range(1, depth + 1):
        layers = choose(depth, depth=student)
        assert len(set(layers)) == student and layers[-1] == depth and layers[0] >= 1
        if depth % student == 0:
            assert layers == choose(depth, reduction=depth // student)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduction": 5}, "does not divide the teacher's 12 layers; divisors are 1, 2, 3, 4, 6, 12"),
        ({"layers": [3, 2]}, "must ascend"),
        ({"layers": [12, 13]}, "within 1 to 12"),
        ({"depth": 13}, "within 1 and the teacher's 12"),
        ({}, "give one of reduction, layers, depth; given: none"),
        ({"depth": 3, "reduction": 2}, "given: reduction, depth"),
    ],
)
def test_impossible_choices(settings, message):
    with pytest.raises(RecipeError, match=message):
        choose(12, **settings)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_copy_of_all_layers_computes_what_the_teacher_does(family):
    teacher = tiny.masked_lm(family)
    student = make_student(teacher, [1, 2, 3, 4, 5, 6])
    ids = torch.arange(5, 25).view(2, 10)
    torch.testing.assert_close(student(ids).logits, teacher(ids).logits)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_copied_layers_and_round_trip(family, tmp_path):
    teacher = tiny.masked_lm(family)
    student = make_student(teacher, [3, 6])
    paths = family_of(teacher)
    assert len(paths.layers(student)) == paths.depth(student.config) == 2
    ours, theirs = paths.layers(student)[1].state_dict(), paths.layers(teacher)[5].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if family == "modernbert":
        assert student.config.layer_types == [teacher.config.layer_types[i] for i in (2, 5)]
    student.save_pretrained(tmp_path)
    ids = torch.arange(5, 25).view(2, 10)
    torch.testing.assert_close(AutoModelForMaskedLM.from_pretrained(tmp_path).eval()(ids).logits, student(ids).logits)


def test_modernbert_first_layer_takes_its_norms_gain():
    teacher = tiny.model("modernbert")
    with torch.no_grad():
        teacher.layers[1].attn_norm.weight.uniform_(0.5, 2.0)
    student = make_student(teacher, [2, 6])
    states = torch.randn(4, 32)
    normed = torch.nn.functional.layer_norm(states, (32,))
    expected = teacher.layers[1].attn.Wqkv(teacher.layers[1].attn_norm(normed))
    torch.testing.assert_close(student.layers[0].attn.Wqkv(normed), expected, rtol=1e-3, atol=1e-4)


def test_random_start_keeps_embeddings_and_head_and_depends_on_the_seed():
    teacher = tiny.masked_lm("bert")
    one, same, other = (make_student(teacher, [2, 4], RANDOM, seed=s) for s in (1, 1, 2))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    weights = [m.state_dict()[name] for m in (one, same, other, teacher)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    words = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(one.state_dict()[words], teacher.state_dict()[words])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_cutting_upper_layers_keeps_the_lower_states(family):
    teacher = tiny.model(family)
    ids = torch.arange(5, 25).view(2, 10)
    expected = teacher(ids, output_hidden_states=True).hidden_states[3]
    cut = without_upper_layers(teacher, 4)
    assert len(family_of(cut).layers(cut)) == 4
    torch.testing.assert_close(cut(ids, output_hidden_states=True).hidden_states[3], expected)


def test_student_has_no_dropout_and_alignment_is_written_down():
    teacher = tiny.model("bert")
    teacher.config.hidden_dropout_prob = 0.1
    assert make_student(teacher, [6]).config.hidden_dropout_prob == 0.0
    assert alignment([3, 6]) == {"layers": [3, 6], "attention": [[1, 3], [2, 6]], "hidden": [[0, 0], [1, 3], [2, 6]]}


def test_unsupported_model_type():
    from transformers import GPT2Config

    with pytest.raises(ArtefactError, match=r"'gpt2' is not supported; supported are bert, deberta-v2, .*eurobert"):
        family_of(GPT2Config())
