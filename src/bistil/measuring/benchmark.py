"""Size and speed of models: parameters, bytes on disk, CPU latency at batch 1, throughput, FLOPs, memory, energy.

Models are folders of transformers, run by PyTorch, or exported ones, each run by its own engine (`engines`).
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, PreTrainedTokenizerBase

from bistil._version import __version__
from bistil.engines import open_exported
from bistil.errors import ArtefactError, InputError
from bistil.measuring.energy import counters, metered
from bistil.models.exported import exported_record
from bistil.models.families import check_length, position_limit
from bistil.models.loading import load_model, model_class, read_config
from bistil.models.tokenizers import load_tokenizer
from bistil.runtime.insides import attention_kind
from bistil.runtime.ownership import writer
from bistil.runtime.quiet import kept_threads, quiet_transformers
from bistil.tasks.batches import Engine, TorchEngine
from bistil.tasks.words import encode_words, split_words

# Passes over all models after one to warm up, and tokens of an example, unless said otherwise.
ROUNDS, MOST_TOKENS = 7, 128
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".onnx")
# FLOPs are also counted of so many tokens, whatever is run.
FLOPS_TOKENS = 128
# Of a processor, what decides how fast it multiplies bytes and half precision (x86, then ARM).
_FLAGS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(kw_only=True, frozen=True)
class Latency:
    """Time of inputs of one length at batch 1, over all rounds."""

    tokens: int
    milliseconds: float  # median
    p95: float  # 95 in 100 take no longer
    speed_ratio: float  # reference time / own time, median over the rounds
    speed_ratio_range: list[float]  # least and greatest of a round


@dataclass(kw_only=True, frozen=True)
class Throughput:
    """Examples per second in padded batches, median over the rounds; tokenisation excluded."""

    batch_size: int
    examples_per_second: float


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
    batch_size: int | None  # of the throughput measurement; the best one of several
    examples_per_second: float | None  # at `batch_size`, tokenisation excluded, median over the rounds
    peak_memory_bytes: int | None  # of a fresh process that loads the model and runs one example
    # What earlier records do not have.
    engine: str = "pytorch"
    precision: str = "float32"
    flops_of_128_tokens: int | None = None
    latencies: list[Latency] = field(default_factory=list)
    throughputs: list[Throughput] = field(default_factory=list)  # of all batch sizes
    cpu_milliseconds: float | None = None  # processor time of all threads per example, where `milliseconds` is taken
    joules: float | None = None  # of the processor's packages per example; none where no counter can be read
    unloaded_memory_bytes: int | None = None  # of the same process as the peak, before it loads the model


@dataclass(frozen=True)
class _Loaded:
    """A model in memory with its encoded inputs."""

    name: str
    folder: Path
    engine: Engine
    model: Any  # of an exported model its shape alone, on the meta device
    inputs: list[dict[str, torch.Tensor]]  # batch 1 each: (1, tokens)
    fixed: dict[int, list[dict[str, torch.Tensor]]]  # the same of one length each, by length
    batches: dict[int, list[dict[str, torch.Tensor]]]  # (batch size, longest), by batch size
    tokenize_milliseconds: float | None


@dataclass
class _Times:
    """What a model took, per round."""

    milliseconds: list[list[float]] = field(default_factory=list)  # per example
    fixed: dict[int, list[list[float]]] = field(default_factory=dict)  # by length
    rates: dict[int, list[float]] = field(default_factory=dict)  # examples per second by batch size
    cpu_milliseconds: list[float] = field(default_factory=list)  # per example
    joules: list[float] = field(default_factory=list)  # per example


def load_for_inference(folder: Path) -> Any:
    """The model that a folder's config.json names under "architectures", for inference: float32, CPU, no gradients.

    Raises:
        ArtefactError: `folder` is no Hugging Face model folder, is damaged, or its class is unknown.
    """
    model = load_model(folder)[0]
    if model.config.is_encoder_decoder:
        raise ArtefactError(
            f"{folder} is a {model.config.model_type} model, which has a decoder: only encoders are run"
        )
    return model.requires_grad_(False)


def open_model(folder: Path, *, threads: int | None = None) -> tuple[Engine, Any]:
    """What runs the model in a folder, and the model; of an exported one its shape, on PyTorch's meta device.

    Raises:
        ArtefactError: the folder holds no model or a damaged one.
        MissingExtraError: the engine of an exported model is not installed.
    """
    if exported_record(folder) is not None:
        return open_exported(folder, threads=threads), _shape_of(folder, "meta")
    model = load_for_inference(folder)
    return TorchEngine(model), model


def _shape_of(folder: Path, device: str) -> Any:
    """A model of the class and shape that config.json names, with no weights or random ones."""
    config = read_config(folder)
    kind = model_class(config)
    with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.device(device):
        model = kind.from_config(config) if kind is AutoModel else kind(config)
    return model.eval().requires_grad_(False)


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
    """Peak resident bytes of a fresh Python process that loads the model and runs 16 tokens; none where unknown."""
    found = _memory(folder)
    return None if found is None else found[1]


def _memory(folder: Path) -> tuple[int, int] | None:
    """Peak resident bytes of a fresh process before it loads a model (PyTorch is there), and after 16 tokens.

    The process's own high-water mark (VmHWM of /proc/self/status) is read, so this works on Linux only.
    """
    if not Path("/proc/self/status").exists():
        return None
    code = (
        "import sys, pathlib;"
        "from bistil.measuring.benchmark import open_model, random_inputs;"
        "peak = lambda: next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1];"
        "before = peak();"
        "engine, model = open_model(pathlib.Path(sys.argv[1]));"
        "engine(random_inputs(model, 1, 16)[0]);"
        "print('VmHWM', before, peak())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ArtefactError(f"cannot load {folder} in a fresh process: {done.stderr.strip().splitlines()[-1]}")
    before, peak = (int(one) * 1024 for one in done.stdout.split()[-2:])
    return before, peak


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
    max_length: int | None = None,
    batch_size: int | Sequence[int] | None = None,
    lengths: Sequence[int] = (),
    threads: int | None = None,
    memory: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, BenchmarkRow]:
    """Measure models side by side; the first one is the reference of the speed ratios.

    Args:
        models: name to model folder, of transformers or exported; those of transformers are run by PyTorch as
            `bistil.load` does, in the class that config.json names: the task model, or the bare encoder.
        texts: real sentences, encoded by each model's own tokenizer; the first `examples` non-empty ones are used.
            None: random token ids, `max_length` of them per example.
        rounds: passes over all models after one warm-up pass.
        max_length: longer texts are cut to this many tokens; None: `MOST_TOKENS`, or what a model has positions for.
        batch_size: also measure throughput with padded batches of this size, or of each of these; the row then says
            which one is best.
        lengths: also measure batch 1 at each of these numbers of tokens exactly, random ones, `examples` of them.
        threads: CPU threads of all engines; default: as PyTorch is set.
        memory: also measure the peak memory of loading, in a fresh process per model.
        progress: is told what is going on, one line at a time.

    Raises:
        InputError: no models, no texts, numbers below 1, or a length that a model has no positions for.
        ArtefactError: a folder cannot be loaded.
        MissingExtraError: the engine of an exported model is not installed.
    """
    if not models:
        raise InputError("nothing to measure: name at least one model folder")
    numbers = [
        ("examples", examples),
        ("rounds", rounds),
        *([] if max_length is None else [("max_length", max_length)]),
    ]
    for label, number in (*numbers, *(("lengths", one) for one in lengths)):
        if number < 1:
            raise InputError(f"{label} is {number}; it must be at least 1")
    sizes = [] if batch_size is None else [batch_size] if isinstance(batch_size, int) else [*dict.fromkeys(batch_size)]
    if sizes and min(sizes) < 2:
        raise InputError(f"batch_size is {min(sizes)}; it must be at least 2 (batch 1 is always measured)")
    chosen = None if texts is None else [text.strip() for text in texts if text.strip()][:examples]
    if chosen is not None and not chosen:
        raise InputError("no text to measure on: all lines are empty")
    say = progress or (lambda _: None)

    def load(name: str) -> _Loaded:
        say(f"loading {name}")
        return _load(
            name,
            models[name],
            chosen,
            examples=examples,
            max_length=max_length,
            lengths=lengths,
            sizes=sizes,
            threads=threads,
        )

    rows: dict[str, BenchmarkRow] = {}
    with kept_threads(threads), torch.inference_mode():
        for group in _groups(models):
            loaded = [load(name) for name in group]
            times = _measure(loaded, rounds=rounds, say=say)
            for one in loaded:
                if one.name not in rows:
                    used = _memory(one.folder) if memory else None
                    rows[one.name] = _row(one, times, reference=group[0], memory=used)
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


def processor_flags() -> list[str] | None:
    """What the processor has of the instructions that decide how fast it multiplies bytes; none where unknown."""
    names = {"flags", "Features"}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        stated = next(line.partition(":")[2].split() for line in lines if line.partition(":")[0].strip() in names)
    except (OSError, StopIteration):
        return None
    return [one for one in _FLAGS if one in stated]


def cost_record(rows: dict[str, BenchmarkRow], *, texts: str) -> dict[str, Any]:
    """A benchmark as plain values for JSON; `texts` says which texts were run."""
    return {
        "kind": "benchmark",
        "schema": 1,
        "texts": texts,
        "machine": {**machine(), "flags": processor_flags(), "energy_counters": len(counters())},
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
    name: str,
    folder: Path,
    texts: list[str] | None,
    *,
    examples: int,
    max_length: int | None,
    lengths: Sequence[int],
    sizes: Sequence[int],
    threads: int | None,
) -> _Loaded:
    engine, model = open_model(folder, threads=threads)
    for length in lengths:
        check_length(model.config, length, name="lengths")
    if max_length is not None:
        check_length(model.config, max_length)
    most = max_length or min(MOST_TOKENS, position_limit(model.config) or MOST_TOKENS)
    fixed = {length: random_inputs(model, examples, length) for length in lengths}
    if texts is None:
        inputs = fixed.get(most) or random_inputs(model, examples, most)
        batches = {size: [_concatenated(part) for part in _parts(inputs, size)] for size in sizes}
        return _Loaded(name, folder, engine, model, inputs, fixed, batches, None)
    tokenizer = load_tokenizer(str(folder))
    accepted = inspect.signature(model.forward).parameters
    limit = min(most, tokenizer.model_max_length)

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
    batches = {size: [encode(part) for part in _parts(texts, size)] for size in sizes}
    return _Loaded(name, folder, engine, model, inputs, fixed, batches, 1000 * median(seconds))


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _concatenated(part: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.cat([example[key] for example in part]) for key in part[0]}


def _measure(loaded: list[_Loaded], *, rounds: int, say: Callable[[str], None]) -> dict[str, _Times]:
    """What each model took."""
    times = {one.name: _Times() for one in loaded}
    zones = counters()
    for one in loaded:
        for example in [*one.inputs, *_firsts(one.fixed.values()), *_firsts(one.batches.values())]:
            one.engine(example)
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        # Another model begins in every round, so that none always runs in the wake of the same other one.
        first = i % len(loaded)
        for one in loaded[first:] + loaded[:first]:
            own, count = times[one.name], len(one.inputs)
            with metered(zones) as used:
                own.milliseconds.append([_milliseconds(one.engine, example) for example in one.inputs])
            own.cpu_milliseconds.append(1000 * used.cpu_seconds / count)
            own.joules += [] if used.joules is None else [used.joules / count]
            for length, inputs in one.fixed.items():
                same = inputs is one.inputs
                found = own.milliseconds[-1] if same else [_milliseconds(one.engine, example) for example in inputs]
                own.fixed.setdefault(length, []).append(found)
            for size, batches in one.batches.items():
                taken = sum(_milliseconds(one.engine, batch) for batch in batches)
                own.rates.setdefault(size, []).append(1000 * count / taken)
    return times


def _firsts(lists: Iterable[list[Any]]) -> list[Any]:
    return [one[0] for one in lists]


def _milliseconds(engine: Engine, batch: dict[str, torch.Tensor]) -> float:
    start = time.perf_counter()
    engine(batch)
    return 1000 * (time.perf_counter() - start)


def _row(
    one: _Loaded, all_times: Mapping[str, _Times], *, reference: str, memory: tuple[int, int] | None
) -> BenchmarkRow:
    times, base = all_times[one.name], all_times[reference]
    own = [median(in_round) for in_round in times.milliseconds]
    ratio, ratio_range = _ratios(base.milliseconds, times.milliseconds)
    throughputs = [
        Throughput(batch_size=size, examples_per_second=median(rates)) for size, rates in times.rates.items()
    ]
    best = max(throughputs, key=lambda found: found.examples_per_second, default=None)
    parameters = count_parameters(one.model)
    size, weights = folder_bytes(one.folder)
    config, record = one.model.config, exported_record(one.folder) or {}
    reads = position_limit(config)
    enough = reads is None or reads >= FLOPS_TOKENS
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
        milliseconds=median(t for in_round in times.milliseconds for t in in_round),
        milliseconds_range=[min(own), max(own)],
        tokenize_milliseconds=one.tokenize_milliseconds,
        reference=reference,
        speed_ratio=ratio,
        speed_ratio_range=ratio_range,
        flops=_flops(one, one.inputs),
        batch_size=None if best is None else best.batch_size,
        examples_per_second=None if best is None else best.examples_per_second,
        peak_memory_bytes=None if memory is None else memory[1],
        engine=str(record.get("engine", "pytorch")),
        precision=str(record.get("precision", "float32")),
        flops_of_128_tokens=_flops(one, random_inputs(one.model, 1, FLOPS_TOKENS)) if enough else None,
        latencies=[_latency(length, base.fixed[length], found) for length, found in times.fixed.items()],
        throughputs=throughputs,
        cpu_milliseconds=median(times.cpu_milliseconds),
        joules=median(times.joules) if times.joules else None,
        unloaded_memory_bytes=None if memory is None else memory[0],
    )


def _ratios(base: Sequence[Sequence[float]], own: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    """Times of the reference over own ones: median over the rounds, and the least and greatest."""
    ratios = [median(theirs) / median(ours) for theirs, ours in zip(base, own, strict=True)]
    return median(ratios), [min(ratios), max(ratios)]


def _latency(tokens: int, base: list[list[float]], own: list[list[float]]) -> Latency:
    every = [one for in_round in own for one in in_round]
    ratio, ratio_range = _ratios(base, own)
    p95 = float(np.percentile(every, 95, method="higher"))
    return Latency(tokens=tokens, milliseconds=median(every), p95=p95, speed_ratio=ratio, speed_ratio_range=ratio_range)


def _flops(one: _Loaded, inputs: Sequence[dict[str, torch.Tensor]]) -> int:
    device = next(one.model.parameters()).device
    try:
        return count_flops(one.model, [{name: value.to(device) for name, value in given.items()} for given in inputs])
    except (RuntimeError, NotImplementedError):
        if device.type != "meta":
            raise
        # A family that looks at numbers on its way.
        return count_flops(_shape_of(one.folder, "cpu"), inputs)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
