"""English text without a download: the docstrings of SciPy and scikit-learn, which are installed with this package.

A class is a subpackage (`scipy.signal`, `sklearn.cluster`), an example a window of consecutive words. The packages'
files are read, never imported. The texts are those of the installed versions; a run that is to be repeated records
`versions()`.
"""

import ast
import collections
import dataclasses
import functools
import importlib.metadata
import importlib.util
import inspect
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from mvp_jax.data import sources
from mvp_jax.data.sources import Source

PAD, CLS, SEP, UNK = range(4)
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
"""The first words of every vocabulary; their ids are `PAD`, `CLS`, `SEP` and `UNK`."""

PACKAGES = {"scipy": "scipy", "sklearn": "scikit-learn"}
"""The packages that are read, and the distributions that they come with."""

_NOT_TEXT = ("tests", "externals")  # the latter are other people's packages
_NAMES = {"scipy", "sklearn", "scikit", "learn", "numpy", "np"}
_PROSE_BLOCKS = re.compile(r"\.\. (note|warning|seealso|tip|hint|important)::")
_MARKUP = re.compile(r"(:[\w:]+:)?(``[^`]{0,80}``|`[^`]{0,80}`_?)|https?://\S+")
_UNDERLINE = re.compile(r"\s*([-=~^*])\1{2,}\s*")
_SKIPPED_SECTIONS = ("references", "see also")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Text(Source):
    """A source of texts as token ids, with the words that the ids stand for.

    Attributes:
        vocabulary: the word of each id; the words of `SPECIAL` come first.
        left_out: the classes with too little text, with how many windows each has.
        versions: the versions of the packages that the text was read from.
    """

    vocabulary: tuple[str, ...]
    left_out: Mapping[str, int]
    versions: Mapping[str, str]

    def words(self, ids: np.ndarray) -> str:
        """Returns the words of one example, `int[L]`, without padding."""
        return " ".join(self.vocabulary[int(i)] for i in ids if i != PAD)


def docstrings(
    *,
    per_class: int | None = 180,
    classes: Sequence[str] | None = None,
    words: int = 24,
    vocabulary: int = 2048,
    max_run: int | None = None,
    seed: int = 0,
) -> Text:
    """Returns windows of the docstrings of SciPy and scikit-learn; the label is the subpackage that a window is from.

    Of each docstring the sentences are taken (`prose`), as lower-case words of at least two letters without the names
    of packages and subpackages, and cut into consecutive windows that do not overlap; a rest of less than half a window
    is dropped. Of windows with equal ids one is kept, or none if they occur in several classes. All classes have
    equally many windows: the first in an order drawn by the seed.

    `tasks.split` may put windows of one docstring, and sentences that docstrings repeat, into several pools: with the
    defaults, every fourth held-out window shares twelve words in a row with a training window of its class. `max_run`
    rules that out and costs text.

    Args:
        per_class: how many windows each class has; classes with fewer are left out. `None`: as many as the scarcest of
            `classes` has.
        classes: the classes in their order, such as `"scipy.signal"`; `None`: all that have enough text.
        words: how many words a window has.
        vocabulary: how many ids there are, special ones included; the words are the most frequent in all windows.
        max_run: a window that shares more than so many words in a row with an earlier window of any class is dropped;
            `None`: only equal windows are dropped.
        seed: the seed of the choice of windows.

    Returns:
        A source whose `x` is `int32[N, words + 2]`: `CLS`, words, `SEP`, and padding after a rest; no test split.

    Raises:
        ValueError: if a package is not installed, for an unknown class or one with too little text, or for numbers
            that do not fit.

    >>> source = docstrings(per_class=50, classes=("scipy.signal", "sklearn.cluster"))
    >>> source.train.x.shape, source.train.x.dtype, source.class_names
    ((100, 26), dtype('int32'), ('scipy.signal', 'sklearn.cluster'))
    """
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class is {per_class}; give at least 1, or None for as many as there are")
    installed = versions()
    known, found = _encoded(words, vocabulary, max_run)
    chosen, per_class = _chosen({name: len(ids) for name, ids in found.items()}, classes, per_class)
    # Seeded by the class's name as well, so that its windows do not depend on which other classes are chosen.
    orders = [np.random.default_rng([seed, *name.encode()]).permutation(len(found[name])) for name in chosen]
    x = np.concatenate([found[name][order[:per_class]] for name, order in zip(chosen, orders, strict=True)])
    return Text(
        name="docstrings",
        train=sources.Arrays(x, np.repeat(np.arange(len(chosen), dtype=np.int32), per_class)),
        class_names=tuple(chosen),
        vocabulary=known,
        left_out={name: len(ids) for name, ids in found.items() if len(ids) < per_class},
        versions=installed,
    )


def counts(words: int = 24, vocabulary: int = 2048, max_run: int | None = None) -> dict[str, int]:
    """Returns how many windows each subpackage has.

    Args:
        words: how many words a window has.
        vocabulary: how many ids there are, special ones included.
        max_run: how many words in a row a window may share with an earlier one; `None`: any number, if it is not equal.
    """
    return {name: len(ids) for name, ids in _encoded(words, vocabulary, max_run)[1].items()}


def versions() -> dict[str, str]:
    """Returns the versions of the packages whose docstrings are read.

    Raises:
        ValueError: if a package is not installed.
    """
    for package in PACKAGES:
        _folder(package)
    return {name: importlib.metadata.version(name) for name in PACKAGES.values()}


