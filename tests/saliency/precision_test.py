"""Every score in every dtype against float64 formulas of the same stored numbers, in NumPy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mvp_jax import saliency
from mvp_jax.core import units
from mvp_jax.core.types import Variables
from mvp_jax.core.units import Group, Slot

# Magnitudes whose squares vanish in float16, whose squares overflow there, and plain ones.
CASES = [
    *((dtype, scale) for dtype in ("float16", "bfloat16", "float32", "float64") for scale in (3e-4, 1.0, 300.0)),
    ("int8", 60.0),
]


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[1]:g}")
def case(request):
    """Draws arrays of a dtype and a scale; float64 exists while the test runs if the dtype needs it."""
    dtype, scale = request.param
    with jax.enable_x64(dtype == "float64"):
        yield Case(dtype, scale)


class Case:
    """Arrays of one dtype and scale, what they hold as float64, and comparisons for what is computed of them."""

    def __init__(self, dtype, scale):
        self.dtype, self.scale, self.rng = jnp.dtype(dtype), scale, np.random.default_rng(0)
        self.wide = jnp.dtype("float64" if dtype == "float64" else "float32")

    def draw(self, *shape):
        values = self.scale * self.rng.normal(size=shape)
        if self.dtype == jnp.int8:
            values = np.clip(values, -128, 127).round()
            values.flat[0] = -128
        return jnp.asarray(values, self.dtype)

    def same(self, got, want, loss=1.0):
        """Compares scores in their dtype; `loss` is how much more than one rounding an oracle may be off."""
        got, want = np.asarray(got), np.asarray(want, np.float64)
        assert got.dtype == self.wide
        assert len(np.unique(want)) > want.size // 2
        rtol = loss * (1e-13 if self.wide == jnp.float64 else 1e-6)
        np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max() if loss > 1 else 0)
        # What differs by far more than a rounding must not tie.
        order = np.sort(want, axis=None)
        distinct = 1 + np.sum(np.diff(order) > 1e-4 * np.abs(order[1:]))
        assert len(np.unique(got)) >= distinct


def exact(x):
    return np.asarray(x).astype(np.float64)


def test_products_and_magnitudes_of_weights(case):
    p, g = case.draw(40, 5), case.draw(40, 5)
    t, u = exact(p), exact(g)
    params, grads = {"w": p}, {"w": g}
    case.same(saliency.magnitude(params)["w"][:, 0], np.abs(t[:, 0]))
    case.same(saliency.taylor_terms(params, grads)["w"], t * u)
    case.same(saliency.taylor(params, grads)["w"], (t * u) ** 2)
    case.same(saliency.snip(params, grads)["w"], np.abs(t * u))
    case.same(saliency.wanda(params, {"w": jnp.abs(g)})["w"], np.abs(t) * np.abs(u))
    case.same(saliency.wanda(params, {"w": 3.0})["w"][:, 0], 3 * np.abs(t[:, 0]))


def test_taylor_of_units(case):
    p, g = case.draw(20, 30), case.draw(20, 30)
    group = Group(name="fc", size=30, slots=(Slot(path="w", axis=1, scored=True),))
    got = units.reduce(saliency.taylor_terms({"w": p}, {"w": g}), [group], "sum_square")["fc"]
    want = [sum(a * b for a, b in zip(exact(p)[:, c], exact(g)[:, c], strict=True)) ** 2 for c in range(30)]
    case.same(got, want, loss=10)


def squared_error(params, x, y):
    return jnp.mean((x @ params["w"] - y) ** 2) / 2


def test_grasp(case):
    w, x, y = case.draw(12), case.draw(5, 12), case.draw(5)
    theta, a, b = exact(w), exact(x), exact(y)
    gradient = a.T @ (a @ theta - b) / len(b)
    case.same(saliency.grasp(squared_error, {"w": w}, x, y)["w"], theta * (a.T @ (a @ gradient)) / len(b), loss=100)


def test_fisher(case):
    w, x, y = case.draw(12), case.draw(5, 12), case.draw(5)
    theta, a, b = exact(w), exact(x), exact(y)
    total = np.zeros(12)
    for row, target in zip(a, b, strict=True):
        total += ((row @ theta - target) * row) ** 2
    got = saliency.fisher(lambda p, x1, y1: squared_error(p, x1, y1), {"w": w}, x, y, batch=2)["w"]
    case.same(got, theta**2 * total / len(b), loss=100)


def test_a_loss_that_cannot_do_with_float32_is_told_to_cast():
    def loop(params, x):
        return jnp.sum(lax.scan(lambda h, _: (h * params["w"], None), x, None, length=2)[0])

    w, x = jnp.array([2.0, 3.0], jnp.bfloat16), jnp.array([1.0, 5.0], jnp.bfloat16)
    with pytest.raises(ValueError, match=r"in place of \['bfloat16'\].*let the loss cast its parameters"):
        saliency.grasp(loop, {"w": w}, x)

    def cast(params, x):
        return loop({"w": params["w"].astype(jnp.bfloat16)}, x)

    # L = Σ w² x: g = 2 w x, H = 2 x, so that w H g = 4 w² x².
    assert saliency.grasp(cast, {"w": w}, x)["w"].tolist() == [16.0, 900.0]
    with pytest.raises(TypeError):
        saliency.grasp(loop, {"w": w.astype(jnp.float32)}, x)


def test_means_over_examples(case):
    a = case.draw(3000, 6)
    where = np.arange(3000) % 3 > 0
    case.same(saliency.activation({"fc": a})["fc"], [np.mean(np.abs(c)) for c in exact(a).T], loss=10)
    got = saliency.gate_fisher({"fc": a}, where=jnp.asarray(where))["fc"]
    case.same(got, [np.mean(c[where] ** 2) for c in exact(a).T], loss=10)


def test_batch_norm_scales(case):
    params = {"a": {"scale": case.draw(20)}, "b": {"scale": case.draw(20)}}
    slots = tuple(Slot(path=f"{n}/scale", axis=0, scored=True) for n in "ab")
    got = saliency.batch_norm_scale(params, [Group(name="stage", size=20, slots=slots)])["stage"]
    case.same(got, (np.abs(exact(params["a"]["scale"])) + np.abs(exact(params["b"]["scale"]))) / 2)


def gated(variables, x, *, train, gates):
    return x * gates["fc"] @ variables.params["w"], variables.rest


def first_logit(logits, y):
    return logits[:, 0] - y


def test_gate_gradients(case):
    x, w = case.draw(7, 5), case.draw(5, 1)
    group = Group(name="fc", size=5, slots=())
    got = saliency.gate_gradients(gated, Variables({"w": w}, {}), x, jnp.zeros(7), first_logit, [group])["fc"]
    case.same(got, exact(x) * exact(w)[:, 0])


def dense(params, x):
    return x @ params["w"]


def convolution(params, x):
    return lax.conv_general_dilated(x, params["w"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))


def test_norms_of_inputs(case):
    x, w = case.draw(50, 6), case.draw(6, 3)
    got = saliency.input_norms.norms(dense, {"w": w}, x, prunable=["w"]).norm["w"]
    case.same(got[:, 0], np.sqrt(np.sum(exact(x) ** 2, axis=0)), loss=10)
    assert np.array_equal(got, np.repeat(got[:, :1], 3, axis=1))


def test_norms_of_a_convolutions_inputs(case):
    x, w = case.draw(4, 9, 2), case.draw(3, 2, 5)
    got = saliency.input_norms.norms(convolution, {"w": w}, x, prunable=["w"]).norm["w"]
    want = np.zeros((3, 2))
    for tap, channel, start in itertools.product(range(3), range(2), range(7)):
        want[tap, channel] += np.sum(exact(x)[:, start + tap, channel] ** 2)
    case.same(got[:, :, 0], np.sqrt(want), loss=10)


def two_layers(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def test_synaptic_flow(case):
    params = {"a": case.draw(3, 8), "b": case.draw(8, 4)}
    a, b = (np.abs(exact(params[n])) for n in "ab")
    got = saliency.synflow(two_layers, params, (3,), prunable=["a", "b"])
    want = {"a": np.zeros(a.shape), "b": np.zeros(b.shape)}
    for i, h, o in np.ndindex(3, 8, 4):
        want["a"][i, h] += a[i, h] * b[h, o]
        want["b"][h, o] += a[i, h] * b[h, o]
    for name in "ab":
        case.same(got[name], want[name], loss=10)


def test_rounds_of_synaptic_flow(case):
    params = {"a": case.draw(3, 8), "b": case.draw(8, 4)}
    got = saliency.prune_by_synflow(two_layers, params, (3,), [30, 12], prunable=["a", "b"])
    a, b = (np.abs(exact(params[n])) for n in "ab")
    kept = np.ones(a.size + b.size, bool)
    for count in (30, 12):
        p, q = a * kept[: a.size].reshape(a.shape), b * kept[a.size :].reshape(b.shape)
        flow = np.concatenate([(p * q.sum(1)).ravel(), (q * p.sum(0)[:, None]).ravel()])
        kept[np.argsort(-np.where(kept, flow, -math.inf), kind="stable")[count:]] = False
    assert np.array_equal(np.concatenate([np.ravel(got[n]) for n in "ab"]), kept)
    assert kept.sum() == 12


def test_arrays_of_different_dtypes_meet_in_the_wider_one():
    with jax.enable_x64(True):
        half, single, double = (jnp.array([3.0, 5.0], d) for d in ("float16", "float32", "float64"))
        assert saliency.taylor_terms({"w": half}, {"w": single})["w"].dtype == jnp.float32
        assert saliency.taylor_terms({"w": half}, {"w": double})["w"].dtype == jnp.float64
        # A Python number widens nothing.
        assert saliency.wanda({"w": half}, {"w": 2.0})["w"].dtype == jnp.float32
        assert saliency.magnitude({"w": half})["w"].tolist() == [3.0, 5.0]
