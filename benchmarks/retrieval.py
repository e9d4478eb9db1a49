"""Retrieval of translations by sentence vectors: the teacher, what is distilled out of it, and static vectors.

    python benchmarks/retrieval.py --data ../shared/data --work runs/retrieval --record retrieval.jsonl
    python benchmarks/retrieval.py ... --languages swh_Latn=swa deu_Latn=deu --steps 20 --lines 400     # a smoke
    python benchmarks/retrieval.py --record retrieval.jsonl --table                                # the table alone

Per language the parallel test sentences of SIB-200 (204) are looked up by their translations among all of them, both
ways: accuracy of the nearest (cosine), mean reciprocal rank; and the cosine of each vector to the teacher's own. With
--distractors the 800 other sentences of SIB-200 are among the candidates too, which is harder. The teacher is e5-small;
per language it is trimmed to the texts of English and the language, and students of half and a third of its layers come
out of phase 1 on these texts. Static vectors are model2vec's distillation of the trimmed teacher, made by the
interpreter of --static-python (`pip install 'model2vec[distill,quantization]'`; it wants other versions of transformers
than bistil, so give it an environment of its own); left out where it has none. int8 is bistil's export of the students.

The record gets a row per language and system as it is made; a killed call goes on where it was, in the same --work.
Rows hold scores, ranks, counts and digests, no sentence. The teacher's training may have held these sentences: compare
the rows with the teacher's, and do not read them as what unseen text would give.
"""

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bistil
from bistil.distillation.general import distill_general
from bistil.errors import MissingExtraError
from bistil.export.folder import export_model
from bistil.measuring.benchmark import machine
from bistil.pretrained import e5_small_folder
from bistil.runtime.artefacts import file_digest, folder_digest, json_digest
from bistil.settings.presets import phase1_preset
from bistil.vocabulary import trim_vocabulary

# SIB-200's name of a language, and that of its text.
LANGUAGES = (
    "swh_Latn=swa", "deu_Latn=deu", "spa_Latn=spa", "ron_Latn=ron", "vie_Latn=vie", "hin_Deva=hin",
    "arb_Arab=ara", "zho_Hans=zho", "jpn_Jpan=jpn", "hau_Latn=hau", "ibo_Latn=ibo", "kin_Latn=kin",
)  # fmt: skip
ENGLISH = "eng_Latn=eng"
REDUCTIONS = (2, 3)
SAMPLES = 2_000
NOTE = "The teacher's training may have held these sentences: rows compare systems, not with unseen text."

STATIC_NAME = "model2vec"
STATIC = """
import io, json, sys
import numpy as np
if sys.argv[1] == "distil":
    from model2vec.distill import distill_from_model
    from transformers import AutoModel, AutoTokenizer
    model, tokenizer = (one.from_pretrained(sys.argv[2]) for one in (AutoModel, AutoTokenizer))
    distill_from_model(model, tokenizer, device="cpu").save_pretrained(sys.argv[3])
else:
    from model2vec import StaticModel
    vectors = StaticModel.from_pretrained(sys.argv[2]).encode(json.load(sys.stdin), use_multiprocessing=False)
    written = io.BytesIO()
    np.save(written, np.asarray(vectors, np.float32))
    sys.stdout.buffer.write(written.getvalue())
"""

Encode = Callable[[Sequence[str]], np.ndarray]


def sentences(file: Path) -> dict[str, str]:
    """Text by index of a file of SIB-200."""
    with file.open(encoding="utf-8", newline="") as stream:
        return {row["index_id"]: row["text"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)}


def other_sentences(folder: Path) -> list[str]:
    """Those of SIB-200's training and dev parts."""
    found = list(sentences(folder / "dev.tsv").values())
    if (folder / "train.tsv").is_file():
        return found + list(sentences(folder / "train.tsv").values())
    return found + (folder / "unlabelled.txt").read_text(encoding="utf-8").splitlines()


