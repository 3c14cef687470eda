"""The letters and digits of matplotlib's fonts, filled from their outlines, and which of them look alike.

The outlines are whole numbers in the font files, and filling them takes nothing but sums, products and quotients of
float64, which every machine rounds alike. So no picture depends on the hinting or the anti-aliasing of a version of
FreeType.
"""

import functools
import hashlib
import pathlib
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

FAMILIES = {
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "mono": ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "stix": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}
"""The families of faces, each upright, bold, slanted, and bold and slanted: the names of their files."""

FACES = tuple(face for family in FAMILIES.values() for face in family)
"""The sixteen faces, by the names of their files."""

ALPHABETS = {
    "digits": ("09",),
    "latin": ("AZ", "az"),
    "greek": ("ΑΩ", "αω"),
    "cyrillic": ("АЯ", "ая"),
    "armenian": ("ԱՖ", "աֆ"),
    "georgian": ("აჰ",),
}
"""The first and the last character of each run of an alphabet."""

SIDE = 32
"""The pixels along each side of a filled outline."""

FILL = 26
"""The pixels that the larger side of a character takes of them."""

_POINTS = 4  # along each side of a pixel: a filled pixel is 16
_CURVE = 8  # straight pieces that stand for a curve
_WINDOW = 6  # pixels along each side of the squares in which pictures are compared
TWINS = 0.4
"""Characters whose pictures differ, in the square where they differ most, by less than this part of it are twins."""


class Outlines(NamedTuple):
    """The filled outlines of the characters that are kept.

    Attributes:
        characters: the characters, alphabet by alphabet.
        alphabets: the number of each character's alphabet, in the order of `ALPHABETS`.
        filled: `uint8[N, F, SIDE, SIDE]`, each character in each of the faces, 0 to 16.
        has: `bool[N, F]`, whether a face has the character.
        twins: each character that was dropped with the one that was kept in its place.
    """

    characters: tuple[str, ...]
    alphabets: tuple[int, ...]
    filled: np.ndarray
    has: np.ndarray
    twins: dict[str, str]


def candidates() -> tuple[tuple[str, int], ...]:
    """Returns every character with the number of its alphabet, twins included.

    >>> len(candidates()), candidates()[10:12]
    (284, (('A', 1), ('B', 1)))
    """
    return tuple(
        (chr(code), number)
        for number, runs in enumerate(ALPHABETS.values())
        for run in runs
        for code in range(ord(run[0]), ord(run[1]) + 1)
        if unicodedata.name(chr(code), "")
    )


def called(character: str) -> str:
    """Returns the name of a character as a class.

    >>> called("α"), called("A"), called("7")
    ('greek small alpha', 'latin capital a', 'digit seven')
    """
    return unicodedata.name(character).lower().replace(" letter ", " ")


@functools.cache
def outlines() -> Outlines:
    """Fills the outlines of all characters in all faces, and drops the twins of earlier characters.

    It is done once in a process.
    """
    both = candidates()
    characters = [character for character, _ in both]
    filled = np.zeros((len(both), len(FACES), SIDE, SIDE), np.uint8)
    has = np.zeros((len(both), len(FACES)), bool)
    for j, face in enumerate(FACES):
        font = _font(face)
        known = font.get_charmap()
        for i, character in enumerate(characters):
            # A face draws an empty box for what it does not have.
            if ord(character) in known:
                has[i, j] = True
                filled[i, j] = fill(edges(font, character))
    kept, twin_of = untwinned(filled, has)
    return Outlines(
        tuple(characters[i] for i in kept),
        tuple(both[i][1] for i in kept),
        filled[kept],
        has[kept],
        {characters[i]: characters[k] for i, k in twin_of.items()},
    )


def fonts() -> str:
    """Returns a digest of the font files, and the versions of what reads them."""
    import matplotlib
    from matplotlib import ft2font

    digest = hashlib.sha256()
    for face in FACES:
        digest.update(_file(face).read_bytes())
    return f"{digest.hexdigest()} matplotlib {matplotlib.__version__} FreeType {ft2font.__freetype_version__}"


def _file(face: str) -> pathlib.Path:
    import matplotlib

    return pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


def _font(face: str) -> Any:
    from matplotlib.ft2font import FT2Font

    return FT2Font(str(_file(face)))


