"""Gradual, iterative, movement and dynamic pruning step by step, against NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import train
from mvp_jax.core.types import Variables
from mvp_jax.methods import sparse
from mvp_jax.methods.sparse import api, dynamic, gradual, imp, movement
from mvp_jax.train import evaluation
from tests import mlp
from tests.methods.sparse.isp_test import Spy, best

# All examples in one batch: their order does not matter, so NumPy needs no key.
TRAINING = sparse.SparsityTraining(steps=0, learning_rate=0.1, batch=99)
SIZES = (40, 48)
ALL = np.ones(88, bool)


def problem(sparsity=0.7):
    return sparse.SparsityProblem(model=mlp.mlp(), variables=mlp.variables(), train=mlp.data(), sparsity=sparsity)


def kernels(tree):
    """The prunable leaves as one vector."""
    return np.concatenate([np.asarray(tree[n]["kernel"]).ravel() for n in ("one", "two")])


def with_kernels(params, flat):
    one, two = np.split(flat, [40])
    shaped = {"one": one.reshape(5, 8), "two": two.reshape(8, 6)}
    return params | {n: params[n] | {"kernel": k} for n, k in shaped.items()}


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def distance(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x) - y))), a, b)))


def data():
    d = mlp.data()
    return np.asarray(d["x"], np.float64), np.asarray(d["y"])


def descend(params, steps, *, trace=None, rate=0.1):
    """Descent with momentum in NumPy."""
    params = in_float64(params)
    trace = jax.tree.map(np.zeros_like, params) if trace is None else trace
    for _ in range(steps):
        grads = mlp.in_numpy(params, *data())[1]
        trace = jax.tree.map(lambda v, g: 0.9 * v + g, trace, grads)
        params = jax.tree.map(lambda p, v: p - rate * v, params, trace)
    return params, trace


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.fixture
def seen(monkeypatch):
    """What goes into training and cutting, and what comes out: `(name, run, arguments, run)`."""
    calls = []

    def watched(name):
        function = getattr(api, name)

        def call(problem, *rest, **how):
            run = next(r for r in rest if isinstance(r, sparse.Run))
            after = function(problem, *rest, **how)
            calls.append((name, run, (*(r for r in rest if r is not run), how), after))
            return after

        return call

    for name in ("advance", "cut"):
        monkeypatch.setattr(api, name, watched(name))
    return calls


@pytest.mark.parametrize(("sparsity", "events"), [(0.7, 5), (0.93, 8)])
def test_gradual_is_zhus_and_guptas_formula(sparsity, events, seen):
    settings = gradual.Settings(steps=11, events=events, training=TRAINING)
    gradual.gradual(problem(sparsity), settings, jax.random.key(0))
    cuts = [call for call in seen if call[0] == "cut"]
    at = np.arange(1, events + 1, dtype=np.float64)
    shares = sparsity + (0.0 - sparsity) * (1 - at / events) ** 3
    wanted = [88 - round(s * 88) for s in shares]
    assert len(set(wanted)) > 4
    within = ALL
    for (_, before, _, after), keep in zip(cuts, wanted, strict=True):
        within = best(np.abs(kernels(before.state.variables.params)), keep, within)
        assert np.array_equal(kernels(after.kept), within)
        assert np.array_equal(kernels(after.state.variables.params) != 0, within)
    # Eleven steps over so many events, as evenly as they go.
    taken = [rest[1] for name, _, rest, _ in seen if name == "advance"][:events]
    assert sum(taken) == 11
    assert max(taken) - min(taken) <= 1


def test_rewinding_brings_the_early_weights_back_bit_for_bit(seen):
    spy = Spy()
    settings = imp.Settings(rounds=2, steps=5, rewind_steps=2, training=TRAINING)
    imp.imp(problem(), settings, jax.random.key(0), saved=spy)
    (_, start, _, early), (_, _, _, late) = [c for c in seen if c[0] == "advance"][:2]
    assert bits(start.state.variables) == bits(mlp.variables())
    numpys, trace = descend(mlp.variables().params, 2)
    assert distance(early.state.variables.params, numpys) < 1e-4
    # The momentum goes on, and the cut is of what was trained longer.
    numpys, _ = descend(numpys, 3, trace=trace)
    assert distance(late.state.variables.params, numpys) < 1e-3
    assert distance(late.state.variables.params, in_float64(early.state.variables.params)) > 0.01
    point, within = early.state.variables, ALL
    for r, keep in ((0, 88 - round((1 - math.sqrt(0.3)) * 88)), (1, 26)):
        cut = [c for c in seen if c[0] == "cut"][r]
        within = best(np.abs(kernels(cut[1].state.variables.params)), keep, within)
        after = spy.runs[r].state
        assert np.array_equal(kernels(after.masks), within)
        wanted = np.where(within, kernels(point.params), np.float32(0))
        assert bits(after.variables.params) == bits(with_kernels(point.params, wanted))
    # The second round trains what is left from the early step on, the last training from 0; without momentum.
    later = [c for c in seen if c[0] == "advance"][2:]
    assert [(int(before.state.step), rest[1]) for _, before, rest, _ in later] == [(2, 3), (0, TRAINING.steps)]
    for _, before, *_ in later:
        assert not any(np.any(x) for x in jax.tree.leaves(before.state.opt_state.inner_state))


def test_rewinding_to_the_start_brings_the_pretrained_weights_back(seen):
    spy, params = Spy(), mlp.variables().params
    imp.imp(problem(), imp.Settings(rounds=1, steps=3, training=TRAINING), jax.random.key(0), saved=spy)
    after = spy.runs[0].state
    wanted = np.where(kernels(after.masks), kernels(params), np.float32(0))
    assert bits(after.variables.params) == bits(with_kernels(params, wanted))
    assert kernels(after.masks).sum() == 26


def test_early_steps_leave_the_cosine_of_the_first_round_its_length(seen):
    settings = imp.Settings(rounds=1, steps=6, rewind_steps=3, training=dataclasses.replace(TRAINING, decay="cosine"))
    imp.imp(problem(), settings, jax.random.key(0))
    _, early, _, late = [c for c in seen if c[0] == "advance"][1]
    assert distance(late.state.variables.params, in_float64(early.state.variables.params)) > 0.01


@pytest.mark.parametrize("rewind", ["rate", "none"])
def test_rewinding_the_rate_keeps_the_weights(rewind, seen):
    spy = Spy()
    settings = imp.Settings(rounds=2, steps=3, rewind=rewind, training=dataclasses.replace(TRAINING, steps=2))
    imp.imp(problem(), settings, jax.random.key(0), saved=spy)
    trained = [c for c in seen if c[0] == "advance"]
    for r in range(2):
        kept = kernels(spy.runs[r].kept)
        params = trained[r][3].state.variables.params
        wanted = with_kernels(params, np.where(kept, kernels(params), np.float32(0)))
        assert bits(spy.runs[r].state.variables.params) == bits(wanted)
        following = trained[r + 1][1].state
        assert bits(following.variables.params) == bits(wanted)
        momenta = max(float(np.max(np.abs(x))) for x in jax.tree.leaves(following.opt_state.inner_state))
        # Only a rewound rate begins anew; fine-tuning that goes on does so with its momentum.
        assert int(following.step) == (0 if rewind == "rate" or r == 1 else 3 * (r + 1))
        assert (momenta == 0) == (rewind == "rate")
    assert spy.runs[1].kept["one"]["kernel"].sum() < spy.runs[0].kept["one"]["kernel"].sum()


def test_gates_forwards_and_backwards_by_hand():
    weight, score = jnp.array([2.0, -3.0, 5.0]), jnp.array([1.0, 1.0, 1.0])
    keep, push = jnp.array([True, False, True]), jnp.array([0.5, 0.25, 0.0])
    out, back = jax.vjp(lambda w, s: movement.gated(w, s, keep, push), weight, score)
    assert out.tolist() == [2.0, 0.0, 5.0]
    for_weight, for_score = back(jnp.array([10.0, 100.0, -1.0]))
    assert for_weight.tolist() == [10.0, 0.0, -1.0]
    assert for_score.tolist() == [2 * 10 + 0.5, -3 * 100 + 0.25, 5 * -1.0]
    assert movement.gated(jnp.array([jnp.inf, 1.0]), score[:2], ~keep[:2], push[:2]).tolist() == [0.0, 1.0]


def carried(run):
    """Scores divided by `scale`, as one vector."""
    return np.concatenate([np.asarray(s).ravel() for s in run.more[0]])


SCALE = 3.0


def movement_by_hand(steps, counts, rate, decay, spared=()):
    """Weights, carried scores and the masks after each stretch of steps; the mask is chosen anew in every step."""
    params = in_float64(mlp.variables().params)
    trace = jax.tree.map(np.zeros_like, params)
    decays = {top: jax.tree.map(lambda _, top=top: decay * (top not in spared), part) for top, part in params.items()}
    scores, score_trace, history, masks = np.zeros(88), np.zeros(88), [], []
    for n, keep in zip(steps, counts, strict=True):
        for _ in range(n):
            mask = best(scores, keep, ALL)
            masks.append(mask)
            theta = kernels(params)
            grads = mlp.in_numpy(with_kernels(params, np.where(mask, theta, 0)), *data())[1]
            slope = kernels(grads)
            score_trace = 0.9 * score_trace + SCALE * theta * slope
            scores = scores - rate * score_trace
            grads = with_kernels(grads, np.where(mask, slope, 0))
            trace = jax.tree.map(lambda v, g, p, d: 0.9 * v + g + d * p, trace, grads, params, decays)
            params = jax.tree.map(lambda p, v: p - rate * v, params, trace)
        history.append((params, scores))
    return history, masks


@pytest.mark.parametrize(("decay", "spared"), [(0.0, ()), (0.3, ()), (0.3, ("head",))])
def test_hard_movement_adds_up_minus_weight_times_gradient(decay, spared):
    """Weights decay if they are told to, scores never."""
    spy = Spy()
    training = dataclasses.replace(TRAINING, weight_decay=decay, undecayed=spared)
    assert set(spared) < set(mlp.variables().params)
    settings = movement.Settings(steps=8, events=3, scale=SCALE, training=training)
    got = movement.movement(problem(), settings, jax.random.key(0), saved=spy)
    kept = [88 - round(0.7 * (1 - (1 - t / 3) ** 3) * 88) for t in (1, 2, 3)]
    steps = (2, 3, 3)
    # While nothing is masked, then after the first two events.
    history, masks = movement_by_hand(steps, (88, kept[0], kept[1]), 0.1, decay, spared)
    for run, (params, scores) in zip(spy.runs, history, strict=False):
        assert distance(run.state.variables.params, params) < 1e-4
        assert np.max(np.abs(carried(run) - scores)) < 1e-4 * np.max(np.abs(scores))
    assert np.max(np.abs(history[-1][1])) > 0.1
    # What was masked came back, and was trained while it was not; in the end the highest scores stay.
    inside = np.array(masks[2:])
    assert np.any(inside[1:] & ~inside[:-1])
    assert np.array_equal(kernels(got.masks), best(carried(spy.runs[2]), 26, ALL))
    final = np.where(kernels(got.masks), kernels(spy.runs[2].state.variables.params), np.float32(0))
    np.testing.assert_array_equal(kernels(got.variables.params), final)


def test_without_momentum_scores_are_the_papers_sum():
    flags = tuple(jax.tree.leaves(problem().prunable))
    model = movement.scored(mlp.mlp(), flags, "hard", SCALE, 0.1)
    zeros = [jnp.zeros((5, 8)), jnp.zeros((8, 6))]
    rest = {"model": {}, "keep": jnp.int32(88), "penalty": jnp.float32(0.0)}
    both = Variables({"weights": mlp.variables().params, "scores": zeros}, rest)
    state, tx = train.create(both, TRAINING.tx, jax.random.key(0)), TRAINING.tx
    for _ in range(4):
        # Always anew, so that there is no momentum.
        state = state._replace(opt_state=tx.init(state.variables.params))
        state, _ = train.fit(train.Recipe(model=model, tx=tx, batch=99), state, mlp.data(), 1, learning_rate=0.05)
    params, total = in_float64(mlp.variables().params), np.zeros(88)
    for _ in range(4):
        grads = mlp.in_numpy(params, *data())[1]
        total += kernels(params) * kernels(grads)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
    scores = SCALE * np.concatenate([np.asarray(s).ravel() for s in state.variables.params["scores"]])
    wanted = -(SCALE**2) * 0.05 * total
    assert np.max(np.abs(wanted)) > 0.05
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-5)


def test_the_soft_penalty_is_the_slope_of_the_mean_share():
    flags = tuple(jax.tree.leaves(problem().prunable))
    model = movement.scored(mlp.mlp(), flags, "soft", SCALE, 0.4)
    rng = np.random.default_rng(0)
    own = rng.normal(size=88) / SCALE
    scores = [jnp.asarray(c, jnp.float32) for c in (own[:40].reshape(5, 8), own[40:].reshape(8, 6))]
    rest = {"model": {}, "keep": jnp.int32(0), "penalty": jnp.float32(0.7)}

    def logits(weights, scores):
        return model.apply(Variables({"weights": weights, "scores": scores}, rest), mlp.data()["x"])[0]

    @jax.jit
    def both(scores):
        """Logits, and what is left of the scores' gradient where the loss has none."""
        out, back = jax.vjp(lambda s: logits(mlp.variables().params, s), scores)
        return out, back(jnp.zeros_like(out))[0]

    out, left = both(scores)
    # A mask of what is above the threshold.
    mask = 1 / (1 + np.exp(-SCALE * own)) > 0.4
    assert 20 < mask.sum() < 80
    params = mlp.variables().params
    masked = with_kernels(params, np.where(mask, kernels(params), np.float32(0)))
    wanted = evaluation.infer(mlp.mlp(), Variables(masked, {}), mlp.data()["x"])[0]
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)
    alone = np.concatenate([np.asarray(g).ravel() for g in left])

    def penalty(c):
        return 0.7 * np.mean(1 / (1 + np.exp(-SCALE * c)))

    step = 1e-5
    slopes = [(penalty(own + step * e) - penalty(own - step * e)) / (2 * step) for e in np.eye(88)]
    assert min(slopes) > 1e-4
    np.testing.assert_allclose(alone, slopes, rtol=1e-4)


