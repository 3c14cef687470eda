"""A person's own data, whatever files they are in: texts or pictures with labels, in three parts."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mvp_jax.data.datasets import known_examples, partition, picture_files, table_examples, tables, targets
from mvp_jax.data.datasets.examples import GivenParts, Pool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPart:
    """The examples of one part of a data set.

    Attributes:
        x: N texts; or N pictures, each `uint8[H, W, C]` when it is indexed, which may differ in size; or, of an archive
            of arrays, `[N, H, W, C]`.
        pairs: the second text of each example; `None`: there are single texts, or pictures.
        y: labels `int32[N]`, or numbers `float32[N]` of a regression.
    """

    x: Sequence[str] | Sequence[np.ndarray] | np.ndarray
    pairs: Sequence[str] | None = None
    y: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelledData:
    """Texts or pictures with labels, in three parts that share no example.

    Attributes:
        name: the name of the data set in tables.
        kind: what an example is: a text (or a pair of texts) or a picture.
        train: the part to learn from.
        valid: the part by which choices are made.
        test: the part that is reported on, and looked at once.
        class_names: the name of each class, in the order of the labels; `()`: a regression.
        columns: which column of a table was read as what, such as `{"text": "review", "label": "sentiment"}`.
        notes: what was decided for the reader, a sentence each, such as how the parts were cut.
    """

    name: str
    kind: Literal["texts", "pictures"]
    train: LabelledPart
    valid: LabelledPart
    test: LabelledPart
    class_names: tuple[str, ...]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to be estimated, and not classes."""
        return not self.class_names

    def outline(self) -> str:
        """Returns what the data are and how many examples each part has, as a phrase."""
        train, valid, test = (f"{len(part.y):,}" for part in (self.train, self.valid, self.test))
        kind = f"{len(self.class_names)} classes" if self.class_names else "numbers to be estimated"
        return f"{self.name}, {self.kind} of {kind}: {train} to train, {valid} to validate, {test} to test"


def read(
    data: str | os.PathLike[str],
    *,
    test: str | os.PathLike[str] = "",
    text: str = "",
    pair: str = "",
    label: str = "",
    regression: bool | None = None,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    path: str | os.PathLike[str] = "",
) -> LabelledData:
    r"""Reads texts or pictures with labels, and cuts them into parts that share no example.

    What the files give as validation or test part is used as such. What they do not give is cut from the training
    examples by the seed, of each class its share. Equal examples, which are texts that differ at most in blanks around
    them and pictures of equal pixels, never stand in two parts: when parts are cut they stay together, and of given
    parts the test examples that also occur in the training part are left out, and so are validation examples that
    occur in one of the others. Everything is checked before this function returns, but for the pixels of very many
    pictures (`picture_files.FULLY_CHECKED`), which are decoded when they are looked at.

    Args:
        data: a table `.csv`, `.tsv`, `.jsonl` or `.json`; a folder with the tables `train.csv` and perhaps `valid.csv`
            and `test.csv`; a folder of pictures `FOLDER/CLASS/...`, or with `train`, and perhaps `valid` and `test`,
            above the classes; an archive `.npz` of images and labels; or the name of a known data set: `digits`,
            `docstrings`, `glue/TASK`, one of `catalog.CATALOG`. A folder with such a name is given as `./digits`.
        test: the file or folder of the test part, of the same kind as `data`; `""`: the one that `data` has, else a
            share of the training examples.
        text: the column of a table with the texts; `""`: it is found by its name or its contents.
        pair: the column of a table with the second texts; `""`: it is found by its name, if `text` is not given.
        label: the column of a table with the labels; `""`: it is found by its name or its contents.
        regression: whether the labels of a table are values to be estimated; `None`: if one of them is a fraction.
        valid_share: the share of the training examples that become the validation part, if none is given.
        test_share: the share of the training examples that become the test part, if none is given.
        seed: the seed by which parts are cut and `limit` draws.
        limit: how many training examples are used at most, drawn so that classes keep their shares; `None`: all.
        path: the folder of a GLUE task or of a data set of the catalogue; `""`: where tensorflow-datasets puts its
            data.

    Returns:
        The data in three parts; `notes` tells what was decided.

    Raises:
        ValueError: for data that cannot be read or do not fit, each with what to do; if there are fewer than two
            classes, or a class lacks an example in one of the parts.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "reviews.csv"
    >>> rows = [f"review {i},{('dull', 'fine')[i % 2]}" for i in range(20)]
    >>> _ = file.write_text("\n".join(["review,sentiment", *rows]))
    >>> found = read(file)
    >>> found.class_names, [len(part.y) for part in (found.train, found.valid, found.test)]
    (('dull', 'fine'), [16, 2, 2])
    """
    partition.check_shares([valid_share, test_share])
    if type(seed) is not int or seed < 0 or (limit is not None and (type(limit) is not int or limit < 1)):
        raise ValueError(
            f"seed={seed!r}, limit={limit!r}; give whole numbers, from 0 and from 1 (or None for no limit)"
        )
    given = _given(
        os.fspath(data),
        os.fspath(test),
        {"text": text, "pair": pair, "label": label},
        regression,
        seed,
        os.fspath(path),
    )
    _check_classes(given)
    given = _apart(given)
    return _parts(given, valid_share, test_share, seed, limit)


