"""Augmentations beside Pillow, colorsys, scipy and plain loops; strength 0, tracing, ranges."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance, ImageOps

from mvp_jax.data import augment
from mvp_jax.data.augment import colours, geometry, randaugment

N, H, W = 24, 17, 22


def pictures(seed=0, n=4, height=H, width=W):
    """Smooth pictures with noise, uint8, that use some of the levels only."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 220, (n, 4, 4, 3))
    smooth = scipy.ndimage.zoom(coarse, (1, height / 4, width / 4, 1), order=1)
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 10, 240).astype(np.uint8)


def floats(seed=0, n=N, channels=3):
    return np.random.default_rng(seed).uniform(0, 1, (n, H, W, channels)).astype(np.float32)


def with_pillow(name, image, part, sign):
    """The operation as Pillow has it, at `part` of the full strength."""
    size, fill = image.size, (128, 128, 128)
    factor = 1 + 0.9 * part * sign
    matrices = {
        "shear_x": (1, 0.3 * part * sign, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * part * sign, 1, 0),
        "translate_x": (1, 0, 150 / 331 * size[0] * part * sign, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 150 / 331 * size[1] * part * sign),
    }
    enhancers = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in matrices:
        return image.transform(size, Image.Transform.AFFINE, matrices[name], fillcolor=fill)
    if name in enhancers:
        return enhancers[name](image).enhance(factor)
    if name == "rotate":
        return image.rotate(30 * part * sign, fillcolor=fill)
    if name == "solarize":
        return ImageOps.solarize(image, 256 * (1 - part))
    if name == "posterize":
        return ImageOps.posterize(image, 8 - round(4 * part))
    return {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "identity": lambda i: i}[name](image)


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
@pytest.mark.parametrize(("magnitude", "sign"), [(3.0, 1), (7.0, -1), (10.0, 1)])
def test_operations_are_pillows(name, magnitude, sign):
    x = pictures(height=40, width=52)  # several pixels a level
    op = jnp.full(len(x), randaugment.OPERATIONS.index(name))
    out = np.asarray(randaugment.operate(jnp.asarray(x / np.float32(255)), op, magnitude, sign)) * 255
    want = np.stack([np.asarray(with_pillow(name, Image.fromarray(i), magnitude / 10, sign)) for i in x])
    apart = np.abs(out - want.astype(np.float64))
    assert (name == "identity") == np.array_equal(want, x)
    if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        # The nearest pixel, which rounding may make the next one where two are as near.
        assert (apart.max(-1) > 1e-3).mean() < 0.005
    elif name in ("equalize", "posterize", "solarize", "identity"):
        assert apart.max() < 1e-3
    else:
        assert apart.max() <= 2


@pytest.mark.parametrize("flat", [0, 7, 255])
def test_pictures_without_contrast_stay(flat):
    x = np.full((1, 6, 6, 3), flat, np.uint8)
    for name in ("autocontrast", "equalize", "sharpness", "contrast", "color"):
        op = jnp.array([randaugment.OPERATIONS.index(name)])
        out = np.asarray(randaugment.operate(jnp.asarray(x / np.float32(255)), op, 9.0))
        np.testing.assert_allclose(out * 255, x, atol=0.01)


def test_no_operation_does_anything_at_magnitude_zero():
    x = jnp.asarray(floats(n=14)).at[:, 0, 0].set(1.0)
    np.testing.assert_array_equal(randaugment.operate(x, jnp.arange(14), 0.0), x)
    moved = np.asarray(randaugment.operate(x * 0.8, jnp.arange(14), 10.0) != x * 0.8).any((1, 2, 3))
    assert moved.tolist() == [False] + [True] * 13


def test_rand_augment_draws_every_operation_and_both_signs():
    x = np.tile(pictures(n=1), (400, 1, 1, 1)) / np.float32(255)
    out = np.asarray(augment.rand_augment(jax.random.key(0), x, ops=1, magnitude=9.0))
    signed = [(op, sign) for op in range(14) for sign in (1.0, -1.0)]
    ops, signs = (np.array(v) for v in zip(*signed, strict=True))
    each = np.asarray(randaugment.operate(jnp.tile(x[:1], (28, 1, 1, 1)), ops, 9.0, signs))
    kinds = np.unique(each.round(5), axis=0)
    assert len(kinds) == 14 + 9  # five signless: identity, autocontrast, equalize, solarize, posterize
    which = [int(np.argmin(np.abs(kinds - image).max((1, 2, 3)))) for image in out]
    assert max(np.abs(kinds[k] - image).max() for k, image in zip(which, out, strict=True)) < 1e-4
    assert len(set(which)) == len(kinds)
    two = np.asarray(augment.rand_augment(jax.random.key(0), x, ops=2, magnitude=9.0))
    assert len(np.unique(two.round(4), axis=0)) > 100
    assert two.min() >= 0
    assert two.max() <= 1


