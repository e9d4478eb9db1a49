"""The demo's text and labels out of `chatterbot-corpus`: which topic file does an utterance stand in?

English labels only. Topics are the files that English and the target language both have. Nothing is counted twice and
nothing leaks: utterances are the same when their letters and digits are (NFKC, case folded); one that stands under
several topics has no label; no sentence of a test or dev set occurs in any training file or unlabelled text.
`docs/demo.md` shows why the target is Italian.
"""

import hashlib
import importlib.util
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.runtime.artefacts import open_work, whole_file, write_json
from bistil.runtime.documents import parse_json, read_document
from bistil.tasks.reading import read_text, words_only

logger = logging.getLogger(__name__)

PACKAGE, WORDS_PACKAGE = "chatterbot_corpus", "spellchecker"
# The method's own threshold for tokens.
WORD_SHARE = 1e-6
SOURCE = "en"
LANGUAGES = {
    "en": "english",
    "fa": "persian",
    "it": "italian",
    "ja": "japanese",
    "ko": "korean",
    "uk": "ukrainian",
    "zh": "chinese",
}
NOT_TOPICS = ("conversations", "trivia")  # small talk and quiz questions about everything
TEST_SIZE, DEV_SIZE = 300, 100  # English utterances


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """Where the demo's files lie. Text has one utterance per line, labelled files are JSONL with `text` and `label`."""

    text: dict[str, Path]
    words: Path
    train: Path
    dev: Path
    test: dict[str, Path]
    labels: list[str]
    counts: dict[str, int]


@dataclass(frozen=True)
class _Utterance:
    key: str
    text: str
    topic: str


def prepare_demo_data(folder: Path, *, target: str = "it", seed: int = 0) -> DemoData:
    """Write the demo's data; the same arguments give the same bytes.

    The seed draws the English train, dev and test sets, stratified by topic. The target's test set does not depend on
    it: a fixed half of the utterances under shared topics; the other half joins the target's unlabelled text.

    Args:
        folder: gets `words.txt`, `en.txt`, `train.en.jsonl`, `dev.en.jsonl`, `test.en.jsonl`, the target's `it.txt` and
            `test.it.jsonl`, and `data.json` with the counts; new, or one that this wrote before.
        target: language code, one of `LANGUAGES`.

    Raises:
        InputError: unknown target language, or the folder holds something else.
        MissingExtraError: the packages of the extra `demo` are not installed.
        ArtefactError: the corpus is not as expected.
    """
    if target == SOURCE or target not in LANGUAGES:
        known = ", ".join(code for code in LANGUAGES if code != SOURCE)
        raise InputError(f"the demo has no target language {target!r}; choose one of {known}")
    source_files, target_files = read_topics(LANGUAGES[SOURCE]), read_topics(LANGUAGES[target])
    topics = sorted((source_files.keys() & target_files.keys()) - set(NOT_TOPICS))

    test, dev, train = _split(_labelled(source_files, topics), seed)
    held_out = {one.key for one in (*test, *dev)}
    source_keys = {one.key for one in _all(source_files)}
    # Names and numbers that read alike in both languages would be seen in English: they are not test sentences.
    target_test = [
        one for one in _labelled(target_files, topics) if one.key not in source_keys and _fixed_draw(one.key) < 0.5
    ]
    unseen = held_out | {one.key for one in target_test}
    text = {
        code: _distinct(one for one in _all(files) if one.key not in unseen)
        for code, files in ((SOURCE, source_files), (target, target_files))
    }

    data = DemoData(
        text={code: folder / f"{code}.txt" for code in text},
        words=folder / "words.txt",
        train=folder / f"train.{SOURCE}.jsonl",
        dev=folder / f"dev.{SOURCE}.jsonl",
        test={code: folder / f"test.{code}.jsonl" for code in (SOURCE, target)},
        labels=topics,
        counts={
            **{f"{code}.txt": len(utterances) for code, utterances in text.items()},
            f"train.{SOURCE}.jsonl": len(train),
            f"dev.{SOURCE}.jsonl": len(dev),
            f"test.{SOURCE}.jsonl": len(test),
            f"test.{target}.jsonl": len(target_test),
        },
    )
    open_work(folder)
    for code, utterances in text.items():
        _write_lines(data.text[code], (one.text for one in utterances))
    _write_lines(data.words, frequent_words((SOURCE, target)))
    labelled = ((data.train, train), (data.dev, dev), (data.test[SOURCE], test), (data.test[target], target_test))
    for path, utterances in labelled:
        _write_lines(
            path, (json.dumps({"text": one.text, "label": one.topic}, ensure_ascii=False) for one in utterances)
        )
    frequent, _ = Counter(one.topic for one in train).most_common(1)[0]
    write_json(
        folder / "data.json",
        {
            "source": SOURCE,
            "target": target,
            "seed": seed,
            "labels": topics,
            "counts": data.counts,
            "most_frequent_topic": frequent,
            "topics": {path.name: Counter(one.topic for one in part) for path, part in labelled},
        },
        inner=True,
    )
    return data


