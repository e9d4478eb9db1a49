"""Models that are broken in every way that we know: nothing runs on them, and one line says what is wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from fitting import fit
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from bistil.commands.sft import merge
from bistil.distillation.general import distill_general
from bistil.distillation.student import copy_student
from bistil.distillation.task import read_task_data
from bistil.errors import ArtefactError, BistilError
from bistil.measuring.benchmark import benchmark
from bistil.measuring.evaluation import evaluate_folder
from bistil.models.auto import AutoModelForDependencyParsing
from bistil.models.families import base_prefix, family_of
from bistil.models.loading import load_model, read_config, task_of
from bistil.models.tokenizers import load_tokenizer
from bistil.runtime.artefacts import check_product, file_digest, manifest
from bistil.runtime.insides import panics_as_errors
from bistil.settings.recipe import (
    FinetuneSettings,
    Phase1Settings,
    Phase2Settings,
    StudentSettings,
    TaskSettings,
    TrainingSettings,
)
from bistil.sparse import Provenance, SparseDelta, SparseFineTuning
from bistil.sparse.language import AdaptSettings, adapt
from bistil.tasks import get_task
from bistil.vocabulary import kept_ids, trim_vocabulary
from bistil.vocabulary.restoring import restore_vocabulary

LAYERS, LABELS = 3, ["O", "B-LOC"]
HEADS = {"masked-lm": AutoModelForMaskedLM, "token-classification": AutoModelForTokenClassification}
TRAINING = TrainingSettings(steps=1, batch_size=2, checkpoint_steps=10)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def sound(request, tmp_path_factory):
    """Per kind, a sound folder as this package writes them, with a list of its files; and the files to work with."""
    folder = tmp_path_factory.mktemp(request.param)
    for kind, head in HEADS.items():
        labels = {"id2label": dict(enumerate(LABELS))} if kind == "token-classification" else {}
        model = tiny.model(request.param, head=head, layers=LAYERS, **labels)
        tiny.save(model, folder / kind, request.param)
    (folder / "en.txt").write_text(tiny.ENGLISH * 4, encoding="utf-8")
    (folder / "sw.txt").write_text(tiny.SWAHILI * 4, encoding="utf-8")
    rows = [f"{word} {'B-LOC' if word == 'Nairobi' else 'O'}" for word in ("in", "Nairobi", "it", "rains")]
    (folder / "ner.conll").write_text("\n".join(rows) + "\n\n" + "\n".join(rows) + "\n", encoding="utf-8")
    encoder = load_model(folder / "masked-lm")[0]
    name = family_of(encoder).prefix(encoder) + family_of(encoder).word_embeddings
    delta = SparseDelta(torch.tensor([3]), torch.tensor([0.5]), tuple(encoder.get_parameter(name).shape))
    SparseFineTuning({name: delta}, {}, Provenance(kind="language")).save(folder / "sft")
    return folder


class Uses:
    """Everything that is done with a model, as short as it goes. `work` is a place to write to."""

    def __init__(self, files: Path, work: Path) -> None:
        self.files, self.work, self.outputs = files, work, 0

    def output(self) -> Path:
        self.outputs += 1
        return self.work / f"output-{self.outputs}"

    def evaluate(self, model):
        evaluate_folder(model, task="token-classification", files=[self.files / "ner.conll"], bootstrap_samples=0)

    def finetune(self, model):
        data = read_task_data(TaskSettings(kind="token-classification", train=[str(self.files / "ner.conll")]))
        fit(model, data, self.output(), settings=FinetuneSettings(sparse=None, training=TRAINING),
            max_length=32, work=self.output(), label="test")  # fmt: skip

    def benchmark(self, model):
        benchmark({"m": model}, texts=["The cat sat."], rounds=1)

    def distill(self, model):
        distill_general(
            model, [StudentSettings(name="s", depth=2)],
            {code: [self.files / f"{code}.txt"] for code in ("en", "sw")}, self.output(),
            settings=Phase1Settings(block_length=16, training=TRAINING), seed=0, work=self.output(),
        )  # fmt: skip

    def adapt(self, model):
        settings = AdaptSettings(steps=1, block_length=16, training=TRAINING)
        adapt(str(model), [self.files / "sw.txt"], self.output(), language="sw", settings=settings, work=self.output())

    def trim(self, model):
        trim_vocabulary(model, {"en": [self.files / "en.txt"], "sw": [self.files / "sw.txt"]}, self.output())

    def merge(self, model):
        merge(str(model), [str(self.files / "sft")], self.output(), 1.0, False)


USES = {
    "evaluate": "token-classification",
    "finetune": "token-classification",
    "benchmark": "token-classification",
    "distill": "masked-lm",
    "adapt": "masked-lm",
    "trim": "masked-lm",
    "merge": "masked-lm",
}


# What is broken; each gets the weights by name (and the folder, the names of the encoder's layers) and says what the
# message must name.


def change(folder, action):
    path = folder / "model.safetensors"
    weights = load_file(path)
    action(weights)
    save_file(weights, path, metadata={"format": "pt"})


def last_layer(weights):
    return [name for name in weights if f".{LAYERS - 1}." in name]


def lacks_a_tensor(folder):
    name = sorted(last_layer(load_file(folder / "model.safetensors")))[0]
    change(folder, lambda weights: weights.pop(name))
    return f"lack the tensor {name}; "


def lacks_a_layer(folder):
    count = len(last_layer(load_file(folder / "model.safetensors")))
    change(folder, lambda weights: [weights.pop(name) for name in last_layer(weights)])
    return f" and {count - 1} more; "


def has_too_many_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    depth = next(key for key in ("num_hidden_layers", "n_layers") if key in config)
    config[depth] = LAYERS - 1
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:-1]
    (folder / "config.json").write_text(json.dumps(config))
    return f"config.json has {LAYERS - 1} layers, its weights {LAYERS}"


def has_another_shape(folder):
    def narrow(weights):
        name = last_layer(weights)[0]
        weights[name] = weights[name][:-1].clone()

    change(folder, narrow)
    return "do not fit its config.json"


def has_a_value_that_is_no_number(folder):
    def spoil(weights):
        weights[last_layer(weights)[0]].view(-1)[0] = torch.nan

    change(folder, spoil)
    return "NaN or infinite"


def holds_whole_numbers(folder):
    def round_off(weights):
        name = last_layer(weights)[0]
        weights[name] = weights[name].int()

    change(folder, round_off)
    return "holds whole numbers where weights belong"


def leads_nowhere(folder):
    path = folder / "model.safetensors"
    path.unlink()
    path.symlink_to(folder / "nothing.safetensors")
    return "cannot load"


def is_cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "cannot load"


def flip(path, *, at=-5):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def write_manifest(folder):
    (folder / "bistil.json").write_text(json.dumps({"files": manifest(folder)}))


def has_a_flipped_byte(folder):
    write_manifest(folder)
    flip(folder / "model.safetensors")
    return "is damaged: model.safetensors is not what was written"


def has_a_flipped_byte_in_its_tokenizer(folder):
    write_manifest(folder)
    flip(folder / "tokenizer.json")
    return "is damaged: tokenizer.json is not what was written"


BROKEN = [
    lacks_a_tensor,
    lacks_a_layer,
    has_too_many_layers,
    has_another_shape,
    has_a_value_that_is_no_number,
    holds_whole_numbers,
    leads_nowhere,
    is_cut_short,
    has_a_flipped_byte,
    has_a_flipped_byte_in_its_tokenizer,
]


def refused(action, *arguments, **options):
    """The one line that an action is refused with."""
    with pytest.raises(ArtefactError) as error:
        action(*arguments, **options)
    assert len(str(error.value).splitlines()) == 1
    assert "ignore_mismatched" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__)
def test_nothing_is_done_with_a_broken_model(sound, tmp_path, broken):
    expected = {}
    for kind in HEADS:
        shutil.copytree(sound / kind, tmp_path / kind)
        expected[kind] = broken(tmp_path / kind)
    uses = Uses(sound, tmp_path / "work")
    for use, kind in USES.items():
        message = refused(getattr(uses, use), tmp_path / kind)
        assert expected[kind] in message and str(tmp_path / kind) in message, use
    assert not list((tmp_path / "work").rglob("*.safetensors"))


def test_all_is_done_with_sound_ones(sound, tmp_path, capfd):
    uses = Uses(sound, tmp_path / "work")
    for kind in HEADS:
        shutil.copytree(sound / kind, tmp_path / kind)
        write_manifest(tmp_path / kind)
    for use, kind in USES.items():
        getattr(uses, use)(tmp_path / kind)
    assert "new one is made" not in capfd.readouterr().err


def lacks_its_head(folder):
    """Leaves the encoder alone; a tied output matrix is the encoder's."""
    model = load_model(folder)[0]
    prefix = base_prefix(model)
    change(folder, lambda weights: [weights.pop(name) for name in list(weights) if not name.startswith(prefix)])


