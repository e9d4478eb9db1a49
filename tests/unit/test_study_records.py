"""Records of studies: written durably, read without torch, damaged lines named; tables and the page out of them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layout import check_layout

from bistil.errors import InputError
from bistil.report.paper import LTSFT, paper_figure
from bistil.report.studies import (
    RECORDS,
    PartRecord,
    PointRecord,
    SpeedRecord,
    SpeedRecords,
    StudyRecord,
    SystemRecord,
    WithdrawnRecord,
    append_record,
    mean_gap,
    read_records,
)
from bistil.report.study_page import PAGE, present, scores_table, write_study_page

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STUDY = StudyRecord(
    name="tiny", task="token-classification", source="eng", targets=["swa", "kin"], points=6,
    systems={
        "SCRATCH": SystemRecord(kind="scratch", what="random"), "TF": SystemRecord(kind="bistil", what="forced"),
        "upper <bound>": SystemRecord(kind="lt-sft", what="teacher"),
    },
    students={"lrf2": "half"}, budgets={"phase 1": "2 steps"}, file='name = "tiny"',
)  # fmt: skip


def part(score, resamples):
    scores = {"f1": score, "f1/PER": score + 1}
    return PartRecord(score=score, interval=[score - 1, score + 1], examples=9, scores=scores, resamples=resamples)


def point(system, group, scores, *, seed=0, student="lrf2", **options):
    values = {
        "key": "k", "targets": [target for target in STUDY.targets if group in ("all", target)], "metric": "f1",
        "shape": student or "teacher", "tokens": {"phase 1": 100, "fine-tuning": 10},
        "seconds": {"phase 1": 3.0, "fine-tuning": 1.0, "scoring": 9.0}, "learning_rate": 1e-3,
    }  # fmt: skip
    parts = {f"{target}/test": part(*one) for target, one in scores.items()} | {"eng/dev": part(90, [90, 90])}
    return PointRecord(system=system, group=group, student=student, seed=seed, scores=parts, **values | options)


POINTS = [
    point("TF", "swa", {"swa": (52, [44, 62])}, search={"0.001": 80.0, "0.01": 70.0},
          held_out={"steps": [0, 4], "loss": [2.0, 1.0]}),
    point("TF", "swa", {"swa": (54, [42, 66])}, seed=1),
    point("TF", "kin", {"kin": (9, [9, 9])}),
    point("TF", "kin", {"kin": (11, [11, 11])}, seed=1),
    point("upper <bound>", "all", {"swa": (50, [40, 60]), "kin": (10, [10, 10])}, student=None, paper=LTSFT),
    point("SCRATCH", "all", {"swa": (20, [10, 30]), "kin": (10, [12, 8])}, held_out={"steps": [0, 4], "loss": [1, 2]}),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for record in (STUDY, *POINTS):
        append_record(tmp_path / RECORDS, record)
    return tmp_path


def test_records_come_back_as_they_were_in_the_order_of_the_study(folder):
    records = read_records(folder)
    assert records.study == STUDY and records.problems == []
    assert [(one.system, one.group, one.seed) for one in records.points] == [
        ("SCRATCH", "all", 0), ("TF", "swa", 0), ("TF", "swa", 1), ("TF", "kin", 0), ("TF", "kin", 1),
        ("upper <bound>", "all", 0),
    ]  # fmt: skip
    assert sorted(records.points, key=repr) == sorted(POINTS, key=repr)


def test_a_damaged_line_is_named_and_skipped_and_a_cut_off_one_costs_nothing_else(folder):
    file = folder / RECORDS
    lines = file.read_bytes().splitlines(keepends=True)
    # A figure that was changed, a line that no parser takes, and one that a full disk cut off.
    file.write_bytes(
        b"".join([*lines[:1], lines[1].replace(b'"score": 52', b'"score": 99'), b"[" * 100_000 + b"\n", *lines[2:-1]])
    )
    with file.open("ab") as stream:
        stream.write(lines[-1][:50])
    append_record(file, replace(POINTS[0], seed=7))
    records = read_records(folder)
    assert [re.search(r"line (\d+)", problem).group(1) for problem in records.problems] == ["2", "3", "8"]
    assert all("is damaged: it is skipped" in problem for problem in records.problems)
    assert [one.seed for one in records.points if one.system == "TF" and one.group == "swa"] == [1, 7]


def test_the_later_line_counts_and_a_withdrawn_point_is_gone(folder):
    append_record(folder / RECORDS, replace(POINTS[1], key="later"))
    append_record(folder / RECORDS, WithdrawnRecord(system="TF", group="kin", student="lrf2", seed=0))
    points = {one.place: one.key for one in read_records(folder).points}
    assert points["TF", "swa", "lrf2", 1] == "later" and len(points) == 5


def test_rows_of_one_system_are_told_apart_by_their_groups(folder):
    assert [row.name for row in read_records(folder).rows if row.system == "TF"] == ["TF, lrf2"]
    append_record(folder / RECORDS, point("TF", "all", {"swa": (50, [40, 60]), "kin": (10, [10, 10])}))
    names = [row.name for row in read_records(folder).rows]
    assert {"TF, lrf2, each", "TF, lrf2, all", "SCRATCH, lrf2"} < set(names) and len(set(names)) == len(names)


def test_levers_are_told_by_their_gaps_to_rows_that_are_named(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import levers
    records = read_records(folder)
    head, _, *rows = levers.table(records, ["upper <bound>", "SCRATCH"], "SCRATCH")
    assert head.endswith("| mean | to upper <bound> | to SCRATCH | hours | to SCRATCH | points an hour |")
    # Gaps are 14 and 16 on the two resamples, and 15.5 and 18. Two bilingual models take 8 seconds, a shared one 4.
    gap, best = "+16.5 [+15.6, +17.9]", "+15.0 [+14.1, +15.9]"
    assert rows[0].startswith(f"| upper <bound> | 90.0 | 50.0 | 10.0 | 30.0 |  | {best} | 0.00 | {best} |")
    taught = next(row for row in rows if row.startswith("| TF, lrf2 |"))
    assert "| 53.0 ± 1.4 | 10.0 ± 1.4 | 31.5 ± 1.4 | +1.5 [" in taught
    assert taught.endswith(f"| {gap} | 0.00 | {gap} | {16.5 / (4 / 3600):+.1f} |")
    with pytest.raises(InputError, match=r"no row is named 'TFF'; there are: .*TF, lrf2"):
        levers.named(records, "TFF")


def test_a_figure_has_each_student_of_half_the_depth_with_its_hours_at_its_gap():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import transfer_figure
    from matplotlib import use

    use("svg")
    from matplotlib import pyplot

    def row(variant, student, gap, **seconds):
        return {"group": "all", "student": student, "variant": variant, "seconds": seconds,
                "gaps": {"undistilled": [gap, gap - 1, gap + 1]}}  # fmt: skip

    rows = [
        row("longer", "lrf2", -1.0, scoring=99, **{"phase 1": 1800, "fine-tuning": 1800}),
        row("shorter", "lrf2", -4.0, **{"phase 1": 360}),
        row("thinner", "lrf3", -9.0, **{"phase 1": 360}),
    ]
    figure = transfer_figure.draw_hours([{"study": "choice", "metric": "f1", "rows": rows}], pyplot)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["shorter (0.10 h)", "longer (1.00 h)"]
    points = [tuple(zip(*line.get_data(), strict=True)) for line in axes.lines if line.get_marker() == "o"]
    assert points == [((-4.0, 0),), ((-1.0, 1),)]
    pyplot.close(figure)


def test_a_folder_without_records_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"has no study\.jsonl"):
        read_records(tmp_path)
    append_record(tmp_path / RECORDS, POINTS[0])
    with pytest.raises(InputError, match="does not say what the study is"):
        read_records(tmp_path)


def test_records_are_read_and_shown_without_torch(folder):
    code = "import sys; from pathlib import Path; from bistil.report.study_page import present\n"
    code += f"present(Path({str(folder)!r}))\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "TF, lrf2" in said.stdout


# Figures


def test_the_mean_gap_of_seeds_and_sets():
    reference = [part(50, [40, 60]), part(10, [10, 10])]
    rows = [[part(52, [44, 62]), part(9, [9, 9])], [part(54, [42, 66]), part(11, [11, 11])]]
    gap, low, high = mean_gap(rows, reference)
    # By hand: gaps 2, -1, 4, 1; resamples of the mean gap (4 - 1 + 2 + 1) / 4 and (2 - 1 + 6 + 1) / 4.
    assert gap == 1.5
    assert (low, high) == pytest.approx((1.5 + 0.0125, 2.0 - 0.0125))


def test_rows_join_seeds_and_the_models_of_each_target(folder):
    records = read_records(folder)
    assert [row.name for row in records.rows] == ["upper <bound>", "SCRATCH, lrf2", "TF, lrf2"]
    upper, scratch, forced = records.rows
    assert records.reference is upper and records.gap(upper) is None
    assert (forced.seeds, forced.targets, forced.shared) == (2, ["swa", "kin"], None)
    tests = ["swa/test", "kin/test"]
    assert forced.means(tests) == [30.5, 32.5] and forced.mean(tests) == 31.5
    # The same numbers as by `mean_gap`.
    assert records.gap(forced) == pytest.approx((1.5, 1.5125, 1.9875))
    assert forced.label("PER", "f1") == 32.5 and records.labels == ["PER"]
    # Of both models together, as a mean over seeds; the search once.
    assert forced.total("seconds") == {"phase 1": 6.0, "fine-tuning": 2.0, "scoring": 18.0}
    assert scratch.total("tokens") == {"phase 1": 100, "fine-tuning": 10}
    assert scratch.below_start and not forced.below_start


def test_a_gap_to_a_systems_own_reference_is_of_models_that_serve_as_many_languages(tmp_path):
    """Both systems have models of one language each, and one of both languages."""
    systems = {"base": SystemRecord(), "longer": SystemRecord(reference="base")}
    append_record(tmp_path / RECORDS, replace(STUDY, systems=systems))
    shared, alone = {"base": 20, "longer": 23}, {"base": 30, "longer": 31}
    for system in systems:
        both = {target: (shared[system], [shared[system]] * 2) for target in STUDY.targets}
        append_record(tmp_path / RECORDS, point(system, "all", both))
        for target in STUDY.targets:
            append_record(tmp_path / RECORDS, point(system, target, {target: (alone[system], [alone[system]] * 2)}))
    records = read_records(tmp_path)
    gaps = {row.shared: records.gap(row) for row in records.rows if row.system == "longer"}
    assert gaps == {"all": (3.0, 3.0, 3.0), None: (1.0, 1.0, 1.0)}


def test_the_best_student_is_bold_only_beyond_the_interval(folder):
    records = read_records(folder)
    forced = records.rows[2]
    assert records.best("swa/test") is forced and records.best(None) is forced
    assert records.best("kin/test") is None  # 10 against 10: resamples differ by -2 and +2
    lines = {line.name: line for line in scores_table(records)}
    assert [cell.best for cell in lines["TF, lrf2"].cells] == [True, False, True]
    assert lines["TF, lrf2"].cells[0].text == "53.0 ± 1.4"
    assert lines["upper <bound>"].cells[0].paper == "79.4" and lines["TF, lrf2"].cells[0].paper == ""
    assert lines["TF, lrf2"].serves == "one model per language"
    assert lines["SCRATCH, lrf2"].gap == "−15.0"


def test_the_papers_figure_of_a_bilingual_student_stands_beside_no_shared_one(folder):
    from bistil.report.paper import LRF2

    append_record(folder / RECORDS, replace(POINTS[0], paper=LRF2))
    shared = {"swa": (50, [40, 60]), "kin": (10, [10, 10])}
    append_record(folder / RECORDS, point("TF", "all", shared, paper=LRF2))
    lines = {line.name: line.cells[0].paper for line in scores_table(read_records(folder))}
    assert lines["TF, lrf2, each"] == "78.4" and lines["TF, lrf2, all"] == ""


def test_the_papers_figures_average_to_the_papers_averages():
    from bistil.report.paper import DISTILMBERT, FIGURES, LRF2, LRF3

    ner = FIGURES["token-classification", "f1"]
    averages = {LTSFT: 71.7, DISTILMBERT: 68.4, LRF2: 71.3, LRF3: 69.6}
    for system, average in averages.items():
        assert np.mean([*ner[system].values()]) == pytest.approx(average, abs=0.1), system
    parsing = FIGURES["dependency-parsing", "las"]
    for system, average in {LTSFT: 37.8, LRF2: 36.5}.items():
        assert np.mean([*parsing[system].values()]) == pytest.approx(average, abs=0.1), system
    assert paper_figure("token-classification", "accuracy", LTSFT, "swa") is None


# The page


def speed(name, ratio):
    return SpeedRecord(
        name=name, parameters=1000, bytes=10**6, vocabulary=10, layers=2, milliseconds=1.0, speed_ratio=ratio,
        speed_ratio_range=[ratio, ratio], flops=100,
    )  # fmt: skip


def test_the_page_is_one_file_that_loads_nothing_and_says_what_is_missing(folder, capsys):
    append_record(folder / RECORDS, SpeedRecords(shapes=[speed("teacher", 1.0), speed("lrf2", 2.0)], threads=1))
    with (folder / RECORDS).open("ab") as stream:
        stream.write(b"{}\n")
    present(folder)
    said = capsys.readouterr()
    assert "TF, lrf2" in said.out and "53.0 ± 1.4*" in said.out and "line 9 is damaged" in said.err
    page = (folder / PAGE).read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|url\((?!#|var)|@import|<script""", page)
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page and "@media print" in page
    assert "upper &lt;bound&gt;" in page and "upper <bound>" not in page
    for words in ("paper 79.4", "needs explaining", "line 9 is damaged", "<b>0.001: 80.0</b>", "name = &#34;tiny&#34;",
                  "TF, lrf2 is the best student on average: 31.5 f1, +1.5 points"):  # fmt: skip
        assert words in page, words
    assert page.count("<svg") == 2
    write_study_page(read_records(folder), folder / "again.html")
    assert (folder / "again.html").read_text() == page
    with pytest.raises(InputError):
        write_study_page(read_records(folder), folder / "again.html")


