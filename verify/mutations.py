"""What can be wrong with a file: with its place, its bytes, its text, its JSON. Each has a name and what is written."""

import gzip
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DEEP, DIGITS = 100_000, 5_000
ESCAPES = "\x1b[31m\x1b]0;owned\x07[/red][bold]x[/]\u202e"
# In place of any value.
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**12, 10**30, 2.5, float("nan"), float("inf"), "", "x", "../../x", ESCAPES, "\ud83d", "a\0b",
    [], ["x"], [[]], [None], {}, {"x": 1}, {"0": None},
)  # fmt: skip


class Mutation(NamedTuple):
    """A file's content, or a function that puts something in its place."""

    name: str
    content: bytes | None
    refused: bool = True
    """Whether it must be refused; else it may also be read."""


def places() -> Iterator[Mutation]:
    """What stands where a file belongs; put there by `put`."""
    for name in ("missing", "folder", "fifo", "zeros device", "link to itself", "link to a fifo", "not empty device"):
        yield Mutation(f"place: {name}", None)


def put(path: Path, mutation: Mutation) -> None:
    """Write a mutation in the place of a file that was moved away."""
    if mutation.content is not None:
        path.write_bytes(mutation.content)
        return
    kind = mutation.name.removeprefix("place: ")
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "zeros device":
        path.symlink_to("/dev/zero")
    elif kind == "not empty device":
        path.symlink_to("/dev/full")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "link to a fifo":
        os.mkfifo(path.with_name(path.name + ".fifo"))
        path.symlink_to(path.name + ".fifo")


