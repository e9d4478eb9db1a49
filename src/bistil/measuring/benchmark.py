"""Size and speed of models: parameters, bytes on disk, CPU latency at batch 1, throughput, FLOPs, peak memory.

Speeds are compared within rounds: every round runs all models on the same texts one after the other, and a ratio is
taken per round. A machine whose speed drifts moves both sides of a ratio alike, so the ratio holds where milliseconds
do not.
"""

import inspect
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from bistil._version import __version__
from bistil.errors import ArtefactError, InputError
from bistil.models.loading import load_model
from bistil.models.tokenizers import load_tokenizer
from bistil.runtime.insides import attention_kind
from bistil.runtime.ownership import writer
from bistil.runtime.quiet import kept_threads
from bistil.tasks.words import encode_words, split_words

# Passes over all models after one to warm up, and tokens of an example, unless said otherwise.
ROUNDS, MOST_TOKENS = 7, 128
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".onnx")


@dataclass(kw_only=True, frozen=True)
class BenchmarkRow:
    """What one model costs. Times are medians; `reference` is the first model of the comparison."""

    name: str
    folder: str
    architecture: str  # the class that was loaded and run
    parameters: int  # tied parameters counted once
    embedding_parameters: int  # token, position and type embeddings with their layer norm
    encoder_parameters: int
    head_parameters: int
    bytes: int  # of the whole folder
    weight_bytes: int
    vocabulary: int  # rows of the token embedding
    layers: int
    hidden: int
    examples: int
    rounds: int
    threads: int
    tokens: float  # mean tokens per example, special tokens included
    milliseconds: float  # per example at batch 1, median over all rounds and examples, tokenisation excluded
    milliseconds_range: list[float]  # least and greatest median of a round
    tokenize_milliseconds: float | None  # per example, median; none for synthetic input
    reference: str
    speed_ratio: float  # reference time / own time, median over the rounds
    speed_ratio_range: list[float]  # least and greatest of a round
    flops: int  # per example, mean over the examples; a multiply-add is 2; embedding look-ups are not counted
    batch_size: int | None  # of the throughput measurement
    examples_per_second: float | None  # at `batch_size`, tokenisation excluded, median over the rounds
    peak_memory_bytes: int | None  # of a fresh process that loads the model and runs one example


@dataclass(frozen=True)
class _Loaded:
    """A model in memory with its encoded inputs."""

    name: str
    folder: Path
    model: Any
    inputs: list[dict[str, torch.Tensor]]  # batch 1 each: (1, tokens)
    batches: list[dict[str, torch.Tensor]]  # (batch_size, longest), empty without a throughput measurement
    tokenize_milliseconds: float | None


def load_for_inference(folder: Path) -> Any:
    """The model that a folder's config.json names under "architectures", for inference: float32, CPU, no gradients.

    Raises:
        ArtefactError: `folder` is no Hugging Face model folder, is damaged, or its class is unknown.
    """
    return load_model(folder)[0].requires_grad_(False)


def count_parameters(model: Any) -> dict[str, int]:
    """Number of parameters: total, embedding, encoder and head. Tied parameters count once, in the first of these."""
    base = model.base_model
    embeddings = getattr(base, "embeddings", None) or model.get_input_embeddings()
    embedding = {id(p): p.numel() for p in embeddings.parameters()}
    inside = {id(p): p.numel() for p in base.parameters()} | embedding
    total = {id(p): p.numel() for p in model.parameters()} | inside
    sums = [sum(group.values()) for group in (embedding, inside, total)]
    return {
        "total": sums[2],
        "embedding": sums[0],
        "encoder": sums[1] - sums[0],
        "head": sums[2] - sums[1],
    }


def folder_bytes(folder: Path) -> tuple[int, int]:
    """Bytes of all files below a folder, and of its weight files among them."""
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(sizes.values()), sum(size for path, size in sizes.items() if path.suffix in WEIGHT_SUFFIXES)


def count_flops(model: Any, inputs: Sequence[dict[str, torch.Tensor]]) -> int:
    """Floating-point operations of a forward pass, mean over `inputs`, by `torch.utils.flop_counter`.

    Matrix products only (a multiply-add is two operations): embedding look-ups, softmax, activations and layer norms
    are not counted. Attention runs in its plain form meanwhile, because the counter does not see the fused CPU kernel.
    """
    before = attention_kind(model)
    by_shape: dict[tuple[int, ...], int] = {}
    model.set_attn_implementation("eager")
    try:
        counts = []
        for example in inputs:
            shape = tuple(example["input_ids"].shape)
            if shape not in by_shape:
                with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                    model(**example)
                by_shape[shape] = counter.get_total_flops()
            counts.append(by_shape[shape])
    finally:
        model.set_attn_implementation(before)
    return round(mean(counts))


