"""A linear head fitted to frozen features by L-BFGS: multinomial logistic regression, or any other loss."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from mvp_jax.core.types import Array, Batch, Variables
from mvp_jax.models import api
from mvp_jax.train import evaluation
from mvp_jax.train.losses import Loss, cross_entropy


@functools.partial(jax.jit, static_argnames=("outputs", "loss", "iterations"))
def linear(
    features: Array,
    labels: Array,
    outputs: int,
    *,
    loss: Loss = cross_entropy,
    l2: float | Array = 1e-2,
    iterations: int = 100,
    tolerance: float | Array = 1e-4,
) -> tuple[Array, Array]:
    r"""Returns the linear map of features that minimises a penalised loss: its kernel `[F, Y]` and bias `[Y]`.

    Minimises $\mathrm{mean}_n\, \ell(x_n W + b, y_n) + \tfrac{l_2}{2} \lVert W\rVert^2$ by L-BFGS, where $x$ has zero
    mean and unit variance in each feature (a constant feature, such as one of a pruned unit, gets weight 0), and folds
    the standardisation into the result, which is for the features as they were given.

    Args:
        features: `[..., F]`.
        labels: as the loss takes them, `int32[...]` by default.
        outputs: `Y`; static.
        loss: see `train.Loss`; static, so give the same function every time.
        l2: strength of the penalty; traced.
        iterations: number of iterations at most; static.
        tolerance: it stops when the gradient's Euclidean norm is not above this; traced.

    >>> x, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([1.0, 3.0, 5.0])
    >>> kernel, bias = linear(x, y, 1, loss=lambda out, y: jnp.square(out[:, 0] - y), l2=0.0)
    >>> round(float(kernel[0, 0]), 3), round(float(bias[0]), 3)
    (2.0, 1.0)

    Reference: Liu & Nocedal, Mathematical Programming 45, 1989 (L-BFGS).
    """
    every = tuple(range(features.ndim - 1))
    mean, std = jnp.mean(features, every), jnp.std(features, every)
    scale = jnp.where(std > 1e-6, 1 / jnp.maximum(std, 1e-6), 0.0)
    x = (features - mean) * scale

    def objective(theta: dict[str, Array]) -> Array:
        losses = loss(x @ theta["kernel"] + theta["bias"], labels)
        return jnp.mean(losses) + 0.5 * l2 * jnp.sum(jnp.square(theta["kernel"]))

    tx = optax.lbfgs()
    evaluate = optax.value_and_grad_from_state(objective)
    theta = {"kernel": jnp.zeros((features.shape[-1], outputs)), "bias": jnp.zeros(outputs)}
    value, grads = jax.value_and_grad(objective)(theta)

    def unfinished(carry: tuple) -> Array:
        _, _, _, grads, count = carry
        return (count < iterations) & (optax.tree.norm(grads) > tolerance)

    def body(carry: tuple) -> tuple:
        theta, state, value, grads, count = carry
        updates, state = tx.update(grads, state, theta, value=value, grad=grads, value_fn=objective)
        theta = optax.apply_updates(theta, updates)
        value, grads = evaluate(theta, state=state)  # what the line search found where it ended
        return theta, state, value, grads, count + 1

    theta, *_ = jax.lax.while_loop(unfinished, body, (theta, tx.init(theta), value, grads, 0))
    kernel = theta["kernel"] * scale[:, None]
    return kernel, theta["bias"] - mean @ kernel


def logistic(
    features: Array, labels: Array, num_classes: int, *, l2: float | Array = 1e-2, iterations: int = 100
) -> tuple[Array, Array]:
    """Returns the kernel `[F, Y]` and bias `[Y]` of softmax regression on standardised features, see `linear`.

    Args:
        features: `[N, F]`.
        labels: `int32[N]`.
        num_classes: `Y`.
        l2: strength of the penalty on the kernel; traced.
        iterations: number of L-BFGS iterations at most.

    >>> x = jnp.array([[-1.0], [-2.0], [1.0], [2.0]])
    >>> kernel, bias = logistic(x, jnp.array([0, 0, 1, 1]), 2)
    >>> jnp.argmax(x @ kernel + bias, -1).tolist()
    [0, 0, 1, 1]
    """
    return linear(features, labels, num_classes, l2=l2, iterations=iterations)


def fit_head(
    model: api.Model,
    variables: Variables,
    data: Batch,
    *,
    loss: Loss = cross_entropy,
    l2: float | Array = 1e-2,
    examples: int = 1024,
) -> Variables:
    """Returns the variables with their head replaced by one fitted to the model's own features, see `linear`.

    Args:
        model: with the task's number of outputs; static. A model without a linear head, such as one that is made of a
            function alone, gets its variables back as they are.
        variables: of the model under any head; this one is replaced.
        data: `{"x": [N, ...], "y": [N, ...]}`, the task's training examples; labels as the loss takes them.
        loss: what the head minimises, see `train.Loss`; static, so give the same function every time.
        l2: strength of the penalty on the head's kernel; traced.
        examples: only the first so many examples are used.
    """
    if not _headed(model, variables):
        return variables
    x, y = data["x"][:examples], data["y"][:examples]
    # The old head may have another number of classes; features do not depend on it.
    bare = api.replace_head(variables, model)
    _, features = evaluation.infer(model, bare, x)
    if features.shape[-1] != math.prod(bare.params[model.head]["kernel"].shape[:-1]):
        return variables
    kernel, bias = linear(features, y, model.num_classes, loss=loss, l2=l2)
    return api.replace_head(bare, model, kernel=kernel, bias=bias)


def _headed(model: api.Model, variables: Variables) -> bool:
    """Whether the model has a kernel and a bias that its outputs come from."""
    params = variables.params
    head = params.get(model.head) if isinstance(params, Mapping) and model.head else None
    return isinstance(head, Mapping) and {"kernel", "bias"} <= set(head)