def _given(
    data: str, test: str, columns: Mapping[str, str], regression: bool | None, seed: int, path: str
) -> GivenParts:
    """Reads the parts that there are, by the kind of the data."""
    if known_examples.is_known(data):
        _check_unused(data, {"test": test, "regression": regression, **columns}, "a data set that is known by its name")
        return known_examples.read(data, path, seed)
    at = pathlib.Path(data).expanduser()
    _check_unused(data, {"path": path}, "no data set that is known by its name")
    if not data or not at.exists():
        raise ValueError(f"no file, folder or data set {data!r}; {_nearest(at)}")
    name, ending = at.resolve().name if at.is_dir() else at.stem, at.suffix.lower()
    tables_in = {"train": at} if at.is_file() and ending in tables.ENDINGS else {}
    if at.is_dir():
        tables_in = table_examples.in_folder(at)
    if tables_in:
        if test:
            tables_in["test"] = _held_out(test, at, tables.ENDINGS)
            if "valid" in tables_in and tables_in["valid"].resolve() == tables_in["test"].resolve():
                del tables_in["valid"]  # what is reported on is not chosen by
        return table_examples.read(tables_in, name, **columns, regression=regression)
    _check_unused(data, {"regression": regression, **columns}, "no table")
    if at.is_dir():
        _check_tables(at)
        return picture_files.read(at, name, _held_out(test, at, ()) if test else None)
    if ending == ".npz":
        return known_examples.archive(at, name, _held_out(test, at, (".npz",)) if test else None)
    raise ValueError(
        f"{data}: files with the ending {ending!r} are not read; give a table {', '.join(tables.ENDINGS)}, an archive "
        ".npz, or a folder of pictures by class (write spreadsheets and parquet files as .csv first)"
    )


def _check_tables(folder: pathlib.Path) -> None:
    """Refuses a folder of tables of which none is called as the training part is."""
    inside = sorted(folder.iterdir())
    found = [p.name for p in inside if p.suffix.lower() in tables.ENDINGS]
    if found and not any(p.is_dir() for p in inside):
        raise ValueError(
            f"{folder} has the tables {targets.shown(found)}, and none is called train; give one of them as data, or "
            f"call it train{pathlib.Path(found[0]).suffix}"
        )


def _check_unused(data: str, settings: Mapping[str, object], what: str) -> None:
    used = {name: value for name, value in settings.items() if value not in ("", None)}
    if used:
        told = ", ".join(f"{name}={value!r}" for name, value in used.items())
        raise ValueError(
            f"{data!r} is {what}, for which {told} has no meaning; leave {'it' if len(used) == 1 else 'them'} out"
        )


