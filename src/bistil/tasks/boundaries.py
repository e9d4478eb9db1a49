"""Where tokens begin and end: a student and a teacher with other token ids are compared where both agree."""

import zlib
from collections.abc import Sequence

import numpy as np

from bistil.tasks.batches import Feature


def boundaries(offsets: Sequence[tuple[int, ...]]) -> int:
    """A number that is equal for equal token boundaries: student and teacher must see the same ones."""
    return zlib.crc32(np.asarray(offsets, dtype=np.int32).tobytes())


def differing_boundaries(student: Sequence[Feature], teacher: Sequence[Feature]) -> set[int]:
    """Indices of the examples whose tokens start or end elsewhere for the teacher than for the student.

    So do those that come in another number of windows.
    """
    seen: dict[int, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
    for side, features in enumerate((student, teacher)):
        for feature in features:
            place = len(feature["input_ids"]), feature["boundaries"]
            seen.setdefault(feature["example"], ([], []))[side].append(place)
    return {example for example, (ours, theirs) in seen.items() if ours != theirs}
