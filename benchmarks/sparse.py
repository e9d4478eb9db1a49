"""Sparse fine-tunings at the size of mBERT (178M parameters, random weights), on this machine.

    python benchmarks/sparse.py [--only choose,switch,size,fingerprint,memory] [--threads N]

Choosing: seconds and extra memory to find the 8% of all entries that moved furthest. Switching: milliseconds from one
language SFT (4%, entries spread evenly: the worst case for caches) to another, median of 21, after one of each. Size:
bytes of an 8% task SFT on disk, against the full model and against float32 deltas plus the entropy of the choice, the
least that any code of the indices needs. Fingerprint: seconds to hash the base. Memory: bytes of AdamW's state and
peak resident memory of two training steps (batch 2 of 64 tokens), each phase in a process of its own.

The last line of output is one JSON object.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, BertConfig, PreTrainedModel

from bistil.sparse import Provenance, SparseDelta, SparseFineTuning, fingerprint
from bistil.sparse.masks import largest_movements, random_entries
from bistil.sparse.parametrisation import parametrised

HEADS = ("classifier.weight", "classifier.bias")


def mbert() -> PreTrainedModel:
    """bert-base-multilingual-cased's architecture with random weights and a tagging head."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=119_547, id2label={i: str(i) for i in range(9)})
    model: PreTrainedModel = AutoModelForTokenClassification.from_config(config)
    model.eval()
    return model


def random_sft(model: PreTrainedModel, *, density: float, seed: int, heads: bool) -> SparseFineTuning:
    """An SFT whose entries are spread evenly over all parameters."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if name not in HEADS}
    total = sum(sizes.values())
    chosen = random_entries(sizes, round(total * density), seed=seed)
    own = dict(model.named_parameters())
    deltas = {
        name: SparseDelta(indices, 0.01 * torch.randn(len(indices)), tuple(own[name].shape))
        for name, indices in chosen.items()
    }
    dense = {name: own[name].detach().clone() for name in HEADS} if heads else {}
    return SparseFineTuning(deltas, dense, Provenance(maskable_entries=total))


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    if sys.platform == "win32":
        raise SystemExit("memory is measured on Linux and macOS")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def choose() -> dict[str, Any]:
    model = mbert()
    before = {name: p.detach() for name, p in model.named_parameters()}
    after = {name: value + 1e-3 * torch.randn_like(value) for name, value in before.items()}
    total = sum(value.numel() for value in before.values())
    memory, started = peak_bytes(), time.perf_counter()
    chosen = largest_movements(before, after, round(0.08 * total))
    seconds = time.perf_counter() - started
    kept = sum(len(indices) for indices in chosen.values())
    indices_bytes = 8 * kept
    return {
        "entries": total,
        "kept": kept,
        "seconds": round(seconds, 2),
        "extra MiB beside the indices": max(0, round((peak_bytes() - memory - indices_bytes) / 2**20)),
    }


def switch() -> dict[str, Any]:
    model = mbert()
    one, other = (random_sft(model, density=0.04, seed=seed, heads=False) for seed in (1, 2))
    base = [p.detach().clone() for p in model.parameters()]
    one.apply(model)
    one.revert(model)
    other.apply(model)
    times, processor = [], []
    worn, free = other, one
    for _ in range(21):
        started, used = time.perf_counter(), time.process_time()
        worn.revert(model)
        free.apply(model)
        times.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
        worn, free = free, worn
    worn.revert(model)
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), base, strict=True))
    return {
        "entries per SFT": one.count,
        "median ms": round(1e3 * statistics.median(times), 1),
        "fastest ms": round(1e3 * min(times), 1),
        "slowest ms": round(1e3 * max(times), 1),
        "median processor ms, all threads": round(1e3 * statistics.median(processor), 1),
    }


def size() -> dict[str, Any]:
    model = mbert()
    sft = random_sft(model, density=0.08, seed=1, heads=True)
    with tempfile.TemporaryDirectory() as folder:
        sft.save(Path(folder) / "sft")
        on_disk = (Path(folder) / "sft/sft.safetensors").stat().st_size
        started = time.perf_counter()
        SparseFineTuning.load(Path(folder) / "sft")
        load = time.perf_counter() - started
    share = sft.density
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    entries = sft.provenance.maskable_entries
    assert entries is not None
    least = 4 * sft.count + entropy * entries + sum(value.nbytes for value in sft.dense.values())
    full = sum(p.nbytes for p in model.parameters())
    return {
        "SFT MB": round(on_disk / 1e6, 1),
        "model MB": round(full / 1e6, 1),
        "share of the model": round(on_disk / full, 4),
        "times the least": round(on_disk / least, 3),
        "bytes per entry": round(on_disk / sft.count, 2),
        "load seconds": round(load, 2),
    }


def hashing() -> dict[str, Any]:
    model = mbert()
    started = time.perf_counter()
    fingerprint(model)
    return {"seconds": round(time.perf_counter() - started, 2)}


def memory() -> dict[str, Any]:
    phases = {}
    for phase in ("dense", "sparse"):
        command = [sys.executable, __file__, "--phase", phase]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        phases[phase] = json.loads(answer.stdout.splitlines()[-1])
    return phases


def one_phase(phase: str) -> dict[str, Any]:
    """Two AdamW steps with all entries free, or with 8% of them."""
    model = mbert().train()
    mask = None
    if phase == "sparse":
        sizes = {name: p.numel() for name, p in model.named_parameters() if name not in HEADS}
        mask = random_entries(sizes, round(0.08 * sum(sizes.values())), seed=0)
    batch = {"input_ids": torch.randint(5, 10_000, (2, 64)), "labels": torch.randint(0, 9, (2, 64))}
    with parametrised(model, mask):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - started)
        state = sum(v.nbytes for one in optimizer.state.values() for v in one.values() if torch.is_tensor(v))
    return {
        "optimizer state MiB": round(state / 2**20, 1),
        "peak MiB": round(peak_bytes() / 2**20),
        "second step s": round(seconds[-1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"choose": choose, "switch": switch, "size": size, "fingerprint": hashing, "memory": memory}
    parser.add_argument("--only", default=",".join(parts))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--phase", choices=("dense", "sparse"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.phase:
        print(json.dumps(one_phase(arguments.phase)))
        return
    record: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__}
    for name in arguments.only.split(","):
        record[name] = parts[name]()
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in record[name].items()))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
