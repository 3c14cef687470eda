"""Augmentations: each image is one of those that the definition allows, at every strength, compiled or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st

from mvp_jax.data import augment

N, H, W, C = 64, 6, 5, 2


def images(seed=0, n=N):
    return np.random.default_rng(seed).uniform(0.1, 1, (n, H, W, C)).astype(np.float32)


FNS = {
    "crop": functools.partial(augment.crop, padding=2),
    "flip": augment.flip,
    "shift": functools.partial(augment.shift, amount=1.5),
    "cutout": functools.partial(augment.cutout, size=3),
    "noise": functools.partial(augment.noise, scale=0.1),
    "brightness": functools.partial(augment.brightness, amount=0.2),
}
ZERO = {
    "crop": {"padding": 0},
    "flip": {"probability": 0.0},
    "shift": {"amount": 0.0},
    "cutout": {"size": 0},
    "noise": {"scale": 0.0},
    "brightness": {"amount": 0.0},
}


@pytest.mark.parametrize(("mode", "pad"), [("zeros", "constant"), ("edge", "edge"), ("reflect", "reflect")])
def test_crops_are_windows_of_the_padded_image(mode, pad):
    x, p = images(), 2
    out = np.asarray(augment.crop(jax.random.key(1), x, p, mode))
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), mode=pad)
    windows = {(i, j): padded[:, i : i + H, j : j + W] for i in range(2 * p + 1) for j in range(2 * p + 1)}
    hit = np.array([[np.array_equal(out[n], w[n]) for w in windows.values()] for n in range(N)])
    assert (hit.sum(1) == 1).all()
    grid = hit.any(0).reshape(2 * p + 1, 2 * p + 1)
    assert grid.any(0).all()  # every move occurs, both ends included
    assert grid.any(1).all()
    assert not np.array_equal(out, x)


def test_flips_are_mirrored_or_not():
    x = images()
    out = np.asarray(augment.flip(jax.random.key(0), x, 0.25))
    turned = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(out, x, strict=True)])
    kept = np.array([np.array_equal(a, b) for a, b in zip(out, x, strict=True)])
    assert (turned ^ kept).all()
    assert 4 <= turned.sum() <= 30
    np.testing.assert_array_equal(augment.flip(jax.random.key(0), x, 1.0), x[:, :, ::-1])


def test_shift_interpolates_as_scipy_does():
    x, key, amount = images(n=8), jax.random.key(3), 1.7
    out = np.asarray(augment.shift(key, x, amount))
    moves = np.asarray(jax.random.uniform(key, (2, 8), minval=-1.0)) * amount
    assert np.abs(moves).max() > 1
    assert (moves < 0).any()
    for n in range(8):
        want = scipy.ndimage.shift(x[n], (-moves[0, n], -moves[1, n], 0), order=1, mode="nearest")
        np.testing.assert_allclose(out[n], want, atol=1e-5)


def test_cutout_is_one_square():
    x, side = images(), 3
    hole = np.asarray(augment.cutout(jax.random.key(0), x, side)) == 0
    assert (hole.all(-1) == hole.any(-1)).all()
    whole = 0
    for h in hole[..., 0]:
        rows, cols = np.flatnonzero(h.any(1)), np.flatnonzero(h.any(0))
        assert h[np.ix_(rows, cols)].all()
        assert 2 <= len(rows) <= side  # its middle lies inside the image
        assert 2 <= len(cols) <= side
        assert (np.diff(rows) == 1).all()
        assert (np.diff(cols) == 1).all()
        whole += len(rows) == len(cols) == side
    assert whole > N // 4
    np.testing.assert_array_equal(np.asarray(augment.cutout(jax.random.key(0), x, side))[~hole], x[~hole])


def test_noise_and_brightness_have_the_asked_size():
    x = images()
    added = np.asarray(augment.noise(jax.random.key(0), x, 0.3)) - x
    assert abs(added.std() - 0.3) < 0.02
    assert abs(added.mean()) < 0.02
    factor = np.asarray(augment.brightness(jax.random.key(0), x, 0.4)) / x
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1, :1, :1], factor.shape), rtol=1e-5)
    assert 0.6 <= factor.min() < 0.7
    assert 1.3 < factor.max() <= 1.4


@pytest.mark.parametrize("name", ZERO)
def test_strength_zero_changes_nothing(name):
    x = images()
    np.testing.assert_array_equal(getattr(augment, name)(jax.random.key(0), x, **ZERO[name]), x)


@pytest.mark.parametrize("name", FNS)
def test_eager_jit_vmap_and_scan_agree(name):
    x, keys = jnp.asarray(images(n=6)).reshape(3, 2, H, W, C), jax.random.split(jax.random.key(5), 3)
    fn = FNS[name]
    eager = jnp.stack([fn(k, v) for k, v in zip(keys, x, strict=True)])
    assert float(jnp.abs(eager - x).max()) > 0
    assert eager.dtype == x.dtype

    @jax.jit
    def compiled(keys, x):
        return fn(keys[0], x[0]), jax.vmap(fn)(keys, x), jax.lax.scan(lambda c, kv: (c, fn(*kv)), 0, (keys, x))[1]

    alone, mapped, scanned = compiled(keys, x)
    np.testing.assert_allclose(alone, eager[0], atol=1e-6)
    np.testing.assert_allclose(mapped, eager, atol=1e-6)
    np.testing.assert_allclose(scanned, eager, atol=1e-6)


@pytest.mark.parametrize("name", ZERO)
def test_strengths_are_traced(name):
    (argument,) = ZERO[name]
    calls = []

    @jax.jit
    def run(key, x, strength):
        calls.append(name)
        return getattr(augment, name)(key, x, **{argument: strength})

    x = jnp.asarray(images(n=4))
    outs = [run(jax.random.key(0), x, s) for s in (0.0, 0.5, 1.0, 2.0)]
    assert len(calls) == 1
    np.testing.assert_array_equal(outs[0], x)
    assert float(jnp.abs(outs[-1] - x).max()) > 0
    each = jax.vmap(functools.partial(run, jax.random.key(0), x))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(each[1], outs[2], atol=1e-6)


@pytest.mark.parametrize("name", FNS)
def test_half_precision_stays(name):
    x = jnp.asarray(images(n=2), jnp.bfloat16)
    assert FNS[name](jax.random.key(0), x).dtype == jnp.bfloat16


@given(seed=st.integers(0, 2**32 - 1), padding=st.integers(0, 20), mode=st.sampled_from(["zeros", "edge", "reflect"]))
def test_crops_hold_only_pixels_of_their_image(seed, padding, mode):
    x = images(seed, n=3)
    out = np.asarray(augment.crop(jax.random.key(seed), x, padding, mode))
    for a, b in zip(out, x, strict=True):
        assert set(a.ravel().tolist()) <= set(b.ravel().tolist()) | ({0.0} if mode == "zeros" else set())


def test_apply_gives_each_its_own_key():
    x, key = images(n=4), jax.random.key(9)
    fns = [FNS["brightness"], FNS["crop"], FNS["brightness"]]
    want = x
    for i, fn in enumerate(fns):
        want = fn(jax.random.fold_in(key, i), want)
    np.testing.assert_array_equal(augment.apply(key, x, fns), want)
    np.testing.assert_array_equal(augment.apply(key, x, []), x)
    two = np.asarray(augment.apply(key, x, [FNS["brightness"], FNS["brightness"]])) / x
    one = np.asarray(augment.apply(key, x, [FNS["brightness"]])) / x
    assert np.abs(two - one**2).max() > 0.01


def test_normalise_matches_numpy():
    x = np.random.default_rng(0).integers(0, 256, (3, H, W, 3), np.uint8)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])
    np.testing.assert_allclose(augment.normalise(x, mean, std), (x / 255 - mean) / std, atol=1e-5)
    floats = (x / 255).astype(np.float32)
    np.testing.assert_allclose(augment.normalise(floats, mean, std), (floats - mean) / std, atol=1e-5)
    assert augment.normalise(x, 0, 1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, x: augment.crop(k, x, -1), "padding is -1; expected a number of at least 0"),
        (lambda k, x: augment.crop(k, x, 1, "wrap"), "unknown mode 'wrap'"),
        (lambda k, x: augment.flip(k, x, 1.5), "at least 0 and at most 1"),
        (lambda k, x: augment.noise(k, x, float("nan")), "scale is nan"),
        (lambda k, x: augment.shift(k, x[0]), r"expected floats \[N, H, W, C\]"),
        (lambda k, x: augment.cutout(k, x.astype(jnp.uint8)), "`augment.normalise` makes them"),
        (lambda k, x: augment.apply(k, x[0], [augment.flip]), "expected floats"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0), jnp.asarray(images(n=2)))
