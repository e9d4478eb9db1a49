"""The card that goes with a shared SFT."""

from pathlib import Path

from huggingface_hub import ModelCardData

from bistil.sparse.delta import Parts


def card(sft: Parts, *, folder: Path) -> str:
    """A model card in Markdown with the hub's metadata block."""
    origin = sft.provenance
    base = origin.base or "unknown"
    # The hub links to the base by its hub name; a local path would be refused.
    linked = origin.base and origin.base.count("/") <= 1 and not Path(origin.base).exists()
    base = base if linked else Path(base).name
    metadata = ModelCardData(
        library_name="bistil",
        tags=["sparse-fine-tuning", f"{origin.kind}-sft"],
        base_model=origin.base if linked else None,
    )
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    lines = [
        "---",
        metadata.to_yaml(),
        "---",
        f"# Sparse fine-tuning ({origin.kind})",
        "",
        f"A sparse difference to `{base}`: {sft.count:,} entries ({sft.density:.2%} of those that could be chosen), "
        f"{size / 1e6:.1f} MB. Heads stored whole: {', '.join(f'`{n}`' for n in sft.dense) or 'none'}.",
        "",
        "```python",
        "from bistil.sparse import SparseFineTuning",
        "",
        'sft = SparseFineTuning.load("FOLDER-OR-HUB-NAME", base=model)',
        "with sft.applied(model):",
        "    model(**batch)",
        "```",
        "",
        "Method: LT-SFT (Ansell et al., Composable Sparse Fine-Tuning for Cross-Lingual Transfer, ACL 2022).",
        "",
        "| | |",
        "| --- | --- |",
        f"| base fingerprint | `{origin.fingerprint or 'unknown'}` |",
        f"| seed | {origin.seed} |",
        *(f"| {name} | {value} |" for name, value in origin.metrics.items()),
        *(f"| origin | {how} |" for how in origin.parents),
        "",
    ]
    return "\n".join(lines)