def peak_memory(folder: Path) -> int | None:
    """Peak resident bytes of a fresh Python process that loads the model and runs 16 tokens; none where unknown.

    The process's own high-water mark (VmHWM of /proc/self/status) is read, so this works on Linux only.
    """
    if not Path("/proc/self/status").exists():
        return None
    code = (
        "import sys, torch, pathlib;"
        "from bistil.measuring.benchmark import load_for_inference as load, random_inputs as inputs;"
        "model = load(pathlib.Path(sys.argv[1]));"
        "torch.inference_mode().__enter__(); model(**inputs(model, 1, 16)[0]);"
        "print('VmHWM', next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ArtefactError(f"cannot load {folder} in a fresh process: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1]) * 1024


def random_inputs(model: Any, examples: int, tokens: int) -> list[dict[str, torch.Tensor]]:
    """Inputs of batch 1 from random token ids, always the same ones; to a model that scores words each token is a word.

    Ids below 10 are left out: they are mostly special tokens, and padding inside a sentence would shift position ids.
    """
    generator = torch.Generator().manual_seed(0)
    rows = model.get_input_embeddings().num_embeddings
    ids = torch.randint(min(10, rows - 1), rows, (examples, 1, tokens), generator=generator)
    starts = torch.arange(1, tokens).unsqueeze(0)
    words = {"word_starts": starts, "word_ends": starts + 1} if _scores_words(model) else {}
    return [{"input_ids": one, "attention_mask": torch.ones_like(one), **words} for one in ids]


def _scores_words(model: Any) -> bool:
    """Whether the model, a parser, must be told where words begin and end."""
    return "word_starts" in inspect.signature(model.forward).parameters


