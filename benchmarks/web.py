"""A student in the browser: is it the one in Python, how many bytes cross the wire, how long does a sentence take?

    python benchmarks/web.py PAGE EXPORTED --text FOLDER --sentences FILE [--lines 2000] [--count 200]

PAGE is what `bistil export EXPORTED --web PAGE` wrote. The page's own code runs in headless Chromium, from a server on
this machine, on one thread (and on several, with the headers that allow it), with an empty cache each time. It must
give Python's tokens, with their offsets, on lines of all files of FOLDER (one language each, as many lines of each as
it takes), what a sentence is to the model (ids, windows, first subwords of words) there too, and the labels of
onnxruntime in Python on lines of FILE, one at a time.
Times of the wall are slowed by other work on the machine; "processor_ms" is the processor time of all of the browser's
processes for a sentence, which is not.

The last line is one JSON object.
"""

import argparse
import gzip
import json
import math
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from browser import browser, run_in_browser
from tokenizers import Tokenizer

from bistil.export.web import expected_inputs
from bistil.measuring.benchmark import machine
from bistil.prediction.loading import load

TOKENS = """
import { inputsOf, loadEncoder } from "./student.mjs";
export default async function (texts) {
  const encoder = await loadEncoder();
  return texts.map((text) => [encoder.tokenizer.encode(text), inputsOf(encoder, text)]);
}
"""
ANSWERS = """
import { load } from "./student.mjs";
export default async function ({ texts, rounds }) {
  const began = performance.now();
  const student = await load();
  const loaded = performance.now() - began;
  const from = performance.now();
  await student.ask(texts[0]);
  const first = performance.now() - from;
  const said = [], times = texts.map(() => []);
  for (let round = 0; round < rounds; round++) {
    for (const [i, text] of texts.entries()) {
      const start = performance.now();
      const answer = await student.ask(text);
      times[i].push(performance.now() - start);
      if (!round) said.push(answer);
    }
  }
  return { loaded, first, said, times, threads: student.threads, agent: navigator.userAgent };
}
"""
BROTLI = """
const { constants, createBrotliCompress } = require("node:zlib");
const params = { [constants.BROTLI_PARAM_QUALITY]: Number(process.argv[1]) };
process.stdin.pipe(createBrotliCompress({ params })).pipe(process.stdout);
"""
# A server that compresses as it sends, and files that were compressed beforehand.
QUALITIES = {"brotli": 5, "brotli, beforehand": 11}


def sizes(folder: Path) -> dict[str, dict[str, int]]:
    """Bytes of each file that the page asks for, as they are, and as servers send them."""
    found = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file() and one.name not in ("bistil.json",)):
        data = path.read_bytes()
        own = {"raw": len(data), "gzip": len(gzip.compress(data, 6))}
        for name, quality in QUALITIES.items():
            command = ["node", "-e", BROTLI, str(quality)]
            own[name] = len(subprocess.run(command, input=data, capture_output=True, check=True).stdout)
        found[path.relative_to(folder).as_posix()] = own
    return found


