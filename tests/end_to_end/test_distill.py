"""Phase 1 from text files to student folders that plain transformers loads."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
import typer
from transformers import AutoModel, AutoTokenizer, pipeline
from typer.testing import CliRunner

from bistil.commands import distill
from bistil.distillation.general import distill_general
from bistil.errors import ArtefactError, InputError, RecipeError
from bistil.settings.recipe import ObjectiveSettings, Phase1Settings, StudentSettings, TrainingSettings, load_recipe
from bistil.training import loop as training

ROOT = Path(__file__).parents[2]


def teacher_folder(folder, family="bert", *, masked_lm=True):
    model = tiny.masked_lm(family) if masked_lm else tiny.model(family)
    # Freshly initialised layers change next to nothing; these do, so that there is something to learn.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tiny.tokenizer(family).save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "en.txt").write_text(tiny.ENGLISH * 4, encoding="utf-8")
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI * 4, encoding="utf-8")
    return {"en": [tmp_path / "en.txt"], "sw": [tmp_path / "sw.txt"]}


def phase1(steps=12, **changes):
    training = {"steps": steps, "batch_size": 4, "learning_rate": 3e-3, "evaluate_steps": 4, "checkpoint_steps": 4}
    objective = changes.pop("objective", ObjectiveSettings())
    return Phase1Settings(
        block_length=16, objective=objective, training=TrainingSettings(**{**training, **changes}), held_out=0.2
    )


STUDENTS = [StudentSettings(name="lrf2", reduction=2), StudentSettings(name="lrf3", reduction=3)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_learns_and_its_students_load(family, tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher", family)
    report = distill_general(
        teacher, STUDENTS, texts, tmp_path / "out", settings=phase1(steps=24), seed=0, work=tmp_path / "work"
    )
    assert json.loads((tmp_path / "out" / "phase1.json").read_text()) == json.loads(json.dumps(report))
    for name, depth in (("lrf2", 3), ("lrf3", 2)):
        record = report["students"][name]
        start, end = record["held_out"]["start"], record["held_out"]["end"]
        assert end["loss"] < start["loss"]
        assert {"en/attention", "en/hidden", "sw/attention", "sw/hidden", "loss"} <= set(end)
        assert len(record["alignment"]["layers"]) == depth
        folder = tmp_path / "out" / name
        filled = pipeline("fill-mask", model=str(folder))(f"The {AutoTokenizer.from_pretrained(folder).mask_token} sat")
        assert len(filled) == 5
        assert json.loads((folder / "bistil.json").read_text())["metrics"] == record
    assert set(report["held_out_masked_lm"]) == {"teacher", "lrf2", "lrf3"}
    assert report["tokens"] == 24 * 4 * 16


def test_all_objectives_together_and_a_teacher_without_head(tmp_path, texts):
    everything = MANY
    teacher = teacher_folder(tmp_path / "teacher", "xlm-roberta")
    report = distill_general(
        teacher, STUDENTS, texts, tmp_path / "out", settings=phase1(objective=everything), seed=0, work=tmp_path / "w"
    )
    assert {"en/prediction", "en/hard_labels", "en/relations", "en/cosine"} <= set(
        report["students"]["lrf2"]["held_out"]["end"]
    )
    bare = teacher_folder(tmp_path / "bare", masked_lm=False)
    with pytest.raises(RecipeError, match="need a teacher with a masked-LM head"):
        distill_general(
            bare, STUDENTS, texts, tmp_path / "no", settings=phase1(objective=everything), seed=0, work=tmp_path / "w2"
        )
    report = distill_general(
        bare, STUDENTS, texts, tmp_path / "bare-out", settings=phase1(), seed=0, work=tmp_path / "w3"
    )
    assert "held_out_masked_lm" not in report
    assert AutoModel.from_pretrained(tmp_path / "bare-out" / "lrf3").config.num_hidden_layers == 2


def test_students_together_are_bit_identical_to_students_alone(tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher")
    distill_general(teacher, STUDENTS, texts, tmp_path / "both", settings=phase1(), seed=0, work=tmp_path / "w")
    for student in STUDENTS:
        out, work = tmp_path / student.name, tmp_path / f"w-{student.name}"
        distill_general(teacher, [student], texts, out, settings=phase1(), seed=0, work=work)
        files = [folder / student.name / "model.safetensors" for folder in (out, tmp_path / "both")]
        assert files[0].read_bytes() == files[1].read_bytes()


MANY = ObjectiveSettings(
    attention=1.0, hidden=1.0, prediction=0.5, hard_labels=0.5, relations=0.1, relation_heads=4, cosine=0.5
)


def test_students_with_objectives_of_their_own_are_what_they_are_alone(tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher")
    relations = ObjectiveSettings(attention=0.0, hidden=0.0, relations=1.0, relation_heads=8)
    students = [
        StudentSettings(name="plain", reduction=2),
        StudentSettings(name="relations", depth=2, spread="last", objective=relations),
        StudentSettings(name="triple", layers=[1, 6], objective=ObjectiveSettings(prediction=1.0, cosine=1.0)),
    ]
    report = distill_general(teacher, students, texts, tmp_path / "all", settings=phase1(), seed=0, work=tmp_path / "w")
    kinds = {n: {k.split("/")[-1] for k in one["held_out"]["end"]} for n, one in report["students"].items()}
    assert kinds["plain"] == {"loss", "attention", "hidden"}
    assert kinds["relations"] == {"loss", "relations"}
    assert kinds["triple"] == {"loss", "attention", "hidden", "prediction", "cosine"}
    for student in students:
        out, work = tmp_path / student.name, tmp_path / f"w-{student.name}"
        distill_general(teacher, [student], texts, out, settings=phase1(), seed=0, work=work)
        files = [folder / student.name / "model.safetensors" for folder in (out, tmp_path / "all")]
        assert files[0].read_bytes() == files[1].read_bytes()
    masked = [*students, StudentSettings(name="mlm", depth=3, objective=ObjectiveSettings(hard_labels=1.0))]
    with pytest.raises(RecipeError, match="hard_labels masks the text for every student of a run, but only mlm"):
        distill_general(teacher, masked, texts, tmp_path / "no", settings=phase1(), seed=0, work=tmp_path / "w2")


def test_three_languages_probabilities_and_held_out_shares(tmp_path, texts):
    (tmp_path / "ha.txt").write_text(tiny.SWAHILI[::-1], encoding="utf-8")
    three = {**texts, "ha": [tmp_path / "ha.txt"]}
    teacher = teacher_folder(tmp_path / "teacher")
    settings = replace(
        phase1(), probabilities={"en": 1.0, "sw": 1.0, "ha": 0.0}, held_out_shares={"sw": 0.5}, held_out_blocks=None
    )
    report = distill_general(teacher, STUDENTS, three, tmp_path / "out", settings=settings, seed=0, work=tmp_path / "w")
    shares = {name: one["held_out"] / sum(one.values()) for name, one in report["blocks"].items()}
    assert shares == pytest.approx({"en": 0.2, "sw": 0.5, "ha": 0.2}, abs=0.03)
    assert {"en/hidden", "sw/hidden", "ha/hidden"} <= set(report["students"]["lrf2"]["held_out"]["end"])
    options = {"seed": 0, "work": tmp_path / "w2"}
    for changes, message in (
        ({"held_out_shares": {"fr": 0.1}}, "a held-out share for fr, but text for en, sw, ha only"),
        ({"held_out": 1.0}, "held_out is 1.0; it must be at least 0 and below 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            distill_general(teacher, STUDENTS, three, tmp_path / "no", settings=replace(settings, **changes), **options)


def test_parts_of_a_batch_give_what_the_whole_gives(tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher")
    histories = []
    for parts in (1, 2):
        settings = phase1(accumulation=parts, objective=MANY)
        report = distill_general(
            teacher, STUDENTS, texts, tmp_path / f"out{parts}", settings=settings, seed=0, work=tmp_path / f"w{parts}"
        )
        histories.append(report["history"])
    # Weights whose gradient is zero but for rounding (key biases) may differ: AdamW blows rounding up.
    for whole, cut in zip(*histories, strict=True):
        assert cut == pytest.approx(whole, rel=1e-3)


def test_fixed_embeddings_stay_the_teachers(tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher")
    settings = Phase1Settings(
        block_length=16, freeze_embeddings=True, training=TrainingSettings(steps=4, batch_size=4, learning_rate=1e-2)
    )
    distill_general(teacher, STUDENTS[:1], texts, tmp_path / "out", settings=settings, seed=0, work=tmp_path / "w")
    ours, theirs = (AutoModel.from_pretrained(f) for f in (tmp_path / "out" / "lrf2", teacher))
    for name, value in ours.embeddings.state_dict().items():
        assert torch.equal(value, theirs.embeddings.state_dict()[name])
    assert not torch.equal(ours.encoder.layer[0].output.dense.weight, theirs.encoder.layer[1].output.dense.weight)


def test_bf16(tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher")
    report = distill_general(
        teacher, STUDENTS, texts, tmp_path / "out", settings=phase1(precision="bf16"), seed=0, work=tmp_path / "w"
    )
    for record in report["students"].values():
        assert record["held_out"]["end"]["loss"] < record["held_out"]["start"]["loss"]


def test_one_language_or_bad_names_are_refused(tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher")
    options = {"settings": phase1(), "seed": 0, "work": tmp_path / "w"}
    with pytest.raises(InputError, match="two languages or more; given: en"):
        distill_general(teacher, STUDENTS, {"en": texts["en"]}, tmp_path / "out", **options)
    with pytest.raises(RecipeError, match="names must differ"):
        distill_general(teacher, [STUDENTS[0], STUDENTS[0]], texts, tmp_path / "out", **options)
    with pytest.raises(RecipeError, match="reduction 4 does not divide the teacher's 6 layers"):
        distill_general(teacher, [StudentSettings(name="x", reduction=4)], texts, tmp_path / "out", **options)
    with pytest.raises(InputError, match="each language with text: en, sw"):
        settings = Phase1Settings(probabilities={"en": 1.0}, block_length=16, training=TrainingSettings(steps=2))
        distill_general(teacher, STUDENTS, texts, tmp_path / "out", settings=settings, seed=0, work=tmp_path / "w")
    assert not (tmp_path / "out").exists()


def test_one_language_is_enough_where_it_is_asked_for(tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher")
    options = {"settings": phase1(steps=4), "seed": 0, "work": tmp_path / "w", "one_language": True}
    report = distill_general(teacher, STUDENTS[:1], {"sw": texts["sw"]}, tmp_path / "out", **options)
    assert list(report["blocks"]) == ["sw"] and (tmp_path / "out/lrf2/config.json").exists()
    with pytest.raises(InputError, match="one language or more; given: none"):
        distill_general(teacher, STUDENTS[:1], {}, tmp_path / "none", **options)


def test_a_tokenizer_without_mask_token_serves_but_for_masked_lm(tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(teacher)
    options = {"seed": 0, "work": tmp_path / "w"}
    report = distill_general(teacher, STUDENTS, texts, tmp_path / "out", settings=phase1(steps=4), **options)
    assert "held_out_masked_lm" not in report
    with pytest.raises(ArtefactError, match="has no mask token"):
        distill_general(teacher, STUDENTS, texts, tmp_path / "no", settings=phase1(objective=MANY), **options)


# Dynamo itself looks at .grad of tensors that have none.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_training_is_the_same(tmp_path, texts, monkeypatch):
    """The whole module under torch.compile; without code generation, which takes half a minute."""
    arguments = partial(training.TrainingArguments, torch_compile_backend="eager")
    # A teacher without head is cut above the highest layer asked for: little to trace.
    teacher = teacher_folder(tmp_path / "teacher", masked_lm=False)
    student = StudentSettings(name="two", layers=[1, 2])
    histories = []
    for compiled in (False, True):
        if compiled:
            monkeypatch.setattr(training, "TrainingArguments", arguments)
        settings = phase1(steps=4, compile=compiled)
        out, work = tmp_path / f"out{compiled}", tmp_path / f"w{compiled}"
        report = distill_general(teacher, [student], texts, out, settings=settings, seed=0, work=work)
        histories.append(report["history"])
    assert histories[1] == [pytest.approx(entry, rel=1e-4) for entry in histories[0]]


def test_the_command(tmp_path, texts):
    teacher = teacher_folder(tmp_path / "teacher")
    app = typer.Typer()
    distill.register(app)
    arguments = ["--teacher", str(teacher), "--text", f"en={texts['en'][0]}", "--text",
                 f"sw={texts['sw'][0]}", "--layers", "2,6", "--depth", "4", "--steps", "4", "--batch-size", "4",
                 "--block-length", "16", "--evaluate-steps", "2", "--spread", "first", "--probability", "en=3",
                 "--probability", "sw=1", "--held-out", "0.1", "--held-out-shares", "sw=0.3", "--logger", "tensorboard",
                 "-o", str(tmp_path / "out")]  # fmt: skip
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "teacher layers [2, 6], held-out loss" in result.output
    assert AutoModel.from_pretrained(tmp_path / "out" / "first4").config.bistil_teacher_layers == [1, 2, 3, 4]
    record = json.loads((tmp_path / "out" / "first4" / "bistil.json").read_text())["settings"]
    assert (record["held_out"], record["held_out_shares"], record["probabilities"]) == (
        0.1, {"sw": 0.3}, {"en": 3.0, "sw": 1.0},
    )  # fmt: skip
    assert list((tmp_path / "out" / "tensorboard").iterdir())
    assert AutoModel.from_pretrained(tmp_path / "out" / "layers2-6").config.num_hidden_layers == 2
    assert not list(tmp_path.glob(".out*"))
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and again.stdout == result.stdout  # it is left as it is


def test_the_paper_s_preset_and_recipe_are_the_paper_s_settings(monkeypatch):
    """Section 3.2 and appendix: 200,000 steps of 8 x 256 tokens, AdamW at 1e-4 without warm-up, and the rest."""
    seen = {}

    def stop(*_, settings, **__):
        seen["settings"] = settings
        raise KeyboardInterrupt

    monkeypatch.setattr("bistil.distillation.general.distill_general", stop)
    app = typer.Typer()
    distill.register(app)
    files = ["--text", "en=a", "--text", "sw=b", "-t", "x", "-o", "y"]
    CliRunner().invoke(app, ["--preset", "paper", "--held-out-shares", "en=0.01", *files])
    for settings in (seen["settings"], load_recipe(ROOT / "recipes" / "paper-mbert.toml").phase1):
        training = settings.training
        assert (training.steps, training.batch_size, settings.block_length) == (200_000, 8, 256)
        assert (training.learning_rate, training.warmup_steps, training.weight_decay) == (1e-4, 0, 0.0)
        assert training.evaluate_steps == 1000
        assert (settings.held_out, settings.held_out_shares, settings.held_out_blocks) == (0.05, {"en": 0.01}, None)
        assert (settings.probabilities, settings.freeze_embeddings) == ({}, False)
        assert settings.objective == ObjectiveSettings(attention=1.0, hidden=1.0)
        assert (settings.objective.prediction, settings.objective.hard_labels) == (0.0, 0.0)
