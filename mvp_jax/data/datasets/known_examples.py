"""Examples that are no tables and no folders of classes: archives of arrays, and data sets that are known by a name."""

import pathlib
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from mvp_jax.data import archives, sources
from mvp_jax.data.datasets import catalog, glue, prepared, tables, targets, text
from mvp_jax.data.datasets.examples import GivenParts, Pool, image_keys
from mvp_jax.data.loading.lazy import Lazy
from mvp_jax.storage import foreign_files

_KEYS: tuple[dict[str, tuple[str, str]], ...] = (
    {
        "train": ("train_images", "train_labels"),
        "valid": ("val_images", "val_labels"),
        "test": ("test_images", "test_labels"),
    },
    {"train": ("x_train", "y_train"), "valid": ("x_val", "y_val"), "test": ("x_test", "y_test")},
    {"train": ("images", "labels")},
    {"train": ("x", "y")},
)
"""The keys of images and labels in archives, by parts, in the ways in which they are known."""

_NOT_READ = 200_000  # pictures; more of a prepared data set are not compared by content, which takes hours


def is_known(name: str) -> bool:
    """Returns whether a name stands for a data set.

    >>> is_known("digits"), is_known("glue/rte"), is_known("cifar10"), is_known("my.csv")
    (True, True, True, False)
    """
    return name in names() or name.startswith("glue/")


def names() -> list[str]:
    """Returns the names of all data sets that are known."""
    return ["digits", "docstrings", *catalog.CATALOG, *(f"glue/{task}" for task in glue.TASKS)]


def read(name: str, path: str = "", seed: int = 0) -> GivenParts:
    """Reads a data set that is known by its name.

    Args:
        name: one of `names()`.
        path: the folder of a GLUE task or of a prepared data set; `""`: where tensorflow-datasets puts its data.
        seed: the seed by which `docstrings` chooses its texts.

    Returns:
        The parts. The development split of a GLUE task, whose test split has no labels, is its test part; so is the
        official test split of a data set of the catalogue.

    Raises:
        ValueError: for an unknown name, a folder that is missing or does not fit, or a path where none is used.
    """
    if name in ("digits", "docstrings"):
        if path:
            raise ValueError(
                f"path={path!r}: {name} comes with scikit-learn and SciPy and is read from no folder; drop it"
            )
        return _digits() if name == "digits" else _docstrings(seed)
    if name.startswith("glue/"):
        return _glue(name, path)
    return _prepared(name, path)


def archive(path: pathlib.Path, name: str, test: pathlib.Path | None = None) -> GivenParts:
    """Reads an `.npz` archive of images and labels.

    Its keys are `train_images` and `train_labels` and, if they are there, those with `val_` and `test_`; or `x_train`,
    `y_train`, `x_test`, `y_test`; or `images` and `labels`; or `x` and `y`. Labels are whole numbers or words; with
    `class_names` they are indices into them.

    Args:
        path: the archive.
        name: the name of the data set in tables.
        test: an archive whose test images, or whose only images, are the test part; `None`: those of `path` if any.

    Returns:
        The parts; images are arrays, uint8 (also of other dtypes with whole numbers from 0 to 255) or float32.

    Raises:
        ValueError: for files, keys or contents that do not fit.
    """
    with foreign_files.named(path):
        return _archive(path, name, test)


