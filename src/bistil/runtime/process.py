"""What belongs to a whole process: only its owner may change it, and for `bistil` on a terminal that is `cli.main`.

Nothing else in this package changes the environment, the allocator, signal handlers, log levels or other libraries'
progress bars for longer than a call (`runtime.quiet` has what is changed around one).
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from bistil.errors import one_line
from bistil.runtime.memory import let_training_return_memory
from bistil.runtime.progress import Mode, set_progress

# Turns that a waiting thread of GCC's OpenMP spins before it sleeps; milliseconds of Intel's (docs/performance.md).
SPIN_COUNT, BLOCK_TIME = "2000", "1"


def prepare_process() -> None:
    """Make this process the command line's: messages and progress on standard error, signals, freed memory, threads.

    To be called before torch is loaded: how threads wait is settled by then, and all else holds later too.
    """
    show_messages()
    _wait_asleep()
    set_progress("bar" if sys.stderr.isatty() else "lines")
    let_training_return_memory()
    _stop_with_a_line()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_shown() -> bool:
    """Whether this process prints what the package logs, as `prepare_process` lets it."""
    return any(isinstance(handler, _StandardError) for handler in logging.getLogger("bistil").handlers)


def prepare_worker(*, shown: bool, progress: Mode) -> None:
    """Make this process one that works for another of this package.

    Args:
        shown: it prints what the package logs.
        progress: of the other; bars of several processes do not fit on one terminal, so that it shows lines.
    """
    if shown:
        show_messages()
    set_progress("off" if progress == "off" else "lines")
    let_training_return_memory()
    _stop_with_a_line()


def is_first_of_run() -> bool:
    """Whether this is the process of a torchrun that speaks for all, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def show_messages() -> None:
    """Print what the package logs, from level INFO, on standard error; a second call changes nothing.

    Of several processes that share a run only the first does: they say the same.
    """
    if not is_first_of_run():
        return
    package = logging.getLogger("bistil")
    if not any(isinstance(handler, _StandardError) for handler in package.handlers):
        package.addHandler(_StandardError())
    package.setLevel(logging.INFO)


def hide_messages() -> None:
    """Print nothing of what the package logs, and no progress; workers of this process do not either."""
    package = logging.getLogger("bistil")
    for handler in [one for one in package.handlers if isinstance(one, _StandardError)]:
        package.removeHandler(handler)
    # Without any handler Python would print warnings itself.
    package.addHandler(logging.NullHandler())
    set_progress("off")


def show_all_messages() -> None:
    """Print what is for those who look for a fault too, and what libraries log from level INFO; see `is_verbose`."""
    show_messages()
    logging.getLogger("bistil").setLevel(logging.DEBUG)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
    others = _StandardError()
    others.addFilter(lambda record: record.name.split(".")[0] != "bistil")
    logging.getLogger().addHandler(others)
    logging.getLogger().setLevel(logging.INFO)


def is_verbose() -> bool:
    """Whether errors come with the place in the code that they come from."""
    return logging.getLogger("bistil").isEnabledFor(logging.DEBUG)


class _StandardError(logging.Handler):
    """Prints a message as "[bistil] message", a progress line as it is, on whatever standard error is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "" if record.name == "bistil.runtime.progress" else f"[{record.name.split('.')[0]}] "
        print(f"{mark}{one_line(record.getMessage())}", file=sys.stderr, flush=True)


def _wait_asleep() -> None:
    """Let threads that wait for others sleep soon: on a machine that does other things too they would take their cores.

    OpenMP's libraries read these variables when they are loaded. What the user has said about waiting stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        os.environ.setdefault("KMP_BLOCKTIME", BLOCK_TIME)