def lines_of(folder: Path, count: int) -> tuple[list[str], int]:
    """So many lines, evenly of all files and within each, and of how many files."""
    files = sorted(folder.glob("*.txt"))
    found = list[str]()
    for left, file in zip(range(len(files), 0, -1), files, strict=True):
        own = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        each = math.ceil((count - len(found)) / left)
        found += own[:: max(1, len(own) // each)][:each]
    return found, len(files)


def compare_tokens(page: Path, exported: Path, texts: list[str]) -> dict[str, int]:
    """On how many texts the browser's tokens are others than Python's."""
    predictor = load(exported, threads=1)
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = run_in_browser(page, TOKENS, texts)[0]
    differ = {"ids": 0, "offsets": 0, "inputs": 0}
    for text, (own, inputs) in zip(texts, found, strict=True):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        differ["ids"] += own["ids"] != encoded.ids
        differ["offsets"] += own["offsets"] != [list(place) for place in encoded.offsets]
        differ["inputs"] += inputs != expected_inputs(predictor, text)
    return differ


def compare_answers(page: Path, exported: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Labels and confidences against onnxruntime in Python, and the times of both."""
    predictor = load(exported, threads=1)
    once, asked, least = run_in_browser(page, ANSWERS, {"texts": texts, "rounds": 1}, seconds=570)
    found, _, seconds = run_in_browser(page, ANSWERS, {"texts": texts, "rounds": 1 + rounds}, seconds=570)
    # With the headers that let a page have threads.
    several, _, _ = run_in_browser(page, ANSWERS, {"texts": texts, "rounds": 1 + rounds}, isolated=True, seconds=570)
    python, times, processor = [], [], 0.0
    for text in texts:
        python.append(predictor(text, batch_size=1))
        own = []
        for _ in range(rounds):
            start, used = time.perf_counter(), time.process_time()
            predictor(text, batch_size=1)
            own.append(1000 * (time.perf_counter() - start))
            processor += 1000 * (time.process_time() - used)
        times.append(statistics.median(own))
    keys = ("labels", "entities") if "labels" in python[0] else ("label",)
    words = sum(len(one.get("labels", [0])) for one in python)
    moved, differing, labels = 0.0, 0, 0
    for ours, theirs in zip(found["said"], python, strict=True):
        bare = [[e["type"], e["start"], e["end"]] for e in ours.get("entities", ())]
        same = bare == [[e["type"], e["start"], e["end"]] for e in theirs.get("entities", ())]
        differing += not (same and all(ours.get(key) == theirs.get(key) for key in keys if key != "entities"))
        if "labels" in theirs:
            labels += sum(a != b for a, b in zip(ours["labels"], theirs["labels"], strict=True))
            moved = max([moved, *(abs(a - b) for a, b in zip(ours["confidences"], theirs["confidences"], strict=True))])
    # What the first round compiled and allocated is not in the others.
    own, isolated = ([statistics.median(one[1:]) for one in run["times"]] for run in (found, several))
    return {
        "sentences": len(texts),
        "sentences_that_differ": differing,
        "labels": words,
        "labels_that_differ": labels,
        "largest_difference_of_a_confidence": round(moved, 6),
        "agent": found["agent"],
        "threads": found["threads"],
        "load_ms": [once["loaded"], found["loaded"]],
        "first_sentence_ms": found["first"],
        "ms": statistics.median(own),
        "ms_95": sorted(own)[int(0.95 * len(own))],
        "isolated": {
            "threads": several["threads"],
            "ms": statistics.median(isolated),
            "ms_95": sorted(isolated)[int(0.95 * len(isolated))],
            "sentences_that_differ": sum(a != b for a, b in zip(found["said"], several["said"], strict=True)),
        },
        "processor_ms": 1000 * (seconds - least) / rounds / len(texts),
        "python_ms": statistics.median(times),
        "python_processor_ms": processor / rounds / len(texts),
        "rounds": rounds,
        "asked_for": sorted(set(asked)),
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("exported", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if browser() is None or shutil.which("node") is None:
        parser.exit(2, "Chromium and Node.js are needed\n")
    texts, languages = lines_of(given.text, given.lines)
    sentences = [line for line in given.sentences.read_text(encoding="utf-8").splitlines() if line.strip()]
    tokens = compare_tokens(given.page, given.exported, texts)
    answers = compare_answers(given.page, given.exported, sentences[: given.count], given.rounds)
    wire = sizes(given.page)
    total = {kind: sum(one[kind] for one in wire.values()) for kind in ("raw", "gzip", *QUALITIES)}
    print(f"tokens: {tokens} of {len(texts)} lines in {languages} languages differ")
    print(f"labels: {answers['labels_that_differ']} of {answers['labels']} differ, {answers['sentences']} sentences")
    print(
        f"bytes: {total}; load {statistics.median(answers['load_ms']):.0f} ms; {answers['ms']:.1f} ms a sentence, "
        f"{answers['processor_ms']:.1f} of processor time, "
        f"{answers['isolated']['ms']:.1f} ms on {answers['isolated']['threads']} threads"
    )
    record = {
        "kind": "web benchmark",
        "machine": machine(),
        "tokens": {"lines": len(texts), "languages": languages, "lines_that_differ": tokens},
        "answers": answers,
        "bytes": {"total": total, "files": wire},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
