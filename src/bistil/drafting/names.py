"""What the name of a file says: its language, and whether it is for training, choosing or testing."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

Part = Literal["train", "dev", "test"]

PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("dev", "devel", "development", "val", "valid", "validation", "testa"), "dev"),
    **dict.fromkeys(("test", "testing", "tst", "testb"), "test"),
}

# ISO 639: the code of two letters, if there is one, that of three, and the English name as data sets write it.
_LANGUAGES = """
aa aar afar, ab abk abkhazian, ae ave avestan, af afr afrikaans, ak aka akan, am amh amharic, an arg aragonese,
ar ara arabic, as asm assamese, av ava avaric, ay aym aymara, az aze azerbaijani, ba bak bashkir, be bel belarusian,
bg bul bulgarian, bi bis bislama, bm bam bambara, bn ben bengali, bo bod tibetan, br bre breton, bs bos bosnian,
ca cat catalan, ce che chechen, ch cha chamorro, co cos corsican, cr cre cree, cs ces czech, cv chv chuvash,
cy cym welsh, da dan danish, de deu german, dv div dhivehi, dz dzo dzongkha, ee ewe ewe, el ell greek, en eng english,
eo epo esperanto, es spa spanish, et est estonian, eu eus basque, fa fas persian, ff ful fulah, fi fin finnish,
fj fij fijian, fo fao faroese, fr fra french, fy fry frisian, ga gle irish, gd gla gaelic, gl glg galician,
gn grn guarani, gu guj gujarati, gv glv manx, ha hau hausa, he heb hebrew, hi hin hindi, hr hrv croatian,
ht hat haitian, hu hun hungarian, hy hye armenian, hz her herero, ia ina interlingua, id ind indonesian, ig ibo igbo,
ik ipk inupiaq, is isl icelandic, it ita italian, iu iku inuktitut, ja jpn japanese, jv jav javanese, ka kat georgian,
kg kon kongo, ki kik kikuyu, kj kua kuanyama, kk kaz kazakh, kl kal kalaallisut, km khm khmer, kn kan kannada,
ko kor korean, ks kas kashmiri, ku kur kurdish, kv kom komi, kw cor cornish, ky kir kyrgyz, la lat latin,
lb ltz luxembourgish, lg lug ganda, li lim limburgish, ln lin lingala, lo lao lao, lt lit lithuanian, lv lav latvian,
mg mlg malagasy, mh mah marshallese, mi mri maori, mk mkd macedonian, ml mal malayalam, mn mon mongolian,
mr mar marathi, ms msa malay, mt mlt maltese, my mya burmese, na nau nauru, nb nob bokmaal, nd nde ndebele,
ne nep nepali, nl nld dutch, nn nno nynorsk, no nor norwegian, nv nav navajo, ny nya chichewa, oc oci occitan,
oj oji ojibwa, om orm oromo, or ori odia, os oss ossetian, pa pan punjabi, pl pol polish, ps pus pashto,
pt por portuguese, qu que quechua, rm roh romansh, rn run kirundi, ro ron romanian, ru rus russian,
rw kin kinyarwanda, sa san sanskrit, sc srd sardinian, sd snd sindhi, se sme sami, sg sag sango, si sin sinhala,
sk slk slovak, sl slv slovenian, sm smo samoan, sn sna shona, so som somali, sq sqi albanian, sr srp serbian,
ss ssw swati, st sot sotho, su sun sundanese, sv swe swedish, sw swa swahili, ta tam tamil, te tel telugu,
tg tgk tajik, th tha thai, ti tir tigrinya, tk tuk turkmen, tl tgl tagalog, tn tsn tswana, to ton tongan,
tr tur turkish, ts tso tsonga, tt tat tatar, tw twi twi, ty tah tahitian, ug uig uyghur, uk ukr ukrainian,
ur urd urdu, uz uzb uzbek, ve ven venda, vi vie vietnamese, wa wln walloon, wo wol wolof, xh xho xhosa,
yi yid yiddish, yo yor yoruba, za zha zhuang, zh zho chinese, zu zul zulu,
bxr buryat, ceb cebuano, dsb lower_sorbian, fil filipino, gsw swiss_german, hsb upper_sorbian, koi komi_permyak,
kpv komi_zyrian, krl karelian, luo dholuo, mdf moksha, myv erzya, nds low_saxon, olo livvi, pcm naija,
pcm nigerian_pidgin, pcm naija_pidgin, se north_sami, se northern_sami, sms skolt_sami, yue cantonese
"""
# Codes of a language within one of those above, as data sets name them (FLORES, SIB-200).
_WITHIN = {
    "als": "sq", "arb": "ar", "azj": "az", "cmn": "zh", "ekk": "et", "gaz": "om", "khk": "mn", "kmr": "ku", "lvs": "lv",
    "npi": "ne", "ory": "or", "pbt": "ps", "pes": "fa", "plt": "mg", "swh": "sw", "uzn": "uz", "ydd": "yi", "zsm": "ms",
}  # fmt: skip
# Two letters that are more often a word than a language, unless they stand alone.
_WORDS = {"am", "as", "be", "he", "id", "is", "it", "my", "no", "or", "so", "to"}
# Three letters that are no language in the names of files and folders.
_NO_CODES = {
    "all", "app", "bin", "bio", "bpe", "csv", "dat", "dep", "dev", "doc", "etc", "iob", "ner", "new", "nli", "old",
    "opt", "out", "pos", "pub", "raw", "run", "sib", "src", "tag", "tmp", "tok", "top", "trn", "tst", "tsv", "txt",
    "uni", "usr", "val", "var", "web", "www", "zip", "zst",
}  # fmt: skip
# As in swh_Latn, pt-BR and en_ewt-ud-train.
_WITH_SCRIPT = re.compile(r"(?<![A-Za-z])([a-z]{2,3})[_-](?:[A-Z][a-z]{3}|[A-Z]{2})(?![A-Za-z])")
_TREEBANK = re.compile(r"(?<![A-Za-z])([a-z]{2,3})_\w+-ud-")
# What ends a name of text or labelled rows.
_ENDINGS = re.compile(r"(\.(txt|tsv|csv|json|jsonl|conll\w*|conllu|bio|iob\w?|gz|zst|zstd))+$", re.IGNORECASE)


@cache
def _known() -> dict[str, str]:
    """Codes and names, with the code of two letters."""
    rows = [row.split() for row in _LANGUAGES.replace("\n", " ").split(",")]
    return {name: row[0] for row in rows for name in row} | _WITHIN


def short_code(language: str) -> str:
    """The code of two letters of a language's code or English name, if it has one; else what was given."""
    return _known().get(language.casefold(), language)


