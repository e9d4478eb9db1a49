"""The studies' files under benchmarks/transfer, read by the script that runs them."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
STUDIES = sorted(file for file in (BENCHMARKS / "transfer").glob("*.toml") if file.stem != "variants")


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_has_the_rows_of_all_studies_and_its_own(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import transfer
    import transfer_figure

    study = transfer.Study(file, Path("data"), tmp_path)
    variants = study.settings.variants
    assert study.settings.name == file.stem
    assert set(transfer_figure.SHOWN) <= set(variants)
    assert {group for variant in variants.values() for group in variant.groups} <= set(study.settings.groups)
    assert study.phase1_folder("all", 1) != study.phase1_folder("all", 4)
    # Rows with and without target text differ in nothing else.
    for name, variant in variants.items():
        if variant.target_text and (twin := variants.get(name.removesuffix(", target text"))):
            assert (twin.phase1_length, twin.epochs, twin.seeds) == (
                variant.phase1_length,
                variant.epochs,
                variant.seeds,
            )
