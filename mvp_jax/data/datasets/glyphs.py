"""Characters of six alphabets, drawn from the fonts that come with matplotlib: many classes without a download.

A class is a character, its superclass the alphabet. Each picture is the outline of the character in one of sixteen
typefaces, turned, sheared, scaled, shifted, thickened or thinned, and with noise on it. Everything is drawn by NumPy
from an explicit seed. It takes some seconds, so what was drawn is kept in the user's cache.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mvp_jax.data import archives
from mvp_jax.data.datasets import glyph_outlines
from mvp_jax.data.sources import Arrays, Source
from mvp_jax.storage import files, records, user_cache

SIDE = 16
"""The pixels along each side of a picture."""

PER_CLASS = 160
"""The pictures of each class that are drawn if no number is given."""

_VERSION = 1  # of what is drawn; another one makes kept pictures worthless
_POINTS = 2  # along each side of a pixel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distortion:
    """How far pictures are from the plain character; each amount is drawn evenly within its limits.

    Attributes:
        turn: the tangent of half the largest angle to either side.
        shear: the largest shear to either side, as a part of the height.
        scale: the least and the largest scale of each axis; at 1 the larger side of a character takes 13 of the 16
            pixels.
        shift: the largest shift to either side along each axis, in pixels.
        threshold: the least and the largest ink at which a stroke ends: the less, the thicker it is.
        ink: the least brightness of full ink; the most is 1.
        ground: the largest brightness of the background.
        noise: the standard deviation of what is added to each pixel.
    """

    turn: float = 0.14
    shear: float = 0.25
    scale: tuple[float, float] = (0.65, 1.1)
    shift: float = 1.75
    threshold: tuple[float, float] = (0.2, 0.5)
    ink: float = 0.5
    ground: float = 0.25
    noise: float = 0.12


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Glyphs(Source):
    """A source of drawn characters, with the characters themselves and the typefaces.

    Attributes:
        characters: the character of each class.
        twins: each character that has no class of its own with the one whose class stands for it.
        train_faces: the number in `glyph_outlines.FACES` of each training picture's typeface, `uint8[N]`.
        test_faces: the same of the test pictures; `None`: there are none.
    """

    characters: tuple[str, ...]
    twins: Mapping[str, str]
    train_faces: np.ndarray
    test_faces: np.ndarray | None = None


def glyphs(
    *,
    per_class: int = PER_CLASS,
    held_out: Sequence[str] = (),
    seed: int = 0,
    distortion: Distortion = Distortion(),
    keep: bool = True,
) -> Glyphs:
    """Draws characters of the Latin, Greek, Cyrillic, Armenian and Georgian alphabets and the digits.

    Characters that look alike in the faces that have both, such as A of Latin, Greek and Cyrillic, or c and C, are one
    class, that of the first (`glyph_outlines.untwinned`). The pictures of a class depend on its character and the seed,
    not on the other classes.

    Args:
        per_class: how many pictures each class has in each split; the typefaces that have the character take turns.
        held_out: families of typefaces (`glyph_outlines.FAMILIES`) that only the test split is drawn in; `()`: there is
            no test split, and all are drawn in. Armenian and Georgian need one other than `stix` on either side.
        seed: the seed of the distortions and the noise.
        distortion: how far pictures are from the plain character.
        keep: whether the pictures are read from the user's cache, and kept there once they are drawn.

    Returns:
        A source of pictures `uint8[N, 16, 16, 1]`, ink bright, whose superclasses are the alphabets.

    Raises:
        ValueError: for a number below 1, an unknown family, or a character that a split has no typeface for.
    """
    if per_class < 1 or seed < 0:
        raise ValueError(f"per_class is {per_class} and seed {seed}; give at least 1 picture, and a seed from 0")
    apart = glyph_outlines.families_of(held_out)
    about = json.dumps(
        [_VERSION, per_class, sorted(apart), seed, dataclasses.astuple(distortion), glyph_outlines.fonts()]
    )
    file = user_cache.folder() / f"glyphs-{hashlib.sha256(about.encode()).hexdigest()[:16]}.npz"
    found = _read(file, about) if keep else None
    if found is None:
        found = _drawn(per_class, apart, seed, distortion)
        if keep:
            _write(file, about, found)
    return _source(found)


def _source(found: Mapping[str, np.ndarray]) -> Glyphs:
    characters = [chr(c) for c in found["characters"]]
    return Glyphs(
        name="glyphs",
        train=Arrays(found["train_x"], found["train_y"]),
        test=Arrays(found["test_x"], found["test_y"]) if len(found["test_y"]) else None,
        class_names=tuple(map(glyph_outlines.called, characters)),
        coarse=tuple(found["alphabets"].tolist()),
        coarse_names=tuple(glyph_outlines.ALPHABETS),
        characters=tuple(characters),
        twins={chr(a): chr(b) for a, b in found["twins"].tolist()},
        train_faces=found["train_faces"],
        test_faces=found["test_faces"] if len(found["test_y"]) else None,
    )


_KEYS = ("train_x", "train_y", "train_faces", "test_x", "test_y", "test_faces", "characters", "alphabets", "twins")


def _read(file: pathlib.Path, about: str) -> dict[str, np.ndarray] | None:
    """Returns what is kept in a file; `None` if there is none, or it is not what was written for these settings."""
    if not file.is_file():
        return None
    try:
        found = archives.read(file, [*_KEYS, "about", "digest"])
    except ValueError as error:
        records.say(f"kept pictures are drawn anew: {error}")
        return None
    arrays = {key: found[key] for key in _KEYS}
    if str(found["about"]) != about or str(found["digest"]) != _digest(arrays):
        records.say(f"kept pictures are drawn anew: {file} holds others")
        return None
    return arrays


def _write(file: pathlib.Path, about: str, found: Mapping[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, about=np.array(about), digest=np.array(_digest(found)), **found)
    try:
        files.write_bytes(file, content.getvalue())
    except OSError as error:
        records.say(f"drawn pictures are not kept for later runs: {file.parent} cannot be written ({error.strerror})")


def _digest(found: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in _KEYS:
        digest.update(f"{key} {found[key].dtype} {found[key].shape}".encode())
        digest.update(np.ascontiguousarray(found[key]).tobytes())
    return digest.hexdigest()


def _drawn(per_class: int, apart: Sequence[int], seed: int, distortion: Distortion) -> dict[str, np.ndarray]:
    """Returns the arrays of a source by the names in `_KEYS`."""
    shapes = glyph_outlines.outlines()
    others = [j for j in range(len(glyph_outlines.FACES)) if j not in apart]
    found = {
        "characters": np.array([ord(c) for c in shapes.characters], np.int32),
        "alphabets": np.array(shapes.alphabets, np.int32),
        "twins": np.array([[ord(a), ord(b)] for a, b in shapes.twins.items()], np.int32).reshape(-1, 2),
    }
    for number, (split, faces) in enumerate((("train", others), ("test", list(apart)))):
        x, f = [], []
        for character, filled, has in zip(shapes.characters, shapes.filled, shapes.has, strict=True):
            if not (split == "train" or apart):
                continue
            own = np.array([j for j in faces if has[j]], np.int64)
            if not len(own):
                raise ValueError(
                    f"{glyph_outlines.called(character)} has no typeface for the {split} split; hold out at least one "
                    "of sans, mono, serif, and not all of them"
                )
            rng = np.random.default_rng([seed, ord(character), number])
            face = own[rng.permutation(per_class) % len(own)]
            f.append(face)
            x.append(draw(filled, face, rng, distortion))
        found[f"{split}_x"] = np.concatenate(x) if x else np.zeros((0, SIDE, SIDE, 1), np.uint8)
        found[f"{split}_faces"] = (np.concatenate(f) if f else np.zeros(0)).astype(np.uint8)
        found[f"{split}_y"] = np.repeat(np.arange(len(x), dtype=np.int32), per_class)
    return found


def draw(filled: np.ndarray, face: np.ndarray, rng: np.random.Generator, distortion: Distortion) -> np.ndarray:
    """Draws distorted pictures of one character.

    Each pixel is the mean of four points, which a linear map leads to the filled outline. There the ink is read
    bilinearly, and a threshold decides how thick strokes are. No sine, logarithm or matrix product is taken, which
    machines round differently.

    Args:
        filled: `uint8[F, SIDE, SIDE]`, the outline in each face, 0 to 16, as `glyph_outlines.fill` gives it.
        face: `int[n]`, the face of each picture.
        rng: what the distortions and the noise are drawn by.
        distortion: how far they go.

    Returns:
        `uint8[n, 16, 16, 1]`.
    """
    n, by = len(face), distortion
    even = rng.random((n, 10))[..., None, None]
    tangent, shear, right, down, threshold = (even[:, i] * 2 - 1 for i in range(5))
    t = tangent * by.turn
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    low, high = by.scale
    across, along = (low + (high - low) * even[:, i] for i in (5, 6))
    # The points of the picture, from -1 to 1, less the shift; then what undoes rotation, shear and scale.
    at = (np.arange(SIDE * _POINTS) + 0.5) / (SIDE * _POINTS / 2) - 1
    u = at[None, None, :] - right * (by.shift * 2 / SIDE)
    v = at[None, :, None] - down * (by.shift * 2 / SIDE)
    x, y = cosine * u + sine * v, cosine * v - sine * u
    ink = _read_ink(_blurred(filled), face, (x + shear * by.shear * y) / across, y / along)
    first, last = by.threshold
    edge = (first + last) / 2 + threshold * (last - first) / 2
    sharp = np.clip((ink - edge) * 2.5 + 0.5, 0, 1)
    pixels = sharp[:, ::2, ::2] + sharp[:, 1::2, ::2] + sharp[:, ::2, 1::2] + sharp[:, 1::2, 1::2]
    ground, full = even[:, 7] * by.ground, by.ink + (1 - by.ink) * even[:, 8]
    # The sum of two even draws has a triangular law, of variance 1/6 over [-1, 1].
    noise = (rng.random((n, SIDE, SIDE)) + rng.random((n, SIDE, SIDE)) - 1) * (by.noise * 6**0.5)
    value = ground + (full - ground) * (pixels / 4) + noise
    return np.floor(np.clip(value, 0, 1) * 255 + 0.5).astype(np.uint8)[..., None]


def _blurred(filled: np.ndarray) -> np.ndarray:
    """Returns the ink of each pixel, blurred by (1, 2, 1) along both axes, 0 to 1, with a border of two without ink."""
    p = np.pad(filled.astype(np.int32), ((0, 0), (3, 3), (3, 3)))
    p = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    p = p[:, :, :-2] + 2 * p[:, :, 1:-1] + p[:, :, 2:]
    return p / 256.0


def _read_ink(ink: np.ndarray, face: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Reads the ink of each picture's face at points, from -1 to 1 within `SIDE` pixels, bilinearly; 0 outside."""
    side = ink.shape[1]

    def split(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = np.clip((z + 1) * (glyph_outlines.SIDE / 2) + ((side - glyph_outlines.SIDE) / 2 - 0.5), 0, side - 1.001)
        whole = z.astype(np.int64)
        return whole, z - whole

    (i, a), (j, b) = split(y), split(x)
    flat, at = ink.ravel(), (face[:, None, None] * side + i) * side + j
    top = flat[at] * (1 - b) + flat[at + 1] * b
    return top * (1 - a) + flat[at + side] * (1 - b) * a + flat[at + side + 1] * b * a
