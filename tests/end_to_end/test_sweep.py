"""The sweep over SIB-200, tiny: every system of its file, sets of the same sentences, what stands beside them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import tiny_study

from bistil.report.studies import read_records
from bistil.report.study_page import PAGE

FILE = Path(__file__).parents[2] / "benchmarks/studies/sib200.toml"
HEAD = """
name = "tiny"
teacher = "teacher"
source = "eng"
reductions = [2, 3]
seeds = [0]
parallel = true
note = "The teacher may have seen these texts."
[task]
kind = "sequence-classification"
train = ["eng.tsv"]
dev = ["eng.tsv"]
max_length = 32
[targets]
swa = { test = "swa.tsv" }
hau = { test = "hau.tsv" }
"""
SEARCH = "[search]\nlearning_rates = [1e-3, 5e-3]\n"
LENGTHS = tiny_study.LENGTHS.replace("target_text = 1.0", "target_text = 0.0")


@pytest.fixture
def file(tmp_path):
    """The systems of the committed file with a tiny teacher."""
    tiny.model("bert", layers=6).save_pretrained(tmp_path / "teacher")
    tiny.tokenizer("bert").save_pretrained(tmp_path / "teacher")
    (tmp_path / "text").mkdir()
    for language, text in (("eng", tiny.ENGLISH), ("swa", tiny.SWAHILI), ("hau", tiny.SWAHILI)):
        lines = text.splitlines()[:6]
        rows = [f"{i}\t{'sports' if i % 2 else 'health'}\t{line}" for i, line in enumerate(lines)]
        (tmp_path / f"{language}.tsv").write_text("\n".join(["index_id\tcategory\ttext", *rows]) + "\n")
        (tmp_path / f"text/{language}.txt").write_text(text * 3)
    whole = FILE.read_text()
    systems = whole[whole.index("[systems.teacher]") : whole.index("[search]")]
    if find_spec("model2vec") is None or find_spec("skeletoken") is None:
        systems = systems[: systems.index("[systems.model2vec]")]
    (tmp_path / "study.toml").write_text(
        HEAD + systems + SEARCH + tiny_study.LENGTHS.replace("target_text = 1.0", "target_text = 0.0")
    )
    return tmp_path / "study.toml"


def test_the_sweep_runs_from_end_to_end(file, tmp_path, command_line):
    code, said, errors = command_line("study", file, "--output", tmp_path / "out")
    assert code == 0, errors
    assert "resampled jointly" in said and "may have seen these texts" in said
    records = read_records(tmp_path / "out")
    rows = {row.name: row for row in records.rows}
    assert {"teacher", "trim only", "BiStil-TF, lrf2", "BiStil-TF, lrf3", "copied, lrf2", "copied, lrf3"} <= set(rows)
    assert len(rows) == 6 + ("model2vec" in records.study.systems)
    assert all(row.targets == ["swa", "hau"] for row in rows.values())
    assert records.study.parallel and len(records.points) == records.study.points
    # Joint resamples: the hau set is the swa set here, so the mean of both is either one's.
    row = rows["BiStil-TF, lrf2"]
    drawn = [row.of(f"{target}/test")[0] for target in row.targets]
    assert [len(one.resamples) for one in drawn] == [1000, 1000]
    copied = rows["copied, lrf2"]
    assert copied.interval(["swa/test", "hau/test"]) == copied.interval(["swa/test"])
    assert (tmp_path / "out" / PAGE).read_text().count("may have seen these texts") >= 2
    assert {one.phase1_languages[-1] for one in records.points if one.system == "BiStil-TF"} == {"swa", "hau"}


def test_sets_that_are_not_the_same_sentences_are_refused(file, tmp_path, command_line):
    lines = (tmp_path / "hau.tsv").read_text().splitlines()
    (tmp_path / "hau.tsv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    code, _, said = command_line("study", file, "--output", tmp_path / "out")
    assert code == 2 and said.count("\n") == 1
    assert "parallel is true, but hau/test and swa/test do not hold the same examples" in said
    assert not (tmp_path / "out").exists()
