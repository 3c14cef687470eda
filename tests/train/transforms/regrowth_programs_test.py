"""RigL and SET as compiled programs, inside other wrappers, and on any tree of parameters."""

import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mvp_jax.core import masks, trees
from mvp_jax.train import transforms
from tests.regrowth_cases import (
    HEAVY,
    KERNELS,
    KEY,
    PARAMS,
    RNG,
    evolution,
    gradients,
    kernels,
    rigl,
    run,
    same,
    start,
    step_of,
)

# ------------------------------------------------------------------------------------------------ compiled programs


@pytest.mark.parametrize("make", [rigl, evolution])
def test_eager_jit_and_scan_agree(make):
    tx = make()
    carry = start(tx)
    eager = run(step_of(tx), carry, 7)
    jitted = run(jax.jit(step_of(tx)), carry, 7)
    scanned, _ = jax.jit(lambda c: jax.lax.scan(lambda c, _: (step_of(tx)(*c), None), c, length=7))(carry)
    same(eager, jitted, rtol=1e-5, atol=1e-6)
    same(eager, scanned, rtol=1e-5, atol=1e-6)
    assert any((kernels(eager[1].masks)[n] != m).any() for n, m in kernels(carry[1].masks).items())


def predicates(jaxpr):
    """The shapes of the predicates of all branches, inside calls too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            found.append(equation.invars[0].aval.shape)
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                found += predicates(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize("make", [rigl, evolution])
def test_members_with_keys_and_counts_of_their_own_equal_a_loop(make):
    step = jax.jit(step_of(make()))
    members = []
    for i, late in enumerate((0, 1, 1, 3)):
        tx = make(key=jax.random.key(i), sparsity=(0.6, 0.5, 0.8, 0.6)[i])
        members.append(run(step, start(tx, jax.tree.map(lambda p, i=i: p * (1 + 0.1 * i), PARAMS)), late))
    together = jax.vmap(step_of(make()))
    # A branch with one predicate stays a branch; a batched one would become a select, at every step.
    assert set(predicates(jax.make_jaxpr(together)(*trees.stack(members)).jaxpr)) == {()}
    stacked = run(jax.jit(together), trees.stack(members), 6)
    finals = [run(step, m, 6) for m in members]
    for got, expected in zip(trees.unstack(stacked), finals, strict=True):
        same(got[1].masks, expected[1].masks)
        same(got, expected, rtol=1e-5, atol=1e-6)
    sets = {tuple(np.ravel(f[1].masks["a"]["kernel"])) for f in finals}
    assert len(sets) == 4


@pytest.mark.parametrize("make", [rigl, evolution])
def test_one_compiled_step_serves_other_sparsities_and_keys(make):
    traces = []

    def counting(params, state):
        traces.append(1)
        return step_of(make())(params, state)

    step = jax.jit(counting)
    for sparsity, initial in ((0.5, "random"), (0.8, "magnitude"), (0.9, "random")):
        tx = make(sparsity=sparsity, initial=initial, key=jax.random.key(int(sparsity * 10)))
        params, state = start(tx)
        first = int(masks.count(state.masks))
        _, state = run(step, (params, state), 5)
        assert int(masks.count(state.masks)) == first == 148 - round(sparsity * 148)
    assert len(traces) == 1


@pytest.mark.parametrize("make", [transforms.rigl, transforms.sparse_evolution])
def test_drop_fraction_may_be_traced(make):
    tx = optax.inject_hyperparams(make, static_args=("sparsity", "steps", "every", "begin", "key"))(
        HEAVY, sparsity=0.6, steps=40, every=1, prunable=KERNELS, key=KEY, drop_fraction=0.5
    )
    step, carry = jax.jit(step_of(tx)), start(tx)
    moved = []
    for fraction in (0.5, 0.0, 0.25):
        carry[1].hyperparams["drop_fraction"] = jnp.float32(fraction)
        before = kernels(transforms.masks_of(carry[1]))
        carry = step(*carry)
        moved.append(sum((m & ~before[n]).sum() for n, m in kernels(transforms.masks_of(carry[1])).items()))
    assert moved[0] > moved[2] > moved[1] == 0
    assert step._cache_size() == 1


def test_inside_other_wrappers_an_update_is_what_they_pass_on():
    plain = rigl(every=2, steps=20)
    carry = start(plain)
    expected = run(jax.jit(step_of(plain)), carry, 4)
    several = optax.MultiSteps(plain, 3)
    got = run(jax.jit(step_of(several)), (carry[0], several.init(PARAMS)), 12)
    same(transforms.masks_of(got[1]), transforms.masks_of(expected[1]))
    same(got[0], expected[0], rtol=1e-5, atol=1e-6)
    chained = optax.chain(optax.clip(1e6), plain)
    got = run(jax.jit(step_of(chained)), (carry[0], chained.init(PARAMS)), 4)
    same(got[0], expected[0], rtol=1e-5, atol=1e-6)
    assert (transforms.masks_of(got[1])["a"]["kernel"] != transforms.masks_of(carry[1])["a"]["kernel"]).any()


def test_further_arguments_reach_the_optimiser():
    def update(grads, state, params=None, *, rate, **_):
        return jax.tree.map(lambda g: -rate * g, grads), state

    tx = rigl(optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update))
    params, state = start(tx)
    updates, state = tx.update(gradients(params), state, params, rate=0.5)
    same(updates, masks.apply(jax.tree.map(lambda g: -0.5 * g, gradients(params)), transforms.masks_of(state)))


def test_a_loop_can_be_differentiated_through():
    tx = rigl(every=1, steps=5)
    params, state = start(tx)

    def loss(scale):
        new, _ = run(step_of(tx), (jax.tree.map(lambda p: p * scale, params), state), 3)
        return sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(new))

    slope = (loss(1.001) - loss(0.999)) / 0.002
    np.testing.assert_allclose(jax.grad(loss)(1.0), slope, rtol=2e-2)
    assert abs(slope) > 1


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float16", "float16"), ("float32", "bfloat16")], ids=str)
def test_pruned_is_exactly_zero_in_any_precision(dtypes):
    params, target = ({"w": jnp.asarray(RNG.standard_normal((20, 10)), d)} for d in dtypes)
    tx = rigl(optax.adamw(0.05), prunable=["w"], every=2)
    step = jax.jit(step_of(tx, lambda p: jax.tree.map(lambda p, t: (p - t).astype(t.dtype), p, target)))
    carry = run(step, start(tx, params), 5)
    mask = transforms.masks_of(carry[1])["w"]
    assert carry[0]["w"].dtype == dtypes[0]
    assert int(mask.sum()) == 80
    assert not np.array(carry[0]["w"], np.float32)[~np.array(mask)].any()
    assert np.array(carry[0]["w"], np.float32)[np.array(mask)].any()


# ---------------------------------------------------------------------------------------------- any tree of parameters


class Net(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(8, 12, rngs=rngs)
        self.b = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))


class Layer(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    name: str = eqx.field(static=True)


def trees_of_parameters():
    a, b = PARAMS["a"], PARAMS["b"]
    return {
        "nnx": (nnx.state(Net(nnx.Rngs(0)), nnx.Param), KERNELS),
        "linen": (flax.core.freeze({"params": {"a": a, "b": b}}), ["params/.*/kernel"]),
        "tuples": (((a["kernel"], None), [b["kernel"], a["bias"]]), ((True, None), [True, False])),
        "equinox": ([Layer(a["kernel"], a["bias"], "a"), Layer(b["kernel"], b["kernel"][0], "b")], ["[01]/weight"]),
    }


@pytest.mark.parametrize("make", [rigl, evolution])
@pytest.mark.parametrize("kind", trees_of_parameters())
def test_any_tree_of_parameters(kind, make):
    params, prunable = trees_of_parameters()[kind]
    tx = make(optax.adam(0.05), prunable=prunable, sparsity=0.75, every=2, drop_fraction=0.9)
    carry = start(tx, params)
    step = jax.jit(step_of(tx, lambda p: jax.tree.map(lambda x: x - 1.0, p)))
    new, state = run(step, carry, 7)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    found = transforms.masks_of(state)
    assert int(masks.count(found)) == 36
    assert sum(int((p != 0).sum()) for p in jax.tree.leaves(new) if p.ndim == 2) == 36
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(transforms.masks_of(carry[1])), strict=True)
    assert sum(int((a != b).sum()) for a, b in pairs) > 10


def test_the_optimizer_of_nnx():
    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, rigl(optax.adamw(0.05), sparsity=0.75, every=2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: jnp.mean((m(x) - 1.0) ** 2))(model))

    for _ in range(6):
        step(model, optimizer, jnp.ones((3, 8)))
    kept = transforms.masks_of(nnx.as_pure(optimizer.opt_state))
    assert int(kept["a"]["kernel"].sum() + kept["b"]["kernel"].sum()) == 36
    assert not model.a.kernel[...][~kept["a"]["kernel"]].any()
    assert model.a.kernel[...].any()
