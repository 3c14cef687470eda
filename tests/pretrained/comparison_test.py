"""When an output counts as the model's: to 1e-3 of the largest of each array, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.pretrained import comparison


def test_the_largest_difference_of_all_arrays_is_told():
    wanted = {"a": np.array([1.0, -2000.0]), "b": (np.array([True, False]), np.zeros((0, 3)))}
    got = {"a": np.array([1.5, -2000.0]), "b": (np.array([True, False]), np.zeros((0, 3)))}
    assert comparison.difference(got, wanted) == 0.5  # of 2,000 allowed are 2
    assert comparison.difference([np.float32(np.inf)], [np.float32(np.inf)]) == 0.0


@pytest.mark.parametrize(
    ("got", "wanted", "message"),
    [
        ([1.0, 2.0], [1.0, 2.003], "by 0.003 in its logits"),
        ([1.0, np.nan], [1.0, np.nan], "by nan"),
        ([1.0, np.inf], [1.0, -np.inf], "by inf"),
        ([1.0, 2.0], [1.0, np.inf], "by inf"),
        ([True, False], [True, True], "by 1 in"),
    ],
)
def test_what_is_further_off_is_refused(got, wanted, message):
    with pytest.raises(ValueError, match=f"differs from the model {message}"):
        comparison.difference(np.array(got), np.array(wanted))


def test_each_array_is_measured_by_its_own_size_and_dtype():
    large, small = np.array([1e6]), np.array([1.0])
    assert comparison.difference((large + 100, small), (large, small)) == 100.0
    with pytest.raises(ValueError, match=r"by 0\.1 in its output '1'"):
        comparison.difference((large, small + 0.1), (large, small))
    coarse = jnp.array([1.0], jnp.bfloat16)  # the next number is 1.0078125
    assert comparison.difference(coarse + jnp.bfloat16(0.0078125), coarse) == 0.0078125
