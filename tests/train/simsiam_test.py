"""SimSiam against NumPy written as loops, and on digits: it does not collapse, and what it learns is of use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import models, train
from mvp_jax.core.types import Variables
from mvp_jax.data import augment, sources, tasks
from mvp_jax.train import evaluation, probe, simsiam

D = 6


def outputs(n=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4 * D)).astype(np.float32)


def by_hand(rows):
    """The loss, one example and one number at a time."""
    found = []
    for row in rows:
        p1, z1, p2, z2 = (row[i * D : (i + 1) * D] for i in range(4))
        total = 0.0
        for p, z in ((p1, z2), (p2, z1)):
            dot = sum(float(a) * float(b) for a, b in zip(p, z, strict=True))
            norms = sum(float(a) ** 2 for a in p) ** 0.5 * sum(float(b) ** 2 for b in z) ** 0.5
            total -= dot / norms / 2
        found.append(total)
    return np.array(found)


def test_the_loss_is_the_mean_of_two_negative_cosines():
    rows = outputs()
    expected = by_hand(rows)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(simsiam.loss(jnp.asarray(rows)), expected, rtol=1e-5)
    # Sizes of vectors do not matter, and a vector of zeros gives 0 and no nan.
    np.testing.assert_allclose(simsiam.loss(jnp.asarray(rows * 100)), expected, rtol=1e-5)
    assert simsiam.loss(jnp.zeros((1, 4 * D))).tolist() == [0.0]
    assert np.isfinite(jax.grad(lambda o: simsiam.loss(o).sum())(jnp.zeros((1, 4 * D)))).all()


def test_the_gradient_passes_predictions_and_stops_at_projections():
    rows = outputs(2)
    got = np.asarray(jax.grad(lambda o: simsiam.loss(o).sum())(jnp.asarray(rows))).reshape(2, 4, D)
    assert (got[:, (1, 3)] == 0).all()
    step = 1e-4
    for n in range(2):
        for part in (0, 2):
            for d in range(D):
                moved = [rows.astype(np.float64).copy() for _ in range(2)]
                for sign, at in zip((1, -1), moved, strict=True):
                    at[n, part * D + d] += sign * step
                slope = (by_hand(moved[0]).sum() - by_hand(moved[1]).sum()) / (2 * step)
                assert got[n, part, d] == pytest.approx(slope, abs=1e-3)
    assert np.abs(got[:, (0, 2)]).max() > 0.01


def test_spread_tells_collapse_from_even_directions():
    rows = outputs(4000)
    z = rows[:, D : 2 * D]
    expected = np.mean([np.std(z[:, d] / np.sqrt((z**2).sum(1))) for d in range(D)])
    assert float(simsiam.spread(jnp.asarray(rows))) == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(D**-0.5, rel=0.02)
    same = np.repeat(rows[:1], 10, axis=0) * np.arange(1, 11)[:, None]  # one direction, many lengths
    assert float(simsiam.spread(jnp.asarray(same))) == pytest.approx(0, abs=1e-6)


def plain(key, x):
    return x, x[:, ::-1]


def small(views=plain, **sizes):
    body = models.create("resnet8", width=4, image_size=8, channels=1, classes=3, conv="im2col")
    return body, simsiam.siamese(body, views, **({"dim": 16, "hidden": 8} | sizes))


def test_two_views_pass_one_after_the_other_and_move_the_statistics_twice():
    body, model = small()
    variables = model.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
    got, rest = model.apply(variables, x, train=True, key=jax.random.key(2))
    assert got.shape == (6, 64)
    own, of_body = simsiam.body(variables), variables.rest["body"]
    features = []
    for view in plain(None, x):
        seen = body.inspect(Variables(own.params, of_body), view, train=True)
        of_body = seen.rest
        features.append(np.asarray(seen.features, np.float64))
    for a, b in zip(jax.tree.leaves(rest["body"]), jax.tree.leaves(of_body), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def norm(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)  # scales are 1 and biases 0 at the start

    weights = jax.tree.map(np.asarray, variables.params)
    g, h = (weights[name]["dense"] for name in ("projector", "predictor"))
    for i, f in enumerate(features):
        for j in range(3):
            f = norm(f @ g[str(j)]["kernel"])
            f = np.maximum(f, 0) if j < 2 else f
        p = np.maximum(norm(f @ h["0"]["kernel"]), 0) @ h["1"]["kernel"] + h["1"]["bias"]
        np.testing.assert_allclose(got[:, 16 * 2 * i : 16 * (2 * i + 1)], p, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(got[:, 16 * (2 * i + 1) : 16 * (2 * i + 2)], f, rtol=1e-3, atol=1e-3)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), rest, variables.rest)
    assert min(jax.tree.leaves(moved)) > 0


def test_in_evaluation_both_views_are_the_image_and_nothing_moves():
    body, model = small(projector_layers=2)
    variables = model.init(jax.random.key(0))
    assert len(variables.params["projector"]["dense"]) == 2
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    out, rest = model.apply(variables, x)
    assert rest is variables.rest
    assert jnp.array_equal(out[:, :32], out[:, 32:])
    assert float(jnp.ptp(out)) > 0
    assert jnp.array_equal(model.inspect(variables, x).features, body.inspect(simsiam.body(variables), x).features)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b, v: m.apply(v, jnp.zeros((2, 8, 8, 1)), train=True), "views are drawn anew in training; pass key"),
        (lambda m, b, v: m.with_classes(3), "take `simsiam.body`"),
        (lambda m, b, v: m.resize({}), "take `simsiam.body`"),
        (lambda m, b, v: m.inspect(v, jnp.zeros((2, 8, 8, 1)), gates={"a": 1}), "a siamese model has none"),
        (lambda m, b, v: simsiam.siamese(b, plain, dim=0), "must be at least 1, got 0"),
        (lambda m, b, v: simsiam.siamese(models.create("bert_micro"), plain), "views are of images"),
        (lambda m, b, v: simsiam.mlp((3,), normed=True), "give those of the input"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    body, model = small()
    with pytest.raises(ValueError, match=message):
        call(model, body, model.init(jax.random.key(0)))


def test_equal_arguments_give_one_model_so_that_programs_are_shared():
    assert small()[1] is small()[1]
    assert small()[1] is not small(hidden=4)[1]


def gently(key, x):
    """Two views: moved by less than a pixel, with noise."""
    keys = jax.random.split(key, 4)
    a, b = (augment.noise(keys[i], augment.shift(keys[i + 1], x, amount=0.8), 0.1) for i in (0, 2))
    return a, b


@pytest.mark.slow
def test_digits_do_not_collapse_and_a_linear_probe_gains():
    """Three seeds at once; five labelled images a class for the probe, 150 others for its judgement."""
    few, many = tasks.split(sources.digits(), seed=0, counts=(5, 150))
    pool = {"x": jnp.asarray(many.x), "y": jnp.asarray(many.y)}
    labelled = {"x": jnp.asarray(few.x), "y": jnp.asarray(few.y)}
    body = models.create("resnet8", width=4, image_size=8, channels=1, conv="im2col")
    model = simsiam.siamese(body, gently, dim=32, hidden=16)
    tx = train.optimizer("sgd", weight_decay=5e-4)
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    @jax.vmap
    def judged(variables):
        own = simsiam.body(variables)
        accuracy = evaluation.evaluate(body, probe.fit_head(body, own, labelled), pool, batch=1500)["accuracy"]
        return accuracy, simsiam.spread(evaluation.infer(model, variables, pool["x"], batch=1500)[0])

    @jax.jit
    @jax.vmap
    def learn(variables, key):
        state = train.create(variables, tx, key)
        recipe = train.Recipe(model=model, tx=tx, batch=64, loss=simsiam.loss, decay="cosine")
        state, metrics = train.fit(recipe, state, pool, 120, learning_rate=0.1)
        return state.variables, metrics["loss"]

    start = jax.vmap(model.init)(keys)
    end, loss = learn(start, keys)
    (before, _), (after, spread) = judged(start), judged(end)
    assert (np.asarray(loss) < -0.25).all()
    assert (np.asarray(spread) > 0.8 * 32**-0.5).all()
    assert float(after.mean()) > float(before.mean()) + 0.03, (before, after)
