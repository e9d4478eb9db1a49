"""What on disk is ours: folders and files are recognised by the record that this package left in them.

Only what is ours may give way to a new output (`runtime.artefacts.claim`); everything else belongs to somebody.
"""

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bistil._version import __version__
from bistil.runtime.documents import parse_json

# The record of a folder that was written whole; its entry "files" names what was written, with SHA-256.
RECORD = "bistil.json"
# People edit the card, so it is on no list.
CARD = "README.md"
# Kinds of work folders: what is in them comes and goes, so they have no list.
WORK = "work"
# What a picture and a page say of who made them.
CREATOR = f"bistil {__version__}"
# Records that are files of their own, by "kind".
FILE_RECORDS = ("evaluation", "benchmark", "prediction")
# What the first line of a text of ours begins with; it ends with the digest of all others, which an edit changes.
_MARK = "# Written by bistil "
# Longer JSON than this is no record.
_LONGEST_RECORD = 1 << 28

# The first release wrote no lists. These are the names it gave; other files in its folders are somebody's.
_EARLIER_NAMES = (
    RECORD, CARD, "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spm.model", "spiece.model",
    "vocabulary_map.safetensors", "trim_report.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "sft.safetensors", "sft_config.json", "phase1.json", "train_log.jsonl",
)  # fmt: skip
_EARLIER_PAGE = b"--teacher: #4a5560; --trimmed: #8a6a1f; --copied: #b4532a; --student: #0b6e5d;"
_EARLIER_WORK = ("identity.json", "sparse.json", "clock.json", "training/identity.json", "training/sparse.json")


def writer() -> dict[str, str]:
    """What every record says at least of who wrote it."""
    return {"bistil": __version__}


def is_our_folder(folder: Path) -> bool:
    """Whether a folder was written by this package, by its record or the records of the first release."""
    if _names_us(_json(folder / RECORD)):
        return True
    if (folder / "sft.safetensors").is_file() and {"format", "shapes"} <= _json(folder / "sft_config.json").keys():
        return True
    return {"students", "blocks", "steps"} <= _json(folder / "phase1.json").keys()


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run (`stages.RunFolder`)."""
    return "identity" in _json(folder / "run.json")


def is_work_folder(folder: Path) -> bool:
    """Whether a folder is one that checkpoints and caches are kept in while something is made."""
    record = _json(folder / RECORD)
    if record.get("kind") == WORK and _names_us(record):
        return True
    if {"source", "target", "seed", "labels", "counts"} <= _json(folder / "data.json").keys():  # the demo's data
        return True
    return any("digest" in _json(folder / name) for name in _EARLIER_WORK)


def not_ours(folder: Path, *, recorded: bool = True) -> str | None:
    """The first thing in a folder of ours that is not on its record's list; None: all of it is ours.

    Args:
        recorded: whether the folder has a record; without one, names tell what is ours.
    """
    listed = _json(folder / RECORD).get("files")
    for name in contents(folder):
        mode = (folder / name).lstat().st_mode
        ours = _listed(name, listed) if isinstance(listed, dict) else _earlier_name(folder, name, recorded=recorded)
        if not (ours and stat.S_ISREG(mode)):
            return name
    return None


def contents(folder: Path) -> Iterator[str]:
    """Relative names of everything below a folder that is not a folder, in order; links are not followed."""
    for where, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (Path(where) / name).relative_to(folder).as_posix()


def is_our_file(path: Path) -> bool:
    """Whether a file says of itself that this package wrote it: a record, a picture, a report, token counts.

    Predictions are in the format of the files they are made from and say nothing.
    """
    with path.open("rb") as stream:
        begin = stream.read(4096)
    if begin.startswith(b"{"):
        return _is_file_record(_json(path))
    if begin.startswith(b"\x89PNG"):
        return b"tEXtSoftware\x00bistil " in begin
    if begin.startswith(b"%PDF-"):
        small = path.stat().st_size <= _LONGEST_RECORD
        return small and re.search(rb"/Creator \(bistil [^)]*\)", path.read_bytes()) is not None
    if b"<svg" in begin:
        return re.search(rb"<dc:creator>\s*<cc:Agent>\s*<dc:title>bistil ", begin) is not None
    if begin.startswith(b"<!doctype html>"):
        return b'<meta name="generator" content="bistil ' in begin or _EARLIER_PAGE in begin
    if begin.startswith(_MARK.encode()):
        return _is_marked(path.read_bytes())
    # safetensors: the length of a JSON header, eight bytes, and the header.
    return begin[8:].startswith(b'{"__metadata__":{"bistil_counts":')


def marked_text(text: str) -> str:
    """A text whose comments begin with `#`, under a line by which `is_our_file` knows it until it is edited."""
    return f"{_MARK}{__version__}; as it was written while its SHA-256 is {_digest(text.encode())}\n{text}"


def _is_marked(text: bytes) -> bool:
    mark, _, rest = text.partition(b"\n")
    return mark.endswith(_digest(rest).encode())


def _digest(rest: bytes) -> str:
    return hashlib.sha256(rest).hexdigest()


def recorded_predictions(record: Path | None) -> list[str]:
    """SHA-256 of the predictions that a record of ours was written with; none where there is no such record."""
    if record is None or not record.is_file() or not is_our_file(record):
        return []
    known = _json(record).get("predictions") or {}
    return [known["digest"]] if "digest" in known else []


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file or it holds something else."""
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST_RECORD:
            return {}
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _names_us(record: dict[str, Any]) -> bool:
    """Whether a record says that this package wrote it; two writers of the first release said it in other words."""
    named = record.get("versions")
    return (
        (isinstance(named, dict) and "bistil" in named)
        or (record.get("kind") == "pretrained" and "bistil" in record)
        or record.keys() == {"base", "sparse_fine_tunings", "scale"}
    )


def _is_file_record(record: dict[str, Any]) -> bool:
    if record.get("kind") in FILE_RECORDS:
        return _names_us(record)
    evaluation = {"metric", "score", "scores", "task", "examples"} <= record.keys() and _names_us(record)
    summary = {"schema", "name", "stages", "models"} <= record.keys() and _names_us(record)
    machine = record.get("machine")
    benchmark = {"schema", "texts", "models"} <= record.keys() and isinstance(machine, dict) and "bistil" in machine
    return evaluation or summary or benchmark


def _listed(name: str, listed: Collection[str]) -> bool:
    """Whether a name is on a record's list, or is that of the record or of a card beside files on the list."""
    beside, _, own = name.rpartition("/")
    return name in listed or name == RECORD or (own == CARD and any(one.rpartition("/")[0] == beside for one in listed))


def _earlier_name(folder: Path, name: str, *, recorded: bool) -> bool:
    """Whether the first release could have given this name in this folder of its own."""
    first, *rest = name.split("/")
    if not rest:
        return any(fnmatch(first, one) for one in _EARLIER_NAMES)
    if not recorded:
        return False
    if first == "sft" and len(rest) == 2:
        return rest[1] in ("sft.safetensors", "sft_config.json", CARD)
    if first == "tensorboard" or re.fullmatch(r"\d+_\w+", first):  # modules of sentence-transformers are numbered
        return True
    student = (folder / "phase1.json").is_file() and is_our_folder(folder / first)
    return student and len(rest) == 1 and any(fnmatch(rest[0], one) for one in _EARLIER_NAMES)
