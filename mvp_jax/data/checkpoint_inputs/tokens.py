"""Texts as the ids that a checkpoint was trained on: its own tokeniser, read from its own files.

The work is done by `tokenizers`, an extra (`pip install 'mvp-jax[text]'`). Here the files are found and understood, and
texts become one array of one length, with the checkpoint's own special tokens and padding.
"""

import dataclasses
import gzip
import itertools
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.storage import json_files

_CHUNK = 2048  # texts; what `tokenizers` returns is some hundred bytes a token, ids are four
_PAIRS = ("vocab.json", "merges.txt")
_START, _END = "<|startoftext|>", "<|endoftext|>"
_NAMES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_WORD_PIECES = dict(zip(_NAMES, ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), strict=True))
_BYTES = dict(zip(_NAMES, ("<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True))
_CLIP = {"unk_token": _END, "eos_token": _END, "pad_token": _END, "bos_token": _START}
_PADS = ("[PAD]", "<pad>", _END)  # by convention, where no file says it
# Ends after an apostrophe stand apart, each digit alone; all other signs run together.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """What turns texts into the ids of one checkpoint, and back.

    Attributes:
        vocab: the id of each token, the special ones included.
        pad: the id after the end of a text; CLIP pads with `end`.
        start: the id that a text begins with.
        between: the ids between the two texts of a pair.
        end: the id that a text ends with.
        backend: the `tokenizers.Tokenizer`; it neither cuts nor pads.
    """

    vocab: Mapping[str, int] = dataclasses.field(repr=False)
    pad: int
    start: int
    between: tuple[int, ...]
    end: int
    backend: Any = dataclasses.field(repr=False)

    @property
    def separator(self) -> int:
        """The id after the first text of a pair, by which a model tells it from the second."""
        return (*self.between, self.end)[0]

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, length: int) -> np.ndarray:
        """The ids of texts or of pairs of texts, all of one length.

        What is too long loses its end, and keeps its special tokens. Of a pair each text may fill half of the room,
        and more if the other leaves it some.

        Args:
            texts: N of them.
            pairs: the second text of each, if there is one.
            length: of the result, special tokens included.

        Returns:
            `int32[N, length]`, padded at the end.

        Raises:
            ValueError: if there is no room beside the special tokens, or for anything but strings, as many of each.
        """
        first, second = _texts("texts", texts), None if pairs is None else _texts("pairs", pairs)
        if second is not None and len(second) != len(first):
            raise ValueError(f"{len(first)} texts and {len(second)} pairs; give a second text for each, or pairs=None")
        special = 2 if second is None else 2 + len(self.between)
        least = special + (1 if second is None else 2)
        if length < least:
            raise ValueError(f"length={length} has no room beside {special} special tokens; give at least {least}")
        ids = np.full((len(first), length), self.pad, np.int32)
        for at in range(0, len(first), _CHUNK):
            heads = _pieces(self.backend, first[at : at + _CHUNK])
            tails = [[]] * len(heads) if second is None else _pieces(self.backend, second[at : at + _CHUNK])
            for row, head, tail in zip(ids[at:], heads, tails, strict=False):
                a, b = _shortened(head, tail, length - special)
                found = [self.start, *a, *(() if second is None else self.between), *b, self.end]
                row[: len(found)] = found
        return ids

    def decode(self, ids: np.ndarray) -> list[str]:
        """The text of each row, without special tokens; the two texts of a pair run on.

        Args:
            ids: `int[N, L]`.

        Returns:
            N texts, lower-case and with blanks as the vocabulary has them.

        Raises:
            ValueError: for other shapes or kinds, or ids beyond the vocabulary.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(f"ids are {ids.dtype}{list(ids.shape)}; give integers [N, L], one text as ids[None]")
        last = max(self.vocab.values())
        if ids.size and not 0 <= ids.min() <= ids.max() <= last:
            raise ValueError(f"ids are {ids.min()} to {ids.max()}; this vocabulary has 0 to {last}")
        texts: list[str] = self.backend.decode_batch(ids.tolist(), skip_special_tokens=True)
        # Byte-level decoding leaves the mark that CLIP ends words with.
        mark = getattr(self.backend.model, "end_of_word_suffix", None)
        return [text.replace(mark, " ").strip() for text in texts] if mark else texts


def tokenizer(source: str | os.PathLike[str]) -> Tokenizer:
    r"""The tokeniser in a checkpoint's folder.

    Read is `tokenizer.json`; or `vocab.txt`, as BERT's word pieces; or `vocab.json` with `merges.txt`, as RoBERTa's
    or CLIP's byte pairs, whichever `tokenizer_class` in `tokenizer_config.json` or `model_type` in `config.json`
    names. Settings (`do_lower_case`, `strip_accents`, names of special tokens) are those of `tokenizer_config.json`
    and `special_tokens_map.json`. CLIP's texts are put into lower case and their blanks are joined; broken or
    HTML-coded characters stay, which OpenAI's own code mends.

    Args:
        source: the folder.

    Returns:
        The tokeniser.

    Raises:
        ValueError: for files that are missing, broken or of another kind, or a vocabulary that is larger than
            `vocab_size` in `config.json`; and if `tokenizers` is not installed.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nprune\n##d\nnets\n")
    >>> known = tokenizer(folder)
    >>> ids = known.encode(["Pruned nets", "Nets"], length=6)
    >>> ids.tolist(), known.decode(ids)
    ([[2, 4, 5, 6, 3, 0], [2, 6, 3, 0, 0, 0]], ['pruned nets', 'nets'])

    Reference: Wu et al., arXiv:1609.08144, section 4.1 (word pieces); Sennrich et al., arXiv:1508.07909, section 3.2
    (byte pairs).
    """
    _library()
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one with tokenizer.json, or vocab.txt, of a checkpoint")
    settings, described = _settings(folder), json_files.read_json(folder / "config.json", missing={})
    if (folder / "tokenizer.json").exists():
        build: Callable[[pathlib.Path, dict[str, Any]], Any] = _saved
    elif (folder / "vocab.txt").exists():
        build, settings = _word_pieces, _WORD_PIECES | settings
    else:
        missing = [name for name in _PAIRS if not (folder / name).exists()]
        if missing:
            raise ValueError(
                f"{folder} has neither tokenizer.json nor vocab.txt, and no {' and no '.join(missing)}; download the "
                "tokeniser's files with the weights"
            )
        clip = _is_clip(folder, settings, described)
        build, settings = (_clip, _CLIP | settings) if clip else (_bytes, _BYTES | settings)
    try:
        made = _finished(build(folder, settings), settings.get("pad_token"))
    except Exception as error:  # `tokenizers` raises nothing more special
        raise ValueError(f"the tokeniser in {folder} is refused: {error}") from error
    own, largest = described.get("text_config"), max(made.vocab.values())
    size = (own if isinstance(own, dict) else described).get("vocab_size")
    if isinstance(size, int) and largest >= size:
        raise ValueError(
            f"{folder}: the tokeniser has ids up to {largest}, the model in config.json {size}; the files are of two "
            "checkpoints, or tokens were added without the model"
        )
    return made


def clip_bpe(path: str | os.PathLike[str], *, size: int = 49_408) -> Tokenizer:
    """CLIP's tokeniser from OpenAI's own file, `bpe_simple_vocab_16e6.txt.gz`.

    Ids are the 256 bytes in the order of the characters that stand for them, the same as ends of words, the merges in
    the order of the file, and the two marks of start and end. The same ids as from `vocab.json` and `merges.txt` of
    the published checkpoints; padding is the end mark, as there, where OpenAI's code has zeros.

    Args:
        path: the file.
        size: how many ids there are; the file has more merges than CLIP uses.

    Returns:
        The tokeniser.

    Raises:
        ValueError: if the file is missing, broken or too short, or `tokenizers` is not installed.

    Reference: Radford et al., arXiv:2103.00020, section 2.4.
    """
    alphabet = sorted(_library().pre_tokenizers.ByteLevel.alphabet())
    count = size - 2 * len(alphabet) - 2
    if count < 0:
        raise ValueError(f"size={size} must hold {len(alphabet)} bytes twice and two marks; CLIP's is 49408")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = list(itertools.islice(file, 1, count + 1))  # the first line tells of the version
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a gzipped list of merges: {error}") from error
    merges = [tuple(line.split()) for line in lines]
    good = sum(len(merge) == 2 for merge in merges)
    if good < count:
        raise ValueError(f"{path} has {good} merges of two tokens in its first {count} lines; size={size} needs all")
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges), _START, _END]
    try:
        return _finished(_clip_around(({word: i for i, word in enumerate(words)}, merges), _CLIP), _END)
    except Exception as error:  # `tokenizers` raises nothing more special
        raise ValueError(f"the merges in {path} do not build on each other: {error}") from error


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("tokenisers need the package `tokenizers`: pip install 'mvp-jax[text]'") from error
    return tokenizers


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """What is set in the files beside the vocabulary; what is null is not."""
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


def _name(token: Any) -> str:
    """The text of a special token, which may stand in an object with its options."""
    name = token.get("content") if isinstance(token, dict) else token
    if not isinstance(name, str):
        raise ValueError(f"a special token is {token!r:.60}; it must be a string, or an object with `content`")
    return name


def _special(backend: Any, settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Marks the special tokens, which are never cut, as such; gives each with its id. The mask may be missing."""
    options, found = ("single_word", "lstrip", "rstrip", "normalized"), {}
    for key in names:
        token, name = settings[key], _name(settings[key])
        known = backend.token_to_id(name)
        if known is not None:
            given = {o: bool(token[o]) for o in options if o in token} if isinstance(token, dict) else {}
            backend.add_special_tokens([_library().AddedToken(name, special=True, **given)])
            found[key] = name, known
        elif key != "mask_token":
            raise ValueError(f"{key} {name!r} is not in the vocabulary; name it right in tokenizer_config.json")
    added = [*settings.get("added", ()), *map(_name, dict(settings.get("added_tokens_decoder", {})).values())]
    strange = sorted(name for name in added if backend.token_to_id(name) is None)
    if strange:
        raise ValueError(f"{strange[:5]} are added to the vocabulary's tokens; save it with tokenizer.json")
    return found


def _saved(folder: pathlib.Path, settings: dict[str, Any]) -> Any:
    """A whole tokeniser; what the settings say of lower case and accents has the last word, as in transformers."""
    library = _library()
    backend = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    old = backend.normalizer
    if isinstance(old, library.normalizers.BertNormalizer):
        backend.normalizer = library.normalizers.BertNormalizer(
            clean_text=old.clean_text,
            handle_chinese_chars=settings.get("tokenize_chinese_chars", old.handle_chinese_chars),
            strip_accents=settings.get("strip_accents", old.strip_accents),
            lowercase=settings.get("do_lower_case", old.lowercase),
        )
    return backend


def _word_pieces(folder: pathlib.Path, settings: dict[str, Any]) -> Any:
    library = _library()
    kind = str(settings.get("tokenizer_class", "BertTokenizer")).removesuffix("Fast")
    split = settings.get("do_basic_tokenize", True)
    if kind not in ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer") or not split:
        raise ValueError(f"vocab.txt of a {kind}, do_basic_tokenize={split}, is not BERT's; save tokenizer.json")
    # Not str.splitlines, as some tokens are line separators of Unicode.
    with (folder / "vocab.txt").open(encoding="utf-8") as file:
        vocab = {line.removesuffix("\n"): i for i, line in enumerate(file)}
    backend = library.Tokenizer(library.models.WordPiece(vocab=vocab, unk_token=_name(settings["unk_token"])))
    backend.normalizer = library.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    backend.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    backend.decoder = library.decoders.WordPiece(prefix="##")
    special = _special(backend, settings, _WORD_PIECES)
    backend.post_processor = library.processors.BertProcessing(special["sep_token"], special["cls_token"])
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


def _bytes(folder: pathlib.Path, settings: dict[str, Any]) -> Any:
    """RoBERTa's byte pairs, in which a blank belongs to the word after it."""
    library = _library()
    backend = library.Tokenizer(library.models.BPE.from_file(*(str(folder / name) for name in _PAIRS)))
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    backend.decoder = library.decoders.ByteLevel()
    if settings["mask_token"] == _BYTES["mask_token"]:  # it takes in the blank before it, as in training
        settings = settings | {"mask_token": {"content": _BYTES["mask_token"], "lstrip": True}}
    special = _special(backend, settings, _BYTES)
    backend.post_processor = library.processors.RobertaProcessing(special["sep_token"], special["cls_token"])
    return backend


def _clip(folder: pathlib.Path, settings: dict[str, Any]) -> Any:
    return _clip_around(_library().models.BPE.read_file(*(str(folder / name) for name in _PAIRS)), settings)


def _clip_around(pairs: tuple[Mapping[str, int], Sequence[tuple[str, ...]]], settings: Mapping[str, Any]) -> Any:
    """CLIP's byte pairs, in which a word's end is marked, given as its vocabulary and merges."""
    library = _library()
    normal, before = library.normalizers, library.pre_tokenizers
    unknown, marks = _name(settings["unk_token"]), {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
    backend = library.Tokenizer(library.models.BPE(*pairs, unk_token=unknown, **marks))
    backend.normalizer = normal.Sequence([normal.NFC(), normal.Replace(library.Regex(r"\s+"), " "), normal.Lowercase()])
    words = before.Split(library.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = before.Sequence([words, before.ByteLevel(add_prefix_space=False)])
    backend.decoder = library.decoders.ByteLevel()
    special = _special(backend, settings, _CLIP)
    backend.post_processor = library.processors.RobertaProcessing(special["eos_token"], special["bos_token"])
    return backend


def _finished(backend: Any, pad: Any) -> Tokenizer:
    """Reads off what the special ids are, by what is put around a letter."""
    padding = backend.padding
    backend.no_padding()
    backend.no_truncation()
    probe = backend.encode("a", add_special_tokens=False)
    own, alone, pair = probe.ids, backend.post_process(probe).ids, backend.post_process(probe, probe).ids
    start, end, between = alone[0], alone[-1], pair[1 + len(own) : -1 - len(own)]
    if not own or alone != [start, *own, end] or pair != [start, *own, *between, *own, end]:
        raise ValueError(f"{own} becomes {alone}, as a pair {pair}; around both must stand one special id each")
    names = [_name(pad)] if pad is not None else [padding["pad_token"]] if padding else _PADS
    found = [i for i in map(backend.token_to_id, names) if i is not None]
    if not found:
        raise ValueError(f"there is no padding token {names}; name one as pad_token in tokenizer_config.json")
    return Tokenizer(
        vocab=backend.get_vocab(with_added_tokens=True),
        pad=found[0],
        start=start,
        between=tuple(between),
        end=end,
        backend=backend,
    )


def _texts(what: str, given: Sequence[str]) -> list[str]:
    texts = list(given)
    wrong = [given] if isinstance(given, str) else [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise ValueError(f"{what} are {wrong[0]!r:.60}; give a list of strings")
    return texts


def _pieces(backend: Any, texts: list[str]) -> list[list[int]]:
    try:
        return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]
    except Exception as error:  # `tokenizers` raises nothing more special
        raise ValueError(f"a text cannot be encoded: {error}") from error


def _shortened(head: list[int], tail: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cuts ends off until both fit: the shorter one keeps up to half of the room, the other what is left.

    `tokenizers` does the same, but keeps every way to pair what it cut off, which takes long for long texts.
    """
    if len(head) + len(tail) <= room:
        return head, tail
    kept = min(len(head), len(tail), room // 2)
    return (head[:kept], tail[: room - kept]) if len(head) <= len(tail) else (head[: room - kept], tail[:kept])
