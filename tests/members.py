"""Populations of every kind of model with members that differ in all they can, and the same members one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import models, saliency, train
from mvp_jax.core import masks, prune
from mvp_jax.models import resnet
from mvp_jax.train import population
from tests import text

KINDS = ("resnet", "vit", "text")
EXAMPLES, BATCH, STEPS = 12, 4, 5


def model_of(kind, conv="im2col"):
    if kind == "resnet":
        # One block: everything a residual network with batch norm has, and little to compile.
        config = resnet.ResNetConfig(
            stem_width=3,
            stage_widths=(3,),
            inner_widths=(((4,),),),
            strides=(1,),
            projections=(False,),
            image_size=4,
            channels=1,
            classes=3,
        )
        return models.build(dataclasses.replace(config, conv=conv))
    if kind == "vit":
        return models.create("vit_micro", dim=8, layers=1, heads=2, mlp=8, image_size=4, patch=2, channels=1, classes=3)
    return text.encoder()


def augment(key, x):
    """Noise on images; other words of the same number in sentences."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.where(x > 0, 1 + (x + jax.random.randint(key, x.shape, 0, 3)) % (text.WORDS - 1), 0)
    return x + jax.random.normal(key, x.shape)


def settings(kind, k):
    """Rate, decay, smoothing, augmentation, steps and classes of their own; dropout where there is some."""
    turn = np.arange(k)
    return population.run_settings(
        k,
        learning_rate=0.05 + 0.05 * turn,
        weight_decay=0.01 * turn,
        label_smoothing=0.1 * (turn % 3),
        dropout=None if kind == "resnet" else 0.1 + 0.1 * (turn % 4),
        augment=(turn % 3) / 2,
        steps=STEPS - turn % 3,
        classes=3 - turn % 2,
    )


@functools.cache
def problem(kind, k, conv="im2col"):
    """Model, optimiser, one state to fork, keys, settings, and each member's data."""
    model, tx = model_of(kind, conv), train.optimizer("sgd")
    variables = model.init(jax.random.key(0))
    sparse = masks.ones(variables.params, ())
    kernel = variables.params["head"]["kernel"]
    some = prune.by_leaf(saliency.magnitude({"k": kernel}), {"k": kernel.size // 2})["k"]
    sparse = {**sparse, "head": {**sparse["head"], "kernel": some}}
    one = train.create(variables, tx, jax.random.key(9), masks=sparse)
    key_x, key_y, key = jax.random.split(jax.random.key(1), 3)
    if kind == "text":
        x = text.tokens(key_x, k, EXAMPLES)
    else:
        x = jax.random.normal(key_x, (k, EXAMPLES, *model.input_shape))
    data = {"x": x, "y": jax.random.randint(key_y, (k, EXAMPLES), 0, 2)}
    return model, tx, one, jax.random.split(key, k), settings(kind, k), data


def recipe(model, tx, decay="cosine"):
    return train.Recipe(model=model, tx=tx, batch=BATCH, augment=augment, decay=decay)


@functools.cache
def apart(kind, k, conv="im2col", steps=STEPS):
    """The members trained one by one by `train.fit`, stacked: states and metrics."""
    model, tx, one, keys, own, data = problem(kind, k, conv)
    found = []
    for i in range(k):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], (own, data))
        state = one._replace(key=keys[i], settings=mine[0])
        found.append(train.fit(recipe(model, tx), state, mine[1], steps))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def together(kind, k, conv="im2col", mesh=None, steps=STEPS, **how):
    """The same by `population.fit`, without what fills up the mesh."""
    model, tx, one, keys, own, data = problem(kind, k, conv)
    states = population.create(one, keys, own, mesh=mesh)
    return population.members(population.fit(recipe(model, tx), states, data, steps, mesh=mesh, **how), k)


def distance(a, b):
    """The largest difference between two trees, relative in leaves that are large; random keys as numbers."""
    leaves = [(_numbers(x), _numbers(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return max(float(np.max(np.abs(x - y), initial=0.0) / np.max(np.abs(y), initial=1.0)) for x, y in leaves)


def _numbers(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf, np.float64)


def check(kind, k, conv="im2col", **how):
    """Asserts that the members trained together are those trained apart, and that training did something to each."""
    (states, metrics), (alone, each) = together(kind, k, conv, **how), apart(kind, k, conv)
    assert distance((states.variables, states.opt_state), (alone.variables, alone.opt_state)) < 2e-5
    assert distance(metrics, each) < 2e-5
    steps = np.asarray(states.step)
    np.testing.assert_array_equal(steps, STEPS - np.arange(k) % 3)
    np.testing.assert_array_equal(alone.step, steps)
    one = problem(kind, k, conv)[2]
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(states.variables.params)]
    begun = [np.asarray(leaf) for leaf in jax.tree.leaves(one.variables.params)]
    for i in range(k):  # each moved, and no two alike
        assert max(np.abs(a[i] - b).max() for a, b in zip(kernels, begun, strict=True)) > 1e-2
        assert all(max(np.abs(a[i] - a[j]).max() for a in kernels) > 1e-3 for j in range(i))
    gone = ~np.asarray(one.masks["head"]["kernel"])
    assert gone.sum() >= 4
    assert not np.asarray(states.variables.params["head"]["kernel"])[:, gone].any()
