"""What SECURITY.md promises, each promise with a test of its name."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from bistil.errors import ArtefactError, BistilError, InputError, RecipeError
from bistil.models.loading import load_model, read_config
from bistil.models.tokenizers import read_tokenizer
from bistil.runtime.artefacts import check_product
from bistil.settings.recipe import load_recipe
from bistil.sparse import SparseFineTuning
from bistil.vocabulary import trim_vocabulary

PROMISES = Path(__file__).parents[2] / "SECURITY.md"


class Code:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def model(tmp_path):
    tiny.save(tiny.masked_lm(layers=2), tmp_path / "m")
    return tmp_path / "m"


def test_every_promise_names_tests_that_there_are():
    named = re.findall(r"`(test_\w+)`", PROMISES.read_text(encoding="utf-8"))
    here = Path(__file__).parent
    files = (
        "test_security.py",
        "test_limits.py",
        "test_outputs.py",
        "test_licences.py",
        "test_serving.py",
        "test_web.py",
    )
    known = "".join((here / name).read_text(encoding="utf-8") for name in files)
    assert len(named) >= 8 and all(f"def {name}(" in known for name in named)


# No code


@pytest.mark.parametrize("form", ["pickle", "archive", "old"])
@pytest.mark.parametrize("file", ["m/pytorch_model.bin", "s/pytorch_diff.bin"])
def test_no_code_is_run_out_of_weights(tmp_path, model, form, file):
    done = tmp_path / "done"
    (tmp_path / "s").mkdir()
    (model / "model.safetensors").unlink()
    if form == "pickle":
        (tmp_path / file).write_bytes(pickle.dumps(Code(done)))
    else:
        value = {"diffs": Code(done), "bert.embeddings.word_embeddings.weight": Code(done)}
        torch.save(value, tmp_path / file, _use_new_zipfile_serialization=form == "archive")
    with pytest.raises(ArtefactError) as caught:
        load_model(model) if file.startswith("m") else SparseFineTuning.load(tmp_path / "s")
    assert not done.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_no_code_is_imported_from_a_model_s_folder(tmp_path, model, file, monkeypatch):
    """And nobody is asked whether it may be: the answer on standard input would be yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    done = tmp_path / "done"
    (model / "own.py").write_text(f"open({str(done)!r}, 'w')\nclass Own: pass\n")
    values = json.loads((model / file).read_text())
    values |= {"auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}}
    values |= {"model_type": "own"} if file == "config.json" else {"tokenizer_class": "Own"}
    (model / file).write_text(json.dumps(values))
    try:
        read_config(model)
        read_tokenizer(model, "m")
    except BistilError as error:
        assert "\n" not in str(error)
    assert not done.exists()


def test_no_code_is_imported_by_a_recipe_without_trust(tmp_path):
    (tmp_path / "own.py").write_text("raise SystemExit('imported')\n")
    recipe = 'teacher = "m"\nsource = "en"\ntarget = "sw"\ntext = {en = ["a"], sw = ["b"]}\n'
    (tmp_path / "r.toml").write_text(recipe + '[phase1.objective.terms]\n"own:Term" = 1.0\n')
    with pytest.raises(RecipeError, match="--trust-code"):
        load_recipe(tmp_path / "r.toml")


# No file elsewhere


def test_an_index_of_weights_reads_no_file_outside_of_its_folder(tmp_path, model):
    os.replace(model / "model.safetensors", tmp_path / "other.safetensors")
    for outside in ("../other.safetensors", str(tmp_path / "other.safetensors")):
        index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": outside}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match="outside of its folder"):
            load_model(model)


def test_a_record_reads_no_file_outside_of_its_folder(tmp_path, model):
    (tmp_path / "secret").write_text("x")
    (model / "bistil.json").write_text(json.dumps({"versions": {"bistil": "0"}, "files": {"../secret": "0" * 64}}))
    with pytest.raises(InputError, match="outside of its folder"):
        check_product(model)


def test_a_list_of_modules_copies_no_folder_from_elsewhere(tmp_path, model):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("x")
    (model / "modules.json").write_text(json.dumps([{"path": "../private"}]))
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI)
    with pytest.raises(InputError, match="outside of its folder"):
        trim_vocabulary(model, {"sw": [tmp_path / "sw.txt"]}, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_settings_of_a_tokenizer_read_no_file_elsewhere(tmp_path, model):
    secret = tmp_path / "secret.txt"
    secret.write_text("[PAD]\n[UNK]\nsecretword\n[CLS]\n[SEP]\n[MASK]\n")
    values = json.loads((model / "tokenizer_config.json").read_text())
    for key in ("vocab_file", "tokenizer_file", "special_tokens_map_file", "added_tokens_file", "chat_template_file"):
        (model / "tokenizer_config.json").write_text(json.dumps(values | {key: str(secret)}))
        assert "secretword" not in read_tokenizer(model, "m").get_vocab()


# Bounded memory

LITTLE_MEMORY = """
import resource, sys
from bistil.errors import BistilError
from bistil.measuring.benchmark import benchmark
from bistil.models.loading import load_model
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
try:
    load_model(sys.argv[1])
except BistilError as error:
    print("refused", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, as Linux does")
def test_a_configuration_takes_no_memory_that_its_weights_do_not_fill(model):
    values = json.loads((model / "config.json").read_text()) | {"vocab_size": 2_000_000_000}
    (model / "config.json").write_text(json.dumps(values))
    ran = subprocess.run([sys.executable, "-c", LITTLE_MEMORY, model], capture_output=True, text=True, timeout=200)
    assert ran.stdout.startswith("refused") and "do not fit its config.json" in ran.stdout, ran.stderr[-2000:]


# The terminal


@pytest.mark.parametrize("name", ["\x1b[31mred", "[/red]", "a\u202eb", "x" * 5_000])
@pytest.mark.parametrize("command", [["sft", "inspect"], ["run"], ["predict"], ["benchmark", "--model"]])
def test_names_do_not_steer_the_terminal(command_line, tmp_path, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, said = command_line(*command, name)
    assert code == 2 and said.count("\n") == 1 and len(said) < 2_200
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", out + said)


def test_what_a_file_names_does_not_steer_the_terminal(command_line, tmp_path):
    odd = "bert.\x1b[31m[/red]\u202e"
    (tmp_path / "s").mkdir()
    one = {"size": torch.Size([4, 4]), "index_steps": [3], "values": torch.ones(1)}
    torch.save({"diffs": {odd: one}, "abs": {}, "block_sparses": {}}, tmp_path / "s" / "pytorch_diff.bin")
    for command in (["inspect", tmp_path / "s", "--full"], ["compare", tmp_path / "s", tmp_path / "s"]):
        code, out, _ = command_line("sft", *command)
        assert code == 0 and "[/red]" in out and "\x1b" not in out and "\u202e" not in out
