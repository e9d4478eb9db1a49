"""The lengths of a recipe's trainings, out of a budget of time; fixed once, when a run's folder is made.

The rule (docs/plan.md): the recipe's own lengths are the proportions. One factor makes all trainings longer or shorter
so that the forecast of the whole run is the budget. No training is cut below `LEAST_STEPS` (or its own length, if that
is shorter); fine-tunings and language adaptations grow to `MOST_TIMES` their own length at most, for more passes over
the same labels teach little, and phase 1 takes what is left, up to `MOST_PHASE1_STEPS`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path
from typing import Any

from bistil.errors import ArtefactError, InputError, RecipeError
from bistil.runs.forecast import Forecaster
from bistil.runs.stage import Stage
from bistil.runtime.artefacts import read_sealed, write_sealed
from bistil.settings.durations import rough_duration, seconds_of
from bistil.settings.recipe import Recipe

logger = logging.getLogger(__name__)

LENGTHS = "lengths.json"
"""In a run's folder: what its budget came to."""
LEAST_STEPS, MOST_TIMES, MOST_PHASE1_STEPS = 100, 2.0, 200_000
# Where the lengths are, per table of a recipe; language adaptation has no table of a training's own lengths.
_OF_TRAINING = ("steps", "epochs", "least_steps", "most_steps", "warmup_steps")
_OF_SPARSE = ("dense_steps", "dense_epochs", "sparse_steps", "sparse_epochs")
_PLACES = {
    "language": (("", ("steps",)), ("training", ("warmup_steps",))),
    "phase1": (("training", _OF_TRAINING),),
    "finetune": (("training", _OF_TRAINING), ("sparse", _OF_SPARSE)),
    "phase2": (("training", _OF_TRAINING), ("sparse", _OF_SPARSE)),
}

Lengths = dict[str, dict[str, dict[str, Any]]]
"""Per table of a recipe and table within it, the numbers that say how long a training is."""
Groups = Mapping[str, Sequence[Stage[Any]]]
"""The stages of a run by the table that says how long their trainings are; "" for all others."""


@dataclass(frozen=True)
class Fixed:
    """What a budget came to.

    Attributes:
        budget: in seconds.
        own: lengths that the recipe says.
        lengths: those that it gets.
    """

    budget: float
    own: Lengths
    lengths: Lengths

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with these lengths."""
        return _with_lengths(recipe, self.lengths)


def fix_lengths(recipe: Recipe, groups: Callable[[Recipe], Groups], output: Path | None) -> Fixed:
    """The lengths that a recipe's budget comes to: those that the run's folder has, else by the rule.

    Other budgets or lengths in the recipe than those of the folder are fixed anew. Nothing is written.

    Args:
        groups: the stages that a recipe means.
        output: the run's folder, if there is one.

    Raises:
        RecipeError: the budget is too small for the shortest trainings that are worth it.
        InputError: the folder's lengths are damaged.
    """
    assert recipe.budget is not None
    budget = seconds_of(recipe.budget)
    forecaster = Forecaster()
    recipe = _with_language_steps(recipe, groups, forecaster)
    own = _lengths(recipe)
    known = _read(output)
    if known is not None and known.budget == budget and known.own == own:
        return known
    return Fixed(budget, own, _lengths(_fitted(recipe, budget, groups, forecaster)))


def keep_lengths(fixed: Fixed, output: Path) -> None:
    """Write lengths into a run's folder."""
    write_sealed(output / LENGTHS, vars(fixed))


def _read(output: Path | None) -> Fixed | None:
    if output is None or not (output / LENGTHS).is_file():
        return None
    try:
        found = read_sealed(output / LENGTHS)
        return Fixed(float(found["budget"]), found["own"], found["lengths"])
    except (ArtefactError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{output / LENGTHS} is damaged, so it is not known how long this run's trainings are: remove it to fix "
            "them anew, or give the lengths in the recipe and no budget"
        ) from None


