"""The house: imports run downwards, pages written from the code are current, recipes parse, names are exported."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from bistil._moved import MOVED
from bistil.settings.recipe import load_recipe

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "bistil"


def rooms_in_order():
    """Rows of rooms from the top down, out of the contract that `make check` keeps."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    return [row.split(" | ") for row in layers]


def test_every_room_has_its_row():
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert rooms == {room for row in rooms_in_order() for room in row}


def test_the_architecture_page_is_in_the_order_that_is_true():
    page = (ROOT / "docs" / "architecture.md").read_text().split("## ")[0]
    shown = re.findall(r"`(\w+)(?:/|\.py)`", " ".join(re.findall(r"^\| ([^|]+) \|", page, flags=re.M)))
    level = {room: number for number, row in enumerate(rooms_in_order()) for room in row}
    assert sorted(shown) == sorted(level)
    assert shown == sorted(shown, key=level.__getitem__)


def test_a_public_name_stands_for_one_thing():
    homes: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for one in ast.parse(path.read_text()).body:
            # A command may be called like what it does.
            if isinstance(one, (ast.FunctionDef, ast.ClassDef)) and "commands" not in path.parts:
                homes.setdefault(one.name, []).append(path.relative_to(SOURCE).as_posix())
    public = {name: places for name, places in homes.items() if not name.startswith("_")}
    assert len(public) > 300
    assert not {name: places for name, places in public.items() if len(places) > 1}


def test_an_import_that_runs_upwards_is_found(tmp_path):
    """The contract sees imports inside functions, and this package's old habit of importing itself for its version."""
    shutil.copytree(SOURCE, tmp_path / "bistil", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    low = tmp_path / "bistil" / "runtime" / "memory.py"
    low.write_text(low.read_text() + "\n\ndef late() -> None:\n    from bistil.models import names\n")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    found = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert found.returncode == 1 and b"bistil.runtime.memory -> bistil.models.names" in found.stdout


PUBLIC = json.loads((ROOT / "tests/recorded/public_names.json").read_text())
# What went for good.
GONE = {("bistil.adaptation", "held_out_loss"), ("bistil.families", "SUPPORTED"), ("bistil.stages", "StageResult")}


@pytest.mark.parametrize("old", PUBLIC)
def test_the_public_names_of_version_0_1_are_found_where_they_were(old):
    """Every name that each module had; those that went elsewhere warn."""
    sys.modules.pop(old if old in MOVED else "", None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module = import_module(old)
        for name in PUBLIC[old]:
            if (old, name) in GONE:
                assert not hasattr(module, name)
                continue
            value = getattr(module, name)
            here = name in vars(module) or old in MOVED or old == "bistil"
            assert here or f"{old}.{name} is now" in str(said[-1].message)
            assert value is not None
    moved = [str(one.message) for one in said if f"{old} is now {MOVED.get(old, ('',))[0]}" in str(one.message)]
    assert bool(moved) == (old in MOVED)


def test_names_that_never_were_are_not_found():
    from bistil import models, training
    from bistil.tasks import base

    for module in (models, training, base, import_module("bistil.artefacts")):
        with pytest.raises(AttributeError, match="nonsense"):
            module.nonsense  # noqa: B018


def test_the_page_on_additions_counts_lines_as_they_are():
    page = (ROOT / "docs" / "extend.md").read_text()
    counted = re.findall(r"\]\((\S+\.py)\)\s\((\d+)\slines", page)
    assert len(counted) == 3
    for place, lines in counted:
        assert len((ROOT / "docs" / place).read_text().splitlines()) == int(lines), place


def test_the_recipe_page_is_written_from_this_code(tmp_path):
    page = (ROOT / "docs" / "recipe.md").read_text()
    script = (ROOT / "docs" / "make_recipe_reference.py").read_text()
    (tmp_path / "make.py").write_text(script)
    subprocess.run([sys.executable, tmp_path / "make.py"], check=True)
    assert (tmp_path / "recipe.md").read_text() == page, "run make docs"


SET_HERE = ("reduction", "task", "objective", "task_objective", "language", "selection", "target_sentences")
"""Keys that are none by themselves, and that the recipe of the next test gives."""


def test_the_recipe_page_shows_what_a_recipe_gets(tmp_path):
    """Every default of the page against a recipe that is read, key by key."""
    (tmp_path / "recipe.toml").write_text(
        'teacher = "x"\nsource = "en"\ntarget = "sw"\ntext = { en = "en.txt", sw = "sw.txt" }\n'
        '[[students]]\nname = "a"\nreduction = 2\n[students.objective]\ntemperature = 2.0\n'
        "[students.task_objective]\ntemperature = 2.0\n"
        '[language]\n[task]\nkind = "token-classification"\ntrain = "train.txt"\n'
        "[phase2]\ntarget_sentences = 1\n[selection]\n"
    )
    recipe = load_recipe(tmp_path / "recipe.toml")
    page, compared = (ROOT / "docs" / "recipe.md").read_text(), 0
    for title, table in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, flags=re.S | re.M):
        keys = re.search(r"\[([a-z0-9_.]+)\]", title)
        if keys is None and title != "Top level":
            continue
        place = recipe
        for key in keys[1].split(".") if keys else ():
            place = getattr(place[0] if isinstance(place, list) else place, key)
        place = place[0] if isinstance(place, list) else place
        for key, shown in re.findall(r"^\| `(\w+)` \| [^|]+(?:\| `[^|]+)*\| ([^|]+) \| [^|]*\|$", table, flags=re.M):
            value = getattr(place, key)
            if shown.startswith("`("):  # is worked out
                continue
            if shown.startswith("`"):
                assert shown == f"`{str(value).lower() if isinstance(value, bool) else value}`", f"{title}: {key}"
                compared += 1
            elif shown == "none" and key not in SET_HERE:
                assert value is None, f"{title}: {key} is {value}"
                compared += 1
    assert compared > 80


@pytest.mark.parametrize(
    "path", [*(ROOT / "recipes").glob("*.toml"), *(SOURCE / "demo").glob("*.toml")], ids=lambda p: p.name
)
def test_shipped_recipes_parse(path):
    assert load_recipe(path).students


def test_the_readme_s_recipe_parses(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks
    for block in blocks:
        (tmp_path / "recipe.toml").write_text("\n".join(line.removeprefix("   ") for line in block.splitlines()))
        assert load_recipe(tmp_path / "recipe.toml").students


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]+))?\)")


