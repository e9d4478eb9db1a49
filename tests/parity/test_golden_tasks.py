"""What each task hands to L_pred, against the official implementation's numbers (read from BISTIL_GOLDEN)."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from bistil.distillation.objectives import prediction_loss
from bistil.distillation.student import choose_layers, make_student
from bistil.settings.recipe import StudentSettings
from bistil.tasks import get_task, model_inputs

FOLDER = Path(os.environ.get("BISTIL_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"))
HEADS = {
    "token-classification": AutoModelForTokenClassification,
    "sequence-classification": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
}
INDEX = json.loads((FOLDER / "index.json").read_text()) if (FOLDER / "index.json").exists() else []
CASES = [case for case in INDEX if case["head"] in HEADS]


@pytest.mark.golden
@pytest.mark.skipif(not CASES, reason=f"no golden numbers in {FOLDER}")
@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_prediction_loss_of_the_task(case):
    teacher = HEADS[case["head"]].from_config(AutoConfig.for_model(**case["config"])).eval()
    teacher.load_state_dict(load_file(FOLDER / f"{case['case']}.teacher.safetensors"), strict=False)
    layers = choose_layers(6, StudentSettings(name="golden", reduction=case["stride"]))
    student = make_student(teacher, layers).eval()
    values = json.loads((FOLDER / f"{case['case']}.batch.json").read_text())
    batch = {name: torch.tensor(value) for name, value in values.items()}
    with torch.no_grad():
        outputs = [model(**model_inputs(model, batch)) for model in (student, teacher)]
    total = torch.tensor(0.0)
    for pair in get_task(case["head"]).prediction_pairs(*outputs, batch):
        sides = [pair.student, pair.teacher]
        if pair.valid is not None:
            sides = [side.masked_fill(~pair.valid, -1e9) for side in sides]
        total += prediction_loss(*sides, case["softmax_temperature"], pair.mask)
    assert float(total) == pytest.approx(case["losses"]["prediction"], rel=1e-5)
