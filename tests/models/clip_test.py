"""CLIP: the forward pass of both towers by plain NumPy, what follows a text's end, zero-shot heads."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, models
from mvp_jax.core import masks, trees, units
from mvp_jax.core.types import Variables
from mvp_jax.models import api, clip, functions
from mvp_jax.models.hooks import Noise
from tests import declared
from tests.model_kinds import batch, made, random_units

TOWERS = pytest.mark.parametrize("kind", ["clip_vision", "clip_text"])


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def layers_of_one(p, config, x, causal):
    """All layers on the tokens `[T, D]` of one example."""
    for n in range(len(config.heads)):
        layer = p["layers"][str(n)]
        a, y = layer["attention"], norm(x, layer["norm1"])
        mixed = np.tile(a["out"]["bias"], (len(x), 1))
        for head in range(config.heads[n]):
            q, k, v = (y @ a[m]["kernel"][:, head] + a[m]["bias"][head] for m in ("query", "key", "value"))
            for t in range(len(x)):
                upto = t + 1 if causal else len(x)
                scores = np.array([math.exp(float(q[t] @ k[s]) * config.attention_scale) for s in range(upto)])
                mixed[t] += (scores / scores.sum()) @ v[:upto] @ a["out"]["kernel"][head]
        x = x + mixed
        h = norm(x, layer["norm2"]) @ layer["fc1"]["kernel"] + layer["fc1"]["bias"]
        h = h / (1 + np.exp(-1.702 * h))
        x = x + h @ layer["fc2"]["kernel"] + layer["fc2"]["bias"]
    return x


def one_image(p, config, image):
    side, size = config.image_size // config.patch, config.patch
    tokens = [p["cls"]]
    for i in range(side):
        for j in range(side):
            cell = image[i * size : (i + 1) * size, j * size : (j + 1) * size]
            tokens.append(np.einsum("abc,abcd->d", cell, p["patch"]["kernel"]))
    x = norm(np.stack(tokens) + p["position"], p["norm_in"])
    return layers_of_one(p, config, x, causal=False)[0]


def one_text(p, config, ids):
    """What follows the end is left off, so that there is nothing to mask."""
    ids = [int(i) for i in ids]
    ids = ids[: ids.index(max(ids) if config.eos is None else config.eos) + 1]
    x = np.stack([p["word"][i] + p["position"][t] for t, i in enumerate(ids)])
    return layers_of_one(p, config, x, causal=True)[-1]


def by_numpy(config, variables, x):
    """Features and logits."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    one = one_text if isinstance(config, clip.ClipTextConfig) else one_image
    read = norm(np.stack([one(p, config, row) for row in np.asarray(x)]), p["norm"]) @ p["projection"]["kernel"]
    features = read / np.linalg.norm(read, axis=1, keepdims=True)
    return features, features @ p["head"]["kernel"] + p["head"]["bias"]


@TOWERS
def test_forward_by_numpy(kind):
    model, variables = made(kind)
    x = batch(model)
    features, logits = by_numpy(model.config, variables, x)
    seen = model.inspect(variables, x)
    assert np.ptp(features, axis=0).min() > 1e-2
    np.testing.assert_allclose(seen.features, features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.logits, logits, rtol=1e-4, atol=1e-5)


def test_the_highest_id_ends_a_text_of_old_checkpoints():
    model, variables = made("clip_text")
    old = models.build(dataclasses.replace(model.config, eos=None))
    x = jnp.asarray([[1, 5, 9, 15, 3, 15], [1, 15, 4, 4, 4, 4], [3, 4, 9, 2, 7, 15]])
    features, _ = by_numpy(old.config, variables, x)
    np.testing.assert_allclose(old.inspect(variables, x).features, features, rtol=1e-4, atol=1e-5)
    # The last text has both; they are not the same.
    other = model.inspect(variables, x[2:]).features
    assert np.abs(other - features[2:]).max() > 1e-2


def test_nothing_after_the_end_counts():
    model, variables = made("clip_text")
    x = jnp.asarray([[1, 5, 9, 2, 7, 8, 9], [1, 2, 11, 12, 2, 13, 0]])
    changed = jnp.asarray([[1, 5, 9, 2, 2, 0, 15], [1, 2, 4, 3, 0, 9, 2]])
    kept, other = model.inspect(variables, x), model.inspect(variables, changed)
    np.testing.assert_allclose(kept.features, other.features, rtol=1e-5, atol=1e-6)
    for name, a in kept.activations.items():
        assert float(a.max()) > 0
        np.testing.assert_allclose(a, other.activations[name], rtol=1e-4, atol=1e-6, err_msg=name)
    short = model.inspect(variables, x[:1, :4])
    np.testing.assert_allclose(kept.features[:1], short.features, rtol=1e-5, atol=1e-6)
    assert np.abs(model.inspect(variables, x.at[0, 1].set(6)).features - kept.features)[0].max() > 1e-2
    # A text without an end is read at its first token; an id that has no word gives nan.
    no_end = model.inspect(variables, jnp.asarray([[1, 5, 9], [1, 2, 9], [1, 16, 2]])).features
    np.testing.assert_allclose(no_end[0], model.inspect(variables, jnp.asarray([[1, 7]])).features[0], rtol=1e-5)
    assert bool(jnp.isnan(no_end[2]).all())


