"""How Sphinx makes the site out of README.md, docs/ and the docstrings: `make site`.

The pages stay as they are read in a checkout. What only a site needs is added here: the list of pages, out of README's
"Docs" lines, and the reference in place of the names in docs/api.md.
"""

import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from offline import outside  # noqa: E402
from reference import Reference  # noqa: E402

project = "bistil"
version = release = re.search(r'__version__ = "(.+)"', (ROOT / "src/bistil/_version.py").read_text())[1]
author = "the maintainers of bistil"
html_title = f"bistil {version}"
html_show_copyright = False

root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
extensions = ["myst_parser"]
myst_enable_extensions = ["fieldlist"]
# Headings can be linked to as on GitHub.
myst_heading_anchors = 4
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
highlight_language = "none"
pygments_style, pygments_dark_style = "default", "github-dark"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
# Its table is wider than the page; the search finds names too.
html_use_index = False


def navigation(readme: str) -> str:
    """The lists of pages, one per "**Heading**: [page](docs/page.md) · ..." paragraph below README's "## Docs"."""
    blocks = []
    for caption, links in re.findall(
        r"^\*\*(.+?)\*\*: (.+?)\n\n", readme.partition("## Docs")[2], re.MULTILINE | re.DOTALL
    ):
        pages = [
            f"{name[0].upper()}{name[1:]} <{page}>" for name, page in re.findall(r"\[([^]]+)\]\((\S+?)\.md\)", links)
        ]
        blocks.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    return "\n\n".join(blocks)


def complete(app: Sphinx, name: str, source: list[str]) -> None:
    """Give a page what the site adds to it."""
    del app
    if name == "README":
        source[0] += f"\n\n{navigation(source[0])}\n"
    if name == "docs/api":
        try:
            source[0] = Reference(ROOT / "src").fill(source[0])
        except LookupError as error:
            raise SphinxError(f"docs/api.md: {error.args[0]}") from error


def without_folders(app: Sphinx, page: nodes.document) -> None:
    """A link to a folder of the checkout, which a site cannot show, becomes its text."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(page.findall(pending_xref)):
        if (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def finish(app: Sphinx, error: Exception | None) -> None:
    """The front page under the name that servers look for; nothing may be fetched from elsewhere."""
    if error is None:
        out = Path(app.outdir)
        shutil.copyfile(out / "README.html", out / "index.html")
        found = outside(out)
        if found:
            raise SphinxError(f"the site asks for what is elsewhere: {', '.join(found)}")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", complete)
    app.connect("doctree-read", without_folders)
    app.connect("build-finished", finish)
