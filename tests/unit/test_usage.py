"""What cards, report and README tell people to type is run here, word for word."""

import re
from pathlib import Path

import pytest
import tiny

from bistil.models.cards import usage_code
from bistil.models.writing import write_model
from bistil.tasks import KINDS, get_task

ROOT = Path(__file__).parents[2]
# For tokenizers that do not mark inner subwords transformers finds words by their spaces, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
LABELS = {
    "token-classification": ["O", "B-PER", "I-PER"],
    "dependency-parsing": ["root", "nsubj", "punct"],
    "question-answering": ["start", "end"],
}
SENTENCE = "Rais alizungumza na watu wa Nairobi"


@pytest.fixture(params=["bert", "xlm-roberta", "modernbert"])
def saved(request, tmp_path):
    """Writes a task model of a kind as a run does, with its card."""

    def save(kind):
        task, family = get_task(kind), request.param
        tiny.save(tiny.model(family, layers=2), tmp_path / "encoder", family)
        model = task.build_model(tmp_path / "encoder", LABELS.get(kind, ["a", "b"]), seed=1)
        folder = tmp_path / kind
        write_model(
            folder,
            model,
            tiny.tokenizer(family),
            record={},
            title=kind,
            summary="A model.",
            languages=["sw"],
            pipeline_tag=task.pipeline_tag,
            usage=task.usage,
        )
        return folder

    return save


def printed(code, capsys):
    """What the code prints, and the names that it leaves."""
    names = {}
    capsys.readouterr()
    exec(code, names)
    return capsys.readouterr().out, names


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_s_code_runs(kind, saved, capsys):
    folder = saved(kind)
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    usage = get_task(kind).usage
    assert block.strip() == usage_code(usage, "path/to/this/folder")
    out, _ = printed(usage_code(usage, str(folder)), capsys)
    assert out.strip()


def test_the_tagger_s_code_gives_whole_words(saved, capsys):
    """Every group begins and ends where words do, however many pieces they have."""
    usage = get_task("token-classification").usage
    _, names = printed(usage_code(usage, str(saved("token-classification"))), capsys)
    model = names["model"]
    groups = model(SENTENCE, ignore_labels=[])
    # Transformers makes a group of its own of a bare boundary marker in front of a word: a space.
    found = [one for one in groups if SENTENCE[one["start"] : one["end"]].strip()]
    starts = {match.start() for match in re.finditer(r"\S+", SENTENCE)}
    ends = {match.end() for match in re.finditer(r"\S+", SENTENCE)}
    assert found and {SENTENCE.find(SENTENCE[one["start"] : one["end"]].strip()) for one in found} <= starts
    assert {one["end"] for one in found} <= ends
    assert len(model.tokenizer.tokenize(SENTENCE)) > len(SENTENCE.split()), "words have several pieces"


def test_a_model_without_a_task_is_loaded(saved, capsys):
    folder = saved("token-classification").parent / "encoder"
    _, names = printed(usage_code(None, str(folder)), capsys)
    assert names["model"].config.num_hidden_layers == 2 and names["tokenizer"]


def test_a_folder_with_quotes_is_still_code():
    compile(usage_code(get_task("question-answering").usage, 'a "b" c\\d'), "card", "exec")


def test_no_page_prints_a_tagging_pipeline_that_cuts_words():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    for page in pages:
        for call in re.findall(r"pipeline\([^)]*token-classification[^)]*\)", page.read_text(encoding="utf-8")):
            assert "model" not in call or "aggregation_strategy" in call, f"{page}: {call}"
        assert not re.search(r"pipeline\([^)]*question-answering", page.read_text(encoding="utf-8")), page
