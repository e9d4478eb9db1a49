"""What belongs to a whole process: only its owner may change it, and for `bistil` on a terminal that is `cli.main`.

Nothing else in this package changes the environment, the allocator, signal handlers, log levels or other libraries'
progress bars for longer than a call (`runtime.quiet` has what is changed around one).
"""

import logging
import os
import signal
import sys

from bistil.errors import one_line
from bistil.runtime.memory import let_training_return_memory
from bistil.runtime.progress import set_progress

# Turns that a waiting thread of GCC's OpenMP spins before it sleeps; milliseconds of Intel's (docs/performance.md).
SPIN_COUNT, BLOCK_TIME = "2000", "1"


def prepare_process() -> None:
    """Make this process the command line's: messages and progress on standard error, signals, freed memory, threads.

    To be called before torch is loaded.
    """
    show_messages()
    _wait_asleep()
    set_progress("bar" if sys.stderr.isatty() else "lines")
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


class _StandardError(logging.Handler):
    """Prints a message as "[bistil] message", a progress line as it is, on whatever standard error is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "" if record.name == "bistil.runtime.progress" else "[bistil] "
        print(f"{mark}{one_line(record.getMessage())}", file=sys.stderr, flush=True)


def _wait_asleep() -> None:
    """Let threads that wait for others sleep soon: on a machine that does other things too they would take their cores.

    OpenMP's libraries read these variables when they are loaded. What the user has said about waiting stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        os.environ.setdefault("KMP_BLOCKTIME", BLOCK_TIME)


def _stop_with_a_line() -> None:
    """Let SIGINT and SIGTERM end the process with exit code 128 + their number and one line."""
    own = os.getpid()

    def stop(number: int, _frame: object) -> None:
        # Worker processes inherit this handler and have nothing to say.
        if os.getpid() == own and is_first_of_run():
            print("bistil: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
