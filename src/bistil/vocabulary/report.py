"""What a trim did, as values, as JSON and as tables; and what it would do at other thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from transformers import PreTrainedModel

from bistil.runtime.artefacts import claim, whole_file
from bistil.runtime.ownership import CREATOR
from bistil.settings.recipe import TrimSettings
from bistil.vocabulary.counting import TokenCounts
from bistil.vocabulary.selection import Selection, select
from bistil.vocabulary.tokenizer_state import Vocabulary
from bistil.vocabulary.verification import TextCheck
from bistil.vocabulary.weights import check_rows, embedding_rows, vocabulary_parameters

DRY_RUN_THRESHOLDS = (1e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 1e-3)
TOP_DROPPED = 20


@dataclass(frozen=True)
class Size:
    """Size of a model: tokens of its vocabulary, parameters (tied ones once), bytes of the parameters."""

    tokens: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class ModelShape:
    """How a model's size depends on its vocabulary.

    Attributes:
        rows: rows of its embedding matrix.
        per_token: parameters per row, in embeddings and untied output matrix and bias.
        other: parameters that do not depend on the vocabulary.
        item_bytes: bytes per parameter.
    """

    rows: int
    per_token: int
    other: int
    item_bytes: float

    def size(self, tokens: int) -> Size:
        """The model's size with a vocabulary of `tokens` tokens."""
        parameters = self.other + self.per_token * tokens
        return Size(tokens, parameters, round(parameters * self.item_bytes))


@dataclass(frozen=True)
class CorpusReport:
    """One corpus under the trimmed vocabulary.

    Attributes:
        lines, words, characters, tokens: what was counted.
        sources: SHA-256 of the counted files.
        coverage: share of the counted tokens that are kept.
        top_dropped: the most frequent dropped tokens: [token, occurrences].
        checked_lines: lines encoded with both vocabularies; `held_out` says whether they were left out of the counts.
        unchanged_lines: of these, lines all of whose tokens are kept; their tokens are the same.
        fertility, trimmed_fertility: tokens per word (between white space) of the checked lines.
        unknown, trimmed_unknown: share of unknown tokens in the checked lines.
    """

    lines: int
    words: int
    characters: int
    tokens: int
    sources: list[str]
    coverage: float
    top_dropped: list[tuple[str, int]]
    checked_lines: int
    held_out: bool
    unchanged_lines: int
    fertility: float | None
    trimmed_fertility: float | None
    unknown: float | None
    trimmed_unknown: float | None


