"""The study of a few labels of the target: what its points learn from."""

from pathlib import Path

import pytest

from bistil.distillation.task_data import read_task_data

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_points_learn_from_nested_draws_beside_the_source(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import few_labels
    for language, count in (("eng", 300), ("swa", 90)):
        (tmp_path / "ner" / language).mkdir(parents=True)
        rows = "".join(f"{language}{i} B-PER\nB O\n\n" for i in range(count))
        for part in ("train", "dev"):
            (tmp_path / f"ner/{language}/{part}.txt").write_text(rows)
        (tmp_path / f"ner/{language}/test.txt").write_text("Nobody O\nelse O\nis O\n")
    words = []
    for labels in (0, 50, 1000):
        point = few_labels.Point("swa", 1, labels)
        task = few_labels.recipe_of(point, tmp_path, tmp_path / "out", ["phase1.training.steps=7"]).task
        data = read_task_data(task, source="eng", sources=task.sources)
        words.append([example.words[0] for example in data.train])
    english = [word for word in words[0] if word.startswith("eng")]
    assert words[0] == english and len(english) == 300
    assert [len(one) for one in words] == [300, 350, 390]
    assert set(words[1]) < set(words[2])
    rows = [
        {"language": "swa", "labels": 50, "models": {"teacher": {"target_score": 0.6 + seed}, "lrf2": student}}
        for seed, student in (
            (0.0, {"target_score": 0.5, "gap_to_teacher": -0.1}),
            (0.02, {"target_score": 0.5, "gap_to_teacher": -0.12}),
        )
    ]
    assert "| swa | 50 | 2 | 61.0 ± 1.4 | 50.0 ± 0.0 | -11.0 ± 1.4 |" in list(few_labels.table(rows))
