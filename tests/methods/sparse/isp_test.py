"""Instant Soup Pruning on given members: against the published loop as PyTorch computed it, and against NumPy."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core import patterns
from mvp_jax.core.types import Variables
from mvp_jax.methods import contract, sparse, weak_members
from mvp_jax.methods.sparse import api, isp
from mvp_jax.models import functions
from tests import mlp
from tests.golden import make_isp

WEIGHTS = patterns.Weights()
PUBLISHED = isp.Settings.published()
RULES = ("mean", "union", "intersection", "majority")
STILL = sparse.SparsityTraining(steps=0, batch=99)
MAIN, (STRAYED,) = make_isp.draw(2, 900, 1)
ALIVE, ALL = np.ones(5, bool), np.ones(make_isp.SIZE, bool)


class Spy:
    """Takes the place of checkpoints and keeps what every round leaves."""

    def __init__(self):
        self.runs = []

    def latest(self):
        return None

    def save(self, step, run):
        assert step == len(self.runs) + 1
        self.runs.append(run)


def drive(monkeypatch, problem, settings, given, index=None):
    """`isp.isp` whose main weights stay, and whose forks give these members: `(params [K, ...], alive [K])`.

    Returns the result, the runs after each round, the forks, and the main training `(steps, last)`.
    """
    given, calls, spy, trained = iter(given), [], Spy(), []

    def advance(problem, training, run, steps, *, last=False):
        trained.append((steps, last))
        return sparse.spend(run, steps, steps * training.batch)

    def fork(problem, training, run, key, settings, *, inherit=True):
        params, alive = next(given)
        calls.append((run, {**vars(settings), "inherit": inherit}))
        variables = Variables(jax.tree.map(jnp.asarray, params), {})
        states = run.state._replace(variables=variables, alive=jnp.asarray(alive))
        own = jnp.zeros((len(alive), 1), jnp.int32) if index is None else index
        return weak_members.WeakMembers(states, own, {}, contract.Spent(0, 0, 0))

    monkeypatch.setattr(api, "fork", fork)
    monkeypatch.setattr(api, "advance", advance)
    return isp.isp(problem, settings, jax.random.key(0), saved=spy), spy.runs, calls, trained


def flat(tree):
    """The prunable leaves `[*lead, ...]` as one `[*lead, SIZE]`."""
    leaves = [np.asarray(tree[name]) for name in make_isp.SHAPES]
    return np.concatenate([x.reshape(*x.shape[:-2], -1) for x in leaves], axis=-1)


def best(scores, keep, within, ties=None):
    """The `keep` highest scores, one by one."""
    order = sorted(np.flatnonzero(within), key=lambda i: (-scores[i], 0 if ties is None else -ties[i], i))
    mask = np.zeros(len(scores), bool)
    mask[order[:keep]] = True
    return mask


def voted(scores, kept, keep, floor, rule):
    """The mask that members elect, whether a vote went past the floor, and the ballots; in plain loops."""
    ballots = np.stack([best(s, keep, kept) for s in scores])
    support, mean = ballots.sum(0), np.mean(scores, axis=0, dtype=np.float64)
    if rule == "mean":
        return best(support, keep, kept, mean), False, ballots
    need = {"union": 1, "intersection": len(scores), "majority": len(scores) / 2}[rule]
    chosen = support >= need
    if chosen.sum() >= floor:
        return chosen, False, ballots
    return best(support, floor, kept, mean), True, ballots


@functools.cache
def chain():
    """Three kernels to prune, and a bias that stays."""

    def apply(variables, x, **_):
        p = variables.params
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"] + p["bias"], variables.rest

    return functions.from_apply(apply, input_shape=(10,), num_classes=5, prunable=("[abc]",))


BIAS = np.array([0.5, -0.25, 0.125, 1.0, -1.0], np.float32)


def tree(weights):
    """Parameters of given kernels `[*lead, SIZE]`; members' biases are further off, member by member."""
    lead = weights.shape[:-1]
    own = np.arange(int(np.prod(lead)), dtype=np.float32).reshape(*lead, 1) + 1 if lead else np.float32(0)
    return make_isp.split(weights) | {"bias": np.asarray(BIAS + own, np.float32)}


def problem(main, sparsity, n=30):
    data = mlp.data(n, classes=5, shape=(10,))
    return sparse.SparsityProblem(
        model=chain(), variables=Variables(tree(main), {}), train=data | {"x": data["x"] / 8}, sparsity=sparsity
    )