@dataclass(frozen=True)
class TrimReport:
    """What a trim did.

    Attributes:
        family: Unigram, WordPiece or BPE.
        before, after: sizes.
        spare_rows: embedding rows of the full model without a token; they are dropped.
        kept: reason -> tokens kept for it and for no reason before it.
        corpora: corpus -> report.
        missing_characters: characters of the corpora that lack a kept token of their own (in WordPiece, one at the
            start of a word and one inside); only they can make more unknown tokens than the full vocabulary does.
        unreachable: kept BPE tokens that merging never builds, in the full vocabulary either.
        tokenizer_class: the class that loads the trimmed tokenizer.
        parameters: names of the trimmed parameters.
        verified: what was compared, or None: tensors, largest_difference (0.0: bit-equal), unchanged_lines.
        not_verified: why that is None.
    """

    model: str
    family: str
    settings: dict[str, Any]
    before: Size
    after: Size
    spare_rows: int
    kept: dict[str, int]
    corpora: dict[str, CorpusReport]
    missing_characters: list[str]
    unreachable: list[str]
    tokenizer_class: str
    parameters: list[str]
    verified: dict[str, Any] | None
    not_verified: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in `trim_report.json`."""
        return {"format": 1, **asdict(self)}

    def tables(self) -> list[Table]:
        """The report for a terminal."""
        size = Table(title=f"{self.model}: {self.family} vocabulary")
        for heading in ("", "before", "after", "left"):
            size.add_column(heading, justify="left" if not heading else "right")
        for name in ("tokens", "parameters", "bytes"):
            old, new = getattr(self.before, name), getattr(self.after, name)
            size.add_row(name, f"{old:,}", f"{new:,}", f"{new / old:.1%}")
        corpora = Table(title="corpora")
        for heading in (
            "corpus",
            "tokens",
            "coverage",
            "lines unchanged",
            "tokens per word",
            "unknown",
            "most dropped",
        ):
            corpora.add_column(heading, justify="left" if heading in ("corpus", "most dropped") else "right")
        for name, one in self.corpora.items():
            corpora.add_row(
                name,
                f"{one.tokens:,}",
                f"{one.coverage:.3%}",
                f"{one.unchanged_lines:,}/{one.checked_lines:,}",
                _change(one.fertility, one.trimmed_fertility, "{:.3f}"),
                _change(one.unknown, one.trimmed_unknown, "{:.3%}"),
                " ".join(token for token, _ in one.top_dropped[:3]),
            )
        return [size, corpora]


def _change(before: float | None, after: float | None, form: str) -> str:
    return "-" if before is None or after is None else f"{form.format(before)} → {form.format(after)}"


def corpus_report(vocabulary: Vocabulary, counts: TokenCounts, kept: np.ndarray, check: TextCheck) -> CorpusReport:
    """Put together what is known of one corpus."""
    dropped = counts.counts.copy()
    dropped[kept] = 0
    top = [int(i) for i in np.argsort(-dropped, kind="stable")[:TOP_DROPPED] if dropped[i] > 0]
    return CorpusReport(
        lines=counts.lines,
        words=counts.words,
        characters=counts.characters,
        tokens=counts.total,
        sources=list(counts.sources),
        coverage=1.0 - int(dropped.sum()) / counts.total,
        top_dropped=[(vocabulary.tokens[i], int(dropped[i])) for i in top],
        checked_lines=check.lines,
        held_out=check.held_out,
        unchanged_lines=check.unchanged,
        fertility=check.tokens / check.words if check.words else None,
        trimmed_fertility=check.trimmed_tokens / check.words if check.words else None,
        unknown=check.unknown / check.tokens if check.tokens else None,
        trimmed_unknown=check.trimmed_unknown / check.trimmed_tokens if check.trimmed_tokens else None,
    )


def model_shape(name: str, model: PreTrainedModel, tokens: int) -> ModelShape:
    """The shape of a model, which may be on the meta device.

    Raises:
        ArtefactError: it has fewer embedding rows than its tokenizer has tokens.
    """
    rows = embedding_rows(model)
    check_rows(name, rows, tokens)
    trimmed = {id(parameter): parameter for parameter in vocabulary_parameters(model).values()}
    per_token = sum(parameter.numel() // rows for parameter in trimmed.values())
    everything = list(model.parameters())
    count = sum(parameter.numel() for parameter in everything)
    size = sum(parameter.numel() * parameter.element_size() for parameter in everything)
    return ModelShape(rows, per_token, count - per_token * rows, size / count)


@dataclass(frozen=True)
class DryRunRow:
    """What one threshold would give."""

    threshold: float
    size: Size
    coverage: dict[str, float]
    selection: Selection


def dry_run(
    vocabulary: Vocabulary,
    counts: Mapping[str, TokenCounts],
    shape: ModelShape,
    *,
    thresholds: Sequence[float] = DRY_RUN_THRESHOLDS,
    keep_characters: bool = True,
    required: Mapping[str, set[int]] | None = None,
) -> list[DryRunRow]:
    """Sizes for several thresholds, from one set of counts.

    Raises:
        InputError: the highest threshold keeps no token.
    """
    rows = []
    for threshold in sorted(thresholds):
        settings = TrimSettings(threshold=threshold, keep_characters=keep_characters)
        selection = select(vocabulary, counts, settings, required=required)
        coverage = {name: int(one.counts[selection.kept].sum()) / one.total for name, one in counts.items()}
        rows.append(DryRunRow(threshold, shape.size(len(selection.kept)), coverage, selection))
    return rows


def dry_run_table(rows: Sequence[DryRunRow], full: Size) -> Table:
    """Sizes for a terminal, with bars."""
    table = Table(
        title=f"vocabulary by threshold (full: {full.tokens:,} tokens, {full.parameters / 1e6:.1f}M parameters)"
    )
    for heading in ("threshold", "tokens", "parameters", "MB", *rows[0].coverage):
        table.add_column(heading, justify="right")
    table.add_column("size")
    for row in rows:
        share = row.size.parameters / full.parameters
        table.add_row(
            f"{row.threshold:g}",
            f"{row.size.tokens:,}",
            f"{row.size.parameters / 1e6:.1f}M",
            f"{row.size.bytes / 1e6:.1f}",
            *(f"{share_:.3%}" for share_ in row.coverage.values()),
            "█" * max(1, round(10 * share)) + f" {share:.0%}",
        )
    return table


def draw_dry_run(rows: Sequence[DryRunRow], path: Path, *, form: str, replace: bool = False) -> None:
    """Draw size and coverage against the threshold, in the format svg, png or pdf.

    Args:
        replace: an earlier drawing of ours gives way.

    Raises:
        InputError: something else is there, or a drawing and `replace` is false.
    """
    from matplotlib.figure import Figure

    claim(files=[path], force=replace)

    figure = Figure(figsize=(7, 4), layout="constrained")
    sizes = figure.subplots()
    thresholds = [row.threshold for row in rows]
    sizes.plot(thresholds, [row.size.parameters / 1e6 for row in rows], marker="o", color="black", label="parameters")
    sizes.set(xscale="log", xlabel="unigram probability threshold", ylabel="parameters (millions)", ylim=(0, None))
    shares = sizes.twinx()
    for name in rows[0].coverage:
        shares.plot(
            thresholds, [100 * row.coverage[name] for row in rows], marker=".", linestyle="--", label=f"{name}, covered"
        )
    shares.set_ylabel("tokens covered (%)")
    # The curves of both axes; the size's would be missing from either legend.
    lines = [*sizes.get_lines(), *shares.get_lines()]
    shares.legend(lines, [str(line.get_label()) for line in lines], loc="lower left")
    with whole_file(path, replace=replace) as partial:
        figure.savefig(partial, format=form, metadata={"Software" if form == "png" else "Creator": CREATOR})
