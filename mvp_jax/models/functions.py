"""A model from any function: Linen, NNX, Equinox or written by hand, with parameters in any pytree."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax.numpy as jnp

from mvp_jax.models.api import Inspection, Model
from mvp_jax.trees import Rules
from mvp_jax.types import Array, Key, PyTree, Variables
from mvp_jax.units import Group


def from_apply(
    apply: Callable[..., tuple[Array, PyTree]],
    *,
    input_shape: Sequence[int],
    num_classes: int,
    prunable: Rules = (),
    groups: Sequence[Group] = (),
    input_dtype: Any = jnp.float32,
    init: Callable[[Key], Variables] | None = None,
    config: Any = None,
) -> Model:
    """A `Model` that methods for a sparsity, training and populations take. Make it once: it is a static argument.

    Args:
        apply: `(variables, x, *, train=False, key=None, gates=None, knobs=None) -> (logits, rest)`; what it does not
            use it may ignore, but not refuse.
        input_shape: of one example.
        num_classes: the width of the logits.
        prunable: rules over the paths of `variables.params`.
        groups: coupled units, as `graph.groups` finds them.
        input_dtype: of the inputs.
        init: `key -> Variables`, if weights are to be made here.
        config: kept in the model.

    Returns:
        The model. It can neither be resized nor get another head.

    >>> import jax, jax.numpy as jnp
    >>> def apply(variables, x, **_):
    ...     return x @ variables.params["w"], variables.rest
    >>> model = from_apply(apply, input_shape=(3,), num_classes=2, prunable=["w"])
    >>> model.apply(Variables({"w": jnp.ones((3, 2))}, {}), jnp.ones((1, 3)))[0].tolist()
    [[3.0, 3.0]]
    """

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ValueError(
            "a model made of a function alone cannot do this; write it as a model family, or pass init=..."
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
        input_dtype=jnp.dtype(input_dtype),
    )
