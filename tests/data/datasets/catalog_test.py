"""The catalogue says what tensorflow-datasets' builders say, and nothing that contradicts itself."""

import numpy as np
import pytest

from mvp_jax.data import tasks
from mvp_jax.data.datasets import catalog
from mvp_jax.data.datasets.catalog import CATALOG

BUILDERS = [name for name, entry in CATALOG.items() if entry.tfds]


@pytest.mark.parametrize("name", BUILDERS)
def test_features_are_the_builders(name, tmp_path):
    import tensorflow_datasets as tfds

    entry = CATALOG[name]
    features = tfds.builder(entry.tfds, data_dir=tmp_path).info.features
    assert features[entry.label].num_classes == entry.classes
    height, width, channels = features["image"].shape
    assert (None if height is None else (height, width)) == entry.native
    assert channels == entry.channels
    assert features["image"].np_dtype == np.uint8
    assert entry.coarse is None or features[entry.coarse].num_classes < entry.classes
    assert entry.name_of is None or features[entry.name_of].np_dtype == np.object_
    if entry.tfds.partition("/")[0] == "imagenet2012":
        assert features["label"].names[0] == "n01440764"


def test_every_entry_is_whole():
    assert list(CATALOG) == [
        "cifar10",
        "cifar100",
        "svhn",
        "mnist",
        "fashion_mnist",
        "gtsrb",
        "cars",
        "cub200",
        "pets",
        "flowers",
        "food101",
        "eurosat",
        "dtd",
        "tiny_imagenet",
        "imagenet",
    ]
    for name, entry in CATALOG.items():
        assert entry.home.startswith("http"), name
        assert (entry.tfds is None) == bool(entry.layout), name
        assert [bool(n) for n in entry.counts] == [True, bool(entry.valid), bool(entry.test)], name
        assert entry.native is None or entry.native == (entry.size, entry.size), name
        assert len(entry.class_names) in (0, entry.classes), name
        assert len(set(entry.class_names)) == len(entry.class_names), name
        for values in (entry.mean, entry.std):
            assert values is None or (len(values) == entry.channels and all(0 < v < 1 for v in values)), name


def test_what_is_small():
    assert {name for name, entry in CATALOG.items() if not entry.small()} == {"cars", "cub200", "food101", "imagenet"}
    assert CATALOG["cub200"].small(128)
    assert CATALOG["mnist"].bytes_at() == 70_000 * 28 * 28


def test_unknown_names():
    for wrong, meant in (("CIFAR100", "'cifar100'"), ("oxford_iiit_pet", "'pets'"), ("tiny-imagenet", "'tiny_imagen")):
        with pytest.raises(ValueError, match=f"unknown data set '{wrong}'; did you mean {meant}"):
            catalog.find(wrong)
    with pytest.raises(ValueError, match="unknown data set 'xyz'; Known are"):
        catalog.find("xyz")


def test_names_do_not_clash_with_what_configs_write():
    assert not any(set(name) & set("+/:,=") for name in CATALOG)
    assert not {"digits", "docstrings", "npz", "folder"} & set(CATALOG)
    assert tasks.Task(name=next(iter(CATALOG)), classes=(0,)).num_classes == 1
