"""Text to blocks, the order of training, masking; bad text gives one line with file and line."""

import gzip

import numpy as np
import pytest
import tiny
import torch
import zstandard

from bistil.errors import InputError
from bistil.runtime.quiet import kept_threads
from bistil.text import blocks as text_blocks
from bistil.text import lines
from bistil.text import schedule as order


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def blocks_of(files, tmp_path, length=8, **options):
    return text_blocks.token_blocks(files, tiny.tokenizer(), length=length, cache=tmp_path / "cache", **options)


def test_blocks_are_the_joined_lines_cut(tmp_path):
    file = write(tmp_path / "a.txt", tiny.ENGLISH + "\n\n   \n")
    blocks = blocks_of([file], tmp_path)
    tokens = [token for line in tiny.ENGLISH.splitlines() for token in tiny.tokenizer()(line)["input_ids"]]
    assert len(blocks) == len(tokens) // 8 > 5
    assert np.concatenate(blocks["input_ids"]).tolist() == tokens[: len(blocks) * 8]


def test_blocks_are_kept_by_content(tmp_path):
    file = write(tmp_path / "a.txt", tiny.ENGLISH)
    blocks_of([file], tmp_path)
    kept = sorted((tmp_path / "cache").iterdir())
    assert [path.suffix for path in kept] == [".arrow", ".json"]
    before = [path.stat().st_mtime_ns for path in kept]
    blocks_of([write(tmp_path / "copy.txt", tiny.ENGLISH)], tmp_path)
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "cache").iterdir())] == before
    blocks_of([write(tmp_path / "b.txt", tiny.SWAHILI)], tmp_path)
    blocks_of([file], tmp_path, length=6)
    assert len(list((tmp_path / "cache").iterdir())) == 2 * 3


def test_several_processes_and_pieces_give_the_same_blocks(tmp_path, monkeypatch):
    text = "\n".join([tiny.ENGLISH, tiny.SWAHILI] * 5)
    file = write(tmp_path / "a.txt", text)
    one = blocks_of([file], tmp_path)["input_ids"]
    monkeypatch.setattr(text_blocks, "_LINES_PER_PROCESS", 20)
    monkeypatch.setattr(text_blocks, "_LINES_AT_ONCE", 7)
    two = text_blocks.token_blocks([file], tiny.tokenizer(), length=8, cache=tmp_path / "other", processes=2)[
        "input_ids"
    ]
    assert np.array_equal(np.stack(one), np.stack(two))
    assert sorted(path.suffix for path in (tmp_path / "other").iterdir()) == [".arrow", ".json"]


def test_processes_that_tokenize_are_those_of_the_share_that_this_process_has(monkeypatch):
    monkeypatch.setattr(text_blocks, "cores", lambda: 8)
    with kept_threads(6):
        assert [text_blocks.tokenizing_processes(lines) for lines in (0, 39_999, 40_000, 10**6)] == [1, 1, 2, 6]
        assert text_blocks.tokenizing_processes(10**6, most=7) == 7
    with kept_threads(1):
        assert text_blocks.tokenizing_processes(10**6) == 1
    monkeypatch.setattr(text_blocks, "cores", lambda: 3)
    with kept_threads(6):
        assert text_blocks.tokenizing_processes(10**6) == 3


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def test_damaged_blocks_are_made_again(tmp_path, capfd):
    file = write(tmp_path / "a.txt", tiny.ENGLISH)
    blocks_of([file], tmp_path)
    arrow, seal = sorted((tmp_path / "cache").iterdir())
    sound = arrow.read_bytes()
    damages = [
        lambda: flip(arrow),
        lambda: arrow.write_bytes(sound[:-100]),
        lambda: seal.write_text("{"),
        lambda: seal.write_text(seal.read_text().replace("a", "b", 1)),
    ]
    for damage in damages:
        damage()
        blocks_of([file], tmp_path)
        assert f"{arrow} is damaged: the text is tokenized again" in capfd.readouterr().err
        assert arrow.read_bytes() == sound
    # Killed between the two files: nothing is known about the first.
    seal.unlink()
    flip(arrow)
    blocks_of([file], tmp_path)
    assert arrow.read_bytes() == sound and "damaged" not in capfd.readouterr().err


