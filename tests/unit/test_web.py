"""A student in the browser: the folder, what is refused, and that the page's own code does what Python does."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import tiny
import tokenizer_families
from scripts import SENTENCES
from sentencepiece import SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as pieces
from task_models import TAGS, TEXTS, exported, model_in, refused
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from web_library import stand_in

import bistil
from bistil.errors import ArtefactError, InputError
from bistil.export import libraries, web
from bistil.export.browser import check_tokenizer, unicode_tables
from bistil.export.libraries import browser_library
from bistil.export.web import expected_inputs, write_page
from bistil.models.tokenizers import to_json
from bistil.prediction.loading import load

pytest.importorskip("onnx", reason="pip install 'bistil[export]'")
pytest.importorskip("onnxruntime", reason="pip install 'bistil[export]'")

CLASSES = "sequence-classification"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
LONG = " ".join(TEXTS * 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("web")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A folder of node modules that passes for the library."""
    monkeypatch.setattr(libraries, "FILES", stand_in(tmp_path / "modules"))
    return tmp_path / "modules"


@pytest.fixture
def without_node(monkeypatch):
    """Neither Node.js nor npm is installed."""
    monkeypatch.setattr("shutil.which", lambda _: None)


def student(place, family="xlm-roberta", kind=TAGS):
    return exported(place, family, kind, engine="onnxruntime", embeddings="auto")


# --- the folder


def test_the_folder_is_complete_and_asks_for_nothing_elsewhere(place, modules, tmp_path, command_line):
    page = tmp_path / "page"
    code, said, _ = command_line("export", student(place), "--web", page, "--web-libraries", modules)
    assert code == 0 and f"{page}: a page of" in said
    names = {one.relative_to(page).as_posix() for one in page.rglob("*") if one.is_file()}
    assert names == {
        *("index.html", "style.css", "page.mjs", "student.mjs", "tokenizer.mjs", "student.json", "about.json"),
        *("model.onnx", "tokenizer.json", "LICENSES.txt", "bistil.json"),
        *(f"onnxruntime/{Path(name).name}" for name in libraries.FILES),
    }
    html = (page / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert rules.pop("img-src") == "data:" and rules.pop("script-src") == "'self' 'wasm-unsafe-eval'"
    assert set(rules.values()) == {"'self'"} and set(rules) == {"style-src", "connect-src", "worker-src"}
    # No style or handler of its own, which the policy forbids.
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", html)
    for link in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert link == "data:," or (page / link).is_file(), link
    for name in web.OURS:
        text = (page / name).read_text()
        assert not re.search(r"https?:|[\"'(]//|url\(", text), name
        for imported in re.findall(r'(?:from|import\()\s*"([^"]+)"', text):
            assert imported.startswith("./") and (page / imported).is_file(), imported
    licences = (page / "LICENSES.txt").read_text()
    assert "Apache-2.0" in licences and "MIT" in licences and "Permission is hereby granted" in licences
    assert libraries.VERSION in licences
    record = json.loads((page / "bistil.json").read_text())
    assert record["kind"] == "web page" and record["task"] == TAGS
    assert record["files"].keys() == names - {"bistil.json"}
    assert bool(record["tokens"]["texts"]) == (NODE is not None)


def test_a_model_is_exported_on_the_way(place, modules, tmp_path, command_line):
    model, page, kept = model_in(place, "xlm-roberta", CLASSES), tmp_path / "page", tmp_path / "kept"
    code, said, _ = command_line("export", model, "-o", kept, "--web", page, "--web-libraries", modules)
    assert code == 0 and said.index(f"{kept}:") < said.index(f"{page}:")
    assert (kept / "model.onnx").read_bytes() == (page / "model.onnx").read_bytes()
    assert json.loads((page / "about.json").read_text())["title"] == model.name


@pytest.mark.usefixtures("without_node")
def test_without_node_the_record_says_that_nothing_was_compared(place, modules, tmp_path):
    assert write_page(student(place), tmp_path / "page", libraries=modules)["tokens"] == {"texts": 0}


@needs_node
def test_a_page_that_would_read_other_tokens_is_refused(place, modules, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "expected_inputs", lambda *_: [[[1], []]])
    with pytest.raises(ArtefactError, match="would read other tokens"):
        write_page(student(place), tmp_path / "page", libraries=modules)
    assert not (tmp_path / "page").exists()


# --- refusals


def test_what_does_not_go_together_is_refused(place, modules, tmp_path, command_line):
    page, model = tmp_path / "page", student(place)
    given = ("--web", page, "--web-libraries", modules)
    refused(command_line("export", model), page, "nothing would be written", "--output", "--web")
    refused(command_line("export", model, "-o", page, "--web-libraries", modules), page, "give --web too")
    refused(command_line("export", model, *given, "--engine", "ctranslate2"), page, "leave --engine out")
    for kind in ("dependency-parsing", "question-answering"):
        other = model_in(place, "bert", kind)
        refused(command_line("export", other, *given), page, kind, TAGS, CLASSES)
    with pytest.raises(InputError, match="not exported for onnxruntime"):
        write_page(model_in(place, "xlm-roberta", TAGS), page, libraries=modules)
    (modules / libraries.PACKAGE / next(iter(libraries.FILES))).write_text("// other")
    refused(command_line("export", model, *given), page, "is not that of onnxruntime-web", libraries.VERSION)
    refused(
        command_line("export", model, "--web", page, "--web-libraries", modules.parent / "none"),
        page,
        "onnxruntime-web",
    )


def test_a_tokenizer_that_the_page_does_not_know_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.UnicodeScripts()])
    with pytest.raises(InputError, match="has no UnicodeScripts, which the tokenizer has as a pre_tokenizer"):
        check_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


