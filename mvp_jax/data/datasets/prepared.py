"""Known data sets by name, as tensorflow-datasets prepared them on disk; TensorFlow is not needed to read them.

`prepare` downloads and writes a data set once (which does need it); `open` reads array_record or TFRecord files.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.data import sources
from mvp_jax.data.datasets import catalog, folders
from mvp_jax.data.datasets.catalog import CatalogEntry
from mvp_jax.data.loading import lazy
from mvp_jax.data.sources import Source
from mvp_jax.storage import json_files

_READABLE = ("array_record", "tfrecord")


def open(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    size: int | None = None,
    splits: Mapping[str, str | None] | None = None,
    lazily: bool | None = None,
) -> Source:
    """Reads a data set of `catalog.CATALOG`.

    Data sets of up to 1.5 gigabytes are read into memory, the images of larger ones are decoded when they are read. An
    official validation split joins the images to learn from, since `tasks.split` cuts validation pools itself.

    Args:
        name: the data set's name in the catalogue.
        data_dir: where tensorflow-datasets keeps its data; `None`: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`. For a
            data set that is read from a folder, that folder.
        size: the side of the images: the shorter side of a picture is resized to it, and the middle square cut out;
            `None`: the size of the data set's images if they have one, else the usual one in the catalogue.
        splits: other splits for "train" and "test", in the notation of tensorflow-datasets, such as `{"train":
            "train+extra"}`; `{"test": None}`: no test split.
        lazily: whether images are decoded when they are read; `None`: if they are too many for memory.

    Returns:
        The checked source, uint8.

    Raises:
        ValueError: for an unknown name, what is not prepared (with the command that does it), a missing split, files in
            another format or cut short, or a class without images.
    """
    entry = catalog.find(name)
    if entry.tfds is None:
        if not data_dir:
            raise ValueError(
                f"{name} is read from a folder, which data_dir (data.path in a config) gives, from {entry.home}, with "
                f"{entry.layout}"
            )
        return {"gtsrb": folders.gtsrb, "tiny_imagenet": folders.tiny_imagenet}[name](
            data_dir, size=size, lazily=lazily
        )
    info, where = _info(name, entry, _home(data_dir))
    chosen = {"train": entry.train + (f"+{entry.valid}" if entry.valid else ""), "test": entry.test, **(splits or {})}
    parts = {use: _records(name, where, info, split) for use, split in chosen.items() if split}
    if "train" not in parts or set(parts) - {"train", "test"}:
        raise ValueError(f"splits {dict(chosen)} of {name}; give 'train' and, if there is one, 'test'")
    count, side = sum(map(len, parts.values())), size or entry.size
    if lazily is None:
        lazily = count * side**2 * entry.channels > catalog.SMALL
    indexed = {use: _index(where, entry, part) for use, part in parts.items()}
    names = _names(name, entry, info, indexed["train"])
    made = {}
    for use, part in parts.items():
        x = lazy.pictures(
            _Pictures(part),
            len(part),
            size=size or (None if entry.native else entry.size),
            channels=entry.channels,
            called=f"{name}, {chosen[use]}, picture {{}}".format,
            known=indexed[use]["known"],
        )
        made[use] = (x if lazily else x[:], indexed[use]["label"])
    empty = sorted(set(range(len(names))) - set(indexed["train"]["label"].tolist()))
    if empty:
        raise ValueError(
            f"{name}: no images of the classes {[names[c] for c in empty[:8]]} in {chosen['train']!r}; take a larger "
            "part, or prepare it again"
        )
    coarse, coarse_names = _coarse(entry, info, indexed["train"])
    return sources.arrays(
        name, made["train"], made.get("test"), class_names=names, coarse=coarse, coarse_names=coarse_names
    )


def prepare(
    name: str, data_dir: str | os.PathLike[str] | None = None, manual_dir: str | os.PathLike[str] | None = None
) -> None:
    """Downloads a data set and writes it as array_record files, once.

    Args:
        name: the data set's name in the catalogue.
        data_dir: where tensorflow-datasets keeps its data; `None`: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        manual_dir: the folder with files that have to be downloaded by hand (ImageNet's two archives).

    Raises:
        ValueError: for an unknown name, one that is read from folders, or if a library is missing.
    """
    entry = catalog.find(name)
    if entry.tfds is None:
        raise ValueError(f"{name} has no builder; it is read from a folder with {entry.layout}, from {entry.home}")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(entry.tfds, data_dir=str(_home(data_dir)), file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=manual_dir and str(manual_dir))
        )
    except ImportError as error:
        raise ValueError(f"preparing {name} needs another library: {error}; pip install -e '.[prepare]'") from error


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    """The records of a split; reads the serialised example of a number."""

    split: str
    files: tuple[tuple[str, int, int], ...]  # with the first record and their number
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return sum(count for _, _, count in self.files)

    def example(self, i: int) -> Any:
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example.FromString(self.read(i)).features.feature


@dataclasses.dataclass(frozen=True, eq=False)
class _Pictures:
    records: _Records

    def __call__(self, i: int) -> bytes:
        return self.records.example(i)["image"].bytes_list.value[0]


def _home(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    given = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if "://" in given:
        raise ValueError(f"data_dir is {given!r}; records are read from a disk: copy or mount it")
    return pathlib.Path(given).expanduser()


def _info(name: str, entry: CatalogEntry, home: pathlib.Path) -> tuple[Any, pathlib.Path]:
    """What tensorflow-datasets says of the newest prepared version, and where that is."""
    assert entry.tfds is not None
    place = home / entry.tfds
    try:
        found = [p for p in place.iterdir() if (p / "dataset_info.json").is_file()] if place.is_dir() else []
        if home.exists():
            os.listdir(home)
    except OSError as error:
        raise ValueError(
            f"cannot read data_dir {str(home)!r}: {error}; give the folder of the prepared data"
        ) from error
    versions = sorted((p for p in found if _version(p.name)), key=lambda p: _version(p.name))
    if not versions:
        by_hand = ", 'FOLDER_OF_ITS_ARCHIVES'" if entry.manual else ""
        command = f"from mvp_jax.data import prepared; prepared.prepare('{name}', '{home}'{by_hand})"
        raise ValueError(
            f"{name} is not prepared in {str(home)!r} (data_dir; data.path in a config); prepare it once: "
            f"pip install -e '.[prepare]' && python -c \"{command}\""
        )
    where = versions[-1]
    try:
        described = json_files.read_json(where / "dataset_info.json")
        kinds = [described.get("fileFormat", "tfrecord"), *described.get("alternativeFileFormats", ())]
        kind = next((k for k in _READABLE if k in kinds), None)
        if kind is None:
            raise ValueError(f"its files are {kinds}, readable are {list(_READABLE)}; prepare it again elsewhere")
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(where, file_format=kind).info, where
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{where} is not a data set that can be read: {error}") from error


def _version(name: str) -> tuple[int, ...]:
    parts = name.split(".")
    return tuple(int(p) for p in parts) if all(p.isdecimal() for p in parts) else ()


def _records(name: str, where: pathlib.Path, info: Any, split: str) -> _Records:
    try:
        instructions = info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{name} in {where} has the splits {sorted(info.splits)}, not {split!r}; prepare it again, or name others "
            "by splits="
        ) from error
    missing = [i.filename for i in instructions if not os.path.exists(i.filename)]
    if missing or not instructions:
        raise ValueError(f"{name}: {missing[:1] or 'every file'} of {split!r} is missing; prepare it again")
    files = tuple((str(i.filename), int(i.skip), int(i.take)) for i in instructions)
    if info.file_format.value == "tfrecord":
        return _Records(split, files, _Tfrecords.of(instructions))
    try:
        from array_record.python import array_record_data_source
    except ImportError as error:
        raise ValueError(f"reading {name} needs array_record ({error}): pip install -e '.[data]'") from error
    try:
        return _Records(split, files, array_record_data_source.ArrayRecordDataSource(instructions).__getitem__)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: the files of {split!r} cannot be read: {error}; prepare it again") from error


@dataclasses.dataclass(frozen=True, eq=False)
class _Tfrecords:
    """Where the records of TFRecord files are: `[N, 3]` of file, position, length."""

    files: tuple[str, ...]
    places: np.ndarray

    @classmethod
    def of(cls, instructions: Sequence[Any]) -> "_Tfrecords":
        found: list[tuple[int, int, int]] = []
        for number, part in enumerate(instructions):
            end, at, own = os.path.getsize(part.filename), 0, []
            with pathlib.Path(part.filename).open("rb") as stream:
                # length, 8 bytes; its checksum, 4; the record; its checksum, 4
                while at < end:
                    head = stream.read(12)
                    length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else end
                    own.append((number, at + 12, length))
                    at += length + 16
                    stream.seek(at)
            if at != end or len(own) != part.examples_in_shard:
                raise ValueError(
                    f"{part.filename} is cut short or damaged ({len(own)} records, expected {part.examples_in_shard}); "
                    "prepare it again"
                )
            found += own[part.skip : part.skip + part.take]
        return cls(tuple(str(part.filename) for part in instructions), np.array(found, np.int64).reshape(-1, 3))

    def __call__(self, i: int) -> bytes:
        number, at, length = self.places[i].tolist()
        with pathlib.Path(self.files[number]).open("rb") as stream:
            stream.seek(at)
            return stream.read(length)


def _index(where: pathlib.Path, entry: CatalogEntry, records: _Records) -> dict[str, np.ndarray]:
    """The labels of all records and the digests of their pictures; kept beside the files, since it reads them all."""
    stamp = json.dumps([records.files, [os.path.getmtime(f) for f, _, _ in records.files], entry.label, entry.coarse])
    mark = np.frombuffer(lazy.digest(stamp.encode()), np.uint8)
    path = where / f".mvp_jax-{mark.tobytes().hex()[:12]}.npz"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            found = dict(kept)
        if set(found) == {"known", "label", "coarse", "name"} and len(found["label"]) == len(records):
            return found
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        pass  # none yet, or cut short: made again
    found = {
        "known": lazy.unknown(len(records)),
        "label": np.zeros(len(records), np.int32),
        "coarse": np.zeros(len(records), np.int32),
        "name": np.zeros(len(records), "U100" if entry.name_of else "U1"),
    }

    def put(i: int) -> None:
        example = records.example(i)
        found["known"][i] = np.frombuffer(lazy.digest(example["image"].bytes_list.value[0]) + b"\1", np.uint8)
        found["label"][i] = example[entry.label].int64_list.value[0]
        if entry.coarse:
            found["coarse"][i] = example[entry.coarse].int64_list.value[0]
        if entry.name_of:
            found["name"][i] = example[entry.name_of].bytes_list.value[0].decode()

    try:
        lazy.each(put, len(records))
    except (IndexError, OSError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where}, {records.split!r}: a record cannot be read, or lacks 'image' or {entry.label!r} ({error}); "
            "prepare it again"
        ) from error
    # A folder that cannot be written is read anew each time.
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=where, prefix=".mvp_jax-") as own:
        np.savez_compressed(pathlib.Path(own, "index.npz"), **found)
        os.replace(pathlib.Path(own, "index.npz"), path)
    return found


def _names(name: str, entry: CatalogEntry, info: Any, train: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    feature = info.features[entry.label]
    if feature.num_classes != entry.classes:
        raise ValueError(f"{name} has {feature.num_classes} classes here, {entry.classes} in the catalogue")
    if entry.name_of:
        of = dict(zip(train["label"].tolist(), train["name"].tolist(), strict=True))
        return tuple(of.get(c, str(c)) for c in range(entry.classes))
    return entry.class_names or tuple(feature.names or map(str, range(entry.classes)))


def _coarse(entry: CatalogEntry, info: Any, train: Mapping[str, np.ndarray]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if not entry.coarse:
        return (), ()
    of = dict(zip(train["label"].tolist(), train["coarse"].tolist(), strict=True))
    feature = info.features[entry.coarse]
    return tuple(of[c] for c in range(entry.classes)), tuple(feature.names or map(str, range(feature.num_classes)))
