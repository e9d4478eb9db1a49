"""From files to the parts of a recipe, with the reasons; what cannot be told is asked for."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from bistil.drafting.forms import NAMES, Form, columns_for_texts, kinds_of, look_of
from bistil.drafting.names import Part, language_of_name, part_of, short_code
from bistil.errors import InputError
from bistil.settings.schema import check_language
from bistil.tasks import Task, get_task
from bistil.tasks.reading import Reading, RowReport
from bistil.tasks.spans import OUTSIDE, PREFIXED, scheme_of
from bistil.tasks.texts import TextTask
from bistil.text.lines import check_text, read_lines

ENGLISH = "en"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What somebody says of their files; what is not said is guessed."""

    source: str | None = None
    target: str | None = None
    task: str | None = None
    languages: Mapping[str, str] = field(default_factory=dict, metadata={"help": "by file, as it was named"})
    parts: Mapping[str, str] = field(default_factory=dict, metadata={"help": "by file: train, dev or test"})
    columns: Mapping[str, str] = field(default_factory=dict, metadata={"help": "as `Reading.columns`"})


@dataclass(kw_only=True)
class Given:
    """One of the files."""

    path: Path
    form: Form
    language: str | None
    part: Part | None = None
    count: int = 0
    labels: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        return self.form != "text"


