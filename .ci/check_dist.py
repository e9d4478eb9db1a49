"""Whether dist/ holds what git tracks, and a description that is sound on a package index: `make dist`."""

import re
import subprocess
import tarfile
import zipfile
from email import message_from_bytes
from email.policy import default
from pathlib import Path

# What setuptools adds to an sdist, and what is of no use outside of a repository.
MADE = re.compile(r"PKG-INFO|setup\.cfg|src/bistil\.egg-info/.+")
LEFT_OUT = {".gitignore", ".dockerignore"}

tracked = {line for line in subprocess.check_output(["git", "ls-files"], text=True).splitlines() if Path(line).exists()}
(sdist,), (wheel,) = Path("dist").glob("*.tar.gz"), Path("dist").glob("*.whl")

with tarfile.open(sdist) as archive:
    names = {one.name.partition("/")[2] for one in archive if one.isfile()}
differ = {name for name in names if not MADE.fullmatch(name)} ^ (tracked - LEFT_OUT)
assert not differ, f"{sdist.name} and git differ in {', '.join(sorted(differ))}"

with zipfile.ZipFile(wheel) as archive:
    inside = archive.namelist()
    (metadata,) = (name for name in inside if name.endswith(".dist-info/METADATA"))
    description = str(message_from_bytes(archive.read(metadata), policy=default).get_payload())
package = {f"src/{name}" for name in inside if ".dist-info/" not in name}
differ = package ^ {name for name in tracked if name.startswith("src/")}
assert not differ, f"{wheel.name} and git differ in {', '.join(sorted(differ))}"
assert any(name.endswith("/licenses/LICENSE") for name in inside), f"{wheel.name} has no licence"

dead = re.findall(r"\]\((?!https?://)[^)]*\)", description)
assert description.startswith("# bistil") and not dead, f"the description has links that lead nowhere: {dead}"
