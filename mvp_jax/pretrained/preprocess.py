"""Data made into what a checkpoint's model reads, by the checkpoint's own files, and heads made of texts."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mvp_jax import models
from mvp_jax.data import sources
from mvp_jax.data.checkpoint_inputs import images, tokens
from mvp_jax.data.datasets import text
from mvp_jax.data.loading import lazy
from mvp_jax.models.clip import zero_shot_head
from mvp_jax.pretrained import formats, loading, tensor_files
from mvp_jax.pretrained.keys import clip


def model(
    folder: str | os.PathLike[str], classes: int, *, text: bool, options: Mapping[str, Any] | None = None
) -> models.Model:
    """The model of a checkpoint's `config.json`, under a head for so many classes; its weights are not read.

    Args:
        folder: see `formats.files.open`.
        classes: of the head.
        text: which tower of a pair.
        options: other values of fields of its configuration.

    Raises:
        ValueError: if there is no `config.json`, or none that a family here can express.
    """
    source = tensor_files.open(folder)
    if source.described is None:
        raise ValueError(f"{source.name} has no config.json that says what model it is")
    form = formats.of(source.entries, source.described)
    if form in clip.FORMATS:
        form = clip.TEXT if text else clip.VISION
    config = formats.configure(form, source.described)
    unknown = sorted(set(options or {}) - {f.name for f in dataclasses.fields(config)})
    if unknown:
        raise ValueError(f"{form.name} has no {unknown}; its fields are {[f.name for f in dataclasses.fields(config)]}")
    return models.build(dataclasses.replace(config, **(options or {}))).with_classes(classes)


def pictures(source: sources.Source, processor: images.Processor) -> sources.Source:
    """The source with every image as a checkpoint's processor makes it.

    Args:
        source: uint8 images, or floats in [0, 1]. Those that are decoded when they are looked at are processed then,
            from their full size.
        processor: see `data.images.processor`.

    Returns:
        A source of float32 images, already normalised.

    Raises:
        ValueError: if images are floats outside [0, 1], as after `sources.normalise`; or as the processor does.
    """

    def made(pair: sources.Arrays) -> sources.Arrays:
        x = pair.x
        if isinstance(x, lazy.Lazy):
            return pair._replace(x=x.processed(processor))
        if x.dtype != np.uint8:
            if x.min() < 0 or x.max() > 1:
                raise ValueError(
                    f"images of {source.name} lie in [{x.min():.2g}, {x.max():.2g}]; give them before normalisation, "
                    "in [0, 1] or as uint8, since the processor normalises itself"
                )
            x = np.round(x * 255).astype(np.uint8)
        return pair._replace(x=processor(x))

    return dataclasses.replace(
        source, train=made(source.train), test=None if source.test is None else made(source.test)
    )


def words(source: text.Text, tokenizer: tokens.Tokenizer, length: int) -> sources.Source:
    """The source's texts once more, as a checkpoint's tokeniser reads them.

    Args:
        source: its words are put together again; take a vocabulary large enough to hold them all.
        tokenizer: see `data.tokens.tokenizer`.
        length: in tokens.
    """

    def made(pair: sources.Arrays) -> sources.Arrays:
        special = set(text.SPECIAL)
        read = [" ".join(w for w in source.words(ids).split() if w not in special) for ids in pair.x]
        return pair._replace(x=tokenizer.encode(read, length=length))

    return sources.Source(
        name=source.name, train=made(source.train), test=None if source.test is None else made(source.test),
        class_names=source.class_names,
    )  # fmt: skip


def zero_shot(folder: str | os.PathLike[str], names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """The head of a CLIP image tower made of the names of classes.

    Args:
        folder: of a pair of towers, with its tokeniser.
        names: of the classes.
        templates: sentences with `{}` in the place of the name; their embeddings are averaged.

    Returns:
        Kernel `float32[E, classes]`; see `models.clip.zero_shot_head`.

    Raises:
        ValueError: without templates or names, for a template without `{}`, or a folder without text tower.
    """
    wrong = [t for t in templates if "{}" not in t]
    if not templates or not names or wrong:
        raise ValueError(
            f"templates {wrong or list(templates)} for {len(names)} classes; each template holds {{}} where the name "
            "goes, as in 'a photo of a {}.'"
        )
    folder = tensor_files.local(folder)  # the tokeniser's files lie there too
    source = tensor_files.open(folder)
    if source.described is None:
        raise ValueError(f"{source.name} has no config.json that says what towers it holds")
    model = models.build(formats.configure(clip.TEXT, source.described))
    model, variables = loading.load(source, model, classes=1)
    tokenizer = tokens.tokenizer(folder)
    prompts = np.stack([
        tokenizer.encode([t.replace("{}", name) for t in templates], length=model.input_shape[0]) for name in names
    ])  # fmt: skip
    return np.asarray(zero_shot_head(model, variables, jnp.asarray(prompts), clip.logit_scale(source)))
