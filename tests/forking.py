"""Work in children of a process, which spares them the seconds of importing everything anew."""

import os
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path


def fork(log: Path, work: Callable[[], None]) -> int:
    """Start work in a child, whose output goes to the end of a log; returns its id. Ctrl-C ends it with 130."""
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        with log.open("a", buffering=1) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            try:
                work()
                code = 0
            except KeyboardInterrupt:
                code = 130
            except BaseException:
                # Nothing else would say it: the process ends at once.
                traceback.print_exc(file=stream)
    finally:
        os._exit(code)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def share(log: Path, work: Callable[[], None], size: int = 2) -> list[int]:
    """Let so many children do work together, as torchrun would launch them; their exit codes."""
    port = free_port()

    def ranked(rank: int) -> None:
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in values.items()}, MASTER_ADDR="127.0.0.1")
        work()

    children = [fork(log, partial(ranked, rank)) for rank in range(size)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