def _archive(path: pathlib.Path, name: str, test: pathlib.Path | None) -> GivenParts:
    found, class_names = _images(path)
    files = dict.fromkeys(found, path)
    if "train" not in found:
        raise ValueError(f"{path} has only {list(found)} images; give train_images and train_labels too")
    if test is not None:
        other, _ = _images(test)
        found["test"], files["test"] = other.get("test") or next(iter(other.values())), test
    labels = {part: _written(f"{files[part]}, {part}", y) for part, (_, y) in found.items()}
    if class_names:
        known = _named(class_names, labels, files, words=found["train"][1].dtype.kind in "US")
    else:
        known = targets.find(labels["train"], str(path), _row, regression=False)
    pools = {}
    for part, (x, _) in found.items():
        where = f"{files[part]}, {part}"
        y = known.numbers(labels[part], where, _row)
        if len(x) != len(y):
            raise ValueError(f"{where}: {len(x)} images and {len(y)} labels; give one label for each image")
        pair = sources.arrays(where, (_levels(x), y), class_names=known.class_names).train
        assert isinstance(pair.x, np.ndarray)
        pools[part] = Pool(
            x=pair.x, y=pair.y, keys=image_keys(pair.x), origin=f"the {part} images of {files[part].name}"
        )
    shapes = {part: pool.x.shape[1:] for part, pool in pools.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{path}: images are [H, W, C] of {shapes}; give all parts images of one shape")
    return GivenParts(
        name=name,
        kind="pictures",
        train=pools["train"],
        valid=pools.get("valid"),
        test=pools.get("test"),
        class_names=known.class_names,
    )


def _levels(x: np.ndarray) -> np.ndarray:
    """Returns images of whole numbers from 0 to 255, whatever their dtype is, as uint8; others as they are."""
    if x.dtype == np.uint8 or x.dtype.kind not in "iuf" or not x.size or not 1 < x.max() <= 255 or x.min() < 0:
        return x
    levels = x.astype(np.uint8)
    return levels if (levels == x).all() else x


def _named(
    class_names: tuple[str, ...], labels: Mapping[str, list[str]], files: Mapping[str, pathlib.Path], words: bool
) -> targets.Targets:
    """Returns classes whose names are given, and which labels are: words, or indices of the names."""
    index = {name if words else str(i): i for i, name in enumerate(class_names)}
    for part, own in labels.items():
        wrong = [i for i, label in enumerate(own) if label not in index]
        if wrong:
            raise ValueError(
                f"{files[part]}, {part}, {_row(wrong)}: the labels {sorted({own[i] for i in wrong})[:6]} are none of "
                f"{targets.shown(list(index))}, as class_names has {len(class_names)} names; mend either"
            )
    return targets.Targets(class_names=class_names, index=index)


def _row(indices: Iterable[int]) -> str:
    return tables.numbered("image", list(indices))


def _images(path: pathlib.Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Returns the images and labels of each part of an archive, and the names of its classes."""
    every = sorted({key for keys in _KEYS for pair in keys.values() for key in pair})
    found = archives.read(path, (), (*every, "valid_images", "valid_labels", "class_names"))
    for old, new in (("valid_images", "val_images"), ("valid_labels", "val_labels")):
        if old in found:
            found.setdefault(new, found.pop(old))
    for keys in _KEYS:
        parts = {part: (found[a], found[b]) for part, (a, b) in keys.items() if a in found and b in found}
        if parts:
            names = found.get("class_names")
            return parts, () if names is None else tuple(archives.texts(names))
    with np.load(path, allow_pickle=False) as opened:
        there = list(opened.files)
    wanted = [" and ".join(keys["train"]) for keys in _KEYS]
    raise ValueError(f"{path} has the arrays {there[:8]}; images and labels are called {', or '.join(wanted)}")


def _written(what: str, labels: np.ndarray) -> list[str]:
    """Returns labels as they would be written."""
    y = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    whole = y.dtype.kind == "f" and bool(np.isfinite(y).all()) and bool((y == np.round(y)).all())
    if y.ndim != 1 or not (y.dtype.kind in "iubUS" or whole):
        raise ValueError(f"{what}: labels are {y.dtype}{list(y.shape)}; give a whole number or a word for each image")
    if y.dtype.kind in "US":
        return [label.strip() for label in archives.texts(y)]
    return [str(int(label)) for label in y]


def _digits() -> GivenParts:
    source = sources.digits()
    pool = Pool(x=source.train.x, y=source.train.y, keys=image_keys(source.train.x), origin="digits")
    return GivenParts(name="digits", kind="pictures", train=pool, class_names=source.class_names)


def _docstrings(seed: int) -> GivenParts:
    found = text.docstrings(seed=seed, vocabulary=2**20)  # so many that every word has an id
    kept = range(len(text.SPECIAL), len(found.vocabulary))
    x = [" ".join(found.vocabulary[i] for i in row if i in kept) for row in np.asarray(found.train.x).tolist()]
    pool = Pool(x=x, y=found.train.y, keys=x, origin="docstrings")
    versions = " and ".join(f"{name} {version}" for name, version in found.versions.items())
    note = f"Texts are docstrings of {versions}, as runs of lower-case words."
    return GivenParts(name="docstrings", kind="texts", train=pool, class_names=found.class_names, notes=(note,))


def _glue(name: str, path: str) -> GivenParts:
    known, found = glue.task(name), glue.read(name, path)

    def pool(texts: glue.GlueTexts, origin: str) -> Pool:
        keys: Sequence[Hashable] = [t.strip() for t in texts.first]
        if texts.second is not None:
            keys = [(a, b.strip()) for a, b in zip(keys, texts.second, strict=True)]
        return Pool(x=texts.first, pairs=texts.second, y=texts.y, keys=keys, origin=origin)

    note = "The official development split is the test part, as the labels of the official test split are not public."
    return GivenParts(
        name=f"glue/{known.name}",
        kind="texts",
        train=pool(found.train, "the training split"),
        test=pool(found.valid, "the development split"),
        class_names=known.labels,
        notes=(note,),
    )


def _prepared(name: str, path: str) -> GivenParts:
    source = prepared.open(name, data_dir=path or None)
    splits = {"train": source.train} | ({} if source.test is None else {"test": source.test})
    compared = sum(len(pair.y) for pair in splits.values()) <= _NOT_READ

    def pool(part: str) -> Pool:
        pair = splits[part]
        keys: Sequence[Hashable] = [(part, i) for i in range(len(pair.y))]
        if compared or not isinstance(pair.x, Lazy):
            keys = image_keys(pair.x)
        return Pool(x=pair.x, y=pair.y, keys=keys, origin=f"the {part} split")

    notes = [f"Pictures are {' x '.join(map(str, source.image_shape[:2]))} pixels, the square middle of each."]
    if not compared:
        notes.append("The pictures were not searched for equal ones, of which there may be some in several parts.")
    return GivenParts(
        name=name,
        kind="pictures",
        train=pool("train"),
        test=pool("test") if "test" in splits else None,
        class_names=source.class_names,
        notes=tuple(notes),
    )
