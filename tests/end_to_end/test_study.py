"""`bistil study` from end to end with every system, tiny; what is done once, and what is done again."""

import json
import threading
import time

import pytest
import tiny
import tiny_study
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM

from bistil.report.studies import RECORDS, read_records
from bistil.report.study_page import PAGE
from bistil.settings.schema import AdaptSettings, TrainingSettings
from bistil.settings.study import load_study
from bistil.sparse import SparseFineTuning
from bistil.sparse.language import add_masked_lm_head
from bistil.sparse.wearing import exchanged_copy
from bistil.study import forecast, study_at
from bistil.study.records import PointBook
from bistil.study.run import make_points

SYSTEMS = ["LTSFT", "trim only", "TF", "ST", "SCRATCH", "monolingual", "DistilmBERT-style", "MiniLMv2-style"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_study.write_study(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("study") / "out"


@pytest.fixture
def finished(file, output, command_line):
    """The study's folder, made by the first test that asks for it."""
    if not (output / PAGE).exists():
        code, said, errors = command_line("study", file, "--output", output)
        assert code == 0, errors
        assert "TF, lrf2" in said and "gap to LTSFT" in said
    return output


def made(output):
    return {path.name for path in (output / "stages").glob("*.json")}


def test_every_system_is_scored_on_every_target_and_on_record(finished):
    records = read_records(finished)
    assert records.problems == [] and len(records.points) == records.study.points == 10
    rows = {row.system: row for row in records.rows}
    assert set(rows) == set(SYSTEMS)
    for name in ("SCRATCH", "monolingual"):
        assert rows.pop(name).targets == ["sw"]
    for row in rows.values():
        assert row.mean(["sw/test", "ha/test"]) is not None, row.name
    points = {(one.system, one.group, one.seed): one for one in records.points}
    forced = points["TF", "ha", 0]
    assert set(forced.scores) == {"en/dev", "ha/test"} and len(forced.scores["ha/test"].resamples) == 1000
    assert set(forced.search) == {"0.001", "0.005"} and forced.learning_rate == max(
        (float(rate) for rate in forced.search), key=lambda rate: forced.search[f"{rate:g}"]
    )
    assert points["ST", "all", 0].search == {} and points["ST", "all", 0].learning_rate == 1e-3
    assert forced.tokens["phase 1"] == 2 * 4 * 16 and forced.steps["phase 1"] == 2
    assert {one.tokens["phase 1"] for one in records.points if one.student} == {128}
    assert points["LTSFT", "all", 0].tokens["language SFTs"] == 3 * 2 * 128
    # Searched where the first seed and group are, for all.
    assert "search" in points["TF", "sw", 0].seconds and "search" not in forced.seconds
    assert set(records.speed) == {"teacher", "teacher, trimmed", "lrf2", "narrow"}
    assert records.speed["narrow"].parameters < records.speed["lrf2"].parameters < records.speed["teacher"].parameters
    assert "[systems.TF]" in records.study.file


def test_models_go_when_they_are_scored(finished):
    weights = [path.parent.parent.name.partition("-")[0] for path in finished.glob("made/*/*/model.safetensors")]
    assert sorted(set(weights)) == ["finetune", "masked", "phase1", "trim"]
    assert weights.count("finetune") == 1  # the students' teacher


def test_the_same_command_does_nothing_again(finished, file, command_line):
    before, lines = made(finished), (finished / RECORDS).read_bytes()
    code, said, errors = command_line("study", file, "--output", finished)
    assert code == 0 and "started" not in errors
    assert made(finished) == before and (finished / RECORDS).read_bytes() == lines
    code, again, _ = command_line("study", file, "--output", finished, "--table")
    assert code == 0 and again == said
    code, said, _ = command_line("study", file, "--output", finished, "--dry-run")
    assert code == 0 and "stages are done" in said


def test_a_changed_file_withdraws_what_no_longer_holds_and_redoes_it(finished, file, command_line):
    text = file.read_text()
    before, points = made(finished), len(read_records(finished).points)
    file.write_text(text.replace("learning_rates = [1e-3]", "learning_rates = [2e-3]"))
    try:
        code, _, errors = command_line("study", file, "--output", finished, "--only", "TF", "--no-report")
        assert code == 0, errors
        assert len(read_records(finished).points) == points - 1
        code, _, errors = command_line("study", file, "--output", finished, "--only", "ST", "--no-report")
        assert code == 0, errors
    finally:
        file.write_text(text)
    kinds = sorted(name.partition("-")[0] for name in made(finished) - before)
    assert kinds == ["evaluate", "finetune"]
    redone = next(one for one in read_records(finished).points if one.system == "ST")
    assert redone.learning_rate == 2e-3 and len(read_records(finished).points) == points


def test_jobs_side_by_side_give_what_one_process_gives(finished, file, tmp_path, command_line, monkeypatch):
    monkeypatch.setattr("bistil.runs.side_by_side.cores", lambda: 2)
    small = ("--only", "trim only", "--only", "ST", "--only", "all")
    code, _, errors = command_line("study", file, "--output", tmp_path / "out", *small, "--jobs", 2)
    assert code == 0, errors
    assert "2 side by side" in errors
    ours = {one.place: one.scores for one in read_records(tmp_path / "out").points}
    theirs = {one.place: one.scores for one in read_records(finished).points}
    assert len(ours) == 2 and ours["trim only", "all", None, 0] == theirs["trim only", "all", None, 0]


def test_a_model_that_another_process_is_at_is_left_to_it_until_no_other_is_left(file, tmp_path):
    study = study_at(file, load_study(file))
    first, second = points = [
        next(point for point in study.points() if (point.variant, point.group) == (name, "all"))
        for name in ("trim only", "ST")
    ]
    output, text = tmp_path / "out", file.read_text()
    _, theirs = next(iter(study.trials(first).values()))
    with study.open(output) as run:
        lock = run.lock_of(theirs)
    (output / "stages").mkdir(exist_ok=True)
    assert not run.taken(theirs)

    def on_record():
        file = output / RECORDS
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        return [line["system"] for line in lines if line["type"] == "point"]

    begun = threading.Event()

    def be_at_it_until_something_is_on_record():
        with lock:
            begun.set()
            until = time.monotonic() + 60
            while not on_record() and time.monotonic() < until:
                time.sleep(0.05)

    other = threading.Thread(target=be_at_it_until_something_is_on_record)
    other.start()
    begun.wait()
    assert run.taken(theirs)
    make_points(study, output, points, text=text)
    other.join()
    assert on_record() == [second.variant, first.variant]


def test_stages_in_any_order_give_what_one_process_gives(finished, file, tmp_path):
    from bistil.study.board import StudyBoard

    study = study_at(file, load_study(file))
    points = [point for point in study.points() if point.variant in ("trim only", "TF")]
    given = []
    with study.open(tmp_path / "out") as run:
        PointBook(study, run).open(file.read_text())
        board = StudyBoard(study, run, points)
        waiting = board.ready()
        while waiting:
            # The last first: as far from the order of one process as may be.
            stage = waiting.pop()
            assert all(run.known(one) is not None for one in stage.stands_on())
            given.append(stage.key)
            run.make(stage)
            board.done(stage)
            waiting += board.ready()
        board.check()
    assert len(given) == len(set(given)) == len(list((tmp_path / "out/stages").glob("*.json")))
    ours, theirs = ({one.place: one for one in read_records(folder).points if one.system in ("trim only", "TF")}
                    for folder in (tmp_path / "out", finished))  # fmt: skip
    assert {place: one.scores for place, one in ours.items()} == {place: one.scores for place, one in theirs.items()}
    assert {one.key for one in ours.values()} == {one.key for one in theirs.values()} and len(ours) == 3
    weights = {path.parts[-3].partition("-")[0] for path in (tmp_path / "out").glob("made/*/*/model.safetensors")}
    assert weights == {"trim", "phase1", "finetune"}
    assert len(list((tmp_path / "out").glob("made/finetune-*/model"))) == 1


def test_what_stands_on_a_failed_stage_is_given_up_and_all_else_is_made(file, tmp_path):
    from bistil.errors import InputError
    from bistil.study.board import StudyBoard

    study = study_at(file, load_study(file))
    points = [point for point in study.points() if point.variant in ("trim only", "TF")]
    with study.open(tmp_path / "out") as run:
        board = StudyBoard(study, run, points)
        (trim,) = board.ready()
        assert board.ready() == []
        board.done(trim, "the disk is full")
        assert board.ready() == []
    with pytest.raises(InputError, match="the stage 'vocabulary' failed: the disk is full; the same command goes on"):
        board.check()


def test_what_is_foretold_is_what_is_done(finished, file):
    study = study_at(file, load_study(file))
    foretold = {one.key: one for one in forecast(study, [*study.points()]).stages}
    records = {record["key"]: record for path in (finished / "stages").glob("*.json")
               if (record := json.loads(path.read_text()))}  # fmt: skip
    # Which rate wins is not known before, and so not what is made of it; nor what only size and speed ask for.
    for kind in ("trim", "masked-lm-head", "adapt", "phase1"):
        assert {key for key, one in foretold.items() if one.kind == kind} == {
            key for key, one in records.items() if one["kind"] == kind
        }
    steps = sum(foretold[key].steps for key, one in records.items() if one["kind"] == "phase1")
    assert steps == 2 * 7


# What the systems stand on


def test_a_new_head_changes_nothing_of_the_encoder_and_shares_its_embeddings(tmp_path):
    tiny.save(tiny.model("bert", layers=2), tmp_path / "base")
    # One line over and over: a head that looks at the context predicts it, the tokens' frequencies do not.
    (tmp_path / "en.txt").write_text((tiny.ENGLISH.splitlines()[0] + "\n") * 200)
    settings = AdaptSettings(
        steps=60, block_length=16, training=TrainingSettings(steps=1, batch_size=8, learning_rate=1e-2)
    )
    head = add_masked_lm_head(
        str(tmp_path / "base"), [tmp_path / "en.txt"], tmp_path / "headed", languages=["en"], settings=settings,
        work=tmp_path / "work",
    )  # fmt: skip
    assert not any(len(delta.indices) for delta in head.deltas.values())
    whole = AutoModelForMaskedLM.from_pretrained(tmp_path / "headed")
    assert whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    before, after = AutoModel.from_pretrained(tmp_path / "base").state_dict(), whole.bert.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    tables = [name for name, one in load_file(tmp_path / "headed/model.safetensors").items()
              if one.shape == whole.get_input_embeddings().weight.shape]  # fmt: skip
    assert len(tables) == 1
    told = head.provenance.metrics
    assert told["held-out masked-LM loss after"] < told["held-out masked-LM loss before"]


def test_a_task_model_for_a_target_is_base_plus_language_plus_task(tmp_path):
    from transformers import AutoModelForTokenClassification

    from bistil.sparse.base import fingerprint
    from bistil.sparse.delta import Provenance, SparseDelta

    base = tiny.model("bert", layers=2)
    tiny.save(base, tmp_path / "base")
    name = "encoder.layer.1.output.dense.weight"
    shape = tuple(dict(base.named_parameters())[name].shape)

    def sft(indices, value, path, parameter=name, dense=None, **provenance):
        delta = SparseDelta(torch.tensor(indices), torch.full((len(indices),), value), shape)
        SparseFineTuning({parameter: delta}, dense or {}, Provenance(**provenance), path).save(tmp_path / path)
        return tmp_path / path

    own = {"kind": "language", "fingerprint": fingerprint(base)}
    target = sft([1, 5], 0.5, "target", **own)
    learnt = AutoModelForTokenClassification.from_pretrained(tmp_path / "base", num_labels=3)
    tiny.save(learnt, tmp_path / "learnt")
    with torch.no_grad():  # what the source's SFT left in it is not in the result
        dict(learnt.named_parameters())[f"bert.{name}"].add_(9.0)
    tiny.save(learnt, tmp_path / "learnt")
    head = {"classifier.weight": torch.ones_like(learnt.classifier.weight)}
    task = sft([5, 7], 0.25, "task", f"bert.{name}", head, kind="task")
    exchanged_copy(tmp_path / "learnt", task, target, base=tmp_path / "base", output=tmp_path / "out")
    got = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    expected = dict(base.named_parameters())[name].detach().clone().flatten()
    expected[[1, 5, 7]] += torch.tensor([0.5, 0.75, 0.25])
    assert torch.equal(dict(got.named_parameters())[f"bert.{name}"].detach().flatten(), expected)
    assert torch.equal(got.classifier.weight, head["classifier.weight"])
    for other, value in base.embeddings.state_dict().items():
        assert torch.equal(got.bert.embeddings.state_dict()[other], value)
