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
    library: str = "transformers",
    tags: Sequence[str] = (),
    made: Sequence[str] = (),
    metrics: Mapping[str, str | int | float] | None = None,
    usage: str | None = None,
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
        library: that loads the model, as the hub calls it.
        tags: beyond `bistil`, which is always there.
        made: steps and settings, one line each.
        metrics: figures, numbers as they are, in the order given.
        usage: Python that runs the model, with {folder} for its folder (see `usage_code`).

    Returns:
        The path of the card.
    """
    metadata = ModelCardData(
        language=list(dict.fromkeys(languages)) or None,
        license=license,
        library_name=library,
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
        usage=usage_code(usage, "path/to/this/folder"),
        version=__version__,
    )
    ModelCard(content)  # parses the metadata, so that a card the hub cannot read is never written
    path = folder / "README.md"
    with whole_file(path) as partial:
        partial.write_text(content, encoding="utf-8")
    return path


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
