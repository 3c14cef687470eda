"""Images that are decoded each time they are read, for data sets too large for memory.

A `Lazy` stands where an array of images would: it has a shape and a dtype, and is indexed. Behind it are files or
records; a picture is read, decoded and resized at the moment it is asked for.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mvp_jax.data.loading import decoding

_AT_ONCE = 1024  # pictures handed to the threads together
_LEVELS = np.dtype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lazy:
    """Images `[N, H, W, C]` that are decoded each time they are read; made by `pictures` or `rows`.

    Attributes:
        read: a function that returns picture number `i` as the content of its file, or as pixels `uint8[h, w, C]`.
        indices: `int64[N]`, the numbers of these images among the M pictures that `read` knows.
        image_shape: `(H, W, C)` of an image as it is returned.
        known: `uint8[M, 17]`, the 16 bytes of every picture's digest, and a 1 behind them once they are computed; all
            images taken from the same pictures share it.
        dtype: the dtype of the images, uint8 or that of the last step of `map`.
        channels: 3 for RGB, 1 for grey.
        size: the side of the square that a picture's middle is resized to; `None`: all pictures have one shape.
        whole: instead of `size`, a function that makes the image of a list of one picture at its full size.
        steps: functions of a batch that are applied in turn after decoding; `map` adds one.
        called: a function of a picture's number that returns its name for messages.

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
        """`(N, H, W, C)`."""
        return (len(self.indices), *self.image_shape)

    @property
    def ndim(self) -> int:
        """How many axes the images have together."""
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
        """Decodes the image at an index, `[H, W, C]`, or those at a slice, indices or a mask, `[n, H, W, C]`."""
        numbers = self.indices[which]
        if np.ndim(numbers) == 0:
            return self._one(int(numbers))
        out = np.empty((len(numbers), *self.image_shape), self.dtype)

        def put(row: int) -> None:
            out[row] = self._one(int(numbers[row]))

        each(put, len(numbers))
        return out

    def take(self, which: Any) -> "Lazy":
        """Returns the images at indices, or where a mask is true, without decoding them."""
        return dataclasses.replace(self, indices=self.indices[np.asarray(which)])

    def map(
        self, step: Callable[[np.ndarray], np.ndarray], dtype: Any = None, shape: tuple[int, ...] | None = None
    ) -> "Lazy":
        """Returns these images with one more step that is applied after decoding.

        Args:
            step: makes `[n, *shape]` of a batch `[n, H, W, C]`, where each image depends on its own picture alone.
            dtype: the dtype of its result; `None`: the dtype does not change.
            shape: the shape of one image of its result; `None`: the shape does not change.
        """
        return dataclasses.replace(
            self,
            steps=(*self.steps, step),
            dtype=np.dtype(self.dtype if dtype is None else dtype),
            image_shape=tuple(self.image_shape if shape is None else shape),
        )

    def processed(self, whole: Callable[[list[np.ndarray]], np.ndarray]) -> "Lazy":
        """Returns these images as a checkpoint's processor makes them of the pictures at their full size.

        Args:
            whole: makes `[1, H, W, C]` of a list of one picture `uint8[h, w, C]`, such as an `images.Processor`.

        Raises:
            ValueError: if the images are already mapped.
        """
        if self.steps or self.whole is not None:
            raise ValueError("these images are already normalised or processed; process them as they were read")
        first = whole([self.decode(self.encoded(0))])[0]
        return dataclasses.replace(self, whole=whole, dtype=first.dtype, image_shape=first.shape)

    def finish(self, batch: np.ndarray) -> np.ndarray:
        """Applies all steps of `map` to a batch `[n, H, W, C]` of uint8 images that were decoded elsewhere."""
        return functools.reduce(lambda x, step: step(x), self.steps, batch)

    def encoded(self, i: int) -> bytes:
        """Returns the content of the file of image `i`; where `read` gives pixels, the content of a PNG of them."""
        found = self.read(int(self.indices[i]))
        if isinstance(found, bytes):
            return found
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(found[..., 0] if found.shape[-1] == 1 else found).save(stream, "PNG")
        return stream.getvalue()

    def decode(self, content: bytes) -> np.ndarray:
        """Decodes a file's content to a picture of its full size, `uint8[h, w, channels]`.

        Raises:
            ValueError: if it is no picture, or has more than 8 bits a level.
        """
        return decoding.decode(content, self.channels)

    def digests(self) -> list[bytes]:
        """Returns N digests of the files' contents, or of the pixels where `read` gives these; nothing is decoded.

        Each digest is computed once.

        Raises:
            ValueError: if a file cannot be read.
        """
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
    """Makes lazy images of a function that reads pictures.

    Args:
        read: returns picture `0` to `count - 1` as the content of its file, or as pixels `uint8[h, w, C]`; it is called
            by several threads.
        count: how many pictures there are.
        size: the side of the images: the shorter side of a picture is resized to it, and the middle square cut out;
            `None`: all pictures have the shape of the first.
        channels: 3 for RGB, 1 for grey.
        called: a function of a picture's number that returns its name for messages.
        known: `uint8[count, 17]`, digests that were computed before, as `Lazy.known`; `None`: none were.

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
        read=read,
        indices=np.arange(count),
        channels=channels,
        size=size,
        called=called,
        known=unknown(count) if known is None else known,
        image_shape=(size or 1, size or 1, channels),
    )
    if size is not None:
        return found
    try:
        first = read(0)
        shape = (decoding.decode(first, channels) if isinstance(first, bytes) else channelled(first, channels)).shape
    except (ValueError, OSError) as error:
        raise ValueError(f"{called(0)}: {error}") from error
    return dataclasses.replace(found, image_shape=shape)


def rows(x: np.ndarray) -> Lazy:
    """Makes lazy images of an array, such as one that is mapped from a file.

    Args:
        x: images `[N, H, W, C]`, uint8 or float32.
    """
    return Lazy(
        read=x.__getitem__,
        indices=np.arange(len(x)),
        dtype=x.dtype,
        image_shape=x.shape[1:],
        channels=x.shape[-1],
        known=unknown(len(x)),
    )


def unknown(count: int) -> np.ndarray:
    """Returns a table for `Lazy.known` in which no digest is computed yet: `uint8[count, 17]` of zeros."""
    return np.zeros((count, 17), np.uint8)


def digest(content: "bytes | np.ndarray") -> bytes:
    """Returns 16 bytes that stand for a file's content, or for the exact pixels of an image (BLAKE2b)."""
    whole = content if isinstance(content, bytes) else content.tobytes()
    return hashlib.blake2b(whole, digest_size=16).digest()


def channelled(x: np.ndarray, channels: int) -> np.ndarray:
    """Gives a picture the wanted number of channels: grey is repeated, colours become their brightness.

    Args:
        x: `uint8[h, w, C]` or `uint8[h, w]`, with 1 or 3 channels.
        channels: 1 or 3.

    Returns:
        `uint8[h, w, channels]`.

    Raises:
        ValueError: for other dtypes or numbers of channels.

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
    """Cuts out the middle square of a picture and resizes it by Pillow's bilinear filter, which averages areas.

    Args:
        picture: `uint8[h, w, C]`.
        size: the side of the result in pixels; `None`: the picture is returned as it is.

    Returns:
        `uint8[size, size, C]`.

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
    """Calls `put` with every number from 0 to `count - 1`, in several threads; raises what a call raises."""
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