def anchors(page):
    """What headings of a page can be linked as, in the way of GitHub."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_in_the_docs_lead_somewhere():
    """`make site` checks the same; this one needs no tools."""
    followed = 0
    for page in PAGES:
        for link, anchor in LINK.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)):
            target = page.parent / link if link else page
            assert link.startswith("http") or target.exists(), f"{page.name}: {link}"
            assert not anchor or link.startswith("http") or anchor in anchors(target), f"{page.name}: {link}#{anchor}"
            followed += bool(anchor)
    assert followed > 50


def test_the_readme_lists_every_page():
    listed = {link for link, _ in LINK.findall((ROOT / "README.md").read_text().partition("## Docs")[2])}
    assert {page.relative_to(ROOT).as_posix() for page in PAGES} - {"README.md"} <= listed


def test_the_reference_names_what_is_public_and_what_the_docs_import():
    import bistil

    listed = re.findall(r"^- `(bistil[\w.]*)`$", (ROOT / "docs/api.md").read_text(), flags=re.M)
    assert len(listed) == len({*listed}) > 50
    things = []
    for name in listed:
        module, _, last = name.rpartition(".")
        things.append(getattr(import_module(module), last))
        assert things[-1].__doc__, name
    assert all(getattr(bistil, name) in things for name in bistil.__all__ if name != "__version__")
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]
    for page in [*pages, ROOT / "docs/first_model.ipynb"]:
        for module, names in re.findall(r"from (bistil[\w.]*) import ([\w, ]+)", page.read_text()):
            for name in names.split(","):
                assert getattr(import_module(module), name.strip()) in things, f"{page.name}: {module}.{name}"


def test_the_page_on_versions_names_tests_that_are_there():
    named = re.findall(r"`(?:tests/unit/)?(test_\w+\.py)`", (ROOT / "docs/versioning.md").read_text())
    records = re.findall(r"`(tests/recorded/\w+\.json)`", (ROOT / "docs/versioning.md").read_text())
    assert len(named) > 5 and len(records) == 3
    assert all((ROOT / "tests/unit" / name).exists() for name in named) and all(
        (ROOT / one).exists() for one in records
    )


def test_help_is_quick_and_shows_an_example():
    """In a fresh process: --help must not load what takes seconds."""
    script = """
import sys
from typer.testing import CliRunner
import bistil

assert bistil.__version__ and "torch" not in sys.modules and "bistil.cli" not in sys.modules
from bistil.cli import COMMANDS, app

runner = CliRunner()
overview = runner.invoke(app, ["--help"])
assert overview.exit_code == 0 and all(command in overview.output for command in COMMANDS)
for command in COMMANDS:
    words = [command, "merge"] if command == "sft" else [command]
    result = runner.invoke(app, [*words, "--help"])
    assert result.exit_code == 0 and "example" in result.output.lower(), command
heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_public_names_are_complete_and_load():
    import bistil

    assert set(bistil.__all__) == {*bistil._HOMES, "__version__"}
    for name in bistil.__all__:
        assert getattr(bistil, name)
    with pytest.raises(AttributeError, match="nonsense"):
        bistil.nonsense  # noqa: B018


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_cpu_build_is_asked_for_first_where_no_gpu_shows_and_the_ordinary_index_is_the_way_out():
    def said(cpu_only):
        command = ["make", "--dry-run", "--always-make", ".venv/installed", f"CPU_ONLY={cpu_only}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    lines = [line for line in said("yes").splitlines() if "requirements-torch.lock" in line]
    assert len(lines) == 1
    first, _, second = lines[0].partition("||")
    assert "--timeout 10 --retries 0 --index-url https://download.pytorch.org/whl/cpu" in first
    assert "requirements-torch.lock" in second and "index-url" not in second
    assert "index-url" not in said("")
    # The line for people is of the same version.
    locked = (ROOT / "requirements-torch.lock").read_text().split()[-1]
    for page in ("README.md", "docs/install.md"):
        assert f"--index-url https://download.pytorch.org/whl/cpu {locked}" in (ROOT / page).read_text(encoding="utf-8")