def test_a_lost_head_is_never_a_random_one(sound, tmp_path):
    if read_config(sound / "masked-lm").model_type == "eurobert":
        pytest.skip("its masked-LM head is the embedding matrix, which it cannot lose by itself")
    for kind in HEADS:
        shutil.copytree(sound / kind, tmp_path / kind)
        lacks_its_head(tmp_path / kind)
    uses = Uses(sound, tmp_path / "work")
    for use in ("evaluate", "finetune", "benchmark", "distill", "merge"):
        assert "lack the tensor" in refused(getattr(uses, use), tmp_path / USES[use])
    # A new masked-LM head may be learnt, and a lacking one stays lacking.
    uses.adapt(tmp_path / "masked-lm")
    trim_vocabulary(tmp_path / "masked-lm", {"en": [sound / "en.txt"]}, tmp_path / "trimmed")
    assert set(load_file(tmp_path / "trimmed/model.safetensors")) == set(
        load_file(tmp_path / "masked-lm/model.safetensors")
    )


def test_an_encoder_has_no_head_to_score_or_to_learn_from(sound, tmp_path):
    encoder = sound / "masked-lm"
    uses = Uses(sound, tmp_path)
    line = f"{encoder} has no head for token-classification: fine-tune it first, with `bistil finetune`"
    assert refused(uses.evaluate, encoder) == line
    data = read_task_data(TaskSettings(kind="token-classification", train=[str(sound / "ner.conll")]))
    phase2 = Phase2Settings(sparse=None, training=TRAINING, target_text=0.0)
    assert line == refused(
        fit, encoder, data, tmp_path / "o", teacher=encoder, settings=phase2, max_length=32,
        work=tmp_path / "w", label="test",
    )  # fmt: skip
    for kind in ("sequence-classification", "question-answering", "dependency-parsing"):
        for folder in (encoder, sound / "token-classification"):
            assert refused(get_task(kind).build_model, folder, None).startswith(f"{folder} has no head for {kind}: ")