def frequent_words(codes: Iterable[str]) -> list[str]:
    """Words of general language, lower case and capitalised, whose share of running words reaches `WORD_SHARE`.

    A few hundred utterances show a fraction of a language's words, and a vocabulary trimmed to them spells the rest out
    letter by letter. The counts come with the package `pyspellchecker` (film subtitles); a language without a list
    there adds none.

    Raises:
        MissingExtraError: the packages of the extra `demo` are not installed.
    """
    spec = importlib.util.find_spec(WORDS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the demo's word lists come with a package that is missing: pip install 'bistil[demo]'")
    words: dict[str, None] = {}
    for code in codes:
        path = Path(spec.submodule_search_locations[0]) / "resources" / f"{code}.json.gz"
        if not path.exists():
            continue
        try:
            counts: dict[str, int] = parse_json(read_text(path))
        except ValueError as error:
            raise ArtefactError(f"{path} is no list of words; install pyspellchecker again") from error
        least = WORD_SHARE * sum(counts.values())
        for word in sorted(word for word, count in counts.items() if count >= least):
            words |= {word: None, word.capitalize(): None}
    return list(words)


def read_topics(language: str) -> dict[str, list[str]]:
    """All utterances of a language by topic file, in the order of the file, blanks collapsed.

    Raises:
        MissingExtraError: the packages of the extra `demo` are not installed.
        ArtefactError: a file is not a list of conversations.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("yaml") is None:
        raise MissingExtraError("the demo's text comes with packages that are missing: pip install 'bistil[demo]'")
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    topics = {}
    for path in sorted((Path(spec.submodule_search_locations[0]) / "data" / language).glob("*.yml")):
        try:
            content = yaml.load(read_document(path), Loader=loader)
            utterances = [" ".join(one.split()) for talk in content["conversations"] for one in talk]
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtefactError(f"{path} is not a file of conversations; install chatterbot-corpus==1.3.3") from error
        topics[path.stem] = [one for one in utterances if same_when(one)]
    if not topics:
        raise ArtefactError(f"chatterbot-corpus has no {language}; install chatterbot-corpus==1.3.3")
    return topics


def same_when(utterance: str) -> str:
    """Two utterances are the same when this is equal: letters and digits only, NFKC, case folded."""
    return " ".join(words_only(utterance))


def _all(files: dict[str, list[str]]) -> list[_Utterance]:
    return [_Utterance(same_when(text), text, topic) for topic, texts in files.items() for text in texts]


def _distinct(utterances: Iterable[_Utterance]) -> list[_Utterance]:
    first: dict[str, _Utterance] = {}
    for one in utterances:
        first.setdefault(one.key, one)
    return list(first.values())


def _labelled(files: dict[str, list[str]], topics: list[str]) -> list[_Utterance]:
    """Distinct utterances of the topics, without those that any other file of the language holds too."""
    found = defaultdict(set)
    for one in _all(files):
        found[one.key].add(one.topic)
    return [one for one in _distinct(_all(files)) if one.topic in topics and len(found[one.key]) == 1]


def _split(utterances: list[_Utterance], seed: int) -> tuple[list[_Utterance], list[_Utterance], list[_Utterance]]:
    """Test, dev and train, each with the topics' shares as far as whole numbers allow."""
    by_topic = defaultdict(list)
    for one in utterances:
        by_topic[one.topic].append(one)
    ranked = []
    for members in by_topic.values():
        members.sort(key=lambda one: _fixed_draw(f"{seed} {one.key}"))
        ranked += [((rank + 0.5) / len(members), one.key, one) for rank, one in enumerate(members)]
    ordered = [one for _, _, one in sorted(ranked, key=lambda entry: entry[:2])]
    return ordered[:TEST_SIZE], ordered[TEST_SIZE : TEST_SIZE + DEV_SIZE], ordered[TEST_SIZE + DEV_SIZE :]


def _fixed_draw(name: str) -> float:
    """A number in [0, 1) that depends on the name only, on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def write_prepared(path: Path, text: str) -> None:
    """Write a file of the demo unless it is there already; one that differs gives way, and the user is told."""
    content = text.encode()
    if path.is_file():
        if path.read_bytes() == content:
            return
        logger.warning(
            f"{path} is not what the demo's packages give (damaged, edited, or of another version): written again"
        )
    with whole_file(path, inner=True) as partial:
        partial.write_bytes(content)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_prepared(path, "".join(f"{line}\n" for line in lines))
