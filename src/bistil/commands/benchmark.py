"""`bistil benchmark`: what models cost, side by side."""

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("benchmark")(run)


def run(
    model: list[str] = typer.Option(
        ...,
        "--model",
        "-m",
        help="Folder of a model, exported or not, hub name or e5-small; repeat it to compare. NAME=FOLDER gives it "
        "a name.",
    ),
    text: Path | None = typer.Option(
        None, help="Text file, one sentence per line (plain or .gz). Default: random tokens, --max-length of them."
    ),
    output: Path | None = typer.Option(None, "--output", "-o", help="Also write the record to this JSON file."),
    examples: int = typer.Option(50, help="Sentences to run per round, the first non-empty ones of the file."),
    rounds: int = typer.Option(7, help="Rounds over all models, after a warm-up."),
    max_length: int | None = typer.Option(
        None, help="Longer sentences are cut to this many tokens.  [default: 128]", show_default=False
    ),
    length: list[int] = typer.Option(
        [32, 128], help="Also measure batch 1 at exactly this many tokens; repeatable; 0: none."
    ),
    batch_size: list[int] = typer.Option(
        [], help="Also measure examples per second in batches of this size; repeat it to find the best."
    ),
    threads: int | None = typer.Option(None, help="CPU threads of all engines. Default: as many as PyTorch takes."),
    memory: bool = typer.Option(False, "--memory", help="Also measure the peak memory of loading, in fresh processes."),
    plot: Path | None = typer.Option(None, help="Also draw size against time: .svg, .png or .pdf."),
    force: bool = typer.Option(False, "--force", help="Replace the record if bistil made it."),
) -> None:
    """Measure parameters, bytes, time, throughput, memory, FLOPs and energy of models side by side, on the CPU.

    The first model is the reference of the speed ratios.

    Example: bistil benchmark --model runs/demo/teacher --model runs/demo/students/lrf2 --text sentences.txt
    """
    from bistil.errors import InputError
    from bistil.measuring.benchmark import MOST_TOKENS, benchmark, cost_record
    from bistil.report.costs import FORMATS, draw_costs
    from bistil.report.table import print_benchmark
    from bistil.runtime.artefacts import claim, write_json
    from bistil.runtime.progress import Progress
    from bistil.text.lines import read_sentences

    claim(files=[output, plot], inputs=[text, *(given.partition("=")[2] or given for given in model)], force=force)
    if plot is not None and plot.suffix[1:] not in FORMATS:
        raise InputError(f"--plot {plot}: name a file that ends in .svg, .png or .pdf")
    folders: dict[str, Path] = {}
    for given in model:
        name, folder = _named(given, taken=folders)
        folders[name] = folder
    texts = None if text is None else read_sentences([text])
    with Progress("benchmark", total=rounds) as progress:
        rows = benchmark(
            folders,
            texts=texts,
            examples=examples,
            rounds=rounds,
            max_length=max_length,
            batch_size=batch_size or None,
            lengths=[] if length == [0] else length,
            threads=threads,
            memory=memory,
            progress=progress.note,
        )
    print_benchmark(list(rows.values()))
    record = cost_record(rows, texts=str(text) if text else f"random tokens, {max_length or MOST_TOKENS} per example")
    machine = record["machine"]
    flags = ", ".join(machine["flags"]) if machine["flags"] else "unknown"
    typer.echo(f"processor: {machine['processor']}, {machine['cores']} cores; instructions: {flags}")
    if not machine["energy_counters"]:
        typer.echo("energy: no counter of the processor can be read here; processor time is above")
    if output is not None:
        write_json(output, record, replace=force)
        print(f"record: {output}")
    if plot is not None:
        draw_costs(list(rows.values()), plot, replace=force)
        print(f"picture: {plot}")


def _named(given: str, *, taken: dict[str, Path]) -> tuple[str, Path]:
    """Name and folder of `NAME=MODEL`, or of a model alone, which is then called by the last part of its path."""
    from bistil.errors import InputError
    from bistil.models.names import model_folder

    name, equals, place = given.partition("=")
    if not equals:
        name, place = Path(given).resolve().name if Path(given).exists() else given, given
    if name in taken:
        raise InputError(f"two models are called {name!r}: write one as NAME={place}")
    return name, Path(model_folder(place))
