"""A person's own data, made up: pictures of halves in folders, reviews in a table; and a brief training on them."""

import csv

import numpy as np
from PIL import Image

from mvp_jax.data.datasets.labelled import LabelledData, LabelledPart
from mvp_jax.delivery.tuning import DeliveryTraining

CLASSES = ("left", "right", "upper", "lower")
BRIEF = DeliveryTraining(steps=40, batch=16, looks=3, learning_rate=1e-2)


def pictures(root, each=40, sizes=((9, 12), (8, 8), (16, 10))):
    """A folder for each class: which half of the picture is bright; JPEG of several sizes."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(each):
            height, width = sizes[i % len(sizes)]
            x = rng.integers(0, 90, (height, width, 3))
            half = {
                "left": np.s_[:, : width // 2],
                "right": np.s_[:, width // 2 :],
                "upper": np.s_[: height // 2],
                "lower": np.s_[height // 2 :],
            }[name]
            x[half] += 150
            Image.fromarray(x.astype(np.uint8)).save(root / name / f"{i}.jpg", quality=90)
    return root


def squares(count=40):
    """The same, of one size, for the checkpoint that is made on the spot."""
    rng = np.random.default_rng(1)
    y = np.arange(4 * count, dtype=np.int32) % 4
    x = rng.integers(0, 90, (len(y), 8, 8, 3)).astype(np.uint8)
    x[y == 0, :, :4] += 150
    x[y == 1, :, 4:] += 150
    x[y == 2, :4] += 150
    x[y == 3, 4:] += 150
    part = LabelledPart(x=x, y=y)
    return LabelledData(name="squares", kind="pictures", train=part, valid=part, test=part, class_names=CLASSES)


def table(path, rows, header=("text", "label")):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


WORDS = {"good": ("fine", "a joy", "great"), "bad": ("dull", "a mess", "poor")}


def reviews(path, count=60, numbers=False):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        label = ("good", "bad")[i % 2]
        text = f"film {i} is {WORDS[label][rng.integers(3)]}"
        rows.append((text, 0.25 + 4 * (label == "good") if numbers else label))
    return table(path, rows)
