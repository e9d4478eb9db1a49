"""Names to models and their tokenizers, on tiny models in folders and on a small hub on this machine."""

import importlib.util
import io
import json
import shutil
from pathlib import Path

import pytest
import tiny
import tokenizer_families as families
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from small_hub import Hub, serving
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.models.loading import load_model
from bistil.models.names import model_folder, resolve_model
from bistil.models.tokenizers import PROBE, definition, load_tokenizer, write_tokenizer
from bistil.tasks import get_task


@pytest.fixture
def folder(tmp_path):
    tiny.save(tiny.model("xlm-roberta", layers=2), tmp_path / "model", "xlm-roberta")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_folders_and_hub_names(folder, monkeypatch):
    assert resolve_model(str(folder)) == str(folder)
    monkeypatch.chdir(folder.parent)
    assert resolve_model("model") == "model"
    assert resolve_model("model/") == "model"
    assert resolve_model("xlm-roberta-base") == "xlm-roberta-base"
    assert resolve_model("microsoft/mdeberta-v3-base") == "microsoft/mdeberta-v3-base"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere/", "~/no/such/thing", "runs/one/student"])
def test_paths_that_are_not_there(name):
    with pytest.raises(InputError, match="no such folder"):
        resolve_model(name)


def test_other_things_than_models(tmp_path):
    with pytest.raises(ArtefactError, match=r"config\.json is missing"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.bin").touch()
    with pytest.raises(InputError, match="is a file"):
        resolve_model(str(tmp_path / "model.bin"))
    with pytest.raises(InputError, match="empty"):
        resolve_model(" ")


def test_a_misspelt_name_is_answered_at_once_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    for name, near in (("e5-smal", "e5-small"), ("xlm-robreta-base", "xlm-roberta-base")):
        with pytest.raises(InputError, match=f"^no model '{name}': did you mean {near}\\?$"):
            model_folder(name)
    # A model of its own, though it is not far from another.
    assert resolve_model("roberta-base") == "roberta-base"
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=rf"no such folder: {tmp_path}/teachr: did you mean {tmp_path}/teacher\?$"):
        resolve_model(f"{tmp_path}/teachr")


@pytest.mark.parametrize("inner", ["students/lrf2", "phase1/lrf2", "lrf2"])
def test_a_folder_of_models_is_no_model_but_names_one(tmp_path, inner):
    with pytest.raises(ArtefactError, match=r"holds no model: config\.json is missing"):
        resolve_model(str(tmp_path))
    (tmp_path / inner).mkdir(parents=True)
    (tmp_path / inner / "config.json").write_text("{}")
    (tmp_path / "task-teacher").mkdir()
    (tmp_path / "task-teacher" / "config.json").write_text("{}")
    with pytest.raises(ArtefactError) as error:
        resolve_model(str(tmp_path))
    assert str(error.value).endswith(f"no model itself, but others: name one of them, such as {tmp_path / inner}")


def test_packaged_teacher_has_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr("bistil.models.names.e5_small_folder", lambda: tmp_path)
    assert resolve_model("e5-small") == str(tmp_path)


def test_tokenizer_of_a_folder(folder):
    text = "The cat sat on the mat."
    assert load_tokenizer(str(folder))(text)["input_ids"] == tiny.tokenizer("xlm-roberta")(text)["input_ids"]


def one_line(error):
    return len(str(error.value).splitlines()) == 1


def test_tokenizer_that_is_nowhere():
    with pytest.raises(InputError, match="nobody/nothing") as error:
        load_tokenizer("nobody/nothing")
    assert one_line(error)


def test_tokenizer_missing_and_damaged(folder):
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtefactError, match="tokenizer") as error:
        load_tokenizer(str(folder))
    assert one_line(error)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ArtefactError, match="tokenizer") as error:
        load_tokenizer(str(folder))
    assert one_line(error)


def test_slow_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}', encoding="utf-8")
    assert not AutoTokenizer.from_pretrained(folder).is_fast
    with pytest.raises(ArtefactError, match="slow"):
        load_tokenizer(str(folder))