def ours(main, members, sparsity, rule="union", landing=PUBLISHED.landing, round_sparsity=PUBLISHED.round_sparsity):
    """The masks `bool[rounds, SIZE]` by `superpose` and the counts that `isp` uses."""
    own = problem(main, sparsity)
    kept, target, history = own.whole(), own.keep(), []
    for given in members:
        have = sparse.remaining(kept, WEIGHTS.scope)
        landed = have - target <= landing * make_isp.SIZE
        if landed:
            kept = WEIGHTS.select(sparse.magnitudes(own, own.variables.params), np.int32(target), kept)
        else:
            scores = {n: jnp.abs(w) for n, w in make_isp.split(given).items()} | {"bias": jnp.zeros(len(given))}
            keep = max(sparse.fewer(have, round_sparsity), target)
            kept, _ = isp.superpose(
                scores, kept, np.int32(keep), np.int32(target), jnp.ones(len(given)), pattern=WEIGHTS, rule=rule
            )
        history.append(flat(kept))
        if landed:
            break
    return np.stack(history)


@functools.cache
def golden(name):
    """Main weights, members, target and PyTorch's masks."""
    seed, spread, sparsity = make_isp.CASES[name]
    with np.load(make_isp.PATH) as file:
        masks = np.unpackbits(file[name], axis=1, count=make_isp.SIZE).astype(bool)
        drawn = int(file[f"{name}_drawn"])
    main, members = make_isp.draw(seed, spread, 40)
    assert make_isp.checksum(main, members) == drawn, "NumPy draws other numbers; run tests.golden.make_isp"
    return main, members, sparsity, masks


@pytest.mark.parametrize("name", make_isp.CASES)
def test_the_votes_are_the_published_loop_bit_for_bit(name):
    main, members, sparsity, masks = golden(name)
    assert zlib.crc32(members[0].tobytes()) != zlib.crc32(members[1].tobytes())
    counts = masks.sum(1)
    assert len(masks) > 10
    assert counts[-1] == round((1 - sparsity) * make_isp.SIZE)
    assert np.all(masks[1:] <= masks[:-1])
    # Members disagree: union prunes less than a tenth of what is left, in every round but the landing.
    assert all(0.9 * a + 0.5 < b < a for a, b in itertools.pairwise(counts[:-1]))
    got = ours(main, members, sparsity)
    assert got.shape == masks.shape
    assert np.array_equal(got, masks)


@pytest.mark.parametrize("name", make_isp.CASES)
def test_the_driver_is_the_published_loop_bit_for_bit(name, monkeypatch):
    main, members, sparsity, masks = golden(name)
    given = ((tree(m), ALIVE) for m in members)
    got, runs, calls, _ = drive(monkeypatch, problem(main, sparsity), isp.Settings.published(STILL), given)
    assert len(runs) == len(masks) + 1  # the fine-tuning
    for run, mask in zip(runs, masks, strict=False):
        assert np.array_equal(flat(run.kept), mask)
        assert np.array_equal(flat(run.state.variables.params), np.where(mask, main, 0))
    assert np.array_equal(flat(got.masks), masks[-1])
    assert np.array_equal(flat(got.variables.params), np.where(masks[-1], main, 0))
    assert len(calls) == len(masks) - 1
    for (run, how), before in zip(calls, [np.ones_like(masks[0]), *masks], strict=False):
        assert np.array_equal(flat(run.state.variables.params), np.where(before, main, 0))
        assert (how["count"], how["inherit"], how["diversity"]) == (5, False, PUBLISHED.diversity)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_follows_plain_loops(rule):
    main, members, sparsity, _ = golden("wild")
    kept, target, guarded, history = ALL, 240, 0, []
    for given in members[:6]:
        if kept.sum() > target:
            kept, past, _ = voted(np.abs(given), kept, max(round(0.7 * kept.sum()), target), target, rule)
            guarded += past
            history.append(kept)
    got = ours(main, members[:6], sparsity, rule, landing=0.0, round_sparsity=0.3)
    assert len(history) >= 3
    assert np.array_equal(got[: len(history)], np.stack(history))
    # Two rules would go past the target: there they become the exact choice.
    assert guarded == {"intersection": 1, "majority": 1, "mean": 0, "union": 0}[rule]
    assert (got[-1].sum() == target) == (rule != "union")
    assert not np.array_equal(got[0], best(np.abs(given).mean(0), got[0].sum(), ALL))


# From here on rounds of the driver alone: of 600 entries 40 % go in a round, 90 % in the end.
KEEP, TARGET = 360, 60


def settings(**changes):
    return isp.Settings(**({"round_sparsity": 0.4, "training": STILL} | changes))


def first_round(monkeypatch, settings, weights, alive=ALIVE, index=None):
    """The run after one round of the driver with members of these kernels `[K, SIZE]`."""
    given = itertools.repeat((tree(weights), np.asarray(alive)))
    _, runs, _, _ = drive(monkeypatch, problem(MAIN, 0.9), settings, given, index)
    return runs[0]