def blobs(data: bytes) -> Iterator[Mutation]:
    """Bytes that are none of any format, and parts of what was there."""
    half = len(data) // 2
    for name, content in {
        "empty": b"",
        "one byte": data[:1],
        "half": data[:half],
        "without its last byte": data[:-1],
        "0xff": b"\xff" * 64,
        "zeros": bytes(len(data)),
        "random": bytes((i * 197 + i // 7 * 31 + 13) % 256 for i in range(300)),
        "UTF-16": "{} We sang.\n".encode("utf-16") * 20,
        "a NUL in the middle": data[:half] + b"\0" + data[half:],
        "a byte that is no UTF-8 in the middle": data[:half] + b"\xe9" + data[half:],
        "a surrogate's bytes in the middle": data[:half] + b"\xed\xa0\xbd" + data[half:],
    }.items():
        yield Mutation(f"bytes: {name}", content, refused=False)


def safetensors(data: bytes) -> Iterator[Mutation]:
    """Headers and tensors of a safetensors file."""
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [name for name in header if name != "__metadata__"]

    def written(text: bytes, rest: bytes = body) -> bytes:
        return struct.pack("<Q", len(text)) + text + rest

    def changed(**values: Any) -> bytes:
        return written(json.dumps(header | {names[0]: header[names[0]] | values}).encode())

    for name, content in {
        "a header of 2^63 bytes": struct.pack("<Q", 2**63) + data[8:],
        "a header of 100 GB": struct.pack("<Q", 10**11) + data[8:],
        "no header": struct.pack("<Q", 0) + data[8:],
        "a deep header": written(b'{"a":' * DEEP),
        "a number of 5,000 digits": written(b'{"a": {"dtype": "F32", "shape": [' + b"9" * DIGITS + b"]}}"),
        "a list for a header": written(b"[]"),
        "an empty header": written(b"{}", b""),
        "an unknown format": changed(dtype="F99"),
        "integers": changed(dtype="I32"),
        "another shape": changed(shape=[1]),
        "a shape of 2^62": changed(shape=[2**62]),
        "offsets beyond the file": changed(data_offsets=[0, 10**12]),
        "offsets that run backwards": changed(data_offsets=[8, 0]),
        "a tensor less": written(json.dumps({name: one for name, one in header.items() if name != names[0]}).encode()),
        "no numbers": written(data[8 : 8 + size], b"\xff" * len(body)),
        "a name with escapes": written(
            json.dumps({**header, ESCAPES: {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2}}).encode()
        ),
    }.items():
        yield Mutation(f"safetensors: {name}", content, refused=name not in ("an empty header", "a name with escapes"))


def json_texts(data: bytes) -> Iterator[Mutation]:
    """Texts that are no JSON of use, or that are too much for a parser."""
    yield from (
        Mutation(f"json: {name}", content)
        for name, content in {
            "a list": b"[]",
            "null": b"null",
            "a number": b"3",
            "a text": b'"x"',
            "lists 100,000 deep": b"[" * DEEP + b"]" * DEEP,
            "objects 100,000 deep": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
            "a number of 5,000 digits": b'{"a": ' + b"9" * DIGITS + b"}",
            "cut off": data[: len(data) // 2],
        }.items()
    )
    value = json.loads(data)
    if isinstance(value, dict) and value:
        name = json.dumps(next(iter(value))).encode()
        rest = data.strip().removeprefix(b"{")
        yield Mutation(
            "json: a first value 100,000 deep", b"{" + name + b":" + b"[" * DEEP + b"]" * DEEP + b"," + rest, False
        )
        yield Mutation("json: another value 100,000 deep", b'{"zz":' + b"[" * DEEP + b"]" * DEEP + b"," + rest, True)
        yield Mutation("json: another number of 5,000 digits", b'{"zz":' + b"9" * DIGITS + b"," + rest, True)
        yield Mutation("json: a number beyond floats", b'{"zz": 1e999,' + rest, False)
        yield Mutation("json: a value 900 deep", b'{"zz":' + b"[" * 900 + b"]" * 900 + b"," + rest, False)


def json_values(value: Any, *, depth: int = 2) -> Iterator[tuple[str, bytes]]:
    """The same JSON with one value replaced, by each of `ODD`, or left out; lists by their first item."""
    for path in _paths(value, depth):
        name = ".".join(map(str, path))
        yield f"{name} left out", json.dumps(_with(value, path, None, leave_out=True)).encode()
        for odd in ODD:
            yield f"{name} = {json.dumps(odd)[:20]}", json.dumps(_with(value, path, odd)).encode()


def _paths(value: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, item in list(items)[:40]:
        yield (key,)
        if depth > 1:
            yield from ((key, *rest) for rest in _paths(item, depth - 1))


def _with(value: Any, path: tuple[Any, ...], new: Any, *, leave_out: bool = False) -> Any:
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) > 1:
        copy[path[0]] = _with(copy[path[0]], path[1:], new, leave_out=leave_out)
    elif leave_out:
        del copy[path[0]]
    else:
        copy[path[0]] = new
    return copy


def archives(data: bytes) -> Iterator[Mutation]:
    """Damaged .gz files; `data` is unpacked."""
    packed = gzip.compress(data, mtime=0)
    for name, content, refused in (
        ("cut off", packed[:-9], True),
        ("without its end", packed[:-4], True),
        ("another checksum", packed[:-8] + b"\0\0\0\0" + packed[-4:], True),
        ("another size", packed[:-4] + b"\1\0\0\0", True),
        ("a damaged stream", packed[:12] + b"\xff" * 20 + packed[32:], True),
        ("an unknown method", packed[:2] + b"\7" + packed[3:], True),
        ("a header alone", packed[:10], True),
        ("half a header", packed[:5], True),
        ("not packed", data, True),
        ("packed twice", gzip.compress(packed, mtime=0), True),
        ("something behind it", packed + b"xyz", True),
        ("of nothing", gzip.compress(b"", mtime=0), True),
        ("of two parts", packed + gzip.compress(b"", mtime=0), False),
    ):
        yield Mutation(f"gz: {name}", content, refused)


def tomls(data: bytes) -> Iterator[Mutation]:
    """TOML that is none, or too much for a parser."""
    text = data.decode()
    lines = [i for i, line in enumerate(text.splitlines()) if " = " in line]
    for name, content in {
        "empty": "",
        "arrays 100,000 deep": "a = " + "[" * DEEP + "]" * DEEP + "\n" + text,
        "tables 5,000 deep": "a = " + "{a = " * 5_000 + "1" + "}" * 5_000 + "\n" + text,
        "a key of 100,000 parts": ".".join("a" * DEEP) + " = 1\n" + text,
        "a table of 100,000 parts": text + "[" + ".".join("a" * DEEP) + "]\n",
        "a number of 5,000 digits": "a = " + "9" * DIGITS + "\n" + text,
        "a seed of 5,000 digits": text.replace("seed = 0", "seed = " + "9" * DIGITS),
        "a seed of 5,000 hexadecimal digits": text.replace("seed = 0", "seed = 0x" + "f" * DIGITS),
        "a float of 5,000 digits": text.replace("seed = 0", "seed = " + "9" * DIGITS + ".0"),
        "no TOML": "<recipe/>",
        "a key twice": "seed = 1\n" + text,
        "a date": text.replace("seed = 0", "seed = 1979-05-27"),
    }.items():
        yield Mutation(f"toml: {name}", content.encode())
    for i in lines:
        key = text.splitlines()[i].partition(" = ")[0]
        for odd in (
            "nan",
            "inf",
            "-1",
            "1e400",
            "[]",
            "[[]]",
            "{}",
            "1979-05-27",
            '""',
            f'"{"x" * 5000}"',
            '"\\u001b[31m[/red]"',
            '"\\u0000"',
            "true",
            '["\\u001b[31m[/x]"]',
        ):
            changed = [*text.splitlines()[:i], f"{key} = {odd}", *text.splitlines()[i + 1 :]]
            yield Mutation(f"toml: {key} = {odd[:20]}", "\n".join(changed).encode(), False)
