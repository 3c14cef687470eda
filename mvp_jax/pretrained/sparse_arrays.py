"""Arrays with many zeros in less room: the values that are not zero, and a bit for each entry that says where they are.

A file of float32 weights of which a share d is not zero takes d + 1/32 of its size.
"""

from collections.abc import Mapping

import numpy as np

VALUES, BITS = "#values", "#bits"
"""What is put behind the path of an array for the names of its two parts."""


def encode(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Returns arrays in less room, those that become smaller by it.

    Only entries all of whose bits are zero are left out, so that negative zeros come back as they were.

    Args:
        arrays: by their paths.

    Returns:
        The arrays, of which some are in two parts; and the shapes of those.

    >>> parts, shapes = encode({"w": np.array([[0, 0, 2.5, 0]], np.float32), "b": np.ones(1, np.float32)})
    >>> sorted(parts), shapes, parts["w#values"].tolist(), parts["w#bits"].tolist()
    (['b', 'w#bits', 'w#values'], {'w': [1, 4]}, [2.5], [32])
    """
    parts: dict[str, np.ndarray] = {}
    shapes: dict[str, list[int]] = {}
    for path, array in arrays.items():
        flat = np.ascontiguousarray(array).reshape(-1)
        there = flat.view(np.uint8).reshape(flat.size, -1).any(axis=1) if flat.size else np.zeros(0, bool)
        small = -(-flat.size // 8) + int(there.sum()) * flat.itemsize
        if small >= flat.nbytes:
            parts[path] = array
            continue
        parts[path + VALUES], parts[path + BITS] = flat[there], np.packbits(there)
        shapes[path] = list(array.shape)
    return parts, shapes


def decode(parts: Mapping[str, np.ndarray], shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """Returns arrays that `encode` took apart.

    Args:
        parts: the arrays, of which some are in two parts.
        shapes: the shapes of those.

    Raises:
        ValueError: if a part is missing, or parts and shapes do not fit one another.

    >>> parts, shapes = encode({"w": np.array([[0, 0, 2.5, 0]], np.float32)})
    >>> decode(parts, shapes)["w"].tolist()
    [[0.0, 0.0, 2.5, 0.0]]
    """
    own = {path + end for path in shapes for end in (VALUES, BITS)}
    arrays = {path: array for path, array in parts.items() if path not in own}
    for path, shape in shapes.items():
        if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"{path} has the shape {shape!r:.80}; expected a list of whole numbers")
        values, bits = parts.get(path + VALUES), parts.get(path + BITS)
        if values is None or bits is None:
            raise ValueError(f"{path} is kept in two parts, and one of them is missing")
        # In whole numbers, as a product of hostile sizes could wrap round.
        size = int(np.prod([int(n) for n in shape], dtype=object)) if shape else 1
        if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
            raise ValueError(f"{path} of shape {shape} needs {-(-size // 8)} bytes of bits, got {bits.shape}")
        there = np.unpackbits(bits, count=size).astype(bool)
        if values.shape != (int(there.sum()),):
            raise ValueError(f"{path} has {values.shape} values for {int(there.sum())} places")
        flat = np.zeros(size, values.dtype)
        flat[there] = values
        arrays[path] = flat.reshape(shape)
    return arrays
