"""What all tests share: messages are heard; with BISTIL_REQUIRE_REFERENCE a test without its reference data fails."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from bistil.cli import main
from bistil.runtime.insides import transformers_bars
from bistil.runtime.process import show_messages
from bistil.runtime.progress import set_progress

# Tests are the same on every processor: `precision = "auto"` is float32 in them, in processes that they start too.
os.environ.setdefault("BISTIL_PRECISION", "float32")
# Rates of tiny models are not this machine's.
os.environ.setdefault("BISTIL_RATES", str(Path(tempfile.mkdtemp(prefix="bistil-tests-")) / "rates.json"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Where the reference data are there (continuous integration), their tests must have run."""
    report = yield
    needs_data = item.get_closest_marker("golden") or item.get_closest_marker("real_data")
    if os.environ.get("BISTIL_REQUIRE_REFERENCE") and needs_data and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, but BISTIL_REQUIRE_REFERENCE is set: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _messages() -> Generator[None]:
    """Messages are printed as on the command line, and the tests' own saving and loading draws no bars.

    What a library's user sees is tested in processes of their own (test_process.py).
    """
    show_messages()
    with transformers_bars(False):
        yield


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process (a fresh one takes seconds): exit code, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bistil", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        set_progress("lines")
        code = stopped.value.code or 0
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_in_browser(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A module run beside a page's files in headless Chromium."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import browser

    if browser.browser() is None:
        pytest.skip("Chromium is not installed")
    return browser.run_in_browser
