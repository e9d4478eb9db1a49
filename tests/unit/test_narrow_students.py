"""Students that are narrower than their teacher: their start, what can be asked of them, both phases."""

import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForMaskedLM

import bistil
from bistil.distillation.student import make_student, student_config
from bistil.errors import RecipeError
from bistil.models.families import family_of
from bistil.settings.recipe import ObjectiveSettings, Phase1Settings, Phase2Settings, StudentSettings, TrainingSettings

NARROW = StudentSettings(reduction=3, hidden_size=16, attention_heads=4)
RELATIONS = ObjectiveSettings(attention=0, hidden=0, relations=1.0, relation_heads=4)


@pytest.mark.parametrize("start", ["copy", "random"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_narrower_students_that_load(family, start, tmp_path):
    teacher = tiny.masked_lm(family)
    settings = StudentSettings(reduction=3, hidden_size=16, intermediate_size=24, attention_heads=2, start=start)
    student, paths = make_student(teacher, [3, 6], settings), family_of(teacher)
    config = student.config
    assert (paths.width(config), paths.feed_forward(config), paths.heads(config)) == (16, 24, 2)
    student.save_pretrained(tmp_path)
    ids = torch.arange(5, 25).view(2, 10)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state.shape == (2, 10, 16)
    torch.testing.assert_close(loaded(ids).logits, student(ids).logits)


def test_a_narrow_copy_has_leading_rows_and_columns_leading_heads_and_their_leading_dimensions():
    teacher = tiny.masked_lm("bert")  # width 32, 4 heads of 8, feed-forward 64
    ours = make_student(teacher, [3, 6], NARROW).state_dict()  # width 16, 4 heads of 4, feed-forward 32
    theirs = teacher.state_dict()
    words, layer, own = "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.2.", "bert.encoder.layer.0."
    of_each_head = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]
    assert torch.equal(ours[words], theirs[words][:, :16])
    query = "attention.self.query.weight"
    assert torch.equal(ours[own + query], theirs[layer + query][of_each_head][:, :16])
    bias = "attention.self.value.bias"
    assert torch.equal(ours[own + bias], theirs[layer + bias][of_each_head])
    output = "attention.output.dense.weight"
    assert torch.equal(ours[own + output], theirs[layer + output][:16][:, of_each_head])
    up, down = "intermediate.dense.weight", "output.dense.weight"
    assert torch.equal(ours[own + up], theirs[layer + up][:32, :16])
    assert torch.equal(ours[own + down], theirs[layer + down][:16, :32])


def test_matrices_that_lie_side_by_side_are_cut_each_by_itself():
    teacher = tiny.model("modernbert")
    settings = StudentSettings(depth=1, hidden_size=16, attention_heads=2)  # heads of 8 dimensions, as the teacher's
    ours, theirs = make_student(teacher, [1], settings).state_dict(), teacher.state_dict()
    rows = [*range(16), *range(32, 48), *range(64, 80)]
    assert torch.equal(ours["layers.0.attn.Wqkv.weight"], theirs["layers.0.attn.Wqkv.weight"][rows][:, :16])
    gate = [*range(32), *range(64, 96)]
    assert torch.equal(ours["layers.0.mlp.Wi.weight"], theirs["layers.0.mlp.Wi.weight"][gate][:, :16])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_student_from_scratch_has_nothing_of_its_teacher(family):
    teacher = tiny.masked_lm(family)
    student, again = (make_student(teacher, [3, 6], StudentSettings(reduction=3, start="scratch")) for _ in range(2))
    theirs = dict(teacher.named_parameters())
    matrices = {name: own for name, own in student.named_parameters() if own.dim() > 1}
    assert matrices and not any(torch.equal(own, theirs[name]) for name, own in matrices.items())
    assert all(torch.equal(own, other) for own, other in zip(student.parameters(), again.parameters(), strict=True))


def test_fewer_heads_of_the_same_size_attend_as_the_teachers_leading_heads_do():
    teacher = tiny.model("bert", layers=1, initializer_range=0.3)
    student = make_student(teacher, [1], StudentSettings(depth=1, hidden_size=16, attention_heads=2))
    states = torch.randn(2, 10, 32)
    states[:, :, 16:] = 0  # so that a student of 16 dimensions sees all that its teacher sees
    scores = []
    for model, heads in ((teacher, 4), (student, 2)):
        attention = family_of(model).self_attention(family_of(model).layers(model)[0])
        seen = states[:, :, : model.config.hidden_size]
        query, key = (one(seen).view(2, 10, heads, 8) for one in (attention.query, attention.key))
        scores.append(torch.einsum("bihd,bjhd->bhij", query, key))
    torch.testing.assert_close(scores[1], scores[0][:, :2])


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"hidden_size": 48}, "hidden_size is 48, above the teacher's 32"),
        ({"intermediate_size": 65}, "intermediate_size is 65, above the teacher's 64"),
        ({"attention_heads": 8}, "attention_heads is 8, above the teacher's 4"),
        ({"hidden_size": 18}, "4 attention heads do not divide hidden_size 18: set attention_heads"),
        ({"hidden_size": 24, "attention_heads": 2}, "2 heads of 12 .* have 8: give at least 3 attention_heads"),
    ],
)
def test_impossible_widths_are_refused(widths, message):
    with pytest.raises(RecipeError, match=message):
        student_config(tiny.config("bert"), [3, 6], StudentSettings(reduction=3, **widths))


