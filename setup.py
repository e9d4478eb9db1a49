"""The description on a package index: README.md, where links to files of the checkout become their names."""

import re
from pathlib import Path

from setuptools import setup


def _named(link: re.Match[str]) -> str:
    text, file = link[1], link[2]
    return file if file.endswith(text.rstrip("/")) else f"{text} ({file})"


README = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
setup(
    long_description=re.sub(r"\[([^]]+)\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", _named, README),
    long_description_content_type="text/markdown",
)
