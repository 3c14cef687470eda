"""Gradients of slim functions that call functions with derivatives of their own: the masked function's, cut.

JAX differentiates the masked function, whose custom functions are as they were written; cutting is done by the zoo's
plain loops.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from mvp_jax import compact, graph
from tests import custom_functions as custom
from tests.zoo import cases

X = cases.normal(5, 4)
PARAMS = cases.draw(
    {
        "one": cases.dense_shapes(4, 8),
        "step": (1,),
        "block": {"up": (8, 6), "bias": (6,), "down": (6, 8)},
        "norm": cases.norm_shapes(8),
        "two": cases.dense_shapes(8, 7),
        "head": cases.dense_shapes(7, 3),
    }
)
PARAMS["step"] = jnp.float32(0.4)


def network(act, params, x):
    """Two dense layers around something."""
    h = act(params, cases.dense(params["one"], x))
    return cases.dense(params["head"], jnp.tanh(cases.dense(params["two"], h)))


def scanned(params, h):
    def step(carry, _):
        return custom.round_ste(2 * h + carry) * 0.5, custom.softplus(carry)

    carry, steps = jax.lax.scan(step, h, None, length=3)
    return carry + steps.sum(0)


def chosen(params, h):
    return jax.lax.cond(h[0, 0] > 0, custom.softplus, lambda h: custom.reverse_gradient(h, 2.0), h)


@jax.checkpoint
def checkpointed(params, h):
    return custom.lsq(custom.softplus(h), params["step"])


def closing_over_arrays(params, h):
    table = jnp.linspace(0.5, 2.0, 8)

    @jax.custom_vjp
    def scaled(x):
        return x * table

    scaled.defvjp(lambda x: (scaled(x), x), lambda x, g: (g * table**2,))
    return scaled(h)


def closing_over_what_is_traced(params, h):
    gate = jax.lax.stop_gradient(jax.nn.sigmoid(h))

    @jax.custom_vjp
    def gated(x):
        return x * gate

    gated.defvjp(lambda x: (x * gate, x), lambda x, g: (2 * g * gate * jnp.cos(x),))

    @jax.custom_jvp
    def bent(x):
        return x * gate

    bent.defjvp(lambda primals, tangents: (bent(*primals), 3 * tangents[0] * gate))
    return bent(gated(h))


def with_integers(params, h):
    out = custom.blend((h, params["norm"]["scale"] * h), jnp.arange(1, 9) % 3)
    return out["sum"] + out["product"]


def symbolic(params, h):
    @jax.custom_vjp
    def doubled(x, scale):
        return x * scale

    def backward(residuals, g):
        _, scale = residuals
        return (2 * g * scale, None) if not isinstance(g, jax.custom_derivatives.SymbolicZero) else (g, None)

    doubled.defvjp(lambda x, scale: (x.value * scale.value, (x.value, scale.value)), backward, symbolic_zeros=True)
    return doubled(h, params["norm"]["scale"])


ACTS = {
    "straight_through": (lambda p, h: custom.round_ste(2 * h), ["round_ste"]),
    "quantiser": (lambda p, h: custom.lsq(h, p["step"]), ["lsq"]),
    "reversal": (lambda p, h: custom.reverse_gradient(jnp.tanh(h), 0.7), ["reverse_gradient"]),
    "clipping": (lambda p, h: custom.clip_gradient(jax.nn.relu(h)), ["clip_gradient"]),
    "penalty": (lambda p, h: custom.penalised(jnp.tanh(h)), ["penalised"]),
    "softplus": (lambda p, h: custom.softplus(h), ["softplus"]),
    "pytree": (with_integers, ["blend"]),
    "block": (lambda p, h: custom.block(p["block"], h), ["block"]),
    "norm": (lambda p, h: custom.fused_norm(h, *map(p["norm"].get, ("scale", "bias"))), ["fused_norm"]),
    "scan": (scanned, ["round_ste", "softplus"]),
    "cond": (chosen, ["reverse_gradient", "softplus"]),
    "checkpoint": (checkpointed, ["lsq", "softplus"]),
    "vmap": (
        lambda p, h: jax.vmap(custom.lsq, (0, None))(jax.vmap(custom.softplus)(h), p["step"]),
        ["lsq", "softplus"],
    ),
    "jit": (lambda p, h: jax.jit(custom.round_ste)(2 * h), ["round_ste"]),
    "arrays": (closing_over_arrays, ["scaled"]),
    "traced": (closing_over_what_is_traced, ["bent", "gated"]),
    "symbolic": (symbolic, ["doubled"]),
    "gradient": (lambda p, h: custom.tripled(h), [custom.tripled.__name__]),
}


def loss(apply):
    return lambda variables, *inputs: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(apply(variables, *inputs)))


def units_of(groups):
    rng = np.random.default_rng(3)
    return {g.name: rng.permutation(g.size) >= max(1, g.size // 3) for g in groups}


def difference(got, want):
    """The largest difference, relative to the largest entry."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(b).max() for _, b in pairs)


