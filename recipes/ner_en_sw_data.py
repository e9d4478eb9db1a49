"""Download what ner-en-sw.toml and ner-few-labels.toml read, into data/ beside it; needs nothing but Python.

    python recipes/ner_en_sw_data.py
    python recipes/ner_en_sw_data.py --mirror file:///copies     # MIRROR/OWNER/REPOSITORY/main/PATH

Labels: CoNLL-2003 as the MasakhaNER repository carries it (news text of Reuters, under its own agreement: check that
you may use it) and MasakhaNER's Swahili test set, with its 300 dev sentences as the few labels (CC BY-NC 4.0). Text:
the English and Swahili sides of LAFAND-MT's news (CC BY-NC 4.0; articles of Global Voices, CC BY). The labels' digests
are known and checked. A file that is there stays.
"""

import argparse
import hashlib
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

DATA = Path(__file__).parent / "data"
MIRROR = "https://raw.githubusercontent.com"
NER = "masakhane-io/masakhane-ner/main/data"
TEXT = "masakhane-io/lafand-mt/main/data/text_files/en_swa_news"
# File here: file there, and its SHA-256 where that is known.
FILES = {
    "text.en.txt": (f"{TEXT}/train.en", None),
    "text.sw.txt": (f"{TEXT}/train.sw", None),
    "train.en.conll": (
        f"{NER}/conll_2003_en/train.txt",
        "888f903f46f5a7b93668d7ebc81dfb7525f579229808c58c2b844415681d0081",
    ),
    "dev.en.conll": (
        f"{NER}/conll_2003_en/dev.txt",
        "ec49131c6319f856577c616572bab8903379997058ae709afd8de17d62c98c22",
    ),
    "test.en.conll": (
        f"{NER}/conll_2003_en/test.txt",
        "1f7242fd7176209c850f04d3df60eab56707e76ebacf42bdeb5950c5c58b0d23",
    ),
    "test.sw.conll": (
        f"{NER}/swa/test.txt",
        "f91b97def896572dfaaf6db247a01cc1a8b7bd2ce537c19956ec0a0a1ac5913c",
    ),
    "few.sw.conll": (
        f"{NER}/swa/dev.txt",
        "ee742c38cba9139f1a147baffe7d294d6e38599c67a66ec896500ac2666f53d3",
    ),
}


def fetch(address: str, path: Path, digest: str | None) -> int:
    """Bytes of `address`, now in `path`: whole, or not there.

    Raises:
        OSError: nothing came, or something else than the digest says.
    """
    with urllib.request.urlopen(address, timeout=60) as answer:
        content = answer.read()
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise OSError("this is not the file that is meant (its digest differs)")
    if not content:
        raise OSError("the file is empty")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return len(content)


def main() -> int:
    """Exit status: 0, or 2 where a file did not come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATA, help="folder of the files (%(default)s)")
    parser.add_argument("--mirror", default=MIRROR, help="where the repositories are (%(default)s)")
    options = parser.parse_args()
    for name, (place, digest) in FILES.items():
        path, address = options.output / name, f"{options.mirror.rstrip('/')}/{place}"
        try:
            options.output.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                print(f"{path}: {fetch(address, path, digest):,} bytes", flush=True)
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            print(f"{address}: {reason}. Call again to go on, or put the file at {path} yourself.", file=sys.stderr)
            return 2
    print(f"All {len(FILES)} files are in {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
