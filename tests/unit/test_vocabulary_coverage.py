"""What trimming changes in other texts: against plain ways to count it, what is said of it, and what mends it."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny
import tiny_recipe
import tiny_study
import typer
from scripts import SENTENCES
from tokenizer_families import FAMILIES, of_class
from typer.testing import CliRunner

from bistil.commands import trim as command
from bistil.errors import ArtefactError, InputError
from bistil.method import forecast_recipe, plan_recipe, run_recipe
from bistil.models.tokenizers import with_state
from bistil.runs.folder import RunFolder
from bistil.runs.inputs import check_inputs
from bistil.settings.recipe import TrimSettings, load_recipe
from bistil.settings.study import load_study
from bistil.study import study_at
from bistil.vocabulary import coverage as module
from bistil.vocabulary.coverage import (
    FoundInTexts,
    TextCoverage,
    TokenizerPair,
    drawn,
    loss_line,
    missing_file,
    missing_files,
    write_missing,
)
from bistil.vocabulary.selection import read_keep_list, select
from bistil.vocabulary.tokenizer_state import trim_state
from bistil.vocabulary.trimming import Counted

SIMPLIFIED, TRADITIONAL = SENTENCES["Chinese (simplified)"], SENTENCES["Chinese (traditional)"]
CLOSE, FAR = tiny.ENGLISH.splitlines()[:5], [SENTENCES["Ukrainian (Cyrillic)"], SENTENCES["Hindi (Devanagari)"]]


def trimmed(full, lines, folder, *, keep=None):
    """The tokenizer that trimming to lines of text leaves."""
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    counted = Counted.of(full, {"text": [folder / "text.txt"]})
    required = {"special": counted.vocabulary.required["special"] | set(full.all_special_ids)}
    if keep is not None:
        (folder / "keep.txt").write_text("".join(f"{line}\n" for line in keep), encoding="utf-8")
        required["keep"] = read_keep_list(folder / "keep.txt", counted.vocabulary, counted.tokenizer)
    kept = select(counted.vocabulary, counted.corpora, TrimSettings(), required=required).kept
    return with_state(full, trim_state(counted.vocabulary, kept))


def tokens(tokenizer, text):
    # Not `encode(text).tokens`: there Unigram shows what is unknown as it stands.
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_figures_are_those_of_the_two_tokenizers(family, tmp_path):
    full = of_class(family)
    full.backend_tokenizer.no_padding()
    full.backend_tokenizer.no_truncation()
    small = trimmed(full, CLOSE, tmp_path)
    both = TokenizerPair(full, small)
    assert both.of(CLOSE).coverage == replace(
        both.of(CLOSE).coverage,
        texts=5, of=5, unit="word", changed=0, missing={}, missing_characters=0,
        words=sum(len(line.split()) for line in CLOSE),
        tokens=(same := sum(len(tokens(full, line)) for line in CLOSE)), trimmed_tokens=same,
        unknown=0, trimmed_unknown=0,
    )  # fmt: skip
    assert not both.of(CLOSE).coverage.loses and both.of(CLOSE).lacking == []

    found = both.of(FAR, of=7).coverage
    assert found.loses and (found.texts, found.of) == (2, 7)
    for which, count, unknown in (
        (full, found.tokens, found.unknown),
        (small, found.trimmed_tokens, found.trimmed_unknown),
    ):
        encoded = [tokens(which, line) for line in FAR]
        assert count == sum(map(len, encoded))
        assert unknown == sum(one.count("<unk>") for one in encoded)
    assert found.fertility == (found.tokens / found.words, found.trimmed_tokens / found.words)
    # The tokenizers stay as they are.
    assert full.backend_tokenizer.padding is None


@pytest.mark.parametrize("family", ["wordpiece", "wordpiece-uncased", "unigram", "unigram-bytes"])
def test_changed_words_are_those_that_are_encoded_otherwise_by_themselves(family, tmp_path):
    """In these families a word's tokens do not depend on its neighbours."""
    full = of_class(family)
    small = trimmed(full, [*CLOSE, SENTENCES["Kazakh (Cyrillic)"]], tmp_path)
    texts = [*FAR, *tiny.ENGLISH.splitlines(), SENTENCES["Yoruba (Latin)"], SENTENCES["Korean (Hangul)"]]
    found = TokenizerPair(full, small).of(texts).coverage
    words = [word for text in texts for word in text.split()]
    assert found.words == len(words)
    changed = [word for word in words if tokens(full, word) != tokens(small, word)]
    assert 0 < len(changed) < len(words) and found.changed == len(changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_lacking_characters_are_those_that_are_unknown_or_spelt_in_bytes_by_themselves(family, tmp_path):
    full = of_class(family)
    small = trimmed(full, CLOSE, tmp_path)
    found = TokenizerPair(full, small).of([TRADITIONAL, *CLOSE]).coverage

    def parts(tokenizer, one):
        """Tokens of a character within a word; one that is unknown, or falls to bytes, counts as many."""
        inside = tokens(tokenizer, f"a{one}")
        return 99 if any(token == "<unk>" or token.startswith("<0x") for token in inside) else len(inside)

    lacking = {one for one in TRADITIONAL if parts(small, one) > parts(full, one)}
    assert lacking and set(found.missing) == lacking and found.missing_characters == len(lacking)
    assert found.missing == {one: TRADITIONAL.count(one) for one in found.missing}
    counts = list(found.missing.values())
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_keep_list_gives_all_tokens_back(family, tmp_path):
    full = of_class(family)
    texts = [TRADITIONAL, *FAR, SENTENCES["Persian (Arabic)"], SENTENCES["Symbols"]]
    lacking = TokenizerPair(full, trimmed(full, CLOSE, tmp_path)).of(texts).lacking
    assert len(lacking) > 10 and len(lacking) == len({*lacking}) and not any("\n" in one for one in lacking)
    found = TokenizerPair(full, trimmed(full, CLOSE, tmp_path, keep=lacking)).of(texts)
    assert found.lacking == [] and found.coverage.changed == 0
    assert found.coverage.tokens == found.coverage.trimmed_tokens and found.coverage.missing == {}


def test_words_of_running_text_without_spaces_are_its_characters(tmp_path):
    full = of_class("unigram")
    both = TokenizerPair(full, trimmed(full, CLOSE, tmp_path))
    running, words = both.of([TRADITIONAL]).coverage, both.of([" ".join(TRADITIONAL)]).coverage
    assert (running.unit, running.words) == ("character", len(TRADITIONAL))
    assert (words.unit, words.words) == ("word", len(TRADITIONAL))
    assert both.of(["A" * 40, "word " * 3]).coverage.unit == "word"
    assert 0 < running.changed <= running.words


def test_a_tokenizer_with_other_tokens_is_no_trimmed_one():
    with pytest.raises(ArtefactError, match="which the full one lacks"):
        TokenizerPair(of_class("unigram"), of_class("wordpiece"))


def coverage(**changes):
    values = {
        "texts": 10, "of": 10, "unit": "word", "words": 1000, "changed": 0, "tokens": 1000, "trimmed_tokens": 1000,
        "unknown": 0, "trimmed_unknown": 0,
    }  # fmt: skip
    return TextCoverage(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "loses"),
    [
        ({}, False),
        ({"trimmed_tokens": 1030}, False),
        ({"trimmed_tokens": 1031}, True),
        ({"trimmed_unknown": 5}, False),
        ({"trimmed_unknown": 6}, True),
        # As unknown before as after.
        ({"unknown": 400, "trimmed_unknown": 400}, False),
        ({"changed": 50}, False),
        ({"changed": 51}, True),
        ({"words": 0, "tokens": 0, "trimmed_tokens": 0}, False),
    ],
)
def test_where_a_file_loses_noticeably(changes, loses):
    assert coverage(**changes).loses == loses


