"""Published benchmark files are read whole: as many examples as their statistics say, nothing mended or left out."""

import os
from pathlib import Path

import pytest

from bistil.tasks import get_task
from bistil.tasks.spans import spans

DATA = Path(os.environ.get("BISTIL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
# Examples and, for tagging and parsing, words: as counted when the files were collected.
FILES = {
    "ner/swa/test.txt": ("token-classification", 604, 15_409),
    "ner/eng/dev.txt": ("token-classification", 3_250, 51_362),
    "ud/Chinese-GSD/test.conllu": ("token-classification", 500, 12_010),
    "ud/Uyghur-UDT/dev.conllu": ("dependency-parsing", 900, 10_644),
    "ud/Bambara-CRB/test.conllu": ("dependency-parsing", 1_026, 13_823),
    "nli/americasnli/test/quy.tsv": ("sequence-classification", 750, None),
    "nli/english/xnli_en_dev.tsv": ("sequence-classification", 2_490, None),
    "topics/sib200/swh_Latn/test.tsv": ("sequence-classification", 204, None),
    "intents/injongo/swa/test.tsv": ("sequence-classification", 640, None),
    "qa/xquad/xquad.zh.json": ("question-answering", 1_190, None),
    "qa/squad/dev.json": ("question-answering", 9_068, None),
}


def marked(name):
    absent = pytest.mark.skipif(not (DATA / name).exists(), reason=f"no {DATA / name}")
    return pytest.param(name, id=name, marks=[pytest.mark.real_data, absent])


@pytest.mark.parametrize("name", map(marked, FILES))
def test_a_published_file_is_read_whole(name, capsys):
    kind, examples, words = FILES[name]
    reports = []
    found = get_task(kind).read([DATA / name], reports=reports)
    assert len(found) == examples
    assert words is None or sum(len(example.words) for example in found) == words
    assert reports[0].counts == {"rows": examples, "mended": 0, "without_label": 0, "odd": 0}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [marked("ner/swa/test.txt")])
def test_entities_are_as_many_as_their_beginnings(name):
    task = get_task("token-classification")
    found = task.read([DATA / name])
    assert task.metric(task.labels(found)) == "f1"
    assert sum(len(spans(example.tags, "iob2")) for example in found) == 1_179
