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
from mvp_jax.models.hooks import Hooks, Noise


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
        groups: every coupled group of units, in order of depth.
        prunable: rules for the kernels that unstructured pruning may touch.
        resize: `({group: units}) -> Model`, the same class with that many units in the named groups.
        with_classes: `(n) -> Model`, the same body under a head of `n` classes. A language model gives its body under
            a classifier; a model made of a function alone raises `ValueError`.
        input_shape: the shape of one example; token ids `(L,)` may be fewer.
        num_classes: the width of the logits.
        head: the name of the head among the parameters: `params[head]` has `kernel` `[..., classes]` and `bias`, and
            logits are `features @ kernel.reshape(F, classes) + bias`. Empty: there is no such head (a model made of a
            function alone, a language model whose logits come from its word embedding); then `replace_head` raises
            `ValueError`, and the model is trained and pruned as a whole.
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


def coupled(
    make: Callable[[Noise], nnx.Module],
    input_shape: tuple[int, ...],
    made: Mapping[str, tuple[str, int]],
    input_dtype: Any = jnp.float32,
) -> dict[str, Group]:
    """The groups of a module by the names that it gives them, found by tracing it.

    Args:
        make: `noise -> module`, as `from_module` takes it.
        input_shape: the shape of one example.
        made: `{name: (path, axis)}`, for each group a parameter and an axis along which its units lie.
        input_dtype: the dtype of the examples.

    Returns:
        `{name: group}`; groups that the module does not name are left out.
    """
    definition, abstract = _split(nnx.eval_shape(lambda: make(Noise())))

    def apply(variables: Variables, x: Array) -> Array:
        logits: Array = nnx.merge(definition, variables.params, variables.rest)(x, Hooks())[0]
        return logits

    found = graph.groups(apply, abstract, jax.ShapeDtypeStruct((1, *input_shape), input_dtype))
    at = {(s.path, s.axis): g for g in found for s in g.slots if s.plain}
    return {name: dataclasses.replace(at[slot], name=name) for name, slot in made.items()}


def sized(groups: Mapping[str, Group], sizes: Mapping[str, int]) -> tuple[Group, ...]:
    """The same groups with other numbers of units, in the order of `sizes`."""
    return tuple(dataclasses.replace(groups[name], size=size) for name, size in sizes.items())


_KNOBS = ("batch_norm_momentum", "dropout")


class _Given(NamedTuple):
    """What a pass is given beside the variables, checked; `momentum` is static, the others may be traced."""

    x: Array
    key: Key | None
    gates: Mapping[str, Array] | None
    dropout: Array | float | None
    momentum: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Takes:
    """What a model takes, to check calls against."""

    input_shape: tuple[int, ...]
    input_dtype: Any
    groups: frozenset[str]
    dropout: float

    def check(
        self,
        x: Array,
        *,
        train: bool,
        key: Key | None,
        gates: Mapping[str, Array] | None,
        knobs: Mapping[str, Any] | None,
    ) -> _Given:
        """The arguments of a call, or `ValueError`."""
        x = jnp.asarray(x)
        self._check_inputs(x)
        knobs = dict(knobs or {})
        unknown = sorted(set(knobs) - set(_KNOBS))
        if unknown:
            raise ValueError(f"unknown knobs {unknown}; there are {list(_KNOBS)}")
        momentum = knobs.get("batch_norm_momentum")
        if momentum is not None and not (isinstance(momentum, float | int) and 0.0 <= momentum <= 1.0):
            raise ValueError(f"batch_norm_momentum is {momentum!r}; give a Python number in [0, 1], it is static")
        if train and key is None and (self.dropout > 0 or "dropout" in knobs):
            raise ValueError("dropout needs a key in training; pass key=jax.random.key(...)")
        strange = sorted(set(gates or {}) - self.groups)
        if strange:
            raise ValueError(f"gates for unknown groups {strange[:5]}; the groups are {sorted(self.groups)}")
        return _Given(
            x=x,
            key=key if train else None,
            gates={name: jnp.asarray(g) for name, g in gates.items()} if gates else None,
            dropout=knobs.get("dropout") if train else None,
            momentum=None if momentum is None else float(momentum),
        )

    def _check_inputs(self, x: Array) -> None:
        tokens = jnp.issubdtype(self.input_dtype, jnp.integer)
        if tokens and not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"x is {x.dtype}; this model takes token ids, {jnp.dtype(self.input_dtype)}, as "
                "`data.datasets.text` makes them"
            )
        shorter = tokens and x.ndim == 2 and 0 < x.shape[1] < self.input_shape[0]
        if x.shape[1:] != self.input_shape and not shorter:
            takes = "up to " * bool(tokens) + ", ".join(map(str, self.input_shape))
            raise ValueError(f"x has shape {x.shape}; this model takes [N, {takes}]")


