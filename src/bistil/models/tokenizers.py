"""A folder's tokenizer: what tokenizer.json says is what is loaded, and what is written loads as the same tokenizer.

Classes of transformers 5 build a tokenizer of their own from the vocabulary of tokenizer.json and drop what else the
file says (its normalizer, its pre-tokenizer), so that a checkpoint whose tokenizer_config.json names the wrong class
gets other ids than its model was trained with. Here the file decides.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bistil.errors import ArtefactError, BistilError, InputError, MissingExtraError, first_line
from bistil.models.names import model_folder
from bistil.runtime.artefacts import check_product, read_json, write_json
from bistil.runtime.documents import check_file, parse_json, read_document
from bistil.runtime.insides import panics_as_errors
from bistil.runtime.quiet import quiet_transformers

logger = logging.getLogger(__name__)

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spm.model", "spiece.model", "tokenizer.model", "source.spm")
_VOCABULARY_FILES = (TOKENIZER_FILE, "vocab.txt", "vocab.json", *SENTENCEPIECE_FILES)
# Ids may have gaps, though not many more than there are tokens.
SPARE_IDS = 1 << 16
# What the last call of a tokenizer changes; it decides no ids.
_PER_CALL = ("padding", "truncation")
# Settings that would make the plain class rebuild what tokenizer.json says.
_REBUILDING = frozenset(
    {
        *("tokenizer_class", "tokenizer_file", "tokenizer_object", "vocab_file", "merges_file", "vocab", "merges"),
        *("added_tokens_decoder", "additional_special_tokens", "add_bos_token", "add_eos_token", "backend"),
        *("auto_map", "processor_class", "fix_mistral_regex"),
    }
)
# Where tokenizers of two kinds part ways: scripts, case, accents, digits, punctuation, spaces, ideographs, emoji, odd
# characters.
PROBE = (
    "The Quick Brown FOX jumps over 13 lazy dogs.",
    "Où est l'été? Ça coûte 3,50 € — déjà vu; ÅNGSTRÖM, İstanbul, straße.",
    "e\u0301 and \u00e9, \ufb01ne, \uff21\uff22\uff23, \u2460, x\u00b2",
    "two  spaces,   three; a\ttab and (brackets) [too] {all} <of> \"them\" 'here' #1 @home 50%",
    "don't re-use snake_case, CamelCase or example.org/a?b=c&d=e",
    "Привет, мир! Ёлка. Γειά σου κόσμε. Բարեւ աշխարհ.",
    "مرحبا بالعالم، كِتَاب. שלום עולם. سلام دنیا‌ها",
    "नमस्ते दुनिया। வணக்கம் உலகம். ওহে বিশ্ব। สวัสดีชาวโลก",
    "我喜歡貓和狗。今日は、世界！안녕하세요 세계. Ｆｕｌｌｗｉｄｔｈ",
    "ሰላም ልዑል። გამარჯობა. ជំរាបសួរ",
    "👩‍👩‍👧 👍🏽 🇰🇪 ☃ … “quotes” – dash",
    "N'Djamena, ŋaanaa, Ẹ kú àárọ̀, Việt Nam, Čeština, Łódź",
)


def read_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder: of the class that it names, if that is what its tokenizer.json says, or else what the
    file says, under the plain fast class.

    Args:
        name: of the folder, for messages.

    Raises:
        ArtefactError: the tokenizer's files are missing or damaged, or it has no fast form.
        MissingExtraError: there is a SentencePiece model only, and a package that reads it is missing.
    """
    if not any((folder / file).is_file() for file in _VOCABULARY_FILES):
        # transformers would make up an empty vocabulary.
        raise ArtefactError(f"{name} has no tokenizer: {TOKENIZER_FILE} is missing")
    _check_settings(folder)
    if not (folder / TOKENIZER_FILE).is_file():
        return _from_other_files(folder, name)
    stated = _stated(folder, name)
    try:
        with quiet_transformers():
            loaded: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # whatever a class makes of a file that is none of its own
        loaded = None
    if isinstance(loaded, PreTrainedTokenizerFast) and stated.agrees(loaded):
        return loaded
    plain = _plain(folder, stated, loaded, name)
    kind = read_json(folder / CONFIG_FILE).get("tokenizer_class") if (folder / CONFIG_FILE).is_file() else None
    if loaded is None or any(_ids(loaded, text) != _ids(plain, text) for text in PROBE):
        kind = type(loaded).__name__ if loaded is not None else kind
        logger.warning(
            f"{name}: {kind} would give other tokens than {TOKENIZER_FILE} says; {TOKENIZER_FILE} is followed"
        )
    return plain


