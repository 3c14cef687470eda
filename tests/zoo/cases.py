"""What a zoo case is, the layers that the cases are built of, and masking and cutting written as plain loops."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Axes: TypeAlias = frozenset[tuple[str, int]]
"""Axes of arrays: `(path, axis)`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """A group that must be found: units, axes, and, where given, its kind, its name and the axes that produce it."""

    size: int
    slots: Axes
    kind: str | None = None
    name: str | None = None
    scored: Axes | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model and what is true of it.

    Attributes:
        apply: `apply(variables, *inputs)`.
        truth: the groups, worked out by hand.
        exactly: whether `truth` is every group there is; else it is some of them.
        frozen: axes no part of which may be cut, each with a pattern that the reason must match.
        partly: axes of which a part may not be cut, likewise.
        either: axes that may be in a group or, with a reason that matches, frozen.
        naive: whether plainly deleting the units along the `frozen` axes gives something else than masking them: what
            shows that they are frozen for a good reason.
        more: further inputs on which slim and masked model must agree.
    """

    apply: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]
    truth: tuple[Truth, ...] = ()
    exactly: bool = True
    frozen: Mapping[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    partly: Mapping[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    either: Mapping[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    naive: bool = False
    more: tuple[tuple[Any, ...], ...] = ()


Builders: TypeAlias = dict[str, Callable[[], Case]]
"""Cases by name, each built when it is asked for."""


def axes(text: str) -> Axes:
    """Axes in short: `a,b/kernel:0 c/bias:0,1` names axis 0 of two kernels and two axes of a bias."""
    found = set()
    for word in text.split():
        path, _, numbers = word.rpartition(":")
        for parts in itertools.product(*(segment.split(",") for segment in path.split("/"))):
            found |= {("/".join(parts), int(n)) for n in numbers.split(",")}
    return frozenset(found)


def unit(size: int, reads: str, *, makes: str = "", kind: str | None = None, name: str | None = None) -> Truth:
    """A true group, its axes in short; those of arrays that produce the units may be given apart, to be checked too."""
    return Truth(
        size=size, slots=axes(reads) | axes(makes), kind=kind, name=name, scored=axes(makes) if makes else None
    )


def why(text: str, pattern: str) -> dict[tuple[str, int], str]:
    """Axes in short, all with the same pattern for the reason."""
    return dict.fromkeys(axes(text), pattern)


def case(apply: Callable[..., Any], shapes: Any, inputs: tuple[Any, ...], *truth: Truth, **more: Any) -> Case:
    """A case with random variables of the given shapes."""
    return Case(apply=apply, variables=draw(shapes), inputs=inputs, truth=truth, **more)


# --- Variables and inputs --------------------------------------------------------------------------------------------


def _is_shape(s: Any) -> bool:
    return isinstance(s, tuple) and all(isinstance(n, int) for n in s)


def draw(shapes: Any, seed: int = 0) -> Any:
    """Random arrays for a tree of shapes: scales and variances positive and not 1, everything else about 0."""
    rng = np.random.default_rng(seed)

    def one(keys: Sequence[Any], shape: tuple[int, ...]) -> jax.Array:
        name = jax.tree_util.keystr(keys[-1:], simple=True)
        if name in ("scale", "var", "gamma"):
            value = rng.uniform(0.5, 1.8, shape)
        elif name == "mean":
            value = rng.uniform(0.1, 0.5, shape) * rng.choice((-1, 1), shape)
        else:
            fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 4
            value = rng.normal(size=shape) * 1.4 / np.sqrt(fan_in)
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(one, shapes, is_leaf=_is_shape)


def normal(*shape: int, seed: int = 1) -> jax.Array:
    """A random input."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens(*shape: int, vocabulary: int, seed: int = 1) -> jax.Array:
    """Random token ids."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocabulary, shape), jnp.int32)


def dense_shapes(*kernel: int, inputs: int = 1) -> dict[str, tuple[int, ...]]:
    """A dense layer with a bias; the first `inputs` axes are contracted."""
    return {"kernel": kernel, "bias": kernel[inputs:]}


def conv_shapes(size: int, inputs: int, outputs: int, groups: int = 1) -> dict[str, tuple[int, ...]]:
    """A square convolution with a bias."""
    return {"kernel": (size, size, inputs // groups, outputs), "bias": (outputs,)}


def norm_shapes(*width: int) -> dict[str, tuple[int, ...]]:
    """Scale and bias."""
    return {"scale": width, "bias": width}


def stats_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Batch statistics."""
    return {"mean": (width,), "var": (width,)}


