"""A draft as a recipe in TOML, with what was guessed beside it."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bistil.distillation.task_data import read_task_data
from bistil.drafting.draft import Draft, Given
from bistil.errors import printable
from bistil.runtime.artefacts import whole_file
from bistil.runtime.ownership import marked_text
from bistil.settings.recipe import Recipe, load_recipe
from bistil.text.lines import read_sentences

_SCHEMES = {"iob2": "BIO", "iobes": "BIOES", "bilou": "BILOU", "bmes": "BMES", "types": "bare types"}


def write_draft(
    draft: Draft, output: Path, *, teacher: str, budget: str | None = None, replace: bool = False
) -> Recipe:
    """Write the recipe, whole, and read it again.

    Args:
        output: its paths are relative to that file's folder.
        replace: a recipe that `bistil init` wrote, and nobody changed, gives way.

    Raises:
        InputError: something else is there, or the files cannot be learnt from together.
        RecipeError: what was said makes no recipe.
    """
    text = "\n".join(_lines(draft, output.parent, teacher=teacher, budget=budget)) + "\n"
    with whole_file(output, replace=replace) as partial:
        partial.write_text(marked_text(text), encoding="utf-8")
        recipe = load_recipe(partial)
        if recipe.task is not None:
            # What parts do to each other shows when they are read together.
            sentences = read_sentences([Path(file) for file in recipe.text[recipe.target]])
            read_task_data(recipe.task, source=recipe.source, target_sentences=sentences, quiet=True)
        return recipe


def _lines(draft: Draft, folder: Path, *, teacher: str, budget: str | None) -> Iterator[str]:
    source, target = draft.source, draft.target
    yield "# Keys that are not here have defaults: docs/recipe.md. Then: bistil run RECIPE --check, bistil run RECIPE."
    yield f"name = {_text(f'{source}-{target}')}"
    yield f"teacher = {_text(teacher)}  # the multilingual model: e5-small (packaged), a hub name or a folder"
    yield f"source = {_text(source)}  # the language with labels"
    yield f"target = {_text(target)}  # the language that the model is for"
    shown = f"budget = {_text(budget or '1h')}"
    yield f"{'' if budget else '# '}{shown}  # the time that the run may take: all trainings become longer or shorter"
    yield ""
    yield "[text]"
    for language, own in draft.text.items():
        yield f"{_key(language)} = {_files(own, folder)}  # {sum(one.count for one in own):,} lines"
    yield ""
    yield "# Every second layer of the teacher. 3: smaller and faster. More students: repeat the table."
    yield "[[students]]"
    yield 'name = "lrf2"'
    yield "reduction = 2"
    yield ""
    if draft.kind is None:
        yield "# No labelled file was given: the run ends after phase 1, with small models of the two languages."
        return
    yield "[task]"
    yield f"kind = {_text(draft.kind)}"
    yield 'preset = "short"  # lengths for two CPU cores; "paper": the paper\'s'
    yield f"train = {_files(draft.train, folder)}  # {_counted(draft.train)}"
    if draft.learnable:
        both = f"{_key(source)} = {_files(draft.train, folder)}, "
        both += f"{_key(draft.target)} = {_files(draft.learnable, folder)}"
        yield _comment(f"To learn from {_counted(draft.learnable)} of {draft.target} too, in place of train:")
        yield _comment(f"sources = {{ {both} }}")
    if draft.dev:
        yield f"dev = {_files(draft.dev, folder)}  # {_counted(draft.dev)}"
    elif "dev" in draft.left_out:
        yield f"# dev = {_files(draft.left_out['dev'], folder)}  # it has labels that training lacks: see label_map"
    else:
        yield f"# No dev data of {source}: no labels choose a checkpoint."
    if draft.columns:
        yield f"columns = {_table(draft.columns)}"
    if draft.kind == "token-classification":
        yield _about_tags(draft)
    yield from _about_labels(draft)
    yield ""
    yield "[task.test]"
    for language in (source, target):
        if language in draft.test:
            yield f"{_key(language)} = {_files(draft.test[language], folder)}  # {_counted(draft.test[language])}"
        elif language in draft.left_out:
            files = _files(draft.left_out[language], folder)
            yield f"# {_key(language)} = {files}  # it has labels that training lacks: see label_map"
        else:
            name = _text(f"test.{language}{_ending(draft.train[0].path)}")
            yield f"# No test data of {language}. Later, such as: {_key(language)} = [{name}]"


def _about_tags(draft: Draft) -> str:
    if draft.scheme is None:
        return '# The tags mark no spans: they are scored by accuracy. If they do: scheme = "iob2" (BIO), "iobes", ...'
    return (
        f"# The tags mark spans, in {_SCHEMES[draft.scheme]} ({draft.scheme}); scheme = ... says it where it is wrong."
    )


def _about_labels(draft: Draft) -> Iterator[str]:
    waiting = {old: new for old, new in draft.proposed.items() if new == "?"}
    needless = {old: new for old, new in draft.proposed.items() if new != "?"}
    if draft.label_map:
        yield "# Labels that training lacks are read as others:"
        yield f"label_map = {_table(draft.label_map)}"
    if waiting:
        known = sorted({label for one in draft.train for label in one.labels})
        yield _comment(f"To score these, give each a label that training has ({', '.join(known)}):")
        yield _comment(f"label_map = {_table({**draft.label_map, **waiting})}")
    if needless:
        yield f"# The test data of {draft.target} lack labels that training has. To do without these:"
        yield _comment(f"label_map = {_table({**draft.label_map, **needless})}")


def _counted(own: Sequence[Given]) -> str:
    labels = {label for one in own for label in one.labels}
    examples = f"{sum(one.count for one in own):,} examples"
    return f"{examples}, {len(labels)} labels" if labels else examples


def _files(own: Iterable[Given], folder: Path) -> str:
    return "[" + ", ".join(_text(_beside(one.path, folder)) for one in own) + "]"


def _beside(path: Path, folder: Path) -> str:
    """A file's path relative to the recipe's folder."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive
        return path.resolve().as_posix()


def _ending(path: Path) -> str:
    return "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])


def _table(values: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{_text(old)} = {_text(new)}" for old, new in values.items()) + " }"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(value: str) -> str:
    """A string of TOML, whose escapes are those of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    return f"# {printable(text)}"