@dataclass(kw_only=True)
class Draft:
    """What a recipe is written from.

    Attributes:
        text: per language.
        kind: of the task; None: there are no labelled files.
        train, dev, test: labelled files; `test` per language.
        left_out: per language, test files that hold labels which training lacks.
        learnable: labelled files of the target for training, which the recipe does not use, but shows how to.
        label_map: labels of dev and test files that training lacks, with what they are read as.
        proposed: labels that only some languages have, which a label map could do without.
        open: what could not be told.
    """

    source: str
    target: str
    text: dict[str, list[Given]]
    kind: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    train: list[Given] = field(default_factory=list)
    dev: list[Given] = field(default_factory=list)
    test: dict[str, list[Given]] = field(default_factory=dict)
    left_out: dict[str, list[Given]] = field(default_factory=dict)
    learnable: list[Given] = field(default_factory=list)
    scheme: str | None = None
    label_map: dict[str, str] = field(default_factory=dict)
    proposed: dict[str, str] = field(default_factory=dict)
    took: dict[str, str] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people: what each file was taken for, then what could not be told."""
        return [*(f"{file}: {what}" for file, what in self.took.items()), *self.open]


def draft_recipe(files: Sequence[Path], told: Told) -> Draft:
    """Look at the files and find what each is for.

    Raises:
        InputError: a file cannot be read, or something cannot be guessed and must be said, with how.
    """
    if len({file.resolve() for file in files}) < len(files):
        raise InputError("a file is given twice: name each once")
    languages = {file: short_code(code) for file, code in _by_file(told.languages, files, "--language").items()}
    for code in (*languages.values(), told.source, told.target):
        if code is not None:
            check_language(code, "--language, --source or --target")
    parts = _by_file(told.parts, files, "--part")
    for file, part in parts.items():
        if part not in get_args(Part):
            raise InputError(f"--part {file}={part}: it is one of {', '.join(get_args(Part))}")
    given = []
    for file in files:
        one = Given(path=file, form=look_of(file), language=languages.get(file) or language_of_name(file))
        if one.labelled:
            one.part = parts.get(file) or part_of(file)  # type: ignore[assignment]
        given.append(one)
    texts, labelled = [one for one in given if not one.labelled], [one for one in given if one.labelled]
    _require_languages(texts)
    known = {one.language for one in given if one.language is not None}
    if len(known) == 1 and told.source is None:
        raise InputError(
            f"all files are of {known.pop()}: give plain text of the language that the model is for and of the one "
            "with labels, English mostly, or say whose a file is with --language FILE=CODE"
        )
    source, target = _pair(texts, labelled, told)
    draft = Draft(
        source=source,
        target=target,
        text={code: [one for one in texts if one.language == code] for code in (source, target)},
    )
    for one in texts:
        _count_lines(one)
        used = one.language in draft.text
        draft.took[str(one.path)] = f"plain text of {one.language}, {one.count:,} lines" + _unused(used)
    lacking = [code for code, own in draft.text.items() if not own]
    if lacking:
        raise InputError(
            f"no file is plain text of {' or '.join(lacking)}: give one, one sentence or paragraph per line, such as "
            f"{lacking[0]}.txt (or say whose a file is: --language FILE={lacking[0]})"
        )
    if labelled:
        _add_task(draft, labelled, told)
    return draft


def _by_file(named: Mapping[str, str], files: Sequence[Path], flag: str) -> dict[Path, str]:
    found = {}
    for name, value in named.items():
        own = [file for file in files if str(file) == name] or [file for file in files if file.name == name]
        if len(own) != 1:
            raise InputError(f"{flag} {name}={value}: {'no file' if not own else 'more than one file'} is called that")
        found[own[0]] = value
    return found


def _quoted(file: object, value: str) -> str:
    """FILE=VALUE as it is typed: names may have spaces."""
    return shlex.quote(f"{file}={value}")


def _require_languages(texts: Sequence[Given]) -> None:
    unknown = [str(one.path) for one in texts if one.language is None]
    if unknown:
        more = f" (and {', '.join(unknown[1:])})" if unknown[1:] else ""
        raise InputError(
            f"the name does not say whose text {unknown[0]}{more} is: say it with --language "
            f"{_quoted(unknown[0], 'CODE')}"
        )


def _pair(texts: Sequence[Given], labelled: Sequence[Given], told: Told) -> tuple[str, str]:
    """Source and target."""
    codes = list(dict.fromkeys(str(one.language) for one in texts))
    learnt = {one.language for one in labelled if one.part == "train"} - {None}
    source = told.source and short_code(told.source)
    target = told.target and short_code(told.target)
    if source is None:
        known = [code for code in (learnt or codes) if code is not None and code != target]
        if ENGLISH in known:
            source = ENGLISH
        elif len(known) == 1 and (learnt or target):
            source = known[0]
        else:
            raise InputError(
                f"which language has the labels ({', '.join(sorted(known)) or 'none is named'})? Say it with "
                "--source CODE"
            )
    if target is None:
        others = [code for code in codes if code != source]
        tested = [code for code in others if any(one.language == code for one in labelled)]
        if len(others) != 1 and len(tested) == 1:
            others = tested
        if not others:
            raise InputError(
                f"all text is of {source}: give plain text of the language that the model is for too, or say whose a "
                "file is with --language FILE=CODE"
            )
        if len(others) > 1 or others[0] == ENGLISH:
            raise InputError(
                f"source is {source}, and which language is the model for ({', '.join(others)})? Say it with --target "
                "CODE"
            )
        target = others[0]
    return source, target


def _unused(used: bool) -> str:
    return "" if used else "; not used: it is of neither the source nor the target"


def _count_lines(one: Given) -> None:
    check_text(one.path)
    one.count = sum(1 for line in read_lines(one.path) if line.strip())


def _add_task(draft: Draft, labelled: Sequence[Given], told: Told) -> None:
    """Kind, columns, parts and labels of the labelled files."""
    named = any(one.language is not None for one in labelled)
    for one in labelled:
        if one.language is None:
            if named and one.part not in ("train", "dev"):
                raise InputError(
                    f"the name does not say of which language {one.path} is, as those of others do: say it with "
                    f"--language {_quoted(one.path, 'CODE')}"
                )
            one.language = draft.source
            draft.open.append(
                f"{one.path}: the name says no language, so it is taken for the source's (--language "
                f"{_quoted(one.path, 'CODE')} says another)"
            )
    used = [one for one in labelled if one.language in (draft.source, draft.target)]
    for one in labelled:
        if one not in used:
            draft.took[str(one.path)] = f"{NAMES[one.form]} of {one.language}" + _unused(used=False)
    if not used:
        raise InputError(
            f"no labelled file is of {draft.source} or {draft.target}: say whose with --language FILE=CODE"
        )
    draft.kind = told.task or _kind(draft, used, Reading(columns=told.columns))
    draft.columns = dict(told.columns)
    task = get_task(draft.kind)
    if isinstance(task, TextTask) and draft.kind in ("sequence-classification",):
        draft.columns |= columns_for_texts(used[0].path, Reading(columns=told.columns))
    examples = {id(one): _read(draft, task, one) for one in used}
    _share_out(draft, used)
    _compare_labels(draft, task, examples)


def _kind(draft: Draft, used: Sequence[Given], how: Reading) -> str:
    may = {str(one.path): kinds_of(one.path, one.form, how) for one in used}
    first, *others = may.items()
    fitting = [kind for kind in first[1] if all(kind in kinds for _, kinds in others)]
    if not fitting:
        other = next(name for name, kinds in others if not set(kinds) & set(first[1]))
        raise InputError(
            f"{first[0]} seems to be for {first[1][0]}, and {other} for {may[other][0]}: leave one of them out, or say "
            "which task with --task KIND"
        )
    if len(fitting) > 1:
        draft.open.append(f"the task is taken for {fitting[0]}; --task {fitting[1]} says otherwise")
    return fitting[0]


def _read(draft: Draft, task: Task, one: Given) -> list[Any]:
    reports: list[RowReport] = []
    how = Reading(columns=draft.columns, language=one.language, quiet=True)
    examples = task.read([str(one.path)], how=how, reports=reports)
    one.count, one.labels = len(examples), task.labels(examples) if task.means_labels else []
    one.notices = [line.removeprefix(f"{one.path}: ") for report in reports if (line := report.line())]
    return examples


def _share_out(draft: Draft, used: Sequence[Given]) -> None:
    """Which file is for what."""
    of_source = [one for one in used if one.language == draft.source]
    of_target = [one for one in used if one.language == draft.target]
    if len(of_source) == 1 and of_source[0].part is None:
        of_source[0].part = "train"
    unsaid = [one for one in of_source if one.part is None]
    if {"train", "dev"} <= {one.part for one in of_source}:
        for one in unsaid:
            one.part = "test"
    unknown = [str(one.path) for one in of_source if one.part is None]
    if unknown:
        more = f" (and {', '.join(unknown[1:])})" if unknown[1:] else ""
        raise InputError(
            f"the name does not say whether {unknown[0]}{more} is for training, choosing or testing: say it with "
            f"--part {_quoted(unknown[0], 'train')} (or dev, or test)"
        )
    draft.train = [one for one in of_source if one.part == "train"]
    draft.dev = [one for one in of_source if one.part == "dev"]
    if not draft.train:
        raise InputError(
            f"no labelled file is for training in {draft.source}: give one, or say which with --part FILE=train and "
            "--source CODE"
        )
    by_part = {part: [one for one in of_target if (one.part or "test") == part] for part in get_args(Part)}
    of_target = by_part["test"] or by_part["dev"] or by_part["train"]
    draft.learnable = [one for one in by_part["train"] if one not in of_target]
    tests = {draft.source: [one for one in of_source if one.part == "test"], draft.target: of_target}
    draft.test = {code: own for code, own in tests.items() if own}
    uses = [
        ("training data", draft.train),
        ("dev data", draft.dev),
        *(("test data", own) for own in draft.test.values()),
    ]
    for one in used:
        use = next((name for name, own in uses if one in own), None)
        holds = f"{NAMES[one.form]}, {one.count:,} examples" + (f" with {len(one.labels)} labels" if one.labels else "")
        what = f"{use} of {one.language}: {holds}"
        if use is None:
            what = f"{holds} of {one.language}; not used: target labels are for the test, which another file is"
            if one in draft.learnable:
                what += " (a comment in the recipe says how to learn from them)"
        elif one.language == draft.target and one.part in ("train", "dev"):
            what += "; its name says another part, but target labels are only tested on"
        elif one in unsaid and one.part == "test":
            what += "; its name says no part, and others are for training and choosing"
        draft.took[str(one.path)] = "; ".join([what, *one.notices])
    if draft.target not in draft.test:
        draft.open.append(f"no labelled file is of {draft.target}: the run says nothing of the score there")
    if not draft.dev:
        draft.open.append(f"no dev data of {draft.source}: no labels choose a checkpoint")


def _compare_labels(draft: Draft, task: Task, examples: Mapping[int, list[Any]]) -> None:
    """Labels that the parts do not share: those without which a recipe cannot run are renamed, or their test waits."""
    if not task.means_labels:
        return
    known = task.labels([example for one in draft.train for example in examples[id(one)]])
    if draft.kind == "token-classification":
        draft.scheme = scheme_of(known)
    spelt = {label.casefold(): label for label in known}
    for name, held_out in (("dev", {"": draft.dev}), ("test", draft.test)):
        for language, own in list(held_out.items()):
            new = sorted({label for one in own for label in one.labels} - set(known))
            for label in new:
                if label.casefold() in spelt:
                    draft.label_map[label] = spelt[label.casefold()]
                elif draft.scheme is not None and OUTSIDE in known:
                    draft.label_map[label] = OUTSIDE
            without = [label for label in new if label not in draft.label_map]
            if not without:
                continue
            draft.proposed |= dict.fromkeys(without, "?")
            what = f"{', '.join(str(one.path) for one in own)}: training has no {', '.join(map(repr, without))}"
            draft.open.append(
                f"{what}: left out of the recipe until a label map, which is prepared there, renames them"
            )
            if name == "dev":
                draft.left_out["dev"], draft.dev = draft.dev, []
            else:
                draft.left_out[language] = draft.test.pop(language)
    tested = {label for one in draft.test.get(draft.target, []) for label in one.labels}
    if draft.scheme is not None and tested:
        types = {_type(label) for label in tested}
        draft.proposed |= {label: OUTSIDE for label in known if label != OUTSIDE and _type(label) not in types}
    if draft.label_map:
        shown = ", ".join(f"{old}={new}" for old, new in draft.label_map.items())
        draft.open.append(f"labels that training lacks are renamed in the recipe's label map: {shown}")


def _type(tag: str) -> str:
    match = PREFIXED.fullmatch(tag)
    return match[2] if match else tag