# --- where the library comes from


def npm_that(folder, monkeypatch, *lines):
    """A program npm that does something else."""
    program = folder / "bin" / "npm"
    program.parent.mkdir(exist_ok=True)
    program.write_text("\n".join([f"#!{sys.executable}", "import os, shutil, sys", *lines]))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


@pytest.mark.skipif(sys.platform == "win32", reason="programs are found by other names")
def test_npm_fetches_once_by_the_lock(modules, tmp_path, monkeypatch):
    monkeypatch.setenv("BISTIL_CACHE", str(tmp_path / "cache"))
    copy = "assert sys.argv[1:3] == ['ci', '--ignore-scripts'] and os.path.isfile('package-lock.json')"
    program = npm_that(tmp_path, monkeypatch, copy, f"shutil.copytree({str(modules)!r}, 'node_modules')")
    first = browser_library()
    program.write_text(f"#!{sys.executable}\nraise SystemExit(1)")
    assert browser_library() == first
    assert {one.relative_to(tmp_path / "cache").parts[0] for one in first.files.values()} == {"onnxruntime-web-1.30.0"}
    # What was damaged since is fetched again.
    next(iter(first.files.values())).write_text("damaged")
    with pytest.raises(bistil.errors.MissingExtraError):
        browser_library()


@pytest.mark.skipif(sys.platform == "win32", reason="programs are found by other names")
def test_npm_that_fails_is_one_line(place, modules, tmp_path, monkeypatch, command_line):
    monkeypatch.setenv("BISTIL_CACHE", str(tmp_path / "cache"))
    page = tmp_path / "page"
    npm_that(tmp_path, monkeypatch, "print('npm error network is unreachable', file=sys.stderr)", "sys.exit(1)")
    refused(command_line("export", student(place), "--web", page), page, "network is unreachable", "--web-libraries")
    brings = f"shutil.copytree({str(modules)!r}, 'node_modules')"
    npm_that(tmp_path, monkeypatch, brings, "open('node_modules/onnxruntime-web/dist/ort.wasm.min.mjs', 'w').close()")
    refused(command_line("export", student(place), "--web", page), page, "npm brought another dist/ort.wasm.min.mjs")
    assert not list((tmp_path / "cache").glob("onnxruntime-web*"))


@pytest.mark.usefixtures("without_node")
def test_no_npm_is_one_line(place, tmp_path, monkeypatch, command_line):
    monkeypatch.setenv("BISTIL_CACHE", str(tmp_path / "cache"))
    page = tmp_path / "page"
    refused(command_line("export", student(place), "--web", page), page, "install Node.js", "--web-libraries")


def test_the_lock_is_exact_and_names_no_registry():
    lock = (libraries.PAGE / "package-lock.json").read_text()
    assert "resolved" not in lock and "://" not in lock
    packages = json.loads(lock)["packages"]
    assert packages.pop("")["dependencies"] == {libraries.PACKAGE: libraries.VERSION}
    assert packages[f"node_modules/{libraries.PACKAGE}"]["version"] == libraries.VERSION
    assert packages[f"node_modules/{libraries.PACKAGE}"]["license"] == libraries.LICENCE
    assert all(one["integrity"].startswith("sha512-") for one in packages.values())