def test_the_line_says_what_is_lost_and_what_helps():
    lacks = {"為": 9, "\u202e": 3, "個": 2}
    lost = coverage(trimmed_tokens=1100, trimmed_unknown=110, changed=200, missing=lacks, missing_characters=30)
    line = loss_line("test, zh (a)", lost, settings=TrimSettings(), keep="trim.keep = FILE")
    assert line == (
        "test, zh (a): the trimmed vocabulary does not fit it: 10.0% more tokens, 10.0% of them unknown (before: "
        "0.0%), other ones for 20.0% of its words; it lacks 為 個 and 28 more characters. What helps: trimming on more "
        "text like it (script, spelling, domain), or trim.keep = FILE"
    )
    # Only where it would help.
    without = TrimSettings(keep_characters=False)
    assert "keep_characters = true, or" in loss_line("a", lost, settings=without, keep="k")
    assert "keep_characters" not in loss_line("a", coverage(changed=200), settings=without, keep="k")
    assert "or a lower threshold" in loss_line("a", lost, settings=TrimSettings(), covered=0.99, keep="k")
    sized = TrimSettings(threshold=None, vocabulary_size=9)
    assert "threshold" not in loss_line("a", lost, settings=sized, covered=0.99, keep="k")
    # What does not count is left out.
    assert coverage(changed=90).in_words() == "0.0% more tokens, other ones for 9.0% of its words"
    assert coverage(trimmed_tokens=900).in_words() == "10.0% fewer tokens, other ones for 0.0% of its words"
    assert "it lacks 為 個" in coverage(missing=lacks, missing_characters=3).in_words()  # all are spelt in bytes
    few = coverage(tokens=10**6, trimmed_tokens=10**6, trimmed_unknown=300, missing=lacks, missing_characters=3)
    assert "unknown" not in few.in_words() and "lacks" not in few.in_words()