@pytest.fixture
def swaps(monkeypatch):
    calls, swap = [], dynamic._swap

    def watched(problem, settings, run, event, key):
        after = swap(problem, settings, run, event, key)
        calls.append((run, after))
        return after

    monkeypatch.setattr(dynamic, "_swap", watched)
    return calls


def halves(flat):
    return np.split(np.asarray(flat), [40])


def momenta(run):
    """What the optimiser carries for each kernel's entries."""
    inner = jax.tree.leaves(run.state.opt_state.inner_state, is_leaf=lambda x: isinstance(x, dict))
    return [kernels(x) for x in inner if isinstance(x, dict)]


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_exchanges_drop_the_smallest_and_grow_by_rule(grow, swaps):
    settings = dynamic.Settings(grow=grow, steps=10, events=4, drop_fraction=0.5, training=TRAINING)
    dynamic.dynamic(problem(0.5), settings, jax.random.key(0))
    first = best(np.abs(kernels(mlp.variables().params)), 44, ALL)
    assert np.array_equal(kernels(swaps[0][0].kept), first)
    grown_by_gradient, back = [], []
    for event, (before, after) in enumerate(swaps, start=1):
        share = 0.5 / 2 * (1 + math.cos(math.pi * (event - 1) / 4))
        params = before.state.variables.params
        slope = kernels(mlp.in_numpy(in_float64(params), *data())[1])
        parts = (kernels(before.kept), kernels(after.kept), kernels(params), slope)
        for size, was, now, theta, g in zip(SIZES, *map(halves, parts), strict=True):
            some = round(share * was.sum())
            assert was.sum() == now.sum()
            assert 0 < was.sum() < size
            stayed = best(np.abs(theta), was.sum() - some, was)
            # What has just gone is among those that may come.
            assert np.array_equal(now & stayed, stayed)
            came = now & ~stayed
            assert came.sum() == some > 0
            grown_by_gradient.append(np.array_equal(came, best(np.abs(g), some, ~stayed)))
            back.append(np.sum(came & was))
        grown = kernels(after.kept) & ~kernels(before.kept)
        gone = kernels(before.kept) & ~kernels(after.kept)
        weights = kernels(after.state.variables.params)
        assert not weights[grown | gone].any()
        assert np.array_equal(weights[~gone], kernels(params)[~gone])
        (momentum,) = momenta(after)
        assert not momentum[grown | gone].any()
        assert momentum[kernels(before.kept) & kernels(after.kept)].all()
    assert sum(back) > 0
    assert len(grown_by_gradient) == 8
    assert all(grown_by_gradient) == (grow == "gradient")


