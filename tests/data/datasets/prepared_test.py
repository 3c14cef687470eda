"""Data sets that tensorflow-datasets prepared, read without TensorFlow: arrays, splits, names, and what is refused."""

import io
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import types

import numpy as np
import pytest

from mvp_jax.data import sources, tasks
from mvp_jax.data.datasets import catalog, prepared
from mvp_jax.data.loading import lazy
from tests.pictures_on_disk import encoded, pixels

ROOT = pathlib.Path(__file__).resolve().parents[3]
COUNTS = {"train": 24, "validation": 9, "test": 12}
NAMES = ("ant", "bee", "cow")
ENTRY = catalog.CatalogEntry(
    tfds="toy_pictures", home="", classes=3, counts=(24, 0, 12), coarse="kind", native=(8, 8), size=8
)


def images(split):
    return pixels(COUNTS[split], seed=len(split))


def labels(split):
    return np.arange(COUNTS[split]) % 3


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data set prepared by a real builder, as array_record."""
    import tensorflow_datasets as tfds

    class ToyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        code_path = None  # nothing is downloaded, so no checksums are looked for beside the code

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 3)),
                    "label": tfds.features.ClassLabel(names=list(NAMES)),
                    "kind": tfds.features.ClassLabel(names=["insect", "mammal"]),
                    "bird/name": tfds.features.Text(),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split):
            for i, (x, y) in enumerate(zip(images(split), labels(split), strict=True)):
                yield (
                    i,
                    {
                        "image": io.BytesIO(encoded(x)),
                        "label": int(y),
                        "kind": int(y == 2),
                        "bird/name": f"the {NAMES[y]}",
                    },
                )

    folder = tmp_path_factory.mktemp("tfds")
    ToyPictures(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def toy(home, monkeypatch, tmp_path):
    """A copy of it, known by the name `toy`."""
    monkeypatch.setitem(catalog.CATALOG, "toy", ENTRY)
    shutil.copytree(home / "toy_pictures", tmp_path / "data" / "toy_pictures")
    return tmp_path / "data"


def version(data_dir):
    return data_dir / "toy_pictures" / "1.2.0"


def as_tfrecord(data_dir):
    """The same records in TFRecord files; the checksums, which nothing here reads, are 0."""
    from array_record.python import array_record_data_source

    where = version(data_dir)
    for path in sorted(where.glob("*.array_record-*")):
        records = array_record_data_source.ArrayRecordDataSource([str(path)])
        with (where / path.name.replace("array_record", "tfrecord")).open("wb") as stream:
            for i in range(len(records)):
                record = records[i]
                stream.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))
        path.unlink()
    info = where / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))


def pairs(arrays):
    """Pictures and labels whatever their order, which preparing shuffles."""
    return sorted((x.tobytes(), int(y)) for x, y in zip(arrays.x, arrays.y, strict=True))


def expected(*splits):
    return sorted((x.tobytes(), int(y)) for s in splits for x, y in zip(images(s), labels(s), strict=True))


def test_a_small_set_comes_as_arrays(toy):
    source = prepared.open("toy", data_dir=toy)
    assert isinstance(source.train.x, np.ndarray)
    assert (source.train.x.dtype, source.train.y.dtype) == (np.uint8, np.int32)
    assert pairs(source.train) == expected("train")
    assert pairs(source.test) == expected("test")
    assert (source.name, source.class_names) == ("toy", NAMES)
    assert (source.coarse, source.coarse_names) == ((0, 0, 1), ("insect", "mammal"))
    again = prepared.open("toy", data_dir=toy)
    np.testing.assert_array_equal(source.train.x, again.train.x)
    np.testing.assert_array_equal(source.train.y, again.train.y)


def test_without_tensorflow(toy):
    code = (
        "import sys\nfrom mvp_jax.data import catalog, prepared\n"
        "catalog.CATALOG['toy'] = catalog.CatalogEntry("
        "tfds='toy_pictures', home='', classes=3, counts=(24, 0, 12), size=8)\n"
        f"print(prepared.open('toy', data_dir={str(toy)!r}).train.x.sum())\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) == images("train").sum()
    assert not done.stderr


def test_a_large_set_is_decoded_when_it_is_looked_at(toy, monkeypatch):
    small = prepared.open("toy", data_dir=toy, size=6)
    monkeypatch.setattr(catalog, "SMALL", 1000)
    large = prepared.open("toy", data_dir=toy, size=6)
    assert isinstance(large.train.x, lazy.Lazy)
    assert small.train.x.shape == large.train.x.shape == (24, 6, 6, 3)
    np.testing.assert_array_equal(small.train.x, large.train.x[:])
    assert small.train.x.std() > 0
    # The pools need no decoding: the digests were taken with the labels.
    (pool,) = tasks.split(large, seed=0, fractions=(0.5,))
    np.testing.assert_array_equal(pool.x[:], tasks.split(small, seed=0, fractions=(0.5,))[0].x)
    forced = prepared.open("toy", data_dir=toy, lazily=False)
    assert isinstance(forced.train.x, np.ndarray)


def test_labels_and_digests_are_read_once(toy, monkeypatch):
    first = prepared.open("toy", data_dir=toy, lazily=True)
    kept = sorted(version(toy).glob(".mvp_jax-*.npz"))
    assert len(kept) == 2
    assert not list(version(toy).glob(".mvp_jax-*[!z]"))
    read = []
    monkeypatch.setattr(lazy, "each", lambda put, count: read.append(count))
    second = prepared.open("toy", data_dir=toy, lazily=True)
    np.testing.assert_array_equal(first.train.y, second.train.y)
    assert first.train.x.digests() == second.train.x.digests()
    assert sum(read) == 0
    monkeypatch.undo()
    monkeypatch.setitem(catalog.CATALOG, "toy", ENTRY)
    for content in (b"", kept[0].read_bytes()[:300], b"no archive"):
        for path in kept:
            path.write_bytes(content)
        np.testing.assert_array_equal(prepared.open("toy", data_dir=toy).train.y, first.train.y)


def test_splits(toy, monkeypatch):
    entry = catalog.CatalogEntry(**{**vars(ENTRY), "valid": "validation"})
    monkeypatch.setitem(catalog.CATALOG, "toy", entry)
    assert pairs(prepared.open("toy", data_dir=toy).train) == expected("train", "validation")
    for splits, count in (
        (("train+test", None), 36),
        (("train[:50%]", "validation"), 12),
        (("train[12:]", "test"), 12),
    ):
        source = prepared.open("toy", data_dir=toy, splits=dict(zip(("train", "test"), splits, strict=True)))
        assert len(source.train.y) == count
        assert (source.test is None) == (splits[1] is None)
    halves = [prepared.open("toy", data_dir=toy, splits={"train": s}).train for s in ("train[:12]", "train[12:]")]
    assert sorted(pairs(halves[0]) + pairs(halves[1])) == expected("train")


def test_names_from_a_feature(toy, monkeypatch):
    monkeypatch.setitem(catalog.CATALOG, "toy", catalog.CatalogEntry(**{**vars(ENTRY), "name_of": "bird/name"}))
    assert prepared.open("toy", data_dir=toy).class_names == ("the ant", "the bee", "the cow")


def test_tfrecord_files_are_read_without_tensorflow(toy):
    records = prepared.open("toy", data_dir=toy)
    as_tfrecord(toy)
    assert not list(version(toy).glob("*.array_record-*"))
    for lazily in (False, True):
        source = prepared.open("toy", data_dir=toy, lazily=lazily)
        np.testing.assert_array_equal(source.train.x[:], records.train.x)
        np.testing.assert_array_equal(source.test.y, records.test.y)
    part = prepared.open("toy", data_dir=toy, splits={"train": "train[6:]"}).train
    np.testing.assert_array_equal(part.x, records.train.x[6:])
    (path,) = version(toy).glob("*train.tfrecord-*")
    whole = path.read_bytes()
    for content in (whole[:-5], whole[:20], b"", whole + b"12345"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cut short or damaged"):
            prepared.open("toy", data_dir=toy)


def test_the_newest_version_is_read(toy):
    shutil.copytree(version(toy), toy / "toy_pictures" / "1.10.0")
    (version(toy) / "dataset_info.json").write_text("broken")
    (toy / "toy_pictures" / "1.9.0").mkdir()  # begun, not finished
    (toy / "toy_pictures" / "incomplete.XYZ_2.0.0").mkdir()
    info = toy / "toy_pictures" / "1.10.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("1.2.0", "1.10.0"))
    assert pairs(prepared.open("toy", data_dir=toy).train) == expected("train")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "tou"}, "unknown data set 'tou'; did you mean 'toy'"),
        ({"name": "Cifar10"}, "did you mean 'cifar10'"),
        ({"name": "caltech_birds2010"}, "did you mean 'cub200'"),
        (
            {"name": "cifar10"},
            r"cifar10 is not prepared in .*prepare it once: pip install -e '\.\[prepare\]' && pyth",
        ),
        ({"name": "imagenet"}, r"prepared.prepare\('imagenet', '.*', 'FOLDER_OF_ITS_ARCHIVES'\)"),
        ({"name": "gtsrb", "data_dir": None}, "read from a folder, which data_dir .* gives, from https://benchmark"),
        ({"splits": {"test": "extra"}}, r"has the splits \['test', 'train', 'validation'\], not 'extra'"),
        ({"splits": {"train": None}}, "give 'train'"),
        ({"splits": {"valid": "validation"}}, "give 'train'"),
        ({"splits": {"train": "train[:1]"}}, r"no images of the classes \[.*\] in 'train\[:1\]'"),
        ({"data_dir": "gs://bucket/data"}, "copy or mount"),
    ],
)
def test_refusals(toy, kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepared.open(**{"name": "toy", "data_dir": toy, **kwargs})
    assert "\n" not in str(caught.value)


def test_the_command_that_prepares_runs_as_it_is_printed(toy, monkeypatch):
    with pytest.raises(ValueError) as caught:
        prepared.open("cifar10", data_dir=toy)
    command = re.search('python -c "(.*)"$', str(caught.value)).group(1)
    called = []
    builder = types.SimpleNamespace(download_and_prepare=lambda **kwargs: called.append(kwargs))
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "builder", lambda name, **kwargs: called.append((name, kwargs)) or builder)
    exec(command, {})
    assert called[0] == ("cifar10", {"data_dir": str(toy), "file_format": "array_record"})
    assert "download_config" in called[1]
    with pytest.raises(ValueError, match="gtsrb has no builder; it is read from a folder with Train/00000"):
        prepared.prepare("gtsrb")
    monkeypatch.setattr(tfds, "builder", lambda *a, **k: (_ for _ in ()).throw(ImportError("No module 'tensorflow'")))
    with pytest.raises(ValueError, match=r"No module 'tensorflow'; pip install -e '\.\[prepare\]'"):
        prepared.prepare("cifar10", toy)


def test_files_that_are_not_as_they_should_be(toy, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot read data_dir"):
        prepared.open("toy", data_dir=tmp_path / "file")
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    with pytest.raises(ValueError, match=r"needs array_record .*pip install -e '\.\[data\]'"):
        prepared.open("toy", data_dir=toy)
    monkeypatch.delitem(sys.modules, "array_record.python")
    info = version(toy) / "dataset_info.json"
    good = info.read_text()
    info.write_text(good.replace("array_record", "riegeli"))
    with pytest.raises(ValueError, match=r"files are \['riegeli'\], readable are"):
        prepared.open("toy", data_dir=toy)
    info.write_text(good[:40])
    with pytest.raises(ValueError, match="not a data set that can be read"):
        prepared.open("toy", data_dir=toy)
    info.write_text(good)
    monkeypatch.setitem(catalog.CATALOG, "toy", catalog.CatalogEntry(**{**vars(ENTRY), "classes": 4}))
    with pytest.raises(ValueError, match="3 classes here, 4 in the catalogue"):
        prepared.open("toy", data_dir=toy)
    monkeypatch.setitem(catalog.CATALOG, "toy", catalog.CatalogEntry(**{**vars(ENTRY), "coarse": "species"}))
    with pytest.raises(ValueError, match="a record cannot be read, or lacks"):
        prepared.open("toy", data_dir=toy)
    monkeypatch.setitem(catalog.CATALOG, "toy", ENTRY)
    (path,) = version(toy).glob("*test.array_record-*")
    path.unlink()
    with pytest.raises(ValueError, match="'test' is missing; prepare it again"):
        prepared.open("toy", data_dir=toy)
    path.write_bytes(b"damaged" * 10)
    with pytest.raises(ValueError, match="prepare it again"):
        prepared.open("toy", data_dir=toy)


def test_a_damaged_picture_is_named(toy):
    as_tfrecord(toy)
    (path,) = version(toy).glob("*test.tfrecord-*")
    content = path.read_bytes()
    at = content.index(b"IHDR")
    path.write_bytes(content[:at] + b"XXXX" + content[at + 4 :])
    with pytest.raises(ValueError, match="toy, test, picture 0: is not a picture"):
        prepared.open("toy", data_dir=toy)


def test_where_data_lie_by_default(toy, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(toy))
    assert sources.sizes(prepared.open("toy")) == {"train": 24, "test": 12}
    assert json.loads((version(toy) / "dataset_info.json").read_text())["name"] == "toy_pictures"
    assert os.listdir(toy) == ["toy_pictures"]