@pytest.mark.parametrize(("rule", "soup"), [*((r, "mean") for r in RULES), ("mean", "kept"), ("union", "none")])
@pytest.mark.parametrize("alive", [(1, 1, 1, 1, 1), (1, 0, 1, 1, 0), (0, 0, 0, 0, 0)], ids=str)
def test_soups_are_means_and_who_diverged_has_no_part(rule, soup, alive, monkeypatch):
    alive = np.array(alive, bool)
    # If nobody stayed alive, all count, as they were when they stopped.
    who = np.flatnonzero(alive) if alive.any() else np.arange(5)
    weights = np.where(alive[:, None] | (not alive.any()), STRAYED, np.nan).astype(np.float32)
    run = first_round(monkeypatch, settings(vote=rule, soup=soup), weights, alive)
    counted = weights[who].astype(np.float64)
    chosen, past, ballots = voted(np.abs(counted), ALL, KEEP, TARGET, rule)
    assert not past
    assert TARGET < chosen.sum() < make_isp.SIZE
    assert np.array_equal(flat(run.kept), chosen)
    after = run.state.variables.params
    if soup == "none":
        wanted, bias = MAIN, BIAS
    else:
        wanted, bias = counted.mean(0), tree(weights)["bias"][who].mean(0)
        assert np.min(np.abs(bias - BIAS)) > 0.5
    if soup == "kept":
        wanted = (counted * ballots).sum(0) / np.maximum(ballots.sum(0), 1)
        assert (ballots[:, chosen].sum(0) < len(who)).any()
    np.testing.assert_allclose(flat(after), np.where(chosen, wanted, 0), rtol=1e-6, atol=1e-7)
    assert np.all((flat(after) != 0) == chosen)
    np.testing.assert_allclose(after["bias"], bias, rtol=1e-6)


def gradients(weights, bias, x, y):
    """Of the mean loss by the kernels, as `[SIZE]`; float64, by hand."""
    a, b, c = make_isp.split(weights).values()
    h1 = np.maximum(x @ a, 0)
    h2 = np.maximum(h1 @ b, 0)
    z = h2 @ c + bias
    p = np.exp(z - z.max(1, keepdims=True))
    d = (p / p.sum(1, keepdims=True) - np.eye(5)[y]) / len(y)
    e2 = d @ c.T * (h2 > 0)
    e1 = e2 @ b.T * (h1 > 0)
    return flat({"a": x.T @ e1, "b": h1.T @ e2, "c": h2.T @ d})


def test_rank_taylor_is_numpys_on_each_members_own_examples(monkeypatch):
    data = problem(MAIN, 0.6).train
    x, y = np.asarray(data["x"], np.float64), np.asarray(data["y"])
    index = np.stack([np.random.default_rng(k).permutation(30)[:20] for k in range(5)]).astype(np.int32)
    wide, bias = STRAYED.astype(np.float64), tree(STRAYED)["bias"].astype(np.float64)

    def scores(which):
        return np.square([w * gradients(w, b, x[i], y[i]) for w, b, i in zip(wide, bias, which, strict=True)])

    def mask(scores):
        return voted(scores, ALL, KEEP, TARGET, "mean")[0]

    run = first_round(monkeypatch, settings(rank="taylor", examples=12), STRAYED, index=jnp.asarray(index))
    wanted = scores(index[:, :12])
    assert np.all((wanted > 0).sum(1) > KEEP)
    assert np.array_equal(flat(run.kept), mask(wanted))
    # Other examples, or magnitudes, would have kept others.
    assert not np.array_equal(mask(wanted), mask(scores(index)))
    assert not np.array_equal(mask(wanted), mask(np.abs(wide)))


# Strayed ones are cut off at the ends of their range, where they would not deviate at all.
VARIED = (STRAYED * np.linspace(1, 1.5, 5)[:, None]).astype(np.float32)


def test_rank_stability_is_mean_over_deviation(monkeypatch):
    size = np.abs(VARIED).astype(np.float64)
    run = first_round(monkeypatch, settings(rank="stability"), VARIED)
    wanted = best(size.mean(0) / size.std(0), KEEP, ALL)
    assert np.array_equal(flat(run.kept), wanted)
    assert not np.array_equal(wanted, best(size.mean(0), KEEP, ALL))


def test_who_diverged_does_not_enter_the_stability(monkeypatch):
    alive = np.array([True, False, True, True, True])
    size = np.abs(VARIED).astype(np.float64)[alive]
    run = first_round(monkeypatch, settings(rank="stability"), VARIED, alive)
    assert np.array_equal(flat(run.kept), best(size.mean(0) / size.std(0), KEEP, ALL))


def test_the_score_control_takes_the_highest_means(monkeypatch):
    size = np.abs(STRAYED).astype(np.float64)
    run = first_round(monkeypatch, settings(vote="score"), STRAYED)
    wanted = best(size.mean(0), KEEP, ALL)
    assert np.array_equal(flat(run.kept), wanted)
    assert not np.array_equal(wanted, voted(size, ALL, KEEP, TARGET, "mean")[0])