# --- Layers ----------------------------------------------------------------------------------------------------------


def dense(p: Any, x: jax.Array) -> jax.Array:
    """`x @ kernel + bias`; a kernel of three axes splits its output into heads."""
    return jnp.tensordot(x, p["kernel"], 1) + p["bias"]


def conv(p: Any, x: jax.Array, *, stride: int = 1, groups: int = 1, padding: str = "SAME") -> jax.Array:
    """A convolution, channels last; the bias is optional."""
    y = lax.conv_general_dilated(
        x,
        p["kernel"],
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y + p["bias"] if "bias" in p else y


def pool(x: jax.Array, size: int = 2, *, how: str = "max", stride: int | None = None) -> jax.Array:
    """Pooling over the plane, written with `reduce_window`."""
    window, strides = (1, size, size, 1), (1, stride or size, stride or size, 1)
    if how == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "SAME")
    return lax.reduce_window(x, 0.0, lax.add, window, strides, "VALID") / size**2


def batch_norm(p: Any, stats: Any, x: jax.Array) -> jax.Array:
    """Normalisation with running statistics."""
    return (x - stats["mean"]) * lax.rsqrt(stats["var"] + 1e-5) * p["scale"] + p["bias"]


def layer_norm(p: Any, x: jax.Array) -> jax.Array:
    """The variance as `E[x²] - E[x]²`, so that entries that are zero add nothing."""
    mean = jnp.mean(x, -1, keepdims=True)
    var = jnp.mean(jnp.square(x), -1, keepdims=True) - jnp.square(mean)
    return (x - mean) * lax.rsqrt(var + 1e-5) * p["scale"] + p["bias"]


def rms_norm(p: Any, x: jax.Array) -> jax.Array:
    """Division by the root of the mean square."""
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5) * p["scale"]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: Any = 0.0, mask: Any = None) -> jax.Array:
    """Softmax attention over `[B, T, heads, dimensions]`."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]) + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


def merge_heads(p: Any, x: jax.Array) -> jax.Array:
    """The output projection `[heads, dimensions, width]`."""
    return jnp.einsum("bthd,hdw->btw", x, p["kernel"]) + p["bias"]


# --- Masking and cutting, as loops -----------------------------------------------------------------------------------


def leaves(variables: Any) -> dict[tuple[str, str], Any]:
    """`{(collection, path): array}`, the path relative to its collection."""
    apart = (isinstance(variables, Mapping) and "params" in variables) or hasattr(variables, "_fields")
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        first, _, rest = path.partition("/")
        found[first if apart else "params", rest if apart else path] = leaf
    return found


def indices(slot: Any, c: int) -> list[int]:
    """Where unit `c` lies along its slot's axis."""
    found = [slot.start + c * slot.step]
    for count, stride in slot.repeats:
        found = [i + k * stride for i in found for k in range(count)]
    return [slot.order[i] for i in found] if slot.order else found


def removed(groups: Sequence[Any], units: Mapping[str, np.ndarray]) -> dict[tuple[str, str], dict[int, set[int]]]:
    """`{(collection, path): {axis: indices that go}}`."""
    gone: dict[tuple[str, str], dict[int, set[int]]] = {}
    for g in groups:
        for s in g.slots:
            for c in range(g.size):
                if not units[g.name][c]:
                    gone.setdefault((s.collection, s.path), {}).setdefault(s.axis, set()).update(indices(s, c))
    return gone


def rebuilt(variables: Any, new: Mapping[tuple[str, str], np.ndarray]) -> Any:
    """The variables with some arrays replaced."""
    old = leaves(variables)
    assert set(new) <= set(old)
    return jax.tree.unflatten(jax.tree.structure(variables), [jnp.asarray(new.get(k, v)) for k, v in old.items()])


def masked(variables: Any, gone: Mapping[tuple[str, str], Mapping[int, set[int]]]) -> Any:
    """The variables with zeros at every parameter entry of a removed unit."""
    new = {}
    for (collection, path), cuts in gone.items():
        value = np.array(leaves(variables)[collection, path])
        for axis, where in cuts.items():
            for i in where if collection == "params" else ():
                np.moveaxis(value, axis, 0)[i] = 0
        new[collection, path] = value
    return rebuilt(variables, new)


def smaller(variables: Any, gone: Mapping[tuple[str, str], Mapping[int, set[int]]]) -> Any:
    """The variables without the removed units."""
    new = {}
    for key, cuts in gone.items():
        value = np.array(leaves(variables)[key])
        for axis, where in cuts.items():
            value = np.delete(value, sorted(where), axis)
        new[key] = value
    return rebuilt(variables, new)