def test_a_damaged_base_is_not_restored_or_copied(sound, tmp_path):
    uses = Uses(sound, tmp_path)
    trimmed, data = uses.output(), {"en": [sound / "en.txt"], "sw": [sound / "sw.txt"]}
    trim_vocabulary(sound / "token-classification", data, trimmed)
    restore_vocabulary(trimmed, base=sound / "token-classification", kept=kept_ids(trimmed), output=tmp_path / "whole")
    shutil.copytree(sound / "token-classification", tmp_path / "base")
    lacks_a_layer(tmp_path / "base")
    refused(restore_vocabulary, trimmed, base=tmp_path / "base", kept=kept_ids(trimmed), output=tmp_path / "again")
    refused(copy_student, tmp_path / "base", [1, 2], output=tmp_path / "student")
    refused(AutoModelForDependencyParsing.from_pretrained, tmp_path / "base")
    assert not (tmp_path / "again").exists() and not (tmp_path / "student").exists()


def test_a_head_for_other_labels_or_another_task_gives_way(sound, tmp_path, capfd):
    tagger, task = sound / "token-classification", get_task("token-classification")
    same = task.build_model(tagger, LABELS, seed=5)
    assert capfd.readouterr().err == ""
    known = load_model(tagger)[0].state_dict()
    assert all(torch.equal(value, known[name]) for name, value in same.state_dict().items())
    # As many labels as before, and more: the new head is the one that a bare encoder would get.
    load_model(tagger, AutoModel)[0].save_pretrained(tmp_path / "encoder")
    change(tmp_path / "encoder", lambda w: [w.pop(name) for name in list(w) if name.startswith("pooler.")])
    for labels in (["O", "B-PER"], ["O", "B-LOC", "I-LOC"]):
        new = task.build_model(tagger, labels, seed=5)
        assert f"{tagger} has a head for labels O, B-LOC; a new one is made for {', '.join(labels)}" in (
            capfd.readouterr().err
        )
        fresh = task.build_model(tmp_path / "encoder", labels, seed=5)
        assert all(torch.equal(a, b) for a, b in zip(new.parameters(), fresh.parameters(), strict=True))
        assert new.name_or_path == str(tagger)
    classifier = get_task("sequence-classification").build_model(tagger, LABELS, seed=5)
    fresh = get_task("sequence-classification").build_model(tmp_path / "encoder", LABELS, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(classifier.parameters(), fresh.parameters(), strict=True))
    assert capfd.readouterr().err == ""