def test_a_page_of_many_systems_and_languages_fits_phone_desk_and_paper(tmp_path, run_in_browser):
    targets = ["swa", "kin", "hau", "pcm"]
    names = ["LTSFT", "BiStil-TF", "BiStil-TF, one student for all, on target text", "DistilmBERT-style"]
    works = (
        "vocabulary",
        "masked-LM head",
        "language SFTs",
        "phase 1",
        "task teacher",
        "fine-tuning",
        "scoring",
        "search",
    )
    systems = {name: SystemRecord(kind="bistil", what="one of many " * 20) for name in names}
    study = replace(STUDY, targets=targets, systems=systems, file="learning_rates = [" + "1.5e-4, " * 40 + "]")
    append_record(tmp_path / RECORDS, study)
    for name in names:
        scores = {target: (52.25, [44.5, 62.5]) for target in targets}
        more = {"seconds": dict.fromkeys(works, 1859.0), "search": {f"{n}.5e-05": 78.25 for n in range(9)}}
        append_record(tmp_path / RECORDS, point(name, "all", scores, targets=targets, **more))
    append_record(tmp_path / RECORDS, SpeedRecords(shapes=[speed(name, 1.5) for name in names], threads=1))
    present(tmp_path)
    check_layout(run_in_browser, tmp_path / PAGE)