@TOWERS
def test_groups_are_the_declared_ones(kind):
    model, _ = made(kind)
    by_hand = declared.vit(model.config)
    assert len(by_hand) == 8
    for found, expected in zip(model.groups, by_hand, strict=True):
        assert (found.name, found.size, found.kind) == (expected.name, expected.size, expected.kind)
        assert frozenset(found.slots) == frozenset(expected.slots)


def masked(model, variables, kept):
    return Variables(masks.apply(variables.params, units.expand(kept, model.groups, variables.params)), variables.rest)


@TOWERS
@pytest.mark.parametrize("seed", [3, 4])
def test_masked_equals_slim(kind, seed):
    model, variables = made(kind)
    x, kept = batch(model), random_units(model, seed)
    slim_model, slim = compact.rebuild(model, variables, kept)
    expected = model.apply(masked(model, variables, kept), x)[0]
    np.testing.assert_allclose(slim_model.apply(slim, x)[0], expected, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(expected - model.apply(variables, x)[0]).max()) > 1e-2
    assert slim_model.config.attention_scale == model.config.attention_scale == 0.5
    assert slim_model.config.heads == (2, 2)


def test_zero_shot_head_by_loops():
    text, t = made("clip_text")
    vision, v = made("clip_vision")
    prompts = np.random.default_rng(0).integers(3, 16, (4, 3, 6))
    prompts[:, :, -1] = 2
    prompts[1, :, -2] = 2
    columns = []
    for templates in prompts:
        mean = np.mean([by_numpy(text.config, t, p[None])[0][0] for p in templates], axis=0)
        columns.append(math.exp(1.2) * mean / math.sqrt(sum(e * e for e in mean)))
    expected = np.stack(columns, axis=1)
    kernel = clip.zero_shot_head(text, t, prompts, 1.2)
    assert np.ptp(expected, axis=1).min() > 1e-2
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-5)
    # As a head like any other: logits are scaled cosines of images and classes.
    model = vision.with_classes(4)
    x = batch(model)
    logits = model.apply(api.replace_head(v, model, kernel), x)[0]
    np.testing.assert_allclose(logits, by_numpy(vision.config, v, x)[0] @ expected, rtol=1e-4, atol=1e-5)
    # One template each: what both towers say of each other.
    alone = clip.zero_shot_head(text, t, prompts[:, :1], 1.2)
    between = clip.similarity(vision, v, text, t, x, prompts[:, 0], 1.2)
    np.testing.assert_allclose(between, vision.inspect(v, x).features @ alone, rtol=1e-4, atol=1e-5)
    assert np.ptp(np.asarray(between)) > 0.1


def test_a_frozen_head_stays():
    vision, variables = made("clip_vision")
    model, x = functions.freeze(vision, "head"), batch(vision)
    grads = jax.grad(lambda p: jnp.sum(model.apply(Variables(p, {}), x)[0] ** 2))(variables.params)
    for path, g in trees.flatten(grads).items():
        assert bool((g == 0).all()) == path.startswith("head/"), path
    assert model.config == vision.config
    assert model.resize({"layers/0/fc1": 3}).config.mlp == (3, 10)


def test_wrong_prompts_and_pairs_are_refused():
    text, t = made("clip_text")
    vision, v = made("clip_vision")
    prompts = jnp.ones((2, 3, 4), jnp.int32)
    with pytest.raises(ValueError, match="text tower, got ClipVisionConfig"):
        clip.zero_shot_head(vision, v, prompts, 0.0)
    for wrong in (prompts[0], prompts[:0], prompts[:, :0]):
        with pytest.raises(ValueError, match="classes, templates, tokens"):
            clip.zero_shot_head(text, t, wrong, 0.0)
    with pytest.raises(ValueError, match="takes token ids"):
        clip.zero_shot_head(text, t, prompts * 1.0, 0.0)
    other = models.build(dataclasses.replace(text.config, projection=6))
    with pytest.raises(ValueError, match="widths 5 and 6"):
        clip.similarity(vision, v, other, t, batch(vision), prompts[0], 0.0)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (clip.micro_vision, {"image_size": 9, "patch": 2}, "do not tile"),
        (clip.micro_vision, {"channels": 0}, "at least 1"),
        (clip.micro_vision, {"dim": 10, "heads": 4}, "do not divide"),
        (clip.micro_vision, {"activation": "gelu_10"}, "unknown activation='gelu_10'"),
        (clip.micro_vision, {"compute": "float16"}, "choose float32 or bfloat16"),
        (clip.micro_text, {"eos": 2048}, "0 to 2047"),
        (clip.micro_text, {"positions": 0}, "at least 1"),
        (clip.micro_text, {"projection": 0}, "at least 1"),
        (clip.micro_text, {"mlp": 0}, "at least 1"),
        (clip.micro_text, {"qk_dim": (3,)}, "one entry per layer"),
    ],
)
def test_bad_configurations_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("vision", "text", "count"),
    [("b32", "b", 151_277_313), ("b16", "b", 149_620_737), ("l14", "l", 427_616_513)],
)
def test_sizes_are_the_published_ones(vision, text, count):
    total = 1  # the scale of a pair's logits
    for name in (f"clip_vision_{vision}", f"clip_text_{text}"):
        config = models.PRESETS[name](classes=1)
        module = jax.eval_shape(lambda c=config: api._split(clip._module(c, Noise()))[1].params)
        total += sum(a.size for path, a in trees.flatten(module).items() if not path.startswith("head/"))
    assert total == count
