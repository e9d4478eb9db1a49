"""The record's schema and its errors, the tables, and the page: offline, escaped, deterministic, true."""

import copy
import io
import json
import re
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import pytest
from layout import check_layout
from rich.console import Console

from bistil.errors import ArtefactError, InputError
from bistil.report import load_summary, print_table, save_summary, summary_from, write_report
from bistil.report.numbers import duration, giga, megabytes, millions, points, times
from bistil.report.page import best_student, headline, loading_code
from bistil.report.schema import (
    AgreementRecord,
    CoverageRecord,
    CurveRecord,
    DataRecord,
    ModelRecord,
    ShownPrediction,
    StageRecord,
    Summary,
)
from bistil.report.table import plain_table
from bistil.tasks import get_task

DOCS = Path(__file__).resolve().parents[2] / "docs"


def model(name, role, *, parameters=None, target=None, speed=None, **more):
    return {
        "name": name,
        "role": role,
        "metric": "accuracy",
        "parameters": parameters,
        "bytes": None if parameters is None else 4 * parameters,
        "target_score": target,
        "target_interval": None if target is None else [target - 0.05, target + 0.04],
        "source_score": None if target is None else target + 0.1,
        "speed_ratio": speed,
        "speed_ratio_range": None if speed is None else [0.9 * speed, 1.1 * speed],
        "milliseconds": None if speed is None else 20 / speed,
        **more,
    }


SUMMARY = {
    "schema": 1,
    "name": "demo",
    "task": "topics",
    "seed": 3,
    "source": "en",
    "target": "it",
    "pipeline_tag": "text-classification",
    "created": "2026-01-01T00:00:00Z",
    "versions": {"torch": "2.13.0"},
    "machine": {"cores": "2"},
    "models": [
        model("teacher", "teacher", parameters=100_000_000, target=0.70, speed=1.0, vocabulary=250_000, layers=12),
        model("trimmed", "trimmed", parameters=40_000_000, target=0.70, speed=1.0),
        model("lrf2", "student", parameters=20_000_000, target=0.685, speed=2.0, folder="students/lrf2"),
        model("lrf3", "student", parameters=10_000_000, target=0.65, speed=3.0, folder="students/lrf3"),
        model("copied", "copied", parameters=20_000_000, target=0.40, speed=2.0),
        model("majority", "baseline", target=0.20),
    ],
    "stages": [
        {"name": "trim", "seconds": 30.0, "peak_memory_bytes": 2_000_000_000, "skipped": True},
        {"name": "phase 1", "seconds": 90.0, "peak_memory_bytes": 1_500_000_000},
    ],
    "phase1": {"lrf2": {"steps": [0, 50, 100], "losses": {"en": [0.5, 0.2, 0.1], "it": [0.6, 0.3, 0.2]}}},
    "data": {"text en": {"language": "en", "examples": 4419, "sha256": "ab" * 32}},
}


def changed(**values):
    return summary_from({**copy.deepcopy(SUMMARY), **values})


def printed(summary):
    stream = io.StringIO()
    print_table(summary, console=Console(file=stream, width=120))
    return stream.getvalue()