def test_both_moments_of_pruned_weights_are_forgotten():
    training = dataclasses.replace(TRAINING, optimizer="adamw")
    run = sparse.cut(problem(), sparse.begin(problem(), training, jax.random.key(0)), np.int32(26))
    ones = jax.tree.map(jnp.ones_like, run.state.opt_state)
    after = sparse.forget(training, run._replace(state=run.state._replace(opt_state=ones)))
    first, second = momenta(after)
    assert np.array_equal(first == 1, kernels(run.kept))
    assert np.array_equal(second == 1, kernels(run.kept))
    assert len(set(bits(after.state.opt_state))) > 1
    assert jax.tree.leaves(after.state.opt_state.hyperparams)[0] == 1


def test_what_grows_at_random_may_be_anything_outside():
    settings = dynamic.Settings(grow="random", steps=2, events=2, drop_fraction=0.6, training=TRAINING)
    run = sparse.begin(problem(0.5), TRAINING, jax.random.key(0))
    run = sparse.cut(problem(0.5), run, sparse.host(problem(0.5).keep()))
    theta, was = kernels(run.state.variables.params), kernels(run.kept)
    some = [round(0.6 * half.sum()) for half in halves(was)]
    stayed = [best(np.abs(t), w.sum() - n, w) for t, w, n in zip(halves(theta), halves(was), some, strict=True)]
    outside = ~np.concatenate(stayed)
    often = np.zeros(88)
    for k in range(60):
        after = dynamic._swap(problem(0.5), settings, run, 1, jax.random.key(k))
        often += kernels(after.kept) & outside
    # Of the kept of each leaf 60 % are exchanged: how often an entry outside comes is that over the room.
    for inside, n, size, comes in zip(stayed, halves(often), SIZES, some, strict=True):
        rate = comes / (size - inside.sum())
        assert np.all(n[~inside] > 0)
        assert abs(n[~inside].mean() / 60 - rate) < 1e-9
        assert np.max(np.abs(n[~inside] / 60 - rate)) < 4.5 * math.sqrt(rate * (1 - rate) / 60)
