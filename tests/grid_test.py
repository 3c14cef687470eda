import os
import subprocess
import sys

import numpy as np
import pytest

from tests import grid

_DEFAULT = ("dict", "float32", "one")
_APART = (("state", "bfloat16", "explicit fsdp"), ("equinox", "float16", "auto fsdp"))


def _cells():
    """Every cell; by default those that differ from the plain one in one respect, and a few that differ in all."""
    cells = []
    for name in grid.NAMES:
        for container in grid.CONTAINERS:
            for dtype in grid.DTYPES:
                for place in grid.PLACES:
                    if dtype == "int8" and name in grid.FLOATS_ONLY:
                        continue
                    cell = (container, dtype, place)
                    apart = sum(a != b for a, b in zip(cell, _DEFAULT, strict=True))
                    quick = apart == 1 or cell in (
                        ("state", "bfloat16", "explicit fsdp"),
                        ("equinox", "float16", "auto fsdp"),
                    )
                    if apart:
                        cells.append(pytest.param(name, *cell, marks=[] if quick else pytest.mark.slow))
    return cells


@pytest.fixture(scope="module")
def answers():
    return {}


@pytest.mark.parametrize(("name", "container", "dtype", "place"), _cells())
def test_every_tree_dtype_and_place_gives_the_plain_answer(name, container, dtype, place, answers):
    if name not in answers:
        answers[name] = grid.run(name, *_DEFAULT)
    expected = answers[name]
    assert any(len(np.unique(v)) > 1 for v in expected.values()), "the answer is trivial"
    got = grid.run(name, container, dtype, place)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(got[key], value)


@pytest.mark.slow
def test_the_grid_on_eight_devices():
    flags = os.environ["XLA_FLAGS"].replace("device_count=2", "device_count=8")
    assert "device_count=8" in flags
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "not slow", __file__]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