def test_a_crop_is_the_resized_box():
    x, key = pictures(n=N), jax.random.key(4)
    out = np.asarray(augment.random_resized_crop(key, x.astype(np.float32)))
    boxes = geometry._boxes(key, x.shape[:3], (0.08, 1.0), (3 / 4, 4 / 3))
    top, left, height, width = (np.asarray(v).astype(int) for v in boxes)
    assert len({*zip(height, width, strict=True)}) > N // 2
    for n in range(N):
        whole = Image.fromarray(x[n]).crop((left[n], top[n], left[n] + width[n], top[n] + height[n]))
        want = np.asarray(whole.resize((W, H), Image.Resampling.BILINEAR)).astype(np.float64)
        assert np.abs(out[n] - want).max() <= 1.01


def test_boxes_have_the_asked_areas_and_shapes():
    height, width = 200, 120
    boxes = geometry._boxes(jax.random.key(0), (4000, height, width), (0.1, 0.4), (0.5, 2.0))
    top, left, h, w = (np.asarray(v) for v in boxes)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    area, shape = h * w / (height * width), w / h
    assert area.min() > 0.09
    assert area.max() < 0.41
    assert abs(area.mean() - 0.25) < 0.015  # a few wide ones do not fit
    assert 0.48 < shape.min() < 0.55
    assert 1.7 < shape.max() < 2.05
    assert abs(np.median(np.log(shape))) < 0.1
    middle = [np.asarray(v) for v in geometry._boxes(jax.random.key(0), (3, 10, 100), (1.0, 1.0), (1.0, 1.0))]
    assert [v.tolist() for v in middle] == [[0] * 3, [45] * 3, [10] * 3, [10] * 3]


def test_hue_turns_as_colorsys_does():
    x = floats(n=2)
    x[0, 0, :4] = [[0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3], [1, 0, 0]]
    for by in (0.1, -0.37, 0.5):
        out = np.asarray(colours.turn_hue(jnp.asarray(x), jnp.float32(by)))
        for own, got in zip(x.reshape(-1, 3)[::7], out.reshape(-1, 3)[::7], strict=True):
            h, s, v = colorsys.rgb_to_hsv(*own.tolist())
            np.testing.assert_allclose(got, colorsys.hsv_to_rgb((h + by) % 1, s, v), atol=1e-5)
        np.testing.assert_allclose(out[0, 0, :3], x[0, 0, :3], atol=1e-6)
    np.testing.assert_array_equal(colours.turn_hue(jnp.asarray(x), jnp.float32(0.0)), x)


def test_jitter_is_one_enhancement_after_the_other():
    """One strength at a time, so that the factor can be read off the result."""
    x = pictures(n=N) / np.float32(255)
    grey = x @ np.array([0.299, 0.587, 0.114])
    base = {
        "brightness": np.zeros_like(x),
        "contrast": np.broadcast_to(grey.mean((1, 2))[:, None, None, None], x.shape),
        "saturation": np.broadcast_to(grey[..., None], x.shape),
    }
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    for name, flat in base.items():
        out = np.asarray(augment.color_jitter(jax.random.key(1), x, **(off | {name: 0.4})))
        inside = (out > 0.001) & (out < 0.999)
        factors = []
        for n in range(N):
            a, b = (x - flat)[n][inside[n]], (out - flat)[n][inside[n]]
            factors.append((a @ b) / (a @ a))
            np.testing.assert_allclose(b, factors[-1] * a, atol=1e-4)
        assert 0.6 <= min(factors) < 0.75
        assert 1.25 < max(factors) <= 1.4001
    turned = np.asarray(augment.color_jitter(jax.random.key(1), x, **(off | {"hue": 0.1})))
    assert np.abs(turned - x).max() > 0.05
    np.testing.assert_allclose(turned.max(-1), x.max(-1), atol=1e-6)  # value and chroma stay
    np.testing.assert_allclose(turned.min(-1), x.min(-1), atol=1e-6)
    some = np.asarray(augment.color_jitter(jax.random.key(1), x, probability=0.5))
    same = (some == x).all((1, 2, 3)).sum()
    assert 4 < same < N - 4


def test_grey_pictures_are_pillows():
    x = pictures(n=N)
    out = np.asarray(augment.random_grayscale(jax.random.key(0), x / np.float32(255), probability=0.5)) * 255
    want = np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in x])[..., None]
    turned = np.abs(out - want).max((1, 2, 3)) <= 1
    kept = np.abs(out - x).max((1, 2, 3)) < 1e-3
    assert (turned ^ kept).all()
    assert 4 < turned.sum() < N - 4


