"""The files that tokenisers of checkpoints are published as, understood and built by the package `tokenizers`.

Known are `tokenizer.json`, BERT's `vocab.txt`, and `vocab.json` with `merges.txt` of RoBERTa or CLIP.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mvp_jax.storage import foreign_files, json_files

_PAIRS = ("vocab.json", "merges.txt")
START, END = "<|startoftext|>", "<|endoftext|>"
"""CLIP's marks of the start and the end of a text."""

_NAMES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_WORD_PIECES = dict(zip(_NAMES, ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), strict=True))
_BYTE_PAIRS = dict(zip(_NAMES, ("<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True))
CLIP = {"unk_token": END, "eos_token": END, "pad_token": END, "bos_token": START}
"""The names of CLIP's special tokens."""

# Ends after an apostrophe stand apart, each digit alone; all other signs run together.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def library() -> Any:
    """Returns the package `tokenizers`.

    Raises:
        ValueError: if it is not installed, with the command that installs it.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("tokenisers need the package `tokenizers`: pip install -e '.[text]'") from error
    return tokenizers


def builder(folder: pathlib.Path) -> tuple[Callable[[pathlib.Path, dict[str, Any]], Any], dict[str, Any]]:
    """Chooses how the tokeniser in a folder is built, by the files that are there.

    Args:
        folder: a checkpoint's folder.

    Returns:
        A function of the folder and the settings that gives a `tokenizers.Tokenizer`; and the settings.

    Raises:
        ValueError: for files that are missing, of another kind, or no JSON.
    """
    for name in ("tokenizer.json", "vocab.txt", *_PAIRS):
        if (folder / name).exists():
            foreign_files.plain_file(folder / name, foreign_files.LONGEST)
    settings, described = _settings(folder), json_files.read_json(folder / "config.json", missing={})
    if (folder / "tokenizer.json").exists():
        return _saved, settings
    if (folder / "vocab.txt").exists():
        return _word_pieces, _WORD_PIECES | settings
    missing = [name for name in _PAIRS if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"{folder} has neither tokenizer.json nor vocab.txt, and no {' and no '.join(missing)}; download the "
            "tokeniser's files with the weights"
        )
    if _is_clip(folder, settings, described):
        return _clip, CLIP | settings
    return _byte_pairs, _BYTE_PAIRS | settings


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """The settings in the files beside the vocabulary, without those that are null."""
    config, names = (
        json_files.read_json(folder / name, missing={}) for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    # As transformers reads them: files that list the added tokens have all names right.
    merged = names | config if "added_tokens_decoder" in config else config | names
    settings = {key: value for key, value in merged.items() if value is not None}
    settings["added"] = list(json_files.read_json(folder / "added_tokens.json", missing={}))
    for key in ("padding_side", "truncation_side"):
        if settings.get(key, "right") != "right":
            raise ValueError(f"{folder}: {key} is {settings[key]!r:.20}; only ends of texts are padded and cut")
    return settings


def name_of(token: Any) -> str:
    """Returns the text of a special token, which files give as a string or as an object with `content`.

    Raises:
        ValueError: for anything else.

    >>> name_of("[PAD]"), name_of({"content": "<mask>", "lstrip": True})
    ('[PAD]', '<mask>')
    """
    name = token.get("content") if isinstance(token, dict) else token
    if not isinstance(name, str):
        raise ValueError(f"a special token is {token!r:.60}; it must be a string, or an object with `content`")
    return name


def _mark_special(backend: Any, settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Marks the special tokens, which are never cut; returns the text and id of each. The mask token may be missing."""
    options, found = ("single_word", "lstrip", "rstrip", "normalized"), {}
    for key in names:
        token, name = settings[key], name_of(settings[key])
        known = backend.token_to_id(name)
        if known is not None:
            given = {o: bool(token[o]) for o in options if o in token} if isinstance(token, dict) else {}
            backend.add_special_tokens([library().AddedToken(name, special=True, **given)])
            found[key] = name, known
        elif key != "mask_token":
            raise ValueError(f"{key} {name!r} is not in the vocabulary; name it right in tokenizer_config.json")
    added = [*settings.get("added", ()), *map(name_of, dict(settings.get("added_tokens_decoder", {})).values())]
    strange = sorted(name for name in added if backend.token_to_id(name) is None)
    if strange:
        raise ValueError(f"{strange[:5]} are added to the vocabulary's tokens; save it with tokenizer.json")
    return found


def _saved(folder: pathlib.Path, settings: dict[str, Any]) -> Any:
    """Builds from `tokenizer.json`; settings of lower case and accents have the last word, as in transformers."""
    tokenizers = library()
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    old = backend.normalizer
    if isinstance(old, tokenizers.normalizers.BertNormalizer):
        backend.normalizer = tokenizers.normalizers.BertNormalizer(
            clean_text=old.clean_text,
            handle_chinese_chars=settings.get("tokenize_chinese_chars", old.handle_chinese_chars),
            strip_accents=settings.get("strip_accents", old.strip_accents),
            lowercase=settings.get("do_lower_case", old.lowercase),
        )
    return backend


def _word_pieces(folder: pathlib.Path, settings: dict[str, Any]) -> Any:
    tokenizers = library()
    kind = str(settings.get("tokenizer_class", "BertTokenizer")).removesuffix("Fast")
    split = settings.get("do_basic_tokenize", True)
    if kind not in ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer") or not split:
        raise ValueError(f"vocab.txt of a {kind}, do_basic_tokenize={split}, is not BERT's; save tokenizer.json")
    # Not str.splitlines, as some tokens are line separators of Unicode.
    with (folder / "vocab.txt").open(encoding="utf-8") as file:
        vocab = {line.removesuffix("\n"): i for i, line in enumerate(file)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=vocab, unk_token=name_of(settings["unk_token"])))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
    special = _mark_special(backend, settings, _WORD_PIECES)
    backend.post_processor = tokenizers.processors.BertProcessing(special["sep_token"], special["cls_token"])
    return backend


def _is_clip(folder: pathlib.Path, settings: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
    named = str(settings.get("tokenizer_class") or described.get("model_type")).removesuffix("Fast")
    kinds = {"CLIPTokenizer": True, "RobertaTokenizer": False, "clip": True, "clip_text_model": True, "roberta": False}
    if named not in kinds:
        raise ValueError(
            f"{folder}: vocab.json and merges.txt are of {named!r:.40} (tokenizer_class in tokenizer_config.json, or "
            f"model_type in config.json); known are {sorted(kinds)}, any other needs tokenizer.json"
        )
    return kinds[named]


def _byte_pairs(folder: pathlib.Path, settings: dict[str, Any]) -> Any:
    """Builds RoBERTa's tokeniser of byte pairs, in which a blank belongs to the word after it."""
    tokenizers = library()
    backend = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*(str(folder / name) for name in _PAIRS)))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    backend.decoder = tokenizers.decoders.ByteLevel()
    if settings["mask_token"] == _BYTE_PAIRS["mask_token"]:  # it takes in the blank before it, as in training
        settings = settings | {"mask_token": {"content": _BYTE_PAIRS["mask_token"], "lstrip": True}}
    special = _mark_special(backend, settings, _BYTE_PAIRS)
    backend.post_processor = tokenizers.processors.RobertaProcessing(special["sep_token"], special["cls_token"])
    return backend


def _clip(folder: pathlib.Path, settings: dict[str, Any]) -> Any:
    return clip_pairs(library().models.BPE.read_file(*(str(folder / name) for name in _PAIRS)), settings)


def clip_pairs(pairs: tuple[Mapping[str, int], Sequence[tuple[str, ...]]], settings: Mapping[str, Any]) -> Any:
    """Builds CLIP's tokeniser of byte pairs, in which the end of a word is marked.

    Args:
        pairs: the vocabulary, the id of each token, and the merges in their order.
        settings: the names of the special tokens, as in `CLIP`.

    Returns:
        A `tokenizers.Tokenizer`.
    """
    tokenizers = library()
    normal, before = tokenizers.normalizers, tokenizers.pre_tokenizers
    unknown, marks = name_of(settings["unk_token"]), {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(*pairs, unk_token=unknown, **marks))
    backend.normalizer = normal.Sequence(
        [normal.NFC(), normal.Replace(tokenizers.Regex(r"\s+"), " "), normal.Lowercase()]
    )
    words = before.Split(tokenizers.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = before.Sequence([words, before.ByteLevel(add_prefix_space=False)])
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = _mark_special(backend, settings, CLIP)
    backend.post_processor = tokenizers.processors.RobertaProcessing(special["eos_token"], special["bos_token"])
    return backend
