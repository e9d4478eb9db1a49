"""The reader of the packed file on a small file written here, block by block, as the format's description says."""

import hashlib
import json
import struct
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.pretrained import e5_small
from bistil.pretrained.packed_file import four_bit_blocks, read_packed_file
from bistil.runtime import digests
from bistil.runtime.artefacts import folder_digest

HIDDEN, LAYERS, HEADS, WIDE, VOCABULARY, POSITIONS = 32, 2, 2, 64, 12, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "b", "é", "▁", "c", "<mask>"]
BLANKS = {"\t": " ", "\x01": "", "\u200b": " "}  # what the map has beside NFKC


@cache
def nfkc_without(but):
    nfkc = normalizers.NFKC()
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    return {char: text for char in characters if (text := nfkc.normalize_str(char)) != char and char not in but}


def slow_weight(block, i):
    """One weight of a block in plain Python: the description, word for word."""
    (scale,) = struct.unpack("<e", block[:2])
    byte = block[2 + i % 16]
    return ((byte & 15 if i < 16 else byte >> 4) - 8) * scale


def tensors():
    random = np.random.default_rng(0)

    def blocks(count):
        return b"".join(struct.pack("<e", random.normal() / 8) + random.bytes(16) for _ in range(count // 32)), count

    def plain(count):
        return random.normal(size=count).astype("<f4").tobytes(), count

    found = {
        "emb.word": (1, *blocks(VOCABULARY * HIDDEN)),
        "emb.pos": (0, *plain(POSITIONS * HIDDEN)),
        "emb.type": (0, *plain(2 * HIDDEN)),
        "emb.ln.w": (0, *plain(HIDDEN)),
        "emb.ln.b": (0, *plain(HIDDEN)),
    }
    sizes = {"q": HIDDEN, "k": HIDDEN, "v": HIDDEN, "ao": HIDDEN, "fi": WIDE, "fo": WIDE}
    for layer in range(LAYERS):
        for name, other in sizes.items():
            found[f"l{layer}.{name}.w"] = (1, *blocks(HIDDEN * other))
            found[f"l{layer}.{name}.b"] = (0, *plain(WIDE if name == "fi" else HIDDEN))
        for name in ("aln", "oln"):
            for part in "wb":
                found[f"l{layer}.{name}.{part}"] = (0, *plain(HIDDEN))
    return found


def packed(found):
    normalization = {**nfkc_without(""), **BLANKS}
    texts = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, texts)])
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, LAYERS, HEADS, WIDE, VOCABULARY, POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, offsets[-1])
    head += offsets.astype("<u4").tobytes() + np.array([0, 0, 0, 0, -1, -2, -3, -4, -5, 0], "<f4").tobytes()
    head += b"".join(texts)
    entries = b"".join(
        struct.pack(f"<IB{len(text)}I", ord(char), len(text), *map(ord, text)) for char, text in normalization.items()
    )
    head += struct.pack("<iI", len(normalization), len(entries)) + entries + struct.pack("<i", len(found))
    at = len(head) + sum(2 + len(name) + 21 for name in found)
    for name, (kind, raw, count) in found.items():
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, count, at, len(raw))
        at += len(raw)
    return head + b"".join(raw for _, raw, _ in found.values())


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "tiny.bin"
    path.write_bytes(packed(tensors()))
    return path


def test_four_bit_blocks_equal_the_description():
    raw = np.random.default_rng(1).bytes(18 * 7)
    raw = b"".join(struct.pack("<e", 0.1 * i - 0.3) + raw[18 * i + 2 : 18 * i + 18] for i in range(7))
    expected = [slow_weight(raw[18 * b : 18 * b + 18], i) for b in range(7) for i in range(32)]
    np.testing.assert_array_equal(four_bit_blocks(np.frombuffer(raw, np.uint8)), np.array(expected, np.float32))


def test_decoded_folder_loads_whole(source, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    e5_small.decode_e5_small(source, tmp_path / "decoded")
    model, report = AutoModel.from_pretrained(tmp_path / "decoded", output_loading_info=True)
    assert not any(report.values()), report
    file = read_packed_file(source)
    state = model.state_dict()
    for name, short in (("intermediate.dense.weight", "fi.w"), ("output.LayerNorm.bias", "oln.b")):
        found = state[f"encoder.layer.1.{name}"].numpy()
        np.testing.assert_array_equal(found, file.tensor(f"l1.{short}", *found.shape))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "decoded")
    # A tab is a blank, a control character vanishes, an accent joins its letter, what is not known is <unk>.
    assert tokenizer("a\tbe\u0301\x01c<mask>q")["input_ids"] == [0, 4, 7, 5, 6, 8, 9, 7, 3, 2]


def test_another_version_decodes_the_same_folder_so_that_no_run_is_made_again(source, tmp_path, monkeypatch):
    e5_small.decode_e5_small(source, tmp_path / "one")
    for module in ("bistil._version", *(name for name in sys.modules if name.startswith("bistil."))):
        if hasattr(sys.modules[module], "__version__"):
            monkeypatch.setattr(sys.modules[module], "__version__", "9.9")
    e5_small.decode_e5_small(source, tmp_path / "other")
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "other")


