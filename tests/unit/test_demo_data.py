"""The demo's data: nothing leaks, the same every time."""

import importlib.util
import json
from collections import Counter, defaultdict

import pytest

from bistil.demo.data import LANGUAGES, prepare_demo_data, read_topics, same_when
from bistil.demo.run import demo_recipe
from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.runtime.artefacts import folder_digest

TARGETS = [code for code in LANGUAGES if code != "en"]
installed = all(importlib.util.find_spec(package) for package in ("chatterbot_corpus", "yaml"))
needs_corpus = pytest.mark.skipif(not installed, reason="the packages chatterbot-corpus and pyyaml are not installed")


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module", params=TARGETS if installed else [])
def data(request, tmp_path_factory):
    return request.param, prepare_demo_data(tmp_path_factory.mktemp("data"), target=request.param, seed=1)


def test_no_held_out_sentence_is_seen_anywhere_else(data):
    target, data = data
    test = {code: {same_when(row["text"]) for row in rows(path)} for code, path in data.test.items()}
    dev = {same_when(row["text"]) for row in rows(data.dev)}
    train = {same_when(row["text"]) for row in rows(data.train)}
    text = {code: [same_when(line) for line in lines(path)] for code, path in data.text.items()}
    held_out = {"English test": test["en"], f"{target} test": test[target], "dev": dev}
    seen = {"train": train, "English text": set(text["en"]), f"{target} text": set(text[target])}
    for name, sentences in held_out.items():
        for other, known in seen.items():
            assert not sentences & known, f"{name} in {other}"
    assert not test["en"] & dev and not test["en"] & test[target] and not dev & test[target]
    # Within a file, too, nothing counts twice.
    assert [len(lines(path)) for path in data.text.values()] == [len(set(keys)) for keys in text.values()]
    assert len(rows(data.train)) == len(train) and len(rows(data.dev)) == len(dev)
    assert all(len(rows(path)) == len(test[code]) for code, path in data.test.items())


def test_labels_are_shared_topics_and_utterances_of_several_topics_have_none(data):
    target, data = data
    found = {"en": defaultdict(set), target: defaultdict(set)}
    for code, topics_of in found.items():
        for topic, texts in read_topics(LANGUAGES[code]).items():
            for text in texts:
                topics_of[same_when(text)].add(topic)
    assert data.labels == sorted(set(data.labels)) and not {"trivia", "conversations"} & set(data.labels)
    for code, path in [("en", data.train), ("en", data.dev), *data.test.items()]:
        for row in rows(path):
            assert found[code][same_when(row["text"])] == {row["label"]} and row["label"] in data.labels


def test_counts_and_shares(data):
    target, data = data
    assert data.counts["test.en.jsonl"] == 300 and data.counts["dev.en.jsonl"] == 100
    for name, count in data.counts.items():
        assert len(lines(data.train.parent / name)) == count
    # Stratified: every topic has its share of the test set, within one utterance.
    parts = {path: Counter(row["label"] for row in rows(path)) for path in (data.train, data.dev, data.test["en"])}
    whole = sum(parts.values(), Counter())
    for topic, count in whole.items():
        assert abs(parts[data.test["en"]][topic] - 300 * count / whole.total()) <= 1
        assert parts[data.train][topic] > 0
    record = json.loads((data.train.parent / "data.json").read_text(encoding="utf-8"))
    assert record["counts"] == data.counts and record["target"] == target


@needs_corpus
def test_same_arguments_same_bytes_and_the_seed_leaves_the_target_test_set_alone(tmp_path):
    first, again, other = (
        prepare_demo_data(tmp_path / str(i), target="it", seed=seed) for i, seed in enumerate((0, 0, 1))
    )
    assert folder_digest(tmp_path / "0") == folder_digest(tmp_path / "1")
    assert prepare_demo_data(tmp_path / "0", target="it", seed=0) == first
    assert folder_digest(tmp_path / "0") == folder_digest(tmp_path / "1")
    assert first.test["it"].read_bytes() == other.test["it"].read_bytes()
    assert again.train.read_bytes() != other.train.read_bytes()
    assert first.counts["test.it.jsonl"] >= 500


@needs_corpus
def test_damaged_and_edited_files_are_noticed_and_written_again(tmp_path, capfd):
    data = prepare_demo_data(tmp_path / "data", target="it", seed=0)
    prepare_demo_data(tmp_path / "data", target="it", seed=0)
    assert capfd.readouterr().err == ""
    whole = folder_digest(tmp_path / "data")
    data.train.write_bytes(data.train.read_bytes()[:-10])
    prepare_demo_data(tmp_path / "data", target="it", seed=0)
    assert f"{data.train} is not what the demo's packages give" in capfd.readouterr().err
    assert folder_digest(tmp_path / "data") == whole


@needs_corpus
def test_the_short_recipe_and_the_whole_one_share_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("BISTIL_CACHE", str(tmp_path))
    short, whole = demo_recipe(seed=1), demo_recipe(seed=1, full=True)
    assert short.task.train == whole.task.train and short.text == whole.text and short.seed == whole.seed == 1
    assert [len(one.students) for one in (short, whole)] == [1, 2]
    assert short.phase2.sparse is None and whole.phase2.sparse


def test_same_when():
    assert same_when("What's  HAL\u00a09000?") == same_when("what s hal 9000")
    assert same_when("ｶﾀｶﾅ!") == same_when("カタカナ")
    assert same_when("Ｙｅｓ") != same_when("No")
    assert same_when("?!…") == ""


def test_unknown_target():
    for target in ("en", "tlh"):
        with pytest.raises(InputError, match=r"choose one of .*it"):
            prepare_demo_data(None, target=target)


def test_without_the_packages_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("bistil.demo.data.PACKAGE", "no_such_package_at_all")
    with pytest.raises(MissingExtraError, match=r"pip install 'bistil\[demo\]'"):
        read_topics("english")


def test_a_damaged_corpus_is_one_clear_error(monkeypatch, tmp_path):
    pytest.importorskip("yaml")
    package = tmp_path / "damaged_corpus"
    (package / "data/english").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("bistil.demo.data.PACKAGE", "damaged_corpus")
    with pytest.raises(ArtefactError, match="no english"):
        read_topics("english")
    for content in ("conversations: [", "categories: [a]", "conversations: [[yes, [1]]]", "- a"):
        (package / "data/english/ai.yml").write_text(content, encoding="utf-8")
        with pytest.raises(ArtefactError, match=r"ai\.yml"):
            read_topics("english")


def test_the_word_list_is_of_frequent_words_in_both_spellings():
    from bistil.demo.data import frequent_words

    words = frequent_words(("en", "it"))
    assert len(words) == len(set(words)) > 40_000
    assert {"the", "The", "perché", "Perché"} <= set(words)
    # Rare ones are not there: the list is for what general language holds.
    assert "defenestration" not in words
    assert frequent_words(("xx",)) == []
