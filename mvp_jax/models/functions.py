"""Models from functions (Linen, NNX, Equinox or written by hand, with parameters in any pytree) and from models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from mvp_jax.core.trees import PathRules
from mvp_jax.core.types import Array, Key, PyTree, Variables
from mvp_jax.core.units import Group
from mvp_jax.models.api import Inspection, Model


def from_apply(
    apply: Callable[..., tuple[Array, PyTree]],
    *,
    input_shape: Sequence[int],
    num_classes: int,
    prunable: PathRules = (),
    groups: Sequence[Group] = (),
    input_dtype: Any = jnp.float32,
    init: Callable[[Key], Variables] | None = None,
    config: Any = None,
) -> Model:
    """A `Model` that methods for a sparsity, training and populations take. Make it once: it is a static argument.

    Args:
        apply: `(variables, x, *, train=False, key=None, gates=None, knobs=None) -> (logits, rest)`; what it does not
            use it may ignore, but not refuse.
        input_shape: the shape of one example.
        num_classes: the width of the logits.
        prunable: rules over the paths of `variables.params`.
        groups: coupled units, as `graph.groups` finds them.
        input_dtype: the dtype of the inputs.
        init: `key -> Variables`; `None`: the model cannot make weights.
        config: anything that describes the function; kept in the model.

    Returns:
        The model. Its `head` is empty; `resize`, `with_classes` and, for want of a head, `replace_head` raise
        `ValueError`.

    >>> import jax, jax.numpy as jnp
    >>> def apply(variables, x, **_):
    ...     return x @ variables.params["w"], variables.rest
    >>> model = from_apply(apply, input_shape=(3,), num_classes=2, prunable=["w"])
    >>> model.apply(Variables({"w": jnp.ones((3, 2))}, {}), jnp.ones((1, 3)))[0].tolist()
    [[3.0, 3.0]]
    """

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ValueError(
            "a model made of a function alone cannot make weights, be resized or get another head; pass init=... for "
            "weights, compact.slim for fewer units, or write it as a module for models.from_module"
        )

    def inspect(variables: Variables, x: Array, **how: Any) -> Inspection:
        logits, rest = apply(variables, x, **how)
        return Inspection(logits, logits, {}, rest)

    def resize(sizes: Mapping[str, int]) -> Model:
        return refuse(sizes)

    return Model(
        config=config,
        init=init or refuse,
        apply=apply,
        inspect=inspect,
        groups=tuple(groups),
        prunable=tuple(prunable),
        resize=resize,
        with_classes=refuse,
        input_shape=tuple(input_shape),
        num_classes=num_classes,
        head="",
        input_dtype=jnp.dtype(input_dtype),
    )


def freeze(model: Model, *names: str) -> Model:
    """The same model with some parameters that no gradient reaches, a zero-shot head for one.

    `∂L/∂params[name] = 0`, so that a step moves only the others. Weight decay is not a gradient: it still shrinks a
    frozen kernel unless the optimiser leaves that out, `train.optimizer(..., decayed=...)`.

    Args:
        model: any model; what is made of the result by `resize` and `with_classes` is frozen too.
        *names: top-level entries of `params`, `head` or `layers`.

    Returns:
        The model; equal arguments give the same object while it is in use. Its `config` is the given model's, so
        that a saved model comes back unfrozen.

    Raises:
        ValueError: without names, and when applied to variables that have no such entry.

    >>> import jax, jax.numpy as jnp
    >>> def apply(variables, x, **_):
    ...     return x @ variables.params["body"] @ variables.params["head"], variables.rest
    >>> model = freeze(from_apply(apply, input_shape=(2,), num_classes=1), "head")
    >>> params = {"body": jnp.eye(2), "head": jnp.ones((2, 1))}
    >>> grads = jax.grad(lambda p: model.apply(Variables(p, {}), jnp.ones((1, 2)))[0].sum())(params)
    >>> {name: float(jnp.abs(g).max()) for name, g in grads.items()}
    {'body': 1.0, 'head': 0.0}
    """
    if not names:
        raise ValueError("nothing to freeze; name top-level entries of params, such as 'head'")
    return _frozen(model, tuple(sorted(set(names))))


@functools.lru_cache(maxsize=256)
def _frozen(model: Model, names: tuple[str, ...]) -> Model:
    """Names sorted and without repetition, so that each wrapper is made once."""

    def stopped(variables: Variables) -> Variables:
        params, rest = variables
        have = sorted(params) if isinstance(params, Mapping) else []
        unknown = sorted(set(names) - set(have))
        if unknown:
            raise ValueError(f"cannot freeze {unknown}: the top-level entries of params are {have}")
        return Variables({k: jax.lax.stop_gradient(v) if k in names else v for k, v in params.items()}, rest)

    @functools.wraps(model.apply)
    def apply(variables: Variables, x: Array, **how: Any) -> tuple[Array, PyTree]:
        return model.apply(stopped(variables), x, **how)

    @functools.wraps(model.inspect)
    def inspect(variables: Variables, x: Array, **how: Any) -> Inspection:
        return model.inspect(stopped(variables), x, **how)

    return dataclasses.replace(
        model,
        apply=apply,
        inspect=inspect,
        resize=lambda sizes: _frozen(model.resize(sizes), names),
        with_classes=lambda n: _frozen(model.with_classes(n), names),
    )
