"""GLUE, the General Language Understanding Evaluation: its tasks, read from tables or from prepared files.

The official test splits have no labels, so what is reported on is the official development split, as in the papers.
Three layouts are known, and found by themselves in one folder: `rte_train.tsv` and `rte_dev.tsv` with columns `label`,
`sentence1` and, of pairs, `sentence2`; GLUE's own, `RTE/train.tsv` and `RTE/dev.tsv`; and `glue/rte/VERSION` as
tensorflow-datasets prepares it (array_record; read without TensorFlow).
"""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from mvp_jax.data import sources
from mvp_jax.data.checkpoint_inputs import encoded
from mvp_jax.data.checkpoint_inputs.tokens import Tokenizer
from mvp_jax.storage import foreign_files

_HOME = "~/tensorflow_datasets"
_CHUNK = 4096  # records that are read together
_BEST, _WORST = 5.0, 0.0  # of a similarity


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlueTask:
    """A task of GLUE, and how its files are read.

    Attributes:
        name: the task's name in tensorflow-datasets.
        folder: its folder in GLUE's own layout.
        columns: the columns of that layout's tables with the label, then with the sentences.
        header: the names of all columns, for tables without a header line; `()`: the tables have one.
        features: the sentences' names in tensorflow-datasets, in the same order.
        labels: the name of each class; `()`: the task is a regression, of scores from 0 to 5.
        metrics: the names of the metrics that GLUE reports.
        broken: whether GLUE's own tables have rows with missing columns, which are left out, as everybody does.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    header: tuple[str, ...] = ()
    features: tuple[str, ...] = ("sentence1", "sentence2")
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    broken: bool = False

    @property
    def classes(self) -> int:
        """How many outputs a model needs; 1 for a regression."""
        return max(len(self.labels), 1)

    @property
    def regression(self) -> bool:
        """Whether the task asks for a score instead of a class."""
        return not self.labels

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits as file names call them; the first is to learn from, the second to report on."""
        return ("train", "dev_matched", "dev_mismatched") if self.name == "mnli" else ("train", "dev")


_ENTAILED = ("entailment", "not_entailment")
TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            name="cola",
            folder="CoLA",
            columns=("label", "sentence"),
            header=("source", "label", "mark", "sentence"),
            features=("sentence",),
            labels=("unacceptable", "acceptable"),
            metrics=("matthews",),
        ),
        GlueTask(
            name="sst2",
            folder="SST-2",
            columns=("label", "sentence"),
            features=("sentence",),
            labels=("negative", "positive"),
        ),
        GlueTask(
            name="mrpc",
            folder="MRPC",
            columns=("Quality", "#1 String", "#2 String"),
            labels=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
        ),
        GlueTask(
            name="qqp",
            folder="QQP",
            columns=("is_duplicate", "question1", "question2"),
            features=("question1", "question2"),
            labels=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            broken=True,
        ),
        GlueTask(
            name="stsb",
            folder="STS-B",
            columns=("score", "sentence1", "sentence2"),
            labels=(),
            metrics=("pearson", "spearman"),
        ),
        GlueTask(
            name="mnli",
            folder="MNLI",
            columns=("gold_label", "sentence1", "sentence2"),
            features=("premise", "hypothesis"),
            labels=("entailment", "neutral", "contradiction"),
        ),
        GlueTask(
            name="qnli",
            folder="QNLI",
            columns=("label", "question", "sentence"),
            features=("question", "sentence"),
            labels=_ENTAILED,
        ),
        GlueTask(name="rte", folder="RTE", columns=("label", "sentence1", "sentence2"), labels=_ENTAILED),
    )
}
"""The tasks by name. WNLI, whose development split contradicts its training split, and AX, which has no labels, are
left out."""


