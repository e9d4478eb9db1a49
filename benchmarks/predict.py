"""Lines per second and peak memory of `bistil predict` on two sizes of file, beside transformers' own pipeline.

    python benchmarks/predict.py                       # 6,000 and 24,000 lines, entities of a 3 x 384 model
    python benchmarks/predict.py --rounds 1
    python benchmarks/predict.py --model DEPLOYED --text swa.txt --lines 100000 1000000 --rounds 1

A tagger with random weights and the tokenizer of e5-small reads lines of random words, of 3 to 60 words each. Each run
is a process of its own. "memory" is the peak of resident memory over what the loaded model takes; its ratio over the
sizes is 1 where memory does not grow with the file. The pipeline (`aggregation_strategy="first"`, batches of 32 lines)
takes the smaller file, as a list. With --model a finished model, exported or not, reads the lines of --text again and
again, without the pipeline beside it.

The last line is one JSON object.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]


def write_lines(folder: Path, sizes: list[int], lines: Iterator[str]) -> None:
    """Files of so many lines each."""
    for size in sizes:
        with (folder / f"{size}.txt").open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in itertools.islice(lines, size))


def random_model(folder: Path) -> Any:
    """A model; returns its tokenizer."""
    import torch
    from transformers import AutoModelForTokenClassification, BertConfig

    from bistil.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer("e5-small")
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    model = AutoModelForTokenClassification.from_config(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=384,
            num_hidden_layers=3,
            num_attention_heads=12,
            intermediate_size=1536,
            pad_token_id=tokenizer.pad_token_id,
            id2label=names,
            label2id={name: i for i, name in names.items()},
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def random_lines(tokenizer: Any) -> Iterator[str]:
    """Lines of random words, without end."""
    import numpy as np

    pieces = [piece[1:] for piece in tokenizer.get_vocab() if piece.startswith("\u2581") and piece[1:].isalpha()]
    words, generator = sorted(pieces), np.random.default_rng(0)
    while True:
        count = int(np.clip(generator.lognormal(2.7, 0.6), 3, 60))
        yield " ".join(words[i] for i in generator.integers(len(words), size=count)) + "."


def memory(name: str) -> int:
    """Bytes of the process's resident memory: VmRSS now, VmHWM at its peak since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) * 1024


def forget_peak() -> int:
    """Let the peak begin anew; returns what the process has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def work(what: str, named: str, folder: Path, size: int) -> dict[str, Any]:
    """One run; prints its seconds and memory."""
    source = folder / f"{size}.txt"
    if what == "predict":
        from bistil.prediction.files import predict_file
        from bistil.prediction.loading import load

        model = load(named)
        model("one line")
        before, started = forget_peak(), time.perf_counter()
        predict_file(model, source, folder / f"{size}.jsonl", format="jsonl")
        seconds = time.perf_counter() - started
        (folder / f"{size}.jsonl").unlink()
    else:
        from transformers import pipeline

        tag: Any = pipeline("token-classification", named, aggregation_strategy="first")
        tag("one line")
        before, started = forget_peak(), time.perf_counter()
        tag(source.read_text(encoding="utf-8").splitlines(), batch_size=32)
        seconds = time.perf_counter() - started
    return {"lines_per_second": size / seconds, "memory": memory("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, nargs=2, default=[6000, 24_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a finished model, in place of one with random weights")
    parser.add_argument("--text", type=Path, help="with --model: lines for it")
    parser.add_argument("--record", type=Path, help="also write the JSON here")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        what, named, where, size = options.work
        print(json.dumps(work(what, named, Path(where), int(size))))
        return
    if (options.model is None) != (options.text is None):
        parser.error("give --model and --text together")
    small, large = options.lines
    runs = {"small": ("predict", small), "large": ("predict", large)}
    if options.model is None:
        runs["pipeline"] = ("pipeline", small)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "model"
        lines = (
            itertools.cycle(options.text.read_text().splitlines())
            if options.text
            else random_lines(random_model(model))
        )
        write_lines(Path(folder), options.lines, lines)
        for number in range(options.rounds):
            for name, (what, size) in runs.items():
                command = [sys.executable, __file__, "--work", what, str(model), folder, str(size)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                one = found[name][-1]
                shown = f"{one['lines_per_second']:,.0f} lines/s, {one['memory'] / 1e6:,.0f} MB"
                print(f"round {number + 1}, {what}, {size:,} lines: {shown}", flush=True)

    from bistil.measuring.benchmark import machine
    from bistil.models.exported import engine_of

    def median(name: str, key: str) -> float:
        return float(statistics.median(one[key] for one in found[name]))

    engine = engine_of(options.model) if options.model else None
    record = {
        "model": (engine or "pytorch") if options.model else "random weights",
        "lines": options.lines,
        "rounds": options.rounds,
        "machine": machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "lines_per_second": {name: round(median(name, "lines_per_second"), 1) for name in runs},
        "memory_mb": {name: round(median(name, "memory") / 1e6, 1) for name in runs},
        "memory_ratio": round(median("large", "memory") / median("small", "memory"), 2),
    }
    if "pipeline" in runs:
        ratio = median("small", "lines_per_second") / median("pipeline", "lines_per_second")
        record["speed_over_pipeline"] = round(ratio, 2)
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