def part_of(path: Path) -> Part | None:
    """Whether a file is for training, choosing or testing, by its name, else by its folder's; None: it does not say."""
    for name in (path.name, path.parent.name):
        found = {PARTS[piece] for piece in _pieces(name) if piece in PARTS}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def language_of_name(path: Path) -> str | None:
    """The code of a file's language, by its name, else by those of the two folders above; None: they do not say one.

    Example:
        >>> [language_of_name(Path(name)) for name in ("train.en.jsonl", "eng/train.txt", "swh_Latn/test.tsv", "a.txt")]
        ['en', 'en', 'sw', None]
    """
    stem = _ENDINGS.sub("", path.name)
    folders = [folder.name for folder in path.parents][:2]
    for depth, name in enumerate((stem, *folders)):
        found = _codes(name, alone=depth < 2)
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _codes(name: str, *, alone: bool) -> set[str]:
    """The languages that a name without its ending holds.

    Args:
        alone: three letters that are in no list are a code where they stand alone.
    """
    for form in (_TREEBANK, _WITH_SCRIPT):
        if match := form.match(name) or form.search(name):
            return {_known().get(match[1], match[1])}
    between_dots = set(name.split("."))
    found = set()
    for piece in _with_pairs(_pieces(name)):
        stands_alone = piece in between_dots
        if piece in PARTS or piece in _NO_CODES or (piece in _WORDS and not stands_alone):
            continue
        if piece in _known():
            found.add(_known()[piece])
        elif alone and stands_alone and re.fullmatch(r"[a-z]{3}", piece):
            found.add(piece)
    return found


def _with_pairs(pieces: list[str]) -> Iterator[str]:
    """The pieces; two that are one language's name, as in Upper_Sorbian, come as one."""
    rest = [*pieces, ""]
    while len(rest) > 1:
        pair = f"{rest[0]}_{rest[1]}"
        yield pair if pair in _known() else rest[0]
        del rest[: 2 if pair in _known() else 1]


def _pieces(name: str) -> list[str]:
    return [piece for piece in re.split(r"[\W_]+", name.casefold()) if piece]
