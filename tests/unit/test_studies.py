"""The studies' files under benchmarks/transfer; studies are planned and carried out by what carries out recipes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from bistil.runs.stages import FineTune, Score
from bistil.settings.study import Variant, load_study
from bistil.study import Point, Study, mean_gap

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STUDIES = sorted(file for file in (BENCHMARKS / "transfer").glob("*.toml") if file.stem != "variants")

STUDY = """
name = "tiny"
source = "en"
reductions = [2, 3]
seeds = [0]
dev_examples = 4

[task]
kind = "token-classification"
train = ["en.conll"]
dev = ["en.conll"]
max_length = 32

[targets]
sw = { dev = "sw.conll", test = "sw.conll" }
ha = { test = "sw.conll" }

[groups]
all = ["sw", "ha"]
sw = ["sw"]

[variants.taught]
teacher = false
students = ["lrf2"]

[variants.forced]
groups = ["all", "sw"]
students = ["lrf2"]

[phase1]
block_length = 16
held_out_blocks = 2
[phase1.training]
steps = 2
batch_size = 4
[finetune]
sparse = false
[finetune.training]
steps = 2
batch_size = 4
[phase2]
target_text = 1.0
sparse = false
[phase2.training]
steps = 2
batch_size = 4
"""


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
@pytest.mark.usefixtures("benchmarks")
def test_a_study_has_the_rows_of_all_studies_and_its_own(file: Path) -> None:
    import transfer_figure

    settings = load_study(file)
    variants = settings.variants
    assert settings.name == file.stem
    assert set(transfer_figure.SHOWN) <= set(variants)
    assert {group for variant in variants.values() for group in variant.groups} <= set(settings.groups)
    steps = [variants[name].phase1_settings(settings.phase1).training.steps for name in
             ("teacher-forced", "phase 1 four times, teacher-forced")]  # fmt: skip
    assert steps[1] == 4 * steps[0]
    # Rows with and without target text differ in nothing else.
    for name, variant in variants.items():
        if variant.target_text and (twin := variants.get(name.removesuffix(", target text"))):
            assert (twin.phase1_length, twin.epochs, twin.seeds) == (
                variant.phase1_length,
                variant.epochs,
                variant.seeds,
            )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny.model("bert", layers=6).save_pretrained(folder / "teacher")
    tiny.tokenizer("bert").save_pretrained(folder / "teacher")
    (folder / "text").mkdir()
    for language, text in (("en", tiny.ENGLISH), ("sw", tiny.SWAHILI), ("ha", tiny.SWAHILI)):
        (folder / f"text/{language}.txt").write_text(text * 3)
        sentences = [
            "\n".join(f"{word} {'B-PER' if word[0].isupper() else 'O'}" for word in line.split())
            for line in text.splitlines()
        ]
        (folder / f"{language}.conll").write_text("\n\n".join(sentences) + "\n")
    (folder / "study.toml").write_text(STUDY)
    return folder


@pytest.fixture
def study(data):
    return Study(load_study(data / "study.toml"), data, data / "teacher")


def made_now(study, output, points=None):
    """Kinds of the stages that a call had to do, which is what was foretold."""
    before = {path.name for path in (output / "stages").glob("*.json")}
    points = list(study.points()) if points is None else points
    foretold = sorted(one.kind for one in study.forecast(points, output).to_do)
    study.run(output, points)
    made = sorted(path.name.split("-")[0] for path in (output / "stages").glob("*.json") if path.name not in before)
    assert foretold == made
    return made


def test_what_points_share_is_made_once_and_a_changed_study_redoes_what_follows(study, tmp_path):
    output = tmp_path / "study"
    points = list(study.points())
    assert points == [Point("all", 0, "taught", 0), Point("all", 0, "forced", 0), Point("sw", 0, "forced", 0)]
    # One trimmed vocabulary and one teacher for all; a phase 1 and a student for each group.
    assert made_now(study, output) == ["evaluate"] * 3 + ["finetune"] * 4 + ["phase1"] * 2 + ["trim"]
    assert made_now(study, output) == []
    assert not list(output.glob("made/finetune-*/model/model.safetensors"))[1:]  # the teacher alone
    own = study.settings
    renamed = Study(replace(own, name="other"), study.data, study.teacher)
    assert made_now(renamed, output) == []
    more = {**own.variants, "again": Variant(groups=["sw"], students=["lrf3"], seeds=[1])}
    assert made_now(Study(replace(own, variants=more), study.data, study.teacher), output) == ["evaluate", "finetune"]
    longer = replace(own.phase2, training=replace(own.phase2.training, steps=3))
    changed = Study(replace(own, phase2=longer), study.data, study.teacher)
    assert made_now(changed, output) == ["evaluate"] * 3 + ["finetune"] * 3
    # A variant that says as much as the study's own settings is the same student.
    twin = {**own.variants, "twin": Variant(students=["lrf2"])}
    assert made_now(Study(replace(own, variants=twin), study.data, study.teacher), output) == []
    # Test sets are scored on, and text that stands in one is not learnt from.
    assert isinstance(study.score(points[0]).model.stage, FineTune)
    assert study.student(points[0]).target_text is None


@pytest.mark.usefixtures("benchmarks")
def test_the_table_is_made_of_the_records(data, tmp_path, monkeypatch, capsys):
    import transfer

    output = tmp_path / "study"
    monkeypatch.setattr(transfer, "e5_small_folder", lambda: data / "teacher")
    arguments = ["transfer.py", str(data / "study.toml"), "--data", str(data), "--output", str(output)]
    lines = {}
    for option in ([], ["--speed"], ["--table"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *option])
        transfer.main()
        lines[tuple(option)] = json.loads(capsys.readouterr().out.splitlines()[-1])
    table = lines["--table",]
    assert [(row["group"], row["student"], row["variant"]) for row in table["rows"]] == [
        ("all", "teacher", "undistilled"), ("all", "teacher", "trim only"), ("all", "lrf2", "taught"),
        ("all", "lrf2", "forced"), ("sw", "teacher", "undistilled"), ("sw", "teacher", "trim only"),
        ("sw", "lrf2", "forced"),
    ]  # fmt: skip
    trimmed = table["rows"][1]
    assert trimmed["gap"] == 0 and trimmed["interval"] == [0, 0]
    assert set(trimmed["scores"]) == {"en/dev", "sw/dev", "sw/test", "ha/test"}
    row = table["rows"][2]
    assert row["gap"] == pytest.approx(row["means"][0] - trimmed["means"][0])
    assert row["interval"][0] <= row["gap"] <= row["interval"][1]
    assert table["phase1"]["all"]["tokens"] == row["phase1_tokens"] > 0
    assert [one["name"] for one in table["speed"]] == ["undistilled", "trim only", "lrf2", "lrf3"]
    assert lines[()]["rows"] == table["rows"] and lines[()]["speed"] == []
    monkeypatch.setattr(sys, "argv", [*arguments, "--plan", "--student", "lrf2"])
    transfer.main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("all ")


def test_the_mean_gap_of_seeds_and_sets():
    def score(value, resamples):
        return Score(metric="f1", score=value, scores={}, interval=[], examples=1, resamples=resamples)

    reference = [score(50, [40, 60]), score(10, [10, 10])]
    rows = [[score(52, [44, 62]), score(9, [9, 9])], [score(54, [42, 66]), score(11, [11, 11])]]
    gap, low, high = mean_gap(rows, reference)
    # By hand: gaps 2, -1, 4, 1; resamples of the mean gap (4 - 1 + 2 + 1) / 4 and (2 - 1 + 6 + 1) / 4.
    assert gap == 1.5
    assert (low, high) == pytest.approx((1.5 + 0.0125, 2.0 - 0.0125))


@pytest.mark.usefixtures("benchmarks")
def test_the_sparse_studies_run_on_two_languages(data, tmp_path, monkeypatch, capsys):
    import sparse_transfer

    for language in ("eng", "swa", "hau"):
        source = "en" if language == "eng" else "sw"
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / f"text/{language}.txt").write_text((data / f"text/{source}.txt").read_text())
        for part in ("train", "dev", "test"):
            place = tmp_path / f"ner/{language}/{part}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            sentences = (data / f"{source}.conll").read_text().split("\n\n")
            place.write_text("\n\n".join(sentences[:5] if part == "train" else sentences[5:]) + "\n")
    small = {
        "ADAPTED": ("swa",), "THIRD": ("hau",), "LANGUAGES": ("eng", "swa", "hau"), "HEADED_ON": ("eng", "swa"),
        "HEADED": replace(sparse_transfer.HEADED, steps=1, batch_size=2), "HEADED_SFT_STEPS": 1, "BLOCK_LENGTH": 16,
        "EXAMPLES": 8, "SHARES": (0.5, 1.0), "LANGUAGE_SFTS": {0.04: 1e-3, 0.3: 1e-3},
        "RATES": {"lt-sft": 1e-3, "lt-sft long": 1e-3, "all": 1e-3, "random": 1e-3},
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(sparse_transfer, name, value)
    monkeypatch.setattr(sparse_transfer, "e5_small_folder", lambda: data / "teacher")
    arguments = ["x", "--data", str(tmp_path), "--output", str(tmp_path / "out"), "--adapt-steps", "1", "--seed", "0"]
    tables = []
    for option in ([], ["--table"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *option])
        sparse_transfer.main()
        tables.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert tables[0] == tables[1]
    assert {row.split(":")[0] for row in tables[0]["scores"]} == {"sources", "worn", "headed", "methods"}
    beside = tables[0]["scores"]["methods: lt-sft"]
    assert {"eng/dev", "swa/test", "swa/test at 1, language SFT", "swa/test, chosen, language SFT"} <= beside.keys()
    assert "swa-headed" in tables[0]["language"] and len(tables[0]["language"]) == 4