def test_a_head_of_the_same_class_for_another_problem_is_refused_or_gives_way(tmp_path, capfd):
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    model = tiny.model("bert", layers=2, head=AutoModelForSequenceClassification, **labels)
    task = get_task("sequence-classification")
    # Nobody says what a published head is for; one that says it is for something else is no head for this.
    for problem, kept in ((None, True), ("single_label_classification", True), ("multi_label_classification", False)):
        model.config.problem_type = problem
        model.save_pretrained(tmp_path / "classifier")
        start = task.build_model(tmp_path / "classifier", LABELS, seed=5)
        assert torch.equal(start.classifier.weight, model.classifier.weight) == kept
        assert start.config.problem_type == "single_label_classification"
        said = capfd.readouterr().err
        if kept:
            assert said == ""
            assert task.build_model(tmp_path / "classifier", None).config.problem_type == "single_label_classification"
        else:
            assert "has a head for multi_label_classification; a new one is made for single_label" in said
            refusal = refused(task.build_model, tmp_path / "classifier", None)
            assert "was trained for multi_label_classification (problem_type in its config.json)" in refusal


def test_what_a_head_is_for_is_in_its_class_s_name():
    assert task_of("XLMRobertaForTokenClassification") == task_of("AutoModelForTokenClassification")
    assert task_of("BertForMaskedLM") == "masked-lm"
    assert task_of("DistilBertForDependencyParsing") == "dependency-parsing"
    assert task_of("BertModel") == task_of("AutoModel") == ""


def test_a_pooler_that_no_head_reads_may_lack(tmp_path):
    tiny.model("bert", layers=2).save_pretrained(tmp_path / "encoder")
    tiny.model("bert", layers=2, head=AutoModelForSequenceClassification).save_pretrained(tmp_path / "classifier")
    for folder, prefix in (("encoder", ""), ("classifier", "bert.")):
        change(tmp_path / folder, lambda w, p=prefix: [w.pop(f"{p}pooler.dense.{name}") for name in ("weight", "bias")])
    first, made = load_model(tmp_path / "encoder")
    assert made == {"pooler.dense.weight", "pooler.dense.bias"}
    # What is made anew is the same in every process: it depends on a seed alone.
    assert torch.equal(first.pooler.dense.weight, load_model(tmp_path / "encoder")[0].pooler.dense.weight)
    assert "lack the tensor bert.pooler.dense.weight and 1 more" in refused(load_model, tmp_path / "classifier")


def test_a_question_answering_head_has_no_labels_of_its_own(tmp_path, capfd):
    # Published ones are called LABEL_0 and LABEL_1.
    model = tiny.model("bert", layers=2, head=AutoModelForQuestionAnswering)
    model.save_pretrained(tmp_path / "qa")
    again = get_task("question-answering").build_model(tmp_path / "qa", ["start", "end"], seed=1)
    assert torch.equal(again.qa_outputs.weight, model.qa_outputs.weight)
    assert capfd.readouterr().err == ""


def test_a_parser_of_another_projection_gets_a_new_head(tmp_path, capfd):
    tiny.model("bert", layers=2).save_pretrained(tmp_path / "encoder")
    small = get_task("dependency-parsing", parser_projection=4).build_model(tmp_path / "encoder", ["dep", "root"])
    small.save_pretrained(tmp_path / "parser")
    wide = get_task("dependency-parsing", parser_projection=8).build_model(tmp_path / "parser", ["dep", "root"])
    assert wide.project_heads.weight.shape == (8, 32)
    assert "has a head of another size; a new one is made" in capfd.readouterr().err
    # A trained parser has the projection that it was trained with.
    assert get_task("dependency-parsing", parser_projection=8).build_model(tmp_path / "parser", None).arcs.weight.shape
    loaded = AutoModelForDependencyParsing.from_pretrained(tmp_path / "parser")
    assert torch.equal(loaded.project_heads.weight, small.project_heads.weight)


