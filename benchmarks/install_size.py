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
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def install(extras: str, folder: Path) -> Path:
    """Make the environment; its folder of packages."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements-torch.lock")], check=True)
    subprocess.run([*pip, f"{ROOT}[{extras}]"], check=True)
    return next((folder / "lib").glob("python*/site-packages"))


def size(paths: list[Path]) -> int:
    """Bytes of those that are files, without compiled Python."""
    return sum(one.lstat().st_size for one in paths if one.is_file() and one.suffix != ".pyc")


def of_package(package: Distribution) -> int:
    """Bytes of its files."""
    return size([Path(str(package.locate_file(one))) for one in package.files or ()])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", help="with commas")
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = install(given.extras, Path(place) / "env")
        packages = {one.metadata["Name"]: of_package(one) for one in distributions(path=[str(found)])}
        total = size(list((Path(place) / "env").rglob("*")))
        versions = {one.metadata["Name"]: one.version for one in distributions(path=[str(found)])}
    largest = sorted(packages, key=lambda name: -packages[name])[:10]
    record = {
        "kind": "size of an environment",
        "extras": given.extras.split(","),
        "bytes": total,
        "packages": len(packages),
        "largest": {name: packages[name] for name in largest},
        "versions": {name: versions[name] for name in largest},
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    if given.record:
        given.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{given.extras}: {total:,} bytes in {len(packages)} packages")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