def test_blur_is_scipys():
    x = floats(n=6)
    out = np.asarray(augment.gaussian_blur(jax.random.key(0), x, (1.3, 1.3), probability=1.0))

    def blur(image):
        return scipy.ndimage.gaussian_filter(image, (1.3, 1.3, 0), mode="constant", truncate=12)

    for n in range(6):
        np.testing.assert_allclose(out[n], blur(x[n]) / blur(np.ones_like(x[n])), atol=1e-5)
    half = np.asarray(augment.gaussian_blur(jax.random.key(0), floats(), (0.5, 3.0), probability=0.5))
    kept = (half == floats()).all((1, 2, 3))
    assert 4 < kept.sum() < N - 4
    rough = half[~kept].std((1, 2, 3))
    assert rough.max() > 1.5 * rough.min()  # each has its own width


def test_mixup_is_a_mean_of_two_with_the_same_share_of_labels():
    x, labels = floats(), np.arange(N) % 5
    y = np.eye(5, dtype=np.float32)[labels]
    out, targets = (np.asarray(v) for v in augment.mixup(jax.random.key(0), x, y, alpha=1.0))
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    shares = []
    for n in range(N):
        # The partner and the share that explain the image also explain the target.
        fits = []
        for j in range(N):
            d = (x[n] - x[j]).ravel()
            if j == n or not d @ d:
                continue
            share = float(d @ (out[n] - x[j]).ravel() / (d @ d))
            fits.append((np.abs(share * x[n] + (1 - share) * x[j] - out[n]).max(), share, j))
        error, share, j = min(fits)
        if error < 1e-4:
            np.testing.assert_allclose(targets[n], share * y[n] + (1 - share) * y[j], atol=1e-3)
            shares.append(share)
        else:
            np.testing.assert_allclose(out[n], x[n], atol=1e-5)  # its own partner
    assert len(shares) > N - 6
    assert len(set(np.round(shares, 3))) > N - 8
    assert min(shares) > -1e-3
    assert max(shares) < 1.001


def test_cutmix_takes_a_box_with_its_share_of_labels():
    x, y = floats(), np.eye(N, dtype=np.float32)
    out, targets = (np.asarray(v) for v in augment.cutmix(jax.random.key(3), x, y, alpha=1.0))
    mixed = 0
    for n in range(N):
        taken = (out[n] != x[n]).any(-1)
        share = taken.mean()
        np.testing.assert_allclose(targets[n, n], 1 - share, atol=1e-5)
        if not taken.any():
            continue
        mixed += 1
        rows, columns = np.flatnonzero(taken.any(1)), np.flatnonzero(taken.any(0))
        assert taken[np.ix_(rows, columns)].all()
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        (other,) = np.flatnonzero((targets[n] > 0) & (np.arange(N) != n))
        np.testing.assert_array_equal(out[n][taken], x[other][taken])
        np.testing.assert_allclose(targets[n, other], share, atol=1e-5)
    assert mixed > N // 2


def test_mix_is_one_or_the_other():
    x, y = floats(n=8), np.eye(8, dtype=np.float32)
    kinds = set()
    for seed in range(12):
        key = jax.random.key(seed)
        out, targets = augment.mix(key, x, y, 0.8, 1.0, 0.5)
        _, inner = jax.random.split(key)
        cut, blended = augment.cutmix(inner, x, y, 1.0), augment.mixup(inner, x, y, 0.8)
        is_cut = np.array_equal(out, cut[0])
        assert is_cut != np.array_equal(out, blended[0])
        np.testing.assert_array_equal(targets, (cut if is_cut else blended)[1])
        kinds.add(is_cut)
    assert kinds == {True, False}


def test_views_are_two_in_range_and_other_each_time():
    x = pictures(n=6) / np.float32(255)
    a, b = (np.asarray(v) for v in augment.simsiam_views(jax.random.key(0), x))
    assert a.shape == b.shape == x.shape
    for left, right in ((a, b), (a, x), (b, x)):
        assert (np.abs(left - right).max((1, 2, 3)) > 0.02).all()
    for v in (a, b):
        assert v.min() >= -1e-6
        assert v.max() <= 1 + 1e-6
    again = augment.simsiam_views(jax.random.key(0), x)
    np.testing.assert_array_equal(again[0], a)
    plain, _ = augment.simsiam_views(jax.random.key(0), x[..., :1], jitter=0.0, blur=0.0)
    assert plain.shape == (6, H, W, 1)