class Stopping:
    """A training that a signal asks to stop: at the end of its step, where that is soon.

    Attributes:
        lost: says from where the same command goes on, and what is lost of the work.
        asked: the signal's number; None: there was none.
    """

    def __init__(self, lost: Callable[[], str]) -> None:
        self.lost = lost
        self.asked: int | None = None
        self._since = 0.0

    def ask(self, number: int) -> None:
        """A signal came, here or in a process that shares the training: `SAVE_SECONDS` are left."""
        if self.asked is None:
            self.asked, self._since = number, time.monotonic()
            if sys.platform != "win32":
                signal.signal(signal.SIGALRM, lambda *_: _end(number))
                signal.setitimer(signal.ITIMER_REAL, SAVE_SECONDS)

    def is_pressed(self) -> bool:
        """Whether a further signal is an impatient user's; launchers pass on what their processes got themselves."""
        return self.asked is not None and time.monotonic() - self._since > PASSED_ON_SECONDS

    def end_if_asked(self) -> None:
        """After a checkpoint: end the process if a signal came."""
        if self.asked is not None:
            _end(self.asked)


_stopping: Stopping | None = None
# From the signal to the end: for a training's step and the checkpoint behind it, and for whatever else a process does.
SAVE_SECONDS, END_SECONDS = 7.0, 9.0
# A second signal that comes so soon is the first one, passed on.
PASSED_ON_SECONDS = 1.0


@contextmanager
def stopped_gently(lost: Callable[[], str]) -> Iterator[Stopping]:
    """Within it the signals that `prepare_process` looks after ask first, and end the process `SAVE_SECONDS` later."""
    global _stopping
    before, _stopping = _stopping, Stopping(lost)
    try:
        yield _stopping
    finally:
        if sys.platform != "win32" and _stopping.asked is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _stopping = before


_said = False
_others_speak = False


@contextmanager
def spoken_for() -> Iterator[None]:
    """Within it this process ends without a word when a signal ends it: others do the work, and speak."""
    global _others_speak
    before, _others_speak = _others_speak, True
    try:
        yield
    finally:
        _others_speak = before


def _end(number: int) -> None:
    """End the process with one line and exit code 128 + the signal's number."""
    _say_interrupted()
    sys.exit(128 + number)


def end_if_stopped(error: BaseException) -> None:
    """End the process again where a signal was ending it, and something came to grief while that made its way out.

    The workers of a library's pool get the signal too, and do not answer any more.
    """
    before = error.__context__
    while before is not None:
        if isinstance(before, SystemExit) and before.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            sys.exit(before.code)
        before = before.__context__


def _say_interrupted() -> None:
    global _said
    if is_first_of_run() and not _said and not _others_speak:
        _said = True
        where = "" if _stopping is None else f", {_stopping.lost()}"
        print(f"bistil: interrupted; the same command goes on from the last checkpoint{where}", file=sys.stderr)


def _stop_with_a_line() -> None:
    """Let SIGINT and SIGTERM end the process with exit code 128 + their number and one line.

    A training writes a checkpoint first, where that takes seconds; a second signal does not wait for it. Python acts on
    a signal between two of its own instructions, and whatever it raises may be caught on the way: a process that is
    still there after `END_SECONDS` is ended by a thread that slept until then.
    """
    global _said
    own, _said = os.getpid(), False

    def stop(number: int, _frame: object) -> None:
        # Worker processes inherit this handler and have nothing to say.
        if os.getpid() != own:
            sys.exit(128 + number)
        if sys.platform == "win32" or _stopping is None or _stopping.is_pressed():
            _end(number)
        else:
            _stopping.ask(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if _watched != own:
        _watch(own)


# The process that has a thread for its end.
_watched: int | None = None


def _watch(own: int) -> None:
    global _watched
    if sys.platform == "win32":
        return
    if _watched is None:
        # A worker's signals are not its parent's.
        os.register_at_fork(after_in_child=_forget_signals)
    _watched = own
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Written to at once, by the system's handler, whatever the process is in.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(reader,), daemon=True).start()


def _forget_signals() -> None:
    with suppress(ValueError):  # forked by a thread
        signal.set_wakeup_fd(-1)


def _end_in_time(signals: int) -> None:
    while True:
        number = os.read(signals, 1)[0]
        handler = signal.getsignal(number)
        if number not in (signal.SIGINT, signal.SIGTERM) or not callable(handler):
            continue
        time.sleep(END_SECONDS)
        # Others' handlers are others' concern.
        if handler.__module__ == __name__ and signal.getsignal(number) is handler:
            # Whoever reads standard error may have stopped reading.
            saying = threading.Thread(target=_say_interrupted, daemon=True)
            saying.start()
            saying.join(0.5)
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
            os._exit(128 + number)
