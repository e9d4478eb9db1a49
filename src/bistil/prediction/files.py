"""Whole files, piece by piece: memory does not grow with them, and a killed call goes on where it was."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from filelock import FileLock, Timeout

from bistil.errors import BistilError, InputError
from bistil.models.names import model_folder
from bistil.prediction.inputs import Form, Input, Lines, check_form, chunks, form_of, read_inputs
from bistil.prediction.predictor import SPLITTING, Format, Predictor, Wanted
from bistil.runtime.artefacts import (
    RECORD,
    claim,
    discard_work,
    file_digest,
    json_digest,
    manifest,
    open_work,
    read_sealed,
    whole_file,
    work_beside,
    write_json,
    write_sealed,
)
from bistil.runtime.documents import check_file
from bistil.runtime.memory import return_freed_heap
from bistil.runtime.ownership import contents, recorded_predictions, writer
from bistil.runtime.progress import Progress, say


def predict_file(
    predictor: Predictor,
    source: Path | None,
    output: Path | None = None,
    *,
    form: Form | None = None,
    format: Format | None = None,
    wanted: Wanted | None = None,
    columns: dict[str, str] | None = None,
    batch_size: int = 32,
    resume: bool = True,
    record_file: Path | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Write what a model says of all inputs of a file, in their order.

    Args:
        source: plain, .gz or .zst; None: standard input, whose lines are answered as they come.
        output: a new file, written whole or not at all; None: standard output.
        form: of the inputs; None: by the file's name (`FORM_OF`), or else running text.
        format: of the output; None: the inputs' own, or the task's.
        wanted: beyond the likeliest prediction.
        columns: which column is what, where names do not say it.
        batch_size: windows per forward pass.
        resume: go on where a killed call for the same output was; of standard input there is nothing to go on with.
        record_file: write the record here, as JSON.
        replace: a record of an earlier call gives way, and so do the predictions whose digest it holds.

    Returns:
        A record for JSON: "inputs", "file" with its "digest", "task", "model", "splitting", "settings", "seconds" and,
        with an output, "predictions" with its digest.

    Raises:
        InputError: an input is not what it must be, with its line; the task has no such form or format; an output may
            not be written; or what a killed call left is of other inputs, another model or other settings.
    """
    wanted, columns = wanted or Wanted(), columns or {}
    predictor.check_wanted(wanted)
    known = recorded_predictions(record_file)
    work = None if output is None or source is None else work_beside(output)
    claim(files=[output, record_file], work=work, inputs=[source, predictor.name], force=replace, known=known)
    if form is None:
        form = form_of(source, predictor.forms)
        if form == "text" and source is not None and predictor.texts != "question":
            check_form(source)
    chosen = _format(predictor, form, format)
    splitting = predictor.splitting(form)
    if splitting is not None:
        more = "" if splitting == "given" else "; words that are split already: --input words"
        say(f"words are {SPLITTING[splitting]}{more}")
    model = json_digest(manifest(model_folder(predictor.name)))
    settings = {
        "input": form,
        "format": chosen,
        **asdict(wanted),
        "columns": columns,
        "batch_size": batch_size,
        "max_length": predictor.max_length,
    }
    if source is not None:
        check_file(source, most=None)
    # Of the whole file: it may have been mended far from its beginning, and keep its size.
    digest = file_digest(source) if source is not None and (work or record_file) else None
    identity = {"input": digest, "model": model, "settings": settings}
    identity["settings"] = {**settings, **writer()}
    started, done = time.monotonic(), 0
    with _opened(output, work, identity, resume=resume, replace=replace, known=known) as sink:
        for number, chunk in enumerate(_shown(source, output, predictor, form, columns)):
            done += len(chunk)
            if number == 0:
                predictor.begin(chunk[0])
            if number >= sink.chunks:
                text = "".join(_written(predictor, chunk, chosen, wanted, batch_size=batch_size, first=number == 0))
                sink.add(text.encode())
                # Lengths differ from piece to piece, and what each leaves on the heap has holes (docs/predict.md).
                return_freed_heap()
    seconds = time.monotonic() - started
    record = {
        "kind": "prediction",
        "versions": writer(),
        "task": predictor.task.kind,
        "model": {"name": predictor.name, "digest": model},
        "inputs": done,
        "file": None if source is None else str(source),
        "digest": digest,
        "splitting": splitting,
        "settings": settings,
        "seconds": round(seconds, 2),
        **({} if output is None else {"predictions": {"file": str(output), "digest": file_digest(output)}}),
    }
    if record_file is not None:
        write_json(record_file, record, replace=replace)
    return record


def _format(predictor: Predictor, form: Form, format: Format | None) -> Format:
    """The format that is written.

    Raises:
        InputError: the task has no such form or format.
    """
    kind = predictor.task.kind
    if form not in predictor.forms:
        raise InputError(f"{kind} reads no {form}: choose with --input among {', '.join(predictor.forms)}")
    if format is not None and format not in predictor.formats:
        raise InputError(f"{kind} writes no {format}: choose with --format among {', '.join(predictor.formats)}")
    own: list[Format] = [one for one in predictor.formats if one == form]
    return format or (own or predictor.formats)[0]