def _check_settings(folder: Path) -> None:
    """Refuse settings beside a tokenizer that its classes would trip over.

    Raises:
        InputError: a file is no JSON, or beyond what is parsed.
        ArtefactError: it holds something else than settings.
    """
    for name in (CONFIG_FILE, "special_tokens_map.json", "added_tokens.json"):
        file = folder / name
        settings = read_json(file) if file.is_file() else {}
        if not isinstance(settings, dict):
            raise ArtefactError(f"{file} holds no JSON object: fetch or make it again")
        longest = settings.get("model_max_length")
        if name == CONFIG_FILE and not (longest is None or (type(longest) in (int, float) and longest > 0)):
            raise ArtefactError(f"{file}: 'model_max_length' is {longest!r:.60}, and a length is expected")
        unknown = settings.get("unk_token")
        if unknown == "" or (isinstance(unknown, dict) and unknown.get("content") == ""):
            raise ArtefactError(f"{file}: 'unk_token' is an empty text, which is no token")


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerFast:
    """Save a tokenizer into a model's folder, and make sure that AutoTokenizer loads the same one from there.

    Returns:
        The tokenizer as loaded again.

    Raises:
        ArtefactError: no class loads what was written.
    """
    fast: Any = tokenizer
    state = json.loads(fast.backend_tokenizer.to_str())
    fast.save_pretrained(folder)
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    return loaded if definition(loaded) == _lasting(state) else settle(folder, state)