def page(summary, tmp_path):
    path = tmp_path / "report.html"
    write_report(summary, path, replace=True)
    return path.read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Collects ids, references and text, and checks that elements are closed in order."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references, self.text, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
            if key in ("src", "href", "xlink:href"):
                self.references.append(value)
            self.references += re.findall(r"url\((.*?)\)", value or "")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def checked(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def test_summary_survives_a_round_trip(tmp_path):
    summary = summary_from(SUMMARY)
    save_summary(tmp_path / "summary.json", summary)
    assert load_summary(tmp_path / "summary.json") == summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"sead": 1}, "unknown key 'sead'; did you mean 'seed'"),
        ({"seed": "one"}, "seed is 'one'; expected int"),
        ({"models": [model("a", "pupil")]}, "role is 'pupil'"),
        ({"models": [model("a", "student"), model("a", "student")]}, "two models are called 'a'"),
        ({"models": [model("a", "teacher"), model("b", "teacher")]}, "more than one model has the role 'teacher'"),
        ({"models": [model("a", "student", target=71.2)]}, "scores run from 0 to 1"),
        ({"models": [model("a", "student", gap_interval=[0.1, -0.1])]}, r"gap_interval is \[0.1, -0.1\]"),
        ({"models": [model("a", "student", parameters=0)]}, "parameters is 0; it must be above 0"),
        ({"phase1": {"a": {"steps": [0, 1], "losses": {"en": [0.1]}}}}, "has 1 values for 2 steps"),
        ({"phase1": {"a": {"steps": [0], "losses": {"en": [float("nan")]}}}}, "not finite"),
    ],
)
def test_a_wrong_summary_is_one_line(change, message):
    with pytest.raises(ArtefactError, match=message) as caught:
        changed(**change)
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        load_summary(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ArtefactError, match=r"list\.json must hold a JSON object"):
        load_summary(tmp_path / "list.json")


def test_the_schema_is_documented():
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    for record in (Summary, ModelRecord, StageRecord, CurveRecord, CoverageRecord, DataRecord, AgreementRecord):
        for field in fields(record):
            assert f"| `{field.name}` | {field.metadata['help']} |" in text, f"{record.__name__}.{field.name}"


COVERED = {
    "loses": False, "texts": 500, "of": 500, "unit": "word", "words": 12_010, "fertility": 2.0,
    "trimmed_fertility": 2.02, "unknown": 0.0004, "trimmed_unknown": 0.0014, "changed": 0.031,
}  # fmt: skip
LOST = {
    **COVERED, "loses": True, "of": 9000, "trimmed_fertility": 2.1, "trimmed_unknown": 0.133, "changed": 0.331,
    "missing": {"為": 9, "<": 2}, "missing_characters": 621,
}  # fmt: skip


def test_what_trimming_changes_is_a_table_or_a_line(tmp_path):
    assert "What trimming changes" not in page(summary_from(SUMMARY), tmp_path)
    html = page(changed(coverage={"train, en": COVERED, "test, it": {**COVERED, "changed": 0.012}}), tmp_path)
    section = html.partition('<h2 id="coverage">')[2].partition("</section>")[0]
    assert "<table>" not in section and "of 2 labelled files none takes more than 1.0% more tokens" in section
    assert "become more than 0.1% unknown" in section and "more than 3.1% of the words change" in section
    html = page(changed(coverage={"train, en": COVERED, "test, it": LOST}), tmp_path)
    checked(html)
    section = html.partition('<h2 id="coverage">')[2].partition("</section>")[0]
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", section, flags=re.S)
    assert len(rows) == 2 and "does not fit" in rows[1] and "does not fit" not in rows[0]
    assert all(part in rows[1] for part in ("2.10", "+5.0", "13.3", "33.1", "為 &lt; and 619 more"))
    assert "drawn at random" in section and "trim.keep" in section


def test_headline_says_what_the_numbers_say():
    summary = summary_from(SUMMARY)
    assert best_student(summary).name == "lrf2"
    assert headline(summary) == (
        "The student lrf2 is 5.0 times smaller and 2.0 times faster than the teacher and scores 68.5% zero-shot "
        "accuracy (en to it), 1.5 points below the teacher"
    )
    better = changed(
        models=[
            model("teacher", "teacher", parameters=10_000_000, target=0.6, speed=1.0),
            model("s", "student", parameters=20_000_000, target=0.7, speed=0.5),
        ]
    )
    assert "2.0 times larger and 2.0 times slower" in headline(better)
    assert headline(better).endswith("10.0 points above the teacher")
    level = changed(models=[model("teacher", "teacher", target=0.6), model("s", "student", target=0.6003)])
    assert headline(level).endswith("level with the teacher")
    alone = changed(models=[model("s", "student", target=0.6)])
    assert headline(alone) == "The student s scores 60.0% zero-shot accuracy (en to it)"
    assert headline(changed(models=[])) == "demo: no distilled student was scored"


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([-0.04, -0.01], "2.0 points below the teacher"),
        (None, "2.0 points below the teacher"),
        ([-0.05, 0.01], "with no measurable distance to the teacher (-2.0 points, interval -5.0 to +1.0)"),
    ],
)
def test_a_gap_within_its_interval_is_no_loss_in_the_headline(interval, words):
    student = model("s", "student", target=0.58, gap_to_teacher=-0.02, gap_interval=interval)
    assert headline(changed(models=[model("teacher", "teacher", target=0.6), student])).endswith(f", {words}")


