"""What a server accepts, and how long it waits."""

import os
import stat
from dataclasses import dataclass, fields
from pathlib import Path

from bistil.errors import InputError
from bistil.runtime.documents import check_file, read_document

TOKEN = "BISTIL_SERVE_TOKEN"
"""Environment variable with the token that requests must bring."""
LONGEST_TOKEN_FILE = 4096
SHORTEST_TOKEN = 16
MOST = 10**9


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server accepts, and how long it waits.

    Attributes:
        body: bytes of a request.
        inputs: of a request.
        characters: of an input: a text, a pair of texts, a question and its passage, a sentence's words.
        waiting: requests that may wait for the model; further ones are answered 503.
        batch: inputs that are taken together, as far as so many wait; windows per forward pass.
        seconds: that a client may take to send a request, and to take the answer.
        idle: seconds that a connection may be kept open without a request.
        stop: seconds after a signal in which requests that are in flight are answered.
    """

    body: int = 1 << 20
    inputs: int = 128
    characters: int = 5_000
    waiting: int = 256
    batch: int = 32
    seconds: float = 10.0
    idle: float = 5.0
    stop: float = 30.0

    def __post_init__(self) -> None:
        """Refuse numbers that limit nothing.

        Raises:
            InputError: one is.
        """
        for one in fields(self):
            value = getattr(self, one.name)
            if not 0 < value <= MOST:
                raise InputError(f"{one.name} is {value}; it must be more than 0 and at most {MOST:,}")


def read_token(file: Path | None) -> str | None:
    """The token that requests must bring: of a file, or else of the environment; None: of neither, all may ask.

    Raises:
        InputError: the file cannot be read or may be read by everybody, or what it holds is no token.
    """
    if file is None:
        found, where = os.environ.get(TOKEN), TOKEN
        if found is None:
            return None
    else:
        check_file(file, most=LONGEST_TOKEN_FILE)
        if os.name == "posix" and stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH:
            raise InputError(f"{file} may be read by everybody on this machine: chmod 600 {file}")
        found, where = read_document(file), str(file)
    token = found.strip()
    if not (token.isascii() and token.isprintable()) or " " in token or len(token) < SHORTEST_TOKEN:
        raise InputError(
            f"{where} holds no token: one line of at least {SHORTEST_TOKEN} ASCII characters without spaces is expected"
        )
    return token
