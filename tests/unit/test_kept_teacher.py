"""What task teachers say, kept from epoch to epoch: the same losses and gradients, and sound after interruptions."""

import copy
import json
from dataclasses import replace

import fitting
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.nn.functional import pad

import bistil.distillation.kept_teacher as module_under_test
from bistil.distillation.kept_teacher import ROW, KeptTeacher
from bistil.distillation.module import Distiller
from bistil.distillation.student import copy_student, make_student
from bistil.distillation.task import Fitting, _kept_teacher, read_task_data
from bistil.distillation.task_data import MixedData
from bistil.distillation.teacher_ids import with_teacher_ids
from bistil.distillation.terms import Needs, Term
from bistil.errors import InputError
from bistil.settings.recipe import (
    FinetuneSettings,
    ObjectiveSettings,
    Phase2Settings,
    SparseSettings,
    TaskSettings,
    TrainingSettings,
)
from bistil.tasks import get_task, model_inputs
from bistil.tasks.batches import TARGETS
from bistil.tasks.sequence_classification import SequenceClassification

LINES = tiny.ENGLISH.splitlines()
CPU = torch.device("cpu")


def _squad():
    context = " ".join(LINES)
    answers = [{"text": one, "answer_start": context.find(one)} for one in ("the mat", "seven sheep", "twelve guests")]
    questions = [{"id": str(i), "question": "What?", "answers": [one]} for i, one in enumerate(answers)]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]})


def _trees():
    return "\n".join(
        "".join(
            f"{i}\t{word}\t_\tNOUN\t_\t_\t{(i != 2) * 2}\t{'root' if i == 2 else 'obl'}\t_\t_\n"
            for i, word in enumerate(line.split(), 1)
        )
        for line in LINES
    )


FILES = {
    "token-classification": (
        "a.txt",
        "\n".join("".join(f"{w} {'B-X' if w[0].isupper() else 'O'}\n" for w in line.split()) for line in LINES),
    ),
    "sequence-classification": (
        "a.jsonl", "".join(json.dumps({"text": t, "label": str(i % 3)}) + "\n" for i, t in enumerate(LINES)),
    ),
    "multi-label-classification": (
        "a.jsonl", "".join(json.dumps({"text": t, "labels": ["a", "b"][: i % 3]}) + "\n" for i, t in enumerate(LINES)),
    ),
    "dependency-parsing": ("a.conllu", _trees() + "\n"),
    "question-answering": ("a.json", _squad()),
}  # fmt: skip
ALL_TERMS = ObjectiveSettings(
    prediction=1.0, hard_labels=1.0, relations=1.0, cosine=1.0, relation_heads=4, terms={"patient": 1.0}
)


def lesson(kind, family, folder):
    """A task, features of labelled examples and of plain text, a teacher and a student that has moved from it."""
    name, text = FILES[kind]
    (folder / name).write_text(text, encoding="utf-8")
    task = get_task(kind)
    examples = task.read([folder / name])
    tokenizer, labels = tiny.tokenizer(family), task.labels(examples)
    tiny.model(family, layers=4, initializer_range=0.1).save_pretrained(folder / family)
    teacher = task.build_model(folder / family, labels, seed=1)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if not name.startswith(teacher.base_model_prefix):
                parameter.normal_(std=0.3, generator=generator)
    student = make_student(teacher, [2, 4])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    features = task.encode(examples, tokenizer, 32, labels=labels)
    return task, features, task.unlabelled(tiny.SWAHILI.splitlines(), tokenizer, 32, seed=1), teacher, student


def numbered(features):
    for row, feature in enumerate(features):
        feature[ROW] = row
    return features


def keeper(features, task, collate, folder=None, **options):
    rows = options.pop("rows", range(len(features)))
    options = {"outputs": task.kept_outputs(), "most_bytes": 1e9, "label": "test", **options}
    return KeptTeacher(numbered(features), rows, collate=collate, folder=folder, **options)


