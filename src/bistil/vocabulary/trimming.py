"""Vocabulary reduction (paper, section 3.1): cut a vocabulary to what the corpora use, and prove the rest equal.

count the corpora -> choose the tokens -> trim tokenizer, weights and configurations -> verify -> write
"""

import copy
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bistil.errors import ArtefactError, InputError
from bistil.models.cards import write_model_card
from bistil.models.complete import CompleteModel, Origin, complete
from bistil.models.families import family_of, position_limit
from bistil.models.fingerprint import encoder_digest
from bistil.models.names import model_folder
from bistil.models.sentences import form_of_model, sentence_form, write_sentence_form
from bistil.models.tokenizers import load_tokenizer, require_fast, settle, to_json, with_state
from bistil.models.writing import save_weights
from bistil.runtime.artefacts import check_product, claim, read_json, whole_folder, write_json
from bistil.runtime.documents import check_names
from bistil.runtime.insides import order_metadata
from bistil.settings.recipe import TrimSettings, to_dict
from bistil.text.sources import TextSource, as_texts
from bistil.vocabulary import weights
from bistil.vocabulary.counting import TokenCounts, count_file, counting_tokenizer, held_out_lines
from bistil.vocabulary.report import (
    DRY_RUN_THRESHOLDS,
    DryRunRow,
    Size,
    TrimReport,
    corpus_report,
    dry_run,
    model_shape,
)
from bistil.vocabulary.selection import read_keep_list, select
from bistil.vocabulary.tokenizer_state import Vocabulary, read_vocabulary, trim_state
from bistil.vocabulary.verification import (
    TextCheck,
    check_special_tokens,
    check_tokens,
    compare_outputs,
    model_batches,
    outputs,
)

logger = logging.getLogger(__name__)