# Its arguments are the fields of the model that it returns, so a record of them would be that model once more. Most of
# its body are signatures: four functions that close over one module.
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
            children under string names (`nnx.Dict`, not `nnx.List`), so that trees have string keys only. A child
            `head` with a parameter `kernel` is the model's head; without one the model has none.
        config: the frozen configuration, kept in the model.
        groups: the coupled groups of units, in order of depth.
        prunable: rules for the kernels that unstructured pruning may touch.
        resize: `({group: units}) -> Model`, the same class with that many units in the named groups.
        with_classes: `(n) -> Model`, the same body under a head of `n` classes.
        input_shape: the shape of one example.
        num_classes: the width of the logits.
        dropout: the configured rate, to know when a key is needed.
        input_dtype: what inputs are cast to.

    Returns:
        The model; its `apply` is jitted and works under an outer `jit`, `vmap`, `grad` and `scan`.
    """
    count = Noise()
    graph, abstract = _split(nnx.eval_shape(lambda: make(count)))
    total = count.used
    shapes = {name: {p: v.shape for p, v in trees.flatten(t).items()} for name, t in abstract._asdict().items()}
    takes = _Takes(
        input_shape=tuple(input_shape),
        input_dtype=input_dtype,
        groups=frozenset(g.name for g in groups),
        dropout=dropout,
    )

    @jax.jit
    def init(key: Key) -> Variables:
        return _split(make(Noise(key, total)))[1]

    @functools.partial(jax.jit, static_argnames=("train", "momentum", "tapping"))
    def forward(
        variables: Variables, given: _Given, *, train: bool, momentum: float | None, tapping: bool
    ) -> Inspection:
        for collection, tree in (("params", variables.params), ("rest", variables.rest)):
            _check_shapes(shapes[collection], tree, collection)
        module = nnx.merge(graph, variables.params, variables.rest)
        hooks = Hooks(
            train=train, key=given.key, gates=given.gates, momentum=momentum, dropout=given.dropout, tapping=tapping
        )
        logits, features = module(given.x.astype(input_dtype), hooks)
        rest = _split(module)[1].rest if train else {}
        return Inspection(logits, features, hooks.activations(), rest)

    def run(
        variables: Variables,
        x: Array,
        *,
        train: bool = False,
        key: Key | None = None,
        gates: Mapping[str, Array] | None = None,
        knobs: Mapping[str, Any] | None = None,
        tapping: bool,
    ) -> Inspection:
        given = takes.check(x, train=train, key=key, gates=gates, knobs=knobs)
        seen: Inspection = forward(
            Variables(*variables),
            given._replace(momentum=None),
            train=train,
            momentum=given.momentum,
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

    return Model(
        config=config,
        init=init,
        apply=apply,
        inspect=functools.partial(run, tapping=True),
        groups=tuple(groups),
        prunable=tuple(prunable),
        resize=resize,
        with_classes=with_classes,
        input_shape=tuple(input_shape),
        num_classes=num_classes,
        head="head" if "head/kernel" in shapes["params"] else "",
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
    """The variables of the same body under another head.

    Args:
        variables: variables of a model with the same body and any number of classes.
        model: the model that the result is for; the new head has its `num_classes`.
        kernel: `[F, classes]` over flattened features (or the head's own shape); `None`: zeros.
        bias: `[classes]`; `None`: zeros.

    Returns:
        Variables for `model`. A second head beside the first (DeiT's) is left out, as by `with_classes`.

    Raises:
        ValueError: if the model has no head (`model.head` is empty), the variables hold no kernel of that head, or
            kernel or bias do not have the shapes given above.
    """
    if not model.head:
        raise ValueError(
            "this model has no head that could be replaced (`Model.head` is empty), as models made of a function alone "
            "and language models; use its variables as they are, or make a model with a `head` by models.from_module"
        )
    held = variables.params.get(model.head) if isinstance(variables.params, Mapping) else None
    if not isinstance(held, Mapping) or "kernel" not in held:
        have = sorted(variables.params) if isinstance(variables.params, Mapping) else type(variables.params).__name__
        raise ValueError(
            f"the variables hold no {model.head}/kernel in place of which a head could be put, but {have}; give "
            f"variables of a model with the same body and a head named {model.head!r}"
        )
    old = held["kernel"]
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