def losses_and_gradients(module, batch, *, low_precision=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        found = module(**batch)
    parameters = [one for one in module.parameters() if one.requires_grad]
    gradients = torch.autograd.grad(found["loss"], parameters, allow_unused=True)
    flat = torch.cat([one.flatten() for one in gradients if one is not None])
    return {name: float(value.detach()) for name, value in found.items()}, flat


CASES = [*((kind, "bert") for kind in FILES), *(("token-classification", family) for family in tiny.FAMILIES[1:])]


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_losses_and_gradients_are_those_of_the_teacher_itself(kind, family, tmp_path):
    """Batches in an order of their own, padded otherwise than those that the teacher read."""
    task, labelled, unlabelled, teacher, student = lesson(kind, family, tmp_path)
    collate = task.collate(tiny.tokenizer(family))
    features = [*labelled, *unlabelled]
    kept = keeper(features, task, collate, tmp_path / "kept")
    options = {"objectives": {"s": ALL_TERMS}, "prediction_pairs": task.prediction_pairs}
    chosen = [features[0:3], features[3:5], features[-4:]]
    batches = [kept.batch(own) for own in chosen]
    module = Distiller(teacher, {"s": student}, **options)
    expected = [losses_and_gradients(module, batch) for batch in batches]
    module.close()
    module = Distiller(teacher, {"s": student}, kept=kept, **options)
    module.prepare(CPU, low_precision=False)
    with pytest.raises(KeyError):
        _ = module.teacher
    for batch, (losses, gradients) in zip(batches, expected, strict=True):
        found, own = losses_and_gradients(module, batch)
        assert found == pytest.approx(losses, rel=1e-5, abs=1e-7)
        torch.testing.assert_close(own, gradients, rtol=1e-3, atol=1e-5 * float(gradients.abs().max()))
        # A state that belongs to another example must show.
        other = {**batch, ROW: batch[ROW].flip(0)}
        assert losses_and_gradients(module, other)[0]["s/hidden"] > 1.01 * losses["s/hidden"]
    module.close()


def of_another_seed(teacher, seed=9):
    """A teacher of the same shape that says something else."""
    other = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return other


def soft_targets(kind, models, batch):
    """Per kind of prediction (logits of each model (rows, classes), rows that count), out of plain passes."""
    inputs = [{name: value for name, value in model_inputs(model, batch).items() if name not in TARGETS}
              for model in models]  # fmt: skip
    with torch.no_grad():
        said = [model.eval()(**own) for model, own in zip(models, inputs, strict=True)]
    real = batch["attention_mask"].bool()
    if kind == "sequence-classification":
        return [([one.logits for one in said], slice(None))]
    if kind == "multi-label-classification":  # no or yes, for each label by itself
        return [([torch.stack([0 * one.logits, one.logits], -1).flatten(0, 1) for one in said], slice(None))]
    if kind == "token-classification":
        rows = batch["labels"] != -100 if "labels" in batch else real
        return [([one.logits[rows] for one in said], slice(None))]
    if kind == "question-answering":
        logits = [[one.start_logits for one in said], [one.end_logits for one in said]]
        return [([one.masked_fill(~real, -1e30) for one in own], slice(None)) for own in logits]
    words = batch["word_starts"] >= 0
    rows = batch["labels"] != -100 if "labels" in batch else words
    arcs = [one.logits for one in said]
    # The last model is the student: it has no say in where relations are compared.
    best = sum(arcs[:-1]).argmax(-1)
    heads = torch.where(rows, batch["labels"], best) if "labels" in batch else best
    relations = []
    for one in said:
        of_all = torch.einsum(
            "bwi,rij,bhj->bwhr", pad(one.dependents, (0, 1), value=1.0), one.relation_weight.detach(),
            pad(one.heads, (0, 1), value=1.0),
        )  # fmt: skip
        relations.append(of_all.gather(2, heads[..., None, None].expand(-1, -1, 1, of_all.shape[-1])).squeeze(2))
    return [([one.masked_fill(one.isinf(), -1e30) for one in arcs], rows), (relations, rows)]


@pytest.mark.parametrize(
    ("kind", "family"), [*((kind, "bert") for kind in FILES), ("token-classification", "modernbert")]
)
def test_the_prediction_of_several_teachers_is_the_mean_of_their_logits(kind, family, tmp_path):
    """softmax(mean of the logits / T), out of passes of three models by themselves; all else is the first one's."""
    task, labelled, unlabelled, first, student = lesson(kind, family, tmp_path)
    others = [of_another_seed(first), of_another_seed(first, 10)]
    collate, features = task.collate(tiny.tokenizer(family)), [*labelled, *unlabelled]
    kept = keeper(features, task, collate, tmp_path / "kept")
    options = {"objectives": {"s": ALL_TERMS}, "prediction_pairs": task.prediction_pairs}
    batches = [kept.batch(own) for own in (labelled[:4], unlabelled[:4])]
    module = Distiller(first, {"s": student}, **options)
    alone = [losses_and_gradients(module, batch)[0] for batch in batches]
    module.close()
    # Two that say the same are one, bit for bit.
    module = Distiller(first, {"s": student}, others=[copy.deepcopy(first)], mean_output=task.mean_output, **options)
    assert [losses_and_gradients(module, batch)[0] for batch in batches] == alone
    module.close()
    options |= {"others": others, "mean_output": task.mean_output}
    module = Distiller(first, {"s": student}, **options)
    found = [losses_and_gradients(module, batch) for batch in batches]
    module.close()
    for batch, (losses, _), own in zip(batches, found, alone, strict=True):
        expected = 0.0
        for (*theirs, ours), rows in soft_targets(kind, [first, *others, student], batch):
            soft = (sum(theirs) / 3 / 2.0).softmax(-1)
            expected += float(-(soft * (ours / 2.0).log_softmax(-1)).sum(-1)[rows].mean())
        assert losses["s/prediction"] == pytest.approx(expected, rel=1e-4)
        assert losses["s/prediction"] != pytest.approx(own["s/prediction"], rel=1e-3)
        same = [name for name in losses if name not in ("loss", "s/loss", "s/prediction")]
        assert len(same) >= 5 and {name: losses[name] for name in same} == {name: own[name] for name in same}
    # Kept once for all three, it is the same, and nobody is held any longer.
    module = Distiller(first, {"s": student}, kept=kept, **options)
    module.prepare(CPU, low_precision=False)
    assert not module._outside
    for batch, (losses, gradients) in zip(batches, found, strict=True):
        again, own = losses_and_gradients(module, batch)
        assert again == pytest.approx(losses, rel=1e-5, abs=1e-7)
        torch.testing.assert_close(own, gradients, rtol=1e-3, atol=1e-5 * float(gradients.abs().max()))
    module.close()


def test_other_teachers_are_asked_for_predictions_alone(tmp_path):
    """Nothing else is captured of them, and nobody asks them where no term reads the head."""
    task, labelled, _, first, student = lesson("token-classification", "bert", tmp_path)
    other, passes = of_another_seed(first), []
    other.register_forward_hook(lambda _m, _a, output: passes.append(output))
    for objective, count in ((ALL_TERMS, 1), (ObjectiveSettings(hidden=1.0), 0)):
        passes.clear()
        module = Distiller(
            first, {"s": student}, objectives={"s": objective}, prediction_pairs=task.prediction_pairs,
            others=[other], mean_output=task.mean_output,
        )  # fmt: skip
        module.train()(**task.collate(tiny.tokenizer("bert"))(labelled[:3]))
        module.close()
        assert len(passes) == count and not other.training
    assert not any(one.logits.requires_grad for one in passes)
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_parsers_of_other_widths_have_no_mean(tmp_path):
    task, labelled, _, first, student = lesson("dependency-parsing", "bert", tmp_path)
    narrow = get_task("dependency-parsing", parser_projection=8).build_model(
        tmp_path / "bert", [*first.config.id2label.values()]
    )
    module = Distiller(
        first, {"s": student}, objectives={"s": ALL_TERMS}, prediction_pairs=task.prediction_pairs, others=[narrow],
        mean_output=task.mean_output,
    )  # fmt: skip
    with pytest.raises(InputError, match="words have 32 and 8 dimensions: their relations need equally many"):
        module(**task.collate(tiny.tokenizer("bert"))(labelled[:3]))


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("kind", ["token-classification", "dependency-parsing"])
def test_in_bf16_they_differ_by_rounding(kind, others, tmp_path):
    task, labelled, _, teacher, student = lesson(kind, "bert", tmp_path)
    collate = task.collate(tiny.tokenizer("bert"))
    kept = keeper(labelled, task, collate)
    options = {"objectives": {"s": ALL_TERMS}, "prediction_pairs": task.prediction_pairs}
    options |= {"others": [of_another_seed(teacher)] * others, "mean_output": task.mean_output}
    batch = kept.batch(labelled[:5])
    module = Distiller(teacher, {"s": student}, **options)
    losses, gradients = losses_and_gradients(module, batch, low_precision=True)
    module.close()
    module = Distiller(teacher, {"s": student}, kept=kept, **options)
    module.prepare(CPU, low_precision=True)
    found, own = losses_and_gradients(module, batch, low_precision=True)
    assert found == pytest.approx(losses, rel=1e-2)
    assert float(torch.cosine_similarity(own, gradients, dim=0)) > 0.999
    assert {one.dtype for one in kept._fields if one.name.startswith(("hidden", "attention"))} == {torch.bfloat16}


def test_a_teacher_with_other_ids_reads_its_own(tmp_path):
    task, labelled, _, teacher, student = lesson("token-classification", "bert", tmp_path)
    tokenizer, old = tiny.renumbered("bert")
    examples = task.read([tmp_path / "a.txt"])
    both, _ = with_teacher_ids(labelled, task.encode(examples, tokenizer, 32, labels=task.labels(examples)))
    with torch.no_grad():
        teacher.get_input_embeddings().weight.copy_(teacher.get_input_embeddings().weight[old])
    teacher.config.pad_token_id = tokenizer.pad_token_id
    options = {"objectives": {"s": ALL_TERMS}, "prediction_pairs": task.prediction_pairs}
    kept = keeper(both, task, task.collate(tiny.tokenizer("bert"), teacher=tokenizer))
    batch = kept.batch(both[:4])
    module = Distiller(teacher, {"s": student}, **options)
    losses, _ = losses_and_gradients(module, batch)
    module.close()
    module = Distiller(teacher, {"s": student}, kept=kept, **options)
    module.prepare(CPU, low_precision=False)
    assert losses_and_gradients(module, batch)[0] == pytest.approx(losses, rel=1e-5)


def test_where_there_is_no_room_the_teacher_stays(tmp_path):
    task, labelled, _, teacher, student = lesson("token-classification", "bert", tmp_path)
    kept = keeper(labelled, task, task.collate(tiny.tokenizer("bert")), tmp_path / "kept", most_bytes=1000)
    options = {"objectives": {"s": ALL_TERMS}, "prediction_pairs": task.prediction_pairs}
    module = Distiller(teacher, {"s": student}, kept=kept, **options)
    module.prepare(CPU, low_precision=False)
    assert module.teacher is teacher and not (tmp_path / "kept").exists()
    assert module(**kept.batch(labelled[:3]))["loss"].isfinite()


class Stopped(Exception):
    pass


def filled(folder, task, features, teacher, student, *, others=(), stop_after=None):
    """The bytes of all parts; how many batches the teacher read."""
    kept = keeper(features, task, task.collate(tiny.tokenizer("bert")), folder)
    module = Distiller(
        teacher, {"s": student}, objectives={"s": ALL_TERMS}, prediction_pairs=task.prediction_pairs, kept=kept,
        others=others, mean_output=task.mean_output,
    )  # fmt: skip
    read, run = [], module._run_teacher

    def counted(batch):
        if stop_after is not None and len(read) >= stop_after:
            raise Stopped
        read.append(batch)
        return run(batch)

    module._run_teacher = counted
    try:
        module.prepare(CPU, low_precision=False)
        return [part.tobytes() for part in kept._parts], len(read)
    finally:
        module.close()
        kept.close(remove=False)


def test_what_was_said_before_an_interruption_is_not_said_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module_under_test, "BATCH_TOKENS", 40)
    monkeypatch.setattr(module_under_test, "PART_BYTES", 1)
    task, labelled, _, teacher, student = lesson("token-classification", "bert", tmp_path)
    things = (task, labelled, teacher, student)
    whole, count = filled(tmp_path / "whole", *things)
    assert count > 4 and len(whole) == count
    with pytest.raises(Stopped):
        filled(tmp_path / "cut", *things, stop_after=3)
    assert len(list((tmp_path / "cut").glob("*.bin"))) == 3
    again, rest = filled(tmp_path / "cut", *things)
    assert again == whole and rest == count - 2  # three less, and the first once more to see what a pass leaves
    # A part that was damaged, one without its mark, and one whose mark is damaged are made again; sound ones are not.
    assert filled(tmp_path / "cut", *things) == (whole, 1)
    parts = sorted((tmp_path / "cut").glob("*.bin"))
    parts[0].write_bytes(b"\0" * parts[0].stat().st_size)
    parts[1].with_suffix(".json").unlink()
    parts[2].with_suffix(".json").write_text("{")
    assert filled(tmp_path / "cut", *things) == (whole, 3)
    # Another teacher says everything anew.
    with torch.no_grad():
        teacher.classifier.bias.add_(0.1)
    other, everything = filled(tmp_path / "cut", *things)
    assert everything == count and other != whole
    # So do others beside it.
    beside, everything = filled(tmp_path / "cut", *things, others=[of_another_seed(teacher)])
    assert everything == count and beside != other
    assert filled(tmp_path / "cut", *things, others=[of_another_seed(teacher)]) == (beside, 1)


