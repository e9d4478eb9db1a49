"""Model cards: the README.md of every model folder, as the Hugging Face hub reads it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from bistil._version import __version__
from bistil.runtime.artefacts import whole_file

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
    tags: Sequence[str] = (),
    made: Sequence[str] = (),
    metrics: Mapping[str, str | int | float] | None = None,
    task: str | None = None,
) -> Path:
    """Write `README.md` into a model folder: YAML metadata for the hub, then what a reader wants to know.

    Args:
        folder: the model folder; it must exist.
        title: the heading.
        summary: one paragraph: what the model is and what it is for.
        languages: language codes such as en and it.
        base_model: where the weights come from. Only a hub name (`owner/name`) goes into the metadata: a local path
            would be a broken link there, and may be private.
        pipeline_tag: the hub's name of the task, such as text-classification.
        license: hub identifier such as mit; left out when unknown, because a wrong one is worse than none.
        tags: beyond `bistil`, which is always there.
        made: steps and settings, one line each.
        metrics: figures, numbers as they are, in the order given.
        task: kind of the task, which chooses the example of use (see `usage_code`).

    Returns:
        The path of the card.
    """
    metadata = ModelCardData(
        language=list(dict.fromkeys(languages)) or None,
        license=license,
        library_name="transformers",
        tags=["bistil", *tags],
        base_model=base_model if base_model and _is_hub_name(base_model) else None,
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
        metrics={_cell(name): _cell(_number(value)) for name, value in (metrics or {}).items()},
        usage=usage_code(task, "path/to/this/folder"),
        version=__version__,
    )
    ModelCard(content)  # parses the metadata, so that a card the hub cannot read is never written
    path = folder / "README.md"
    with whole_file(path) as partial:
        partial.write_text(content, encoding="utf-8")
    return path


_PIPELINE = """from transformers import pipeline

model = pipeline({arguments}, model={folder})
print(model("a sentence of yours"))"""
# Per kind of task, what runs its models from a folder. transformers 5 has no pipeline for questions and none for trees.
_USAGE = {
    "sequence-classification": _PIPELINE.replace("{arguments}", '"text-classification"'),
    # Without a strategy the pipeline labels subwords, and cuts a name into as many entities as it has pieces.
    "token-classification": _PIPELINE.replace("{arguments}", '"token-classification", aggregation_strategy="first"'),
    "question-answering": """from bistil.tasks.question_answering import QuestionAnswerer

answer = QuestionAnswerer({folder})
print(answer("a question of yours", "a passage that holds its answer")[0].text)""",
    "dependency-parsing": """from bistil.tasks.dependency_parsing import Parser
from bistil.tasks.words import split_words

parse = Parser({folder})
print(parse([split_words("a sentence of yours")]))  # per word its head (0: the root) and relation""",
}
_ENCODER = """from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained({folder})
tokenizer = AutoTokenizer.from_pretrained({folder})"""


def usage_code(kind: str | None, folder: str) -> str:
    """Python code that loads a model from its folder and runs it.

    Args:
        kind: of the task, such as "token-classification"; anything else: a model without a task.
        folder: as the code shall name it.

    Example:
        >>> print(usage_code("token-classification", "students/lrf2").splitlines()[2])
        model = pipeline("token-classification", aggregation_strategy="first", model="students/lrf2")
    """
    return _USAGE.get(kind or "", _ENCODER).replace("{folder}", json.dumps(folder, ensure_ascii=False))


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and not Path(name).exists()


def _number(value: str | int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