def test_texts_of_large_files_are_drawn_by_the_seed_in_one_pass(monkeypatch):
    monkeypatch.setattr(module, "MOST_TEXTS", 100)
    texts = [f"text {i}" for i in range(1000)]
    chosen, count = drawn(iter(texts), seed=1)
    assert count == 1000 and len({*chosen}) == 100 and {*chosen} <= {*texts}
    assert drawn(iter(texts), seed=1)[0] == chosen != drawn(iter(texts), seed=2)[0]
    # From all of the file: a tenth of each tenth, about.
    tenths = np.bincount([int(one.split()[1]) // 100 for one in chosen], minlength=10)
    assert tenths.min() > 1
    assert drawn(texts[:100], seed=1) == (texts[:100], 100)
    monkeypatch.setattr(module, "MOST_CHARACTERS", 70)
    few, count = drawn(texts[:100], seed=1)
    assert count == 100 and 9 <= len(few) <= 12 and few != texts[: len(few)]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("test, zho", "test-zho.txt"),
        ("test, zho/dev, 2", "test-zho-dev-2.txt"),
        ("notes.txt", "notes.txt"),
        ("../../etc", "etc.txt"),
        ("test, 天", "test-天.txt"),
        ("!", "file.txt"),
        ("天" * 300, "天" * 50 + ".txt"),
    ],
)
def test_keep_lists_have_plain_names(name, file):
    assert missing_file(name) == file


def test_no_two_keep_lists_have_one_name(tmp_path):
    """Names that differ in what a file's name cannot hold, in case, or before their last 50 characters."""
    names = ["a b.txt", "a-b.txt", "A-B", "x" * 9 + "a" * 60, "a" * 60, "sound.txt"]
    losing, sound = coverage(changed=51), coverage()
    assert losing.loses and not sound.loses
    found = {name: FoundInTexts(coverage=losing, lacking=[name]) for name in names[:-1]}
    found |= {names[-1]: FoundInTexts(coverage=sound, lacking=[])}
    write_missing(found, tmp_path)
    files = missing_files({name: one.coverage for name, one in found.items()})
    assert [*files] == names[:-1] and "A-B.txt" in files.values()
    assert all((tmp_path / file).read_text() == f"{name}\n" for name, file in files.items())
    assert files == missing_files({name: found[name].coverage for name in sorted(names)})


# A run


def write_poor(folder):
    """A recipe whose Swahili text holds little of what is tested."""
    tiny_recipe.write_recipe(folder)
    (folder / "sw.txt").write_text("\n".join(tiny.SWAHILI.splitlines()[4:6] * 20))
    return load_recipe(folder / "recipe.toml")


def of_files(recipe):
    return plan_recipe(recipe, check_inputs(recipe))


