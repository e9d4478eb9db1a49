"""`write_page`: a static folder in which an exported model runs wholly in the browser."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import category

from bistil._version import __version__
from bistil.engines.onnx import GRAPH
from bistil.errors import ArtefactError, InputError
from bistil.export.browser import TASKS, shown_in_browser, student_values
from bistil.export.libraries import LICENCE, PACKAGE, PAGE, VERSION, Library, browser_library
from bistil.export.proof import why_it_failed
from bistil.models.exported import engine_of, exported_record
from bistil.models.loading import read_config
from bistil.models.names import model_folder
from bistil.models.tokenizers import PROBE, TOKENIZER_FILE, definition, to_json
from bistil.prediction.loading import load
from bistil.prediction.predictor import Predictor, Wanted
from bistil.runtime.artefacts import RECORD, claim, json_digest, manifest, whole_folder, write_json
from bistil.runtime.progress import say
from bistil.tasks import get_task, kind_of

KIND = "web page"
OURS = ("index.html", "style.css", "page.mjs", "student.mjs", "tokenizer.mjs")
ENGINE = "onnxruntime"
STUDENT, ABOUT, LICENCES = "student.json", "about.json", "LICENSES.txt"
# So many texts of the tokenizer's own tokens, of so many tokens each, are compared beside `PROBE`.
TEXTS, TOKENS = 100, 12
MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def write_page(
    exported: Path, output: Path, *, libraries: Path | None = None, title: str | None = None, replace: bool = False
) -> dict[str, Any]:
    """Write a folder that any web server can serve, at any path: the page, the model, and all that runs it.

    Where Node.js is installed, the page's own code must give the tokens that Python gives; the record says on how many
    texts it did, or that it was not asked.

    Args:
        exported: a folder that was exported for onnxruntime.
        output: a new folder.
        libraries: a folder of node modules; None: npm fetches them once into the user's cache.
        title: of the page; None: the name of the model that was exported.
        replace: a folder of ours gives way.

    Returns:
        The record of the folder: "kind", "task", "tokens" (how they were compared), "bytes", "parents".

    Raises:
        InputError: the model is not exported for onnxruntime, or the page shows no such task or tokenizer.
        ArtefactError: the model is damaged, or the page would read other tokens.
        MissingExtraError: npm is missing or fetches nothing, or onnxruntime is not installed.
    """
    claim(folders=[output], inputs=[exported, libraries], force=replace)
    check_page(exported)
    if engine_of(exported) != ENGINE:
        raise InputError(f"{exported} is not exported for {ENGINE}, which is what runs in the browser")
    library = browser_library(libraries)
    record = exported_record(exported) or {}
    predictor: Predictor = load(exported, max_length=record.get("max_length"), threads=1)
    values = student_values(predictor)
    parent = record.get("parents", {}).get("model", {}).get("name", exported.name)
    with whole_folder(output, replace=replace) as folder:
        for name in OURS:
            shutil.copyfile(PAGE / name, folder / name)
        shutil.copyfile(exported / GRAPH, folder / GRAPH)
        # In the form of numbers that every parser reads as the same ones.
        text = to_json(definition(predictor.tokenizer) | {"truncation": None, "padding": None})
        (folder / TOKENIZER_FILE).write_text(text, encoding="utf-8")
        # Without spaces: it is sent over the wire.
        small = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        (folder / STUDENT).write_text(small, encoding="utf-8")
        _copy_library(library, folder / ENGINE)
        (folder / LICENCES).write_text(_licences(), encoding="utf-8")
        sizes = {one.relative_to(folder).as_posix(): one.stat().st_size for one in sorted(folder.rglob("*.*"))}
        about = {
            "title": title or parent,
            "line": f"{predictor.task.kind}, {record.get('precision', 'float32')}: a model of bistil that runs in "
            "this browser.",
            "runtime": VERSION,
            "bytes": sum(sizes[name] for name in (STUDENT, TOKENIZER_FILE, GRAPH)),
        }
        write_json(folder / ABOUT, about, inner=True)
        found: dict[str, Any] = {
            "kind": KIND,
            "task": predictor.task.kind,
            "tokens": _compare(predictor, folder),
            "bytes": sizes,
            "versions": {"bistil": __version__, PACKAGE: VERSION},
            "parents": {"model": {"name": exported.name, "digest": json_digest(manifest(exported))}},
        }
        write_json(folder / RECORD, found, inner=True)
    return found


def check_page(model: str | Path, *, task: str | None = None) -> None:
    """Before any work: make sure that the page shows what a model does.

    Raises:
        InputError: it is for another task.
    """
    kind = task or kind_of(read_config(model_folder(str(model))), str(model))
    if not shown_in_browser(get_task(kind)):
        raise InputError(f"a page in the browser is for {', '.join(TASKS)}; this model is for {kind}")


def _copy_library(library: Library, folder: Path) -> None:
    folder.mkdir()
    for name, file in library.files.items():
        shutil.copyfile(file, folder / name)


def _licences() -> str:
    return (
        f"{', '.join(OURS)}, {STUDENT}: bistil {__version__}, Apache License 2.0 (SPDX: Apache-2.0).\n\n"
        f"{ENGINE}/: {PACKAGE} {VERSION}, {LICENCE} License (SPDX: {LICENCE}), as the package says. What is compiled "
        "into it and its licences is listed in the file ThirdPartyNotices.txt of ONNX Runtime's source.\n\n"
        f"Copyright (c) Microsoft Corporation\n\n{MIT}\n\n"
        f"{GRAPH}, {TOKENIZER_FILE}: the licence of the model that they were made from.\n"
    )


def _compare(predictor: Predictor, folder: Path) -> dict[str, Any]:
    """Whether the page's code gives Python's tokens, on texts in many scripts and on texts of the model's own tokens.

    Raises:
        ArtefactError: it does not.
    """
    node = shutil.which("node")
    if node is None:
        say("the page's tokens were not compared with Python's: Node.js is not installed")
        return {"texts": 0}
    known = sorted(
        token for token in predictor.tokenizer.get_vocab() if token not in predictor.tokenizer.all_special_tokens
    )
    step = max(1, len(known) // (TEXTS * TOKENS))
    own = predictor.tokenizer.convert_tokens_to_string
    drawn = known[::step][: TEXTS * TOKENS]
    texts = [*PROBE, *(own(drawn[i : i + TOKENS]) for i in range(0, len(drawn), TOKENS))]
    # What is younger than this Python may be split into other words.
    texts = [text for text in texts if text.strip() and not any(category(char) == "Cn" for char in text)]
    done = subprocess.run(
        [node, str(PAGE / "check.mjs"), str(folder.resolve())],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 0:
        raise ArtefactError(f"the page's code does not run in Node.js ({why_it_failed(done):.200})")
    for text, theirs in zip(texts, json.loads(done.stdout), strict=True):
        if theirs != expected_inputs(predictor, text):
            raise ArtefactError(
                f"the page would read other tokens than Python, first of {text!r:.80}: please report it"
            )
    return {"texts": len(texts), "with": "Node.js"}


def expected_inputs(predictor: Predictor, text: str) -> list[list[Any]]:
    """Per window of a text its ids and, of words, [position of the first subword, index of the word]."""
    examples = [one for one, _ in predictor.examples(predictor.asked(text), Wanted())]
    features: Sequence[Any] = predictor.task.encode(
        examples, predictor.tokenizer, predictor.max_length, labels=predictor.labels
    )
    return [[one["input_ids"], [list(pair) for pair in one.get("targets", ())]] for one in features]