def _fitted(recipe: Recipe, budget: float, groups: Callable[[Recipe], Groups], forecaster: Forecaster) -> Recipe:
    """The recipe whose forecast is the budget."""
    bounds = _bounds(groups(recipe), forecaster)

    def scaled(factor: float) -> Recipe:
        within = {table: min(max(factor, low), high) for table, (low, high) in bounds.items()}
        lengths = _lengths(recipe)
        return _with_lengths(
            recipe, {table: _times(lengths[table], one) for table, one in within.items() if table in lengths}
        )

    def seconds(factor: float) -> float:
        stages = [stage for group in groups(scaled(factor)).values() for stage in group]
        return forecaster.forecast(stages).seconds

    low, high = (
        min((low for low, _ in bounds.values()), default=1),
        max((high for _, high in bounds.values()), default=1),
    )
    least = seconds(low)
    if least > budget:
        raise RecipeError(
            f"budget is {recipe.budget}, but this run takes about {rough_duration(least)} with its trainings as short "
            f"as is worth it ({LEAST_STEPS} steps): give at least that, or fewer students or rows of [compare]"
        )
    if seconds(high) <= budget:
        return scaled(high)
    for _ in range(24):
        middle = exp((log(low) + log(high)) / 2)
        low, high = (middle, high) if seconds(middle) <= budget else (low, middle)
    return scaled(low)


def _bounds(groups: Groups, forecaster: Forecaster) -> dict[str, tuple[float, float]]:
    """Per table, the least and greatest factor of its lengths."""
    found = {}
    for table, stages in groups.items():
        steps = [loop.steps for stage in stages for loop in forecaster.cost(stage).trainings]
        if table and steps:
            most = max(1.0, MOST_PHASE1_STEPS / max(steps)) if table == "phase1" else MOST_TIMES
            found[table] = (min(1.0, LEAST_STEPS / min(steps)), most)
    return found


def _with_language_steps(recipe: Recipe, groups: Callable[[Recipe], Groups], forecaster: Forecaster) -> Recipe:
    """The recipe with a number of steps for language adaptation, which otherwise follows from each language's text."""
    if recipe.language is None or recipe.language.steps is not None:
        return recipe
    costs = [forecaster.cost(stage) for stage in groups(recipe).get("language", ())]
    steps = max((loop.steps for cost in costs for loop in cost.trainings), default=1)
    return replace(recipe, language=replace(recipe.language, steps=steps))


# Lengths in a recipe


def _tables(recipe: Recipe) -> Iterator[tuple[str, str, tuple[str, ...], Any]]:
    """Every table with lengths: its own name, that of the table within it, their names, and the settings."""
    for table, places in _PLACES.items():
        for inner, names in places:
            outer = getattr(recipe, table)
            settings = outer if not inner or outer is None else getattr(outer, inner)
            if settings is not None:
                yield table, inner, names, settings


def _lengths(recipe: Recipe) -> Lengths:
    """The lengths that a recipe says."""
    found: Lengths = {}
    for table, inner, names, settings in _tables(recipe):
        given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
        found.setdefault(table, {})[inner] = given
    return found


def _with_lengths(recipe: Recipe, lengths: Lengths) -> Recipe:
    """A recipe with other lengths."""
    changed: dict[str, Any] = {}
    for table, inner, _, settings in _tables(recipe):
        new = replace(settings, **lengths.get(table, {}).get(inner, {}))
        outer = changed.get(table, getattr(recipe, table))
        changed[table] = (
            replace(outer, **{inner: new}) if inner else replace(outer, **lengths.get(table, {}).get("", {}))
        )
    return replace(recipe, **changed)


def _times(lengths: dict[str, dict[str, Any]], factor: float) -> dict[str, dict[str, Any]]:
    """Lengths of a table, so many times as long."""
    return {inner: {name: _longer(name, one, factor) for name, one in own.items()} for inner, own in lengths.items()}


def _longer(name: str, value: float, factor: float) -> float:
    """A length, so many times as long: epochs to four digits, steps as whole numbers; a share stays a share."""
    if name == "warmup_steps":
        return value if value < 1 else float(max(1, round(value * factor)))
    return float(f"{value * factor:.4g}") if name.endswith("epochs") else max(1, round(value * factor))