def test_a_file_that_loses_is_a_line_a_record_without_its_text_and_a_keep_list(tmp_path, caplog):
    recipe, output = write_poor(tmp_path), tmp_path / "run"
    plan = of_files(recipe)
    with RunFolder(output, identity={}, names=plan.names) as run:
        result = run.make(plan.coverage()).result
    lost = [name for name, one in result.files.items() if one.loses]
    assert [*result.files] == ["train, en", "dev, en", "test, en", "test, sw"] and lost == ["test, sw"]
    said = [one.getMessage() for one in caplog.records if "does not fit" in one.getMessage()]
    keep = output / "vocabulary-missing/test-sw.txt"
    assert len(said) == 1 and said[0].startswith(f"test, sw ({tmp_path / 'test.sw.jsonl'}): ")
    assert f"trim.keep = a copy of {keep}" in said[0] and "docs/trim.md" in said[0]

    lines = keep.read_text(encoding="utf-8").splitlines()
    assert lines and not any(" " in line for line in lines) and not (keep.parent / "dev-en.txt").exists()
    record = next((output / "stages").glob("coverage-*.json")).read_text(encoding="utf-8")
    sentences = [*tiny.ENGLISH.splitlines(), *tiny.SWAHILI.splitlines()]
    for text in (record, said[0]):
        assert not any(word in text for line in sentences for word in line.split() if len(word) > 5)
    figures = json.loads(record)["result"]["files"]["test, sw"]
    assert all(len(character) == 1 for character in figures["missing"])

    # Found made, it is said again, here and by --check; nothing is made.
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    caplog.clear()
    with RunFolder(output, identity={}, names=plan.names) as run:
        assert run.make(plan.coverage()).skipped
    forecast_recipe(recipe, output)
    assert [one.getMessage() for one in caplog.records if "does not fit" in one.getMessage()] == said * 2
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}

    # What is within the run's folder is replaced, so it is no input; a copy is one, and mends it.
    inside = replace(recipe, trim=TrimSettings(keep=str(keep)))
    with pytest.raises(InputError, match="vocabulary-missing holds an input"):
        run_recipe(inside, output)
    copy = tmp_path / "keep.txt"
    copy.write_text(keep.read_text())
    caplog.clear()
    mended = of_files(replace(recipe, trim=TrimSettings(keep=str(copy))))
    with RunFolder(output, identity={}, names=mended.names) as run:
        result = run.make(mended.coverage()).result
    assert not any(one.changed for one in [result.files["test, sw"]]) and not keep.parent.exists()
    assert not [one for one in caplog.records if "does not fit" in one.getMessage()]


def test_runs_that_were_made_before_are_not_made_again(tmp_path):
    """Nothing stands on it, and it stands on trimming alone."""
    plan = of_files(write_poor(tmp_path))
    cover, stages = plan.coverage(), list(plan.stages())
    assert stages[1].key == cover.key and [one.key for one in cover.stands_on()] == [plan.method.trimmed().key]
    assert not any(cover.key == below.key for stage in stages for below in stage.stands_on())


def test_what_is_compared_changes_with_every_labelled_file_and_with_nothing_else(tmp_path):
    recipe = write_poor(tmp_path)
    before = of_files(recipe)
    key, trim = before.coverage().key, before.method.trimmed().key
    for file in ("train.jsonl", "dev.jsonl", "test.en.jsonl", "test.sw.jsonl"):
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text(text + json.dumps({"text": f"Mvua {file}", "label": "even0"}) + "\n")
        after = of_files(recipe)
        assert after.coverage().key != key and after.method.trimmed().key == trim, file
        (tmp_path / file).write_text(text)
    longer = replace(recipe, phase1=replace(recipe.phase1, block_length=32))
    assert of_files(longer).coverage().key == of_files(recipe).coverage().key == key


def test_text_held_out_is_compared_too(tmp_path):
    recipe = write_poor(tmp_path)
    (tmp_path / "sw.txt").write_text("\n".join(f"Mkulima wa {i} aliuza kondoo sokoni." for i in range(40)))
    recipe = replace(recipe, task=replace(recipe.task, test={"en": recipe.task.test["en"]}))
    plan = of_files(recipe)
    with RunFolder(tmp_path / "run", identity={}, names=plan.names) as run:
        found = run.make(plan.coverage()).result.files
    assert [*found] == ["train, en", "dev, en", "test, en", "held-out text"] and found["held-out text"].texts == 4


# A study


