"""Pictures of anybody's, decoded by Pillow: only formats of pixels, none that is a program, and none too large.

Pillow opens a file by its content, whatever it is called, and some of its formats run another program (PostScript runs
Ghostscript), so the formats that are opened are listed here.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mvp_jax.storage import foreign_files

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "WEBP", "TIFF")
"""The formats that are opened, by Pillow's names."""

MOST_PIXELS = 89_478_485
"""The most pixels of a picture: where Pillow begins to warn of bombs, a quarter of a gigabyte in colours."""


def decode(content: bytes, channels: int = 3, *, upright: bool = False) -> np.ndarray:
    """Decodes a picture, `uint8[h, w, channels]`; what is transparent is put over white.

    Args:
        content: a file's content, in one of `FORMATS`.
        channels: 3 for RGB, 1 for grey.
        upright: whether the picture is turned as the EXIF orientation of the file says.

    Raises:
        ValueError: if it is no picture, has more than `MOST_PIXELS`, or more than 8 bits a level.

    >>> decode(b"no picture")
    Traceback (most recent call last):
    ValueError: is not a picture that can be read (damaged or cut short?): cannot identify image file ...
    """
    from PIL import ImageOps

    with opened(io.BytesIO(content)) as found:
        _check_levels(found)
        image = ImageOps.exif_transpose(found) if upright else found
        return np.asarray(_mode(image, "RGB" if channels == 3 else "L")).reshape(*image.size[::-1], channels)


def check_head(path: "str | os.PathLike[str]") -> None:
    """Reads the head of a picture's file, which is fast and finds what is no picture, but not what is cut short.

    Args:
        path: the file.

    Raises:
        ValueError: if it is no picture, has more than `MOST_PIXELS`, or more than 8 bits a level.
    """
    with opened(path) as image:
        _check_levels(image)


@contextlib.contextmanager
def opened(source: "str | os.PathLike[str] | io.BytesIO") -> "Iterator[PIL.Image.Image]":
    """A context that gives a picture of which only the head was read.

    Args:
        source: the file, or its content.

    Raises:
        ValueError: if it is no picture, or has more than `MOST_PIXELS`, also when it is decoded within the context.
    """
    from PIL import Image

    try:
        where = source if isinstance(source, io.BytesIO) else foreign_files.plain_file(source)
        with Image.open(where, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are decoded")
            yield image
    except Exception as error:  # what a damaged file makes of decoders has no common type
        if str(error).startswith("has more than 8 bits"):
            raise
        reason = foreign_files.told(error, 300)
        raise ValueError(f"is not a picture that can be read (damaged or cut short?): {reason}") from error


def _check_levels(image: "PIL.Image.Image") -> None:
    # Pillow cuts off what is above 255 of the modes with more bits.
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"has more than 8 bits a level (mode {image.mode}); write it with 8 first")


def _mode(image: "PIL.Image.Image", mode: str) -> "PIL.Image.Image":
    from PIL import Image

    if "A" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)
