"""The API reference: what docs/api.md names, with signature and docstring, as Markdown for Sphinx's Python domain.

The code is read and not run (griffe), so that the site needs neither torch nor transformers. Docstrings are Markdown.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import griffe

# A list item of docs/api.md that is a name and nothing else.
NAMED = re.compile(r"^- `(bistil[\w.]*)`$", re.MULTILINE)


class Reference:
    """Renders names of the package.

    Args:
        source: folder that holds the package.
    """

    def __init__(self, source: Path) -> None:
        # What a docstring says of a parameter's type stands in the signature already.
        options = {"returns_named_value": False, "returns_multiple_items": False, "warn_missing_types": False}
        # Several parameters may share a line.
        options["warn_unknown_params"] = False
        self._package = griffe.load(
            "bistil", search_paths=[source], docstring_parser="google", docstring_options=options
        )

    def fill(self, page: str) -> str:
        """A page in which every list item that is a name has become its reference.

        Raises:
            LookupError: the package has no such name, or says nothing about it.
        """
        return NAMED.sub(lambda match: self.render(match[1]), page)

    def render(self, name: str) -> str:
        """One function or class, with its members."""
        named = self._package[name.removeprefix("bistil.")]
        thing = named.final_target if named.is_alias else named
        if thing.docstring is None:
            raise LookupError(f"{name} has no docstring")
        text = "\n".join(_class(thing, name) if thing.is_class else _function(thing, name))
        return f"{text}\n"


def _function(thing: griffe.Function, name: str, kind: str = "function") -> Iterator[str]:
    own = kind != "function" and "staticmethod" not in thing.labels
    head = f"{name}({_parameters(thing.parameters, skip_first=own)})"
    given = f"{head} -> {thing.returns}" if thing.returns is not None else head
    options = [f":{label}:" for label in ("classmethod", "staticmethod", "abstractmethod") if label in thing.labels]
    yield from _directive(kind, given, _docstring(thing), options)


def _class(thing: griffe.Class, name: str) -> Iterator[str]:
    settings = [one for one in thing.attributes.values() if _option(one) is not None]
    body = list(_docstring(thing))
    if settings:
        body += ["", "All are keyword arguments.", ""]
    for one in thing.members.values():
        if (one.name.startswith("_") and one.name != "__call__") or one.is_alias:
            continue
        if one.is_function and one.docstring:
            body += ["", *_function(one, one.name, "method")]
        elif one.is_attribute and (one.docstring or one in settings):
            body += ["", *_attribute(one)]
    # The arguments of settings are the fields below, each with its text.
    shown = name if settings or _is_error(thing) else f"{name}({_parameters(thing.parameters, skip_first=True)})"
    yield from _directive("class", shown.removesuffix("()"), body)


def _attribute(one: griffe.Attribute) -> Iterator[str]:
    if "property" in one.labels:
        options = [f":type: {one.annotation}"] if one.annotation else []
        yield from _directive("property", one.name, _docstring(one), options)
        return
    found = _option(one)
    default, text = found if found is not None else (one.value and str(one.value), None)
    options = [f":type: {one.annotation}"] if one.annotation else []
    options += [f":value: {default}"] if default else []
    yield from _directive("attribute", one.name, [text] if text is not None else _docstring(one), options)


def _option(one: griffe.Attribute) -> tuple[str | None, str] | None:
    """Default and help of a settings field (`settings.schema.option`); None for another attribute."""
    call = ast.parse(str(one.value), mode="eval").body if one.value is not None else None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "option"):
        return None
    given = dict(zip(("default", "help"), call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
    default = ast.unparse(given["default"]) if "default" in given else None
    if "factory" in given:
        default = "{}" if ast.unparse(given["factory"]) == "dict" else f"{ast.unparse(given['factory'])}()"
    return default, str(ast.literal_eval(given["help"]))


def _is_error(thing: griffe.Class) -> bool:
    return thing.name.endswith("Error")


def _parameters(parameters: griffe.Parameters, *, skip_first: bool) -> str:
    """A signature's inside, as it would be written."""
    shown: list[str] = []
    kinds = griffe.ParameterKind
    for place, one in enumerate(parameters):
        if skip_first and place == 0 and one.name in ("self", "cls"):
            continue
        before = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(one.kind, "")
        if one.kind is kinds.keyword_only and not any(part.startswith("*") for part in shown):
            shown.append("*")
        typed = f"{before}{one.name}: {one.annotation}" if one.annotation is not None else f"{before}{one.name}"
        shown.append(typed if one.default is None or before else f"{typed} = {one.default}")
    return ", ".join(shown)


def _docstring(thing: griffe.Object) -> Iterator[str]:
    for section in thing.docstring.parsed if thing.docstring else ():
        yield ""
        kind = section.kind.value
        if kind == "text":
            yield section.value
        elif kind == "attributes":
            for one in section.value:
                yield from _directive("attribute", one.name, [one.description])
        elif kind == "admonition":
            yield from ("```python", section.value.contents, "```")
        else:
            for one in section.value:
                yield from _fields(kind, one)
            yield ""


def _fields(kind: str, one: griffe.DocstringElement) -> Iterator[str]:
    """An entry of a docstring's list, for Sphinx; one that several names share stands under each of them."""
    text = indent(one.description, "    ").strip()
    if kind == "parameters":
        yield from (f":param {name}: {text}" for name in one.name.split(", "))
    elif kind == "raises":
        yield from (f":raises {name}: {text}" for name in str(one.annotation).split(", "))
    else:
        yield f":{kind}: {text}"


def _directive(
    kind: str, name: str, body: Iterator[str] | list[str], options: list[str] | None = None
) -> Iterator[str]:
    inside = "\n".join(body).strip("\n")
    # A fence is longer than those inside it.
    fence = "`" * max([3, *(len(found) + 1 for found in re.findall("`{3,}", inside))])
    yield f"{fence}{{py:{kind}}} {name}"
    yield from options or []
    yield from ("", inside, fence, "")