class GlueTexts(NamedTuple):
    """The texts of one split.

    Attributes:
        first: N sentences.
        second: N sentences, the second ones of pairs; `None`: the task has single sentences.
        y: labels `int32[N]`, or scores `float32[N]` of a regression.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    y: np.ndarray


class GlueSplits(NamedTuple):
    """The texts of all splits of a task.

    Attributes:
        train: the official training split, to learn from.
        valid: the official development split, to report on; of MNLI the matched one.
        mismatched: MNLI's development split of genres that are not trained on; `None` for other tasks.
    """

    train: GlueTexts
    valid: GlueTexts
    mismatched: GlueTexts | None = None


def task(name: str) -> GlueTask:
    """Returns the task of a name, which may begin with `glue/`.

    Raises:
        ValueError: for an unknown name, with the nearest ones.

    >>> task("glue/mrpc").metrics
    ('accuracy', 'f1')
    """
    short = name.removeprefix("glue/")
    if short not in TASKS:
        near = difflib.get_close_matches(short.lower().replace("-", ""), TASKS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"no GLUE task {name!r}; {hint}there are {', '.join(TASKS)}")
    return TASKS[short]


def read(name: str, path: str | os.PathLike[str] = "") -> GlueSplits:
    r"""Reads a task's texts and labels.

    Args:
        name: the task's name, one of `TASKS`.
        path: a folder in one of the three layouts; empty: `$TFDS_DATA_DIR`, or where tensorflow-datasets puts its data.

    Returns:
        The splits, with their examples in the order of the files.

    Raises:
        ValueError: for an unknown task, a folder without its files, a missing split; a file that is empty, not UTF-8
            or lacks a column; a row with too many or too few columns, or a label that the task does not have.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "sst2_train.tsv").write_text("label\tsentence1\n1\tfine work\n0\tdull\n")
    >>> _ = (folder / "sst2_dev.tsv").write_text("label\tsentence1\n1\tit works\n")
    >>> found = read("sst2", folder)
    >>> found.train.first, found.train.y.tolist(), found.valid.first
    (('fine work', 'dull'), [1, 0], ('it works',))

    Reference: Wang et al., arXiv:1804.07461, section 3.
    """
    known = task(name)
    one = _layout(known, pathlib.Path(path or os.environ.get("TFDS_DATA_DIR") or _HOME).expanduser())
    return GlueSplits(*(one(split) for split in known.splits))


def arrays(
    name: str,
    path: str | os.PathLike[str] = "",
    tokenizer: Tokenizer | None = None,
    *,
    length: int = 128,
    vocabulary: int = 2048,
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, sources.Arrays]:
    """Reads a task's splits as token ids.

    A pair becomes one row, with the tokeniser's separator between its texts, by which a model tells them apart.

    Args:
        name: the task's name, one of `TASKS`.
        path: a folder in one of the three layouts; empty: `$TFDS_DATA_DIR`, or where tensorflow-datasets puts its data.
        tokenizer: a checkpoint's tokeniser; `None`: one is made of the words of the training split (`encoded.words`).
        length: how many ids a row has.
        vocabulary: how many tokens the tokeniser that is made here has.
        cache: a folder in which ids are kept, so that the next run need not make them again; `None`: nowhere.

    Returns:
        Token ids `int32[N, length]` with labels `int32[N]`, or scores `float32[N]` of a regression, for the splits
        `train`, `valid` and, of MNLI, `mismatched`.

    Raises:
        ValueError: for files that cannot be read, texts that cannot be encoded, or a cache that cannot be written.
    """
    found = read(name, path)
    if tokenizer is None:
        tokenizer = encoded.words((*found.train.first, *(found.train.second or ())), vocabulary)
    return {
        split: sources.Arrays(encoded.encoded(texts.first, tokenizer, length, cache, pairs=texts.second), texts.y)
        for split, texts in found._asdict().items()
        if texts is not None
    }


def source(
    name: str,
    path: str | os.PathLike[str] = "",
    tokenizer: Tokenizer | None = None,
    *,
    length: int = 128,
    vocabulary: int = 2048,
    cache: str | os.PathLike[str] | None = None,
) -> sources.Source:
    """Reads a classification task as a data set; its test split is the official development split.

    Of MNLI this is the matched development split.

    Args:
        name: the task's name, one of `TASKS`.
        path: a folder in one of the three layouts; empty: `$TFDS_DATA_DIR`, or where tensorflow-datasets puts its data.
        tokenizer: a checkpoint's tokeniser; `None`: one is made of the words of the training split (`encoded.words`).
        length: how many ids a row has.
        vocabulary: how many tokens the tokeniser that is made here has.
        cache: a folder in which ids are kept, so that the next run need not make them again; `None`: nowhere.

    Returns:
        A source of token ids `int32[N, length]`.

    Raises:
        ValueError: for the regression `stsb`, files that cannot be read, texts that cannot be encoded, or a cache that
            cannot be written.
    """
    known = task(name)
    if known.regression:
        raise ValueError(
            f"{known.name} asks for scores from 0 to 5, and classes are wanted here; choose another task, or train on "
            "glue.arrays(...) with train.Recipe(..., loss=metrics.squared_error)"
        )
    found = arrays(name, path, tokenizer, length=length, vocabulary=vocabulary, cache=cache)
    return sources.Source(
        name=f"glue/{known.name}", train=found["train"], test=found["valid"], class_names=known.labels
    )


def _layout(known: GlueTask, folder: pathlib.Path) -> Callable[[str], GlueTexts]:
    """Returns a function that reads a split, by the layout that the folder has."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder} with the texts of {known.name}; {_expected(known, folder)}")
    plain, own = (lambda split: folder / f"{known.name}_{split}.tsv"), (lambda split: folder / f"{split}.tsv")
    if any(plain(split).is_file() for split in known.splits):
        columns = ("label", "sentence1", "sentence2")[: len(known.columns)]
        return lambda split: _table(known, plain(split), columns)
    if folder.name != known.folder or not any(own(split).is_file() for split in known.splits):
        own = lambda split: folder / known.folder / f"{split}.tsv"  # noqa: E731
    if any(own(split).is_file() for split in known.splits):
        return lambda split: _table(known, own(split), known.columns, known.header, known.broken)
    versions = [p for p in (folder / "glue" / known.name).glob("*.*.*") if p.is_dir()]
    if versions:
        newest = max(versions, key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split(".")])
        return lambda split: _prepared(known, newest, split.replace("dev", "validation"))
    raise ValueError(f"{folder} has no {known.name}; {_expected(known, folder)}")


