"""Token ids that are made once and kept on disk, and a tokeniser of words for models trained from random weights."""

import hashlib
import importlib.metadata
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from mvp_jax.data.checkpoint_inputs.tokens import Tokenizer
from mvp_jax.data.datasets import text
from mvp_jax.storage import files

_DIGEST = 16  # bytes; behind the array in its file
_PART = 1 << 16  # rows that are looked at together


def encoded(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    length: int,
    folder: str | os.PathLike[str] | None = None,
    *,
    pairs: Sequence[str] | None = None,
) -> np.ndarray:
    """Turns texts, or pairs of texts, into token ids; they are read from a file if an earlier call has kept them.

    The file's name is a digest of the texts, the tokeniser (its vocabulary, its settings and the version of its
    library) and the length, so that what is found is what would be made. Behind the ids the file holds their digest, so
    that a damaged or renamed file is noticed and made again. To every other reader it is a `.npy` file.

    Args:
        texts: N strings.
        tokenizer: a checkpoint's tokeniser (`tokens.tokenizer`), or one of `words`.
        length: how many ids a row has, special tokens included.
        folder: where ids are kept, made if absent; `None`: nowhere.
        pairs: N strings, the second text of each pair; `None`: single texts.

    Returns:
        `int32[N, length]`; if a folder is given, mapped into memory and read-only.

    Raises:
        ValueError: for texts that cannot be encoded, a length without room, or a folder that cannot be written.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> known = words(["prune the nets", "prune more"])
    >>> first = encoded(["the nets", "more"], known, 5, folder)
    >>> again = encoded(["the nets", "more"], known, 5, folder)
    >>> again.tolist(), isinstance(again, np.memmap), len(os.listdir(folder))
    ([[1, 7, 6, 2, 0], [1, 5, 2, 0, 0]], True, 1)
    """
    if folder is None or not len(texts):
        return tokenizer.encode(texts, pairs, length=length)
    path = pathlib.Path(folder) / f"ids-{_name(texts, pairs, tokenizer, length)}.npy"
    shape = (len(texts), length)
    found = _mapped(path, shape)
    if found is None:
        _write(path, tokenizer.encode(texts, pairs, length=length))
        found = _mapped(path, shape)
    if found is None:
        raise ValueError(f"{path} does not hold what was just written there; choose another folder")
    return found


def words(texts: Iterable[str], size: int = 2048) -> Tokenizer:
    """Makes a tokeniser whose tokens are the most frequent words of some texts, in lower case and without accents.

    The special tokens are those of `data.text` with the same ids, as `bert.micro` expects them. Signs are words of
    their own; an unknown word becomes `[UNK]`. Words of equal frequency come in alphabetical order.

    Args:
        texts: the texts whose words are counted, which should be those of a training split.
        size: how many tokens the vocabulary has at most, special tokens included.

    Returns:
        The tokeniser.

    Raises:
        ValueError: for a vocabulary without room, texts without words, or if `tokenizers` is not installed.

    >>> known = words(["Prune the nets!", "the votes"], size=7)
    >>> known.encode(["the nets prune"], ["VOTES!"], length=9).tolist(), known.vocab["the"]
    ([[1, 4, 6, 3, 2, 3, 5, 2, 0]], 4)
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError("a vocabulary of words needs the package `tokenizers`: pip install -e '.[text]'") from error
    special = len(text.SPECIAL)
    if size <= special:
        raise ValueError(f"size={size} has no room for words beside {special} special tokens; give at least 5")
    unknown = text.SPECIAL[text.UNK]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({unknown: 0}, unk_token=unknown))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordLevelTrainer(
        vocab_size=size, special_tokens=list(text.SPECIAL), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    vocab = backend.get_vocab(with_added_tokens=True)
    if len(vocab) == special:
        raise ValueError("the texts have no words to make a vocabulary of; give those of a training split")
    return Tokenizer(vocab=vocab, pad=text.PAD, start=text.CLS, between=(text.SEP,), end=text.SEP, backend=backend)


def _name(texts: Sequence[str], pairs: Sequence[str] | None, tokenizer: Tokenizer, length: int) -> str:
    """Returns a digest of everything that the ids depend on."""
    own = (tokenizer.pad, tokenizer.start, tokenizer.between, tokenizer.end)
    version = importlib.metadata.version("tokenizers")
    settings = f"1 {version} {length} {own} {pairs is not None} {tokenizer.backend.to_str()}"
    total = hashlib.blake2b(settings.encode(), digest_size=_DIGEST)
    for one in (*texts, *(pairs or ())):
        if not isinstance(one, str):
            continue  # `encode` says what is wrong with it
        data = one.encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def _digest(name: str, ids: np.ndarray) -> bytes:
    """Returns a digest of the ids and the file's name, so that a renamed file is noticed."""
    total = hashlib.blake2b(name.encode(), digest_size=_DIGEST)
    for start in range(0, len(ids), _PART):
        total.update(np.ascontiguousarray(ids[start : start + _PART]).data)
    return total.digest()


def _mapped(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The ids in a file, or `None` if it is missing, damaged or another's."""
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-_DIGEST, os.SEEK_END)
            written = file.read()
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(ids, np.memmap) and ids.dtype == np.int32 and ids.shape == shape and ids.flags.c_contiguous
    return ids if fits and written == _digest(path.name, ids) else None


def _write(path: pathlib.Path, ids: np.ndarray) -> None:
    """Writes a file whole or not at all; of several processes that write the same one, any may win."""
    try:
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, ids)
            file.write(_digest(path.name, ids))
    except OSError as error:
        raise ValueError(f"cannot keep ids in {path.parent}: {error}; choose a folder that can be written") from error
