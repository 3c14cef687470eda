"""The counter against XLA's own analysis of programs before optimisation, and against sums by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from mvp_jax import models
from mvp_jax.core import flops
from mvp_jax.core.types import Variables


def by_xla(function, *shapes):
    counted = jax.jit(function).lower(*shapes).cost_analysis()
    return (counted[0] if isinstance(counted, list) else counted).get("flops", 0.0)


def counted(function, *shapes, **options):
    return flops.count(jax.make_jaxpr(function)(*shapes), **options)


@pytest.mark.parametrize(
    "name",
    ["resnet8", "resnet20_distiller", "vit_micro", "vit_tiny", "bert_micro", "clip_vision_micro", "clip_text_micro"],
)
def test_models_and_their_gradients_count_as_xla_counts_them(name):
    model = models.create(name)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(model.init, key)
    x = jax.ShapeDtypeStruct((2, *model.input_shape), model.input_dtype)
    assert counted(model.apply, variables, x) == pytest.approx(by_xla(model.apply, variables, x), rel=5e-4)

    def loss(params, rest, x, key):
        return jnp.sum(jnp.tanh(model.apply(Variables(params, rest), x, train=True, key=key)[0]))

    given = (variables.params, variables.rest, x, key)
    # Dropout's random bits are counted by a round figure an entry.
    assert counted(jax.grad(loss), *given) == pytest.approx(by_xla(jax.grad(loss), *given), rel=5e-4)


FLOAT = jax.ShapeDtypeStruct((4, 8), jnp.float32)
IMAGES = jax.ShapeDtypeStruct((2, 9, 8, 4), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 2, 6), jnp.float32)
SPEC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x: lax.erf_inv(lax.erfc(lax.tanh(x))), (FLOAT,)),
        (lambda x: lax.logistic(lax.asinh(x)) + lax.lgamma(x), (FLOAT,)),
        (lambda x: lax.integer_pow(x, 7) + lax.integer_pow(x, -2), (FLOAT,)),
        (lambda x: (jnp.argmax(x, axis=1), jnp.argmin(x, axis=0)), (FLOAT,)),
        (lambda x: lax.sort(x, dimension=1), (FLOAT,)),
        (lambda x: jnp.all(x > 0, axis=1), (FLOAT,)),
        (lambda x: x.astype(jnp.bfloat16), (FLOAT,)),
        (
            lambda x: lax.conv_general_dilated(x, jnp.ones((3, 3, 4, 6)), (2, 1), "SAME", dimension_numbers=SPEC),
            (IMAGES,),
        ),
        (
            lambda x, k: lax.conv_general_dilated(
                x, k, (1, 2), ((2, 1), (0, 3)), (2, 1), (1, 2), dimension_numbers=SPEC, feature_group_count=2
            ),
            (IMAGES, KERNEL),
        ),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"), (IMAGES,)),
        (lambda x, i: jnp.take(x, i, axis=0), (FLOAT, jax.ShapeDtypeStruct((5,), jnp.int32))),
        (lambda x, i: x.at[i].add(1.0), (FLOAT, jax.ShapeDtypeStruct((5,), jnp.int32))),
        (lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x.T, lambda x: x @ x.T @ (x @ x.T), x), (FLOAT,)),
    ],
)
def test_primitives_count_as_xla_counts_them(function, shapes):
    assert counted(function, *shapes) == pytest.approx(by_xla(function, *shapes), rel=0.01)


def test_loops_count_as_often_as_they_run_or_once():
    def net(x):
        return lax.scan(
            lambda h, _: (lax.scan(lambda h, _: (h @ h, None), h, None, length=3)[0], None), x, None, length=5
        )[0]

    square = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    assert counted(net, square) == 5 * 3 * 2 * 4**3
    assert counted(net, square, repeat_loops=False) == 2 * 4**3
    assert counted(lambda x: lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x), square) == 2 * 4**3 + 1


def test_rows_are_multiplied_by_the_matrix_of_their_group_alone():
    rows, groups, kernels = jnp.ones((10, 4)), jnp.array([3, 5, 2]), jnp.ones((3, 4, 6))
    assert counted(lax.ragged_dot, rows, kernels, groups) == 2 * 10 * 4 * 6

    def of_kernels(rows, out, groups):
        numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
        return lax.ragged_dot_general(rows, out, groups, numbers)

    assert jax.eval_shape(of_kernels, rows, jnp.ones((10, 6)), groups).shape == (3, 4, 6)
    assert counted(of_kernels, rows, jnp.ones((10, 6)), groups) == 2 * 10 * 4 * 6
