"""Examples of a new task in the form that a bank's model reads, for ranking the entries from the command line."""

import dataclasses
import os
import pathlib
import tempfile

import jax.numpy as jnp
import numpy as np

from mvp_jax.bank.manifest import Bank
from mvp_jax.core.types import Batch
from mvp_jax.data import archives
from mvp_jax.data.checkpoint_inputs import images, tokens
from mvp_jax.data.datasets import labelled
from mvp_jax.data.datasets.labelled import LabelledData
from mvp_jax.models.api import Model
from mvp_jax.storage import files


def read(bank: Bank, model: Model, source: str | os.PathLike[str]) -> Batch:
    """Reads the training examples of a task.

    Args:
        bank: an open bank that holds its pre-trained model, with the processor or the tokeniser of that model.
        model: the pre-trained model.
        source: a folder of pictures by class or a table of texts, as `labelled.read` takes it; or an `.npz` archive of
            `x`, examples as the model reads them, and `y`, classes from 0.

    Returns:
        `{"x": [N, ...], "y": int32[N]}`.

    Raises:
        ValueError: for what cannot be read, or examples that do not fit the model.
    """
    path = pathlib.Path(source)
    if path.suffix == ".npz":
        return _arrays(model, path)
    data = labelled.read(path)
    texts = jnp.issubdtype(model.input_dtype, jnp.integer)
    if data.regression or texts != (data.kind == "texts"):
        raise ValueError(
            f"{source} holds {data.kind}{' with numbers to estimate' if data.regression else ''}, and the bank's "
            f"entries tell classes of {'texts' if texts else 'pictures'} apart"
        )
    with tempfile.TemporaryDirectory() as room:
        folder = bank.path / "model"
        if files.is_remote(folder):
            files.download(folder, pathlib.Path(room))
            folder = pathlib.Path(room)
        x = _texts(bank, model, folder, data) if texts else _pictures(model, folder, data)
    return {"x": jnp.asarray(x), "y": jnp.asarray(data.train.y, jnp.int32)}


def _arrays(model: Model, path: pathlib.Path) -> Batch:
    found = archives.read(path, ("x", "y"))
    x, y = found["x"], found["y"]
    if x.shape[1:] != model.input_shape or y.shape != (len(x),) or not len(y) or y.dtype.kind not in "iu":
        raise ValueError(
            f"{path} holds x {x.dtype}{list(x.shape)} and y {y.dtype}{list(y.shape)}; give N examples of the "
            f"shape {list(model.input_shape)} and N whole numbers from 0"
        )
    return {"x": jnp.asarray(x, jnp.int32 if x.dtype.kind in "iu" else jnp.float32), "y": jnp.asarray(y, jnp.int32)}


def _texts(bank: Bank, model: Model, folder: pathlib.Path, data: LabelledData) -> np.ndarray:
    length = bank.about.inputs.get("length") or model.input_shape[0]
    reader = tokens.tokenizer(folder)
    return reader.encode(data.train.x, data.train.pairs, length=length)  # type: ignore[arg-type]


def _pictures(model: Model, folder: pathlib.Path, data: LabelledData) -> np.ndarray:
    colour = model.input_shape[-1] == 3
    process = dataclasses.replace(images.processor(folder), convert=colour)
    pictures = [np.asarray(data.train.x[i]) for i in range(len(data.train.y))]
    if not colour:  # pictures are read as RGB; the mean of equal channels is the channel
        pictures = [np.round(x.mean(-1)).astype(np.uint8) for x in pictures]
    x = process(pictures)
    if x.shape[1:] != model.input_shape:
        raise ValueError(f"pictures become {x.shape[1:]}, and the model reads {model.input_shape}")
    return x
