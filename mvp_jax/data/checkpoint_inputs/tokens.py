"""Texts as the token ids that a checkpoint was trained on, by its own tokeniser.

Texts become one array of one length, with the checkpoint's own special tokens and padding. The tokeniser's files are
understood by `tokenizer_files`; the work is done by `tokenizers`, an extra (`pip install -e '.[text]'`).
"""

import dataclasses
import gzip
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.data.checkpoint_inputs import tokenizer_files
from mvp_jax.storage import foreign_files, json_files

_CHUNK = 2048  # texts; what `tokenizers` returns is some hundred bytes a token, ids are four
_LONGEST_LINE = 1000  # characters of a line of merges
_PADS = ("[PAD]", "<pad>", tokenizer_files.END)  # by convention, where no file says it


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A checkpoint's tokeniser: turns texts into token ids, and back.

    Attributes:
        vocab: the id of each token, special tokens included.
        pad: the id that fills a row after the end of its text; CLIP fills with `end`.
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
        """The id that follows the first text of a pair, by which a model tells it from the second text."""
        return (*self.between, self.end)[0]

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, length: int) -> np.ndarray:
        """Turns texts, or pairs of texts, into token ids of one length.

        A text that is too long loses its end, and keeps its special tokens. Each text of a pair may fill half of the
        room, and more if the other text leaves some.

        Args:
            texts: N strings.
            pairs: N strings, the second text of each pair; `None`: single texts.
            length: how many ids a row has, special tokens included.

        Returns:
            `int32[N, length]`, padded at the end.

        Raises:
            ValueError: if the length has no room beside the special tokens, for anything but strings, or for another
                number of second texts than of first ones.
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
        """Turns token ids back into texts, without special tokens; the two texts of a pair become one.

        Args:
            ids: `int[N, L]`.

        Returns:
            N texts, with lower case and blanks as the vocabulary has them.

        Raises:
            ValueError: if `ids` is not integers `[N, L]`, or has ids that are not in the vocabulary.
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
    r"""Reads the tokeniser in a checkpoint's folder.

    One of these is read: `tokenizer.json`; `vocab.txt`, as BERT's word pieces; `vocab.json` with `merges.txt`, as
    RoBERTa's or CLIP's byte pairs, whichever `tokenizer_class` in `tokenizer_config.json` or `model_type` in
    `config.json` names. Settings (`do_lower_case`, `strip_accents`, names of special tokens) come from
    `tokenizer_config.json` and `special_tokens_map.json`. CLIP's texts are put into lower case and their blanks are
    joined; broken or HTML-coded characters, which OpenAI's own code mends, stay as they are.

    Args:
        source: the checkpoint's folder.

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
    tokenizer_files.library()
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one with tokenizer.json, or vocab.txt, of a checkpoint")
    build, settings = tokenizer_files.builder(folder)
    described = json_files.read_json(folder / "config.json", missing={})
    try:
        made = _finished(build(folder, settings), settings.get("pad_token"))
    except Exception as error:  # `tokenizers` raises nothing more special
        reason = foreign_files.told(error) or type(error).__name__
        raise ValueError(f"the tokeniser in {folder} is refused: {reason}") from error
    own, largest = described.get("text_config"), max(made.vocab.values())
    size = (own if isinstance(own, dict) else described).get("vocab_size")
    if isinstance(size, int) and largest >= size:
        raise ValueError(
            f"{folder}: the tokeniser has ids up to {largest}, the model in config.json {size}; the files are of two "
            "checkpoints, or tokens were added without the model"
        )
    return made


def clip_bpe(path: str | os.PathLike[str], *, size: int = 49_408) -> Tokenizer:
    """Reads CLIP's tokeniser from OpenAI's own file, `bpe_simple_vocab_16e6.txt.gz`.

    Its ids are the 256 bytes in the order of the characters that stand for them, the 256 bytes as ends of words, the
    merges in the order of the file, and the marks of start and end. They equal the ids that `vocab.json` and
    `merges.txt` of the published checkpoints give. Rows are padded with the end mark, as there; OpenAI's code pads with
    zeros.

    Args:
        path: the gzipped file.
        size: how many ids the vocabulary has; the file has more merges than CLIP uses.

    Returns:
        The tokeniser.

    Raises:
        ValueError: if the file is missing, broken or too short, or `tokenizers` is not installed.

    Reference: Radford et al., arXiv:2103.00020, section 2.4.
    """
    alphabet = sorted(tokenizer_files.library().pre_tokenizers.ByteLevel.alphabet())
    count = size - 2 * len(alphabet) - 2
    if count < 0:
        raise ValueError(f"size={size} must hold {len(alphabet)} bytes twice and two marks; CLIP's is 49408")
    try:
        with gzip.open(foreign_files.plain_file(path), "rt", encoding="utf-8") as file:
            lines = [file.readline(_LONGEST_LINE) for _ in range(count + 1)][1:]  # the first tells of the version
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a gzipped list of merges: {error}") from error
    merges = [tuple(line.split()) for line in lines]
    good = sum(len(merge) == 2 for merge in merges)
    if good < count:
        raise ValueError(f"{path} has {good} merges of two tokens in its first {count} lines; size={size} needs all")
    words = [
        *alphabet,
        *(letter + "</w>" for letter in alphabet),
        *(a + b for a, b in merges),
        tokenizer_files.START,
        tokenizer_files.END,
    ]
    try:
        return _finished(
            tokenizer_files.clip_pairs(({word: i for i, word in enumerate(words)}, merges), tokenizer_files.CLIP),
            tokenizer_files.END,
        )
    except Exception as error:  # `tokenizers` raises nothing more special
        raise ValueError(f"the merges in {path} do not build on each other: {foreign_files.told(error)}") from error


def _finished(backend: Any, pad: Any) -> Tokenizer:
    """Makes a `Tokenizer` of a backend; its special ids are read off what the backend puts around a letter."""
    padding = backend.padding
    backend.no_padding()
    backend.no_truncation()
    probe = backend.encode("a", add_special_tokens=False)
    own, alone, pair = probe.ids, backend.post_process(probe).ids, backend.post_process(probe, probe).ids
    start, end, between = alone[0], alone[-1], pair[1 + len(own) : -1 - len(own)]
    if not own or alone != [start, *own, end] or pair != [start, *own, *between, *own, end]:
        raise ValueError(f"{own} becomes {alone}, as a pair {pair}; around both must stand one special id each")
    names = [tokenizer_files.name_of(pad)] if pad is not None else [padding["pad_token"]] if padding else _PADS
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
