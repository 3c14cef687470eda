"""Networks with loops that run until a condition holds, and with `shard_map` over one device and over two.

The frame is that of `adversarial`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from tests.zoo.adversarial import ALL, exact, never, number, read, relu, sigmoid, total
from tests.zoo.cases import Builders, Case, case, normal, unit, why

NUMBERS = jnp.arange(1.0, 9.0)
P = PartitionSpec


# --- while -----------------------------------------------------------------------------------------------------------


def _until_large(p, z):
    """How often it runs depends on the units, through a sum in which removed ones are zero."""
    _, y = lax.while_loop(
        lambda c: (jnp.square(c[1]).sum() < 100) & (c[0] < 20), lambda c: (c[0] + 1, c[1] * 1.5), (0, relu(z))
    )
    return read(p, y) + total(y)


def _counted(p, z):
    """A number of steps that is not known while tracing; what is added in each step is no carry."""
    y = lax.fori_loop(0, number(p) + 2, lambda i, c: jnp.tanh(c + relu(z)) * (i + 1), jnp.zeros_like(z))
    return read(p, y) + total(y)


def _swapped(p, z):
    """Two states change places in every step."""
    first, second = lax.fori_loop(0, number(p) + 1, lambda i, c: (c[1], jnp.sin(c[0])), (relu(z), 0.5 * z))
    return read(p, first + second) + total(first * second)


def _recurrent(p, z):
    """A square kernel makes and reads the units of the state."""
    _, state = lax.while_loop(
        lambda c: (c[0] < 3 + number(p)) & (jnp.square(c[1]).sum() < 1e3),
        lambda c: (c[0] + 1, jnp.tanh(c[1] @ p["w"] + z)),
        (0, jnp.zeros_like(z)),
    )
    return read(p, state)


def _mapped(p, z):
    """Each row runs as often as it needs to."""

    def one(row):
        start = (0, relu(row))
        step = lambda c: (c[0] + 1, c[1] * 1.5 + 0.1 * relu(row))  # noqa: E731
        return lax.while_loop(lambda c: (c[1].sum() < 5) & (c[0] < 9), step, start)[1]

    y = jax.vmap(one)(z)
    return read(p, y) + total(y)


def _mapped_units(p, z):
    """Each unit runs as often as it needs to."""

    def one(column):
        step = lambda c: (c[0] + 1, c[1] * 1.5)  # noqa: E731
        return lax.while_loop(lambda c: (c[1].sum() < 3) & (c[0] < 9), step, (0, relu(column)))[1]

    y = jax.vmap(one, 1, 1)(z)
    return read(p, y) + total(y)


def _nested(p, z):
    def outer(c):
        i, y = c
        y, _ = lax.scan(lambda y, _: (jnp.tanh(y) + 0.1 * relu(z), None), y, None, length=2)
        return i + 1, lax.fori_loop(0, i, lambda _, y: y * 1.1, y)

    _, y = lax.while_loop(lambda c: c[0] < number(p) + 2, outer, (0, relu(z)))
    return read(p, y) + total(y)


def _even_inside(p, z):
    """Inside the body removed entries are one, and are counted there."""
    y = lax.fori_loop(0, number(p) + 1, lambda i, y: relu(z) / jnp.exp(y).sum(-1, keepdims=True), relu(z))
    return read(p, y) + total(y)


def _from_zero(p, z):
    """The carry starts at zero and stays there only for one step."""
    y = lax.fori_loop(0, number(p) + 2, lambda i, c: sigmoid(c) * relu(z) + jnp.cos(c) * NUMBERS, jnp.zeros_like(z))
    return read(p, y) + total(y)


def _late(p, z):
    """The first carry is zero for three steps, then it is handed something else."""
    zero = jnp.zeros_like(z)
    step = lambda i, c: (c[1], c[2], jnp.cos(z) * NUMBERS)  # noqa: E731
    state, _, _ = lax.fori_loop(0, number(p) + 4, step, (zero, zero, zero))
    return read(p, relu(z)) + total(state)


def _bound(p, z):
    """How often it runs is a sum over entries that are not zero where units are removed."""
    steps = (jnp.sum(jnp.cos(z) * NUMBERS) / 8).astype(jnp.int32)
    return read(p, relu(z)) + lax.fori_loop(0, jnp.abs(steps) % 9, lambda i, c: c * 1.1, jnp.ones(3))


def _condition(p, z):
    """The condition adds up entries that are not zero where units are removed."""
    _, y = lax.while_loop(
        lambda c: ((jnp.cos(c[1]) * NUMBERS).sum() > 20) & (c[0] < 9),
        lambda c: (c[0] + 1, c[1] + 0.1 * relu(z)),
        (0, relu(z)),
    )
    return read(p, y)


def _turned(p, z):
    """Every step turns the order of the units round."""
    return read(p, lax.fori_loop(0, number(p) + 1, lambda i, c: jnp.tanh(c)[:, ::-1] + z, z))


def _grows(p, z):
    """What comes out is no zero, and none that is alike for all units."""
    y = lax.fori_loop(0, number(p) + 1, lambda i, c: jnp.exp(c) + NUMBERS, z)
    return read(p, y) + total(y)


# --- shard_map -------------------------------------------------------------------------------------------------------


def _mesh(*sizes: int) -> Any:
    return jax.make_mesh(sizes, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def _mapped_over(body: Any, sizes: tuple[int, int], specs: tuple[Any, ...], out: Any, **options: Any) -> Any:
    """`body(z, kernel)` under `shard_map`, with the bias added outside."""

    def op(p, z):
        mapped = jax.shard_map(body, mesh=_mesh(*sizes), in_specs=specs, out_specs=out, **options)
        return mapped(z, p["out"]["kernel"]) + p["out"]["bias"]

    return op


def _product(z, w):
    """Rows lie on several devices, and what they have in common is added up; a sum over the units on each."""
    y = relu(z)
    shared = lax.pmean(jnp.tanh(z).sum(0), "data")
    return y @ w + (y * shared).sum(-1, keepdims=True) + lax.pmax(lax.stop_gradient(y.max()), "data")


def _parts(z, w):
    """Each device has some of the units."""
    return lax.psum(relu(z) @ w, "model")


def _exchanged(z, w):
    """Rows go round, are gathered and dealt out."""
    count = lax.axis_size("data")
    turned = lax.ppermute(relu(z), "data", [(i, (i + 1) % count) for i in range(count)])
    every = lax.all_gather(jnp.sin(z), "data", tiled=True)
    dealt = lax.psum_scatter(every, "data", tiled=True) + lax.all_gather(z, "data").sum(0)
    return (turned + dealt + lax.axis_index("data")) @ w + total(turned * dealt)


def _exchanged_units(z, w):
    """Each device is handed the units of the other."""
    mixed = lax.all_to_all(relu(z), "data", 1, 0, tiled=True)
    return lax.all_to_all(jnp.cumsum(mixed, 0), "data", 0, 1, tiled=True) @ w


def _even_on_devices(z, w):
    """Removed entries are one on every device, and are counted there."""
    return relu(z) @ w / jnp.exp(z).sum(-1, keepdims=True)


def layer_per_device() -> Case:
    """Tensor parallelism: the hidden units lie on several devices and stay, the stream does not."""

    def mlp(x, up, down):
        return lax.psum(relu(x @ up) @ down, "model")

    def apply(p, x):
        h = x @ p["embed"]
        specs = (P("data"), P(None, "model"), P("model", None))
        h = h + jax.shard_map(mlp, mesh=_mesh(1, 2), in_specs=specs, out_specs=P("data"))(h, p["up"], p["down"])
        return h @ p["out"]

    shapes = {"embed": (5, 6), "up": (6, 8), "down": (8, 6), "out": (6, 3)}
    stream = unit(6, "up:0 out:0", makes="embed:1 down:1")
    return case(apply, shapes, (normal(4, 5),), stream, frozen=why("up:1 down:0", "shard_map splits"))


def mapped_names() -> Case:
    """`vmap` with a named axis: sums over rows that count as devices."""

    def apply(p, x):
        def row(x):
            h = relu(x @ p["a"])
            return (h - lax.pmean(h, "rows")) @ p["b"] + lax.axis_index("rows")

        return jax.vmap(row, axis_name="rows")(x)

    return case(apply, {"a": (5, 8), "b": (8, 3)}, (normal(4, 5),), unit(8, "a:1 b:0"))


ROWS, WHOLE = P("data"), P()

NEVER: Builders = {
    name: functools.partial(never, pattern, op)
    for name, (pattern, op) in {
        "while_from_zero": ("sum", _from_zero),
        "while_leaks_late": ("sum", _late),
        "while_bound": ("sum", _bound),
        "while_condition": ("sum", _condition),
        "while_turned": ("another order", _turned),
        "while_grows": ("sum", _grows),
        "shard_map_of_units": (
            "shard_map splits|all_to_all",
            _mapped_over(_exchanged_units, (2, 1), (ROWS, WHOLE), ROWS),
        ),
    }.items()
}

CASES: Builders = NEVER | {
    name: functools.partial(exact, op)
    for name, op in {
        "while_until_large": _until_large,
        "while_counted": _counted,
        "while_swapped": _swapped,
        "while_mapped": _mapped,
        "while_mapped_units": _mapped_units,
        "while_nested": _nested,
        "while_even_inside": _even_inside,
        "shard_map_on_one": _mapped_over(_parts, (1, 1), (P(None, "model"), P("model")), WHOLE),
        "shard_map_of_rows": _mapped_over(_product, (2, 1), (ROWS, WHOLE), ROWS),
        "shard_map_unchecked": _mapped_over(_product, (2, 1), (ROWS, WHOLE), ROWS, check_vma=False),
        "shard_map_exchanges": _mapped_over(_exchanged, (2, 1), (ROWS, WHOLE), ROWS),
        "shard_map_even": _mapped_over(_even_on_devices, (2, 1), (ROWS, WHOLE), ROWS),
        "shard_map_partly": _mapped_over(_product, (2, 1), (ROWS, WHOLE), ROWS, axis_names={"data"}),
    }.items()
}
CASES |= {
    "while_recurrent": functools.partial(exact, _recurrent, ALL + " w:0,1", w=(8, 8)),
    **{f.__name__: f for f in (layer_per_device, mapped_names)},
}