def test_what_a_killed_process_left_is_not_used(tmp_path, monkeypatch):
    file = write(tmp_path / "a.txt", "\n".join([tiny.ENGLISH, tiny.SWAHILI] * 5))
    one = blocks_of([file], tmp_path)["input_ids"]
    other = tmp_path / "other"
    monkeypatch.setattr(text_blocks, "_LINES_PER_PROCESS", 20)

    def killed(pieces, *_, **__):
        next(iter(pieces))
        for path in list(other.iterdir()):
            path.with_name(f"kept-{path.name}").write_bytes(path.read_bytes())
        raise KeyboardInterrupt

    whole = text_blocks._write_blocks
    monkeypatch.setattr(text_blocks, "_write_blocks", killed)
    with pytest.raises(KeyboardInterrupt):
        text_blocks.token_blocks([file], tiny.tokenizer(), length=8, cache=other, processes=2)
    left = sorted(other.iterdir())
    assert len(left) >= 3
    for path in left:  # as if nothing had been tidied up, and what lies there were damaged
        if path.stat().st_size:
            flip(path)
        path.rename(path.with_name(path.name.removeprefix("kept-")))
    monkeypatch.setattr(text_blocks, "_write_blocks", whole)
    two = text_blocks.token_blocks([file], tiny.tokenizer(), length=8, cache=other, processes=2)["input_ids"]
    assert np.array_equal(np.stack(one), np.stack(two))
    # A temporary file that nobody finished is nobody's.
    assert sorted(path.suffix for path in other.iterdir() if path.suffix != ".partial") == [".arrow", ".json"]


def test_compressed_and_several_files(tmp_path):
    plain = write(tmp_path / "a.txt", tiny.ENGLISH)
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(tiny.SWAHILI.encode()))
    both = write(tmp_path / "c.txt", tiny.ENGLISH + "\n" + tiny.SWAHILI)
    zipped = tmp_path / "b.txt.zst"
    zipped.write_bytes(
        b"".join(zstandard.compress(part) for part in (tiny.SWAHILI.encode()[:99], tiny.SWAHILI.encode()[99:]))
    )
    assert np.array_equal(blocks_of([plain, zipped], tmp_path)["input_ids"], blocks_of([both], tmp_path)["input_ids"])
    assert np.array_equal(blocks_of([plain, packed], tmp_path)["input_ids"], blocks_of([both], tmp_path)["input_ids"])
    assert lines.read_sentences([packed]) == tiny.SWAHILI.splitlines()


def test_text_shorter_than_two_blocks_becomes_two_short_ones(tmp_path):
    file = write(tmp_path / "a.txt", "The cat sat on the mat.")
    tokens = tiny.tokenizer()("The cat sat on the mat.")["input_ids"]
    blocks = blocks_of([file], tmp_path, length=100)
    assert [len(row) for row in blocks["input_ids"]] == [len(tokens) // 2] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*a.txt: No such file"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"good\nbad \xff\n", "a.txt, line 2: not UTF-8 .byte 0xff"),
        (b"cat", "at least 8 are needed"),
    ],
)
def test_bad_text(tmp_path, content, message):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        blocks_of([path], tmp_path)
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_damaged_or_cut_off_archives(ending, compress, tmp_path):
    path = tmp_path / f"a.txt.{ending}"
    for content in (compress(tiny.ENGLISH.encode())[:-20], b"no archive at all"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"a\.txt\.{ending} is not a whole \.{ending} file"):
            lines.check_text(path)


def test_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfHello\r\nworld\r\n")
    assert list(lines.read_lines(path)) == ["Hello", "world"]


def test_few_ordinary_tokens_are_all_that_can_be_masked():
    tokenizer = tiny.tokenizer()
    special = tokenizer.cls_token_id
    rows = [[special] * 9 + [7], [special] * 10, [7]]
    collate = order.BlockCollator(tokenizer=tokenizer, mask_tokens=True)
    batch = collate([{"input_ids": row, "language": "en", "position": 0} for row in rows])
    assert (batch["labels"] != -100).sum(1).tolist() == [1, 0, 1]


@pytest.mark.parametrize(("size", "share", "expected"), [(100, 0.05, 5), (1000, 0.05, 20), (2, 0.05, 1), (9, 0.0, 0)])
def test_held_out_split(size, share, expected):
    train, held_out = order.split_held_out(size, share, limit=20, seed=0)
    assert len(held_out) == expected
    assert sorted([*train, *held_out]) == list(range(size))


def test_held_out_split_without_limit_leaves_something_to_train_on():
    assert [len(part) for part in order.split_held_out(1000, 0.05, limit=None, seed=0)] == [950, 50]
    assert [len(part) for part in order.split_held_out(2, 0.9, limit=None, seed=0)] == [1, 1]