def settle(folder: Path, state: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Write a tokenizer.json so that AutoTokenizer loads exactly this state: under the class that tokenizer_config.json
    names, with scores for whichever parser the class uses, or else under the plain fast class.

    Raises:
        ArtefactError: no class does.
    """
    config = read_json(folder / CONFIG_FILE)
    for kind, exact in ((config.get("tokenizer_class"), True), (config.get("tokenizer_class"), False), (PLAIN, True)):
        (folder / TOKENIZER_FILE).write_text(to_json(state, exact=exact), encoding="utf-8")
        write_json(folder / CONFIG_FILE, {**config, "tokenizer_class": kind}, inner=True)
        loaded: Any = AutoTokenizer.from_pretrained(folder)
        if definition(loaded) == _lasting(state):
            fast: PreTrainedTokenizerFast = loaded
            return fast
    raise ArtefactError("the tokenizer does not load as it was written; please report this tokenizer")


PLAIN = "PreTrainedTokenizerFast"


def definition(tokenizer: Any) -> dict[str, Any]:
    """What decides which ids a tokenizer gives: its state without padding and truncation.

    Args:
        tokenizer: of transformers (a fast one) or of tokenizers.
    """
    return _lasting(json.loads(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str()))


def to_json(state: dict[str, Any], *, exact: bool = True) -> str:
    """A state as the text of a `tokenizer.json`.

    Args:
        exact: write Unigram scores so that the tokenizers library reads them back bit for bit. Its number parser is
            not correctly rounded (serde_json without `float_roundtrip`): of the shortest decimal forms it takes about
            one in eight for a neighbouring number, which can turn a tie between segmentations. Some transformers
            classes read the scores with Python's parser, which needs the shortest form (false).
    """
    model = state["model"]
    if not exact or model.get("type") != "Unigram":
        return json.dumps(state, ensure_ascii=False)
    mark = "@scores"
    text = json.dumps({**state, "model": {**model, "vocab": mark}}, ensure_ascii=False)
    pieces = ",".join(f"[{json.dumps(piece, ensure_ascii=False)},{_literal(score)}]" for piece, score in model["vocab"])
    # The model is the last part of a state; a token of the same text comes earlier.
    head, _, tail = text.rpartition(f'"{mark}"')
    return f"{head}[{pieces}]{tail}"


@cache
def _literal(score: float) -> str:
    """A decimal form that serde_json's parser, float(digits) / 10^k, reads as exactly `score`."""
    size = abs(score)
    for k in range(22, 0, -1):
        middle = size * 10.0**k
        if not 0 < middle < 2**63:
            continue
        for step in (0, -1, 1, -2, 2):
            digits = middle + step * math.ulp(middle)
            if digits.is_integer() and digits / 10.0**k == size:
                return f"{'-' if score < 0 else ''}{int(digits)}e-{k}"
    return repr(score)


def _lasting(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in _PER_CALL}


@dataclass(frozen=True, eq=False)
class _Stated:
    """What a tokenizer.json says.

    Attributes:
        file: its path.
        tokenizer: as the tokenizers library reads it.
        definition: its state.
        known: token -> id.
    """

    file: Path
    tokenizer: Tokenizer
    definition: dict[str, Any]
    known: dict[str, int]

    def agrees(self, loaded: Any) -> bool:
        """Whether a tokenizer is what the file says.

        Scores may be those that Python reads in the file; and ordinary tokens of the vocabulary may have become special
        ones, for tokenizer_config.json may name them.
        """
        ours, theirs = definition(loaded), self.definition
        listed = {token["content"] for token in theirs["added_tokens"]}
        ours["added_tokens"] = [
            token
            for token in ours["added_tokens"]
            if token["content"] in listed or self.known.get(token["content"]) != token["id"]
        ]
        if ours == theirs:
            return True
        if theirs["model"].get("type") != "Unigram" or {**ours, "model": None} != {**theirs, "model": None}:
            return False
        pieces = parse_json(read_document(self.file), lenient=True)["model"]["vocab"]
        return bool(ours["model"] == {**theirs["model"], "vocab": pieces})


def require_fast(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The tokenizer, if it is a fast one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"a fast tokenizer is needed, not a {type(tokenizer).__name__}: load it with AutoTokenizer.from_pretrained"
        )
    return tokenizer


def with_state(tokenizer: PreTrainedTokenizerFast, state: dict[str, Any]) -> PreTrainedTokenizerFast:
    """A tokenizer of this state with another one's settings, under the plain fast class.

    Args:
        tokenizer: whose special tokens (that the state has), side of padding, inputs and template it gets.
        state: of a `tokenizer.json`.

    Raises:
        ArtefactError: the class would change the state.
    """
    backend = Tokenizer.from_str(to_json(state))
    made = _under_plain_class(backend, [tokenizer], tokenizer.init_kwargs, tokenizer.extra_special_tokens)
    if definition(made) != _lasting(state):
        raise ArtefactError("the tokenizer cannot be made of its state; please report this tokenizer")
    return made


def _stated(folder: Path, name: str) -> _Stated:
    """What the folder's tokenizer.json says."""
    file = folder / TOKENIZER_FILE
    try:
        check_file(file)
        with panics_as_errors():
            tokenizer = Tokenizer.from_file(str(file))
            # A vocabulary that lacks its own unknown token, or a template one of its own, fails here and not later.
            tokenizer.encode("a")
            tokenizer.encode("a", "a")
        known = tokenizer.get_vocab(with_added_tokens=True)
        if max(known.values(), default=0) > 2 * len(known) + SPARE_IDS:
            raise ArtefactError(f"{file} gives {len(known):,} tokens ids up to {max(known.values()):,}: damaged")
        found = definition(tokenizer)
        if any(not any("Sequence" in part for part in one["single"]) for one in _templates(found["post_processor"])):
            raise ArtefactError(f"the post_processor of {file} leaves nothing of a text: damaged")
        return _Stated(file, tokenizer, found, known)
    except BistilError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
        raise ArtefactError(f"the tokenizer of {name} cannot be read: {first_line(error)}") from error


def _templates(processor: Any) -> Iterator[dict[str, Any]]:
    """The templates of a post-processor."""
    if processor is not None and processor.get("type") == "TemplateProcessing":
        yield processor
    for one in (processor or {}).get("processors", ()):
        yield from _templates(one)


def _plain(folder: Path, stated: _Stated, like: Any, name: str) -> PreTrainedTokenizerFast:
    """What tokenizer.json says under the plain fast class, with the settings of tokenizer_config.json and, where that
    is silent, those of `like`, the tokenizer under its own class (None: it cannot be loaded).

    Names of special tokens that the vocabulary lacks are left out: there is no row in the model for them.
    """
    try:
        configured = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:
        raise ArtefactError(f"the tokenizer of {name} cannot be read: {first_line(error)}") from error
    sources = [one for one in (configured, like) if one is not None]
    plain = _under_plain_class(stated.tokenizer, sources, configured.init_kwargs, configured.extra_special_tokens)
    if plain.chat_template is None:
        plain.chat_template = configured.chat_template
    if not stated.agrees(plain):
        raise ArtefactError(f"the tokenizer of {name} does not load as {TOKENIZER_FILE} says; please report it")
    return plain


def _under_plain_class(
    tokenizer: Tokenizer, sources: list[Any], settings: Mapping[str, Any], extra: Any
) -> PreTrainedTokenizerFast:
    """The plain fast class around a tokenizer.

    Args:
        sources: tokenizers that name special tokens, the first first; the last says how texts are padded.
        settings: of another tokenizer.
        extra: special tokens without a role.
    """
    known = tokenizer.get_vocab(with_added_tokens=True)
    values = {key: value for key, value in settings.items() if key not in _REBUILDING}
    values |= dict.fromkeys(sources[0].SPECIAL_TOKENS_ATTRIBUTES)
    for role, token in _roles(sources):
        if values[role] is None and token in known:
            values[role] = token
    if values["unk_token"] is None:
        values["unk_token"] = _unknown(definition(tokenizer)["model"])
    values["extra_special_tokens"] = [token for token in map(str, extra or []) if token in known]
    for key in ("model_max_length", "padding_side", "truncation_side", "model_input_names"):
        values[key] = getattr(sources[-1], key)
    processor = tokenizer.post_processor
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **values)
    if plain.backend_tokenizer.post_processor != processor:
        # A class that is told of added special tokens, or of no post-processor, makes one.
        plain.backend_tokenizer.post_processor = processor
    return plain


