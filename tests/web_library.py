"""Stand-ins for onnxruntime-web where nothing is run: a page's folder is complete with any bytes of the right names."""

import hashlib
from pathlib import Path

from bistil.export import libraries


def stand_in(modules: Path) -> dict[str, str]:
    """A folder of node modules whose files are a line each; returns what `libraries.FILES` is then."""
    for name in libraries.FILES:
        path = modules / libraries.PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"// {name}\n")
    return {name: hashlib.sha256(f"// {name}\n".encode()).hexdigest() for name in libraries.FILES}
