"""The functional face of every model: plain trees in, arrays out.

Models are written as Flax NNX modules; this file is the only place that splits and merges them. What the rest of the
library sees is a `Model`: pure functions over `Variables`, the coupled groups of units, and a way to make the same
class with fewer units.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvp_jax import graph
from mvp_jax.core import trees
from mvp_jax.core.types import Array, Key, PyTree, Variables
from mvp_jax.core.units import Group


class Inspection(NamedTuple):
    """What a forward pass saw.

    Attributes:
        logits: `[N, classes]`.
        features: `[N, F]`, what the head multiplies, flattened.
        activations: `{group: [N, C]}`, the mean magnitude of each unit over all positions, after its nonlinearity.
        rest: the non-trainable variables afterwards.
    """

    logits: Array
    features: Array
    activations: Mapping[str, Array]
    rest: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """An architecture as pure functions. Equal configurations give the same object, so it can be a static argument.

    Attributes:
        config: the frozen configuration it was built from.
        init: `(key) -> Variables`.
        apply: `(variables, x, *, train=False, key=None, gates=None, knobs=None) -> (logits, rest)`. `gates` (`{group:
            [C] or [N, C]}`) multiply units after their normalisation; `knobs` may hold `batch_norm_momentum` (a
            Python float) and `dropout` (a scalar, may be traced); `key` feeds dropout.
        inspect: the same arguments, returns an `Inspection`.
        groups: every coupled group, in order of depth.
        prunable: rules for the kernels that unstructured pruning may touch.
        resize: `({group: units}) -> Model`, the same class with that many units in the named groups.
        with_classes: `(n) -> Model`, the same body under a head of `n` classes.
        input_shape: the shape of one example; token ids `(L,)` may be fewer.
        num_classes: the width of the logits.
        head: `params[head]` has `kernel` `[..., classes]` and `bias`; logits are
            `features @ kernel.reshape(F, classes) + bias`.
        input_dtype: what inputs are cast to; a model of an integer dtype (token ids) refuses floats.
    """

    config: Any
    init: Callable[[Key], Variables]
    apply: Callable[..., tuple[Array, PyTree]]
    inspect: Callable[..., Inspection]
    groups: tuple[Group, ...]
    prunable: trees.PathRules
    resize: Callable[[Mapping[str, int]], "Model"]
    with_classes: Callable[[int], "Model"]
    input_shape: tuple[int, ...]
    num_classes: int
    head: str = "head"
    input_dtype: Any = jnp.float32


class Noise:
    """Where a module's initial weights come from: slices of one long normal draw.

    A draw per layer would cost a compiled generator per layer, seconds for a small network. Made without a key it
    only counts, and gives zeros.
    """

    def __init__(self, key: Key | None = None, total: int = 0):
        self.used = 0
        self._values = None if key is None else jax.random.normal(key, (total,), jnp.float32)

    def __call__(self, shape: Sequence[int], deviation: float) -> Array:
        """Normal values of this shape, mean 0."""
        start, self.used = self.used, self.used + math.prod(shape)
        if self._values is None:
            return jnp.zeros(shape, jnp.float32)
        return jnp.reshape(deviation * self._values[start : self.used], shape)


class Hooks:
    """What a module is told about the pass it is in, and where it reports units: gates, taps, dropout keys.

    A module calls `unit` where a group's units are complete. It lives for one trace and holds no state beyond it.
    """

    def __init__(
        self,
        *,
        train: bool = False,
        key: Key | None = None,
        gates: Mapping[str, Array] | None = None,
        momentum: float | None = None,
        dropout: Array | float | None = None,
        tapping: bool = False,
    ):
        self.train = train
        self.momentum = momentum
        self._key = key
        self._drawn = 0
        self._gates = gates or {}
        self._dropout = dropout
        self._taps: dict[str, list[Array]] | None = {} if tapping else None

    def gate(self, name: str, x: Array, axis: int = -1) -> Array:
        """`x` times the group's gate, whose units lie along `axis`; without a gate `x` itself."""
        if name not in self._gates:
            return x
        g = self._gates[name]
        shape = [1] * x.ndim
        shape[axis] = g.shape[-1]
        if g.ndim == 2:
            shape[0] = g.shape[0]
        return x * jnp.reshape(g, shape).astype(x.dtype)

    def tap(self, name: str, x: Array, axis: int = -1, *, where: Array | None = None) -> None:
        """Notes each unit's mean magnitude over the positions `where`, bool `[N, T]`; several taps are averaged."""
        if self._taps is not None:
            size = jnp.abs(x).astype(jnp.promote_types(x.dtype, jnp.float32))
            if where is not None:
                # The mean over some, as the mean over all of something larger; 0, not nan, where there are none.
                share = jnp.maximum(jnp.mean(where, axis=1, keepdims=True), 1 / where.shape[1])
                size = size * jnp.reshape(where / share, (*where.shape, *(1 for _ in x.shape[2:])))
            positions = tuple(a for a in range(1, x.ndim) if a != axis % x.ndim)
            self._taps.setdefault(name, []).append(jnp.mean(size, axis=positions))

    def unit(self, name: str, x: Array, axis: int = -1, *, where: Array | None = None) -> Array:
        """`gate`, then `tap`."""
        x = self.gate(name, x, axis)
        self.tap(name, x, axis, where=where)
        return x

    def dropout(self, x: Array, rate: float) -> Array:
        """Inverted dropout in training; the `dropout` knob overrides the configured rate and may be traced."""
        p = rate if self._dropout is None else self._dropout
        if not self.train or self._key is None or (isinstance(p, float) and p == 0.0):
            return x
        self._drawn += 1
        keep = jax.random.uniform(jax.random.fold_in(self._key, self._drawn), x.shape) >= p
        return jnp.where(keep, x / (1.0 - jnp.asarray(p, x.dtype)), 0.0)

    def activations(self) -> dict[str, Array]:
        """The noted magnitudes, `{group: [N, C]}`."""
        return {name: sum(taps[1:], taps[0]) / len(taps) for name, taps in (self._taps or {}).items()}