MAP_FILE, REPORT_FILE = "vocabulary_map.safetensors", "trim_report.json"
# Everything else that a tokenizer saves holds the full vocabulary (sentencepiece models, vocab.txt, merges.txt).
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True, kw_only=True, eq=False)
class Counted:
    """Texts whose tokens are counted."""

    vocabulary: Vocabulary
    tokenizer: Tokenizer
    """That counted: without padding and truncation."""
    texts: Mapping[str, Sequence[TextSource]]
    corpora: dict[str, TokenCounts]

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerFast,
        texts: Mapping[str, Sequence[TextSource]],
        *,
        cache: Path | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> "Counted":
        """Count texts, per corpus.

        Args:
            cache: folder where the counts of each text are kept for the next time.
            progress: called with the number of bytes of text read after each batch.

        Raises:
            InputError: a text is missing, empty or not UTF-8, or the tokenizer is of an unknown kind.
        """
        vocabulary = read_vocabulary(json.loads(tokenizer.backend_tokenizer.to_str()))
        plain = counting_tokenizer(vocabulary)
        corpora = count_corpora(vocabulary, texts, tokenizer=plain, cache=cache, progress=progress)
        return cls(vocabulary=vocabulary, tokenizer=plain, texts=texts, corpora=corpora)

    def required(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, keep: Path | None
    ) -> dict[str, set[int]]:
        """Tokens that stay whatever the counts say, by reason."""
        return {
            "special": self.vocabulary.required["special"] | set(tokenizer.all_special_ids),
            "config": weights.fixed_ids(model, len(self.vocabulary)),
            "keep_list": read_keep_list(keep, self.vocabulary, self.tokenizer) if keep is not None else set(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """What a model's vocabulary was cut to, and what can prove that nothing else changed."""

    full: PreTrainedTokenizerFast
    state: dict[str, Any]
    """Of the trimmed tokenizer."""
    kept: np.ndarray
    """New id -> old id, ascending."""
    full_size: int
    """Tokens of the old vocabulary."""
    base: str
    """`models.fingerprint.encoder_digest` of the model before."""
    checks: dict[str, TextCheck]
    batches: list[torch.Tensor]
    """Full-vocabulary ids that ran through the model before."""
    expected: list[dict[str, torch.Tensor]]
    report: TrimReport
    """Without what `proven` adds."""

    def proven(self, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerFast) -> TrimReport:
        """The whole report, after making sure that tokens and outputs are equal.

        Args:
            model, tokenizer: the trimmed ones; as loaded again, where they were written. No model: nobody asked.

        Raises:
            ArtefactError: something is not equal.
        """
        report = changed(self.report, tokenizer_class=type(tokenizer).__name__)
        if model is None:
            return report
        problems = [problem for check in self.checks.values() for problem in check.problems]
        problems += check_special_tokens(self.full, tokenizer, self.kept)
        if problems:
            raise ArtefactError(f"trimming would change the tokenizer in {len(problems)} places: {problems[0]}")
        new_ids = [torch.from_numpy(np.searchsorted(self.kept, batch.numpy())) for batch in self.batches]
        tensors, largest = compare_outputs(self.expected, outputs(model, new_ids))
        nothing = _nothing_compared(self.checks)
        if nothing:
            return changed(report, not_verified=nothing)
        verified = {
            "unchanged_lines": sum(check.unchanged for check in self.checks.values()),
            "tensors": tensors,
            "positions": sum(batch.numel() for batch in self.batches),
            "largest_difference": largest,
        }
        return changed(report, verified=verified, not_verified=None)


def trim(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Any,
    *,
    settings: TrimSettings | None = None,
    keep: Path | None = None,
    verify: bool = True,
) -> CompleteModel:
    """A copy of a model whose vocabulary is cut to the tokens that its texts use (paper, section 3.1).

    Args:
        model: of any architecture of transformers, with or without a head; it stays as it is.
        tokenizer: its fast tokenizer; it stays as it is.
        texts: per language texts, files or a data set (`text.sources.as_texts`); or those of one language alone.
        settings: which tokens are kept; default: those with a share of 1e-6 or more.
        keep: file of tokens or words to keep besides, one a line.
        verify: make sure that lines without dropped tokens get the same tokens, hidden states and logits.

    Returns:
        The trimmed model. It brings its tokenizer and record (`models.complete`); its `bistil.facts` have the "report"
        (`TrimReport`) and what was "kept" (`Kept`).

    Raises:
        InputError: a text is missing, empty or not UTF-8, nothing reaches the threshold, or the tokenizer is of an
            unknown kind.
        ArtefactError: the model does not fit its tokenizer, or the trimmed model is not equal.
    """
    fast = require_fast(tokenizer)
    counted = Counted.of(fast, as_texts(texts if isinstance(texts, Mapping) else {"text": texts}))
    trimmed = copy.deepcopy(model)
    name = model.name_or_path or type(model).__name__
    cut = cut_vocabulary(trimmed, fast, counted, name=name, settings=settings, keep=keep, verify=verify)
    own = with_state(fast, cut.state)
    report = cut.proven(trimmed if verify else None, own)
    facts = {"report": report, "kept": Kept(torch.from_numpy(cut.kept), cut.base), "sentences": form_of_model(model)}
    return complete(trimmed, own, Origin(record=_record(report), card=_card(report), facts=facts))


def cut_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    counted: Counted,
    *,
    name: str,
    settings: TrimSettings | None = None,
    keep: Path | None = None,
    verify: bool = True,
    trimmed_before: bool = False,
) -> Cut:
    """Cut a model's vocabulary in place.

    Args:
        name: of the model, for messages and the report.
        trimmed_before: the model is the result of this very trim. All that it has stays then: text has more tokens
            under the smaller vocabulary, so each has a smaller share, and some near the threshold would be dropped.

    Raises:
        BistilError: as `trim`.
    """
    settings, vocabulary = settings or TrimSettings(), counted.vocabulary
    rows = weights.embedding_rows(model)
    weights.check_rows(name, rows, len(vocabulary))
    required = counted.required(model, tokenizer, keep)
    if trimmed_before:
        required["trimmed_before"] = set(range(len(vocabulary)))
    selection = select(vocabulary, counted.corpora, settings, required=required)
    kept, before = selection.kept, _size(model, len(vocabulary))
    state = trim_state(vocabulary, kept)
    trimmed = Tokenizer.from_str(to_json({**state, "padding": None, "truncation": None}))
    checks = _check_corpora(vocabulary, counted.tokenizer, trimmed, kept, counted.texts)

    ending = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    batches = model_batches(checks, kept, required["special"], ending=ending) if verify else []
    expected = outputs(model, batches, torch.from_numpy(kept))
    base = encoder_digest(model)
    names = weights.trim_model(model, torch.from_numpy(kept), len(vocabulary))
    corpora = {corpus: corpus_report(vocabulary, one, kept, checks[corpus]) for corpus, one in counted.corpora.items()}
    report = TrimReport(
        model=name,
        family=vocabulary.family,
        settings=to_dict(settings),
        before=before,
        after=_size(model, len(kept)),
        spare_rows=rows - len(vocabulary),
        kept=selection.reasons,
        corpora=corpora,
        missing_characters=selection.missing_characters,
        unreachable=selection.unreachable,
        tokenizer_class="",
        parameters=names,
        verified=None,
        not_verified="it was not asked for",
    )
    return Cut(
        full=tokenizer,
        state=state,
        kept=kept,
        full_size=len(vocabulary),
        base=base,
        checks=checks,
        batches=batches,
        expected=expected,
        report=report,
    )


def trim_vocabulary(
    model: str | Path,
    texts: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    settings: TrimSettings | None = None,
    keep: Path | None = None,
    verify: bool = True,
    counts: Path | None = None,
    along: Callable[[Path, TrimReport], None] | None = None,
    replace: bool = False,
    progress: Callable[[int], None] | None = None,
) -> TrimReport:
    """Write a copy of a model whose vocabulary is cut to the tokens that its corpora use.

    The output is an ordinary Hugging Face folder, with `trim_report.json` (the returned report) and
    `vocabulary_map.safetensors` (the int64 tensor `kept_ids`: new id -> old id). What was written is loaded again and
    compared before it takes its place.

    Args:
        model: checkpoint folder or hub name, of any architecture of transformers, with or without a head.
        texts: language -> text files (plain, .gz, .zst, or .counts files of earlier counting).
        keep, verify: as for `trim`.
        counts: folder where the counts of each file are kept for the next time.
        along: called with the finished model's folder, before it takes its place, and the report; what it writes there
            becomes part of the output.
        replace: an output folder of ours gives way.
        progress: called with the number of bytes of text read after each batch.

    Raises:
        InputError: as `trim`, or the output may not be written (`runtime.artefacts.claim`).
        ArtefactError: as `trim`, or the checkpoint is damaged.
    """
    settings = settings or TrimSettings()
    name = str(model_folder(str(model)))
    read = [name, keep, *(file for files in texts.values() for file in files)]
    claim(folders=[output], kept=[counts], inputs=read, force=replace)
    tokenizer = load_tokenizer(name)
    files = {corpus: [Path(file) for file in own] for corpus, own in texts.items()}
    counted = Counted.of(tokenizer, files, cache=counts, progress=progress)
    loaded, absent = weights.load_checkpoint(name)
    cut = cut_vocabulary(
        loaded, tokenizer, counted, name=str(model), settings=settings, keep=keep, verify=verify,
        trimmed_before=_trimmed_before(Path(name), settings, counted.corpora),
    )  # fmt: skip
    with whole_folder(output, replace=replace) as folder:
        _write_model(loaded, absent, name, cut.kept, cut.full_size, folder)
        weights.check_shapes(folder, loaded)
        reloaded = _write_tokenizer(tokenizer, cut.state, cut.kept, folder)
        # Parameters that the checkpoint lacks are random anew in every loaded model; for the check they are the same.
        random = {key: value for key, value in loaded.state_dict().items() if key in absent}
        del loaded
        written = None
        if verify:
            written, _ = weights.load_checkpoint(str(folder))
            written.load_state_dict(random, strict=False)
        report = cut.proven(written, reloaded)
        _write_records(report, cut, folder)
        if along is not None:
            along(folder, report)
    return report


def plan(
    model: str | Path,
    texts: Mapping[str, Sequence[Path]],
    *,
    thresholds: Sequence[float] = DRY_RUN_THRESHOLDS,
    keep_characters: bool = True,
    keep: Path | None = None,
    counts: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[DryRunRow], Size]:
    """What several thresholds would give, without reading the model's weights; and the size of the full model.

    Raises:
        InputError: as `trim_vocabulary`.
        ArtefactError: as `trim_vocabulary`.
    """
    name = str(model_folder(str(model), weights=False))
    tokenizer = load_tokenizer(name)
    files = {corpus: [Path(file) for file in own] for corpus, own in texts.items()}
    counted = Counted.of(tokenizer, files, cache=counts, progress=progress)
    blank, size = weights.blank_model(name), len(counted.vocabulary)
    shape = model_shape(name, blank, size)
    rows = dry_run(
        counted.vocabulary, counted.corpora, shape, thresholds=thresholds, keep_characters=keep_characters,
        required=counted.required(blank, tokenizer, keep),
    )  # fmt: skip
    return rows, changed(shape.size(shape.rows), tokens=size)


@dataclass(frozen=True, eq=False)
class Kept:
    """What a trimmed model kept of another one's vocabulary.

    Attributes:
        ids: new id -> old id, (vocabulary size,) int64, ascending.
        fingerprint: `models.fingerprint.encoder_digest` of the model before; None where it is not known.
    """

    ids: torch.Tensor
    fingerprint: str | None

    @classmethod
    def read(cls, folder: Path) -> "Kept":
        """Of a trimmed model's folder.

        Raises:
            ArtefactError: the folder holds no vocabulary map, or is damaged.
        """
        check_product(folder)
        try:
            with safe_open(folder / MAP_FILE, framework="pt") as stored:
                kept, facts = stored.get_tensor("kept_ids"), stored.metadata() or {}
            if kept.ndim != 1 or bool((kept.diff() < 1).any()) or bool((kept < 0).any()):
                raise ValueError("its ids do not ascend")
        except Exception as error:
            raise ArtefactError(f"{folder} is no trimmed model: {MAP_FILE} is missing or damaged ({error})") from error
        return cls(kept, facts.get("fingerprint"))

    @classmethod
    def of(cls, model: Any) -> "Kept | None":
        """Of a model in memory that `trim` made, or one made of it; None of any other."""
        made = getattr(model, "bistil", None)
        kept: Kept | None = made.facts.get("kept") if made is not None else None
        return kept


def kept_ids(folder: Path) -> torch.Tensor:
    """`Kept.ids` of a trimmed model's folder.

    Raises:
        ArtefactError: the folder holds no vocabulary map, or is damaged.
    """
    return Kept.read(Path(folder)).ids


def untrimmed_fingerprint(folder: Path) -> str | None:
    """`Kept.fingerprint` of a trimmed model's folder.

    Raises:
        ArtefactError: the folder holds no vocabulary map, or is damaged.
    """
    return Kept.read(Path(folder)).fingerprint


def count_corpora(
    vocabulary: Vocabulary,
    texts: Mapping[str, Sequence[TextSource]],
    *,
    tokenizer: Tokenizer | None = None,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, TokenCounts]:
    """Count the tokens of each corpus; the counts of its files are added up.

    Raises:
        InputError: there is no corpus, or one has no file, or a file cannot be counted.
    """
    if not texts or not all(texts.values()):
        raise InputError("no text to count: name at least one text file for each language")
    tokenizer = tokenizer or counting_tokenizer(vocabulary)
    counted: dict[str, TokenCounts] = {}
    for corpus, files in texts.items():
        for path in files:
            one = count_file(vocabulary, path, tokenizer=tokenizer, cache=cache, progress=progress)
            counted[corpus] = counted[corpus] + one if corpus in counted else one
    for corpus, one in counted.items():
        unknown = int(one.counts[vocabulary.unknown]) / one.total if vocabulary.unknown is not None else 0.0
        if unknown > 0.5:
            logger.warning(
                f"{corpus}: {unknown:.0%} of its tokens are unknown to the tokenizer, which does not fit this text"
            )
    return counted


def _trimmed_before(folder: Path, settings: TrimSettings, counted: Mapping[str, TokenCounts]) -> bool:
    """Whether a folder's model is the result of this very trim."""
    record = folder / REPORT_FILE
    if not record.is_file():
        return False
    now = {corpus: sorted(one.sources) for corpus, one in counted.items()}
    try:
        report = read_json(record)
        before = {corpus: sorted(one["sources"]) for corpus, one in report["corpora"].items()}
        return bool(report["settings"] == to_dict(settings) and before == now)
    except (InputError, AttributeError, KeyError, TypeError):  # a record of something else
        return False


def _check_corpora(
    vocabulary: Vocabulary,
    full: Tokenizer,
    trimmed: Tokenizer,
    kept: np.ndarray,
    texts: Mapping[str, Sequence[TextSource]],
) -> dict[str, TextCheck]:
    checks = {}
    for corpus, files in texts.items():
        parts = [held_out_lines(path) for path in files]
        held = any(lines and out for lines, out in parts)
        # Where one file of a corpus is long enough to hold lines out, the short ones are not checked.
        lines = [line for some, out in parts if out is held for line in some]
        checks[corpus] = check_tokens(vocabulary, full, trimmed, kept, lines, held_out=held)
    return checks


def _nothing_compared(checks: Mapping[str, TextCheck]) -> str:
    """Why the check of the tokens says nothing, though nothing was found; "" where it says something."""
    lines = sum(check.lines for check in checks.values())
    if not lines:
        return "there was no text to compare tokens on, only counts; the model's outputs are the same on random tokens"
    if not any(check.unchanged for check in checks.values()):
        return (
            f"none of the {lines:,} checked lines has known and kept tokens only; the model's outputs are the same on "
            "random tokens"
        )
    return ""


def _write_model(
    model: PreTrainedModel, absent: set[str], name: str, kept: np.ndarray, tokens: int, folder: Path
) -> None:
    # What the checkpoint lacked is random in memory; it stays lacking.
    state = {key: value for key, value in model.state_dict().items() if key not in absent} if absent else None
    save_weights(model, folder, state=state)
    source = Path(name)
    if not source.is_dir():
        return
    if (source / "generation_config.json").is_file() and not (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(source)
        weights.renumber_config(generation, kept, tokens)
        generation.save_pretrained(folder)
    # A sentence-transformers folder describes its pooling and dense modules beside the model.
    for extra in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        if (source / extra).is_file():
            shutil.copyfile(source / extra, folder / extra)
    if (source / "modules.json").is_file():
        for module in _modules(source / "modules.json"):
            if module.get("path") and (source / module["path"]).is_dir():
                shutil.copytree(source / module["path"], folder / module["path"])
    elif (form := sentence_form(source)) is not None:
        width = family_of(model).width(model.config)
        write_sentence_form(folder, form, width=width, length=position_limit(model.config))


def _modules(file: Path) -> list[dict[str, Any]]:
    """What modules.json of a sentence-transformers folder lists.

    Raises:
        ArtefactError: it lists something else.
        InputError: a module is outside of the folder.
    """
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise ArtefactError(f"{file} is no list of modules: fetch or make it again")
    check_names([one["path"] for one in modules if one.get("path")], where=str(file))
    return modules


def _write_tokenizer(
    tokenizer: PreTrainedTokenizerFast, state: dict[str, Any], kept: np.ndarray, folder: Path
) -> PreTrainedTokenizerFast:
    """Write the trimmed tokenizer and load it again."""
    new = {int(old): i for i, old in enumerate(kept)}
    known = {path.name for path in folder.iterdir()}
    tokenizer.save_pretrained(folder)
    for path in list(folder.iterdir()):
        if path.name not in known and path.name not in TOKENIZER_FILES:
            path.unlink()
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path)
    for key, value in config.items():
        if (key.endswith("_token_id") or key == "unk_id") and isinstance(value, int):
            config[key] = new[value]
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] = {
            str(new[int(i)]): token for i, token in config["added_tokens_decoder"].items()
        }
    write_json(config_path, config, inner=True)
    return settle(folder, state)


