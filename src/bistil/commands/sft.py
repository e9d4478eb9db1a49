"""`bistil sft`: look at, put on, add up, compare, convert and share sparse fine-tunings."""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bistil.commands.options import Group
from bistil.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

    from bistil.sparse import SparseFineTuning


class Form(StrEnum):
    """File formats that SFTs are converted to."""

    bistil = "bistil"
    legacy = "legacy"
    shira = "shira"


OUTPUT = typer.Option(..., "--output", "-o", help="New folder to write.")
FORCE = typer.Option(False, "--force", help="Replace the output folder if bistil made it.")
FORCE_SFTS = typer.Option(False, "--force-sfts", help="Go on although an SFT was made for another base.")


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Sparse fine-tunings: inspect, merge, compose, compare, convert, push. SFTs are folders or hub names.",
        cls=Group,
        no_args_is_help=True,
    )
    group.command()(inspect)
    group.command()(merge)
    group.command()(compose)
    group.command()(compare)
    group.command()(convert)
    group.command()(push)
    app.add_typer(group, name="sft")


def inspect(
    sft: str = typer.Argument(..., help="An SFT."),
    full: bool = typer.Option(False, "--full", help="Show every parameter, instead of a sum per layer."),
) -> None:
    """Show what an SFT changes, layer by layer, and where it comes from.

    Example: bistil sft inspect sfts/sw
    """
    from rich.table import Table

    from bistil.sparse import SparseFineTuning
    from bistil.sparse.delta import SparseDelta

    loaded = SparseFineTuning.load(sft)
    origin = loaded.provenance
    console = _console()
    facts = {
        "kind": origin.kind,
        "base": origin.base,
        "base fingerprint": origin.fingerprint,
        "entries": f"{loaded.count:,} ({loaded.density:.2%})",
        "heads": ", ".join(f"{name} {tuple(value.shape)}" for name, value in loaded.dense.items()) or None,
        "seed": origin.seed,
        "made of": ", ".join(origin.parents) or None,
        **origin.metrics,
    }
    for name, value in facts.items():
        if value is not None:
            console.print(printable(f"{name}: {value}"), highlight=False, soft_wrap=True, markup=False)
    rows: dict[str, list[SparseDelta]] = {}
    for name, delta in loaded.deltas.items():
        rows.setdefault(name if full else _layer_of(name), []).append(delta)
    table = Table("parameter" if full else "layer", "entries", "share", "norm of deltas")
    for name, deltas in rows.items():
        entries, size = sum(len(one.indices) for one in deltas), sum(one.size for one in deltas)
        norm = sum(float(one.values.norm()) ** 2 for one in deltas) ** 0.5
        table.add_row(shown(name), f"{entries:,}", f"{entries / max(size, 1):.2%}", f"{norm:.3g}")
    console.print(table)


def _layer_of(parameter: str) -> str:
    """The layer that a parameter is of, such as encoder.layer.3; of others the module, such as embeddings."""
    numbered = re.match(r"(.*?\.\d+)\.", parameter)
    return numbered[1] if numbered else ".".join(parameter.split(".")[:-2]) or parameter.split(".")[0]


def merge(
    base: str = typer.Argument(..., help="The base model: a folder, a hub name, or e5-small."),
    sfts: list[str] = typer.Argument(..., help="SFTs to put on, in this order."),
    output: Path = OUTPUT,
    scale: float = typer.Option(1.0, help="Factor of all deltas; heads are taken as they are."),
    force_sfts: bool = FORCE_SFTS,
    force: bool = FORCE,
) -> None:
    """Put SFTs on a model for good and write an ordinary model folder.

    Example, a tagger for Swahili: bistil sft merge e5-small sfts/sw sfts/ner --output models/ner-sw
    """
    from bistil.runtime.artefacts import claim
    from bistil.sparse import SparseFineTuning
    from bistil.sparse.wearing import write_worn

    claim(folders=[output], inputs=[base, *sfts], force=force)
    loaded = [SparseFineTuning.load(name) for name in sfts]
    model = _model_for(base, loaded)
    for sft in loaded if not force_sfts else ():
        sft.check_base(model)
    for sft in loaded:
        (sft if scale == 1.0 else sft.scaled(scale)).merge(model)
    write_worn(
        output,
        model,
        base,
        kind="merged model",
        summary=f"`{Path(base).name}` that wears sparse fine-tunings for good.",
        made=[f"sparse fine-tuning: `{Path(name).name}`, times {scale:g}" for name in sfts],
        record={"base": base, "sparse_fine_tunings": sfts, "scale": scale},
        replace=force,
    )
    typer.echo(f"{output}: {type(model).__name__}, {sum(sft.count for sft in loaded):,} entries changed")


def compose(
    sfts: list[str] = typer.Argument(..., help="Two or more SFTs of one base."),
    output: Path = OUTPUT,
    force_sfts: bool = FORCE_SFTS,
    force: bool = FORCE,
) -> None:
    """Add SFTs up to one.

    Example: bistil sft compose sfts/sw sfts/ner --output sfts/ner-sw
    """
    from bistil.runtime.artefacts import claim
    from bistil.sparse import SparseFineTuning
    from bistil.sparse import compose as add

    claim(folders=[output], inputs=sfts, force=force)
    total = add([SparseFineTuning.load(name) for name in sfts], force=force_sfts)
    total.save(output, replace=force)
    typer.echo(f"{output}: {total.count:,} entries")


