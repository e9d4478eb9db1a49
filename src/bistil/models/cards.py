"""Model cards: the README.md of every model folder, as the Hugging Face hub reads it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from bistil._version import __version__
from bistil.errors import InputError
from bistil.runtime.artefacts import RECORD, read_json, whole_file
from bistil.runtime.documents import read_document

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ summary }}

{% if made %}
## How it was made

{% for line in made %}
- {{ line }}
{% endfor %}

{% endif %}
{% if metrics %}
## Measured

| what | value |
| --- | --- |
{% for name, value in metrics.items() %}
| {{ name }} | {{ value }} |
{% endfor %}

{% endif %}
{% if sources %}
## What it was made from

| what | SHA-256 |
| --- | --- |
{% for name, digest in sources.items() %}
| {{ name }} | `{{ digest }}` |
{% endfor %}

{% endif %}
## Use and limits

{% for line in limits %}
- {{ line }}
{% endfor %}

{% if usage %}
## How to use it

```python
{{ usage }}
```

{% endif %}
Made with bistil {{ version }}, an implementation of Ansell, Ponti, Korhonen and Vulić (2023), [Distilling Efficient
Language-Specific Models for Cross-Lingual Transfer](https://arxiv.org/abs/2306.01709). `bistil.json` beside this file
records settings, inputs and versions.
"""


def write_model_card(
    folder: Path,
    *,
    title: str,
    summary: str,
    languages: Sequence[str],
    base_model: str | None = None,
    pipeline_tag: str | None = None,
    license: str | None = None,
    library: str = "transformers",
    tags: Sequence[str] = (),
    made: Sequence[str] = (),
    metrics: Mapping[str, str | int | float] | None = None,
    usage: str | None = None,
    parent: str | Path | None = None,
    record: Mapping[str, Any] | None = None,
    parameters: int | None = None,
) -> Path:
    """Write `README.md` into a model folder: YAML metadata for the hub, then what a reader wants to know.

    Args:
        folder: the model folder; it must exist.
        title: the heading.
        summary: one paragraph: what the model is and what it is for.
        languages: language codes such as en and it; of others (pt-BR) the language, and what is no code (Swahili) stays
            out of the metadata.
        base_model: where the weights come from; None: what the parent's card says. Only a hub name (`owner/name`) goes
            into the metadata: a local path would be a broken link there, and may be private.
        pipeline_tag: the hub's name of the task, such as text-classification.
        license: hub identifier such as mit; None: what the parent's card says. Left out when unknown, because a wrong
            one is worse than none; the text then warns.
        library: that loads the model, as the hub calls it.
        tags: beyond `bistil`, which is always there.
        made: steps and settings, one line each.
        metrics: figures, numbers as they are, in the order given.
        usage: Python that runs the model, with {folder} for its folder (see `usage_code`).
        parent: folder of the model that this one was made from.
        record: of the folder: digests of parents and inputs.
        parameters: their number, tied ones once.

    Returns:
        The path of the card.
    """
    known = card_metadata(parent) if parent is not None else {}
    license = license or known.get("license")
    base_model = next((one for one in (base_model, known.get("base_model")) if one and _is_hub_name(one)), None)
    codes = language_codes(languages or known.get("language", []))
    size = sum(
        one.stat().st_size for one in folder.rglob("*") if one.is_file() and one.name not in ("README.md", RECORD)
    )
    figures = {**(metrics or {}), **({"parameters": parameters} if parameters else {}), "bytes": size}
    metadata = ModelCardData(
        language=codes or None,
        license=license,
        library_name=library,
        tags=["bistil", *tags],
        base_model=base_model,
        pipeline_tag=pipeline_tag,
    )
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    content = environment.from_string(TEMPLATE).render(
        card_data=metadata.to_yaml(),
        title=_line(title),
        summary=summary.strip(),
        made=[_line(step) for step in made],
        metrics={_cell(name): _cell(_number(value)) for name, value in figures.items()},
        sources={_cell(name): _cell(digest) for name, digest in _digests(record or {})},
        limits=[_line(one) for one in _limits(codes, license, head=pipeline_tag is not None)],
        usage=usage_code(usage, "path/to/this/folder"),
        version=__version__,
    )
    ModelCard(content)  # parses the metadata, so that a card the hub cannot read is never written
    path = folder / "README.md"
    with whole_file(path) as partial:
        partial.write_text(content, encoding="utf-8")
    return path


def language_codes(names: Iterable[str]) -> list[str]:
    """The ISO 639 codes of languages, each once; what is none is left out.

    Example:
        >>> language_codes(["en", "pt-BR", "swa", "Swahili", "en"])
        ['en', 'pt', 'swa']
    """
    codes = (re.split("[-_]", name.strip().lower())[0] for name in names)
    return list(dict.fromkeys(code for code in codes if re.fullmatch("[a-z]{2,3}", code)))