def edges(font: Any, character: str) -> np.ndarray:
    """Returns the edges of a character's outline, `float64[E, 4]`: from `(x, y)` to `(x, y)`, in the font's units.

    Args:
        font: a `matplotlib.ft2font.FT2Font`.
        character: a character that it has.
    """
    from matplotlib.ft2font import LoadFlags

    font.load_char(ord(character), flags=LoadFlags.NO_SCALE)
    points, codes = font.get_path()
    points, codes = np.round(np.asarray(points, np.float64) * 64), np.asarray(codes)
    begins = np.maximum.accumulate(np.where(codes == 1, np.arange(len(codes)), 0))  # where each point's contour begins
    straight, closing = np.flatnonzero(codes == 2), np.flatnonzero(codes == 79)
    quadratic, cubic = np.flatnonzero(codes == 3)[::2], np.flatnonzero(codes == 4)[::3]
    t = np.arange(_CURVE + 1)[:, None, None] / _CURVE
    s = 1 - t
    q = [points[quadratic + k] for k in (-1, 0, 1)]  # a piece begins where the one before it ends
    c = [points[cubic + k] for k in (-1, 0, 1, 2)]
    lines = (
        np.stack([points[straight - 1], points[straight]]),
        np.stack([points[closing - 1], points[begins[closing]]]),
        s * s * q[0] + 2 * t * s * q[1] + t * t * q[2],
        s * s * s * c[0] + 3 * t * s * s * c[1] + 3 * t * t * s * c[2] + t * t * t * c[3],
    )
    return np.concatenate([np.concatenate([z[:-1], z[1:]], axis=2).reshape(-1, 4) for z in lines])


def fill(outline: np.ndarray) -> np.ndarray:
    """Fills an outline that is centred and scaled so that its larger side takes `FILL` pixels.

    A point is inside if the outline winds around it; each pixel counts its points that are.

    Args:
        outline: edges as `edges` gives them, with y upwards.

    Returns:
        `uint8[SIDE, SIDE]`, 0 to 16, the first row on top.
    """
    n = SIDE * _POINTS
    corners = outline.reshape(-1, 2)
    low, high = corners.min(0), corners.max(0)
    scale = FILL * _POINTS / (high - low).max()
    x0, y0, x1, y1 = ((outline.reshape(-1, 2, 2) - (low + high) / 2) * scale + n / 2).reshape(-1, 4).T
    middle = np.arange(n)[:, None] + 0.5
    up, down = (y0 <= middle) & (middle < y1), (y1 <= middle) & (middle < y0)
    row, edge = np.nonzero(up | down)
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    winding = np.zeros((n, n + 1), np.int32)
    column = np.clip(np.ceil(x - 0.5), 0, n).astype(int)
    np.add.at(winding, (row, column), np.where(up[row, edge], 1, -1))
    inside = winding[:, :-1].cumsum(1) != 0
    return inside[::-1].reshape(SIDE, _POINTS, SIDE, _POINTS).sum((1, 3)).astype(np.uint8)


def untwinned(filled: np.ndarray, has: np.ndarray) -> tuple[list[int], dict[int, int]]:
    """Returns the numbers of the characters that are kept, and of each other one the kept one that it looks like.

    A character is dropped if it is a twin of one that was kept before. How far two characters are apart is the mean,
    over the faces that have both, of the largest difference of their ink in any square of 6 × 6 pixels, as a part of
    the square: 0 if they are the same, more than 0.5 if one has a stroke where the other has none.

    Args:
        filled: `uint8[N, F, SIDE, SIDE]`, each character in each face.
        has: `bool[N, F]`, whether the face has it.
    """
    total = np.pad(filled.astype(np.int32), ((0, 0), (0, 0), (1, 0), (1, 0))).cumsum(2).cumsum(3)
    w = _WINDOW
    ink = total[..., w:, w:] - total[..., :-w, w:] - total[..., w:, :-w] + total[..., :-w, :-w]
    ink = ink[..., ::2, ::2].reshape(*filled.shape[:2], -1)
    full = w * w * _POINTS**2
    kept: list[int] = []
    twin_of: dict[int, int] = {}
    for i in range(len(filled)):
        apart = np.full(len(kept), np.inf)
        for at, k in enumerate(kept):
            both = has[i] & has[k]
            if both.any():
                # Sums of whole numbers, so that no machine rounds them otherwise.
                most = np.abs(ink[i, both] - ink[k, both]).max(1).sum()
                apart[at] = most / (full * int(both.sum()))
        if len(kept) and apart.min() < TWINS:
            twin_of[i] = kept[int(apart.argmin())]
        else:
            kept.append(i)
    return kept, twin_of


def families_of(names: Iterable[str]) -> list[int]:
    """Returns the numbers of the faces of some families.

    Args:
        names: names of `FAMILIES`.

    Raises:
        ValueError: for an unknown name.

    >>> families_of(["mono"])
    [4, 5, 6, 7]
    """
    names = list(names)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise ValueError(f"unknown families of typefaces {unknown}; choose from {list(FAMILIES)}")
    return [j for j, face in enumerate(FACES) if any(face in FAMILIES[name] for name in names)]
