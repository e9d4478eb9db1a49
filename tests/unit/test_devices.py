"""Which device is taken, that one which is not there is refused before any work, and that it decides no result."""

import json
import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
import tiny
import torch
from test_training import Regression, run

from bistil.cli import main
from bistil.errors import InputError, RecipeError
from bistil.runs.stage import plain
from bistil.runtime.devices import device_for
from bistil.settings.parsing import deciding
from bistil.settings.recipe import LanguageSettings, Recipe, TaskSettings, TrainingSettings, on_device, to_dict
from bistil.training import loop, processes
from bistil.training.precision import settle_precision

HERE = {"source": "en", "target": "sw", "teacher": "x", "text": {"en": ["en.txt"], "sw": ["sw.txt"]}}


@pytest.fixture
def without_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def with_two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.usefixtures("without_gpus")
def test_without_a_gpu_only_the_cpu_is_there(monkeypatch):
    assert [device_for(wanted) for wanted in (None, "auto", "cpu")] == ["cpu"] * 3
    for version, why in ((None, "this PyTorch was built without CUDA"), ("13.0", "PyTorch finds no CUDA GPU")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(InputError, match=f"device is 'cuda', but {why}: leave it out .*or say cpu"):
            device_for("cuda")
    with pytest.raises(InputError, match="device is 'mps', but PyTorch finds no Apple GPU"):
        device_for("mps")
    with pytest.raises(InputError, match="device is 'gpu', which PyTorch does not know"):
        device_for("gpu")


@pytest.mark.usefixtures("with_two_gpus")
def test_a_cuda_gpu_is_taken_and_an_apple_gpu_only_if_it_is_asked_for():
    assert [device_for(wanted) for wanted in ("auto", "cuda:1", "mps", "cpu")] == ["cuda", "cuda:1", "mps", "cpu"]
    with pytest.raises(InputError, match="'cuda:2', but PyTorch finds 2 CUDA GPUs, numbered from 0"):
        device_for("cuda:2")


@pytest.mark.usefixtures("with_two_gpus")
def test_the_trainer_is_told(monkeypatch, tmp_path):
    """What its arguments would be on a machine with these devices."""
    monkeypatch.setattr(loop, "TrainingArguments", lambda **values: SimpleNamespace(**values, n_gpu=1))
    told = {}
    for device in ("auto", "cpu", "cuda", "mps"):
        settings = TrainingSettings(steps=1, device=device)
        arguments = loop._arguments(settings, tmp_path, steps=1, seed=0)
        told[device] = arguments.use_cpu, arguments.dataloader_pin_memory
    assert told == {"auto": (False, True), "cpu": (True, False), "cuda": (False, True), "mps": (False, False)}


@pytest.mark.usefixtures("with_two_gpus")
def test_the_precision_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr("bistil.runtime.precision.has_bf16_units", lambda: False)
    monkeypatch.delenv("BISTIL_PRECISION", raising=False)
    wanted = {"auto": "bf16", "cuda": "bf16", "cpu": "float32", "mps": "float32"}
    for device, precision in wanted.items():
        settings = TrainingSettings(steps=1, device=device, precision="auto")
        assert settle_precision(settings, None).precision == precision, device


@pytest.mark.usefixtures("with_two_gpus")
def test_several_processes_train_on_what_there_is(monkeypatch):
    monkeypatch.setattr(processes, "processes", lambda: SimpleNamespace(num_processes=2))
    assert processes.training_device("auto") == processes.training_device("cuda") == "cuda"
    with pytest.raises(RecipeError, match=r"device is 'cpu', but several processes train together on .*cuda"):
        processes.training_device("cpu")


def trainings(settings):
    """All trainings within some settings."""
    if isinstance(settings, TrainingSettings):
        return [settings]
    parts = (
        [getattr(settings, one.name) for one in fields(settings)] if hasattr(settings, "__dataclass_fields__") else []
    )
    return [one for part in parts for one in trainings(part)]


def test_one_device_for_a_whole_recipe():
    task = TaskSettings(kind="token-classification", train=["a"])
    recipe = on_device(Recipe(**HERE, language=LanguageSettings(), task=task), "cpu")
    assert [one.device for one in trainings(recipe)] == ["cpu"] * 4
    assert recipe == on_device(Recipe(**HERE, language=LanguageSettings(), task=task, name="run"), "cpu")
    assert on_device(Recipe(**HERE), "cpu").language is None


def test_a_device_decides_no_result_and_is_written_down():
    recipe = Recipe(**HERE)
    assert deciding(on_device(recipe, "cpu")) == deciding(recipe)
    assert plain(on_device(recipe.phase2, "cpu")) == plain(recipe.phase2), "nor the key of a stage"
    assert to_dict(on_device(recipe, "cpu"))["phase1"]["training"]["device"] == "cpu"
    whole, decides = to_dict(recipe.phase1.training), deciding(recipe.phase1.training)
    assert whole.keys() - decides.keys() == {"device", "checkpoint_minutes", "average_last"}
    assert all(whole[name] == value for name, value in decides.items())


def test_a_training_is_gone_on_with_on_another_device(tmp_path):
    whole = Regression()
    run(whole, tmp_path / "whole", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        run(Regression(stop_at=9), tmp_path / "cut", device="auto")
    again = Regression()
    result = run(again, tmp_path / "cut", device="cpu")
    assert again.calls == 14, "from the checkpoint after step 6"
    assert torch.equal(again.linear.weight, whole.linear.weight) and result.device == "cpu"
    finished = Regression()
    run(finished, tmp_path / "cut", device="auto")
    assert finished.calls == 0


def failed(monkeypatch, capsys, *words):
    """The line that a command ends with."""
    monkeypatch.setattr(sys, "argv", ["bistil", *map(str, words)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    return shown[-1]


@pytest.fixture
def folder(tmp_path):
    tiny.save(tiny.model("bert", layers=2), tmp_path / "model", "bert")
    (tmp_path / "train.jsonl").write_text('{"text": "a cat", "label": "x"}\n{"text": "the moon", "label": "y"}\n')
    for name in ("en", "sw"):
        (tmp_path / f"{name}.txt").write_text(tiny.ENGLISH if name == "en" else tiny.SWAHILI)
    (tmp_path / "r.toml").write_text(
        'teacher = "model"\nsource = "en"\ntarget = "sw"\ntext = { en = "en.txt", sw = "sw.txt" }\n'
        "[phase1]\nblock_length = 16\ntraining = { steps = 1, batch_size = 4 }\n"
        '[task]\nkind = "sequence-classification"\ntrain = "train.jsonl"\nmax_length = 32\n'
    )
    return tmp_path


@pytest.mark.usefixtures("without_gpus")
def test_a_device_that_is_not_there_is_one_line_before_any_work(folder, monkeypatch, capsys):
    task = ["--task", "sequence-classification"]
    lines = {
        "finetune": ["-m", folder / "model", *task, "--train", folder / "train.jsonl", "-o", folder / "out"],
        "distill": [
            "--teacher", folder / "model", "--text", f"en={folder}/en.txt", "--text", f"sw={folder}/sw.txt",
            "--reduction", "2", "-o", folder / "out",
        ],
        "adapt": [
            "-m", folder / "model", "--text", folder / "sw.txt", "--language", "sw", "--block-length", "16",
            "-o", folder / "out",
        ],
        "evaluate": ["--model", folder / "model", *task, "--file", folder / "train.jsonl"],
        "run": [folder / "r.toml", "-o", folder / "out"],
    }  # fmt: skip
    for command, words in lines.items():
        before = sorted(folder.iterdir())
        said = failed(monkeypatch, capsys, command, *words, "--device", "mps")
        assert "device is 'mps', but PyTorch finds no Apple GPU: leave it out" in said, command
        assert sorted(folder.iterdir()) == before, command
    assert "must be one of 'auto', 'cpu'" in failed(monkeypatch, capsys, "run", folder / "r.toml", "--device", "gpu")


def test_records_say_where_it_was(folder, monkeypatch):
    command = [
        "finetune",
        "-m",
        folder / "model",
        "--task",
        "sequence-classification",
        "--train",
        folder / "train.jsonl",
    ]
    command += ["--no-sparse", "--steps", "1", "--max-length", "32", "--device", "cpu", "-o", folder / "out"]
    monkeypatch.setattr(sys, "argv", ["bistil", *map(str, command)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    record = json.loads((folder / "out/bistil.json").read_text())
    assert record["settings"]["training"]["device"] == record["metrics"]["device"] == "cpu"