def _nearest(path: pathlib.Path) -> str:
    """Tells what there is instead of a path that does not exist."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either"
    there = {p.name: f"{folder / p.name}" for p in folder.iterdir() if not p.name.startswith(".")}
    near = [there[n] for n in difflib.get_close_matches(path.name, there, n=3, cutoff=0.5)]
    near += difflib.get_close_matches(str(path), known_examples.names(), n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"{folder.resolve()} has {sorted(there)[:8]}; known data sets are {', '.join(known_examples.names())}"


def _held_out(test: str, data: pathlib.Path, endings: Sequence[str]) -> pathlib.Path:
    """Returns the file or folder of the test part, which may also be named as it is called within `data`."""
    places = [pathlib.Path(test).expanduser(), *([data / test] if data.is_dir() else [])]
    found = next((p for p in places if p.exists()), None)
    if found is None:
        raise ValueError(f"test={test!r}: no such file or folder; {_nearest(places[-1])}")
    fits = found.is_file() and found.suffix.lower() in endings if endings else found.is_dir()
    if not fits:
        wanted = f"a file {', '.join(endings)}" if endings else "a folder with a folder of pictures for each class"
        raise ValueError(f"test={test!r} does not fit {str(data)!r}; give {wanted}")
    if found.resolve() == data.resolve():
        raise ValueError(f"test={test!r} is the training data itself; give other examples, or leave it out")
    return found


def _check_classes(given: GivenParts) -> None:
    """Refuses classes that have too few different examples for a place in every part."""
    if not given.class_names:
        return
    needed = 1 + (given.valid is None) + (given.test is None)
    wrong = []
    for pool, least in ((given.train, needed), (given.valid, 1), (given.test, 1)):
        if pool is not None:
            kinds: list[set[object]] = [set() for _ in given.class_names]
            for key, y in zip(pool.keys, pool.y.tolist(), strict=True):
                kinds[y].add(key)
            few = {n: len(k) for n, k in zip(given.class_names, kinds, strict=True) if len(k) < least}
            if few:
                told = ", ".join(f"{name!r} has {count}" for name, count in list(few.items())[:8])
                more = f" and {len(few) - 8} more have too few" if len(few) > 8 else ""
                wrong.append(f"{pool.origin}: class {told}{more}, where at least {least} different ones are needed")
    if wrong:
        raise ValueError(
            f"{given.name}: too few examples for one of each class in the training, validation and test part: "
            f"{'; '.join(wrong)}; give more examples of these classes, or remove them"
        )


def _apart(given: GivenParts) -> GivenParts:
    """Leaves out what stands in two given parts: of the test part, then of the validation part."""
    seen = set(given.train.keys)
    notes = list(given.notes)
    kept: dict[str, Any] = {"test": given.test, "valid": given.valid}
    for part, called in (("test", "test"), ("valid", "validation")):
        pool = kept[part]
        if pool is None:
            continue
        fresh = np.array([key not in seen for key in pool.keys])
        if not fresh.all():
            gone = int((~fresh).sum())
            if set(pool.y[fresh].tolist()) < set(range(len(given.class_names))) or not fresh.any():
                raise ValueError(
                    f"{given.name}: {gone} of {len(pool)} examples of {pool.origin} also stand in another part, and "
                    f"without them not every class has a {called} example; give {called} examples that stand in no "
                    "other part"
                )
            notes.append(
                f"{gone} of {len(pool)} {called} examples ({pool.origin}) were left out, as equal ones stand in "
                f"{'the training part' if part == 'test' else 'the training or test part'}."
            )
            pool = pool.take(np.flatnonzero(fresh))
        kept[part] = pool
        seen.update(pool.keys)
    return dataclasses.replace(given, **kept, notes=tuple(notes))


def _parts(given: GivenParts, valid_share: float, test_share: float, seed: int, limit: int | None) -> LabelledData:
    """Cuts what is not given, and draws the training examples that are used."""
    shares = {"valid": valid_share, "test": test_share}
    wanted = {part: share for part, share in shares.items() if getattr(given, part) is None}
    pools = {part: getattr(given, part) for part in shares}
    train, notes = given.train, [*given.notes, *_contradictions(given.train, given.class_names)]
    strata = train.y if given.class_names else np.zeros(len(train), np.int32)
    if wanted:
        least = len(wanted) + 1
        if not given.class_names and len(set(train.keys)) < least:
            raise ValueError(
                f"{given.name}: {len(set(train.keys))} different examples; give at least {least}, one a part"
            )
        first, *further = partition.cut(train.keys, strata, list(wanted.values()), seed)
        for part, which in zip(wanted, further, strict=True):
            pools[part] = train.take(which)
            called = {"valid": "validation", "test": "test"}[part]
            each = " of each class" if given.class_names else ""
            notes.append(
                f"The {called} part, {len(which)} examples, was cut from {train.origin} by seed {seed}: the share "
                f"{wanted[part]:.3g}{each}, where equal examples stay together."
            )
        train, strata = train.take(first), strata[first]
    for part, called in (("valid", "validation"), ("test", "test")):
        if part not in wanted:
            notes.append(f"The {called} part, {len(pools[part])} examples, is {pools[part].origin} as given.")
    if limit is not None and limit < len(train):
        notes.append(f"Of {len(train)} training examples {limit} are used, drawn by seed {seed}.")
        train = train.take(partition.limited(strata, limit, seed))
    elif limit is not None:
        notes.append(f"All {len(train)} training examples are used, which is no more than the limit {limit}.")
    _check_parts(given, {"training": train, "validation": pools["valid"], "test": pools["test"]})
    return LabelledData(
        name=given.name,
        kind=given.kind,
        train=_part(train),
        valid=_part(pools["valid"]),
        test=_part(pools["test"]),
        class_names=given.class_names,
        columns=given.columns,
        notes=tuple(notes),
    )


def _part(pool: Pool) -> LabelledPart:
    return LabelledPart(x=pool.x, pairs=pool.pairs, y=pool.y)


def _check_parts(given: GivenParts, pools: Mapping[str, Pool]) -> None:
    """Refuses parts in which a class is missing, which contradicting labels of equal examples may cause."""
    for called, pool in pools.items():
        missing = [name for i, name in enumerate(given.class_names) if not (pool.y == i).any()]
        if missing:
            raise ValueError(
                f"{given.name}: no {called} examples of the classes {targets.shown(missing)}, as equal examples, which "
                "stay together, have several labels; mend their labels, or give more examples of these classes"
            )


def _contradictions(pool: Pool, class_names: Sequence[str]) -> list[str]:
    """Tells of equal examples with different labels."""
    labels: dict[object, float] = {}
    found: dict[object, tuple[float, float]] = {}
    for key, y in zip(pool.keys, pool.y.tolist(), strict=True):
        if labels.setdefault(key, y) != y:
            found.setdefault(key, (labels[key], y))
    if not found:
        return []
    key, pair = next(iter(found.items()))
    told = [class_names[int(y)] if class_names else f"{y:g}" for y in pair]
    example = f": {key[:60]!r} is both {told[0]!r} and {told[1]!r}" if isinstance(key, str) else f", such as {told}"
    return [f"{len(found)} training examples occur more than once with different labels{example}; all are kept."]
