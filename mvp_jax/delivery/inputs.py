"""A checkpoint and a person's data put together: the model, and the data in the form that it reads."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mvp_jax import models, pretrained
from mvp_jax.core.types import Array, Batch, Variables
from mvp_jax.data.checkpoint_inputs import images, tokens
from mvp_jax.data.datasets.labelled import LabelledData, LabelledPart
from mvp_jax.methods.contract import CROSS_ENTROPY
from mvp_jax.models import resnet
from mvp_jax.models.api import Model
from mvp_jax.pretrained import tensor_files
from mvp_jax.storage import json_files
from mvp_jax.train import Loss, metrics

_MOST_BYTES = 8 * 2**30
"""How large the prepared pictures may be in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TaskInputs:
    """A pre-trained model under an output for the task, and the task's examples in the form that it reads.

    Attributes:
        source: the folder or file of the checkpoint, on this machine.
        model: the dense model, with one output for each class, or one for a regression.
        variables: its pre-trained variables.
        trained: whether the checkpoint's own head is for these classes, so that the model answers already.
        train: `{"x": [N, ...], "y": [N]}`, to learn from.
        valid: in the same form, for choices.
        test: in the same form, to report on.
        data: the examples as they were read.
        class_names: the names of the classes, in the order of the outputs; `()`: a regression.
        metrics: the names of the metrics, the one that counts first.
        notes: what was decided, a sentence each.
    """

    source: pathlib.Path
    model: Model
    variables: Variables
    trained: bool
    train: Batch
    valid: Batch
    test: Batch
    data: LabelledData
    class_names: tuple[str, ...]
    metrics: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def loss(self) -> Loss:
        """The loss: cross-entropy of classes, squared error of numbers."""
        return CROSS_ENTROPY if self.class_names else metrics.squared_error

    @property
    def examples(self) -> int:
        """The number of training examples."""
        return int(self.train["y"].shape[0])


def read(
    checkpoint: str | os.PathLike[str],
    data: LabelledData,
    *,
    length: int | None = None,
    size: int | None = None,
    metric: str = "",
) -> TaskInputs:
    """Reads a checkpoint and puts a data set into the form that its model reads.

    Texts pass through the checkpoint's tokeniser, pictures through its processor. The head of the checkpoint stays if
    its labels are the names of the data's classes; otherwise the model gets a new one, of zeros.

    Args:
        checkpoint: a folder as `transformers` or `pretrained.save` writes it, or the id of a checkpoint on the Hugging
            Face hub.
        data: texts or pictures with labels.
        length: how many tokens a text gets; `None`: so many that 99.5 % of the training texts fit, at most as many as
            the model takes.
        size: pixels a side, for a checkpoint without a processor; `None`: as the model says.
        metric: the metric that counts; empty: accuracy, or Pearson's correlation of a regression.

    Returns:
        The model and the data.

    Raises:
        ValueError: for a checkpoint that cannot be read or is of another family than the data, a checkpoint without
            tokeniser or processor, texts or pictures that these refuse, or a metric that does not fit.
    """
    names = _metrics(data, metric)
    data = _with_fewer_to_validate(data)
    # Files are often sorted by class, and heads and batch statistics are fitted to the first examples.
    order_of = np.random.default_rng(0).permutation(len(data.train.y))
    data = dataclasses.replace(data, train=_taken(data.train, order_of))
    folder = tensor_files.local(checkpoint)
    model, variables, trained = _model(folder, data)
    integer = jnp.issubdtype(model.input_dtype, jnp.integer)
    if integer != (data.kind == "texts"):
        takes = "texts" if integer else "pictures"
        raise ValueError(f"{checkpoint} reads {takes}, and {data.name} holds {data.kind}; give data of the other kind")
    if integer:
        made, notes = _texts(folder, model, data, length)
    else:
        model, made, notes = _pictures(folder, model, data, size)
    order = np.arange(max(1, len(data.class_names)))
    if trained and data.class_names:
        order = _order(folder, data.class_names)
    if not trained:
        notes = [
            *notes,
            "the model got a new head for these classes" if data.class_names else "the model got one output",
        ]

    def batch(part: LabelledPart) -> Batch:
        y = np.asarray(part.y, np.float32) if data.regression else order[part.y].astype(np.int32)
        return {"x": made(part), "y": jnp.asarray(y)}

    return TaskInputs(
        source=folder,
        model=model,
        variables=variables,
        trained=trained,
        train=batch(data.train),
        valid=batch(data.valid),
        test=batch(data.test),
        data=data,
        class_names=tuple(np.array(data.class_names, object)[np.argsort(order)]) if data.class_names else (),
        metrics=names,
        notes=tuple(notes),
    )