def test_without_target_labels_the_headline_is_size_speed_and_source_score(tmp_path):
    teacher = model("teacher", "teacher", parameters=10_000_000, speed=1.0, source_score=0.9)
    students = [
        model("a", "student", parameters=5_000_000, speed=2.0, source_score=0.7, folder="students/a"),
        model("b", "student", parameters=2_000_000, speed=3.0, source_score=0.8, folder="students/b"),
    ]
    summary = changed(models=[teacher, *students])
    assert headline(summary) == (
        "The student b is 5.0 times smaller and 3.0 times faster than the teacher and scores 80.0% accuracy in en "
        "(the teacher 90.0%); without test data of it its score there is unknown"
    )
    html = page(summary, tmp_path)
    assert "Use the student" in html and "students/b" in html and "There are no test data of it" in html
    agreement = {"metric": "accuracy", "examples": 1200, "trimmed": 0.95, "trimmed_interval": [0.9, 1.0]}
    agreed = [{**one, "agreement": 0.88, "agreement_interval": [0.85, 0.9]} for one in students]
    summary = changed(models=[teacher, *agreed], agreement=agreement)
    assert headline(summary).endswith(
        "its score there is unknown; on 1,200 texts without labels it agrees with the teacher to 88.0% (accuracy, "
        "interval 85.0 to 90.0; the trimmed teacher 95.0%), which is agreement, not accuracy"
    )
    text = " ".join(" ".join(checked(page(summary, tmp_path)).text).split())
    assert "agreement with the teacher, not accuracy" in text and "Where the teacher is wrong" in text
    # Neither a column of scores nor one of gaps, for there are none.
    assert "points to teacher" not in text and "agrees with teacher, %" in text
    table = printed(summary)
    assert "88.0 [85.0 90.0]" in table and "gap" not in table.splitlines()[1] and "agreement, not accuracy" in table
    unscored = [{**one, "metric": "", "source_score": None} for one in (teacher, *agreed)]
    assert "accuracy in %" in printed(changed(models=unscored, agreement=agreement))
    none = changed(models=[teacher, *students], agreement={"examples": 0, "why": "it needs questions"})
    assert "no agreement with the teacher stands for them: it needs questions" in page(none, tmp_path)
    assert headline(none).endswith("its score there is unknown")
    for one in (teacher, *students):
        one["source_score"] = None
    assert headline(changed(models=[teacher, *students])) == (
        "The student b is 5.0 times smaller and 3.0 times faster than the teacher and was not scored: without test "
        "data of it its score there is unknown"
    )


def test_scores_by_type_and_a_few_predictions_stand_on_the_page_and_no_sentence_in_the_summary(tmp_path):
    models = copy.deepcopy(SUMMARY["models"])
    for number, one in enumerate(models[:4]):
        one["target_scores"] = {"f1/PER": 0.8 + number / 100, "f1/LOC": 0.5}
    summary = changed(models=models)
    shown = [
        ShownPrediction(text="Rais <b>alizungumza.", wanted="PER Rais", said={"teacher": "none", "lrf2": "PER Rais"})
    ]
    write_report(summary, tmp_path / "own.html", shown=shown)
    seen = checked((tmp_path / "own.html").read_text(encoding="utf-8"))
    text = " ".join(" ".join(seen.text).split())
    # Teacher and students, in the order of the table: neither the trimmed one nor a copy.
    assert "figure teacher lrf2 lrf3 f1/PER 80.0 82.0 83.0 f1/LOC 50.0 50.0 50.0" in text
    assert "Rais <b>alizungumza. labels PER Rais teacher none lrf2 PER Rais" in text
    assert "A few predictions" not in page(summary, tmp_path) and "tokens" not in text.partition("Data")[2]