def ranks(queries: np.ndarray, candidates: np.ndarray) -> list[int]:
    """Per query the rank, from 1, of the candidate of the same row, by cosine; of equal ones the last.

    Args:
        queries, candidates: (rows, width); there may be more candidates, behind those that are looked for.
    """
    left, right = (one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12) for one in (queries, candidates))
    scores = left @ right.T
    found: list[int] = (scores >= np.diag(scores)[:, None]).sum(axis=1).tolist()
    return found


def figures(own: Sequence[int]) -> dict[str, float]:
    """Accuracy of the nearest and mean reciprocal rank, in percent."""
    values = np.asarray(own, np.float64)
    return {"accuracy": 100 * float((values == 1).mean()), "mrr": 100 * float((1 / values).mean())}


def first_lines(source: Path, lines: int, target: Path) -> Path:
    """A copy of the first lines of a file."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open(encoding="utf-8") as stream:
            text = "".join(line for _, line in zip(range(lines), stream, strict=False))
        partial = target.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    return target


class Language:
    """What is made and measured of one language.

    Args:
        name, text: of the language in SIB-200 and among the texts.
        settings: what everything here depends on.
    """

    def __init__(self, options: argparse.Namespace, name: str, text: str, settings: dict[str, Any]) -> None:
        self.options, self.name, self.text = options, name, text
        self.folder: Path = options.work / f"{name}-{json_digest(settings)[:12]}"
        english, own = (
            first_lines(options.data / "text" / f"{one}.txt", options.lines, self.folder / f"{one}.txt")
            for one in (ENGLISH.partition("=")[2], text)
        )
        self.texts = {ENGLISH.partition("=")[2]: [english], text: [own]}
        self.trimmed: Path = self.folder / "trimmed"
        self.students: Path = self.folder / "phase1"

    def make_trimmed(self) -> Path:
        if not self.trimmed.exists():
            trim_vocabulary(e5_small_folder(), self.texts, self.trimmed, replace=True)
        return self.trimmed

    def make_student(self, reduction: int) -> Path:
        if not self.students.exists():
            settings = phase1_preset("short")
            settings = replace(settings, training=replace(settings.training, steps=self.options.steps))
            distill_general(
                self.make_trimmed(),
                [bistil.Student(reduction=one) for one in REDUCTIONS],
                self.texts,
                self.students,
                settings=settings,
                seed=self.options.seed,
                work=self.folder / "work",
                label=self.name,
            )
            shutil.rmtree(self.folder / "work", ignore_errors=True)
        return self.students / f"lrf{reduction}"

    def make_export(self, reduction: int, engine: str) -> Path:
        folder = self.folder / f"lrf{reduction}-{engine}"
        if not folder.exists():
            # Phase 1's own text, for smoothing: no sentence of the test.
            export_model(self.make_student(reduction), folder, engine=engine, text=self.texts[self.text][0])
        return folder

    def make_static(self) -> Path:
        folder = self.folder / "model2vec"
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            static(self.options.static_python, "distil", str(self.make_trimmed()), str(partial))
            partial.replace(folder)
        return folder

    def systems(self) -> Iterator[tuple[str, Callable[[], Path]]]:
        """Names, and what makes their folders."""
        yield "teacher", e5_small_folder
        yield "trimmed", self.make_trimmed
        for one in REDUCTIONS:
            yield f"lrf{one}", lambda one=one: self.make_student(one)  # type: ignore[misc]
        for engine in self.options.engines:
            for one in REDUCTIONS:
                yield f"lrf{one} int8 {engine}", lambda one=one, engine=engine: self.make_export(one, engine)  # type: ignore[misc]
        if not self.options.without_static:
            yield STATIC_NAME, self.make_static


def static(python: str, *arguments: str, given: str = "") -> bytes:
    """Run `STATIC` in another interpreter; returns what it wrote."""
    done = subprocess.run([python, "-c", STATIC, *arguments], input=given.encode(), stdout=subprocess.PIPE, check=True)
    return done.stdout


def encoder(options: argparse.Namespace, system: str, folder: Path) -> Encode:
    """What makes vectors of texts."""
    if system == STATIC_NAME:

        def vectors(texts: Sequence[str]) -> np.ndarray:
            written = static(options.static_python, "encode", str(folder), given=json.dumps(list(texts)))
            found: np.ndarray = np.load(io.BytesIO(written))
            return found

        return vectors
    encode: Encode = bistil.load(folder, device="cpu").encode
    return encode


def measure(
    language: Language,
    system: str,
    folder: Path,
    pair: dict[str, list[str]],
    tests: int,
    exact: dict[str, np.ndarray],
) -> dict[str, Any]:
    """A row of the record.

    Args:
        pair: English and the language's sentences: those that are looked up in one order, then distractors.
        tests: how many are looked up.
        exact: the teacher's vectors of them, which the teacher's own row fills.
    """
    encode = encoder(language.options, system, folder)
    start = time.process_time()
    found = {name: encode(texts) for name, texts in pair.items()}
    seconds = time.process_time() - start
    if system == "teacher":
        exact |= found
    own = {
        "to_english": ranks(found["language"][:tests], found["english"]),
        "from_english": ranks(found["english"][:tests], found["language"]),
    }
    # Static vectors have dimensions of their own.
    cosine = None
    if system != STATIC_NAME:
        cosine = {name: float((found[name] * exact[name])[:tests].sum(axis=1).mean()) for name in pair}
    size = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
    return {
        "language": language.name,
        "system": system,
        **{way: figures(one) for way, one in own.items()},
        "cosine_to_teacher": cosine,
        "sentences": tests,
        "candidates": {name: len(own) for name, own in pair.items()},
        "ranks": own,
        "bytes": size,
        "width": found["english"].shape[1],
        "cpu_seconds": round(seconds, 2),
        "digest": folder_digest(folder),
    }


def rows_of(record: Path) -> list[dict[str, Any]]:
    """Whole rows of a record; what a killed call left of a line is cut off."""
    if not record.exists():
        return []
    lines = record.read_bytes().split(b"\n")
    if lines[-1]:
        record.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
    return [json.loads(line) for line in lines[:-1]]


def add(record: Path, row: dict[str, Any]) -> None:
    """Put down a row at once."""
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _settings(row: dict[str, Any]) -> tuple[Any, ...]:
    """What rows of one table have in common."""
    settings = row["settings"]
    return settings["steps"], settings["lines"], settings["seed"], row["tests"].get("distractors")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Per system the means over languages that all systems have, with 95% intervals of the difference to the teacher;
    of rows that were made like the last one.

    Sentences are drawn jointly for all languages and systems, for they are the same ones, translated.
    """
    made = [_settings(row) for row in rows]
    measured = [row for row, own in zip(rows, made, strict=True) if own == made[-1]]
    names = list(dict.fromkeys(row["system"] for row in measured))
    by = {(row["system"], row["language"]): row for row in measured}
    languages = [
        one for one in dict.fromkeys(row["language"] for row in measured) if all((n, one) in by for n in names)
    ]
    if not languages:
        return "no language has been measured with all systems yet"
    ways = ("to_english", "from_english")
    right = {n: np.array([[np.equal(by[n, one]["ranks"][way], 1) for way in ways] for one in languages]) for n in names}
    count = right[names[0]].shape[-1]
    draws = np.random.default_rng(0).integers(count, size=(SAMPLES, count))
    lines = [
        f"{len(languages)} languages: {', '.join(languages)}; {measured[-1]['settings']['steps']} steps of phase 1, "
        f"{measured[-1]['candidates']['english']} candidates",
        "",
        "| system | MB | X to English | English to X | MRR | accuracy to the teacher's | cosine |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        own = [by[name, one] for one in languages]
        to, out = (float(np.mean([row[way]["accuracy"] for row in own])) for way in ways)
        mrr = float(np.mean([row[way]["mrr"] for row in own for way in ways]))
        gaps = (right[name].astype(float) - right["teacher"]).mean(axis=(0, 1))
        low, high = 100 * np.percentile(gaps[draws].mean(axis=1), [2.5, 97.5])
        cosines = [value for row in own for value in (row["cosine_to_teacher"] or {}).values()]
        gap = "" if name == "teacher" else f"{100 * gaps.mean():+.1f} ({low:+.1f} to {high:+.1f})"
        cosine = f"{np.mean(cosines):.3f}" if cosines else ""
        size = np.mean([row["bytes"] for row in own]) / 1e6
        lines.append(f"| {name} | {size:.1f} | {to:.1f} | {out:.1f} | {mrr:.1f} | {gap} | {cosine} |")
    return "\n".join([*lines, "", NOTE])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="with topics/sib200/LANGUAGE/test.tsv and text/LANGUAGE.txt")
    parser.add_argument("--work", type=Path, help="models stay here, and are not made again")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=list(LANGUAGES), metavar="SIB=TEXT")
    parser.add_argument("--steps", type=int, default=600, help="of phase 1")
    parser.add_argument("--lines", type=int, default=20_000, help="of each text, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="*", default=["onnxruntime"], help="of the int8 exports")
    parser.add_argument("--distractors", action="store_true", help="the other sentences of SIB-200 as candidates too")
    parser.add_argument(
        "--static-python", default=sys.executable, help="interpreter that has model2vec[distill,quantization]"
    )
    parser.add_argument("--without-static", action="store_true", help="leave model2vec out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of the record, and make nothing")
    options = parser.parse_args()
    known = rows_of(options.record)
    if not options.table:
        if options.data is None or options.work is None:
            parser.error("--data and --work are needed")
        torch.set_num_threads(options.threads)
        if not options.without_static:
            asked = subprocess.run(
                [options.static_python, "-c", "import model2vec.distill"], capture_output=True, check=False
            )
            if asked.returncode:
                print("model2vec is left out: --static-python has no model2vec[distill,quantization]", flush=True)
                options.without_static = True
        run(options, known)
    print(table(rows_of(options.record)))


def run(options: argparse.Namespace, known: Sequence[dict[str, Any]]) -> None:
    """Make and measure what the record lacks."""
    english = options.data / "topics/sib200" / ENGLISH.partition("=")[0] / "test.tsv"
    for given in options.languages:
        name, _, text = given.partition("=")
        file = options.data / "topics/sib200" / name / "test.tsv"
        texts = {one: file_digest(options.data / "text" / f"{one}.txt") for one in (ENGLISH.partition("=")[2], text)}
        settings = {"steps": options.steps, "lines": options.lines, "seed": options.seed, "texts": texts}
        tests: dict[str, Any] = {"english": file_digest(english), "language": file_digest(file)}
        tests["distractors"] = options.distractors
        same = {"settings": settings, "tests": tests}
        done = {r["system"] for r in known if r["language"] == name and all(r[key] == same[key] for key in same)}
        language = Language(options, name, text, settings)
        left, right = sentences(english), sentences(file)
        both = sorted(left.keys() & right.keys())
        pair = {"english": [left[one] for one in both], "language": [right[one] for one in both]}
        if options.distractors:
            pair["english"] += other_sentences(english.parent)
            pair["language"] += other_sentences(file.parent)
        exact: dict[str, np.ndarray] = {}
        for system, make in language.systems():
            if system in done:
                continue
            if system != "teacher" and not exact:
                encode = encoder(options, "teacher", e5_small_folder())
                exact |= {one: encode(own) for one, own in pair.items()}
            start, before = time.monotonic(), time.process_time()
            try:
                folder = make()
            except MissingExtraError as error:
                print(f"{name}, {system}: {error}", flush=True)
                continue
            made, made_cpu = round(time.monotonic() - start, 1), round(time.process_time() - before, 1)
            row = measure(language, system, folder, pair, len(both), exact)
            row |= {
                **same,
                "making_seconds": made,
                "making_cpu_seconds": made_cpu,
                "machine": machine(),
                "threads": options.threads,
            }
            add(options.record, row)
            print(f"{name}, {system}: {row['to_english']['accuracy']:.1f} to English, "
                  f"{row['from_english']['accuracy']:.1f} from English, {made} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