def _written(
    predictor: Predictor, chunk: list[Input], format: Format, wanted: Wanted, *, batch_size: int, first: bool
) -> Iterator[str]:
    said = predictor.said(chunk, wanted, batch_size=batch_size)
    if format != "jsonl":
        yield from predictor.native(chunk, said, wanted, format=format, first=first)
        return
    for one, own in zip(chunk, said, strict=True):
        yield json.dumps(predictor.record(one, own, wanted), ensure_ascii=False, default=str) + "\n"


def _shown(
    source: Path | None, output: Path | None, predictor: Predictor, form: Form, columns: dict[str, str]
) -> Iterator[list[Input]]:
    """The chunks of a file, with progress where it does not stand among the predictions."""
    lines = Lines(source)
    found = chunks(read_inputs(lines, form, texts=predictor.texts, columns=columns), lines)
    if output is None and sys.stdout.isatty():
        yield from found
        return
    total = None if source is None else source.stat().st_size
    with Progress("predict", total=total, unit="bytes") as progress:
        for chunk in found:
            yield chunk
            progress.advance_to(lines.bytes)


class _Sink(Protocol):
    """Where predictions go; `chunks` are there already."""

    chunks: int

    def add(self, text: bytes) -> None:
        """The predictions of the next chunk."""


@dataclass
class _Stream:
    """Writes as it comes."""

    stream: BinaryIO
    chunks: int = 0

    def add(self, text: bytes) -> None:
        self.stream.write(text)
        self.stream.flush()


@dataclass
class _Growing:
    """A file in a work folder, with a journal of how far it is: what is behind that was not finished."""

    stream: BinaryIO
    journal: Path
    identity: dict[str, Any]
    chunks: int = 0

    def add(self, text: bytes) -> None:
        self.stream.write(text)
        self.stream.flush()
        # The journal must never be ahead of the file, not even after a power cut.
        os.fsync(self.stream.fileno())
        self.chunks += 1
        done = {"identity": self.identity, "chunks": self.chunks, "bytes": self.stream.tell()}
        write_sealed(self.journal, done)


@contextmanager
def _opened(
    output: Path | None, work: Path | None, identity: dict[str, Any], *, resume: bool, replace: bool, known: list[str]
) -> Iterator[_Sink]:
    """Where predictions are to be written; an output takes its place when the block ends without an error."""
    if output is None:
        yield _Stream(sys.stdout.buffer)
    elif work is None:
        with whole_file(output, replace=replace, known=known) as partial, partial.open("wb") as stream:
            yield _Stream(stream)
    else:
        refused = False
        try:
            with (
                _own_work(work, anew=not resume),
                whole_file(output, replace=replace, known=known, grown=work / GROWN) as partial,
                partial.open("r+b") as stream,
            ):
                taken_up = _taken_up(stream, work / JOURNAL, identity, output)
                try:
                    yield taken_up
                except BistilError:
                    refused = True
                    raise
        except BistilError:
            if refused:
                # The input is to be mended first, and is another one then.
                discard_work(work)
            raise
        discard_work(work)


JOURNAL, GROWN, LOCK = "journal.json", "predictions", "lock"


def _taken_up(stream: BinaryIO, journal: Path, identity: dict[str, Any], output: Path) -> _Growing:
    """The file behind its last whole chunk.

    Raises:
        InputError: it is that of another call.
        ArtefactError: it was changed.
    """
    if not journal.is_file():
        stream.truncate(0)
        return _Growing(stream, journal, identity)
    known = read_sealed(journal)
    plain = json.loads(json.dumps(identity))
    differing = [name for name in plain if known.get("identity", {}).get(name) != plain[name]]
    if differing or stream.seek(0, os.SEEK_END) < known["bytes"]:
        what = f"another {' and other '.join(differing)}" if differing else "a file that was changed since"
        raise InputError(
            f"{journal.parent} holds the beginning of {output.name} for {what}: --no-resume starts anew, or name "
            "another output"
        )
    stream.truncate(known["bytes"])
    stream.seek(known["bytes"])
    say(f"{output} is gone on with behind {known['bytes']:,} bytes")
    return _Growing(stream, journal, identity, known["chunks"])


@contextmanager
def _own_work(work: Path, *, anew: bool) -> Iterator[None]:
    """The work folder, which one call at a time writes into.

    Raises:
        InputError: another one does, or it is that of another command.
    """
    there = set(contents(work)) - {RECORD, JOURNAL, GROWN, LOCK} if work.is_dir() else set()
    # A kill may leave a journal that was being written.
    other = sorted(name for name in there if not name.startswith(f".{JOURNAL}."))
    if other:
        raise InputError(f"{work} holds the work of another command ({other[0]}): name another output")
    open_work(work, anew=anew)
    try:
        with FileLock(work / LOCK, timeout=0):
            if not (work / GROWN).exists():
                # It took the output's place already, or there was none yet.
                (work / JOURNAL).unlink(missing_ok=True)
            (work / GROWN).touch()
            yield
    except Timeout as error:
        raise InputError(f"{work} is in use: another call is writing the same output") from error
