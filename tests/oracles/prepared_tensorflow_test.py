"""Prepared data sets against TensorFlow's own reading of them; needs TensorFlow."""

import numpy as np
import pytest

from mvp_jax.data.datasets import catalog, prepared

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")

X = np.random.default_rng(0).integers(0, 256, (40, 6, 7, 3), np.uint8)
Y = np.arange(40) % 4


class ToyOfArrays(tfds.core.GeneratorBasedBuilder):
    """Pictures given as arrays, which TensorFlow encodes, in the way of CIFAR's builder."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing is downloaded, so no checksums are looked for beside the code

    def _info(self):
        features = {"image": tfds.features.Image(shape=(6, 7, 3)), "label": tfds.features.ClassLabel(num_classes=4)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 28), "test": self._generate_examples(28, 40)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            yield i, {"image": X[i], "label": int(Y[i])}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    entry = catalog.CatalogEntry(tfds="toy_of_arrays", home="", classes=4, counts=(28, 0, 12), native=(6, 7), size=7)
    monkeypatch.setitem(catalog.CATALOG, "toy", entry)


def by_tensorflow(folder, split):
    builder = tfds.builder_from_directory(folder / "toy_of_arrays" / "1.0.0")
    read = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, shuffle_files=False))
    return read["image"], read["label"]


def check(source, folder):
    assert source.class_names == ("0", "1", "2", "3")
    for pair, split, part in ((source.train, "train", slice(28)), (source.test, "test", slice(28, 40))):
        x, y = by_tensorflow(folder, split)
        assert x.std() > 0
        np.testing.assert_array_equal(pair.x[:], x)
        np.testing.assert_array_equal(pair.y, y)
        assert {a.tobytes() for a in pair.x} == {a.tobytes() for a in X[part]}


def test_tfrecord_files_come_as_tensorflow_reads_them(tmp_path):
    ToyOfArrays(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
    for lazily in (False, True):
        check(prepared.open("toy", data_dir=tmp_path, lazily=lazily), tmp_path)


def test_what_is_prepared_here_comes_back(tmp_path):
    with pytest.raises(ValueError, match="prepare it once"):
        prepared.open("toy", data_dir=tmp_path)
    prepared.prepare("toy", tmp_path)
    assert list((tmp_path / "toy_of_arrays" / "1.0.0").glob("*.array_record-*"))
    source = prepared.open("toy", data_dir=tmp_path)
    assert {a.tobytes() for a in source.train.x} == {a.tobytes() for a in X[:28]}
    label = {a.tobytes(): int(y) for a, y in zip(X, Y, strict=True)}
    assert [label[a.tobytes()] for a in source.train.x] == source.train.y.tolist()
