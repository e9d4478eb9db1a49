"""`bistil trim`: cut a model's vocabulary to what some languages use."""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bistil.commands.options import FORCE, Table, takes
from bistil.errors import InputError
from bistil.settings.recipe import TrimSettings, parse

if TYPE_CHECKING:
    from bistil.sparse import SparseFineTuning
    from bistil.vocabulary import TrimReport
    from bistil.vocabulary.coverage import TextCoverage

logger = logging.getLogger(__name__)

_LABELLED = re.compile(r"([\w-]{1,20})=(.+)", re.DOTALL)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    @takes(values=Table(TrimSettings, assignable=True))
    def trim(
        model: Annotated[str, typer.Option("--model", "-m", help="Model folder, hub name, or e5-small.")],
        text: Annotated[
            list[str],
            typer.Option(
                help="Text file, one sentence a line (plain, .gz, .zst, or .counts of an earlier run), alone or as "
                "LANGUAGE=FILE; give it again for each language."
            ),
        ],
        output: Annotated[Path | None, typer.Option("--output", "-o", help="New folder for the trimmed model.")] = None,
        verify: Annotated[
            bool, typer.Option(help="Prove on held-out lines that tokens, hidden states and logits are the same.")
        ] = True,
        counts: Annotated[
            Path | None, typer.Option(help="Folder of token counts: a text counted before is not counted again.")
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Only show the size that several thresholds would give.")
        ] = False,
        plot: Annotated[Path | None, typer.Option(help="Also draw the dry run: .svg, .png or .pdf.")] = None,
        sft: Annotated[
            list[Path] | None,
            typer.Option(help="Sparse fine-tuning of the model, trimmed along to OUTPUT/sft/NAME; may be repeated."),
        ] = None,
        check: Annotated[
            list[Path] | None,
            typer.Option(
                help="Plain or labelled file that the model is to read: whether the trimmed vocabulary fits it. "
                "May be repeated."
            ),
        ] = None,
        force: bool = FORCE,
        *,
        values: dict[str, Any],
    ) -> None:
        """Cut a model's vocabulary to what some languages use, and prove that nothing else changed.

        Example: bistil trim --model xlm-roberta-base --text eng=english.txt --text swa=swahili.txt.gz
        --output xlmr-eng-swa

        Add --dry-run, without --output, to see sizes first.
        """
        settings = parse(TrimSettings, values, "bistil trim")
        keep = Path(settings.keep) if settings.keep else None
        settings = replace(settings, keep=None)
        if plot is not None and (not dry_run or plot.suffix not in (".svg", ".png", ".pdf")):
            raise InputError("--plot draws a --dry-run to a file that ends in .svg, .png or .pdf")
        if check and dry_run:
            raise InputError("--check looks at what a trim gives: leave out --dry-run")
        texts = parse_texts(text)
        if dry_run:
            _dry_run(model, texts, settings, keep=keep, counts=counts, plot=plot, replace=force)
        elif output is None:
            raise InputError("--output is missing: name a new folder, or add --dry-run to see sizes only")
        else:
            _trim(
                model, texts, output, settings, keep=keep, verify=verify, counts=counts, sft=sft or [],
                checked=check or [], replace=force,
            )  # fmt: skip


def parse_texts(arguments: list[str]) -> dict[str, list[Path]]:
    """`["eng=a.txt", "b.txt"]` as `{"eng": [a.txt], "b": [b.txt]}`: without a language a file is its own corpus.

    Raises:
        InputError: a file does not exist.
    """
    texts: dict[str, list[Path]] = {}
    for argument in arguments:
        labelled = None if Path(argument).is_file() else _LABELLED.fullmatch(argument)
        path = Path(labelled[2]) if labelled else Path(argument)
        if not path.is_file():
            raise InputError(f"--text {argument}: no such file")
        texts.setdefault(labelled[1] if labelled else path.name.split(".")[0], []).append(path)
    return texts


def _trim(
    model: str,
    texts: dict[str, list[Path]],
    output: Path,
    settings: TrimSettings,
    *,
    keep: Path | None,
    verify: bool,
    counts: Path | None,
    sft: list[Path],
    checked: list[Path],
    replace: bool,
) -> None:
    from rich.console import Console

    from bistil.runtime.artefacts import claim
    from bistil.vocabulary import trim_vocabulary
    from bistil.vocabulary.progress import counting_progress

    read = [model, keep, *(file for files in texts.values() for file in files), *sft, *checked]
    claim(folders=[output], kept=[counts], inputs=read, force=replace)
    # An SFT that belongs to another model is refused before anything is written, and so is a file that cannot be read.
    tunings = _load_tunings(model, sft)
    asked = _read_checked(checked)
    coverage: dict[str, TextCoverage] = {}

    def along(folder: Path, report: "TrimReport") -> None:
        _trim_tunings(folder, report, tunings=tunings, output=output)
        coverage.update(_cover(model, folder, asked))

    with counting_progress([path for files in texts.values() for path in files]) as progress:
        report = trim_vocabulary(
            model,
            texts,
            output,
            settings=settings,
            keep=keep,
            verify=verify,
            counts=counts,
            along=along,
            replace=replace,
            progress=progress,
        )
    console = Console()
    for table in report.tables():
        console.print(table)
    _say_coverage(coverage, settings, output, keep)
    if report.missing_characters:
        sample = " ".join(report.missing_characters[:20])
        console.print(f"{len(report.missing_characters)} characters have no token of their own: {sample}")
    if report.unreachable:
        console.print(f"{len(report.unreachable)} kept tokens are built by no merges: {report.unreachable[:10]}")
    if report.verified is None:
        console.print(f"not verified: {report.not_verified}")
    elif report.verified["largest_difference"] == 0.0:
        console.print(
            f"verified: {report.verified['unchanged_lines']:,} lines of kept tokens get the same tokens; "
            f"{report.verified['tensors']} tensors of hidden states and logits are equal in every bit"
        )
    else:
        console.print(
            f"verified: same tokens; outputs differ by rounding, by {report.verified['largest_difference']:.1e} at most"
        )
    console.print(f"written to {output}")