# --- the page's tokenizer against the library tokenizers

ENCODE = """
import {{ readFileSync }} from "node:fs";
const {{ Tokenizer }} = await import({module!r});
const {{ cases, texts }} = JSON.parse(readFileSync(0));
const made = cases.map(([definition, tables]) => new Tokenizer(JSON.parse(definition), tables));
process.stdout.write(JSON.stringify(made.map((one) => texts.map((text) => one.encode(text)))));
"""
# What normal forms, marks, blanks, added tokens and scripts without spaces do.
ODD = [
    *"é e\u0301 ﬁ ﬃ ½ ① ㋿ ｶﾞ ｶ ゙ 각 \u1100\u1161 \u1161 Å Ω ſ ẛ̣ q\u0307\u0323 İ ß Σς ǅ ~ ～ 🈻".split(),  # noqa: SIM905
    *"👩\u200d👩\u200d👧 🇩🇪 नमस्ते กำ ﷺ שּׁ <s> <mask> </s> <unk> [user] ▁ ▁▁ ' … 。 𠀀 don't I'll 4567890 12.5".split(),  # noqa: SIM905
    *"\t\n\u200b\u200d\xad\ufeff\0\x01\x85\u2028\ufffd",
    *("\u0f73", "a\u0301\u0323", "\u0344", "\u0958", "\ufb2a", "\ufb01\u0301"),
]


def odd_texts():
    draw = random.Random(0)
    mixed = ["".join(draw.choice(ODD) + draw.choice(["", " ", "  "]) for _ in range(9)) for _ in range(150)]
    ranges = [(0x20, 0x80), (0x80, 0x600), (0x600, 0x3200), (0x3200, 0xD800), (0xE000, 0x10000), (0x10000, 0x1FFFF)]
    drawn = ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(12)) for _ in range(150)]
    return [*SENTENCES.values(), *mixed, *drawn, "", " "]


def sentencepiece_like(folder):
    """A tokenizer with the map of characters that SentencePiece writes, as XLM-R's has it."""
    (folder / "text.txt").write_text("\n".join(tokenizer_families.corpus()))
    SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "sp"), vocab_size=900, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    proto = pieces.ModelProto()
    proto.ParseFromString((folder / "sp.model").read_bytes())
    made = Tokenizer(models.Unigram([(one.piece, one.score) for one in proto.pieces], unk_id=0))
    charsmap = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    made.normalizer = normalizers.Sequence([normalizers.Strip(left=False), charsmap])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return made.to_str()