def _roles(sources: list[Any]) -> Iterator[tuple[str, str]]:
    for one in sources:
        for role, token in one.special_tokens_map.items():
            if isinstance(token, str) or hasattr(token, "content"):
                yield role, str(token)


def _unknown(model: dict[str, Any]) -> str | None:
    """The unknown token of a tokenizer's model."""
    if model.get("type") == "Unigram":
        return model["vocab"][model["unk_id"]][0] if model["unk_id"] is not None else None
    return model.get("unk_token")


def _from_other_files(folder: Path, name: str) -> PreTrainedTokenizerFast:
    """A tokenizer that transformers builds from a SentencePiece model, vocab.txt, or vocab.json and merges.txt."""
    pieces = next((folder / file for file in SENTENCEPIECE_FILES if (folder / file).is_file()), None)
    others = any((folder / file).is_file() for file in ("vocab.txt", "vocab.json"))
    if pieces is not None and not others and not (_installed("sentencepiece") and _installed("google.protobuf")):
        raise MissingExtraError(
            f"{name} has its tokenizer as {pieces.name} only, which needs two packages: "
            "pip install sentencepiece protobuf"
        )
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except OSError as error:
        raise ArtefactError(f"{name} has no tokenizer: {first_line(error)}") from error
    except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
        raise ArtefactError(f"the tokenizer of {name} cannot be read: {first_line(error)}") from error
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise ArtefactError(f"{name} has a slow tokenizer only; save it with a tokenizer.json (AutoTokenizer, fast)")
    if pieces is not None and not others and (differing := _unlike_sentencepiece(pieces, loaded)):
        logger.warning(
            f"{name}: {type(loaded).__name__} gives other pieces than sentencepiece does with {pieces.name}, in "
            f"{differing} of {len(PROBE)} probe sentences"
        )
    return loaded


def _unlike_sentencepiece(file: Path, tokenizer: Any) -> int:
    """In how many probe sentences a tokenizer has other pieces than the SentencePiece model that it was built from."""
    from sentencepiece import SentencePieceProcessor

    try:
        reference = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError, TypeError):
        return 0  # not of SentencePiece: some tokenizer.model files are lists of byte pairs
    unknown = reference.unk_id()

    def theirs(text: str) -> list[str | None]:
        return [None if i == unknown else reference.id_to_piece(i) for i in reference.encode(text)]

    def ours(text: str) -> list[str | None]:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = tokenizer.convert_ids_to_tokens(ids)
        return [None if i == tokenizer.unk_token_id else token for i, token in zip(ids, tokens, strict=True)]

    return sum(theirs(text) != ours(text) for text in PROBE)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _ids(tokenizer: Any, text: str) -> list[int] | None:
    try:
        return list(tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"])
    except Exception:  # a class whose vocabulary lacks what it takes for granted
        return None


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model, by any name that `resolve_model` takes, as its tokenizer.json says.

    Raises:
        InputError: there is no such model, or the hub cannot be reached and the model is not in its cache.
        ArtefactError: the tokenizer's files are damaged, or it has no fast form.
        MissingExtraError: there is a SentencePiece model only, and a package that reads it is missing.
    """
    folder = model_folder(name, weights=False)
    check_product(folder)
    return read_tokenizer(folder, name)
