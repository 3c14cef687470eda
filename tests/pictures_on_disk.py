"""Small pictures for tests: files, folders of classes, and data sets prepared by tensorflow-datasets."""

import io

import numpy as np
from PIL import Image


def pixels(count, shape=(8, 8, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def encoded(x, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x).save(stream, kind, **options)
    return stream.getvalue()


def classes(root, per_class, shape=(8, 8, 3), seed=0, ending="png"):
    """`root/CLASS/i.png` of random pixels; returns them by class."""
    made = {}
    for k, (name, count) in enumerate(per_class.items()):
        (root / name).mkdir(parents=True)
        made[name] = pixels(count, shape, seed=[seed, k])
        for i, x in enumerate(made[name]):
            Image.fromarray(x).save(root / name / f"{i:03d}.{ending}")
    return made
