"""Small checkpoints and data of a person's own."""

import functools

import pytest

from mvp_jax import models
from mvp_jax.delivery import sample
from tests import folders
from tests.own_data import pictures, squares


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("photos") / "halves")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """One layer, trained to tell left from right."""
    patched = pytest.MonkeyPatch()
    small = functools.partial(models.create, layers=1, dim=16, heads=4, mlp=32)
    patched.setattr(sample.models, "create", small)
    made = sample.sample_checkpoint(tmp_path_factory.mktemp("vit") / "vit", squares(), steps=20)
    patched.undo()
    return made


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return folders.bert_encoder(folder)
