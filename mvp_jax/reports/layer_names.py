"""Names of layers for people: `layers/0/attention/query/kernel` is "layer 1, attention query".

Numbers count from 1, as people count, and the word `kernel` is left out, as it is what one means by a layer's weights.
A part of a path that no family of this package has stays as it is, so that any model's paths can be given.
"""

import re

_CONTAINERS = {"layers": "layer", "stages": "stage", "blocks": "block"}

_WHOLE = {
    "head": "output layer",
    "head_distilled": "output layer of the distillation token",
    "norm": "last normalisation",
    "norm_in": "first normalisation",
    "word": "word embedding",
    "embed/word": "word embedding",
    "position": "position embedding",
    "embed/position": "position embedding",
    "embed/type": "segment embedding",
    "embed/norm": "embedding, normalisation",
    "patch": "patch embedding",
    "cls": "class token",
    "distill": "distillation token",
    "transform": "transformation before the output layer",
}
"""Whole paths, without the array's own name."""

_PARTS = {"fc1": "MLP in", "fc2": "MLP out", "conv": "convolution", "norm": "normalisation"}
_UNDER = ("attention", "shortcut")
"""What joins with the part after it by a space: "attention query", "shortcut convolution"."""


def readable(path: str) -> str:
    """Returns a layer's name in words.

    Args:
        path: the path of an array among the parameters, of a layer, or the name of a group of units.

    >>> readable("layers/0/attention/query/kernel")
    'layer 1, attention query'
    >>> readable("layers/11/fc1/kernel"), readable("layers/11/fc2/bias")
    ('layer 12, MLP in', 'layer 12, MLP out, bias')
    >>> readable("stages/0/blocks/0/conv1/kernel"), readable("stages/2")
    ('stage 1, block 1, convolution 1', 'stage 3')
    >>> readable("stages/1/blocks/0/shortcut/conv/kernel"), readable("stem/conv/kernel")
    ('stage 2, block 1, shortcut convolution', 'stem, convolution')
    >>> readable("head/kernel"), readable("encoder/wi_0/kernel")
    ('output layer', 'encoder, wi_0')
    """
    place, colon, kind = path.partition(":")
    parts = place.split("/")
    if len(parts) > 1 and parts[-1] == "kernel":
        parts.pop()
    words: list[str] = []
    for end in (len(parts), len(parts) - 1):  # with the name of the array, such as `bias`, and without
        if _WHOLE.get("/".join(parts[:end])):
            words = [_WHOLE["/".join(parts[:end])], *parts[end:]]
            break
    if not words:
        words = _in_words(parts)
    spaced = re.sub(r"(\d+)$", r" \1", kind.replace("_", " "))
    return ", ".join(words) + (f" ({spaced})" if colon else "")


def _in_words(parts: list[str]) -> list[str]:
    words: list[str] = []
    joins = False
    for k, part in enumerate(parts):
        numbered = re.fullmatch(r"(conv|norm)(\d+)", part)
        container = re.fullmatch(r"(layers|stages|blocks)_(\d+)", part)
        if k and part.isdecimal() and parts[k - 1] in _CONTAINERS:
            words[-1] = f"{_CONTAINERS[parts[k - 1]]} {int(part) + 1}"
            joins = False
            continue
        if container:
            word = f"{_CONTAINERS[container[1]]} {int(container[2]) + 1}"
        elif numbered:
            word = f"{_PARTS[numbered[1]]} {numbered[2]}"
        else:
            word = _PARTS.get(part, part)
        if joins:
            words[-1] += f" {word}"
        else:
            words.append(word)
        joins = part in _UNDER
    return words


__all__ = ["readable"]
