"""Every dtype that JAX has arrays of goes to disk and back bit for bit, or is refused before anything is written."""

import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax.storage import checkpoint, dtypes

SCALARS = {name: np.dtype(scalar) for name, scalar in vars(jnp).items() if isinstance(scalar, type(jnp.float32))}
EXPOSED = sorted({dtype.name: dtype for dtype in SCALARS.values()}.items())
REFUSED = {"complex128"}


def patterns(dtype):
    """All numbers of up to 16 bits, NaNs with payloads included; of wider ones, a thousand drawn bit by bit."""
    if dtype == np.dtype(bool):
        return np.array([True, False])
    if dtype.itemsize > 2:
        return np.frombuffer(np.random.default_rng(0).bytes(1000 * dtype.itemsize), dtype)
    # A number of less than 8 bits lies in a byte, whose other bits are none of it.
    digits = re.match(r"u?int(\d+)|b?float(\d+)", dtype.name)
    return np.arange(2 ** int(digits[1] or digits[2]), dtype=f"uint{8 * dtype.itemsize}").view(dtype)


def test_jax_exposes_what_is_tried():
    assert {"bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3b11fnuz", "int4", "uint4", "bool"} < set(
        dict(EXPOSED)
    )


@pytest.mark.parametrize(("name", "dtype"), EXPOSED, ids=[name for name, _ in EXPOSED])
def test_every_dtype_comes_back_bit_for_bit_or_is_refused(name, dtype, tmp_path):
    values = patterns(dtype)
    assert len(np.unique(values.view(np.uint8))) > 1
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"'tree/a' holds {name}"):
            checkpoint.save_arrays(tmp_path / "x", {"tree": {"a": values}})
        assert list(tmp_path.iterdir()) == []
        return
    square = values[: len(values) // 2 * 2].reshape(2, -1).T  # not contiguous
    checkpoint.save_arrays(tmp_path / "x", {"tree": {"a": values, "b": square, "c": values[1]}})
    found = checkpoint.load_arrays(tmp_path / "x")["tree"]
    for key, wanted in {"a": values, "b": square, "c": values[1]}.items():
        assert found[key].dtype == dtype
        assert found[key].shape == wanted.shape
        assert found[key].tobytes() == wanted.tobytes()


@pytest.mark.parametrize(("name", "dtype"), EXPOSED, ids=[name for name, _ in EXPOSED])
def test_arrays_of_jax_come_back_too(name, dtype, tmp_path):
    if name in ("complex128", "float64", "int64", "uint64"):
        pytest.skip("only under jax_enable_x64")
    try:
        given = np.array([0, 1, 1, 0]).astype(dtype)
        array = jnp.asarray(given)
        array.block_until_ready()
    except Exception:  # XLA raises what it likes
        pytest.skip("this backend has no arrays of it")
    checkpoint.save_arrays(tmp_path / "x", {"a": array})
    found = checkpoint.load_arrays(tmp_path / "x")["a"]
    assert found.dtype == array.dtype == dtype
    assert found.tobytes() == given.tobytes() != bytes(len(given.tobytes()))


def test_what_a_file_says_of_dtypes_is_checked(tmp_path):
    bits = np.arange(4, dtype=np.uint8)
    for name, message in {
        "finfo": "'finfo' is no dtype",
        "object": "is no dtype",
        "bfloat16": "16 bits, not as uint8",
    }.items():
        with pytest.raises(ValueError, match=message):
            dtypes.from_bits(bits, name)
    for odd in (np.zeros(2, np.longdouble), np.zeros(2, [("a", "<i4")]), np.zeros(2, "V2"), np.array(["a"])):
        with pytest.raises(ValueError, match="booleans, integers and floats"):
            dtypes.by_bits(odd)


def test_files_of_others_are_read_in_the_dtypes_that_they_name():
    held = {n: np.arange(3).astype(getattr(ml_dtypes, n)) for n in ("bfloat16", "float8_e5m2", "float8_e4m3fn")}
    held |= {"F32": np.arange(3, dtype=np.float32), "BOOL": np.array([True, False]), "big": np.arange(3, dtype=">i2")}
    found = dtypes.read(safetensors.numpy.save(held))
    for name, wanted in held.items():
        assert found[name].dtype == wanted.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], wanted)
    names = {name: dtypes.safetensors_name(a.dtype) for name, a in held.items()}
    assert names["bfloat16"] == "BF16"
    assert names["float8_e4m3fn"] == "F8_E4M3"
    assert names["big"] == "I16"
    assert dtypes.safetensors_name(np.dtype(ml_dtypes.int4)) == ""