def coupled(
    make: Callable[[Noise], nnx.Module],
    input_shape: tuple[int, ...],
    made: Mapping[str, tuple[str, int]],
    input_dtype: Any = jnp.float32,
) -> dict[str, Group]:
    """The groups of a module by the names that it gives them, found by tracing it.

    Args:
        make: see `from_module`.
        input_shape: of one example.
        made: `{name: (path, axis)}`, for each group an axis along which its units lie.
        input_dtype: of the examples.

    Returns:
        `{name: group}`; groups that the module does not name are left out.
    """
    definition, abstract = _split(nnx.eval_shape(lambda: make(Noise())))

    def apply(variables: Variables, x: Array) -> Array:
        logits: Array = nnx.merge(definition, variables.params, variables.rest)(x, Hooks())[0]
        return logits

    found = graph.groups(apply, abstract, jax.ShapeDtypeStruct((1, *input_shape), input_dtype))
    at = {(s.path, s.axis): g for g in found for s in g.slots if not s.length}
    return {name: dataclasses.replace(at[slot], name=name) for name, slot in made.items()}


def sized(groups: Mapping[str, Group], sizes: Mapping[str, int]) -> tuple[Group, ...]:
    """The same groups with other numbers of units, in the order of `sizes`."""
    return tuple(dataclasses.replace(groups[name], size=size) for name, size in sizes.items())


_KNOBS = ("batch_norm_momentum", "dropout")


