"""Crops of pictures of many sizes, on the host while they are read: transforms for `streams.stream`."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

Crop: TypeAlias = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""`(uint8[h, w, C], rng) -> uint8[size, size, C]`."""


def resized_crop(
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> Crop:
    """Returns a transform for `streams.stream`: a random box of a picture, resized to a square, mirrored at random.

    The part of the area that a box covers is uniform in `scale`, and the logarithm of its width divided by its height
    is uniform in `ratio`. Where ten boxes in a row would reach over the edge, the largest box of an allowed shape in
    the middle of the picture is taken.

    Args:
        size: the side of the square in pixels.
        scale: least and greatest part of the picture's area, in (0, 1].
        ratio: least and greatest width divided by height.
        flip: the probability with which the square is mirrored left to right.

    Returns:
        A function `(uint8[h, w, C], rng) -> uint8[size, size, C]`; it resizes by Pillow's bilinear filter, which
        averages over what it shrinks.

    Raises:
        ValueError: for numbers out of range; the function itself, for a picture that is not `uint8[h, w, 1 or 3]`.

    >>> resized_crop(4)(np.full((9, 7, 3), 8, np.uint8), np.random.default_rng(0)).sum()
    np.uint64(384)

    Reference: Szegedy et al., arXiv:1409.4842, section 6.
    """
    if size < 1 or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or not 0 <= flip <= 1:
        raise ValueError(
            f"size {size}, scale {scale}, ratio {ratio}, flip {flip}; expected a size of at least 1, "
            "scale in (0, 1] and ratio positive, the lesser first, and flip in [0, 1]"
        )
    from PIL import Image

    def change(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3):
            raise ValueError(
                f"a picture is {picture.dtype}{list(picture.shape)}; expected uint8 [h, w, 3] or [h, w, 1]"
            )
        top, left, height, width = box(rng, picture.shape[0], picture.shape[1], scale, ratio)
        cut = picture[top : top + height, left : left + width]
        image = Image.fromarray(cut[..., 0] if cut.shape[2] == 1 else cut)
        out = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1)
        return out[:, ::-1] if rng.random() < flip else out

    return change


def box(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws a random box of a picture, as `resized_crop` takes it.

    Args:
        rng: the generator that draws.
        height: of the picture in pixels.
        width: of the picture in pixels.
        scale: least and greatest part of the picture's area, in (0, 1].
        ratio: least and greatest width divided by height.

    Returns:
        Top, left, height and width of the box in whole pixels.

    >>> box(np.random.default_rng(0), 10, 100, (1.0, 1.0), (1.0, 1.0))
    (0, 45, 10, 10)
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        shape = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round(float(np.sqrt(area * shape))), round(float(np.sqrt(area / shape)))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w