@pytest.mark.parametrize("end", [0, 3, 40, 100, 400, -1])
def test_a_file_cut_short_is_one_clear_error_and_leaves_nothing(source, tmp_path, end):
    source.write_bytes(source.read_bytes()[:end])
    with pytest.raises(ArtefactError, match=r"tiny\.bin.*install"):
        e5_small.decode_e5_small(source, tmp_path / "decoded")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.bin"]


def test_a_missing_tensor_and_a_weight_that_is_no_number_are_named(source):
    found = tensors()
    del found["l1.q.w"]
    source.write_bytes(packed(found))
    with pytest.raises(ArtefactError, match=r"tensor 'l1\.q\.w' is missing"):
        e5_small.build_weights(read_packed_file(source))
    found = tensors()
    kind, raw, count = found["emb.ln.w"]
    found["emb.ln.w"] = (kind, struct.pack("<f", float("nan")) + raw[4:], count)
    source.write_bytes(packed(found))
    with pytest.raises(ArtefactError, match="no numbers"):
        e5_small.build_weights(read_packed_file(source))


def test_normalizer_follows_the_map_where_it_is_not_nfkc():
    normalize = e5_small.build_normalizer({**nfkc_without("～"), **BLANKS}).normalize_str
    assert normalize("ﬁ①\t\x01\u200b x") == "fi1 x"
    assert normalize("～ ～") == "～ ～"  # NFKC would narrow the first; this map leaves it
    assert normalize("e\u0301") == "é"


def test_a_map_of_another_kind_is_refused():
    with pytest.raises(ArtefactError, match="not NFKC"):
        e5_small.build_normalizer(BLANKS)


def test_cache_is_decoded_once_and_again_when_damaged(source, tmp_path, monkeypatch):
    monkeypatch.setenv("BISTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(e5_small, "packed_e5_small", lambda: source)
    folder = e5_small.e5_small_folder()
    assert folder.parent == tmp_path / "cache"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert e5_small.e5_small_folder() == folder and (folder / "model.safetensors").stat().st_mtime_ns == before
    (folder / "model.safetensors").write_bytes(b"half")
    leftover = folder.parent / f".{folder.name}.abc.partial"
    leftover.mkdir()
    assert e5_small.e5_small_folder() == folder and (folder / "model.safetensors").stat().st_size > 4
    assert not leftover.exists()
    source.write_bytes(packed({**tensors(), "extra": (0, b"\0\0\0\0", 1)}))
    assert e5_small.e5_small_folder() != folder


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "bistil.json"])
def test_a_damaged_cache_is_decoded_again(source, tmp_path, monkeypatch, capfd, name):
    monkeypatch.setenv("BISTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(e5_small, "packed_e5_small", lambda: source)
    folder = e5_small.e5_small_folder()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    e5_small.e5_small_folder()
    assert capfd.readouterr().err == ""
    content = bytearray(whole[name])
    content[1] ^= 0x20
    (folder / name).write_bytes(content)
    assert e5_small.e5_small_folder() == folder
    assert capfd.readouterr().err == f"[bistil] {folder} is damaged ({name}): it is decoded again\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_checked_cache_is_not_read_again_and_an_old_one_is_watched_from_now_on(source, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("BISTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(e5_small, "packed_e5_small", lambda: source)
    folder = e5_small.e5_small_folder()
    record = json.loads((folder / "bistil.json").read_text())
    del record["files"]
    (folder / "bistil.json").write_text(json.dumps(record))
    e5_small.e5_small_folder()
    # As in another process.
    monkeypatch.setattr(digests, "_digests", {})
    read, real = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, name: read.append(stream.name) or real(stream, name))
    e5_small.e5_small_folder()
    assert [Path(name).name for name in read] == ["tiny.bin"]
    assert capfd.readouterr().err == ""
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    e5_small.e5_small_folder()
    assert "is damaged (model.safetensors): it is decoded again" in capfd.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == weights


def test_processes_that_start_together_leave_one_whole_folder(source, tmp_path):
    import os
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path; from bistil.pretrained import e5_small;"
        "e5_small.packed_e5_small = lambda: Path(sys.argv[1]); print(e5_small.e5_small_folder())"
    )
    environment = {**os.environ, "BISTIL_CACHE": str(tmp_path / "cache")}
    runs = [
        subprocess.Popen([sys.executable, "-c", script, str(source)], env=environment, stdout=-1, text=True)
        for _ in range(2)
    ]
    answers = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0] and len(answers) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")] == [
        answers.pop().strip().rsplit("/", 1)[1]
    ]


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(e5_small, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(MissingExtraError, match=r"pip install 'bistil\[demo\]'"):
        e5_small.packed_e5_small()


def test_a_cache_that_cannot_be_written_is_one_clear_error(source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BISTIL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(e5_small, "packed_e5_small", lambda: source)
    with pytest.raises(InputError, match="BISTIL_CACHE"):
        e5_small.e5_small_folder()