# The hub


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub with the model org/m, whose files tests may change."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serving(tmp_path / "cache", monkeypatch):
        Hub.repositories["org/m"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        yield Hub.repositories["org/m"]


def pickled(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_pytorch_files_are_fetched_only_where_there_is_nothing_better(hub, folder):
    hub["pytorch_model.bin"] = pickled(load_file(folder / "model.safetensors"))
    found = model_folder("org/m")
    assert "model.safetensors" in names(found) and "pytorch_model.bin" not in names(found)
    del hub["model.safetensors"]
    Hub.repositories["org/bin"] = hub
    found = model_folder("org/bin")
    assert {"pytorch_model.bin", "tokenizer.json"} <= names(found)
    loaded, _ = load_model(found, AutoModel)
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_pytorch_weights_in_shards(hub, folder):
    state = load_file(folder / "model.safetensors")
    del hub["model.safetensors"]
    shards = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(shards.values()):
        hub[file] = pickled({name: value for name, value in state.items() if shards[name] == file})
    hub["pytorch_model.bin.index.json"] = json.dumps({"metadata": {}, "weight_map": shards}).encode()
    found = model_folder("org/m")
    assert set(shards.values()) <= names(found)
    assert torch.equal(load_model(found, AutoModel)[0].state_dict()["pooler.dense.bias"], state["pooler.dense.bias"])


def test_tokenizers_of_all_kinds_are_fetched(hub):
    files = ("spm.model", "sentencepiece.bpe.model", "source.spm", "vocab.json", "merges.txt", "vocab.txt")
    hub.update(dict.fromkeys(files, b"x"))
    assert set(files) <= names(model_folder("org/m", weights=False))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_what_the_cache_lacks_is_fetched_or_named(weights, hub, folder, monkeypatch):
    import huggingface_hub.constants

    if weights == "pytorch_model.bin":
        hub[weights] = pickled(load_file(folder / "model.safetensors"))
        del hub["model.safetensors"]
    part = model_folder("org/m", weights=False)
    assert weights not in names(part)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="org/m") as error:
        model_folder("org/m")
    assert one_line(error)
    assert load_tokenizer("org/m")("The cat")["input_ids"] == tiny.tokenizer("xlm-roberta")("The cat")["input_ids"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert weights in names(model_folder("org/m"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert weights in names(model_folder("org/m"))
    # A cache of another program, without a list of what the repository has.
    shutil.rmtree(part.parents[1] / "trees", ignore_errors=True)
    for list_ in part.parents[1].glob("*.json"):
        list_.unlink()
    (part / weights).unlink()
    with pytest.raises(InputError, match="org/m") as error:
        model_folder("org/m")
    assert one_line(error)


def test_repositories_without_a_model(hub):
    Hub.repositories["org/none"] = {"README.md": b"nothing"}
    with pytest.raises(ArtefactError, match=r"config\.json is missing"):
        model_folder("org/none")
    del hub["model.safetensors"]
    with pytest.raises(InputError, match="lacks its weights") as error:
        model_folder("org/m")
    assert one_line(error)
    with pytest.raises(InputError, match="org/nowhere") as error:
        model_folder("org/nowhere")
    assert one_line(error)


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_no_code_of_a_pickle_ever_runs(folder, tmp_path):
    trace = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"pooler.dense.bias": Evil(trace)}, folder / "pytorch_model.bin")
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()  # it is a real one
    trace.unlink()
    for load in (
        lambda: load_model(folder, AutoModel),
        lambda: get_task("token-classification").build_model(folder, ["O"]),
    ):
        with pytest.raises(ArtefactError, match="cannot load") as error:
            load()
        assert one_line(error)
    assert not trace.exists()


# tokenizer.json and the class that tokenizer_config.json names

NAMED = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}


def lower_casing():
    state = json.loads(families.build("unigram"))
    state["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    return json.dumps(state)


OVERRULED = {
    "lower-casing": (lower_casing, "XLMRobertaTokenizer", "xlm-roberta", NAMED),
    "cased": (lambda: families.build("wordpiece"), "BertTokenizer", "bert", NAMED),
    "cased, without names": (lambda: families.build("wordpiece"), "BertTokenizer", "bert", {"unk_token": "[UNK]"}),
    "other algorithm": (lambda: families.build("unigram"), "BertTokenizer", "bert", NAMED),
    "other algorithm, too": (lambda: families.build("byte-bpe"), "XLMRobertaTokenizer", "xlm-roberta", NAMED),
    "special tokens that are not there": (
        lambda: families.build("byte-bpe"),
        "PreTrainedTokenizerFast",
        "roberta",
        {**NAMED, "mask_token": "[MASK]", "extra_special_tokens": ["[more]", "[user]"]},
    ),
    "code of its own": (lambda: families.build("unigram"), "MadeUpTokenizer", "made-up", NAMED),
}


@pytest.mark.parametrize("kind", OVERRULED)
def test_the_file_decides(kind, tmp_path, capsys):
    built, name, model_type, config = OVERRULED[kind]
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(built(), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    settings = {"tokenizer_class": name, "model_max_length": 77, "padding_side": "right", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.no_padding()
    file.no_truncation()
    loaded = load_tokenizer(str(folder))
    said = capsys.readouterr().err
    assert (
        (name in said)
        == (said.count("\n") == 1)
        == (kind not in ("special tokens that are not there", "code of its own"))
    )
    assert len(loaded) == file.get_vocab_size()
    for text in (*PROBE, "<s> [user] <mask>"):
        assert loaded(text)["input_ids"] == file.encode(text).ids
    roles = {
        role: token for role, token in config.items() if role.endswith("_token") and file.token_to_id(token) is not None
    }
    assert {**loaded.special_tokens_map, **roles, "unk_token": "<unk>"} == loaded.special_tokens_map
    assert max(loaded.all_special_ids) < file.get_vocab_size()
    assert (loaded.model_max_length, loaded.padding_side) == (77, "right")
    # What is written loads with plain transformers as the same tokenizer, without a word.
    again = tmp_path / "again"
    again.mkdir()
    (again / "config.json").write_text(json.dumps({"model_type": model_type}))
    write_tokenizer(loaded, again)
    plain = AutoTokenizer.from_pretrained(again)
    assert definition(plain) == definition(loaded) == definition(load_tokenizer(str(again)))
    for text in PROBE:
        assert plain(text)["input_ids"] == file.encode(text).ids
    assert plain.special_tokens_map == loaded.special_tokens_map
    assert (plain.model_max_length, plain.padding_side, plain.model_input_names) == (
        loaded.model_max_length, loaded.padding_side, loaded.model_input_names,
    )  # fmt: skip
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["BertTokenizer", "XLMRobertaTokenizer", "DebertaV2Tokenizer", "T5Tokenizer", "RobertaTokenizer", "GemmaTokenizer"],
)
def test_a_class_that_agrees_with_its_file_stays(name, tmp_path, capsys):
    tokenizer = families.of_class(name)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    loaded = load_tokenizer(str(tmp_path))
    assert type(loaded) is type(tokenizer) and not capsys.readouterr().err
    assert definition(loaded) == definition(tokenizer)


# A SentencePiece model only


@pytest.fixture
def pieces_only(tmp_path):
    """mDeBERTa's layout, with a model that sentencepiece trained."""
    text = tmp_path / "text"
    text.write_text("\n".join(families.corpus()), encoding="utf-8")
    SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spm"), vocab_size=700, character_coverage=1.0, minloglevel=2,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]",
        unk_piece="[UNK]",
    )  # fmt: skip
    folder = tmp_path / "mdeberta"
    folder.mkdir()
    shutil.copy(tmp_path / "spm.model", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    return folder


def test_a_sentencepiece_model_gives_its_own_pieces(pieces_only, capsys):
    loaded = load_tokenizer(str(pieces_only))
    said = capsys.readouterr().err
    reference = SentencePieceProcessor(model_file=str(pieces_only / "spm.model"))
    differing = 0
    for text in PROBE:
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        differing += reference.encode(text) != ids
    assert (f"in {differing} of {len(PROBE)}" in said) if differing else not said
    for text in tiny.SWAHILI.splitlines():
        assert loaded(text, add_special_tokens=False)["input_ids"] == reference.encode(text)


def test_a_tokenizer_unlike_its_sentencepiece_model_is_named(pieces_only, monkeypatch, capsys):
    monkeypatch.setattr("bistil.models.tokenizers.PROBE", ("Paka aliketi kwenye mkeka.",))
    load_tokenizer(str(pieces_only))
    assert not capsys.readouterr().err
    # Lower-casing is the class's own idea.
    (pieces_only / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    load_tokenizer(str(pieces_only))
    said = capsys.readouterr().err
    assert "sentencepiece" in said and "1 of 1" in said and said.count("\n") == 1


@pytest.mark.parametrize("module", ["sentencepiece", "google.protobuf"])
def test_without_the_package_that_reads_it(module, pieces_only, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("bistil.models.tokenizers.find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(MissingExtraError, match=r"spm\.model.*pip install sentencepiece protobuf") as error:
        load_tokenizer(str(pieces_only))
    assert one_line(error) and "tiktoken" not in str(error.value)