def test_normalised_images_are_brought_to_the_unit_range_and_back():
    x, mean, std = floats(n=4), np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.25, 0.3], np.float32)
    fn = functools.partial(augment.rand_augment, magnitude=9.0)
    out = augment.in_unit(fn, mean, std)(jax.random.key(0), jnp.asarray((x - mean) / std))
    want = (np.asarray(fn(jax.random.key(0), jnp.asarray(x))) - mean) / std
    # Equalisation and posterisation have steps, over which rounding may carry a value.
    assert (np.abs(out - want) > 1e-4).mean() < 0.01
    assert np.abs(want - (x - mean) / std).max() > 0.1


ZERO = {
    "random_resized_crop": [("scale", (1.0, 1.0), (0.1, 0.2)), ("ratio", (1.0, 1.0), (0.5, 1.0))],
    "rand_augment": [("magnitude", 0.0, 9.0)],
    "color_jitter": [(n, 0.0, 0.4) for n in ("brightness", "contrast", "saturation", "hue")],
    "random_grayscale": [("probability", 0.0, 1.0)],
    "gaussian_blur": [("sigma", (0.0, 0.0), (1.0, 2.0)), ("probability", 1.0, 1.0)],
    "mixup": [("alpha", 0.0, 1.0)],
    "cutmix": [("alpha", 0.0, 1.0)],
}


@pytest.mark.parametrize("name", ZERO)
def test_strength_zero_changes_nothing_and_strengths_are_traced(name):
    x = jnp.asarray(floats(n=6)[:, :, :H])  # square
    x = x.at[0, 0, 0].set(1.0).at[0, 0, 1].set(0.0)
    more = (jnp.eye(6),) if name in ("mixup", "cutmix") else ()
    calls = []

    @jax.jit
    def run(key, x, strengths):
        calls.append(1)
        out = getattr(augment, name)(key, x, *more, **strengths)
        return out[0] if more else out

    zero, full = ({a: jnp.asarray(v[i]) for a, *v in ZERO[name]} for i in (0, 1))
    if name in ("random_resized_crop", "gaussian_blur"):
        zero, full = ({a: tuple(v) if v.ndim else v for a, v in s.items()} for s in (zero, full))
    key = jax.random.key(2)
    np.testing.assert_array_equal(run(key, x, zero), x)
    moved = run(key, x, full)
    assert len(calls) == 1
    assert float(jnp.abs(moved - x).max()) > 0.02
    np.testing.assert_array_equal(run(key, x, full), moved)
    mapped = jax.vmap(run, (0, 0, None))(jnp.stack([key, key]), jnp.stack([x, x[::-1]]), full)
    np.testing.assert_allclose(mapped[0], moved, atol=1e-5)
    assert jax.eval_shape(run, key, x.astype(jnp.bfloat16), full).dtype == jnp.bfloat16


def test_one_compilation_serves_every_magnitude():
    x = jnp.asarray(floats(n=3))
    augment.rand_augment(jax.random.key(0), x, magnitude=1.0)
    before = randaugment._draw._cache_size()
    for magnitude in (2.0, 5.5, 10.0):
        augment.rand_augment(jax.random.key(1), x, magnitude=magnitude)
    assert randaugment._draw._cache_size() == before > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k, x: augment.rand_augment(k, x, magnitude=11), "magnitude is 11; expected a number of at least 0 and"),
        (lambda k, x: augment.rand_augment(k, x, ops=-1), "ops is -1"),
        (lambda k, x: augment.rand_augment(k, x[..., :2]), "of 1 or 3 colours"),
        (lambda k, x: augment.random_resized_crop(k, x, (0.5, 0.1)), r"scale is \(0.5, 0.1\); expected the least"),
        (lambda k, x: augment.random_resized_crop(k, x, 0.5), "scale is 0.5; expected two numbers"),
        (lambda k, x: augment.random_resized_crop(k, x, (0.0, 1.0)), "scale is 0"),
        (lambda k, x: augment.color_jitter(k, x, hue=0.6), "hue is 0.6; expected a number of at least 0 and at most"),
        (lambda k, x: augment.gaussian_blur(k, x, (-1, 1)), "sigma is -1"),
        (lambda k, x: augment.random_grayscale(k, x, 1.5), "probability is 1.5"),
        (lambda k, x: augment.random_grayscale(k, x.astype(jnp.uint8)), "`augment.normalise` makes them"),
        (lambda k, x: augment.mixup(k, x, jnp.eye(2), -1), "alpha is -1"),
        (lambda k, x: augment.cutmix(k, x, jnp.zeros(2, jnp.int32)), r"targets are int32\[2\]; expected floats \[2, "),
        (lambda k, x: augment.in_unit(augment.flip, 0.5, 0.0), "std is 0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0), jnp.asarray(floats(n=2)))
