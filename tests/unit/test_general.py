"""Parts of phase 1: the teacher's language SFTs, parameters without gradient, a loss that is not a number."""

import pytest
import tiny
import torch
from transformers import AutoModel

from bistil.distillation.general import _freeze, distill
from bistil.distillation.module import Distiller
from bistil.distillation.student import make_student
from bistil.errors import ArtefactError, DivergenceError, InputError
from bistil.settings.recipe import ObjectiveSettings, Phase1Settings, StudentSettings, TrainingSettings, TrimSettings
from bistil.sparse import SparseDelta, SparseFineTuning, fingerprint
from bistil.sparse.wearing import Wardrobe, dressed_copy, kept_in, own_sft
from bistil.text.schedule import BlockCollator
from bistil.training.loop import train
from bistil.vocabulary import kept_ids, trim_vocabulary


def sft(model, seed):
    """A sparse fine-tuning of a twentieth of two matrices, one of them the word embeddings."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.2.output.dense.weight"):
        parameter = model.get_parameter(name)
        indices = torch.randperm(parameter.numel(), generator=generator)[: parameter.numel() // 20].sort().values
        values = torch.randn(len(indices), generator=generator)
        deltas[name] = SparseDelta(indices, values, tuple(parameter.shape))
    return SparseFineTuning(deltas)


@pytest.fixture
def dressed(tmp_path):
    """A teacher, folders of its SFTs, and what it is under each."""
    model = tiny.model("bert")
    folders, expected = {}, {None: {n: v.clone() for n, v in model.state_dict().items()}}
    for seed, language in enumerate(("en", "sw")):
        one = sft(model, seed)
        one.save(tmp_path / language)
        folders[language] = tmp_path / language
        expected[language] = {n: v.clone() for n, v in expected[None].items()}
        for name, delta in one.deltas.items():
            expected[language][name].view(-1)[delta.indices] += delta.values
    return model, folders, expected


def test_the_teacher_wears_the_batchs_language_exactly_after_any_number_of_switches(dressed):
    model, folders, expected = dressed
    wardrobe = Wardrobe(model, folders)
    generator = torch.Generator().manual_seed(0)
    for choice in torch.randint(4, (300,), generator=generator).tolist():
        language = ("en", "sw", "ha", None)[choice]
        wardrobe.wear(language)
        wanted = expected[language if language in expected else None]
        assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_the_task_teachers_start_is_the_teacher_in_its_sft_for_good(dressed, tmp_path):
    model, folders, expected = dressed
    tiny.save(model, tmp_path / "teacher", "bert")
    output = dressed_copy(tmp_path / "teacher", folders["sw"], output=tmp_path / "dressed")
    worn = AutoModel.from_pretrained(output).state_dict()
    assert all(torch.equal(value, expected["sw"][name]) for name, value in worn.items())


def test_batches_of_a_language_see_the_teacher_in_its_sft(dressed):
    model, folders, expected = dressed
    student = make_student(model, [3, 6])
    wardrobe = Wardrobe(model, folders)
    objective = {"s": ObjectiveSettings()}
    module = Distiller(model, {"s": student}, objectives=objective, wear=wardrobe.wear)
    ids = torch.arange(5, 55).view(2, 25)
    losses = {language: module(input_ids=ids, language=language)["loss"].item() for language in ("en", "sw", "ha")}
    for language, loss in losses.items():
        other = tiny.model("bert")
        other.load_state_dict(expected.get(language, expected[None]))
        plain = Distiller(other, {"s": student}, objectives=objective)
        assert loss == plain(input_ids=ids)["loss"].item()
    assert len(set(losses.values())) == 3


def test_an_sft_of_another_model_is_refused_before_training(dressed, tmp_path):
    _, folders, _ = dressed
    with pytest.raises(ArtefactError):
        Wardrobe(tiny.model("bert", hidden=48), folders)
    with pytest.raises(InputError):
        Wardrobe(tiny.model("bert"), {"en": tmp_path / "none"})


def test_an_sft_of_another_base_is_refused_unless_forced(dressed, tmp_path):
    model, _, _ = dressed
    made_for = sft(model, 0)
    made_for.provenance.base, made_for.provenance.fingerprint = "its base", fingerprint(model)
    made_for.save(tmp_path / "own")
    other = tiny.model("bert", seed=9)
    before = {name: p.detach().clone() for name, p in other.named_parameters()}
    with pytest.raises(ArtefactError, match="made for its base"):
        Wardrobe(other, {"en": tmp_path / "own"})
    assert all(torch.equal(p, before[name]) for name, p in other.named_parameters())
    Wardrobe(other, {"en": tmp_path / "own"}, force=True)
    Wardrobe(model, {"en": tmp_path / "own"})


def test_an_sft_of_the_untrimmed_base_knows_its_base_after_trimming(dressed, tmp_path):
    model, _, _ = dressed
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI)
    for name, base in (("one", model), ("two", tiny.model("bert", seed=9))):
        tiny.save(base, tmp_path / name, "bert")
        trim_vocabulary(
            tmp_path / name, {"sw": [tmp_path / "sw.txt"]}, tmp_path / f"{name}-trimmed",
            settings=TrimSettings(threshold=1e-3), verify=False,
        )  # fmt: skip
    made_for = sft(model, 0)
    made_for.provenance.fingerprint = fingerprint(model)
    made_for.save(tmp_path / "own")
    small, other = (AutoModel.from_pretrained(tmp_path / f"{name}-trimmed") for name in ("one", "two"))
    kept = kept_ids(tmp_path / "one-trimmed")
    assert len(kept) < len(tiny.tokenizer("bert"))
    with own_sft(tmp_path / "own", small, kept_in(tmp_path / "one-trimmed")).applied(small), made_for.applied(model):
        assert torch.equal(small.get_input_embeddings().weight, model.get_input_embeddings().weight[kept])
    with pytest.raises(ArtefactError, match="another base"):
        own_sft(tmp_path / "own", other, kept_in(tmp_path / "two-trimmed"))
    own_sft(tmp_path / "own", other, kept_in(tmp_path / "two-trimmed"), force=True).apply(other)


def test_a_work_folder_of_another_teacher_text_or_sft_is_not_gone_on_with(dressed, tmp_path):
    teacher, folders, _ = dressed
    other = tiny.model("bert")
    with torch.no_grad():
        other.get_parameter("encoder.layer.1.output.dense.weight").mul_(1.5)
    lines = {"en": tiny.ENGLISH.splitlines(), "sw": tiny.SWAHILI.splitlines()}
    settings = Phase1Settings(
        block_length=16, held_out_blocks=1, training=TrainingSettings(steps=2, batch_size=4, learning_rate=1e-3)
    )

    def learnt(folder, model, texts, sfts):
        found = distill(
            model, tiny.tokenizer("bert"), texts, settings=settings, folder=tmp_path / folder, language_sfts=sfts,
            students=[StudentSettings(name="small", reduction=2)], force_sfts=True,
        )  # fmt: skip
        return {name: value.clone() for name, value in found["small"].state_dict().items()}

    cases = {
        "first": (teacher, lines, {"en": folders["sw"]}),
        "teacher": (other, lines, {"en": folders["sw"]}),
        "text": (other, {**lines, "sw": lines["sw"][::-1]}, {"en": folders["sw"]}),
        "sft": (other, {**lines, "sw": lines["sw"][::-1]}, {"en": folders["en"]}),
    }
    before = None
    for name, case in cases.items():
        shared, alone = learnt("shared", *case), learnt(name, *case)
        assert all(torch.equal(value, shared[key]) for key, value in alone.items()), name
        assert before is None or not all(torch.equal(value, before[key]) for key, value in alone.items()), name
        before = alone


def test_what_gets_no_gradient_is_not_trained():
    teacher = tiny.masked_lm("bert")
    module = Distiller(teacher, {"s": make_student(teacher, [3, 6])}, objectives={"s": ObjectiveSettings()})
    collate = BlockCollator(tokenizer=tiny.tokenizer())
    _freeze(module, collate, {"input_ids": torch.arange(5, 50).numpy(), "language": "en"}, embeddings=False)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert not any("cls." in name for name in trained)
    assert {"students.s.bert.embeddings.word_embeddings.weight"} <= trained
    module(input_ids=torch.arange(5, 25).view(2, 10))["loss"].backward()
    assert {name for name, p in module.named_parameters() if p.grad is not None} == trained


def test_a_loss_that_is_not_a_number_names_step_language_and_batch(tmp_path):
    class Poisoned(Distiller):
        def forward(self, **batch):
            out = super().forward(**batch)
            return {**out, "loss": out["loss"] * (torch.nan if batch["input_ids"].max() == 25 else 1.0)}

    class InOrder(list):
        ordered = True

    teacher = tiny.model("bert")
    module = Poisoned(teacher, {"s": make_student(teacher, [3, 6])}, objectives={"s": ObjectiveSettings()})
    data = InOrder({"input_ids": torch.arange(5, 13).numpy() + i, "language": "sw", "position": i} for i in range(16))
    settings = TrainingSettings(steps=8, batch_size=2, checkpoint_steps=2)
    collate = BlockCollator(tokenizer=tiny.tokenizer())
    with pytest.raises(DivergenceError, match=r"loss is nan at step 7, language sw, batch [0-9a-f]{12}"):
        train(module, data, collate=collate, settings=settings, folder=tmp_path / "w", seed=0)
    assert (tmp_path / "w" / "checkpoint-6" / "complete").exists()