@pytest.mark.parametrize(
    ("learns", "scores", "said"),
    [
        (1.5e-4, {"0.00015": 70.0, "0.0006": 78.0}, "at 0.0006 it has 78.0: finetune.training.learning_rate = 0.0006"),
        (1.5e-4, {"0.00015": 77.5, "0.0006": 78.0}, None),
        (6e-4, {"0.00015": 70.0, "0.0006": 78.0}, None),
        (5e-5, {"0.00015": 70.0, "0.0006": 78.0}, None),
        # It teaches nobody.
        (None, {"0.00015": 70.0, "0.0006": 78.0}, None),
        (1.5e-4, {}, None),
    ],
)
def test_a_task_teacher_at_a_worse_rate_than_the_search_found_is_said(tmp_path, capsys, learns, scores, said):
    alone = {"swa": (50, [50, 50]), "kin": (50, [50, 50])}
    teacher = point("upper <bound>", "all", alone, student=None, shape="teacher, trimmed", search=scores)
    for record in (replace(STUDY, teacher_learning_rate=learns), teacher):
        append_record(tmp_path / RECORDS, record)
    assert (read_records(tmp_path).better_teacher or "").endswith(said or "")
    present(tmp_path)
    for text in (capsys.readouterr().out, (tmp_path / PAGE).read_text()):
        assert ("finetune.training.learning_rate" in text) == (said is not None)


def test_a_study_that_has_just_begun_has_a_page_too(tmp_path):
    append_record(tmp_path / RECORDS, STUDY)
    present(tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert "0 of 6 models are on record" in page and "no student is scored on all targets yet" in page


def test_the_record_for_figures_is_made_of_the_records(folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import transfer

    monkeypatch.setattr(sys, "argv", ["transfer.py", str(folder)])
    transfer.main()
    made = json.loads(capsys.readouterr().out)
    rows = {row["variant"]: row for row in made["rows"]}
    assert rows["TF"]["gap"] == 1.5 and rows["TF"]["phase1_tokens"] == 100 and rows["upper <bound>"]["gap"] == 0
    assert rows["SCRATCH"]["gaps"] == {"upper <bound>": pytest.approx([-15, -15.95, -14.05])}
    assert (
        rows["TF"]["seconds"] == {"phase 1": 6, "fine-tuning": 2, "scoring": 18} and rows["upper <bound>"]["gaps"] == {}
    )
    assert rows["SCRATCH"]["group"] == "all" and rows["TF"]["means"] == [30.5, 32.5]