def _expected(known: GlueTask, folder: pathlib.Path) -> str:
    made = f"glue.Glue(config={known.name!r}, data_dir={str(folder)!r}, file_format='array_record')"
    code = f"from tensorflow_datasets.text import glue; {made}.download_and_prepare()"
    first = known.splits[0]
    return (
        f"expected are {known.name}_{first}.tsv or {known.folder}/{first}.tsv in the folder that is given as the path "
        f"(data.path in a config), or glue/{known.name} as made by "
        f'pip install importlib_resources && python -c "{code}"'
    )


def _table(
    known: GlueTask, path: pathlib.Path, columns: tuple[str, ...], header: tuple[str, ...] = (), broken: bool = False
) -> GlueTexts:
    """Reads a split from a table, in which nothing is quoted."""
    if not path.is_file():
        raise ValueError(f"no file {path}; {known.name} has the splits {', '.join(known.splits)}, give all of them")
    try:
        content = foreign_files.plain_file(path).read_bytes().decode("utf-8-sig")
        if "\0" in content:
            raise ValueError(f"{path} holds a NUL byte; it is damaged, download it again")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; see that it may be read") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it") from error
    # Not str.splitlines, as there are other ends of lines within the texts.
    lines = [line.removesuffix("\r") for line in content.rstrip("\r\n").split("\n")]
    names = header or tuple(lines[0].split("\t"))
    missing = [name for name in columns if name not in names]
    if missing and any(lines):
        raise ValueError(f"{path} lacks the columns {missing} in its first line {list(names)}; {known.name} needs them")
    first = 1 if header else 2
    rows = list(enumerate((line.split("\t") for line in lines[first - 1 :]), first))
    wrong = next(((number, len(cells)) for number, cells in rows if len(cells) != len(names)), None)
    if not any(lines) or not rows:
        raise ValueError(f"{path} is empty; it should hold the examples of {known.name}")
    if wrong and not broken:
        raise ValueError(
            f"{path}, line {wrong[0]}: {wrong[1]} columns, not {len(names)}; a tab or a line break within a text must "
            "become a blank"
        )
    rows = [(number, cells) for number, cells in rows if len(cells) == len(names)]
    label, *texts = (names.index(name) for name in columns)
    y = _labels(known, [cells[label] for _, cells in rows], lambda i: f"{path}, line {rows[i][0]}")
    found = [tuple(cells[at] for _, cells in rows) for at in texts]
    return GlueTexts(found[0], found[1] if len(found) > 1 else None, y)


def _labels(known: GlueTask, given: Iterable[Any], where: Callable[[int], str]) -> np.ndarray:
    """Turns labels, given by name or by number, into numbers; scores stay."""
    index = {name: i for i, name in enumerate(known.labels)} | {str(i): i for i in range(len(known.labels))}
    found: list[float] = []
    for i, value in enumerate(given):
        one: float | None = index.get(str(value))
        if known.regression:
            try:
                one = float(value)
            except ValueError:
                one = None
        if one is None or (known.regression and not _WORST <= one <= _BEST):
            allowed = "scores from 0 to 5" if known.regression else f"0 to {len(known.labels) - 1}, {known.labels}"
            raise ValueError(f"{where(i)}: label {value!r:.40} is none of {known.name}, which has {allowed}")
        found.append(one)
    return np.array(found, np.float32 if known.regression else np.int32)


def _prepared(known: GlueTask, folder: pathlib.Path, split: str) -> GlueTexts:
    """Reads a split that tensorflow-datasets prepared."""
    try:
        import array_record  # noqa: F401  # what reads the files
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(f"{folder} needs {error.name} to be read: pip install {error.name}") from error
    try:
        builder = tfds.builder_from_directory(folder)
        there, kind = sorted(builder.info.splits), builder.info.file_format.value
    except Exception as error:  # of several libraries
        raise ValueError(f"{folder} cannot be read: {_line(error)}; prepare it anew") from error
    if kind != "array_record":
        raise ValueError(f"{folder} has {kind} files, which need TensorFlow; {_expected(known, folder.parents[2])}")
    if split not in there:
        raise ValueError(f"{folder} has no split {split!r}, only {there}; prepare it anew")
    try:
        data = builder.as_data_source(split=split)
        parts = (range(i, min(i + _CHUNK, len(data))) for i in range(0, len(data), _CHUNK))
        rows = [row for part in parts for row in data.__getitems__(part)]
        found = [tuple(row[feature].decode() for row in rows) for feature in known.features]
        labels = [row["label"] for row in rows]
    except Exception as error:
        raise ValueError(f"{folder}, split {split!r}, cannot be read: {_line(error)}; prepare it anew") from error
    if not rows:
        raise ValueError(f"{folder} has no examples in {split!r}; prepare it anew")
    y = _labels(known, labels, lambda i: f"{folder}, {split}, record {i}")
    return GlueTexts(found[0], found[1] if len(found) > 1 else None, y)


def _line(error: Exception) -> str:
    return f"{type(error).__name__} {' '.join(str(error).split()):.200}"
