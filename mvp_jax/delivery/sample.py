"""A small checkpoint that is made on the spot, for a first try and for tests where no other is at hand."""

import collections
import dataclasses
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import models, pretrained, train
from mvp_jax.core.types import Batch
from mvp_jax.data.checkpoint_inputs import images, tokens
from mvp_jax.data.datasets.labelled import LabelledData
from mvp_jax.delivery import inputs
from mvp_jax.models import bert
from mvp_jax.models.api import Model
from mvp_jax.pretrained import export
from mvp_jax.storage import files, leftovers, records

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STEPS = 150
"""How many steps the checkpoint is trained for."""

_WORDS = 1500
_LENGTH = 32


def sample_checkpoint(
    folder: str | os.PathLike[str], data: LabelledData, *, steps: int = STEPS, seed: int = 0
) -> pathlib.Path:
    """Writes a small checkpoint as `transformers` keeps it, trained on the first half of the data's classes.

    For pictures it is a vision transformer with its processor, for texts a BERT whose vocabulary are the training
    texts' words. Only the training part of the data is looked at. A folder that is there already is left as it is.

    Args:
        folder: the folder.
        data: the data that the checkpoint is to be pruned for, of at least four classes.
        steps: the number of training steps.
        seed: of weights and batches.

    Returns:
        The folder.

    Raises:
        ValueError: for data of fewer than four classes, or texts if `tokenizers` is not installed.
    """
    folder = files.path(folder)
    if files.complete(folder, "config.json"):
        return folder
    half = len(data.class_names) // 2
    if half < 2:
        raise ValueError(f"{data.name} has {len(data.class_names)} classes; a sample checkpoint needs at least 4")
    files.writable(folder.parent)
    leftovers.sweep(folder.parent)
    hidden = leftovers.hidden(folder.parent)
    try:
        room = hidden / "sample"
        room.mkdir()
        extra = _vocabulary(data) if data.kind == "texts" else _processor(data)
        for name, content in extra.items():
            (room / name).write_text(content)
        model, x = (_of_texts if data.kind == "texts" else _of_pictures)(room, data, half)
        seen = np.flatnonzero(data.train.y < half)
        batch = {"x": jnp.asarray(x[seen]), "y": jnp.asarray(data.train.y[seen])}
        variables = _learned(model, batch, steps, seed)
        export.checkpoint(folder, model, variables, source=room, labels=data.class_names[:half], x=batch["x"][:4])
    finally:
        files.remove(hidden)
    if steps:
        records.say(f"made a small checkpoint in {folder}: {type(model.config).__name__}, trained on {half} classes")
    return folder


def _learned(model: Model, batch: Batch, steps: int, seed: int) -> pretrained.loading.Variables:
    keys = jax.random.split(jax.random.key(seed))
    tx = train.optimizer("adamw", weight_decay=0.01, clip=1.0, decayed="kernels")
    recipe = train.Recipe(model=model, tx=tx, batch=64, decay="cosine", warmup=steps // 10)
    state = train.create(model.init(keys[0]), tx, keys[1])
    if not steps:
        return state.variables
    return train.fit(recipe, state, batch, steps, learning_rate=3e-3)[0].variables


def _of_pictures(room: pathlib.Path, data: LabelledData, classes: int) -> tuple[Model, np.ndarray]:
    side = int(np.shape(data.train.x[0])[0])
    process = dataclasses.replace(images.processor(room), convert=True)
    patch = next(p for p in (4, 2, 1) if side % p == 0 and side // p >= 4)
    model = models.create("vit_micro", image_size=side, patch=patch, channels=3, classes=classes)
    return model, process(inputs.pixels(data.train.x, 0, len(data.train.y)))


def _processor(data: LabelledData) -> dict[str, str]:
    side = int(np.shape(data.train.x[0])[0])
    described = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return {"preprocessor_config.json": json.dumps(described, indent=1)}


def _of_texts(room: pathlib.Path, data: LabelledData, classes: int) -> tuple[Model, np.ndarray]:
    reader = tokens.tokenizer(room)
    model = models.build(
        bert.micro(len(reader.vocab), positions=_LENGTH, classes=classes, separator=reader.separator, dropout=0.1)
    )
    return model, reader.encode(list(data.train.x), data.train.pairs, length=_LENGTH)  # type: ignore[arg-type]


def _vocabulary(data: LabelledData) -> dict[str, str]:
    texts = [*data.train.x, *(data.train.pairs or ())]
    counts = collections.Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", str(text).lower()))
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return {
        "vocab.txt": "\n".join((*_SPECIAL, *words[:_WORDS])) + "\n",
        "tokenizer_config.json": json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}),
    }
