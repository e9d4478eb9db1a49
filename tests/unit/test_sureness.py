"""Inputs made of target text of which the task teacher is surest: what is meant by it, for every task."""

import pytest
import tiny
import torch
from task_models import LABELS, TEXTS, model_in

import bistil
from bistil.distillation.module import teacher_inputs
from bistil.distillation.sureness import sureness, surest
from bistil.errors import RecipeError
from bistil.models.loading import load_model
from bistil.settings.recipe import Phase2Settings, without_target_text
from bistil.settings.study import Variant
from bistil.tasks import KINDS, get_task
from bistil.tasks.base import PredictionPair

NAMES = ("input_ids", "attention_mask", "word_starts", "word_ends")


def test_the_mean_is_over_what_counts_and_choices_that_are_none_have_no_say():
    logits = torch.tensor([[2.0, 0.0, 9.0], [0.0, 0.0, 9.0], [5.0, 0.0, 9.0]])
    pair = PredictionPair(
        logits, logits, torch.tensor([True, True, False]), torch.tensor([[True, True, False]]).expand(3, 3)
    )
    certain = PredictionPair(logits, torch.tensor([[50.0, 0.0]]))
    first = torch.sigmoid(torch.tensor(2.0))
    assert sureness([pair]) == pytest.approx(float((first * 0.5) ** 0.5), abs=1e-6)
    assert sureness([pair, certain]) == pytest.approx(float((first * 0.5) ** (1 / 3)), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_surest_share_is_kept_in_its_order(kind, tmp_path):
    task, folder = get_task(kind), model_in(tmp_path, "bert", kind)
    tokenizer = tiny.tokenizer("bert")
    model = task.build_model(folder, None)
    features = task.unlabelled(TEXTS, tokenizer, 32, seed=0)
    collate = task.collate(tokenizer, teacher=tokenizer)
    options = {
        "teacher": model, "collate": collate, "prediction_pairs": task.prediction_pairs, "device": "cpu",
        "low_precision": False, "label": "x",
    }  # fmt: skip

    def alone(feature):
        batch = teacher_inputs(collate([feature]))
        output = model(**{name: batch[name] for name in NAMES if name in batch})
        return sureness(task.prediction_pairs(output, output, batch))

    with torch.no_grad():
        found = [alone(feature) for feature in features]
    kept = surest(features, 0.25, **options)
    assert len(kept) == round(0.25 * len(features)) < len(features)
    places = [features.index(one) for one in kept]
    assert places == sorted(places)
    lowest = min(found[i] for i in places)
    assert all(value <= lowest + 1e-6 for i, value in enumerate(found) if i not in places)
    assert len(surest(features, 1e-9, **options)) == 1


def test_a_student_learns_from_the_share_alone(tmp_path):
    kind = "sequence-classification"
    teacher, tokenizer = load_model(model_in(tmp_path, "bert", kind))[0], tiny.tokenizer("bert")
    rows = [{"text": text, "label": LABELS[kind][i % 3]} for i, text in enumerate(TEXTS[:6])]
    short = {"steps": 2, "batch_size": 4}
    counts = []
    for share in (1.0, 0.5):
        settings = Phase2Settings(sparse=None, training=bistil.TrainingSettings(**short), surest=share)
        student = bistil.finetune(
            tiny.model("bert", layers=2), rows, task=kind, tokenizer=tokenizer, teacher=teacher, text=TEXTS,
            settings=settings,
        )  # fmt: skip
        counts.append(student.bistil.facts["figures"]["target_text"])
    assert counts == [len(TEXTS), round(len(TEXTS) / 2)]


def test_where_there_is_no_target_text_there_is_no_share_of_it():
    with pytest.raises(RecipeError, match=r"surest is 0\.5, but target_text is 0"):
        Phase2Settings(target_text=0.0, surest=0.5)
    assert without_target_text(Phase2Settings(surest=0.5)).surest == 1.0
    with pytest.raises(RecipeError, match=r"surest is 0\.5, but there is no target text"):
        Variant(surest=0.5)
    own = Variant(target_text=True, surest=0.5, student_examples=7)
    assert own.settings(Phase2Settings()).surest == 0.5