def test_a_baseline_far_below_stretches_no_axis():
    from bistil.report.figures import tradeoff_figure

    low, high = summary_from(SUMMARY), changed(models=[*SUMMARY["models"][:5], model("m", "baseline", target=0.0)])
    near = changed(models=[*SUMMARY["models"][:5], model("m", "baseline", target=0.5)])
    assert "below: majority 20.0" in tradeoff_figure(low) and "below: m 0.0" in tradeoff_figure(high)
    assert "below" not in tradeoff_figure(near) and "m 50.0" in tradeoff_figure(near)


def test_labels_of_the_target_are_counted_and_nothing_is_called_zero_shot(tmp_path):
    few = changed(
        data={"train, en": {"examples": 900}, "train, it, 1": {"examples": 40}, "train, it, 2": {"examples": 10}}
    )
    assert few.target_labels == 50 and summary_from(SUMMARY).target_labels == 0
    text = " ".join(" ".join(checked(page(few, tmp_path)).text).split())
    assert "scores 68.5% accuracy (en to it)" in headline(few) and "zero-shot" not in text
    assert "were among the training data: 50." in text


def test_page_is_whole_offline_and_true(tmp_path):
    html = page(summary_from(SUMMARY), tmp_path)
    seen = checked(html)
    text = " ".join(" ".join(seen.text).split())
    assert headline(summary_from(SUMMARY)) in text
    for figure in ("250,000", "100.0", "68.5", "−1.5", "3.00×", "2 min 00 s", "2.0 GB", "ab" * 32, "4,419"):
        assert figure in text, figure
    assert 'from_pretrained("students/lrf2")' in text
    # Nothing from outside, no scripts, and every inner reference has its target, once.
    assert "script" not in seen.tags and "link" not in seen.tags and "img" not in seen.tags
    assert all(reference.startswith("#") for reference in seen.references)
    assert {reference[1:] for reference in seen.references} <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))
    assert "http" not in re.sub(r"http://www\.w3\.org/[\w/]+|http-equiv", "", html)
    assert seen.tags.count("svg") == 3 and html.count('role="img"') == 3
    # No stand-in colour is left: all of them follow the page's theme.
    assert not re.search(r"#0([0-9])0\1", html)


def test_the_whole_page_fits_phone_desk_and_paper(tmp_path, run_in_browser):
    models = copy.deepcopy(SUMMARY["models"])
    for number, one in enumerate(models[:4]):
        one["target_scores"] = {f"f1/a long name of type {n}": 0.8 + number / 100 for n in range(3)}
        one["gap_to_teacher"], one["gap_interval"] = -0.015, [-0.0525, 0.0225]
    said = {"teacher": "none", "lrf2": "PER of a name that is long", "lrf3": "PER"}
    summary = changed(models=models, coverage={"train, en": COVERED, "test, it": LOST})
    shown = [ShownPrediction(text="a sentence of words " * 20, wanted="PER", said=said)]
    write_report(summary, tmp_path / "own.html", shown=shown)
    check_layout(run_in_browser, tmp_path / "own.html")


def test_page_is_the_same_bytes_every_time(tmp_path):
    assert page(summary_from(SUMMARY), tmp_path) == page(summary_from(SUMMARY), tmp_path)


def test_text_is_escaped(tmp_path):
    evil = "<script>alert('$x$')</script>"
    models = copy.deepcopy(SUMMARY["models"])
    models[2]["name"] = models[2]["folder"] = evil
    html = page(
        changed(
            name=evil,
            task=evil,
            models=models,
            machine={evil: evil},
            stages=[{"name": evil}],
            phase1={evil: SUMMARY["phase1"]["lrf2"]},
            data={evil: {}},
        ),
        tmp_path,
    )
    seen = checked(html)
    assert "script" not in seen.tags
    assert evil in " ".join(seen.text)