def test_a_head_that_only_a_part_of_comes_with_the_sft_is_refused(tmp_path):
    tiny.save(tiny.model("bert", layers=2), tmp_path / "base")
    half = SparseFineTuning(
        {}, {"classifier.bias": torch.zeros(2)}, Provenance(architecture="BertForTokenClassification", labels=LABELS)
    )
    half.save(tmp_path / "sft")
    message = refused(merge, str(tmp_path / "base"), [str(tmp_path / "sft")], tmp_path / "merged", 1.0, False)
    assert "no SFT brings the head's classifier.weight" in message
    assert not (tmp_path / "merged").exists()


def test_what_a_folder_says_of_its_files_is_compared(tmp_path):
    folder = tmp_path / "m"
    tiny.save(tiny.model("bert", layers=1), folder)
    (folder / "README.md").write_text("a card")
    check_product(folder)  # says nothing of its files
    write_manifest(folder)
    known = json.loads((folder / "bistil.json").read_text())["files"]
    assert known == {
        name: file_digest(folder / name)
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    (folder / "README.md").write_text("a card, edited")
    (folder / "notes.txt").write_text("mine")
    check_product(folder)
    flip(folder / "tokenizer.json")
    for use in (load_tokenizer, load_model, kept_ids, SparseFineTuning.load):
        assert "tokenizer.json is not what was written" in refused(use, str(folder))
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(check_product, folder)
    (folder / "bistil.json").write_text("{")
    assert "bistil.json cannot be read" in refused(check_product, folder)


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    import hashlib
    import os

    calls, real = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, name: calls.append(stream.name) or real(stream, name))
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    os.utime(path, ns=(10**18, 10**18))
    assert {file_digest(path) for _ in range(3)} == {hashlib.sha256(b"abc").hexdigest()}
    assert len(calls) == 1
    # Written this moment: the clock of the file system may not tell the next change from it.
    path.write_bytes(b"abd")
    assert file_digest(path) == hashlib.sha256(b"abd").hexdigest()
    path.write_bytes(b"abe")
    assert file_digest(path) == hashlib.sha256(b"abe").hexdigest()


def test_a_tokenizer_that_leaves_nothing_of_a_text_is_one_line(tmp_path):
    tiny.model("bert").save_pretrained(tmp_path)
    tiny.tokenizer("bert").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text())
    state["post_processor"]["single"] = []
    file.write_text(json.dumps(state))
    with pytest.raises(ArtefactError, match="leaves nothing of a text"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("empty", ["", {"content": "", "__type": "AddedToken"}])
def test_an_unknown_token_without_a_letter_is_one_line(tmp_path, empty):
    tiny.model("bert").save_pretrained(tmp_path)
    tiny.tokenizer("bert").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"unk_token": empty}))
    with pytest.raises(ArtefactError, match="'unk_token' is an empty text"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("key", ["hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"])
def test_a_configuration_whose_numbers_are_none_is_one_line(tmp_path, key):
    tiny.model("bert").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: float("nan")}))
    with pytest.raises(BistilError, match=r"config.json.* NaN"):
        load_model(tmp_path)


@pytest.mark.parametrize("template", ["single", "pair"])
def test_a_tokenizer_whose_template_names_a_token_that_it_lacks_is_one_line(tmp_path, capfd, template):
    """The library panics on it, which is no Exception, and prints where in its source."""
    tiny.save(tiny.model("bert", layers=1), tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    state = json.loads(file.read_text())
    state["post_processor"][template].append({"SpecialToken": {"id": "[GONE]", "type_id": 0}})
    file.write_text(json.dumps(state))
    with pytest.raises(ArtefactError, match=r"the tokenizer of .*m cannot be read: .+") as caught:
        load_tokenizer(str(tmp_path / "m"))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_other_errors_pass_through_what_catches_panics(capfd):
    with pytest.raises(KeyboardInterrupt), panics_as_errors():
        raise KeyboardInterrupt
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"