def test_what_a_family_cannot_have_is_refused():
    with pytest.raises(RecipeError, match="heads of 5 dimensions; this model type needs an even number"):
        student_config(tiny.config("modernbert"), [6], StudentSettings(depth=1, hidden_size=20))
    with pytest.raises(RecipeError, match=r"5 attention heads cannot share .* choose a multiple of 2"):
        student_config(
            tiny.config("eurobert", heads=8), [6], StudentSettings(depth=1, hidden_size=20, attention_heads=5)
        )


def test_the_widths_are_in_the_name_and_what_is_not_given_follows_the_teacher():
    assert NARROW.name == "lrf3-16"
    config = student_config(tiny.config("bert"), [3, 6], NARROW)
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (16, 32, 4)


def test_both_phases_with_relations():
    teacher, tokenizer = tiny.model("bert", initializer_range=0.2), tiny.tokenizer("bert")
    text = {"en": tiny.ENGLISH.splitlines() * 4, "sw": tiny.SWAHILI.splitlines() * 4}
    training = TrainingSettings(steps=30, batch_size=4, learning_rate=3e-3)
    phase1 = Phase1Settings(block_length=16, objective=RELATIONS, training=training, held_out=0.2)
    found = bistil.distill(teacher, tokenizer, text, students=[NARROW], settings=phase1)
    figures = found.report["students"]["lrf3-16"]["held_out"]
    assert figures["end"]["loss"] < 0.9 * figures["start"]["loss"]

    labelled = [{"text": line, "label": f"even{n % 2}"} for n, line in enumerate(tiny.ENGLISH.splitlines())]
    fine_tuned = bistil.finetune(
        teacher, labelled, tokenizer=tokenizer, task="sequence-classification",
        settings=bistil.FinetuneSettings(sparse=None, training=TrainingSettings(steps=8, batch_size=4)),
    )  # fmt: skip
    tf = Phase2Settings(sparse=None, training=TrainingSettings(steps=8, batch_size=4))
    with pytest.raises(RecipeError, match="width 16, teacher 32"):
        bistil.finetune(found["lrf3-16"], labelled, teacher=fine_tuned, text=text["sw"], settings=tf)
    objective = ObjectiveSettings(attention=0, hidden=0, relations=1.0, relation_heads=4, prediction=1.0)
    small = bistil.finetune(
        found["lrf3-16"], labelled, teacher=fine_tuned, text=text["sw"],
        settings=Phase2Settings(sparse=None, objective=objective, training=tf.training),
    )  # fmt: skip
    assert small.config.hidden_size == 16
