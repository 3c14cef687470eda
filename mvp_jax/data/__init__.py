"""Where examples come from, how images vary, which classes make a task, how batches are read.

Examples are a `sources.Source`: arrays, or images that are decoded when they are read (`lazy`). They come from data
sets known by name (`catalog`, `prepared`), from `folders`, from `text`, `glyphs` and `glue`, or from several of these
(`joined`).
A person's own tables and pictures are read by `labelled`, with all checks and in three parts.
`tasks` and `groups` choose classes. `augment` changes images on the device; its `cropping` cuts pictures on the host.
What does not fit on a device is read by `streams` (`prefetch` for anything iterable). A checkpoint's input is made of
texts by `tokens` (kept by `encoded`, padded to few lengths by `buckets`), of pictures by `images`.
"""

from mvp_jax.data import augment, groups, sources, tasks
from mvp_jax.data.augment import cropping
from mvp_jax.data.checkpoint_inputs import buckets, encoded, images, tokens
from mvp_jax.data.datasets import catalog, folders, glue, glyphs, joined, labelled, prepared, text
from mvp_jax.data.loading import lazy, prefetch, streams

__all__ = [
    "augment",
    "buckets",
    "catalog",
    "cropping",
    "encoded",
    "folders",
    "glue",
    "glyphs",
    "groups",
    "images",
    "joined",
    "labelled",
    "lazy",
    "prefetch",
    "prepared",
    "sources",
    "streams",
    "tasks",
    "text",
    "tokens",
]
