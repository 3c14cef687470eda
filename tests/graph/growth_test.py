"""How the work of the analysis grows with the depth of a model, counted in calls and not in seconds."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mvp_jax
from mvp_jax import compact, graph
from mvp_jax.compact import budget

HERE = str(pathlib.Path(mvp_jax.__file__).parent)
SHAPE = jax.ShapeDtypeStruct((2, 6), jnp.float32)


def calls(run):
    """How often functions of the package are entered, generators at every step included."""
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(HERE)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def residual(n):
    """Blocks that are added so that the stream gets a new name each time; centred, so that sums are counted."""

    def apply(p, x):
        x = x @ p["in"]
        for i in range(n):
            h = x - jnp.mean(x, -1, keepdims=True)
            h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + 1e-5) * p[f"scale{i}"]
            x = jnp.tanh(h @ p[f"a{i}"]) @ p[f"b{i}"] + x
        return x @ p["out"]

    shapes = {"in": (6, 8), "out": (8, 3)}
    for i in range(n):
        shapes |= {f"a{i}": (8, 4), f"b{i}": (4, 8), f"scale{i}": (8,)}
    return apply, shapes


def branches(n):
    """Each block concatenates three layers that read the two before it."""

    def apply(p, x):
        before, x = x, x @ p["in"]
        for i in range(n):
            parts = [jax.nn.relu(x @ p[f"a{i}"]), before @ p[f"b{i}"], jnp.tanh(x @ p[f"c{i}"])]
            before, x = x, jnp.concatenate(parts, -1)
        return x @ p["out"]

    width = [6, 9]
    shapes = {"in": (6, 9), "out": (9, 3)}
    for i in range(n):
        shapes |= {f"a{i}": (9, 3), f"b{i}": (width[min(i, 1)], 3), f"c{i}": (9, 3)}
    return apply, shapes


def steps(apply, variables):
    """The entry points, each ready to be run."""
    groups = graph.groups(apply, variables, SHAPE)
    assert groups
    kept = {g.name: np.arange(g.size) % 2 == 0 for g in groups}
    small, slim = compact.slim(apply, variables, groups, kept, SHAPE)
    return {
        "groups": lambda: graph.groups(apply, variables, SHAPE),
        "explain": lambda: graph.explain(apply, variables, SHAPE),
        "slim": lambda: compact.slim(apply, variables, groups, kept, SHAPE),
        "replay": lambda: jax.make_jaxpr(lambda *args: small(*args))(slim, SHAPE),
        "meter": lambda: budget.meter(apply, variables, groups, SHAPE)(dict.fromkeys(kept, 2)),
    }


@pytest.mark.parametrize("step", ["groups", "explain", "slim", "replay", "meter"])
@pytest.mark.parametrize("model", [residual, branches])
def test_twice_the_blocks_take_twice_the_calls(model, step):
    counts = []
    for n in (6, 12, 24):
        apply, shapes = model(n)
        run = steps(apply, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})[step]
        run()  # whatever is set up once
        counts.append(calls(run))
    first, second = np.diff(counts)
    assert first > 100
    # From 12 to 24 blocks twice as much is added as from 6 to 12; with a quadratic part it is up to four times.
    assert second < 2.1 * first