def prose(docstring: str) -> str:
    r"""Returns the sentences of a docstring in reStructuredText.

    Dropped are headings with their underlines, the sections "References" and "See Also", doctests up to the next blank
    line, directives with their blocks (but notes and warnings stay), literal blocks, and text in backquotes.

    >>> prose("Sum of :math:`x`.\n\nNotes\n-----\nUse it so::\n\n    f(x)\n\nEasy.\n\n>>> f(1)\n1").split()
    ['Sum', 'of', '.', 'Use', 'it', 'so', 'Easy.']
    """
    kept: list[str] = []
    lines = inspect.cleandoc(docstring).split("\n")
    block: int | None = None  # the indentation of what opened a dropped block
    doctest = section = False
    for i, line in enumerate(lines):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if text and _UNDERLINE.fullmatch(following):
            section, block = text.lower() in _SKIPPED_SECTIONS, None
            continue
        if not text:
            doctest = False
            continue
        if block is not None and indent > block:
            continue
        block = None
        doctest = doctest or text.startswith(">>>")
        directive = text.startswith(".. ") and not _PROSE_BLOCKS.match(text)
        if directive or (text.endswith("::") and not text.startswith(".. ")):
            block = indent
        if not (doctest or section or directive or _UNDERLINE.fullmatch(line)):
            kept.append(_PROSE_BLOCKS.sub("", text).removesuffix("::"))
    return _MARKUP.sub(" ", "\n".join(kept))


@functools.cache
def _encoded(words: int, vocabulary: int, max_run: int | None) -> tuple[tuple[str, ...], Mapping[str, np.ndarray]]:
    """Returns the vocabulary, and the windows `int32[n, words + 2]` of each subpackage in the order of its files."""
    if words < 2 or vocabulary <= len(SPECIAL) or (max_run is not None and max_run < 1):
        raise ValueError(
            f"words={words}, vocabulary={vocabulary}, max_run={max_run}; give windows of at least 2 words, more ids "
            f"than the {len(SPECIAL)} special ones, and a run of at least 1 word or None"
        )
    cut = {
        name: [doc[i : i + words] for doc in docs for i in range(0, len(doc), words) if 2 * len(doc[i:]) >= words]
        for name, docs in _texts().items()
    }
    frequent = collections.Counter(w for window in {w for own in cut.values() for w in own} for w in window)
    ranked = sorted(frequent, key=lambda w: (-frequent[w], w))
    known = (*SPECIAL, *ranked[: vocabulary - len(SPECIAL)])
    index = {w: i for i, w in enumerate(known)}
    owner: dict[tuple[int, ...], str | None] = {}
    for name, own in cut.items():
        for window in own:
            ids = (CLS, *(index.get(w, UNK) for w in window), SEP, *(PAD for _ in range(words - len(window))))
            owner[ids] = name if owner.get(ids, name) == name else None
    kept = list(owner if max_run is None else _unlike(owner, max_run))
    rows = {name: [ids for ids in kept if owner[ids] == name] for name in cut}
    return known, {name: np.array(own, np.int32) for name, own in rows.items() if own}


def _unlike(windows: Iterable[tuple[int, ...]], max_run: int) -> Iterator[tuple[int, ...]]:
    """Yields the windows that share at most `max_run` words in a row with any window before."""
    seen: set[tuple[int, ...]] = set()
    for ids in windows:
        words = ids[1 : ids.index(SEP)]
        runs = [words[i : i + max_run + 1] for i in range(len(words) - max_run)]
        if seen.isdisjoint(runs):
            yield ids
        seen.update(runs)


@functools.cache
def _texts() -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """Returns the words of every docstring of every subpackage."""
    folders = {
        f"{package}.{folder.name}": folder
        for package in PACKAGES
        for folder in sorted(_folder(package).iterdir())
        if (folder / "__init__.py").is_file() and not folder.name.startswith("_") and folder.name not in _NOT_TEXT
    }
    names = _NAMES | {part for name in folders for part in re.findall("[a-z]+", name)}
    texts = {}
    for name, folder in folders.items():
        docs = [re.findall("[a-z]{2,}", prose(doc).lower()) for doc in _docstrings(folder)]
        texts[name] = tuple(tuple(w for w in doc if w not in names) for doc in docs)
    return texts


def _docstrings(folder: pathlib.Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        if not set(_NOT_TEXT) & set(path.relative_to(folder).parts):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # escapes in other people's strings
                tree = ast.parse(path.read_bytes())
            yield from _of(tree)


def _of(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    doc = ast.get_docstring(node, clean=False)
    if doc:
        yield doc
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _of(child)


def _folder(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"{package} is not installed, whose docstrings are to be read; pip install {PACKAGES[package]}"
        )
    return pathlib.Path(spec.submodule_search_locations[0])


def _chosen(counts: Mapping[str, int], classes: Sequence[str] | None, per_class: int | None) -> tuple[list[str], int]:
    """Returns the classes, and how many windows each gives."""
    unknown = [c for c in classes or () if c not in counts]
    if unknown or (classes is not None and len(set(classes)) < max(1, len(classes))):
        raise ValueError(f"classes {list(classes or ())} with unknown {unknown}; choose each once, of {sorted(counts)}")
    if per_class is None:
        per_class = min(counts[c] for c in classes or counts)
    if classes is None:
        classes = [c for c, n in counts.items() if n >= per_class]
        if not classes:
            raise ValueError(f"no subpackage has {per_class} windows; the largest has {max(counts.values())}")
    scarce = {c: counts[c] for c in classes if counts[c] < per_class}
    if scarce:
        raise ValueError(f"{per_class} windows of each class asked for, but there are only {scarce}; ask for fewer")
    return list(classes), per_class
