"""A linear head fitted to frozen features: multinomial logistic regression."""

import functools

import jax
import jax.numpy as jnp
import optax

from mvp_jax.core.types import Array, Batch, Variables
from mvp_jax.models import api
from mvp_jax.train import evaluation, stepping


@functools.partial(jax.jit, static_argnames=("num_classes", "iterations"))
def logistic(
    features: Array, labels: Array, num_classes: int, *, l2: float | Array = 1e-2, iterations: int = 300
) -> tuple[Array, Array]:
    """Fits softmax regression on standardised features by Nesterov's method.

    Minimises `mean_n CE(x_n W + b, y_n) + l2/2 ‖W‖²` where `x` has zero mean and unit variance per feature
    (a constant feature, such as one of a pruned unit, gets weight 0), and folds the standardisation into the result.
    The step is one over the loss's smoothness, `λ_max(XᵀX/N)/2 + l2`, so nothing has to be tuned.

    Args:
        features: `[N, F]`.
        labels: `int32[N]`.
        num_classes: `Y`.
        l2: strength of the penalty on `W`; traced.
        iterations: steps over all examples.

    Returns:
        Kernel `[F, Y]` and bias `[Y]` for the raw features.

    >>> x = jnp.array([[-1.0], [-2.0], [1.0], [2.0]])
    >>> kernel, bias = logistic(x, jnp.array([0, 0, 1, 1]), 2)
    >>> jnp.argmax(x @ kernel + bias, -1).tolist()
    [0, 0, 1, 1]
    """
    mean, std = jnp.mean(features, 0), jnp.std(features, 0)
    scale = jnp.where(std > 1e-6, 1 / jnp.maximum(std, 1e-6), 0.0)
    x = (features - mean) * scale

    def objective(theta: dict[str, Array]) -> Array:
        losses = stepping.cross_entropy(x @ theta["kernel"] + theta["bias"], labels)
        return jnp.mean(losses) + 0.5 * l2 * jnp.sum(jnp.square(theta["kernel"]))

    def power(_: int, v: Array) -> Array:
        v = x.T @ (x @ v)
        return v / jnp.maximum(jnp.linalg.norm(v), 1e-30)

    v = jax.lax.fori_loop(0, 20, power, jnp.ones(features.shape[1]))
    # A fifth more than the power method found: it comes from below. The bias has curvature of its own, at most 1/2.
    largest = jnp.maximum(1.2 * jnp.sum(jnp.square(x @ v)) / features.shape[0], 1.0)
    tx = optax.sgd(1 / (0.5 * largest + l2), momentum=0.95, nesterov=True)

    def body(_: int, carry: tuple) -> tuple:
        theta, state = carry
        updates, state = tx.update(jax.grad(objective)(theta), state, theta)
        return optax.apply_updates(theta, updates), state

    theta = {"kernel": jnp.zeros((features.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}
    theta, _ = jax.lax.fori_loop(0, iterations, body, (theta, tx.init(theta)))
    kernel = theta["kernel"] * scale[:, None]
    return kernel, theta["bias"] - mean @ kernel


def fit_head(
    model: api.Model,
    variables: Variables,
    data: Batch,
    *,
    loss: stepping.Loss | None = None,
    l2: float | Array = 1e-2,
    examples: int = 1024,
) -> Variables:
    """The variables with their head replaced by a logistic probe on the model's own features.

    Args:
        model: with the task's number of classes; static.
        variables: any head; it is replaced.
        data: the task's training examples; the first `examples` are used.
        l2: see `logistic`.
        examples: at most so many.
    """
    x, y = data["x"][:examples], data["y"][:examples]
    # The old head may have another number of classes; features do not depend on it.
    variables = api.replace_head(variables, model)
    _, features = evaluation.infer(model, variables, x)
    kernel, bias = logistic(features, y, model.num_classes, l2=l2)
    return api.replace_head(variables, model, kernel=kernel, bias=bias)