def from_module(
    make: Callable[[Noise], nnx.Module],
    *,
    config: Any,
    groups: Sequence[Group],
    prunable: trees.PathRules,
    resize: Callable[[Mapping[str, int]], Model],
    with_classes: Callable[[int], Model],
    input_shape: tuple[int, ...],
    num_classes: int,
    dropout: float = 0.0,
    input_dtype: Any = jnp.float32,
) -> Model:
    """Makes an NNX module functional.

    Args:
        make: `noise -> module`; the module is called as `module(x, hooks) -> (logits, features)` and keeps its
            children under string names (`nnx.Dict`, not `nnx.List`), so that trees have string keys only.
        config: kept in the model.
        groups, prunable, resize, with_classes, input_shape, num_classes, input_dtype: as in `Model`.
        dropout: the configured rate, to know when a key is needed.

    Returns:
        The model; its `apply` is jitted and works under an outer `jit`, `vmap`, `grad` and `scan`.
    """
    count = Noise()
    graph, abstract = _split(nnx.eval_shape(lambda: make(count)))
    total = count.used
    shapes = {name: {p: v.shape for p, v in trees.flatten(t).items()} for name, t in abstract._asdict().items()}
    names = {g.name for g in groups}
    tokens = jnp.issubdtype(input_dtype, jnp.integer)

    @jax.jit
    def init(key: Key) -> Variables:
        return _split(make(Noise(key, total)))[1]

    @functools.partial(jax.jit, static_argnames=("train", "momentum", "tapping"))
    def forward(
        variables: Variables,
        x: Array,
        key: Key | None,
        gates: Mapping[str, Array] | None,
        dropout: Array | None,
        *,
        train: bool,
        momentum: float | None,
        tapping: bool,
    ) -> Inspection:
        for collection, tree in (("params", variables.params), ("rest", variables.rest)):
            _check_shapes(shapes[collection], tree, collection)
        module = nnx.merge(graph, variables.params, variables.rest)
        hooks = Hooks(train=train, key=key, gates=gates, momentum=momentum, dropout=dropout, tapping=tapping)
        logits, features = module(x.astype(input_dtype), hooks)
        rest = _split(module)[1].rest if train else {}
        return Inspection(logits, features, hooks.activations(), rest)

    def run(
        variables: Variables,
        x: Array,
        *,
        train: bool,
        key: Key | None,
        gates: Mapping[str, Array] | None,
        knobs: Mapping[str, Any] | None,
        tapping: bool,
    ) -> Inspection:
        x = jnp.asarray(x)
        if tokens and not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"x is {x.dtype}; this model takes token ids, {jnp.dtype(input_dtype)}, as `data.text` makes them"
            )
        if x.shape[1:] != tuple(input_shape) and not (tokens and x.ndim == 2 and 0 < x.shape[1] < input_shape[0]):
            takes = "up to " * bool(tokens) + ", ".join(map(str, input_shape))
            raise ValueError(f"x has shape {x.shape}; this model takes [N, {takes}]")
        knobs = dict(knobs or {})
        unknown = sorted(set(knobs) - set(_KNOBS))
        if unknown:
            raise ValueError(f"unknown knobs {unknown}; there are {list(_KNOBS)}")
        momentum = knobs.get("batch_norm_momentum")
        if momentum is not None and not (isinstance(momentum, float | int) and 0.0 <= momentum <= 1.0):
            raise ValueError(f"batch_norm_momentum is {momentum!r}; give a Python number in [0, 1], it is static")
        if train and key is None and (dropout > 0 or "dropout" in knobs):
            raise ValueError("dropout needs a key in training; pass key=jax.random.key(...)")
        gates = {name: jnp.asarray(g) for name, g in gates.items()} if gates else None
        strange = sorted(set(gates or {}) - names)
        if strange:
            raise ValueError(f"gates for unknown groups {strange[:5]}; the groups are {sorted(names)}")
        seen = forward(
            Variables(*variables),
            x,
            key if train else None,
            gates,
            knobs.get("dropout") if train else None,
            train=train,
            momentum=None if momentum is None else float(momentum),
            tapping=tapping,
        )
        # In evaluation nothing changes; handing back the caller's own tree saves copying it out of the program.
        return seen if train else seen._replace(rest=variables[1])

    def apply(
        variables: Variables,
        x: Array,
        *,
        train: bool = False,
        key: Key | None = None,
        gates: Mapping[str, Array] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> tuple[Array, PyTree]:
        seen = run(variables, x, train=train, key=key, gates=gates, knobs=knobs, tapping=False)
        return seen.logits, seen.rest

    def inspect(
        variables: Variables,
        x: Array,
        *,
        train: bool = False,
        key: Key | None = None,
        gates: Mapping[str, Array] | None = None,
        knobs: Mapping[str, Any] | None = None,
    ) -> Inspection:
        return run(variables, x, train=train, key=key, gates=gates, knobs=knobs, tapping=True)

    return Model(
        config=config,
        init=init,
        apply=apply,
        inspect=inspect,
        groups=tuple(groups),
        prunable=tuple(prunable),
        resize=resize,
        with_classes=with_classes,
        input_shape=tuple(input_shape),
        num_classes=num_classes,
        input_dtype=jnp.dtype(input_dtype),
    )


def _split(module: nnx.Module) -> tuple[Any, Variables]:
    """A module as its structure and plain nested dicts."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    return graph, Variables(nnx.to_pure_dict(params), nnx.to_pure_dict(rest))


def _check_shapes(expected: Mapping[str, tuple[int, ...]], tree: PyTree, what: str) -> None:
    """Runs while tracing, so it costs nothing per call and sees per-member shapes under `vmap`."""
    got = {path: np.shape(leaf) for path, leaf in trees.flatten(tree).items()}  # jax2onnx traces JAX's `shape`
    wrong = [
        f"{p}: got {got.get(p, 'nothing')}, needs {expected.get(p, 'nothing')}"
        for p in sorted(set(got) | set(expected))
        if got.get(p) != expected.get(p)
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{what} do not fit the model: {'; '.join(wrong[:5])}{more}; pruned arrays need `model.resize`, stacked "
            "members `jax.vmap`, another number of classes `model.with_classes` and `replace_head`"
        )


def replace_head(
    variables: Variables, model: Model, kernel: Array | None = None, bias: Array | None = None
) -> Variables:
    """The same body under another head.

    Args:
        variables: of a model with the same body and any number of classes.
        model: the model the result is for; its `num_classes` counts.
        kernel: `[F, classes]` over flattened features (or the head's own shape); zeros if not given.
        bias: `[classes]`; zeros if not given.

    Returns:
        Variables for `model`. A second head beside the first (DeiT's) is left out, as by `with_classes`.

    Raises:
        ValueError: if kernel or bias have other shapes.
    """
    old = variables.params[model.head]["kernel"]
    shape = (*old.shape[:-1], model.num_classes)
    flat = (math.prod(old.shape[:-1]), model.num_classes)
    kernel = jnp.zeros(shape, old.dtype) if kernel is None else jnp.asarray(kernel, old.dtype)
    bias = jnp.zeros(model.num_classes, old.dtype) if bias is None else jnp.asarray(bias, old.dtype)
    if kernel.shape not in (shape, flat) or bias.shape != (model.num_classes,):
        raise ValueError(
            f"a head with kernel {kernel.shape} and bias {bias.shape} does not fit; the model has "
            f"{flat[0]} features and {model.num_classes} classes: kernel {flat}, bias ({model.num_classes},)"
        )
    body = {name: p for name, p in variables.params.items() if not name.startswith(f"{model.head}_")}
    return Variables({**body, model.head: {"kernel": jnp.reshape(kernel, shape), "bias": bias}}, variables.rest)


def check_sizes(sizes: Mapping[str, int], groups: Sequence[Group]) -> None:
    """Raises `ValueError` unless every size names a group and lies between 1 and the group's own size."""
    have = {g.name: g.size for g in groups}
    unknown = sorted(set(sizes) - set(have))
    if unknown:
        raise ValueError(f"no such groups: {unknown[:5]}; the model has {sorted(have)}")
    wrong = {n: int(s) for n, s in sizes.items() if not 1 <= s <= have[n]}
    if wrong:
        raise ValueError(
            f"sizes out of range: {wrong}; the groups have { {n: have[n] for n in wrong} } units, and at least one "
            "must stay, since a layer without units passes nothing on"
        )
