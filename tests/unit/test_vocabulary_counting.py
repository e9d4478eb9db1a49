"""Counting: exact, streamed, kept and merged; and the choice of tokens."""

import gzip
import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import tiny
import zstandard
from safetensors.numpy import save_file
from scripts import SENTENCES
from tokenizer_families import FAMILIES, build

from bistil.errors import ArtefactError, InputError
from bistil.settings.recipe import TrimSettings
from bistil.text import files as text_files
from bistil.vocabulary import counting
from bistil.vocabulary.counting import TokenCounts, count_file, counting_tokenizer, held_out_lines
from bistil.vocabulary.selection import read_keep_list, select, unigram_probabilities
from bistil.vocabulary.tokenizer_state import read_vocabulary
from bistil.vocabulary.trimming import count_corpora

LINES = [*SENTENCES.values(), *tiny.ENGLISH.splitlines(), "", "   ", *tiny.SWAHILI.splitlines()]


def vocabulary_of(family):
    return read_vocabulary(json.loads(build(family)))


def written(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def naive(vocabulary, lines):
    """The plain way: one Python step per token."""
    tokenizer = counting_tokenizer(vocabulary)
    seen = Counter(i for line in lines if line.strip() for i in tokenizer.encode(line, add_special_tokens=False).ids)
    return [seen[i] for i in range(len(vocabulary))]


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_plain_loop(family, tmp_path):
    vocabulary = vocabulary_of(family)
    counted = count_file(vocabulary, written(tmp_path / "a.txt", LINES))
    assert counted.counts.tolist() == naive(vocabulary, LINES)
    assert counted.lines == sum(bool(line.strip()) for line in LINES)
    assert counted.words == sum(len(line.split()) for line in LINES)
    assert counted.characters == sum(len(line) for line in LINES if line.strip())


def test_compressed_files_line_ends_and_byte_order_marks_make_no_difference(tmp_path):
    vocabulary = vocabulary_of("unigram")
    plain = "\n".join(LINES).encode()
    contents = {
        "a.txt": plain,
        "b.txt.gz": gzip.compress(plain[:500]) + gzip.compress(plain[500:]),
        "c.txt.zst": zstandard.compress(plain[:900]) + zstandard.compress(plain[900:]),
        "d.txt": b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert count_file(vocabulary, tmp_path / name).counts.tolist() == naive(vocabulary, LINES), name


def test_batches_of_any_size_give_the_same_counts(tmp_path, monkeypatch):
    vocabulary = vocabulary_of("wordpiece")
    path = written(tmp_path / "a.txt", LINES)
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(text_files, "BATCH_BYTES", size)
        assert count_file(vocabulary, path).counts.tolist() == naive(vocabulary, LINES)


def test_a_file_without_line_ends_is_cut_at_spaces(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BATCH_BYTES", 50)
    monkeypatch.setattr(text_files, "LONGEST_LINE", 200)
    text = " ".join(LINES)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    batches = list(text_files.line_batches(tmp_path / "a.txt"))
    assert len(batches) > 5
    assert max(len(line.encode()) for batch in batches for line in batch) < 300
    assert "".join(line for batch in batches for line in batch) == text


def test_held_out_lines_are_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "COUNTED_FIRST", 20)
    monkeypatch.setattr(counting, "HELD_OUT_EVERY", 5)
    monkeypatch.setattr(counting, "HELD_OUT_LINES", 6)
    lines = [f"line number {n} {'x' * (1 + n % 3)}" for n in range(80)]
    held = [line for n, line in enumerate(lines) if 20 <= n < 50 and (n - 20) % 5 == 4]
    counted = [line for line in lines if line not in held]
    vocabulary, path = vocabulary_of("wordpiece"), written(tmp_path / "a.txt", lines)
    for size in (10, 100, 1 << 20):
        monkeypatch.setattr(text_files, "BATCH_BYTES", size)
        assert held_out_lines(path) == (held, True)
        assert count_file(vocabulary, path).counts.tolist() == naive(vocabulary, counted)
    short = written(tmp_path / "short.txt", lines[:22])
    assert held_out_lines(short) == (lines[:20], False)
    assert count_file(vocabulary, short).lines == 22


def test_counts_are_kept_merged_and_read_in_place_of_text(tmp_path, monkeypatch):
    vocabulary = vocabulary_of("unigram")
    one, two = written(tmp_path / "a.txt", LINES[:10]), written(tmp_path / "b.txt", LINES[10:])
    both = count_corpora(vocabulary, {"x": [one, two]}, cache=tmp_path / "cache")["x"]
    assert both.counts.tolist() == naive(vocabulary, LINES)
    assert len(both.sources) == 2
    both.save(tmp_path / "both.counts")
    again = count_file(vocabulary, tmp_path / "both.counts")
    assert (again.counts == both.counts).all()
    assert again.sources == both.sources
    monkeypatch.setattr(counting, "_counted_lines", None)  # counting again would fail
    kept = count_corpora(vocabulary, {"x": [one], "y": [two]}, cache=tmp_path / "cache")
    assert ((kept["x"] + kept["y"]).counts == both.counts).all()


def test_damaged_counts_are_counted_again_or_refused(tmp_path, capfd):
    vocabulary, text = vocabulary_of("unigram"), written(tmp_path / "a.txt", LINES)
    whole = count_file(vocabulary, text, cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    sound = kept.read_bytes()
    # The counts at the end, the sizes of the text in the header, its very length, and half of the file.
    for damaged in (
        sound[:-8] + b"\1" + sound[-7:],
        sound.replace(b'\\"lines\\": ', b'\\"lines\\": 9'[:-1] + b"9", 1)[: len(sound)],
        bytes([sound[0] ^ 4]) + sound[1:],
        sound[: len(sound) // 2],
    ):
        assert damaged != sound
        kept.write_bytes(damaged)
        again = count_file(vocabulary, text, cache=tmp_path / "cache")
        assert (again.counts == whole.counts).all() and again.lines == whole.lines
        assert f"{kept} is damaged: its text is counted again" in capfd.readouterr().err
        assert kept.read_bytes() == sound
        (tmp_path / "mine.counts").write_bytes(damaged)
        with pytest.raises(ArtefactError, match="no token counts or is damaged"):
            count_file(vocabulary, tmp_path / "mine.counts")


def test_counts_of_the_first_version_are_read(tmp_path):
    counted = count_file(vocabulary_of("unigram"), written(tmp_path / "a.txt", LINES))
    facts = {key: value for key, value in asdict(counted).items() if key != "counts"}
    save_file({"counts": counted.counts}, tmp_path / "old.counts", metadata={"bistil_counts": json.dumps(facts)})
    assert (TokenCounts.load(tmp_path / "old.counts").counts == counted.counts).all()


def test_counts_of_another_tokenizer_are_refused(tmp_path):
    path = written(tmp_path / "a.txt", LINES)
    counted = count_file(vocabulary_of("unigram"), path)
    counted.save(tmp_path / "a.counts")
    with pytest.raises(InputError, match="another tokenizer"):
        count_file(vocabulary_of("wordpiece"), tmp_path / "a.counts")
    with pytest.raises(InputError, match="different tokenizers"):
        counted + count_file(vocabulary_of("wordpiece"), path)
    (tmp_path / "b.counts").write_bytes(b"nonsense")
    with pytest.raises(ArtefactError, match="no token counts"):
        TokenCounts.load(tmp_path / "b.counts")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("café\n".encode() + "naïve\n".encode("latin-1"), "a.txt", "a.txt, line 2: not UTF-8"),
        (b"ok\n\xed\xa0\x80\n", "a.txt", "a.txt, line 2: not UTF-8"),
        ("text\n".encode("utf-16"), "a.txt", "a.txt, line 1: not UTF-8"),
        (b"", "a.txt", "a.txt holds no text"),
        (b"\n  \n\t\n", "a.txt", "a.txt holds no text"),
        (b"no gzip", "a.txt.gz", "not a whole .gz file"),
        # Without a time stamp: the test's name holds the bytes, and must be the same in every worker.
        (gzip.compress(b"text " * 1000, mtime=0)[:-9], "a.txt.gz", "not a whole .gz file"),
        (b"no zstd at all", "a.txt.zst", "not a whole .zst file"),
        (zstandard.compress(b"text " * 1000)[:-9], "a.txt.zst", "not a whole .zst file: it ends within a frame"),
    ],
)
def test_bad_text_is_one_clear_line(content, name, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        count_file(vocabulary_of("unigram"), tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_text():
    from pathlib import Path

    with pytest.raises(InputError, match="No such file"):
        count_file(vocabulary_of("unigram"), Path("nowhere.txt"))
    with pytest.raises(InputError, match="no text to count"):
        count_corpora(vocabulary_of("unigram"), {})


# Selection


@pytest.fixture
def counted(tmp_path):
    vocabulary = vocabulary_of("unigram")
    texts = {
        "eng": [written(tmp_path / "e.txt", tiny.ENGLISH.splitlines())],
        "swa": [written(tmp_path / "s.txt", tiny.SWAHILI.splitlines())],
    }
    return vocabulary, count_corpora(vocabulary, texts)


def test_a_token_is_kept_if_its_probability_reaches_the_threshold_in_either_corpus(counted):
    vocabulary, counts = counted
    threshold = 0.004
    selection = select(vocabulary, counts, TrimSettings(threshold=threshold, keep_characters=False))
    expected = set().union(*vocabulary.required.values())
    for one in counts.values():
        for i, count in enumerate(one.counts.tolist()):
            if count / sum(one.counts.tolist()) >= threshold:
                expected.add(i)
    assert set(selection.kept.tolist()) == expected
    assert sum(selection.reasons.values()) == len(selection.kept)
    assert unigram_probabilities(counts.values()).max() < 1


def test_characters_that_occur_keep_their_tokens(counted):
    vocabulary, counts = counted
    without = select(vocabulary, counts, TrimSettings(threshold=0.01, keep_characters=False))
    with_ = select(vocabulary, counts, TrimSettings(threshold=0.01))
    seen = set("".join([tiny.ENGLISH, tiny.SWAHILI])) - {"\n", " "} | {"▁"}
    singles = {vocabulary.ids[c] for c in seen if c in vocabulary.ids}
    assert set(with_.kept.tolist()) == set(without.kept.tolist()) | singles
    assert with_.missing_characters == sorted(seen - {vocabulary.tokens[i] for i in singles})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_size_is_met_with_the_most_probable_tokens(family, tmp_path):
    vocabulary = vocabulary_of(family)
    counts = {"x": count_file(vocabulary, written(tmp_path / "a.txt", LINES))}
    highest = unigram_probabilities(counts.values()).max()
    size = len(select(vocabulary, counts, TrimSettings(threshold=float(highest))).kept) + 100
    selection = select(vocabulary, counts, TrimSettings(threshold=None, vocabulary_size=size))
    assert len(selection.kept) <= size
    # One more token, with what builds it, would be too much; and what was left out is no more probable.
    probability = unigram_probabilities(counts.values())
    rest = sorted(
        set(np.flatnonzero(probability).tolist()) - set(selection.kept.tolist()), key=lambda i: -probability[i]
    )
    more = select(vocabulary, counts, TrimSettings(threshold=float(probability[rest[0]])))
    assert len(more.kept) > size
    with pytest.raises(InputError, match="too small"):
        select(vocabulary, counts, TrimSettings(threshold=None, vocabulary_size=3))


def test_bpe_tokens_come_with_what_builds_them(tmp_path):
    vocabulary = vocabulary_of("whole-word-bpe")
    text = written(tmp_path / "a.txt", ["the president of the university is at the market"] * 5)
    counts = {"x": count_file(vocabulary, text)}
    selection = select(vocabulary, counts, TrimSettings(threshold=0.05))
    kept = {vocabulary.tokens[i] for i in selection.kept}
    assert set(selection.unreachable) == {"Ġpresident", "Ġuniversity"}
    for token in kept:
        assert (vocabulary.merges.derive(token) or frozenset()) <= kept
    assert selection.reasons["merges"] > 0


def test_keep_list(tmp_path):
    vocabulary = vocabulary_of("unigram")
    tokenizer = counting_tokenizer(vocabulary)
    word = tokenizer.encode("football", add_special_tokens=False)
    token = next(t for t in vocabulary.tokens[200:] if len(t) > 3)
    path = written(tmp_path / "keep.txt", ["football", "", token])
    ids = read_keep_list(path, vocabulary, tokenizer)
    assert set(word.ids) | {vocabulary.ids[token]} <= ids
    written(path, ["ok", "\U0001f9ff"])
    with pytest.raises(InputError, match=r"keep\.txt, line 2"):
        read_keep_list(path, vocabulary, tokenizer)


def test_a_threshold_that_keeps_nothing(counted):
    with pytest.raises(InputError, match=r"threshold 0\.9 keeps no token"):
        select(*counted, TrimSettings(threshold=0.9))


def test_threshold_zero_keeps_what_occurs(counted):
    vocabulary, counts = counted
    kept = select(vocabulary, counts, TrimSettings(threshold=0.0, keep_characters=False)).kept
    seen = np.flatnonzero(sum(one.counts for one in counts.values()))
    assert set(kept.tolist()) == set(seen.tolist()).union(*vocabulary.required.values())


def test_lines_are_counted_as_training_reads_them(tmp_path):
    """Phase 1 strips lines, and so does counting: a byte-level tokenizer has another token behind a space."""
    from tokenizer_families import of_class

    from bistil.text.blocks import token_blocks

    tokenizer = of_class("RobertaTokenizer")
    text = tmp_path / "text.txt"
    lines = [
        "  Paka aliketi kwenye mkeka. ",
        "\tMaji huchemka",
        "   ",
        "\u3000Rais alizungumza na watu\u00a0\r",
        "The cat",
    ]
    text.write_bytes(("\ufeff" + "\n".join(lines)).encode())
    vocabulary = read_vocabulary(json.loads(tokenizer.backend_tokenizer.to_str()))
    counted = count_file(vocabulary, text).counts
    blocks = token_blocks([text], tokenizer, length=4, cache=tmp_path / "cache")
    read = np.bincount(np.concatenate([blocks[i]["input_ids"] for i in range(len(blocks))]), minlength=len(vocabulary))
    read[tokenizer.all_special_ids] = 0
    whole = np.zeros_like(counted)
    for line in lines:
        for i in tokenizer(line.strip(), add_special_tokens=False)["input_ids"]:
            whole[i] += 1
    assert counted.tolist() == whole.tolist()
    # The last block may lack its end.
    assert np.all(read <= counted) and counted.sum() - read.sum() < 4
    assert held_out_lines(text) == ([line.strip() for line in lines if line.strip()], False)
