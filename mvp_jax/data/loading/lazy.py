"""Images that are decoded when they are looked at, for sets too large for memory.

A `Lazy` stands where an array of images would: it has a shape and a dtype, is indexed, taken from and mapped. What it
holds are files or records; a picture is read, decoded and brought to size in the moment it is asked for.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

_AT_ONCE = 1024  # pictures handed to the threads together
_LEVELS = np.dtype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lazy:
    """Images `[N, H, W, C]` by what gives each of them; made by `pictures` or `rows`.

    Attributes:
        read: gives the picture of a number: a file's content, or `uint8[h, w, C]`.
        indices: `int64[N]`, the numbers of these images in what `read` gives.
        image_shape: `(H, W, C)` of an image as it is handed out.
        known: `uint8[M, 17]`, the digest of every picture that `read` gives, with a 1 behind it once it is computed;
            shared by all that is taken from these images.
        dtype: uint8, or what the last step of `map` gives.
        channels: 3 for RGB, 1 for grey.
        size: the side of the square in which the middle of a picture is handed out; `None`: pictures have one shape.
        whole: makes an image of a list of one picture at its full size, instead of `size`.
        steps: functions of a batch, one after the other.
        called: what messages call the picture of a number.

    >>> x = rows(np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1))
    >>> half = x.take([2, 0]).map(lambda batch: batch / np.float32(2), np.float32)
    >>> x.shape, half.shape, half[0].ravel().tolist()
    ((3, 2, 2, 1), (2, 2, 2, 1), [4.0, 4.5, 5.0, 5.5])
    """

    read: Callable[[int], "bytes | np.ndarray"]
    indices: np.ndarray
    image_shape: tuple[int, ...]
    known: np.ndarray
    dtype: np.dtype = _LEVELS
    channels: int = 3
    size: int | None = None
    whole: Callable[[list[np.ndarray]], np.ndarray] | None = None
    steps: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()
    called: Callable[[int], str] = "picture {}".format

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.indices), *self.image_shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __repr__(self) -> str:
        return f"Lazy({self.dtype}{list(self.shape)})"

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._one(int(number)) for number in self.indices)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def __getitem__(self, which: Any) -> np.ndarray:
        """The images at an index `[H, W, C]`, or at a slice, indices or a mask `[n, H, W, C]`, decoded."""
        numbers = self.indices[which]
        if np.ndim(numbers) == 0:
            return self._one(int(numbers))
        out = np.empty((len(numbers), *self.image_shape), self.dtype)

        def put(row: int) -> None:
            out[row] = self._one(int(numbers[row]))

        each(put, len(numbers))
        return out

    def take(self, which: Any) -> "Lazy":
        """The images at the given indices, or where a mask is true, still not decoded."""
        return dataclasses.replace(self, indices=self.indices[np.asarray(which)])

    def map(
        self, step: Callable[[np.ndarray], np.ndarray], dtype: Any = None, shape: tuple[int, ...] | None = None
    ) -> "Lazy":
        """The images after one more step.

        Args:
            step: makes `[n, *shape]` of a batch `[n, H, W, C]`, image by image.
            dtype: of its result; the same as before without it.
            shape: of an image of its result; the same as before without it.
        """
        return dataclasses.replace(
            self,
            steps=(*self.steps, step),
            dtype=np.dtype(self.dtype if dtype is None else dtype),
            image_shape=tuple(self.image_shape if shape is None else shape),
        )

    def processed(self, whole: Callable[[list[np.ndarray]], np.ndarray]) -> "Lazy":
        """The images as a processor makes them of the pictures at their full size (`data.images.Processor`).

        Args:
            whole: makes `[1, H, W, C]` of a list of one picture `uint8[h, w, C]`.

        Raises:
            ValueError: if the images are already mapped.
        """
        if self.steps or self.whole is not None:
            raise ValueError("these images are already normalised or processed; process them as they were read")
        first = whole([self.decode(self.encoded(0))])[0]
        return dataclasses.replace(self, whole=whole, dtype=first.dtype, image_shape=first.shape)

    def finish(self, batch: np.ndarray) -> np.ndarray:
        """A batch of uint8 images after all steps of `map`: for crops that are made elsewhere."""
        return functools.reduce(lambda x, step: step(x), self.steps, batch)

    def encoded(self, i: int) -> bytes:
        """The content of the file of image `i`; of pixels, that of a PNG."""
        found = self.read(int(self.indices[i]))
        if isinstance(found, bytes):
            return found
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(found[..., 0] if found.shape[-1] == 1 else found).save(stream, "PNG")
        return stream.getvalue()

    def decode(self, content: bytes) -> np.ndarray:
        """A file's picture at its full size, `uint8[h, w, 3]`, or `[h, w, 1]` where images are grey.

        Raises:
            ValueError: if it cannot be read, or has more than 8 bits a level.
        """
        return decode(content, self.channels)

    def digests(self) -> list[bytes]:
        """One digest of each file's content (of pixels: of these), computed once; nothing is decoded."""
        missing = np.unique(self.indices[self.known[self.indices, -1] == 0])

        def put(row: int) -> None:
            number = int(missing[row])
            try:
                self.known[number] = np.frombuffer(digest(self.read(number)) + b"\1", np.uint8)
            except OSError as error:
                raise ValueError(f"{self.called(number)}: {error}") from error

        each(put, len(missing))
        return [row.tobytes() for row in self.known[self.indices, :-1]]

    def _one(self, number: int) -> np.ndarray:
        try:
            found = self.read(number)
            picture = self.decode(found) if isinstance(found, bytes) else channelled(found, self.channels)
            image = fit(picture, self.size) if self.whole is None else self.whole([picture])[0]
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.called(number)}: {error}") from error
        image = self.finish(image[None])[0] if self.steps else image
        if image.shape != self.image_shape or image.dtype != self.dtype:
            raise ValueError(
                f"{self.called(number)} is {image.dtype}{list(image.shape)}, expected {self.dtype}"
                f"{list(self.image_shape)} like the others; give a size, to which all are brought"
            )
        return image


