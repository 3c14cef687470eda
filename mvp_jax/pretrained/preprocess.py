"""Data sets made into what a checkpoint's model reads, by the checkpoint's own processor or tokeniser."""

import dataclasses

import numpy as np

from mvp_jax.data import sources
from mvp_jax.data.checkpoint_inputs import images, tokens
from mvp_jax.data.datasets import text
from mvp_jax.data.loading import lazy


def process_images(source: sources.Source, processor: images.Processor) -> sources.Source:
    """The source with every image as a checkpoint's processor makes it: resized, cropped and normalised.

    Args:
        source: images as uint8 or as floats in [0, 1], `[N, H, W, C]`. Images that are decoded when they are looked at
            are processed then, from their full size.
        processor: the checkpoint's processor, from `data.checkpoint_inputs.images.processor`.

    Returns:
        A source of normalised float32 images.

    Raises:
        ValueError: if images are floats outside [0, 1], as after `sources.normalise`, or the processor refuses them.
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


def tokenize(source: text.Text, tokenizer: tokens.Tokenizer, length: int) -> sources.Source:
    """The source with its texts as a checkpoint's tokeniser reads them.

    Args:
        source: texts as ids of words, from which the words are put together again; its vocabulary must be large enough
            to hold them all, because unknown words are lost.
        tokenizer: the checkpoint's tokeniser, from `data.checkpoint_inputs.tokens.tokenizer`.
        length: how many tokens each text gets, by padding or cutting.

    Returns:
        A source of token ids, `[N, length]`.
    """

    def made(pair: sources.Arrays) -> sources.Arrays:
        special = set(text.SPECIAL)
        read = [" ".join(w for w in source.words(ids).split() if w not in special) for ids in pair.x]
        return pair._replace(x=tokenizer.encode(read, length=length))

    return sources.Source(
        name=source.name,
        train=made(source.train),
        test=None if source.test is None else made(source.test),
        class_names=source.class_names,
    )