TRAINING = TrainingSettings(epochs=3.0, batch_size=5, learning_rate=3e-3, checkpoint_steps=2, log_steps=1)
SETTINGS = Phase2Settings(sparse=None, training=TRAINING)


@pytest.fixture
def models(tmp_path):
    (tmp_path / "train.jsonl").write_text(FILES["sequence-classification"][1])
    path = str(tmp_path / "train.jsonl")
    data = read_task_data(
        TaskSettings(kind="sequence-classification", train=[path], dev=[path]),
        target_sentences=tiny.SWAHILI.splitlines(),
    )
    tiny.save(tiny.model("bert", layers=4, initializer_range=0.1), tmp_path / "mmt", "bert")
    copy_student(tmp_path / "mmt", [2, 4], output=tmp_path / "small")
    fit = replace(TRAINING, epochs=1.0)
    run(tmp_path / "mmt", data, tmp_path / "teacher", settings=FinetuneSettings(sparse=None, training=fit))
    return data, tmp_path


def run(start, data, output, **options):
    work = output.with_name(output.name + "-work")
    return fitting.fit(start, data, output, max_length=32, work=work, label="", **options)


def losses_of(work):
    lines = [json.loads(line) for line in (work / "train_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_kept_or_not_the_same_is_learnt_and_nothing_is_left(models, monkeypatch):
    data, folder = models
    passes = []
    of_the_teacher = Distiller._run_teacher

    def counted(self, batch):
        passes.append(len(batch["input_ids"]))
        return of_the_teacher(self, batch)

    monkeypatch.setattr(Distiller, "_run_teacher", counted)
    found = {}
    for name, gigabytes in (("kept", 5.0), ("plain", 0.0)):
        passes.clear()
        settings = replace(SETTINGS, kept_gigabytes=gigabytes)
        run(folder / "small", data, folder / name, settings=settings, teacher=folder / "teacher")
        found[name] = losses_of(folder / f"{name}-work"), sum(passes)
    assert found["kept"][0] == pytest.approx(found["plain"][0], rel=1e-5)
    assert found["plain"][1] == 60 and found["kept"][1] == 20
    assert not (folder / "kept-work/teacher").exists()


@pytest.mark.parametrize(
    "settings", [SETTINGS, replace(SETTINGS, sparse=SparseSettings(density=0.2, dense_epochs=1.0, sparse_epochs=2.0))]
)
def test_an_interrupted_training_ends_bit_identically(models, monkeypatch, settings):
    data, folder = models
    run(folder / "small", data, folder / "whole", settings=settings, teacher=folder / "teacher")
    forward, calls = Distiller.forward, []

    def stopping(self, **batch):
        calls.append(1)
        if len(calls) in (4, 9):
            raise Stopped
        return forward(self, **batch)

    monkeypatch.setattr(Distiller, "forward", stopping)
    for _ in range(2):
        with pytest.raises(Stopped):
            run(folder / "small", data, folder / "cut", settings=settings, teacher=folder / "teacher")
        assert list((folder / "cut-work/teacher").glob("*.bin"))
    for file in (folder / "cut-work/teacher").glob("*.bin"):
        file.unlink()  # it is said again, and is the same
    run(folder / "small", data, folder / "cut", settings=settings, teacher=folder / "teacher")
    ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


class Peeking(Term):
    """A term from elsewhere, which does not say that the teacher may be gone."""

    NAME = "peeking"

    def loss(self, compared):
        return compared.got.last.mean() * 0


class OtherRows(SequenceClassification):
    """A task from elsewhere that compares something else."""

    kind = "other-rows"

    def prediction_pairs(self, student, teacher, batch):
        return super().prediction_pairs(student, teacher, batch)


def test_students_of_one_run_share_what_it_said(models, monkeypatch):
    """A second student of other layers finds it there; each is bit for bit as if it had been trained alone."""
    data, folder = models
    monkeypatch.setattr(module_under_test, "BATCH_TOKENS", 40)
    copy_student(folder / "mmt", [1, 3, 4], output=folder / "other")
    passes = []
    of_the_teacher = Distiller._run_teacher

    def counted(self, batch):
        passes.append(len(batch["input_ids"]))
        return of_the_teacher(self, batch)

    monkeypatch.setattr(Distiller, "_run_teacher", counted)
    common = {"teacher_folder": folder / "said", "beside": ((2, 4), (1, 3, 4))}
    for name in ("small", "other"):
        options = {"settings": SETTINGS, "teacher": folder / "teacher"}
        run(folder / name, data, folder / f"{name}-alone", **options)
        passes.clear()
        run(folder / name, data, folder / f"{name}-together", **options, **common)
        # The first asks for all 20 features; the second sees by one batch what a pass leaves.
        assert (sum(passes) == 20) if name == "small" else (len(passes) == 1 and passes[0] < 10)
        ours, theirs = (load_file(folder / f"{name}-{way}/model.safetensors") for way in ("alone", "together"))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert len(list((folder / "said").glob("*/kept.json"))) == 1
    assert not (folder / "small-together-work/teacher").exists()


def test_when_it_is_kept(models):
    data, folder = models
    tokenizer = tiny.tokenizer("bert")
    features = data.task.encode(data.train, tokenizer, 32, labels=data.labels)

    def kept(settings, task=data.task):
        mixed = MixedData([dict(one) for one in features], [], ratio=0.0)
        how = Fitting(data=replace(data, task=task), settings=settings, folder=folder / "work")
        return _kept_teacher(mixed, how, settings, task.collate(tokenizer))

    def epochs(number):
        return replace(SETTINGS, training=replace(TRAINING, epochs=number))

    assert kept(epochs(3.0)) is not None
    assert kept(epochs(1.0)) is None  # nothing is seen twice
    assert kept(replace(SETTINGS, kept_gigabytes=0.0)) is None
    assert kept(replace(SETTINGS, training=replace(TRAINING, compile=True))) is None
    # Both phases of a sparse fine-tuning read the same.
    assert kept(replace(SETTINGS, sparse=SparseSettings(dense_epochs=1.0, sparse_epochs=1.0))) is not None
    assert kept(replace(SETTINGS, objective=ObjectiveSettings(terms={"peeking": 1.0}))) is None
    assert kept(epochs(3.0), OtherRows()) is None
    without_prediction = ObjectiveSettings(attention=1.0, hidden=1.0)
    assert kept(replace(SETTINGS, objective=without_prediction), OtherRows()) is not None


def test_needs_add_up():
    assert (Needs(last=True) | Needs(head=True)) == Needs(last=True, head=True)
