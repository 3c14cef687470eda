"""Dtypes of arrays in safetensors files: which NumPy's reader knows, and how all others are kept by their bits.

NumPy has no bfloat16, float8 or int4. `ml_dtypes` adds them, and `safetensors.numpy` reads none of them back.
"""

from typing import Any

import ml_dtypes
import numpy as np
import safetensors

_PLAIN = frozenset(
    np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64"),
    )
)
"""What safetensors keeps and NumPy's reader gives back."""

BY_BITS: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
        *("int1", "int2", "int4", "uint1", "uint2", "uint4"),
    )
    if hasattr(ml_dtypes, name)
}
"""The dtypes of `ml_dtypes` by name. One of less than 8 bits takes a byte for each number in memory."""

_NATIVE = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"} | {
    f"F8_{kind}FNUZ": f"float8_{kind.lower()}fnuz" for kind in ("E4M3", "E5M2")
}
"""Those of them that safetensors has a name for."""

_LETTERS = {"b": "BOOL", "i": "I", "u": "U", "f": "F", "c": "C"}


def by_bits(array: np.ndarray) -> tuple[np.ndarray, str]:
    """An array as NumPy's safetensors reads it back, and the dtype that its bits stand for.

    Args:
        array: `[...]`, of any dtype that JAX has arrays of, random keys and complex128 excepted.

    Returns:
        The array itself and `""`; or its bits, as uint8 or uint16 `[...]`, and the name of its dtype.

    Raises:
        ValueError: for any other dtype.

    >>> by_bits(np.array([1.0, -2.0], ml_dtypes.bfloat16))
    (array([16256, 49152], dtype=uint16), 'bfloat16')
    >>> by_bits(np.array([True, False]))
    (array([ True, False]), '')
    """
    if array.dtype.newbyteorder("=") in _PLAIN:
        return array, ""
    if BY_BITS.get(array.dtype.name) != array.dtype:
        raise ValueError(f"{array.dtype}; booleans, integers and floats can be written")
    return array.view(np.dtype(f"uint{8 * array.dtype.itemsize}")), array.dtype.name


def from_bits(array: np.ndarray, name: str) -> np.ndarray:
    """The array of which `by_bits` gave the bits and the name of the dtype.

    Raises:
        ValueError: if there is no dtype of that name, or the array does not hold its bits.

    >>> from_bits(np.array([16256, 49152], np.uint16), "bfloat16").tolist()
    [1.0, -2.0]
    """
    if not name:
        return array
    if name not in BY_BITS:
        raise ValueError(f"{name!r:.40} is no dtype that is kept by its bits; they are {sorted(BY_BITS)}")
    if array.dtype != np.dtype(f"uint{8 * BY_BITS[name].itemsize}"):
        raise ValueError(f"{name} is kept in {8 * BY_BITS[name].itemsize} bits, not as {array.dtype}")
    return array.view(BY_BITS[name])


def safetensors_name(dtype: np.dtype[Any]) -> str:
    """The name that safetensors has for a dtype; `""` if it has none.

    >>> safetensors_name(np.dtype("int8")), safetensors_name(np.dtype(ml_dtypes.float8_e5m2))
    ('I8', 'F8_E5M2')
    """
    if dtype.newbyteorder("=") in _PLAIN:
        letter = _LETTERS[dtype.kind]
        return letter if letter == "BOOL" else f"{letter}{8 * dtype.itemsize}"
    return next((name for name, own in _NATIVE.items() if BY_BITS.get(own) == dtype), "")


def read(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name; bfloat16 and float8 included, which `safetensors.numpy` cannot read.

    Args:
        content: the content of the file.

    Returns:
        `{name: array}`; the arrays are views of the content and cannot be written to.

    Raises:
        safetensors.SafetensorError: if it is no complete file of that kind.
        ValueError: if it holds a dtype that NumPy and `ml_dtypes` lack.

    >>> import safetensors.numpy
    >>> read(safetensors.numpy.save({"a": np.array([0.5], ml_dtypes.float8_e5m2)}))["a"].tolist()
    [0.5]
    """
    known = {safetensors_name(dtype): dtype for dtype in (*_PLAIN, *BY_BITS.values())}
    arrays = {}
    for name, tensor in safetensors.deserialize(content):
        dtype = known.get(tensor["dtype"])
        if dtype is None:
            raise ValueError(f"{name} is stored as {tensor['dtype']}; known are {sorted(filter(None, known))}")
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return arrays