def _write_records(report: TrimReport, cut: Cut, folder: Path) -> None:
    facts = {"full_size": str(cut.full_size), "parameters": json.dumps(report.parameters), "fingerprint": cut.base}
    save_file({"kept_ids": torch.from_numpy(cut.kept)}, folder / MAP_FILE, metadata=facts)
    order_metadata(folder / MAP_FILE)
    write_json(folder / REPORT_FILE, report.to_dict())
    write_json(folder / "bistil.json", _record(report))
    write_model_card(folder, record=_record(report), **_card(report))


def _record(report: TrimReport) -> dict[str, Any]:
    return {
        "kind": "trimmed vocabulary",
        "recipe": {"trim": report.settings},
        "versions": {package: version(package) for package in ("bistil", "torch", "transformers", "tokenizers")},
        "inputs": {corpus: one.sources for corpus, one in report.corpora.items()},
        "parents": [report.model],
        "metrics": {"tokens": report.after.tokens, "parameters": report.after.parameters},
    }


def _card(report: TrimReport) -> dict[str, Any]:
    """What `models.cards.write_model_card` says of a trimmed model."""
    figures: dict[str, str | int | float] = {
        "tokens, before": report.before.tokens,
        "tokens": report.after.tokens,
        "parameters, before": report.before.parameters,
        "parameters": report.after.parameters,
    }
    for corpus, one in report.corpora.items():
        figures[f"{corpus}: tokens covered"] = f"{one.coverage:.3%}"
        if one.fertility is not None and one.trimmed_fertility is not None:
            figures[f"{corpus}: tokens per word, before and after"] = (
                f"{one.fertility:.3f}, {one.trimmed_fertility:.3f}"
            )
    return {
        "title": f"{Path(report.model).name}, vocabulary trimmed to {', '.join(report.corpora)}",
        "summary": "The same model with fewer tokens. Text of kept tokens gets the same tokens and hidden states.",
        "languages": [corpus for corpus in report.corpora if re.fullmatch("[a-z]{2,3}", corpus)],
        "base_model": report.model,
        "parent": report.model,
        "tags": ["vocabulary-trimming"],
        "metrics": figures,
    }


def _size(model: PreTrainedModel, tokens: int) -> Size:
    parameters = list(model.parameters())
    return Size(
        tokens,
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() * parameter.element_size() for parameter in parameters),
    )