def schedule(steps=200, batch_size=4, **options):
    blocks = {name: [{"input_ids": np.array([i])} for i in range(10)] for name in ("en", "sw", "ha")}
    indices = {"en": np.arange(7), "sw": np.arange(3, 10), "ha": np.array([5])}
    return order.language_schedule(blocks, indices, steps=steps, batch_size=batch_size, seed=1, **options)


def test_every_batch_is_in_one_language_and_epochs_are_whole():
    order = schedule()
    seen = {"en": [], "sw": [], "ha": []}
    for step in range(200):
        batch = [order[i] for i in range(4 * step, 4 * step + 4)]
        assert len({item["language"] for item in batch}) == 1
        seen[batch[0]["language"]] += [int(item["input_ids"][0]) for item in batch]
    for name, known in (("en", range(7)), ("sw", range(3, 10)), ("ha", [5])):
        assert 45 * 4 < len(seen[name]) < 90 * 4
        for start in range(0, len(seen[name]) - len(known) + 1, len(known)):
            assert sorted(seen[name][start : start + len(known)]) == list(known)
    assert [item["position"] for item in batch] == list(range(796, 800))


def test_given_probabilities():
    order = schedule(probabilities={"en": 3, "sw": 1, "ha": 0})
    counts = np.bincount(order.of_batch, minlength=3)
    assert counts[2] == 0 and 130 < counts[0] < 170
    with pytest.raises(InputError, match="each language with text: en, sw, ha"):
        schedule(probabilities={"en": 1.0, "sv": 1.0})


def test_order_depends_on_the_seed_alone():
    assert np.array_equal(schedule().order, schedule().order)


def test_collator_pads_only_unequal_blocks():
    collate = order.BlockCollator(tokenizer=tiny.tokenizer())
    batch = collate([{"input_ids": [5, 6], "language": "en"}, {"input_ids": [7, 8], "language": "en"}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 8]] and set(batch) == {"input_ids", "language"}
    batch = collate([{"input_ids": [5, 6], "language": "en"}, {"input_ids": [7], "language": "en"}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_masking():
    tokenizer = tiny.tokenizer()
    collate = order.BlockCollator(tokenizer=tokenizer, mask_tokens=True, seed=3)
    ids = np.arange(5000) % (len(tokenizer) - 5) + 5
    ids[::50] = tokenizer.cls_token_id
    examples = [{"input_ids": ids, "language": "en", "position": p} for p in (4, 5)]
    batch = collate(examples)
    again = collate(examples[1:])
    assert torch.equal(batch["input_ids"][1], again["input_ids"][0])
    assert not torch.equal(batch["labels"][0], batch["labels"][1])
    chosen = batch["labels"] != -100
    original = torch.from_numpy(ids).expand(2, -1)
    assert torch.equal(batch["labels"][chosen], original[chosen])
    assert torch.equal(batch["input_ids"][~chosen], original[~chosen])
    assert not chosen[original == tokenizer.cls_token_id].any()
    assert chosen.sum(1).tolist() == [750, 750]
    assert not torch.equal(chosen[0], chosen[1])
    masked = (batch["input_ids"] == tokenizer.mask_token_id)[chosen].float().mean()
    kept = (batch["input_ids"] == original)[chosen].float().mean()
    assert 0.75 < masked < 0.85 and 0.07 < kept < 0.13


OTHER = {
    "JSON lines": ('{"text": "a"}\n{"text": "b"}\n', "holds JSON lines.*jq"),
    "CoNLL-U": ("# text = a\n1\ta" + "\t_" * 8 + "\n\n", "holds CoNLL-U.*sed"),
    "numbered sentences": ("".join(f"{i}\tA sentence.\n" for i in range(5)), "2 columns between tabs.*cut -f2"),
    "words with tags": ("Anna B-PER\nsings O\n\nBob B-PER\nis O\nill O\n", "words with a tag each"),
    "UTF-16": ("a\0b\0\n\0", "NUL characters: it is UTF-16"),
}


@pytest.mark.parametrize("case", OTHER)
def test_labelled_rows_are_no_plain_text(case, tmp_path):
    text, message = OTHER[case]
    (tmp_path / "a.txt").write_text(text)
    for read in (lines.check_text, lambda path: lines.read_sentences([path])):
        with pytest.raises(InputError, match=message) as caught:
            read(tmp_path / "a.txt")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a\tb\n" * 4, "a\tb\nc\n" * 9, '{"a": 1}\nplain\n', "# Title\n\nA sentence O\n", "#a\n#b\n"]
)
def test_text_with_a_tab_or_a_brace_is_text(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    lines.check_text(tmp_path / "a.txt")