def test_page_without_optional_parts(tmp_path):
    bare = changed(models=[model("s", "student", target=0.5)], stages=[], phase1={}, data={}, machine={})
    seen = checked(page(bare, tmp_path))
    assert seen.tags.count("svg") == 1
    checked(page(changed(models=[]), tmp_path))


def test_loading_code_runs_as_python():
    """tests/unit/test_usage.py runs what it says for each task."""
    for usage, call in (
        (None, "AutoModel.from_pretrained"),
        (get_task("token-classification").usage, 'pipeline("token-classification", aggregation_strategy="first"'),
        (get_task("dependency-parsing").usage, "Parser("),
        (get_task("question-answering").usage, "QuestionAnswerer("),
    ):
        code = loading_code(changed(usage=usage))
        assert call in code and '"students/lrf2"' in code
        compile(code, "report", "exec")


def test_plain_table_fits_100_columns():
    models = copy.deepcopy(SUMMARY["models"])
    models[0]["name"] = "a teacher with a name that nobody would type twice, ever"
    stream = io.StringIO()
    print_table(changed(models=models), console=Console(file=stream, width=40))
    lines = stream.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 100
    assert "…" in lines[3]
    row = next(line for line in lines if line.startswith("lrf2"))
    assert row.split()[1:3] == ["20.0", "80"]
    assert "68.5 [63.5 72.5]" in row and "-1.5" in row and "2.00x" in row


def test_terminal_table_shows_every_model():
    stream = io.StringIO()
    print_table(summary_from(SUMMARY), console=Console(file=stream, width=120, force_terminal=True))
    assert all(m["name"] in stream.getvalue() for m in SUMMARY["models"])


def test_wide_characters_keep_columns_aligned():
    table = plain_table(["m", "x"], [["日本語", "1"], ["abc", "22"]])
    assert table.splitlines()[2:] == ["日本語   1", "abc     22"]


def test_names_stay_apart_where_the_numbers_alone_are_too_wide():
    numbers = [f"{number}.0" for number in range(20, 40)]
    rows = [["one system, lrf2", *numbers], ["one system, lrf3", *numbers], ["x" * 60, *numbers]]
    first, second, third = plain_table(["system", *["language"] * 20], rows, width=80).splitlines()[2:]
    assert first.startswith("one system, lrf2  ") and second.startswith("one system, lrf3  ")
    assert third.startswith("x" * 39 + "…")


def test_names_are_shortened_no_further_than_they_differ():
    rows = [["one for all, lrf2", "1" * 20], ["one for all, target text, lrf2", "2" * 20], ["x" * 40, "3" * 20]]
    first, second, third = plain_table(["system", "score"], rows, width=34).splitlines()[2:]
    assert [line.split("  ")[0] for line in (first, second, third)] == [
        "one for all, l…",
        "one for all, t…",
        "x" * 14 + "…",
    ]
    first, second, _ = plain_table(["system", "score"], rows, width=60).splitlines()[2:]
    assert first.startswith("one for all, lrf2 ") and max(map(len, (first, second))) == 60


def test_numbers():
    assert [millions(117_650_000), millions(1234)] == ["117.7", "0.001"]
    assert [megabytes(471_000_000), megabytes(1_500_000), megabytes(None)] == ["471", "1.5", ""]
    assert [points(-0.0123), points(0.02), points(-0.0001), points(None)] == ["-1.2", "+2.0", "0.0", ""]
    assert [times(2.034), times(12.34)] == ["2.03x", "12.3x"]
    assert [giga(1_020_000_000), giga(1_000_000)] == ["1.02", "0.0010"]
    assert [duration(3.21), duration(245), duration(3700), duration(59.99)] == [
        "3.2 s",
        "4 min 05 s",
        "1 h 02 min",
        "1 min 00 s",
    ]


def test_records_are_json(tmp_path):
    save_summary(tmp_path / "s.json", summary_from(SUMMARY))
    assert json.loads((tmp_path / "s.json").read_text())["models"][5]["parameters"] is None
