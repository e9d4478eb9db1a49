"""SQuAD 2.0 scores against numbers of the official script (evaluate-v2.0).

The numbers were made by `squad_evaluate` of transformers 4.57.1 (`transformers/data/metrics/squad_metrics.py`, the
official script with another entry point) on what `made` generates.
"""

import json
import random

import pytest

from bistil.tasks import get_task
from bistil.tasks.question_answering import Answer

# Articles and punctuation are normalised away, so that some answers come out empty.
WORDS = ["the", "a", "An", "cat", "dog", "mat,", "big", "Red", "sat.", "!", "42", "ünder"]
OFFICIAL = {
    0: {
        "exact": 46.25,
        "f1": 52.08392857142857,
        "HasAns_exact": 32.84132841328413,
        "HasAns_f1": 41.45229309435953,
        "NoAns_exact": 74.4186046511628,
        "NoAns_f1": 74.4186046511628,
    },
    1: {
        "exact": 48.5,
        "f1": 54.776785714285694,
        "HasAns_exact": 34.716981132075475,
        "HasAns_f1": 44.19137466307279,
        "NoAns_exact": 75.55555555555556,
        "NoAns_f1": 75.55555555555556,
    },
}


def made(seed, questions=400):
    """SQuAD 2.0 JSON and a prediction per question: gold, part of it, another text or none."""
    generator = random.Random(seed)
    items, predictions = [], {}
    context = " ".join(generator.choice(WORDS) for _ in range(300))
    words = context.split()
    for number in range(questions):
        answers = []
        for _ in range(generator.choice([0, 0, 1, 1, 2, 3])):
            first = generator.randrange(len(words) - 4)
            start = len(" ".join(words[:first])) + (first > 0)
            answers.append({"text": " ".join(words[first : first + generator.randrange(1, 4)]), "answer_start": start})
        gold = generator.choice(answers)["text"] if answers else ""
        other = " ".join(generator.choice(WORDS) for _ in range(generator.randrange(1, 4)))
        predictions[f"q{number}"] = generator.choice(
            [gold, gold.upper(), f"{gold} {other}", gold[:3], other, "", "", "the"]
        )
        items.append({"id": f"q{number}", "question": "What?", "answers": answers, "is_impossible": not answers})
    return {"version": "v2.0", "data": [{"paragraphs": [{"context": context, "qas": items}]}]}, predictions


@pytest.mark.parametrize("seed", OFFICIAL)
def test_scores_are_those_of_the_official_script(seed, tmp_path):
    data, predictions = made(seed)
    (tmp_path / "squad.json").write_text(json.dumps(data), encoding="utf-8")
    task = get_task("question-answering")
    examples = task.read([tmp_path / "squad.json"])
    assert len(examples) == 400
    scores = task.score(examples, [[Answer(predictions[e.id], 0, 1.0)] for e in examples]).scores
    want = OFFICIAL[seed]
    assert scores == {
        "exact_match": pytest.approx(want["exact"], abs=1e-9),
        "f1": pytest.approx(want["f1"], abs=1e-9),
        "exact_match/HasAns": pytest.approx(want["HasAns_exact"], abs=1e-9),
        "f1/HasAns": pytest.approx(want["HasAns_f1"], abs=1e-9),
        "exact_match/NoAns": pytest.approx(want["NoAns_exact"], abs=1e-9),
        "f1/NoAns": pytest.approx(want["NoAns_f1"], abs=1e-9),
    }