def pictures(
    read: Callable[[int], "bytes | np.ndarray"],
    count: int,
    *,
    size: int | None = None,
    channels: int = 3,
    called: Callable[[int], str] = "picture {}".format,
    known: np.ndarray | None = None,
) -> Lazy:
    """Images by a function that reads them.

    Args:
        read: gives the content of the file of picture `0` to `count - 1`, or its pixels `uint8[h, w, C]`; is called by
            several threads.
        count: how many there are.
        size: the shorter side of a picture is brought to it, and the middle square handed out; without it all
            pictures have the shape of the first.
        channels: 3 for RGB, 1 for grey.
        called: what messages call a picture.
        known: `uint8[count, 17]`, digests computed before; see `Lazy`.

    Returns:
        The images, of which at most the first has been decoded.

    Raises:
        ValueError: without pictures, for a size below 1, or if the first picture is needed and cannot be read.

    >>> pictures(lambda i: np.full((4, 6, 3), i, np.uint8), 5, size=2)[[4, 1]][:, 0, 0].tolist()
    [[4, 4, 4], [1, 1, 1]]
    """
    if count < 1 or (size is not None and size < 1) or channels not in (1, 3):
        raise ValueError(f"{count} pictures, size={size}, channels={channels}; give at least one, a size >= 1, 1 or 3")
    found = Lazy(
        read=read, indices=np.arange(count), channels=channels, size=size, called=called,
        known=unknown(count) if known is None else known, image_shape=(size or 1, size or 1, channels),
    )  # fmt: skip
    if size is not None:
        return found
    try:
        first = read(0)
        shape = (decode(first, channels) if isinstance(first, bytes) else channelled(first, channels)).shape
    except (ValueError, OSError) as error:
        raise ValueError(f"{called(0)}: {error}") from error
    return dataclasses.replace(found, image_shape=shape)


def rows(x: np.ndarray) -> Lazy:
    """An array's images, as one of a file that is mapped into memory.

    Args:
        x: `[N, H, W, C]`, uint8 or float32.
    """
    return Lazy(
        read=x.__getitem__, indices=np.arange(len(x)), dtype=x.dtype, image_shape=x.shape[1:], channels=x.shape[-1],
        known=unknown(len(x)),
    )  # fmt: skip


def unknown(count: int) -> np.ndarray:
    """No digest computed yet: `uint8[count, 17]` of zeros."""
    return np.zeros((count, 17), np.uint8)


def digest(content: "bytes | np.ndarray") -> bytes:
    """16 bytes that stand for a file's content, or for an image's exact pixels."""
    whole = content if isinstance(content, bytes) else content.tobytes()
    return hashlib.blake2b(whole, digest_size=16).digest()


def decode(content: bytes, channels: int = 3) -> np.ndarray:
    """A file's picture, `uint8[h, w, channels]`; what is transparent is put over white.

    >>> decode(b"no picture")
    Traceback (most recent call last):
    ValueError: is not a picture that can be read (damaged or cut short?): cannot identify image file ...
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(_mode(image, "RGB" if channels == 3 else "L")).reshape(*image.size[::-1], channels)
    except (OSError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"is not a picture that can be read (damaged or cut short?): {error}") from error


def _mode(image: "PIL.Image.Image", mode: str) -> "PIL.Image.Image":
    from PIL import Image

    # Pillow cuts off what is above 255 of the modes with more bits.
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"has more than 8 bits a level (mode {image.mode}); write it with 8 first")
    if "A" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def channelled(x: np.ndarray, channels: int) -> np.ndarray:
    """A picture with as many channels: grey ones are repeated, colours become their brightness.

    Args:
        x: `uint8[h, w, C]` or `[h, w]`.
        channels: 1 or 3.

    >>> channelled(np.full((1, 1, 1), 7, np.uint8), 3).tolist()
    [[[7, 7, 7]]]
    """
    x = x[..., None] if x.ndim == 2 else x
    if x.shape[-1] == channels:
        return x
    if x.dtype != np.uint8 or x.shape[-1] not in (1, 3) or channels not in (1, 3):
        raise ValueError(f"is {x.dtype}{list(x.shape)}; expected uint8 with 1 or 3 channels")
    if channels == 3:
        return np.repeat(x, 3, axis=-1)
    from PIL import Image

    return np.asarray(Image.fromarray(x).convert("L"))[..., None]


def fit(picture: np.ndarray, size: int | None) -> np.ndarray:
    """The middle square of a picture, resized (bilinear, over the area that a pixel stands for).

    Args:
        picture: `uint8[h, w, C]`.
        size: the side; `None` gives the picture as it is.

    >>> fit(np.zeros((5, 9, 3), np.uint8), 4).shape
    (4, 4, 3)
    """
    height, width, channels = picture.shape
    if size is None or (height, width) == (size, size):
        return picture
    from PIL import Image

    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    small = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.asarray(small).reshape(size, size, channels)


def each(put: Callable[[int], None], count: int) -> None:
    """Calls a function for 0 to `count - 1`, by several threads."""
    if count < 4:
        for row in range(count):
            put(row)
        return
    pool = _pool(os.getpid())
    for start in range(0, count, _AT_ONCE):
        for _ in pool.map(put, range(start, min(start + _AT_ONCE, count))):
            pass


@functools.lru_cache
def _pool(process: int) -> concurrent.futures.ThreadPoolExecutor:
    """The threads of a process; one that was forked has none of its parent's."""
    return concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1), "pictures")