def compared(apply, variables, inputs, keep, take=jax.grad):
    """How far the slim function's gradient is from the masked one's, cut; without keeping; and the groups."""
    groups = graph.groups(apply, variables, *inputs, keep=keep)
    units = units_of(groups)
    gone = cases.removed(groups, units)
    want = cases.smaller(jax.jit(take(loss(apply)))(cases.masked(variables, gone), *inputs), gone)
    small, cut = compact.slim(apply, variables, groups, units, *inputs, keep=keep)
    with pytest.warns(graph.CustomDerivativeWarning):
        plain, _ = compact.slim(apply, variables, groups, units, *inputs)
    apart, lost = (difference(jax.jit(take(loss(f)))(cut, *inputs), want) for f in (small, plain))
    return apart, lost, [g.name for g in groups]


@pytest.mark.parametrize("name", ACTS)
def test_the_gradient_is_the_masked_one_cut(name):
    act, keep = ACTS[name]
    apart, lost, groups = compared(functools.partial(network, act), PARAMS, (X,), keep)
    assert apart < 1e-5
    assert lost > 1e-2  # otherwise there was nothing to keep
    assert groups == ["one", *(["block"] if name == "block" else []), "two"]


@pytest.mark.parametrize("name", ["straight_through", "quantiser", "softplus", "scan", "checkpoint", "traced"])
def test_gradients_of_single_examples(name):
    act, keep = ACTS[name]

    def each(of):
        return jax.vmap(jax.grad(lambda p, x: of(p, x[None])), (None, 0))

    apart, lost, _ = compared(
        functools.partial(network, act), PARAMS, (X,), keep, lambda of: lambda p, x: summed(each(of)(p, x))
    )
    assert apart < 1e-5
    assert lost > 1e-2


def summed(tree):
    """Weighted, so that no two examples may change places."""
    return jax.tree.map(lambda x: jnp.tensordot(jnp.arange(1.0, 1 + len(x)), x, 1), tree)


@pytest.mark.parametrize("name", ["softplus", "pytree", "checkpoint"])
def test_second_derivatives(name):
    act, keep = ACTS[name]

    def twice(of):
        def directional(p, x):
            return sum(jnp.sum(g * jnp.cos(g)) for g in jax.tree.leaves(jax.grad(of)(p, x)))

        return jax.grad(directional)

    apart, lost, _ = compared(functools.partial(network, act), PARAMS, (X,), keep, twice)
    assert apart < 1e-5
    assert lost > 1e-2


def test_forwards_too():
    """A custom_jvp function goes on to be differentiated forwards."""
    apply = functools.partial(network, ACTS["softplus"][0])
    groups = graph.groups(apply, PARAMS, X, keep=("softplus",))
    units = units_of(groups)
    gone = cases.removed(groups, units)
    small, cut = compact.slim(apply, PARAMS, groups, units, X, keep=("softplus",))
    direction = cases.draw(jax.tree.map(jnp.shape, PARAMS), seed=5)
    direction["step"] = jnp.float32(1)
    want = jax.jvp(lambda p: apply(p, X), [cases.masked(PARAMS, gone)], [cases.masked(direction, gone)])
    got = jax.jvp(lambda p: small(p, X), [cut], [cases.smaller(direction, gone)])
    assert difference(got, want) < 1e-5


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = custom.softplus(linen.Dense(8)(x))
        step = self.param("step", lambda key: jnp.float32(0.5))
        return linen.Dense(3)(custom.lsq(linen.Dense(6)(x), step))


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.one = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.two = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.two(custom.clip_gradient(custom.round_ste(3 * self.norm(self.one(x)))))


def test_a_linen_model():
    variables = LinenModel().init(jax.random.key(0), X)
    apart, lost, groups = compared(LinenModel().apply, variables, (X,), ("softplus", "lsq"))
    assert apart < 1e-5
    assert lost > 1e-2
    assert groups == ["Dense_0", "Dense_2"]


def test_an_nnx_model():
    model = NnxModel(nnx.Rngs(0))
    model.eval()
    definition, params, rest = nnx.split(model, nnx.Param, ...)

    variables = {"params": nnx.to_pure_dict(params), "statistics": nnx.to_pure_dict(rest)}

    def apply(variables, x):
        model = nnx.merge(definition, *(nnx.State(variables[k]) for k in ("params", "statistics")))
        return model(x)

    apart, lost, groups = compared(apply, variables, (X,), ("round_ste", "clip_gradient"))
    assert apart < 1e-5
    assert lost > 1e-2
    assert groups == ["one"]


def test_a_slim_function_can_be_cut_again():
    apply = functools.partial(network, ACTS["quantiser"][0])
    for keep in (("lsq",), ["lsq"], "lsq"):
        groups = graph.groups(apply, PARAMS, X, keep=keep)
        small, cut = compact.slim(apply, PARAMS, groups, units_of(groups), X, keep=keep)
        apart, lost, names = compared(small, cut, (X,), keep)
        assert apart < 1e-5
        assert lost > 1e-2
        assert names == ["one", "two"]