def _read_checked(files: list[Path]) -> dict[str, tuple[list[str], int]]:
    """Texts of files, some of them where there are many, and how many there are."""
    if not files:
        return {}
    from bistil.drafting.forms import texts_of_file
    from bistil.vocabulary.coverage import drawn

    names = [file.name for file in files]
    return {
        file.name if names.count(file.name) == 1 else str(file): drawn(texts_of_file(file), seed=0)
        for file in dict.fromkeys(files)
    }


def _cover(model: str, folder: Path, asked: Mapping[str, tuple[list[str], int]]) -> "dict[str, TextCoverage]":
    """Compare the model's vocabulary with that of the trimmed model's folder, and leave there what was found."""
    if not asked:
        return {}
    from bistil.models.tokenizers import load_tokenizer, read_tokenizer
    from bistil.runtime.artefacts import write_json
    from bistil.vocabulary.coverage import MISSING, TokenizerPair, missing_files, write_missing

    both = TokenizerPair(load_tokenizer(model), read_tokenizer(folder, str(folder)))
    found = {name: both.of(texts, of=count) for name, (texts, count) in asked.items()}
    write_json(
        folder / "coverage.json", {"format": 1, "files": {name: asdict(one.coverage) for name, one in found.items()}}
    )
    files = {name: one.coverage for name, one in found.items()}
    if missing_files(files):
        (folder / MISSING).mkdir()
        write_missing(found, folder / MISSING)
    return files


def _say_coverage(
    coverage: "Mapping[str, TextCoverage]", settings: TrimSettings, output: Path, keep: Path | None
) -> None:
    """A table of the files that were asked about, and a line for each that loses."""
    if not coverage:
        return
    from rich.console import Console

    from bistil.vocabulary.coverage import MISSING, coverage_table, loss_line, missing_files

    Console().print(coverage_table(coverage))
    for name, file in missing_files(coverage).items():
        where = output / MISSING / file
        how = f"--keep {where}" if keep is None else f"the lines of {where} in {keep} too"
        logger.warning(loss_line(name, coverage[name], settings=settings, keep=f"{how}, with another --output"))


def _load_tunings(model: str, folders: list[Path]) -> "dict[str, SparseFineTuning]":
    if not folders:
        return {}
    from bistil.models.names import model_folder
    from bistil.sparse import SparseFineTuning
    from bistil.vocabulary.weights import load_checkpoint

    base, _ = load_checkpoint(str(model_folder(model)))
    tunings = {folder.resolve().name: SparseFineTuning.load(folder, base=base) for folder in folders}
    if len(tunings) < len(folders):
        raise InputError("two of the --sft folders have the same name: rename one")
    return tunings


def _trim_tunings(folder: Path, report: "TrimReport", *, tunings: "dict[str, SparseFineTuning]", output: Path) -> None:
    """Trim SFTs along and write them to `sft/NAME` in the trimmed model's folder, which will be called `output`.

    An SFT may name the parameters with one row per token with or without the prefix of the encoder.
    """
    if not tunings:
        return
    from bistil.vocabulary import kept_ids
    from bistil.vocabulary.weights import load_checkpoint

    base, _ = load_checkpoint(str(folder))
    base.name_or_path = str(output)
    rows = report.before.tokens + report.spare_rows
    for name, tuning in tunings.items():
        shapes = {key: delta.shape for key, delta in tuning.deltas.items()}
        shapes |= {key: tuple(value.shape) for key, value in tuning.dense.items()}
        by_token = [
            key
            for key, shape in shapes.items()
            if shape[:1] == (rows,) and any(key.endswith(own) or own.endswith(key) for own in report.parameters)
        ]
        tuning.trimmed(kept_ids(folder), by_token, base=base).save(folder / "sft" / name)


def _dry_run(
    model: str,
    texts: dict[str, list[Path]],
    settings: TrimSettings,
    *,
    keep: Path | None,
    counts: Path | None,
    plot: Path | None,
    replace: bool,
) -> None:
    from rich.console import Console

    from bistil.runtime.artefacts import claim
    from bistil.vocabulary.progress import counting_progress
    from bistil.vocabulary.report import draw_dry_run, dry_run_table
    from bistil.vocabulary.trimming import plan

    read = [model, keep, *(file for files in texts.values() for file in files)]
    claim(files=[plot], kept=[counts], inputs=read, force=replace)
    with counting_progress([path for files in texts.values() for path in files]) as progress:
        rows, full = plan(
            model, texts, keep_characters=settings.keep_characters, keep=keep, counts=counts, progress=progress
        )
    Console().print(dry_run_table(rows, full))
    if plot is not None:
        draw_dry_run(rows, plot, form=plot.suffix[1:], replace=replace)
        Console().print(f"drawn in {plot}")
