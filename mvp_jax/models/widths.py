"""The widths of a transformer, layer by layer: how many units each group has, where they lie, and other ones."""

from collections.abc import Mapping
from typing import Any, Protocol


class Transformer(Protocol):
    """What all configurations of transformers have: the width of the embedding, and sizes for each of their layers."""

    @property
    def dim(self) -> int: ...
    @property
    def attention_scale(self) -> float: ...
    @property
    def heads(self) -> tuple[int, ...]: ...
    @property
    def qk_dim(self) -> tuple[int, ...]: ...
    @property
    def v_dim(self) -> tuple[int, ...]: ...
    @property
    def mlp(self) -> tuple[int, ...]: ...


KERNELS = (r"layers/\d+/(attention/(query|key|value|out)|fc1|fc2)/kernel",)
"""Rules for the kernels of a transformer that unstructured pruning may touch."""


def of_twos(config: Transformer) -> dict[str, Any]:
    """The fields of the smallest transformer of as many layers in which every axis can be told to be cut."""
    twos = (2,) * len(config.heads)
    return {"heads": twos, "qk_dim": twos, "v_dim": twos, "mlp": twos}


def sizes(config: Transformer) -> dict[str, int]:
    """How many units each group of a transformer has, in order of depth."""
    sizes: dict[str, int] = {}
    for i, (heads, qk, value, mlp) in enumerate(
        zip(config.heads, config.qk_dim, config.v_dim, config.mlp, strict=True)
    ):
        a = f"layers/{i}/attention"
        sizes |= {a: heads, f"{a}/query": qk, f"{a}/value": value, f"layers/{i}/fc1": mlp}
    return sizes


def slots(config: Transformer) -> dict[str, tuple[str, int]]:
    """`{group: (path, axis)}`, one place for each group, as `api.coupled` takes it."""

    def made(name: str) -> tuple[str, int]:
        if name.endswith("attention"):
            return f"{name}/query/kernel", 1
        return f"{name}/kernel", 1 if name.endswith("fc1") else 2

    return {name: made(name) for name in sizes(config)}


def fields(config: Transformer, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The fields `heads`, `qk_dim`, `v_dim` and `mlp` of a configuration in which some groups get other sizes.

    Args:
        config: the configuration.
        sizes: `{group: number of units}`; groups that are not named keep theirs.
    """

    def of(old: tuple[int, ...], name: str) -> tuple[int, ...]:
        return tuple(int(sizes.get(name.format(i), n)) for i, n in enumerate(old))

    return {
        "heads": of(config.heads, "layers/{}/attention"),
        "qk_dim": of(config.qk_dim, "layers/{}/attention/query"),
        "v_dim": of(config.v_dim, "layers/{}/attention/value"),
        "mlp": of(config.mlp, "layers/{}/fc1"),
    }


def alike(dim: int, *, heads: int, layers: int, mlp: int | None) -> dict[str, Any]:
    """The fields of a transformer whose layers are all alike: head size `dim / heads`, MLP width `4·dim` unless given.

    Raises:
        ValueError: if the heads do not divide the embedding.

    >>> alike(8, heads=2, layers=1, mlp=None)["mlp"], alike(8, heads=2, layers=3, mlp=5)["qk_dim"]
    ((32,), (4, 4, 4))
    """
    if dim % heads:
        raise ValueError(f"{heads} heads do not divide an embedding of {dim}")
    d = dim // heads
    return {
        "dim": dim,
        "heads": (heads,) * layers,
        "qk_dim": (d,) * layers,
        "v_dim": (d,) * layers,
        "mlp": (4 * dim if mlp is None else mlp,) * layers,
        "attention_scale": d**-0.5,
    }
