"""The builders of tensorflow-datasets with mocked examples, written as files and read back by the catalogue's names."""

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from mvp_jax.data import tasks
from mvp_jax.data.datasets import catalog, prepared

EXAMPLES = 24


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "svhn", "eurosat"])
def test_mocked_examples_of_a_real_builder_come_back(name, tmp_path, monkeypatch):
    entry = catalog.CATALOG[name]
    with tfds.testing.mock_data(num_examples=EXAMPLES):
        mocked = tfds.builder(entry.tfds)
        found = {s: list(mocked.as_data_source(split=s)) for s in (entry.train, entry.test) if s}
    for i, row in enumerate(found[entry.train]):
        row["label"] = i % entry.classes  # every class but those beyond the few examples

    def png(pixels):
        stream = io.BytesIO()
        PIL.Image.fromarray(pixels.squeeze()).save(stream, "PNG")
        return stream.getvalue()

    def examples(split):
        return ((f"{i}", row | {"image": png(row["image"])}) for i, row in enumerate(found[split]))

    builder = tfds.builder(entry.tfds, data_dir=tmp_path, file_format="array_record")
    monkeypatch.setattr(type(builder), "_split_generators", lambda *_: {s: examples(s) for s in found})
    builder.download_and_prepare()

    if entry.classes > EXAMPLES:
        with pytest.raises(ValueError, match=r"cifar100: no images of the classes \['24', '25'"):
            prepared.open(name, data_dir=tmp_path)
        return
    source = prepared.open(name, data_dir=tmp_path)
    assert source.class_names == tuple(builder.info.features["label"].names)
    shape = (*entry.native, entry.channels)
    for pair, split in ((source.train, entry.train), (source.test, entry.test)):
        assert (pair is None) == (split is None)
        if split is None:
            continue
        assert (pair.x.shape, pair.x.dtype, pair.y.dtype) == ((EXAMPLES, *shape), np.uint8, np.int32)
        assert 0 <= pair.y.min() < pair.y.max() < entry.classes
        label = {row["image"].tobytes(): int(row["label"]) for row in found[split]}
        assert len(label) > EXAMPLES // 2
        assert {x.tobytes(): int(y) for x, y in zip(pair.x, pair.y, strict=True)} == label
    again = prepared.open(name, data_dir=tmp_path, lazily=True)
    np.testing.assert_array_equal(again.train.x[:], source.train.x)
    own = tasks.materialise(tasks.Task(name="t", classes=(3, 1)), source.train, shots=2, seed=0)
    assert own.train.x.shape == (4, *shape)
    assert own.train.y.tolist() == [0, 1, 0, 1]