def test_a_study_says_it_before_its_first_training_and_keeps_what_its_file_says(tmp_path, caplog, monkeypatch):
    file = tiny_study.write_study(tmp_path / "data")
    (tmp_path / "data/text/sw.txt").write_text("\n".join(tiny.SWAHILI.splitlines()[4:6] * 20))
    (tmp_path / "data/text/ha.txt").write_text("\n".join(tiny.SWAHILI.splitlines()[4:6] * 20))
    study = study_at(file, load_study(file))
    points = [point for point in study.points() if point.variant == "trim only"]
    first, *others = study.stages(points)
    assert first.FIRST and not any(stage.FIRST for stage in others)
    with study.open(tmp_path / "run") as run:
        run.make(first)
        said = [one.getMessage() for one in caplog.records if "does not fit" in one.getMessage()]
        assert len(said) == 3 and all(re.search(r"coverage-\w+/missing/test-(sw|ha)-", one) for one in said)
        lacking = next((tmp_path / "run/made").glob("coverage-*/missing/test-sw-test.txt"))
        # Where all is scored nothing is compared: there may be no vocabulary any more.
        monkeypatch.setattr(run, "known", lambda _stage, **_: object())
        monkeypatch.setattr(study.__class__, "chosen", lambda _study, _run, point: point)
        assert not any(stage.FIRST for stage in study.stages(points, run))
    (tmp_path / "data/keep.txt").write_text(lacking.read_text())
    text = file.read_text().replace("[search]", '[trim]\nkeep = "keep.txt"\n\n[search]')
    file.write_text(text)
    mended = study_at(file, load_study(file))
    assert str(tmp_path / "data/keep.txt") in mended.read()
    with mended.open(tmp_path / "run") as run:
        found = run.make(mended.coverage()).result.files
    assert not found["test, sw/test"].changed
    (tmp_path / "data/keep.txt").unlink()
    with pytest.raises(InputError, match=r"keep\.txt"):
        study_at(file, load_study(file))


# The command


@pytest.fixture
def run():
    app = typer.Typer()
    command.register(app)
    app.callback()(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["trim", *map(str, arguments)])


def test_command_compares_the_files_that_it_is_given(run, tmp_path, caplog):
    tiny.save(tiny.masked_lm("bert", layers=1), tmp_path / "full", "bert")
    swahili = tiny.SWAHILI.splitlines()
    (tmp_path / "sw.txt").write_text("\n".join(swahili[:4]))
    (tmp_path / "plain.txt").write_text("\n".join(swahili[4:]))
    (tmp_path / "same.jsonl").write_text(tiny_recipe.labelled(swahili[:4]))
    common = ["-m", tmp_path / "full", "--text", tmp_path / "sw.txt"]
    checked = ["--check", tmp_path / "plain.txt", "--check", tmp_path / "same.jsonl"]
    done = run(*common, *checked, "--output", tmp_path / "small")
    assert done.exit_code == 0, done.output
    assert "what trimming changes" in done.output
    said = [one.getMessage() for one in caplog.records if "does not fit" in one.getMessage()]
    keep = tmp_path / "small/vocabulary-missing/plain.txt"
    assert len(said) == 1 and said[0].startswith("plain.txt: ") and f"--keep {keep}" in said[0]
    record = json.loads((tmp_path / "small/coverage.json").read_text())["files"]
    assert record["same.jsonl"]["texts"] == 4 and record["same.jsonl"]["changed"] == 0 < record["plain.txt"]["changed"]
    assert {"coverage.json", "vocabulary-missing/plain.txt"} <= json.loads(
        (tmp_path / "small/bistil.json").read_text()
    )["files"].keys()

    caplog.clear()
    done = run(*common, *checked, "--keep", keep, "--output", tmp_path / "mended")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "mended/coverage.json").read_text())["files"]["plain.txt"]["changed"] == 0
    assert not [one for one in caplog.records if "does not fit" in one.getMessage()]
    assert not (tmp_path / "mended/vocabulary-missing").exists()


def test_command_refuses_before_any_work(run, tmp_path):
    tiny.save(tiny.masked_lm("bert", layers=1), tmp_path / "full", "bert")
    (tmp_path / "sw.txt").write_text(tiny.SWAHILI)
    common = ["-m", tmp_path / "full", "--text", tmp_path / "sw.txt", "--output", tmp_path / "small"]
    missing = run(*common, "--check", tmp_path / "none.txt").exception
    assert isinstance(missing, InputError) and "none.txt" in str(missing) and not (tmp_path / "small").exists()
    both = run(*common, "--dry-run", "--check", tmp_path / "sw.txt").exception
    assert isinstance(both, InputError) and "leave out --dry-run" in str(both)


def test_figures_hold_single_characters_and_no_text(tmp_path):
    full = of_class("unigram")
    found = TokenizerPair(full, trimmed(full, CLOSE, tmp_path)).of([*FAR, TRADITIONAL]).coverage
    words = [key for key, value in asdict(found).items() if isinstance(value, str)]
    assert words == ["unit"] and all(len(one) == 1 for one in found.missing)
    assert len(found.missing) <= 20 < found.missing_characters