def _with_fewer_to_validate(data: LabelledData) -> LabelledData:
    """Returns the data with at most a fifth as many validation examples as training examples, or 500.

    They are looked at again and again, so that of many the time for that would outweigh the training's.
    """
    most, count = max(500, len(data.train.y) // 5), len(data.valid.y)
    if count <= most:
        return data
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:most])
    valid = _taken(data.valid, chosen)
    note = (
        f"{most:,} of {count:,} validation examples are used, drawn at random, so that looking at them takes less time"
    )
    return dataclasses.replace(data, valid=valid, notes=(*data.notes, note))


def _taken(part: LabelledPart, chosen: np.ndarray) -> LabelledPart:
    """Returns some examples of a part in another order; pictures that are not decoded yet stay so."""

    def take(values: Any) -> Any:
        if isinstance(values, np.ndarray):
            return values[chosen]
        return values.take(chosen) if hasattr(values, "take") else [values[i] for i in chosen]

    return LabelledPart(x=take(part.x), pairs=None if part.pairs is None else take(part.pairs), y=part.y[chosen])


def _metrics(data: LabelledData, first: str) -> tuple[str, ...]:
    names = ("pearson", "spearman") if data.regression else ("accuracy",)
    if len(data.class_names) == 2:
        names = ("accuracy", "f1")
    metrics.check([first] if first else names, max(1, len(data.class_names)))
    return tuple(dict.fromkeys([*([first] if first else []), *names]))


def _model(folder: pathlib.Path, data: LabelledData) -> tuple[Model, Variables, bool]:
    """Returns the model under a head for the task, and whether that is the checkpoint's own."""
    known = pretrained.class_names(folder) or ()
    if data.regression and _estimates(folder):
        model, variables = pretrained.load(folder)
        if model.num_classes == 1:
            return model, variables, True
    if data.class_names and sorted(known) == sorted(data.class_names):
        # A config may name classes of a head that is not stored.
        with contextlib.suppress(ValueError):
            return *pretrained.load(folder), True
    return *pretrained.load(folder, classes=max(1, len(data.class_names))), False


def _estimates(folder: pathlib.Path) -> bool:
    """Whether a folder's model was trained for a regression."""
    if pretrained.is_saved(folder):
        return bool(pretrained.describe(folder)["extra"].get("problem") == "regression")
    described = json_files.read_json(folder / "config.json", missing={})
    return bool(described.get("problem_type") == "regression")


def _order(folder: pathlib.Path, class_names: Sequence[str]) -> np.ndarray:
    """Returns the number of the output of each class."""
    known = list(pretrained.class_names(folder) or ())
    return np.array([known.index(name) for name in class_names])


