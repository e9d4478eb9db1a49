"""Bytes of a fresh virtual environment in which bistil runs with some of its extras, and nothing else.

    python benchmarks/install_size.py serve,onnx --record benchmarks/records/install-serve-onnx.json

Makes it in a temporary folder, with torch as requirements-torch.lock has it, and leaves out compiled Python. The last
line is one JSON object: bytes in all, how many packages, and the largest of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def install(extras: str, place: Path) -> Path:
    """Make the environment in a folder, out of what is committed; its folder of packages."""
    # setuptools leaves its work in the checkout that it builds from.
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", str(place / "source")], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(place / "env")], check=True)
    pip = [str(place / "env/bin/python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements-torch.lock")], check=True)
    subprocess.run([*pip, f"{place / 'source'}[{extras}]"], check=True)
    return next((place / "env/lib").glob("python*/site-packages"))


def size(paths: Iterable[Path]) -> int:
    """Bytes of those that are files, without compiled Python."""
    return sum(one.lstat().st_size for one in paths if one.is_file() and one.suffix != ".pyc")


def of_package(package: Distribution) -> int:
    """Bytes of its files."""
    return size(Path(str(package.locate_file(one))) for one in package.files or ())


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", help="with commas")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = list(distributions(path=[str(install(given.extras, Path(place)))]))
        total = size((Path(place) / "env").rglob("*"))
        largest = sorted(found, key=of_package, reverse=True)[:10]
        bytes_of = {one.metadata["Name"]: of_package(one) for one in largest}
    record = {
        "kind": "size of an environment",
        "extras": given.extras.split(","),
        "bytes": total,
        "packages": len(found),
        "largest": bytes_of,
        "versions": {one.metadata["Name"]: one.version for one in largest},
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    if given.record:
        given.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{given.extras}: {total:,} bytes in {len(found)} packages")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
