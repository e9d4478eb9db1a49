"""What the package leaves alone in a process: environment, signals, levels, bars, allocator; and does without."""

import json
import logging
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from bistil.runtime import memory, process
from bistil.runtime.progress import Progress, progress_mode, set_progress
from bistil.runtime.quiet import kept_environment, quiet_datasets, quiet_transformers

TESTS = Path(__file__).parents[1]

# Set to unusual values first, so that a default put back is no restoration.
STATE = """
import json, logging, os, signal, sys
from importlib import import_module
from pathlib import Path
import stages
import datasets, transformers, huggingface_hub
transformers.Trainer, transformers.PreTrainedModel  # torch's compiler notes its folder in the environment when imported
hub_bars = import_module("huggingface_hub.utils.tqdm")
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["UNUSUAL"] = "yes"
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
    signal.signal(number, lambda *_: None)
LOGGERS = ("transformers", "transformers.trainer", "datasets", "huggingface_hub", "bistil", "accelerate", "")
for level, name in enumerate(LOGGERS, start=11):
    logging.getLogger(name).setLevel(level)
ON = sys.argv[2] == "on"
bars = import_module("datasets.utils.tqdm")
(datasets.enable_progress_bars if ON else datasets.disable_progress_bars)()
(transformers.utils.logging.enable_progress_bar if ON else transformers.utils.logging.disable_progress_bar)()
huggingface_hub.utils.disable_progress_bars("a.group") if ON else huggingface_hub.utils.enable_progress_bars("a.group")
environment = os.environ
mallocs = []
import ctypes
real = ctypes.CDLL
class Spy(real):
    def __getattr__(self, name):
        if name == "mallopt":
            mallocs.append(name)
        return real.__getattr__(self, name)
ctypes.CDLL = Spy

def state():
    import torch
    return {
        "environment": dict(os.environ), "same object": os.environ is environment,
        "native": {n: os.popen(f"printenv {n}").read() for n in ("TOKENIZERS_PARALLELISM",)},
        "signals": [repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "levels": {name: logging.getLogger(name).level for name in LOGGERS},
        "handlers": {name: repr(logging.getLogger(name).handlers) for name in LOGGERS if name != "bistil"},
        "datasets": datasets.are_progress_bars_disabled(),
        "transformers": transformers.utils.logging.is_progress_bar_enabled(),
        "hub": dict(hub_bars.progress_bar_states),
        "threads": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "mallopt": list(mallocs),
    }

before = state()
names = stages.import_all()
imported = state()
stages.run_stages(Path(sys.argv[1]), processes=2)
print(json.dumps({"before": before, "imported": imported, "after": state(), "modules": len(names)}))
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process that finds the package under test and the tests' helpers."""
    path = os.pathsep.join([str(TESTS), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("bars", ["on", "off"])
def test_imports_and_stages_leave_the_process_as_it_was(tmp_path, bars):
    ran = run_python(STATE, str(tmp_path), bars)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["modules"] > 100
    assert found["before"]["levels"]["transformers"] == 11 and found["before"]["environment"]["UNUSUAL"] == "yes"
    assert found["imported"] == found["before"]
    assert found["after"] == found["before"]
    assert not any(text in ran.stderr for text in ("[bistil]", "phase 1", "it/s")), "messages or bars"


WITHOUT = """
import os, sys
from pathlib import Path
# Libraries first: on this system they may use what it has.
import accelerate, datasets, filelock, matplotlib, peft, psutil, stages, transformers
transformers.BertForSequenceClassification, transformers.Trainer
for name in ("fcntl", "resource"):
    sys.modules[name] = None
del os.fork
assert not any(name.split(".")[0] == "bistil" for name in sys.modules)
stages.import_all()
stages.run_stages(Path(sys.argv[1]))
print("done")
"""


def test_without_fcntl_resource_and_fork_all_modules_import_and_stages_run(tmp_path):
    ran = run_python(WITHOUT, str(tmp_path))
    assert ran.returncode == 0 and ran.stdout.endswith("done\n"), ran.stderr[-3000:]


def test_a_library_says_nothing_until_logging_is_configured():
    code = (
        "import bistil, logging; logging.getLogger('bistil.models.tokenizers').warning('one'); logging.basicConfig();"
    )
    code += "logging.getLogger('bistil.models.tokenizers').warning('two')"
    ran = run_python(code)
    assert "one" not in ran.stderr and "two" in ran.stderr


def printed(*names: str) -> list[str]:
    """Those of the variables that a child process inherits, whatever Python's table says."""
    return subprocess.run(["printenv", *names], capture_output=True, text=True).stdout.split()


def test_the_environment_comes_back_whatever_was_done_to_it(monkeypatch):
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.delenv("NEW", raising=False)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    environment = os.environ
    with kept_environment(TOKENIZERS_PARALLELISM="false", KEPT="inside"):
        assert printed("TOKENIZERS_PARALLELISM", "KEPT") == ["false", "inside"]
        os.environ = os.environ.copy()  # noqa: B003  # what datasets does, and forgets
        environment["NEW"] = "x"
        del environment["KEPT"]
    assert os.environ is environment
    assert printed("KEPT", "NEW", "TOKENIZERS_PARALLELISM") == ["before"]


@pytest.mark.parametrize("quiet", [quiet_transformers, quiet_datasets])
def test_quiet_is_over_after_an_error_too(quiet):
    names = ("transformers", "transformers.trainer", "datasets", "huggingface_hub")
    import_module("datasets"), import_module("transformers")  # their import sets levels
    before = [logging.getLogger(name).level for name in names]
    with pytest.raises(KeyError), quiet():
        assert [logging.getLogger(name).level for name in names] != before
        raise KeyError
    assert [logging.getLogger(name).level for name in names] == before


def test_memory_goes_back_only_where_the_process_s_owner_allowed_it(monkeypatch):
    widths: list[object] = []
    monkeypatch.setattr(memory, "return_freed_memory", lambda *given: widths.append(given))
    monkeypatch.setattr(memory, "_allowed", False)
    memory.return_memory_if_allowed(768)
    assert not widths
    memory.let_training_return_memory()
    memory.return_memory_if_allowed(768, "bf16")
    assert widths == [(768, "bf16")]


def test_the_command_line_s_start_prepares_the_process(monkeypatch):
    done = []
    monkeypatch.setattr(process.signal, "signal", lambda number, _: done.append(number.name))
    monkeypatch.setattr(process, "let_training_return_memory", lambda: done.append("memory"))
    for name in WAITING:
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    mode = progress_mode()
    try:
        process.prepare_process()
        process.prepare_process()
        assert progress_mode() == "lines" and done == ["memory", "SIGINT", "SIGTERM"] * 2
        assert sum(type(one).__name__ == "_StandardError" for one in logging.getLogger("bistil").handlers) == 1
        assert printed("GOMP_SPINCOUNT", "KMP_BLOCKTIME") == [process.SPIN_COUNT, process.BLOCK_TIME]
    finally:
        set_progress(mode)


WAITING = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"GOMP_SPINCOUNT": "5"}, ["5", process.BLOCK_TIME]),
        ({"KMP_BLOCKTIME": "200"}, [process.SPIN_COUNT, "200"]),
        ({"OMP_WAIT_POLICY": "active"}, []),
    ],
)
def test_what_the_user_says_about_waiting_threads_stays(given, wanted):
    code = "import sys; from bistil.cli import main; from bistil.runtime.process import prepare_process\n"
    code += "prepare_process(); assert 'torch' not in sys.modules; import os\n"
    code += "os.execvp('printenv', ['printenv', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME'])"
    others = {name: value for name, value in os.environ.items() if name not in WAITING}
    path = os.pathsep.join([str(TESTS.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**others, "PYTHONPATH": path, **given}, capture_output=True, text=True
    )
    assert ran.stdout.split() == wanted, ran.stderr


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move on by hand."""
    now = [1000.0]
    monkeypatch.setattr("bistil.runtime.progress.time.monotonic", lambda: now[0])
    return now


def test_progress_of_steps_and_bytes_in_lines(clock, capsys):
    with Progress("phase 1", total=100) as steps:
        steps.advance_to(1, tokens=500)
        clock[0] += 40
        steps.advance_to(21, tokens=10_500, loss=0.25)
        steps.note("step 21: loss 0.2")
    with Progress("counting tokens", total=40_000_000, unit="bytes") as read:
        read.advance(1_000_000)
        clock[0] += 60
        read.advance(19_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "phase 1: 21/100, 250 tokens/s, loss 0.25, 2.6 min left",
        "phase 1: step 21: loss 0.2",
        "counting tokens: 20 of 40 MB, 0.3 MB/s, 1.0 min left",
    ]


@pytest.mark.parametrize("mode", ["off", "bar"])
def test_progress_can_be_switched_off_or_drawn(clock, capsys, mode):
    before = progress_mode()
    set_progress(mode)
    try:
        with Progress("phase 1", total=10) as steps:
            clock[0] += 40
            steps.advance_to(3, tokens=10)
            steps.note("something")
    finally:
        set_progress(before)
    said = capsys.readouterr().err
    assert ("something" in said and "3/10" in said) if mode == "bar" else said == ""