def _texts(
    folder: pathlib.Path, model: Model, data: LabelledData, length: int | None
) -> tuple[Callable[[LabelledPart], Array], list[str]]:
    """Returns a function that makes token ids of a part's texts, and what was decided."""
    reader = tokens.tokenizer(folder)
    most = model.input_shape[0]
    if length is not None and not 4 <= length <= most:
        raise ValueError(f"length is {length}; this model takes texts of 4 to {most} tokens")
    # One token more than the model takes shows which texts are too long for it.
    whole = reader.encode(data.train.x, data.train.pairs, length=most + 1)  # type: ignore[arg-type]
    counts = np.sort((whole != reader.pad).sum(-1))
    fitting = int(counts[math.ceil(0.995 * len(counts)) - 1])
    chosen = length or min(most, -(-max(fitting, 8) // 8) * 8)
    cut = int((counts > chosen).sum())
    notes = [f"texts are {chosen} tokens long; {cut:,} of {len(counts):,} training texts are longer and lose their end"]

    def made(part: LabelledPart) -> Array:
        return jnp.asarray(reader.encode(part.x, part.pairs, length=chosen))  # type: ignore[arg-type]

    return made, notes


def _pictures(
    folder: pathlib.Path, model: Model, data: LabelledData, size: int | None
) -> tuple[Model, Callable[[LabelledPart], Array], list[str]]:
    """Returns the model for the size of the pictures, a function that makes its input of them, and what was decided."""
    process, notes = _processor(folder, model, size)
    shape = process(pixels(data.train.x, 0, 1)).shape[1:]
    if isinstance(model.config, resnet.ResNetConfig) and shape[0] == shape[1]:
        # Convolutions have no size of their own; what a checkpoint says nothing of is the size of published ones.
        model = models.build(dataclasses.replace(model.config, image_size=shape[0]))
    count = len(data.train.y) + len(data.valid.y) + len(data.test.y)
    need = 4 * count * math.prod(model.input_shape)
    if need > _MOST_BYTES:
        raise ValueError(
            f"{count} pictures of {model.input_shape} take {need / 2**30:.1f} GiB in memory, more than "
            f"{_MOST_BYTES / 2**30:.0f}; give a `limit` to the number of training examples"
        )

    def made(part: LabelledPart) -> Array:
        found = np.concatenate([process(pixels(part.x, at, 64)) for at in range(0, len(part.y), 64)])
        if found.shape[1:] != model.input_shape:
            raise ValueError(
                f"pictures become {found.shape[1:]}, and the model reads {model.input_shape}; the processor in "
                f"{folder} does not belong to this model, or give a `size`"
            )
        return jnp.asarray(found)

    return model, made, notes


def pixels(pictures: Sequence[Any] | np.ndarray, at: int, count: int) -> list[np.ndarray]:
    """Returns some of a part's pictures as `uint8[H, W, C]`; floats in [0, 1] become 0 to 255.

    Args:
        pictures: the pictures, as `LabelledPart.x` holds them.
        at: the first of them.
        count: how many; fewer at the end.

    Raises:
        ValueError: for floats outside [0, 1].
    """
    found = [np.asarray(pictures[i]) for i in range(at, min(at + count, len(pictures)))]
    if not found or found[0].dtype == np.uint8:
        return found
    low, high = min(float(x.min()) for x in found), max(float(x.max()) for x in found)
    if low < 0 or high > 1:
        raise ValueError(f"pictures lie in [{low:.2g}, {high:.2g}]; give them as uint8, or as floats in [0, 1]")
    return [np.round(x * 255).astype(np.uint8) for x in found]


def _processor(
    folder: pathlib.Path, model: Model, size: int | None
) -> tuple[Callable[[list[np.ndarray]], np.ndarray], list[str]]:
    if any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        process = dataclasses.replace(images.processor(folder), convert=model.input_shape[-1] == 3)
        return (process if process.convert else _grey(process)), []
    side = size or model.input_shape[0]
    if model.input_shape[-1] == 1:
        grey = images.Processor(size=(model.input_shape[0], model.input_shape[1]))
        return _grey(grey), ["the checkpoint has no processor: pictures are grey, in [0, 1]"]
    imagenet = images.Processor(
        size=side, crop=(side, side), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), convert=True
    )
    return imagenet, [
        f"the checkpoint has no processor: pictures are brought to {side} pixels and normalised as for ImageNet"
    ]


def _grey(processor: images.Processor) -> Callable[[list[np.ndarray]], np.ndarray]:
    def process(given: list[np.ndarray]) -> np.ndarray:
        # Pictures are read as RGB; the mean of equal channels is the channel.
        return processor([np.round(x.mean(-1)).astype(np.uint8) for x in given])

    return process