def compare(a: str = typer.Argument(..., help="An SFT."), b: str = typer.Argument(..., help="Another one.")) -> None:
    """Show how much two SFTs have in common: shared entries, overlap (Jaccard), cosine of the deltas.

    Example: bistil sft compare sfts/sw sfts/rw
    """
    from rich.table import Table

    from bistil.sparse import SparseFineTuning
    from bistil.sparse import compare as against

    whole, rows = against(SparseFineTuning.load(a), SparseFineTuning.load(b))
    table = Table("parameter", f"entries in {shown(a)}", f"entries in {shown(b)}", "shared", "overlap", "cosine")
    for row in [whole, *rows]:
        counts = (f"{row.count_a:,}", f"{row.count_b:,}", f"{row.shared:,}")
        table.add_row(shown(row.name), *counts, f"{row.overlap:.3f}", f"{row.cosine:.3f}")
    _console().print(table)


def convert(
    sft: str = typer.Argument(..., help="An SFT, a folder with a pytorch_diff.bin, or a SHiRA adapter (with --base)."),
    output: Path = OUTPUT,
    to: Form = typer.Option(Form.bistil, help="bistil, legacy (pytorch_diff.bin) or shira (PEFT)."),
    base: str | None = typer.Option(None, help="The base model; needed for SHiRA, there and back."),
    force_sfts: bool = FORCE_SFTS,
    force: bool = FORCE,
) -> None:
    """Write an SFT in another format.

    Example, a published file: bistil sft convert cambridgeltl/mbert-lang-sft-sw-small --output sfts/sw

    Example, for PEFT: bistil sft convert sfts/ner --to shira --base e5-small --output adapters/ner
    """
    from bistil.errors import InputError
    from bistil.runtime.artefacts import claim, whole_folder
    from bistil.sparse import SparseFineTuning, read_shira, write_legacy, write_shira
    from bistil.sparse.delta import RECORD
    from bistil.sparse.legacy import LEGACY_FILE

    claim(folders=[output], inputs=[sft, base], force=force)
    is_adapter = (Path(sft) / "adapter_config.json").exists()
    if (is_adapter or to is Form.shira) and base is None:
        raise InputError("SHiRA adapters do not hold their layers' shapes: name the model with --base")
    if is_adapter:
        assert base is not None
        loaded = read_shira(Path(sft), _model_for(base, []))
    else:
        loaded = SparseFineTuning.load(sft)
    if to is Form.bistil:
        loaded.save(output, replace=force)
    elif to is Form.shira:
        assert base is not None
        model = _model_for(base, [loaded])
        if not force_sfts:
            loaded.check_base(model)
        write_shira(loaded, model, output, replace=force)
    else:
        with whole_folder(output, replace=force, record=RECORD) as folder:
            write_legacy(loaded, folder / LEGACY_FILE)
    typer.echo(f"{output}: {loaded.count:,} entries")


def push(
    sft: str = typer.Argument(..., help="Folder of an SFT."),
    repository: str = typer.Argument(..., help="Hub name, OWNER/NAME; made if it does not exist."),
    private: bool = typer.Option(False, "--private", help="Make a new repository private."),
) -> None:
    """Share an SFT on the Hugging Face hub, with a card.

    Example: bistil sft push sfts/sw my-name/e5-small-lang-sft-sw
    """
    from bistil.sparse import push_to_hub

    typer.echo(push_to_hub(sft, repository, private=private))


def shown(name: str) -> str:
    """A name out of a file as a cell of a table: neither the terminal nor rich reads anything into it."""
    from rich.markup import escape

    return escape(printable(name))


def _console() -> "Console":
    """A console that does not cut parameter names where the output goes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def _model_for(base: str, sfts: "list[SparseFineTuning]") -> "PreTrainedModel":
    """The base under the head that the SFTs bring, or, without one, of the class that its folder names."""
    from bistil.errors import ArtefactError
    from bistil.models.fingerprint import resolve_names
    from bistil.models.loading import load_model, read_config
    from bistil.models.names import model_folder

    folder = model_folder(base)
    config = read_config(folder)
    with_head = [sft.provenance for sft in sfts if sft.dense and sft.provenance.kind != "language"]
    if with_head and with_head[-1].architecture:
        config.architectures = [with_head[-1].architecture]
        # Only a parser's shape tells whether it projects before its biaffine.
        projections = (v for sft in sfts for name, v in sft.dense.items() if name.startswith("project_dependents"))
        config.parser_projection = next((len(value) for value in projections), None)
        config.problem_type = with_head[-1].problem_type
    if with_head and with_head[-1].labels:
        labels = with_head[-1].labels
        config.num_labels = len(labels)
        config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    if not with_head:
        whole: PreTrainedModel = load_model(folder, config=config)[0]
        return whole
    model: PreTrainedModel
    model, made = load_model(folder, head="new", config=config)
    made -= {name for sft in sfts for name in resolve_names(model, sft.dense, what=sft.name).values()}
    if made:
        raise ArtefactError(
            f"no SFT brings the head's {sorted(made)[0]}, and {base} lacks it: fetch or make them again"
        )
    return model