def _word_inputs(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> dict[str, torch.Tensor]:
    """What a parser reads of each text, split into words: the first window of it, padded to the longest.

    Returns:
        "input_ids" and "attention_mask" (texts, tokens); "word_starts" and "word_ends" (texts, words).
    """
    sentences = [split_words(text) or [text] for text in texts]
    first = {feature["example"]: feature for feature, _ in reversed([*encode_words(sentences, tokenizer, limit)])}
    paddings = {"input_ids": tokenizer.pad_token_id or 0, "attention_mask": 0, "word_starts": -1, "word_ends": -1}
    inputs = {}
    for key, value in paddings.items():
        rows = [first[i][key] for i in range(len(texts))]
        longest = max(map(len, rows))
        inputs[key] = torch.tensor([row + [value] * (longest - len(row)) for row in rows])
    return inputs


def benchmark(
    models: dict[str, Path],
    *,
    texts: Sequence[str] | None,
    examples: int = 50,
    rounds: int = ROUNDS,
    max_length: int = MOST_TOKENS,
    batch_size: int | None = None,
    threads: int | None = None,
    memory: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, BenchmarkRow]:
    """Measure models side by side; the first one is the reference of the speed ratios.

    Args:
        models: name to model folder. The class that config.json names is run: the task model, or the bare encoder.
        texts: real sentences, encoded by each model's own tokenizer; the first `examples` non-empty ones are used.
            None: random token ids, `max_length` of them per example.
        rounds: passes over all models after one warm-up pass.
        max_length: longer texts are cut to this many tokens.
        batch_size: also measure throughput with padded batches of this size.
        threads: CPU threads; default: as PyTorch is set.
        memory: also measure the peak memory of loading, in a fresh process per model.
        progress: is told what is going on, one line at a time.

    Raises:
        InputError: no models, no texts, or numbers below 1.
        ArtefactError: a folder cannot be loaded.
    """
    if not models:
        raise InputError("nothing to measure: name at least one model folder")
    for label, number in (("examples", examples), ("rounds", rounds), ("max_length", max_length)):
        if number < 1:
            raise InputError(f"{label} is {number}; it must be at least 1")
    if batch_size is not None and batch_size < 2:
        raise InputError(f"batch_size is {batch_size}; it must be at least 2 (batch 1 is always measured)")
    chosen = None if texts is None else [text.strip() for text in texts if text.strip()][:examples]
    if chosen is not None and not chosen:
        raise InputError("no text to measure on: all lines are empty")
    say = progress or (lambda _: None)

    def load(name: str) -> _Loaded:
        say(f"loading {name}")
        return _load(name, models[name], chosen, examples=examples, max_length=max_length, batch_size=batch_size)

    rows: dict[str, BenchmarkRow] = {}
    with kept_threads(threads), torch.inference_mode():
        for group in _groups(models):
            loaded = [load(name) for name in group]
            times, rates = _measure(loaded, rounds=rounds, say=say)
            for one in loaded:
                if one.name not in rows:
                    peak = peak_memory(one.folder) if memory else None
                    rows[one.name] = _row(
                        one, times, rates.get(one.name), reference=group[0], batch_size=batch_size, peak=peak
                    )
    return rows


def machine() -> dict[str, Any]:
    """The machine and the libraries that a measurement belongs to."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bistil": __version__,
    }


def cost_record(rows: dict[str, BenchmarkRow], *, texts: str) -> dict[str, Any]:
    """A benchmark as plain values for JSON; `texts` says which texts were run."""
    return {
        "kind": "benchmark",
        "schema": 1,
        "texts": texts,
        "machine": machine(),
        "models": [asdict(row) for row in rows.values()],
        "versions": writer(),
    }


def _groups(models: dict[str, Path]) -> list[list[str]]:
    """Who is measured together: all models, or each one with the reference where memory is too short for all."""
    names = list(models)
    need = sum(folder_bytes(folder)[1] for folder in models.values())
    if len(names) <= 2 or need < psutil.virtual_memory().available / 2:
        return [names]
    return [[names[0], name] for name in names[1:]]


def _load(
    name: str, folder: Path, texts: list[str] | None, *, examples: int, max_length: int, batch_size: int | None
) -> _Loaded:
    model = load_for_inference(folder)
    accepted = inspect.signature(model.forward).parameters
    if texts is None:
        inputs = random_inputs(model, examples, max_length)
        batches = [] if batch_size is None else [_concatenated(part) for part in _parts(inputs, batch_size)]
        return _Loaded(name, folder, model, inputs, batches, None)
    tokenizer = load_tokenizer(str(folder))
    limit = min(max_length, tokenizer.model_max_length)

    def encode(one: str | list[str]) -> dict[str, torch.Tensor]:
        if _scores_words(model):
            return _word_inputs([one] if isinstance(one, str) else one, tokenizer, limit)
        encoded = tokenizer(one, truncation=True, max_length=limit, padding=not isinstance(one, str))
        return {
            key: torch.tensor(value if isinstance(value[0], list) else [value])
            for key, value in encoded.items()
            if key in accepted
        }

    inputs, seconds = [], []
    for text in texts:
        start = time.perf_counter()
        tokenizer(text, truncation=True, max_length=limit)
        seconds.append(time.perf_counter() - start)
        inputs.append(encode(text))
    batches = [] if batch_size is None else [encode(part) for part in _parts(texts, batch_size)]
    return _Loaded(name, folder, model, inputs, batches, 1000 * median(seconds))


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _concatenated(part: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.cat([example[key] for example in part]) for key in part[0]}


def _measure(
    loaded: list[_Loaded], *, rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, list[list[float]]], dict[str, list[float]]]:
    """Milliseconds per model, round and example; examples per second per model and round."""
    times: dict[str, list[list[float]]] = {one.name: [] for one in loaded}
    rates: dict[str, list[float]] = {one.name: [] for one in loaded if one.batches}
    for one in loaded:
        for example in [*one.inputs, *one.batches[:1]]:
            one.model(**example)
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        # Another model begins in every round, so that none always runs in the wake of the same other one.
        first = i % len(loaded)
        for one in loaded[first:] + loaded[:first]:
            seconds = [_seconds(one.model, example) for example in one.inputs]
            times[one.name].append([1000 * s for s in seconds])
            if one.batches:
                rates[one.name].append(len(one.inputs) / sum(_seconds(one.model, batch) for batch in one.batches))
    return times, rates


def _seconds(model: Any, batch: dict[str, torch.Tensor]) -> float:
    start = time.perf_counter()
    model(**batch)
    return time.perf_counter() - start


def _row(
    one: _Loaded,
    times: dict[str, list[list[float]]],
    rates: list[float] | None,
    *,
    reference: str,
    batch_size: int | None,
    peak: int | None,
) -> BenchmarkRow:
    own = [median(in_round) for in_round in times[one.name]]
    ratios = [median(base) / mine for base, mine in zip(times[reference], own, strict=True)]
    parameters = count_parameters(one.model)
    size, weights = folder_bytes(one.folder)
    config = one.model.config
    return BenchmarkRow(
        name=one.name,
        folder=str(one.folder),
        architecture=type(one.model).__name__,
        parameters=parameters["total"],
        embedding_parameters=parameters["embedding"],
        encoder_parameters=parameters["encoder"],
        head_parameters=parameters["head"],
        bytes=size,
        weight_bytes=weights,
        vocabulary=one.model.get_input_embeddings().num_embeddings,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        examples=len(one.inputs),
        rounds=len(own),
        threads=torch.get_num_threads(),
        tokens=mean(example["input_ids"].shape[1] for example in one.inputs),
        milliseconds=median(t for in_round in times[one.name] for t in in_round),
        milliseconds_range=[min(own), max(own)],
        tokenize_milliseconds=one.tokenize_milliseconds,
        reference=reference,
        speed_ratio=median(ratios),
        speed_ratio_range=[min(ratios), max(ratios)],
        flops=count_flops(one.model, one.inputs),
        batch_size=batch_size,
        examples_per_second=median(rates) if rates else None,
        peak_memory_bytes=peak,
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