@needs_node
def test_ids_and_offsets_are_those_of_tokenizers(tmp_path):
    states = {family: tokenizer_families.build(family) for family in tokenizer_families.FAMILIES}
    states |= {name: json.dumps(one) for name, one in tiny._recorded().items()}
    states["sentencepiece"] = sentencepiece_like(tmp_path)
    made = {name: Tokenizer.from_str(state) for name, state in states.items()}
    for one in made.values():
        one.no_padding()
        one.no_truncation()
    cases = [
        [to_json(json.loads(one.to_str())), unicode_tables(PreTrainedTokenizerFast(tokenizer_object=one))]
        for one in made.values()
    ]
    texts = odd_texts()
    script = ENCODE.format(module=(libraries.PAGE / "tokenizer.mjs").as_uri())
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", script],
        input=json.dumps({"cases": cases, "texts": texts}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (name, one), found in zip(made.items(), json.loads(done.stdout), strict=True):
        for text, theirs in zip(texts, found, strict=True):
            encoded = one.encode(text, add_special_tokens=False)
            expected = {"ids": encoded.ids, "offsets": [list(place) for place in encoded.offsets]}
            assert theirs == expected, f"{name}: {text!r}"


@needs_node
@pytest.mark.parametrize("kind", [TAGS, CLASSES])
def test_windows_and_cuts_are_python_s(place, modules, tmp_path, kind):
    page = tmp_path / "page"
    write_page(student(place, kind=kind), page, libraries=modules)
    # A model of a vocabulary of 1,000 tokens reads 138 of them at most.
    predictor = load(student(place, kind=kind))
    texts = [*TEXTS, LONG, LONG[:400], "ab" * 300, *odd_texts()]
    # Words of characters that are younger than a browser are its own.
    texts = [text for text in texts if text.strip() and not any(unicodedata.category(char) == "Cn" for char in text)]
    done = subprocess.run(
        [NODE, str(libraries.PAGE / "check.mjs"), str(page)],
        input=json.dumps(texts), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    several = 0
    for text, theirs in zip(texts, json.loads(done.stdout), strict=True):
        assert theirs == expected_inputs(predictor, text), text
        several += len(theirs) > 1
    assert bool(several) == (kind == TAGS)


# --- in a browser

ANSWERS = """
import { load } from "./student.mjs";
export default async function (inputs) {
  const student = await load();
  const said = [];
  for (const input of inputs) said.push(await student.ask(...[input].flat()));
  return { said, isolated: globalThis.crossOriginIsolated, threads: student.threads };
}
"""
# The page itself, as somebody who types sees it.
TYPING = """
export default async function (text) {
  const frame = document.body.appendChild(document.createElement("iframe"));
  frame.src = "./";
  const until = async (what) => {
    for (let i = 0; i < 600 && !what(); i++) await new Promise((done) => setTimeout(done, 50));
  };
  await until(() => frame.contentDocument?.documentElement?.dataset.ready);
  const page = frame.contentDocument;
  const field = page.getElementById("text");
  field.value = text;
  field.dispatchEvent(new frame.contentWindow.Event("input"));
  await until(() => !page.getElementById("answer").hidden);
  const texts = (found) => [...page.querySelectorAll(found)].map((one) => one.textContent);
  return { shown: page.getElementById("shown").textContent, marks: texts("mark"), bars: texts(".bar"),
    took: texts("#took")[0], machine: texts("#machine")[0], status: page.getElementById("status").hidden };
}
"""


@pytest.fixture
def real_modules():
    """Where the real library is: node modules named in BISTIL_WEB_LIBRARIES, or the user's cache."""
    named = os.environ.get("BISTIL_WEB_LIBRARIES")
    folder = libraries.cache_folder() / f"{libraries.PACKAGE}-{libraries.VERSION}"
    if named is None and libraries._wrong_file(folder) is not None:
        pytest.skip("onnxruntime-web is neither in the cache nor named in BISTIL_WEB_LIBRARIES")
    return None if named is None else Path(named)


def test_a_tagger_in_the_browser_says_what_python_says(place, real_modules, tmp_path, run_in_browser):
    page, model = tmp_path / "page", student(place)
    write_page(model, page, libraries=real_modules)
    inputs = [*TEXTS, LONG]
    found, asked, _ = run_in_browser(page, ANSWERS, inputs, isolated=True)
    assert found["isolated"] and found["threads"] >= 1
    assert {name for name in asked if not (page / name).is_file()} <= {"/favicon.ico"}
    for ours, theirs in zip(found["said"], load(model)(inputs, batch_size=1), strict=True):
        assert (ours["tokens"], ours["labels"], ours["offsets"]) == (
            theirs["tokens"], theirs["labels"], theirs["offsets"],
        )  # fmt: skip
        assert ours["confidences"] == pytest.approx(theirs["confidences"], abs=2e-3)
        keys = ("type", "text", "start", "end")
        assert [[one[key] for key in keys] for one in ours["entities"]] == [
            [one[key] for key in keys] for one in theirs["entities"]
        ]
    text = TEXTS[0]
    shown = run_in_browser(page, TYPING, text)[0]
    entities = load(model)(text)["entities"]
    assert shown["marks"] == [one["text"] + one["type"] for one in entities] and entities
    assert shown["status"] and " words, " in shown["took"] and shown["took"].endswith(" ms")
    assert "threads are off" in shown["machine"] and "MB over the wire" in shown["machine"]


@pytest.mark.parametrize("kind", [CLASSES, "multi-label-classification"])
def test_a_classifier_in_the_browser_says_what_python_says(place, real_modules, tmp_path, run_in_browser, kind):
    page, model = tmp_path / "page", student(place, kind=kind)
    write_page(model, page, libraries=real_modules)
    inputs = [*TEXTS, LONG, (TEXTS[0], TEXTS[1]), (LONG, TEXTS[0]), (TEXTS[0], LONG), (LONG, LONG)]
    found = run_in_browser(page, ANSWERS, inputs)[0]
    assert not found["isolated"] and found["threads"] == 1
    key = "label" if kind == CLASSES else "labels"
    for ours, theirs in zip(found["said"], load(model)(inputs, batch_size=1), strict=True):
        assert ours[key] == theirs[key] and ours["truncated"] == theirs.get("truncated", False)
    if kind == CLASSES:
        shown = run_in_browser(page, TYPING, TEXTS[0])[0]
        assert len(shown["bars"]) == 3 and shown["bars"][0].startswith(found["said"][0]["label"])
