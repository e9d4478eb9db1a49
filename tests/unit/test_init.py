"""`bistil init`: what files are taken for, and recipes that hold what was found."""

import json
import sys
from pathlib import Path

import pytest
import tiny

from bistil.cli import main
from bistil.distillation.task_data import read_task_data
from bistil.drafting.names import language_of_name, part_of
from bistil.method import run_recipe
from bistil.runs.inputs import check_inputs
from bistil.settings.recipe import load_recipe

# No line of these is tested on.
MORE = ["Habari ya leo ni njema sana.", "Watoto wanacheza mpira shuleni.", "Mvua kubwa inanyesha mjini."]
ENGLISH, SWAHILI = tiny.ENGLISH.splitlines(), tiny.SWAHILI.splitlines()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with text of two languages and a tiny teacher."""
    monkeypatch.chdir(tmp_path)
    tiny.model("bert", layers=4, initializer_range=0.2).save_pretrained(tmp_path / "teacher")
    tiny.tokenizer("bert").save_pretrained(tmp_path / "teacher")
    Path("en.txt").write_text("\n".join(ENGLISH * 6) + "\n")
    Path("swahili.txt").write_text("\n".join([*SWAHILI * 3, *MORE * 3]) + "\n")
    return tmp_path


@pytest.fixture
def init(folder, monkeypatch, capsys):  # noqa: ARG001 - it is the working folder
    """Runs `bistil init` on the texts and other files: exit code, standard output and standard error."""

    def run(*words, text=("en.txt", "swahili.txt")):
        monkeypatch.setattr(sys, "argv", ["bistil", "init", *text, *words, "--teacher", "teacher"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


def conll(lines, tag_of):
    return "\n\n".join("\n".join(f"{word} {tag_of(word)}" for word in line.split()) for line in lines) + "\n"


def capitals(kind):
    return lambda word: f"B-{kind}" if word[0].isupper() else "O"


def rows(lines, labels=("a", "b")):
    return "".join(json.dumps({"text": line, "label": labels[i % len(labels)]}) + "\n" for i, line in enumerate(lines))


def accepted(*assignments):
    """The recipe that was written, after all that `--check` looks at."""
    recipe = load_recipe(Path("recipe.toml"), assignments=assignments)
    check_inputs(recipe)
    return recipe


@pytest.mark.parametrize(
    ("name", "language", "part"),
    [
        ("train.en.jsonl", "en", "train"),
        ("sw.txt", "sw", None),
        ("eng/train.txt", "en", "train"),
        ("en_ewt-ud-dev.conllu", "en", "dev"),
        ("UD_English-EWT/test.conllu", "en", "test"),
        # The end of a word in front of capitals is no code.
        ("Cantonese-HK/test.conllu", "yue", "test"),
        ("UD_Vietnamese-VTB/dev.conllu", "vi", "dev"),
        ("UD_Upper_Sorbian-UFAL/test.conllu", "hsb", "test"),
        ("North_Sami-Giella/train.conllu", "se", "train"),
        ("sme/train.txt", "se", "train"),
        ("nigerian_pidgin.txt", "pcm", None),
        ("swahili.txt.gz", "sw", None),
        ("sib200/swh_Latn/test.tsv", "sw", "test"),
        ("americasnli/dev/quy.tsv", "quy", "dev"),
        ("xquad.pt-BR.json", "pt", None),
        ("eng.testb", "en", "test"),
        ("it.txt", "it", None),
        # Words that are codes too, and folders that are none.
        ("my_text.txt", None, None),
        ("tmp/train.txt", None, "train"),
        ("en-sw.txt", None, None),
        ("train-and-test.jsonl", None, None),
    ],
)
def test_names(name, language, part):
    assert (language_of_name(Path(name)), part_of(Path(name))) == (language, part)


def test_tags_whose_types_differ_get_a_label_map(folder, init):
    Path("train.en.conll").write_text(conll(ENGLISH[:8], capitals("PER")))
    Path("dev.en.conll").write_text(conll(ENGLISH[8:], capitals("PER")))
    Path("test.sw.conll").write_text(conll(SWAHILI, capitals("DATE")))
    code, out, err = init("train.en.conll", "dev.en.conll", "test.sw.conll")
    assert (code, err) == (0, "")
    assert "train.en.conll: training data of en: CoNLL columns, 8 examples with 2 labels" in out
    assert "B-DATE=O" in out and "next: bistil run recipe.toml --check" in out
    recipe = accepted()
    assert (recipe.source, recipe.target, recipe.task.kind) == ("en", "sw", "token-classification")
    assert recipe.text == {"en": [str(folder / "en.txt")], "sw": [str(folder / "swahili.txt")]}
    assert recipe.task.train == [str(folder / "train.en.conll")] and recipe.task.dev == [str(folder / "dev.en.conll")]
    assert recipe.task.test == {"sw": [str(folder / "test.sw.conll")]}
    assert recipe.task.label_map == {"B-DATE": "O"}
    written = Path("recipe.toml").read_text()
    assert "BIO (iob2)" in written
    # What only English has is offered, not done.
    assert '# label_map = { "B-DATE" = "O", "B-PER" = "O" }' in written


def test_without_target_labels_there_is_no_test_of_the_target(init):
    Path("train.jsonl").write_text(rows(ENGLISH))
    code, out, _ = init("train.jsonl")
    assert code == 0
    assert "the name says no language, so it is taken for the source's" in out
    assert "no labelled file is of sw: the run says nothing of the score there" in out
    recipe = accepted()
    assert recipe.task.kind == "sequence-classification" and recipe.task.test == {} and recipe.task.dev == []
    assert '# No test data of sw. Later, such as: sw = ["test.sw.jsonl"]' in Path("recipe.toml").read_text()


def test_target_labels_for_training_are_offered_and_the_offer_is_a_recipe(init):
    for name, lines in {"train.en": ENGLISH, "train.sw": SWAHILI[:3], "dev.sw": SWAHILI, "test.sw": MORE}.items():
        Path(f"{name}.jsonl").write_text(rows(lines))
    code, out, _ = init("train.en.jsonl", "train.sw.jsonl", "dev.sw.jsonl", "test.sw.jsonl")
    said = {line.partition(":")[0]: line for line in out.splitlines()}
    assert code == 0
    assert "not used" in said["train.sw.jsonl"] and "says how to learn from them" in said["train.sw.jsonl"]
    assert "not used" in said["dev.sw.jsonl"] and "learn" not in said["dev.sw.jsonl"]
    zero_shot = accepted().task
    assert zero_shot.train and not zero_shot.sources
    lines = Path("recipe.toml").read_text().splitlines()
    offered = next(line for line in lines if line.startswith("# sources = "))
    used = [offered.removeprefix("# ") if line.startswith("train = ") else line for line in lines]
    Path("recipe.toml").write_text("\n".join(used))
    assert {code: [Path(one).name for one in own] for code, own in accepted().task.sources.items()} == {
        "en": ["train.en.jsonl"],
        "sw": ["train.sw.jsonl"],
    }


def test_what_is_neither_for_training_nor_choosing_is_a_test(init):
    parts = {"train.en": ENGLISH, "dev.en": MORE[:2], "news.en": SWAHILI[:2], "news.sw": SWAHILI[2:]}
    for name, lines in parts.items():
        Path(f"{name}.jsonl").write_text(rows(lines))
    code, out, _ = init("train.en.jsonl", "dev.en.jsonl", "news.en.jsonl", "news.sw.jsonl")
    assert code == 0 and "news.en.jsonl: test data of en" in out and "others are for training and choosing" in out
    assert {code: [Path(one).name for one in own] for code, own in accepted().task.test.items()} == {
        "en": ["news.en.jsonl"],
        "sw": ["news.sw.jsonl"],
    }


def test_text_alone_is_a_recipe_without_a_task(init):
    code, _, _ = init()
    assert code == 0 and accepted().task is None


def test_the_recipe_runs(folder, init):
    Path("train.en.tsv").write_text("text\tlabel\n" + "".join(f"{one}\tl{i % 2}\n" for i, one in enumerate(ENGLISH)))
    assert init("train.en.tsv")[0] == 0
    short = [f"{stage}.training.{key}" for stage in ("finetune", "phase2") for key in ("least_steps=1", "epochs=0.5")]
    others = ["phase1.training.steps=2", "phase1.block_length=16", "compare.trimmed=false", "compare.copied=false"]
    recipe = load_recipe(Path("recipe.toml"), assignments=[*others, *short])
    summary = run_recipe(recipe, folder / "run")
    assert [model.name for model in summary.models][:1] == ["teacher"] and (folder / "run/students/lrf2").is_dir()


def test_columns_with_names_of_their_own(init):
    lines = "".join(f"{i},{one},{'good' if i % 2 else 'bad'}\n" for i, one in enumerate(ENGLISH))
    Path("train.en.csv").write_text("nr,sms,rating\n" + lines.replace(".", ""))
    code, out, err = init("train.en.csv")
    assert (code, err) == (0, ""), out
    assert accepted().task.columns == {"text": "sms", "label": "rating"}


def test_columns_that_cannot_be_told_are_asked_for(init):
    Path("train.en.csv").write_text("nr,one,two\n" + "".join(f"{i},a few words,more {i} words\n" for i in range(9)))
    code, _, err = init("train.en.csv")
    assert code == 2 and "--column text=NAME" in err and err.count("\n") == 1
    assert not Path("recipe.toml").exists()


def test_labels_that_no_map_can_be_guessed_for_leave_the_test_out(init):
    Path("train.en.jsonl").write_text(rows(ENGLISH))
    Path("test.sw.jsonl").write_text(rows(SWAHILI, ("a", "z")))
    code, out, _ = init("train.en.jsonl", "test.sw.jsonl")
    assert code == 0 and "training has no 'z'" in out
    assert accepted().task.test == {}
    assert '# label_map = { "z" = "?" }' in Path("recipe.toml").read_text()


def test_case_alone_is_mapped(init):
    Path("train.en.jsonl").write_text(rows(ENGLISH))
    Path("test.sw.jsonl").write_text(rows(SWAHILI, ("A", "b")))
    assert init("train.en.jsonl", "test.sw.jsonl")[0] == 0
    recipe = accepted()
    assert recipe.task.label_map == {"A": "a"}
    assert read_task_data(recipe.task, source="en", quiet=True).labels == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"tokens": ["Rain", "falls"], "ner_tags": ["O", "O"]}, "token-classification"),
        ({"text": "rain falls", "labels": ["wet", "cold"]}, "multi-label-classification"),
        ({"text": "rain falls", "wet": 1, "cold": 0}, "multi-label-classification"),
        ({"premise": "rain falls", "hypothesis": "it is wet", "label": "entailment"}, "sequence-classification"),
        (
            {"id": "1", "question": "what falls?", "context": "rain falls",
             "answers": {"text": ["rain"], "answer_start": [0]}},
            "question-answering",
        ),
    ],
)  # fmt: skip
def test_tasks_of_rows(init, row, kind):
    Path("train.en.jsonl").write_text((json.dumps(row) + "\n") * 4)
    code, out, err = init("train.en.jsonl")
    assert code == 0, err
    assert f"recipe.toml: {kind}, en to sw" in out
    # The tiny teacher reads no passages.
    assert accepted("task.max_length=64").task.kind == kind


def test_squad_and_treebanks(init):
    answers = [{"text": "rain", "answer_start": 0}]
    paragraph = {"context": "rain falls", "qas": [{"id": "1", "question": "what falls?", "answers": answers}]}
    Path("train.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    assert "question-answering, en to sw" in init("train.json")[1]
    tree = "1\tRain\train\tNOUN\t_\t_\t2\tnsubj\t_\t_\n2\tfalls\tfall\tVERB\t_\t_\t0\troot\t_\t_\n\n"
    Path("en_x-ud-train.conllu").write_text(tree * 3)
    code, out, _ = init("en_x-ud-train.conllu", "--force")
    assert code == 0 and "dependency-parsing, en to sw" in out and "--task token-classification" in out
    assert (
        "token-classification, en to sw" in init("en_x-ud-train.conllu", "--task", "token-classification", "--force")[1]
    )
    assert accepted().task.kind == "token-classification"


@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        ([], ("en.txt", "corpus.txt"), "--language corpus.txt=CODE"),
        ([], ("en.txt", "swahili.txt", "hau.txt"), "--target CODE"),
        ([], ("hau.txt", "swahili.txt"), "--source CODE"),
        ([], ("en.txt",), "plain text of the language that the model is for"),
        (["a.en.jsonl", "b.en.jsonl"], ("en.txt", "swahili.txt"), "--part a.en.jsonl=train"),
        (["train.en.jsonl", "test.jsonl"], ("en.txt", "swahili.txt"), "--language test.jsonl=CODE"),
        (["train.en.conll", "test.sw.jsonl"], ("en.txt", "swahili.txt"), "leave one of them out"),
        (["train.sw.jsonl", "--source", "en"], ("en.txt", "swahili.txt"), "no labelled file is for training in en"),
        (["--part", "en.txt=all"], ("en.txt", "swahili.txt"), "one of train, dev, test"),
        (["--language", "swahili.txt=sw.TZ"], ("en.txt", "swahili.txt"), "has the language 'sw.TZ'"),
        (["--target", "s w"], ("en.txt", "swahili.txt"), "has the language 's w'"),
        (["--language", "none.txt=sw"], ("en.txt", "swahili.txt"), "no file is called that"),
        (["train.en.jsonl", "--task", "poetry"], ("en.txt", "swahili.txt"), "there is no task 'poetry'"),
        (["train.en.jsonl", "--budget", "soon"], ("en.txt", "swahili.txt"), "soon"),
        (["en.txt"], ("en.txt", "swahili.txt"), "given twice"),
        (["gone.txt"], ("en.txt", "swahili.txt"), "cannot read gone.txt"),
        (["."], ("en.txt", "swahili.txt"), ". is a folder: name the files in it, such as ./*"),
        ([], ("swahili.txt",), "all files are of sw: give plain text of the language that the model is for and of the"),
        ([], ("en.txt", "my corpus.txt"), "--language 'my corpus.txt=CODE'"),
        (["--language", "en.txt=en", "corpus.txt=sw"], ("en.txt", "corpus.txt"), "such as --language corpus.txt=sw"),
        (["train.en.tsv", "test.sw.tsv"], ("en.txt", "swahili.txt"), "a table's first line names its columns"),
        (["empty.en.txt"], ("en.txt", "swahili.txt"), "empty.en.txt is empty"),
        (["header.en.tsv", "--task", "sequence-classification"], ("en.txt", "swahili.txt"), "header.en.tsv has no"),
    ],
)  # fmt: skip
def test_what_cannot_be_guessed_is_one_line_and_nothing_is_written(init, words, text, said):
    for name in ("corpus.txt", "hau.txt", "my corpus.txt"):
        Path(name).write_text("\n".join(MORE))
    Path("empty.en.txt").write_text("\n")
    Path("header.en.tsv").write_text("text\tlabel\n")
    for name, lines in {"train.en.tsv": ENGLISH, "test.sw.tsv": SWAHILI}.items():
        Path(name).write_text("".join(f"{line}\t{'ab'[i % 2]}\n" for i, line in enumerate(lines)))
    for name in ("a.en.jsonl", "b.en.jsonl", "train.en.jsonl", "test.jsonl", "test.sw.jsonl", "train.sw.jsonl"):
        Path(name).write_text(rows(ENGLISH))
    Path("train.en.conll").write_text(conll(ENGLISH, capitals("PER")))
    code, _, err = init(*words, text=text)
    assert code == 2 and err.startswith("bistil: error: ") and err.count("\n") == 1
    assert said in err
    assert not Path("recipe.toml").exists()


def test_what_is_said_wins(init):
    Path("corpus.txt").write_text("\n".join(MORE))
    Path("a.jsonl").write_text(rows(ENGLISH))
    Path("b.jsonl").write_text(rows(SWAHILI))
    words = [
        "a.jsonl",
        "b.jsonl",
        "--language",
        "corpus.txt=hau",
        "--language",
        "b.jsonl=hau",
        "--part",
        "a.jsonl=train",
    ]
    code, _, err = init(*words, "--language", "a.jsonl=en", "--budget", "20m", text=("en.txt", "corpus.txt"))
    assert code == 0, err
    recipe = accepted()
    assert (recipe.target, recipe.budget) == ("ha", "20m") and [*recipe.task.test] == ["ha"]


def test_an_edited_recipe_is_not_replaced(init):
    assert init()[0] == 0
    assert init()[0] == 2
    assert init("--force")[0] == 0
    with Path("recipe.toml").open("a") as stream:
        stream.write("seed = 1\n")
    code, _, err = init("--force")
    assert code == 2 and "bistil did not make it" in err


def test_what_is_printed_to_type_next_is_quoted(init):
    Path("my text.sw.txt").write_text(Path("swahili.txt").read_text().replace("\n", "\r\n"), newline="")
    code, out, err = init("--output", "my recipe.toml", text=("en.txt", "my text.sw.txt"))
    assert (code, err) == (0, "") and "next: bistil run 'my recipe.toml' --check" in out
    assert load_recipe(Path("my recipe.toml")).target == "sw"


def test_paths_are_relative_to_the_recipe(folder, init):
    Path("recipes").mkdir()
    assert init("--output", "recipes/mine.toml")[0] == 0
    assert '"../swahili.txt"' in Path("recipes/mine.toml").read_text()
    assert load_recipe(Path("recipes/mine.toml")).text["sw"] == [str(folder / "recipes" / ".." / "swahili.txt")]
