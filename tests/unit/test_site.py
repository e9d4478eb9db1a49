"""What the pages of the site may not do; `make site` asks it of all of them."""

import importlib.util
from pathlib import Path

import pytest

OFFLINE = Path(__file__).parents[2] / "docs" / "site" / "offline.py"


@pytest.fixture
def outside():
    spec = importlib.util.spec_from_file_location("offline", OFFLINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.outside


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.html", '<img src="https://x.example/a.png">'),
        ("a.html", '<script src="//x.example/a.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="https://x.example/a.css">'),
        ("a.html", '<link rel="preconnect" href="https://x.example">'),
        ("a.html", '<p style="background: url(https://x.example/a.png)">text</p>'),
        ("a.html", '<style>@import "https://x.example/a.css";</style>'),
        ("a.svg", '<svg><image xlink:href="https://x.example/a.png"/></svg>'),
        ("deep/a.css", "@font-face { src: url('https://x.example/a.woff2') }"),
    ],
)
def test_what_a_page_fetches_from_elsewhere_is_found(outside, tmp_path, name, content):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    (found,) = outside(tmp_path)
    assert found.startswith(f"{name}: ") and "//x.example" in found


def test_links_and_own_files_are_no_asset(outside, tmp_path):
    page = '<link rel="canonical" href="https://x.example"><a href="https://x.example">text</a><img src="../a.png">'
    (tmp_path / "a.html").write_text(f'{page}<svg xmlns="http://www.w3.org/2000/svg"></svg>')
    (tmp_path / "a.css").write_text("p { background: url(data:image/png;base64,AAAA) } /* https://x.example */")
    assert outside(tmp_path) == []
