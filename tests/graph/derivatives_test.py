"""Which functions with derivatives of their own there are, which are lost, and what keeping one freezes."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, graph
from tests import custom_functions as custom
from tests.zoo import cases

X = cases.normal(5, 4)
PARAMS = cases.draw(
    {"one": cases.dense_shapes(4, 8), "two": cases.dense_shapes(8, 7), "head": cases.dense_shapes(7, 3)}
)


def network(act, params, x):
    h = act(cases.dense(params["one"], x))
    return cases.dense(params["head"], jnp.tanh(cases.dense(params["two"], h)))


def traced(act, **options):
    return graph.trace(functools.partial(network, act), PARAMS, X, **options)


def lost(act):
    return [f.name for f in traced(act).customs if f.lost]


def slimmed(act, **options):
    apply = functools.partial(network, act)
    groups = graph.groups(apply, PARAMS, X, **options)
    units = {g.name: np.arange(g.size) % 3 != 1 for g in groups}
    return compact.slim(apply, PARAMS, groups, units, X, **options)


def test_whose_derivatives_are_lost():
    assert lost(custom.round_ste) == ["round_ste"]
    assert lost(jax.vmap(jax.jit(custom.softplus))) == ["softplus"]
    assert lost(jax.checkpoint(lambda h: custom.reverse_gradient(h, 0.1))) == ["reverse_gradient"]
    assert lost(lambda h: jax.lax.scan(lambda c, _: (custom.round_ste(c), None), h, None, length=2)[0]) == ["round_ste"]
    assert lost(custom.tripled) == [custom.tripled.__name__]
    assert lost(jnp.tanh) == []


def test_a_derivative_that_is_written_for_a_function_of_jax():
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvp(lambda primals, tangents: (jnp.sin(*primals), *tangents))
    assert lost(sine) == ["sin"]


@pytest.mark.parametrize(
    "act",
    [
        jax.nn.relu,
        jax.nn.relu6,
        jax.nn.softmax,
        jax.nn.log_softmax,
        jax.nn.logsumexp,
        jax.nn.gelu,
        jax.nn.silu,
        jax.nn.softplus,
        jnp.sinc,
        jax.scipy.special.xlogy,
        lambda h: jnp.linalg.norm(h, axis=-1, keepdims=True) + 0 * h,
    ],
)
def test_nothing_is_said_of_functions_of_jax(act):
    arguments = 2 if act is jax.scipy.special.xlogy else 1
    assert lost(lambda h: h + jnp.sum(act(*[jnp.abs(h)] * arguments))) == []


def test_a_warning_once_for_each_function():
    def act(h):
        return custom.round_ste(custom.softplus(custom.round_ste(jax.nn.relu(h))))

    with pytest.warns() as caught:
        small, cut = slimmed(act)
    small(cut, X[:2])  # traced anew: a warning would be an error here
    assert len(caught) == 2
    assert [w.category for w in caught] == [graph.CustomDerivativeWarning] * 2
    assert {w.filename for w in caught} == {__file__}
    texts = sorted(str(w.message) for w in caught)
    assert "'round_ste'" in texts[0]
    assert "keep=('round_ste',)" in texts[0]
    assert "'softplus'" in texts[1]


def test_no_warning_for_what_is_kept_or_filtered():
    slimmed(lambda h: custom.round_ste(custom.softplus(h)), keep=("softplus", "round_ste"))
    slimmed(jax.nn.relu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", graph.CustomDerivativeWarning)
        slimmed(custom.softplus)
    with pytest.warns(graph.CustomDerivativeWarning, match="'softplus'"):
        slimmed(lambda h: custom.round_ste(custom.softplus(h)), keep=("round_ste",))


def test_verify_compares_outputs_and_does_not_warn():
    apply = functools.partial(network, custom.softplus)
    groups = graph.groups(apply, PARAMS, X)
    for keep in ((), ("softplus",)):
        found = compact.verify(apply, PARAMS, groups, X, key=jax.random.key(0), cuts=2, keep=keep)
        assert max(found.differences) < 1e-5
        assert min(found.changes) > 1e-3


@pytest.mark.parametrize("call", [graph.groups, graph.analyse, graph.explain])
def test_names_that_are_not_there(call):
    with pytest.raises(ValueError, match=r"keep names 'ste', .*\['relu', 'round_ste'\]"):
        call(functools.partial(network, lambda h: jax.nn.relu(custom.round_ste(h))), PARAMS, X, keep=("ste",))


def test_names_that_are_not_there_when_slimming():
    apply = functools.partial(network, jnp.tanh)
    groups = graph.groups(apply, PARAMS, X)
    with pytest.raises(ValueError, match=r"keep names 'ste', .* \[\]"):
        compact.slim(apply, PARAMS, groups, {g.name: np.arange(g.size) > 0 for g in groups}, X, keep="ste")


def frozen(act, *keep):
    found = graph.analyse(functools.partial(network, act), PARAMS, X, keep=keep)
    return [g.name for g in found.groups], {f"{f.path}:{f.axis}": f.reason for f in found.frozen}


NOT_TO_KEEP = {
    # The norm of the gradient runs over removed entries of a value that is zero there: nobody says what theirs is.
    "clip_gradient_norm": (lambda h: custom.clip_gradient_norm(jax.nn.relu(h)), r"clip_gradient_norm: .*reduce_sum"),
    # Removed units get a gradient of their own: that of a half, here.
    "penalised": (lambda h: custom.penalised(jax.nn.sigmoid(h)), r"penalised: a cotangent that is not zero"),
    "shared_gradient": (lambda h: custom.shared_gradient(jax.nn.relu(h)), r"shared_gradient: "),
}


@pytest.mark.parametrize("name", NOT_TO_KEEP)
def test_what_a_derivative_freezes(name):
    act, pattern = NOT_TO_KEEP[name]
    groups, reasons = frozen(act, name)
    assert groups == ["two"]
    for axis in ("one/kernel:1", "one/bias:0", "two/kernel:0"):
        assert reasons[axis].startswith("in the derivative of ")
        assert re.search(pattern, reasons[axis])
    assert frozen(act)[0] == ["one", "two"]


def test_what_is_frozen_raises_when_slimming():
    act, _ = NOT_TO_KEEP["shared_gradient"]
    apply = functools.partial(network, act)
    groups = graph.groups(apply, PARAMS, X)
    with pytest.raises(ValueError, match=r"'one' cannot be cut .* derivative of shared_gradient"):
        compact.slim(
            apply, PARAMS, groups, {g.name: np.arange(g.size) > 0 for g in groups}, X, keep=("shared_gradient",)
        )


def test_why_a_shared_gradient_is_frozen():
    """Plain removal gives other gradients than masking: the mean of the gradients runs over fewer."""
    apply = functools.partial(network, lambda h: custom.shared_gradient(jax.nn.relu(h)))
    groups = [g for g in graph.groups(apply, PARAMS, X) if g.name == "one"]
    gone = cases.removed(groups, {"one": np.arange(8) < 5})
    take = jax.grad(lambda p: jnp.sum(jnp.sin(apply(p, X))))
    want = cases.smaller(take(cases.masked(PARAMS, gone)), gone)["one"]["kernel"]
    got = take(cases.smaller(PARAMS, gone))["one"]["kernel"]
    assert np.abs(got - want).max() > 1e-2 * np.abs(want).max()


def test_a_closed_over_value_that_is_differentiated():
    def act(params, h):
        @jax.custom_vjp
        def scaled(x):
            return x * params["two"]["bias"][0]

        scaled.defvjp(lambda x: (x * params["two"]["bias"][0], None), lambda _, g: (g,))
        return scaled(h)

    def apply(params, x):
        return cases.dense(params["two"], act(params, cases.dense(params["one"], x)))

    groups = graph.groups(apply, PARAMS, X, keep=("scaled",))
    units = {g.name: np.arange(g.size) % 3 != 1 for g in groups}
    small, cut = compact.slim(apply, PARAMS, groups, units, X, keep=("scaled",))
    with pytest.raises(ValueError, match="'scaled' closes over"):
        jax.grad(lambda p: small(p, X).sum())(cut)
    got = jax.grad(lambda one: small({**cut, "one": one}, X).sum())(cut["one"])
    gone = cases.removed(groups, units)
    masked = cases.masked(PARAMS, gone)
    want = jax.grad(lambda one: apply({**masked, "one": one}, X).sum())(masked["one"])
    wanted = cases.smaller({**PARAMS, "one": want}, gone)["one"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, wanted)


def test_names_and_scores_are_those_without_keeping():
    """What a backward pass does with parameters does not count as making or reading units."""
    shapes = {"up": (8, 6), "bias": (6,), "down": (6, 8)}
    params = {**PARAMS, "block": cases.draw(shapes)}

    def apply(params, x):
        return network(lambda h: custom.block(params["block"], h), params, x)

    plain, kept = (graph.groups(apply, params, X, keep=keep) for keep in ((), ("block",)))
    assert plain == kept
    assert [g.name for g in kept] == ["one", "block", "two"]
