"""What a study consists of: one point per model, and which of them are asked for."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bistil.settings.study import StudySettings, Variant, require


@dataclass(frozen=True)
class Point:
    """One model of a study: a student by its number, or none of the teacher itself, which serves all targets."""

    group: str
    number: int | None
    variant: str
    seed: int
    learning_rate: float | None = None
    """Of its fine-tuning; none: the settings', or not chosen yet."""


@dataclass(frozen=True)
class Only:
    """Names of systems or variants, groups, students and seeds that are asked for; none of a kind: all of it."""

    variants: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    students: frozenset[str] = frozenset()
    seeds: frozenset[int] = frozenset()

    @classmethod
    def of(cls, words: Iterable[str], settings: StudySettings) -> "Only":
        """Words of the command line, sorted by what they name; `seed=1` is a seed, and so is a number that is no name.

        Raises:
            RecipeError: a word that names nothing of the study; the message names the nearest one.
        """
        kinds: dict[str, list[str]] = {
            "variants": [*settings.variants],
            "groups": [*settings.groups],
            "students": [student.name for student in settings.shapes],
        }
        found: dict[str, set[str]] = {kind: set() for kind in kinds}
        seeds: set[int] = set()
        known = {str(seed) for variant in settings.variants.values() for seed in seeds_of(variant, settings)}
        for word in words:
            kind = next((kind for kind, names in kinds.items() if word in names), None)
            seed = word.removeprefix("seed=")
            if kind is not None:
                found[kind].add(word)
            elif seed in known:
                seeds.add(int(seed))
            else:
                everything = [name for names in kinds.values() for name in names]
                require(word, [*everything, *(f"seed={one}" for one in sorted(known))], "--only", "part of the study")
        return cls(**{kind: frozenset(names) for kind, names in found.items()}, seeds=frozenset(seeds))

    def takes(self, point: Point, student: str | None) -> bool:
        """Whether a point is asked for."""
        return (
            (not self.variants or point.variant in self.variants)
            and (not self.seeds or point.seed in self.seeds)
            # A teacher serves all groups, and is no student.
            and (not self.groups or point.group in self.groups)
            and (not self.students or student in self.students)
        )


def seeds_of(variant: Variant, settings: StudySettings) -> list[int]:
    """The seeds of a variant."""
    return variant.seeds or settings.seeds


def points_of(settings: StudySettings, only: Only | None = None) -> Iterator[Point]:
    """The points of a study, in its order; learning rates are not chosen yet."""
    for name, variant in settings.variants.items():
        for group in settings.groups_of(variant):
            numbers: list[int | None] = [None]
            if variant.model == "student":
                chosen = enumerate(settings.shapes)
                numbers = [i for i, one in chosen if not variant.students or one.name in variant.students]
            for number in numbers:
                for seed in seeds_of(variant, settings):
                    point = Point(group, number, name, seed)
                    student = None if number is None else settings.shapes[number].name
                    if only is None or only.takes(point, student):
                        yield point
