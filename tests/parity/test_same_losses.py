"""Every stage, family and task learns what it always learnt: losses after each step, and what stands in weight files.

The record beside this file is made by `python benchmarks/same_weights.py --record`, whose docstring says what is run.
A change that is meant to change what is learnt writes it anew.
"""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Other instructions of the processor move losses by 3e-7 of themselves, another seed moves them by 1e-3 and more.
RELATIVE, ABSOLUTE = 1e-5, 1e-6


@pytest.fixture(scope="module")
def same_weights():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import same_weights

    return same_weights


def differs(ours, theirs):
    """What of a case is not as recorded; nothing: it is the same."""
    found = [] if len(ours["losses"]) == len(theirs["losses"]) else [f"{len(ours['losses'])} steps"]
    for step, (got, wanted) in enumerate(zip(ours["losses"], theirs["losses"], strict=False)):
        if not abs(got - wanted) <= ABSOLUTE + RELATIVE * wanted:
            found.append(f"step {step}: {got} and not {wanted}")
    names = sorted(ours["files"].keys() | theirs["files"].keys())
    return found + [name for name in names if ours["files"].get(name) != theirs["files"].get(name)]


def test_losses_and_files_are_as_recorded_and_a_seed_shows(same_weights, tmp_path):
    recorded = json.loads(same_weights.RECORDED.read_text())
    inputs = same_weights.make_inputs(tmp_path / "inputs")
    cases = same_weights.recorded_cases(inputs)
    assert cases.keys() == recorded.keys()
    seen = same_weights.observe(cases, same_weights.ROOT, tmp_path / "here")
    for name, one in seen.items():
        assert not differs(same_weights.summary(one), recorded[name]), name
    name = "bert-masked-lm"
    other = {name: same_weights.recorded_cases(inputs, seed=1)[name]}
    moved = same_weights.observe(other, same_weights.ROOT, tmp_path / "moved")
    assert any("step" in one for one in differs(same_weights.summary(moved[name]), recorded[name]))
