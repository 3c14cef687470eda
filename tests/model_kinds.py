"""Small instances of every kind of model, with weights that hide nothing: random norms, biases and statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.models import bert, clip, resnet, vit

_BASIC = resnet.ResNetConfig(
    stem_width=5,
    stage_widths=(5, 7),
    inner_widths=(((4,), (6,)), ((5,),)),
    strides=(1, 2),
    projections=(False, True),
    stem="large",
    image_size=12,
    channels=2,
    classes=3,
)
_BOTTLENECK = resnet.ResNetConfig(
    stem_width=5,
    stage_widths=(8,),
    inner_widths=(((3, 4), (5, 3)),),
    strides=(2,),
    projections=(True,),
    image_size=6,
    channels=2,
    classes=3,
)

_DISTILLER = resnet.ResNetConfig(
    stem_width=6,
    stage_widths=(4, 5),
    inner_widths=(((3,), (4,)), ((4,),)),
    strides=(1, 2),
    projections=(True, True),
    relu="stage",
    pool=2,
    image_size=8,
    channels=2,
    classes=3,
)
_LAYER = vit.micro(layers=1, dim=12, heads=3, mlp=10, classes=3, pool="mean")

KINDS = {
    "option_a": resnet.resnet8(width=4, image_size=8, channels=2, classes=3),
    "distiller": _DISTILLER,
    "basic": _BASIC,
    "bottleneck": _BOTTLENECK,
    "vit_cls": vit.micro(layers=2, dim=12, heads=3, mlp=10, classes=3),
    "vit_mean": _LAYER,
    "deit": vit.micro(layers=1, dim=8, heads=2, mlp=6, classes=3, distilled=True, one_head=True),
    "bert": bert.micro(16, positions=7, layers=2, dim=12, heads=3, mlp=10, classes=3),
    "roberta": bert.roberta(8, heads=2, layers=1, mlp=6, vocab=16, positions=7, classes=3),
    "distilbert": bert.distilbert(8, heads=2, layers=1, mlp=6, vocab=16, positions=7, classes=3),
    "clip_vision": clip.micro_vision(layers=2, dim=12, heads=3, mlp=10, classes=3, projection=5),
    "clip_text": clip.micro_text(16, positions=7, layers=2, dim=12, heads=3, mlp=10, classes=3, projection=5),
}


@functools.cache
def made(kind: str) -> tuple[models.Model, Variables]:
    """The model and its variables."""
    model = models.build(KINDS[kind])
    return model, randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)


def randomise(like: Variables, seed: int) -> Variables:
    """Values as a trained network might have them, none of them an initial one."""
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf: jax.Array) -> jax.Array:
        name = path.split("/")[-1]
        if name in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        elif name == "kernel":
            values = rng.normal(0.0, (2.0 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
        else:
            values = rng.normal(0.0, 0.3, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    return jax.tree.map(draw, trees.paths(like), like)


def batch(model: models.Model, n: int = 4, seed: int = 1) -> jax.Array:
    """Random images, or texts: `[CLS]`, two segments, padding after some."""
    rng = np.random.default_rng(seed)
    if model.input_dtype != jnp.int32:
        return jnp.asarray(rng.normal(size=(n, *model.input_shape)), jnp.float32)
    c = model.config
    if isinstance(c, clip.ClipTextConfig):
        # What follows the end is not padding, but must not count either.
        x = rng.integers(c.eos + 1, c.vocab, (n, *model.input_shape), np.int32)
        x[::2, -1], x[1::4, -3], x[3::4, -2] = c.eos, c.eos, c.eos
        return jnp.asarray(x)
    end = 2 if c.separator is None else c.separator
    x = rng.integers(end + 1, c.vocab, (n, *model.input_shape), np.int32)
    x[:, 0], x[:, 3], x[::2, -1], x[1::4, -2:], x[3::4, -1] = c.pad == 0, end, end, (end, c.pad), c.pad
    return jnp.asarray(x)


def random_units(model: models.Model, seed: int, share: float = 0.5) -> dict[str, jax.Array]:
    """About `share` of every group kept, at least one unit and not all; the counts do not depend on the seed."""
    rng = np.random.default_rng(seed)
    return {
        g.name: jnp.asarray(rng.permutation(g.size) < min(max(1, round(share * g.size)), max(1, g.size - 1)))
        for g in model.groups
    }
