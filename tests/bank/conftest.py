"""What the tests of the bank share."""

import os

import pytest

from tests import bucket


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """An address in an empty bucket; nothing but objects may come of it."""
    root, here = tmp_path / "objects", tmp_path / "here"
    root.mkdir()
    here.mkdir()
    monkeypatch.setenv("BUCKET_ROOT", str(root))
    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.chdir(here)
    bucket.register()
    from etils.epath import gpath

    gpath._is_tf_installed.cache_clear()
    yield "gs://bucket/bank"
    assert list(here.iterdir()) == [], "an address was taken for a path of this machine"
    assert not [name for name in os.listdir(root) if name.startswith(".")], "an upload was left open"
