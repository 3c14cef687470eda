import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, models
from mvp_jax.compact import cost
from tests.model_kinds import made, random_units


def by_hand(config):
    """Multiplications and additions of the convolutions and the head alone, counted window by window."""
    total, size, before = 0, config.image_size, config.stem_width

    def conv(c_in, c_out, side, kernel, stride):
        out = -(-side // stride)
        taps = sum(1 for o in range(out) for k in range(kernel) if 0 <= o * stride + k - kernel // 2 < side)
        return 2 * taps * taps * c_in * c_out  # windows reaching over the edge touch fewer pixels

    total += conv(config.channels, config.stem_width, size, 3, 1)
    for s, stage in enumerate(config.inner_widths):
        for b, (inner,) in enumerate(stage):
            stride = config.strides[s] if b == 0 else 1
            total += conv(before, inner, size, 3, stride)
            if b == 0 and config.projections[s]:
                total += conv(before, config.stage_widths[s], size, 1, stride)
            size, before = -(-size // stride), config.stage_widths[s]
            total += conv(inner, before, size, 3, 1)
    return total + 2 * before * config.pool**2 * config.classes


@pytest.mark.parametrize("name", ["resnet20", "resnet8_distiller"])
def test_flops_are_those_of_the_layers(name):
    model = models.create(name)
    counted = cost.of(model, jax.eval_shape(model.init, jax.random.key(0)))
    layers = by_hand(model.config)
    # Norms, ReLUs and additions come on top, a few per activation.
    assert layers < counted.flops < 1.12 * layers


def test_flops_do_not_depend_on_the_batch():
    model, variables = made("option_a")
    one, many = (cost.of(model, variables, n) for n in (1, 16))
    assert one.flops == pytest.approx(many.flops, rel=0.05)
    assert one[::2] == many[::2]


def test_parameters_and_bytes():
    model, variables = made("distiller")
    counted = cost.of(model, variables)
    entries = sum(np.asarray(a).size for a in jax.tree.leaves(variables.params))
    rest = sum(np.asarray(a).size for a in jax.tree.leaves(variables.rest))
    assert rest > 0
    assert counted.params == entries > 1000
    assert counted.bytes == 4 * (entries + rest)
    assert cost.bytes({"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros((), bool)}) == 7


def test_pruning_costs_less():
    model, variables = made("distiller")
    before = cost.of(model, variables)
    slim_model, slim = compact.rebuild(model, variables, random_units(model, 0))
    after = cost.of(slim_model, slim)
    assert after.params < 0.5 * before.params
    assert after.flops < 0.5 * before.flops
    assert after.bytes < 0.5 * before.bytes


def test_counting_twice_traces_once():
    traces = []

    def apply(v, x):
        traces.append(1)
        return x @ v

    assert cost.flops(apply, jnp.zeros((3, 5)), (2, 3)) == cost.flops(apply, jnp.ones((3, 5)), (2, 3)) == 30.0
    assert len(traces) == 1


def test_latency_is_the_median_of_calls_after_the_first():
    calls = []
    seconds = cost.latency(lambda: calls.append(1) or jnp.zeros(()), repeats=5, warmup=2)
    assert len(calls) == 7
    assert 0.0 <= seconds < 1.0
    with pytest.raises(ValueError, match="at least one call"):
        cost.latency(lambda: None, repeats=0)


def test_latencies_are_quartiles_of_calls_in_turn(monkeypatch):
    now, order = [0.0], []

    def call(name, seconds):
        left = iter([9.0, *seconds])  # the first call is not timed

        def run():
            order.append(name)
            now[0] += next(left)
            return jnp.zeros(())

        return run

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    a, b = cost.latencies([call("a", [1, 2, 3, 4, 10]), call("b", [20] * 5)], repeats=5, warmup=1)
    assert order == ["a", "b"] * 6
    assert a == pytest.approx((3.0, 2.0, 4.0, 5))
    assert b == (20.0, 20.0, 20.0, 5)
    assert a.busy
    assert not b.busy
    assert not a.faster_than(b), "quartiles apart, but measured on a busy machine"
    with pytest.raises(ValueError, match="at least one call"):
        cost.latencies([lambda: None], repeats=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "faster"),
    [
        ((2.0, 1.9, 2.1), (3.0, 2.9, 3.1), True),
        ((2.0, 1.9, 2.1), (2.2, 2.05, 2.3), False),  # the quartiles overlap
        ((3.0, 2.9, 3.1), (2.0, 1.9, 2.1), False),
        ((2.0, 1.9, 2.1), (9.0, 5.0, 9.0), False),  # the other was measured on a busy machine
    ],
)
def test_faster_is_claimed_only_where_quartiles_are_apart_and_the_machine_was_idle(ours, theirs, faster):
    assert cost.LatencySpread(*ours, 20).faster_than(cost.LatencySpread(*theirs, 20)) is faster


def test_loop_bodies_are_counted_as_often_as_they_run():
    def chain(w, x):
        return jax.lax.scan(lambda h, m: (h @ m, None), x, w)[0]

    def nested(w, x):
        return jax.lax.scan(lambda h, _: (jax.jit(chain)(w, h), None), x, None, length=7)[0]

    w = jnp.zeros((5, 4, 4))
    one = 2 * 4 * 4
    assert cost.flops(chain, w, (3, 4)) == pytest.approx(5 * one, rel=0.02)
    assert cost.flops(nested, w, (3, 4)) == pytest.approx(35 * one, rel=0.02)
    unrolled = cost.flops(lambda w, x: x @ w[0] @ w[1] @ w[2] @ w[3] @ w[4], w, (3, 4))
    assert cost.flops(chain, w, (3, 4)) == pytest.approx(unrolled, rel=0.05)


def test_memory_grows_with_what_has_to_be_kept():
    def deep(w, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w))

    w = jnp.ones((64, 64))
    forward, backward = cost.memory(deep, w, jnp.ones((256, 64))), cost.memory(jax.grad(deep), w, jnp.ones((256, 64)))
    assert backward > forward
    assert backward >= 256 * 64 * 4
