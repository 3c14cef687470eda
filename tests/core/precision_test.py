import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mvp_jax.core import precision


@pytest.mark.parametrize(
    "dtype", ["bool", "int4", "uint4", "int8", "uint8", "int32", "float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"]
)
def test_narrow_numbers_become_float32_of_the_same_value(dtype):
    values = np.array([0, 1, 2, 3]) if dtype in ("bool", "uint4", "uint8") else np.array([-8, -1, 0, 3])
    if dtype == "bool":
        values = values % 2
    x = values.astype(getattr(ml_dtypes, dtype, None) or dtype)
    for got in (precision.widen(x), jax.jit(precision.widen)(jnp.asarray(x)), precision.widen_all({"a": x})["a"]):
        assert got.dtype == jnp.float32
        assert got.tolist() == values.tolist()


def test_wide_numbers_stay_as_they_are():
    for dtype in ("float32", "complex64"):
        assert precision.widen(jnp.ones(2, dtype)).dtype == dtype
    assert precision.widest({"a": np.ones(2), "b": jnp.ones(2, jnp.int8)}) == jnp.float32
    with jax.enable_x64(True):
        x = jnp.array([1 + 2**-40, 2.0])
        assert precision.widen(x).tolist() == x.tolist()
        assert precision.widen(np.ones(2, np.float16)).dtype == jnp.float32
        assert precision.widest({"a": x, "b": jnp.ones(2, jnp.int8)}) == jnp.float64
        assert precision.widest({"b": jnp.ones(2, jnp.bfloat16)}) == jnp.float32
        assert (precision.widen(2.0) * jnp.ones(2, jnp.float32)).dtype == jnp.float32