def card_metadata(folder: str | Path) -> dict[str, Any]:
    """What a model's card says that holds for a model made from it: "language", "license", "base_model", and
    "pipeline_tag".

    Nothing where it has none that can be read.
    """
    folder = Path(folder)
    found: dict[str, Any] = {}
    if (folder / "README.md").is_file():
        try:
            data = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
        except Exception:  # whatever people write
            data = {}
        found = {key: data[key] for key in ("language", "license", "base_model", "pipeline_tag") if data.get(key)}
    languages = found.get("language", [])
    found["language"] = [str(one) for one in (languages if isinstance(languages, list) else [languages])]
    if not isinstance(found.get("license", ""), str):
        del found["license"]
    bases = found.get("base_model", [])
    found["base_model"] = bases[0] if isinstance(bases, list) and bases else bases or None
    if found["base_model"] is None and (folder / RECORD).is_file():
        record = read_json(folder / RECORD)
        if isinstance(record, dict) and record.get("kind") == "pretrained":
            found["base_model"] = PACKAGED
    return found


PACKAGED = "intfloat/multilingual-e5-small"
"""The hub's name of the teacher that comes with a package."""

UNKNOWN_LICENCE = (
    "**The licence is unknown**: the model that this one was made from names none. Find out what it allows before you "
    "share this one or use it."
)
_ABOVE = "<!-- what the run measured: written by bistil -->"
_BELOW = "<!-- end of what the run measured -->"


def add_to_card(folder: Path, text: str) -> None:
    """Put a section into a folder's card before its use and limits, in place of the one that was put there before.

    What people wrote into the card stays. A folder without a card gets none.

    Args:
        text: Markdown.
    """
    path = folder / "README.md"
    if not path.is_file():
        return
    content = read_document(path)
    section = f"{_ABOVE}\n{text.strip()}\n\n{_BELOW}\n\n"
    before, found, rest = content.partition(_ABOVE)
    if found and _BELOW in rest:
        content = before + section + rest.partition(_BELOW)[2].lstrip("\n")
    else:
        where = content.find("\n## Use and limits\n")
        place = len(content) if where < 0 else where + 1
        content = content[:place] + section + content[place:]
    with whole_file(path, replace=True, inner=True) as partial:
        partial.write_text(content, encoding="utf-8")


def measured_in_card(folder: Path) -> str:
    """The section that a run put into a folder's card (`add_to_card`); empty where it has none."""
    path = folder / "README.md"
    try:
        content = read_document(path) if path.is_file() else ""
    except InputError:  # whatever people write
        return ""
    section, closed, _ = content.partition(_ABOVE)[2].partition(_BELOW)
    return section.strip() if closed else ""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown, cells as they are read."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) if cell != "---" else cell for cell in one) + " |" for one in lines)


def _limits(codes: Sequence[str], license: str | None, *, head: bool) -> list[str]:
    """What everybody who uses the model must know."""
    return [
        *([f"It is meant for text in {', '.join(codes)}; on other languages nothing was measured."] if codes else []),
        *([] if head else ["It has no head for a task: it gives vectors, and is fine-tuned first for all else."]),
        "Scores hold for the test sets that they were taken on; other kinds of text give others. What the teacher gets "
        "wrong, and what is one-sided in the texts and labels, it has learnt too.",
        f"Licence: {license}, as of the model that it was made from; the licences of texts and labels come besides."
        if license
        else UNKNOWN_LICENCE,
    ]


def _digests(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Digests of parents and inputs that a record has, by what they are called there."""
    found = []
    parents, inputs = record.get("parents"), record.get("inputs")
    for role, parent in parents.items() if isinstance(parents, Mapping) else ():
        if isinstance(parent, Mapping) and parent.get("digest"):
            found.append((f"{role}: {Path(str(parent.get('name', ''))).name}", str(parent["digest"])))
    for name, digests in inputs.items() if isinstance(inputs, Mapping) else ():
        several = [digests] if isinstance(digests, str) else list(digests)
        found += [
            (f"{Path(str(name)).name}{f', {number}' if len(several) > 1 else ''}", str(one))
            for number, one in enumerate(several, 1)
        ]
    return found


_ENCODER = """from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained({folder})
tokenizer = AutoTokenizer.from_pretrained({folder})"""


def pipeline_code(*arguments: str) -> str:
    """Python for `usage_code` that runs a model through transformers' pipeline.

    Args:
        arguments: of `pipeline`, as code: the name of the task first.
    """
    return f"""from transformers import pipeline

model = pipeline({", ".join(arguments)}, model={{folder}})
print(model("a sentence of yours"))"""


def usage_code(usage: str | None, folder: str) -> str:
    """Python code that loads a model from its folder and runs it.

    Args:
        usage: of the task (`tasks.Task.usage`), with {folder} for the folder; None: a model without a task.
        folder: as the code shall name it.

    Example:
        >>> print(usage_code(pipeline_code('"text-classification"'), "students/lrf2").splitlines()[2])
        model = pipeline("text-classification", model="students/lrf2")
    """
    return (usage or _ENCODER).replace("{folder}", json.dumps(folder, ensure_ascii=False))


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and not Path(name).exists()


def _number(value: str | int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
