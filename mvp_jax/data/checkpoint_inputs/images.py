"""Pictures as a checkpoint saw them when it was trained: resized, cropped and normalised as its own file says.

Everything here is Pillow and NumPy on the host, in the order and with the rounding of the processors of transformers
that work on Pillow.
"""

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mvp_jax.storage import foreign_files, json_files

if TYPE_CHECKING:
    import PIL.Image

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""The names of the resizing filters whose codes 0 to 5 Pillow and checkpoints use."""

_HUGE = 1e30  # float32 holds it, and what it is multiplied by
_MOST = 100_000_000  # pixels of a resized picture; a strip one pixel wide would become far larger
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processor:
    """Makes the input of a model from pictures: colours, size, crop, scale and normalisation, in this order.

    After resizing, which rounds to whole levels of brightness, a value is `(scale · level - mean) / std`.

    Attributes:
        size: `(height, width)` to resize to, or the length of the shorter side, where the other side keeps the
            proportions; `None`: pictures are not resized.
        resample: the code of the resizing filter, an index into `FILTERS`.
        crop: `(height, width)` that is cut from the middle; smaller pictures get black edges. `None`: no crop.
        scale: what the levels 0 to 255 are multiplied by; `None`: they stay.
        mean: what is subtracted, one number or one for each channel; `None` (with `std`): no normalisation.
        std: what is then divided by, one number or one for each channel; `None` (with `mean`): no normalisation.
        convert: whether grey pictures, palettes and transparency (over white) are made RGB; else they are refused.

    Raises:
        ValueError: for sizes below 1, an unknown filter, or a mean and a standard deviation that do not fit.
    """

    size: int | tuple[int, int] | None = None
    resample: int = 2
    crop: tuple[int, int] | None = None
    scale: float | None = 1 / 255
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    convert: bool = False

    def __post_init__(self) -> None:
        sizes = [*(self.size if isinstance(self.size, tuple) else (self.size,)), *(self.crop or ())]
        pairs = [p for p in (self.size, self.crop) if isinstance(p, tuple)]
        if any(n is not None and (type(n) is not int or n < 1) for n in sizes) or any(len(p) != 2 for p in pairs):
            raise ValueError(
                f"size={self.size!r}, crop={self.crop!r}; give a whole number of pixels for the shorter side, or "
                "(height, width)"
            )
        if type(self.resample) is not int or not 0 <= self.resample < len(FILTERS):
            known = ", ".join(f"{i} {name}" for i, name in enumerate(FILTERS))
            raise ValueError(f"resample={self.resample!r} is no filter; known are {known}")
        if max(map(math.prod, pairs), default=0) > _MOST or (isinstance(self.size, int) and self.size > _MOST):
            raise ValueError(f"size={self.size!r:.60}, crop={self.crop!r:.60}; give at most {_MOST:,} pixels")
        given = [v if isinstance(v, tuple) else (v,) for v in (self.scale, self.mean, self.std)]
        numbers = [n for n in itertools.chain(*given) if n is not None]
        if not all(isinstance(n, int | float | np.number) and abs(n) < _HUGE for n in numbers):
            raise ValueError(
                f"scale={self.scale!r:.40}, mean={self.mean!r:.80}, std={self.std!r:.80}; give finite numbers"
            )
        mean, std = (None if v is None else np.shape(v) for v in (self.mean, self.std))
        if mean != std or np.ndim(self.mean or 0) > 1 or not np.all(np.asarray(1 if std is None else self.std) > 0):
            raise ValueError(
                f"mean={self.mean!r}, std={self.std!r}; give both or neither, as many of each, std above 0"
            )

    def __call__(self, images: "Sequence[np.ndarray | PIL.Image.Image] | np.ndarray") -> np.ndarray:
        """Makes the input of a model from pictures.

        Args:
            images: `uint8[N, H, W, C]`, or a list of `uint8[H, W, C]`, `uint8[H, W]` and Pillow images, which may
                differ in size if the results do not. C is 1, 3 or 4; the fourth channel is transparency.

        Returns:
            `float32[N, H', W', C]`, of the height and width that `size` and `crop` give.

        Raises:
            ValueError: for floats, 16 bits a level, empty pictures, grey pictures without `convert`, another number of
                channels than `mean` has, or results of several sizes or of more than 100 million pixels.

        >>> halves = Processor(size=(2, 2), mean=0.5, std=0.5)
        >>> halves([np.full((5, 7, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8)])[:, 0, 0].tolist()
        [[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise ValueError(f"one array of shape {images.shape}; give [N, H, W, C], or a list of pictures")
        if not isinstance(images, np.ndarray | Sequence) or isinstance(images, str) or len(images) == 0:
            raise ValueError(f"images are {images!r:.60}; give at least one in a list, or uint8[N, H, W, C]")
        result: np.ndarray | None = None
        for i, image in enumerate(images):
            x = self._one(f"picture {i}", image)
            if result is None:
                result = np.empty((len(images), *x.shape), np.float32)
            if x.shape != result.shape[1:]:
                raise ValueError(
                    f"picture 0 becomes {result.shape[1:]} and picture {i} {x.shape}; give a crop, a size of "
                    "(height, width), or pictures of one shape"
                )
            result[i] = x
        assert result is not None
        return result

    def _one(self, what: str, image: Any) -> np.ndarray:
        x = self._resized(what, _pixels(what, image, self.convert))
        if self.crop is not None:
            x = _middle(x, self.crop)
        # float32 only after the product, and before the mean: so rounds transformers.
        x = (x if self.scale is None else x.astype(np.float64) * self.scale).astype(np.float32)
        if self.mean is None:
            return x
        if isinstance(self.mean, tuple) and len(self.mean) != x.shape[-1]:
            raise ValueError(
                f"{what} has {x.shape[-1]} channels, mean={self.mean} has {len(self.mean)}; convert=True makes RGB"
            )
        return (x - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def _resized(self, what: str, x: np.ndarray) -> np.ndarray:
        if self.size is None:
            return x
        from PIL import Image

        height, width = x.shape[:2]
        if isinstance(self.size, tuple):
            size = self.size
        else:  # rounded down, from the product
            longer = int(self.size * max(height, width) / min(height, width))
            size = (longer, self.size) if width <= height else (self.size, longer)
        if size[0] * size[1] > _MOST:
            raise ValueError(f"{what} of {height} x {width} would become {size[0]} x {size[1]}; cut it before")
        single = x.shape[-1] == 1
        resized = Image.fromarray(x[..., 0] if single else x).resize(size[::-1], Image.Resampling(self.resample))
        return np.asarray(resized)[..., None] if single else np.asarray(resized)


class _Kind(NamedTuple):
    """What a kind of processor does by default; `square`: a bare number as `size` means a square."""

    size: int | tuple[int, int]
    square: bool
    resample: int
    crop: int | None
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    convert: bool = False
    share: float | None = None


_KINDS = {
    "CLIP": _Kind(224, False, 3, 224, _OPENAI, convert=True),
    "ViT": _Kind((224, 224), True, 2, None, _HALVES),
    "DeiT": _Kind((256, 256), True, 3, 224, _HALVES),
    "ConvNext": _Kind(384, False, 3, None, _IMAGENET, share=224 / 256),
}


def processor(source: str | os.PathLike[str]) -> Processor:
    """Reads the processor that a checkpoint's `preprocessor_config.json` describes.

    The processors of CLIP, ViT, DeiT and ConvNeXt (which is also ResNet's) are known, under their old and new names.
    ConvNeXt's `crop_pct` becomes a size and a crop: below 384 pixels the shorter side is resized to `size / crop_pct`
    and the middle is cut out; from 384 on the whole picture is resized to a square.

    Args:
        source: the checkpoint's folder.

    Returns:
        The processor; `dataclasses.replace(processor, convert=True)` lets a ViT take grey pictures.

    Raises:
        ValueError: if the file is missing, broken, of an unknown kind, or asks for unknown steps.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> text = '{"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875}'
    >>> _ = (folder / "preprocessor_config.json").write_text(text)
    >>> resnet = processor(folder)
    >>> resnet.size, resnet.crop, resnet(np.zeros((2, 300, 400, 3), np.uint8)).shape
    (256, (224, 224), (2, 224, 224, 3))
    """
    where, fields = _fields(pathlib.Path(source))
    try:
        return _processor(fields)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{where}: {foreign_files.told(error)}") from error


def _fields(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Reads the settings for pictures, from a file of their own or from that of the whole processor."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if not (folder / name).exists():
            continue
        parsed = json_files.read_json(folder / name)
        found = parsed.get("image_processor", parsed)
        if not isinstance(found, dict):
            raise ValueError(f"{folder / name}: image_processor is a JSON {type(found).__name__}, not an object")
        return folder / name, {key: value for key, value in found.items() if value is not None}
    raise ValueError(f"{folder} has no preprocessor_config.json; download it with the weights, or build a Processor")


def _processor(fields: Mapping[str, Any]) -> Processor:
    named = str(fields.get("image_processor_type", fields.get("feature_extractor_type")))
    base = named
    for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        base = base.removesuffix(suffix)
    if base not in _KINDS or fields.get("do_pad"):
        raise ValueError(
            f"image_processor_type is {named!r:.60}, do_pad is {fields.get('do_pad', False)!r:.20}; known are "
            f"{[f'{kind}ImageProcessor' for kind in _KINDS]} without padding; build a Processor for others"
        )
    kind = _KINDS[base]
    size: int | tuple[int, int] | None = _size(fields["size"], kind.square) if "size" in fields else kind.size
    crop: Any = None
    if fields.get("do_center_crop", kind.crop is not None):
        crop = _size(fields.get("crop_size", kind.crop), True)
        if not isinstance(crop, tuple):
            raise ValueError(f"crop_size is {fields['crop_size']!r:.60}; give height and width")
    if not fields.get("do_resize", True):
        size = None
    elif kind.share is not None:
        size, crop = _shared(size, crop, fields.get("crop_pct", kind.share))
    statistics = (fields.get(f"image_{name}", own) for name, own in zip(("mean", "std"), kind.statistics, strict=True))
    mean, std = (tuple(v) if isinstance(v, list) else v for v in statistics)
    normalised = fields.get("do_normalize", True)
    return Processor(
        size=size,
        resample=fields.get("resample", kind.resample),
        crop=crop,
        scale=fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else None,
        mean=mean if normalised else None,
        std=std if normalised else None,
        convert=bool(fields.get("do_convert_rgb", kind.convert)),
    )


def _size(given: Any, square: bool) -> int | tuple[int, int]:
    """Reads a size as files write it: a number, the shorter side, or height and width."""
    if type(given) is int:
        return (given, given) if square else given
    given = {key: n for key, n in given.items() if n is not None} if isinstance(given, dict) else given
    if isinstance(given, dict) and set(given) == {"shortest_edge"}:
        return given["shortest_edge"]
    if isinstance(given, dict) and set(given) == {"height", "width"}:
        return given["height"], given["width"]
    raise ValueError(f"a size is {given!r:.80}; known are a number, `shortest_edge`, and `height` with `width`")


def _shared(size: Any, crop: Any, share: Any) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    """Turns ConvNeXt's size and `crop_pct` into a size and a crop."""
    if isinstance(size, tuple) or crop is not None or not share > 0:
        raise ValueError(
            f"size={size!r:.40}, crop={crop!r:.40}, crop_pct={share!r:.20}; this kind takes `shortest_edge`, a share "
            "above 0 and no crop of its own"
        )
    return (int(size / share), (size, size)) if size < 384 else ((size, size), None)


def _pixels(what: str, image: Any, convert: bool) -> np.ndarray:
    """One picture as `uint8[H, W, C]` with 1 or 3 channels."""
    from PIL import Image

    if isinstance(image, Image.Image):
        # Pillow cuts off what is above 255 of the modes with more bits.
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ValueError(f"{what} has more than 8 bits a level (mode {image.mode}); scale it to uint8 first")
        if convert:
            if "A" in image.getbands() or "transparency" in image.info:
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image.convert("RGBA"))
            image = image.convert("RGB")
        elif image.mode not in ("RGB", "L"):
            raise ValueError(f"{what} has the mode {image.mode}; convert=True makes RGB of it")
        image = np.asarray(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"{what} is {kind}; give uint8, 0 to 255, or an image of Pillow")
    x = image[..., None] if image.ndim == 2 else image
    if x.ndim != 3 or x.shape[-1] not in (1, 3, 4) or 0 in x.shape:
        raise ValueError(f"{what} has the shape {image.shape}; give [H, W] or [H, W, C] with 1, 3 or 4 channels")
    if convert and x.shape[-1] == 1:
        return np.repeat(x, 3, axis=-1)
    if x.shape[-1] == 4:
        if not convert:
            raise ValueError(f"{what} has 4 channels; convert=True puts what is transparent over white")
        share = x[..., 3:] / 255
        return np.round(share * x[..., :3] + (1 - share) * 255).astype(np.uint8)
    return x


def _middle(x: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """The middle of a picture, of one size whatever the picture's; black where it does not reach."""
    result = np.zeros((*crop, x.shape[-1]), x.dtype)
    # Rounded down also where it is negative: of an odd margin the larger half is before the picture.
    starts = [(have - want) // 2 for have, want in zip(x.shape, crop, strict=False)]
    taken = tuple(slice(max(s, 0), max(s, 0) + want) for s, want in zip(starts, crop, strict=True))
    part = x[taken]
    put = tuple(slice(max(-s, 0), max(-s, 0) + n) for s, n in zip(starts, part.shape, strict=False))
    result[put] = part
    return result