def test_the_score_control_loses_no_kept_weight_in_the_soup(monkeypatch):
    # Each member has 360 favourites of its own among the first 500; the last 100 come next with all of them.
    favoured = (np.arange(500) + 100 * np.arange(5)[:, None]) % 500 < 360
    weights = np.where(favoured, 1.0, 0.01) * np.linspace(1, 1.1, 500)
    weights = np.concatenate([weights, np.full((5, 100), 0.9)], axis=1).astype(np.float32)
    ballots = voted(weights, ALL, KEEP, TARGET, "mean")[2]
    run = first_round(monkeypatch, settings(vote="score", soup="kept"), weights)
    alone = flat(run.kept) & ~ballots.any(0)
    assert alone.any()
    assert flat(run.state.variables.params)[alone].all()


def test_one_member_is_plain_magnitude(monkeypatch):
    run = first_round(monkeypatch, settings(members=1), STRAYED[:1], [True])
    assert np.array_equal(flat(run.kept), best(np.abs(STRAYED[0]), KEEP, ALL))


def test_members_that_never_agree_prune_nothing_and_the_rounds_are_capped(monkeypatch):
    odd, low = np.arange(5)[:, None] % 2, np.arange(600) < 300
    weights = (np.where(low == odd, 9, 1) * np.linspace(1, 2, 600)).astype(np.float32)
    given = itertools.repeat((tree(weights), ALIVE))
    got, runs, calls, _ = drive(monkeypatch, problem(MAIN, 0.5), settings(vote="union"), given)
    # Exact rounds would be 600, 360, and the landing at 300: ceil(log 0.5 / log 0.6) = 2, three times that is the cap.
    assert len(calls) == 6
    assert [int(flat(r.kept).sum()) for r in runs] == [600] * 6 + [300, 300]
    assert np.array_equal(flat(got.masks), best(np.abs(MAIN), 300, ALL))


@pytest.mark.parametrize(
    ("landing", "counts", "forks"),
    # 600 - 240 = 360; a second cut to 216 would go past 240.
    [(None, [360, 240, 240], 1), (0.0, [360, 240, 240, 240], 2), (0.2, [360, 240, 240], 1), (0.6, [240, 240], 0)],
)
def test_where_it_lands(landing, counts, forks, monkeypatch):
    given = itertools.repeat((tree(STRAYED), ALIVE))
    _, runs, calls, _ = drive(monkeypatch, problem(MAIN, 0.6), settings(landing=landing), given)
    assert [int(flat(r.kept).sum()) for r in runs] == counts
    assert len(calls) == forks
    before = flat(runs[forks - 1].kept) if forks == 1 else ALL
    if forks < 2:
        assert np.array_equal(flat(runs[-1].kept), best(np.abs(MAIN), 240, before))


@pytest.mark.parametrize(("growth", "steps"), [("growing", [3, 6, 9, 12, 15, 18]), ("constant", [3] * 6)])
def test_intervals_of_main_training(growth, steps, monkeypatch):
    # 80 examples by 2 are 40 steps an epoch: 0.075 of it are 3, a tenth 4.
    training = sparse.SparsityTraining(steps=7, learning_rate=0.1, batch=2)
    own = isp.Settings.published(training, growth=growth)
    given = itertools.repeat((tree(np.repeat(MAIN[None], 5, 0)), ALIVE))
    got, runs, calls, taken = drive(monkeypatch, problem(MAIN, 0.5, n=80), own, given)
    # Members agree, so that a tenth goes each time, until what is missing to 300 is less than 5 points.
    assert [int(flat(r.kept).sum()) for r in runs] == [540, 486, 437, 393, 354, 319, 300, 300]
    assert taken == [*((n, False) for n in steps), (7, True)]
    assert all(how["steps"] == 4 for _, how in calls)
    assert got.spent.steps == sum(steps) + 7


def test_published_values():
    s = isp.Settings.published()
    assert (s.members, s.round_sparsity, s.vote, s.growth) == (5, 0.1, "union", "growing")
    assert (s.epochs, s.weak_epochs) == (0.075, 0.1)
    assert (s.inherit, s.landing, s.soup, s.rank) == (False, 0.05, "none", "magnitude")
    assert (s.diversity.subset, s.diversity.learning_rate, s.diversity.law) == (1.0, (0.0, 1.0), "uniform")
    t = s.training
    assert (t.optimizer, t.learning_rate, t.weight_decay, t.batch) == ("adamw", 1e-5, 0.1, 128)
    assert (t.clip, t.warmup) == (1.0, 500)
    assert isp.Settings.published(STILL, vote="mean").vote == "mean"
    assert isp.Settings.published(STILL).training is STILL
