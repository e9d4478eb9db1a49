"""The demo is a recipe like any other, short or whole, on data that it first writes into the user's cache."""

from dataclasses import replace
from pathlib import Path

from bistil.demo.data import prepare_demo_data, write_prepared
from bistil.method import run_recipe
from bistil.pretrained import cache_folder
from bistil.report.schema import Summary
from bistil.runs.folder import check_run_folder
from bistil.runtime.process import cores
from bistil.settings.recipe import Recipe, load_recipe

# Phase 1 and the task teacher side by side, then students: more has nothing to do.
JOBS = 2
RECIPE, FULL = (Path(__file__).with_name(name) for name in ("recipe.toml", "full.toml"))


def demo_recipe(*, seed: int, full: bool = False) -> Recipe:
    """The demo's recipe with its data in place; the seed draws the English sets as well as the training.

    Args:
        full: the method whole: two students, and sparse fine-tuning.

    Raises:
        MissingExtraError: the packages of the extra `demo` are not installed.
    """
    folder = cache_folder() / "demo" / f"seed-{seed}"
    prepare_demo_data(folder, target="it", seed=seed)
    # Beside the data, so that the copy is a recipe that runs, and a start for one's own.
    recipe = FULL if full else RECIPE
    write_prepared(folder / recipe.name, recipe.read_text(encoding="utf-8"))
    return replace(load_recipe(folder / recipe.name), seed=seed)


def run_demo(output: Path, *, seed: int = 0, jobs: int | None = None, full: bool = False) -> Summary:
    """Carry out the demo in an output folder; goes on where an earlier call stopped.

    Args:
        full: see `demo_recipe`.
        jobs: stages side by side; none: `JOBS`, or one on a single core.

    Raises:
        BistilError: as `run_recipe`.
    """
    check_run_folder(output)
    return run_recipe(demo_recipe(seed=seed, full=full), output, jobs=jobs or min(JOBS, cores()))
