"""The drawn characters: outlines against matplotlib's own paths, twins, faces, determinism, the cache, and likeness."""

import hashlib
import re

import numpy as np
import pytest
from matplotlib import ft2font
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from mvp_jax.data.datasets import glyph_outlines, glyphs
from mvp_jax.data.datasets.glyph_outlines import FACES, FAMILIES, FILL, SIDE

FONTS = "3cd0a79bc53f6c07d09ed312f958bde083ca9d48e90ea03f744f970897158047"
"""The digest of the font files of matplotlib 3.11.2."""

PICTURES = "4c6a3d97875639680d557bb2d1f8d42ad73c3135499060626154d6d9ff6afff6"
"""The SHA-256 of the default pictures; the same was found with Python 3.11, 3.12 and 3.13, NumPy 2.4 and 2.5."""


@pytest.fixture(scope="module")
def source():
    return glyphs.glyphs(keep=False)


def test_what_a_source_holds(source):
    assert source.train.x.shape == (source.num_classes * glyphs.PER_CLASS, 16, 16, 1)
    assert source.train.x.dtype == np.uint8
    assert (source.train.x.min(), source.train.x.max()) == (0, 255)
    np.testing.assert_array_equal(source.train.y, np.repeat(np.arange(source.num_classes), glyphs.PER_CLASS))
    assert source.test is None
    assert len(set(source.class_names)) == source.num_classes == 178
    assert source.class_names[10] == "latin capital a"
    assert source.coarse_names == ("digits", "latin", "greek", "cyrillic", "armenian", "georgian")
    assert np.bincount(source.coarse).min() >= 10  # each gives a task of ten classes
    assert len(np.unique(source.train.x.reshape(len(source.train.x), -1), axis=0)) == len(source.train.x)


def test_the_default_pictures_are_the_same_everywhere(source):
    if not glyph_outlines.fonts().startswith(FONTS):
        pytest.skip("other fonts than those of matplotlib 3.11.2")
    assert hashlib.sha256(source.train.x.tobytes()).hexdigest() == PICTURES


def test_the_seed_decides():
    def drawn(seed):
        return glyphs.glyphs(per_class=2, seed=seed, keep=False).train.x

    one, again, other = drawn(0), drawn(0), drawn(1)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any(axis=(1, 2, 3)).all()


def test_the_typefaces_take_turns(source):
    faces = source.train_faces.reshape(source.num_classes, -1)
    for character, own in zip(source.characters, faces, strict=True):
        has = [j for j, face in enumerate(FACES) if ord(character) in known(face)]
        counts = np.bincount(own, minlength=16)
        assert set(np.flatnonzero(counts)) == set(has)
        assert np.ptp(counts[has]) <= 1


def known(face):
    return glyph_outlines._font(face).get_charmap()


# Outlines.


def rectangle(x0, y0, x1, y1, turn=1):
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)[::turn]
    return np.concatenate([corners, np.roll(corners, -1, axis=0)], axis=1)


def test_a_rectangle_is_filled_where_it_is():
    filled = glyph_outlines.fill(rectangle(100, 0, 113, 26))
    expected = np.zeros((SIDE, SIDE), np.uint8)
    expected[3:29, 9:22] = 16  # 7 pixels to a half of it, and in the middle: 16 - 6.5 = 9.5
    expected[3:29, 9] = expected[3:29, 22] = 8
    np.testing.assert_array_equal(filled, expected)


@pytest.mark.parametrize(("turn", "hole"), [(1, 16), (-1, 0)])
def test_a_contour_the_other_way_round_is_a_hole(turn, hole):
    both = np.concatenate([rectangle(0, 0, 26, 26), rectangle(10, 10, 16, 16, turn)])
    filled = glyph_outlines.fill(both)
    assert (filled[13:19, 13:19] == hole).all()
    assert (filled[3:13, 3:29] == 16).all()
    assert int(filled.sum()) == 16 * (26 * 26 - (6 * 6 if hole == 0 else 0))


def test_the_first_row_is_on_top():
    triangle = np.array([(0, 0, 26, 0), (26, 0, 13, 26), (13, 26, 0, 0)], float)
    rows = glyph_outlines.fill(triangle).astype(int).sum(1)
    assert (np.diff(rows[3:29]) > 0).all()
    np.testing.assert_allclose(rows.sum() / 16, 26 * 26 / 2, rtol=1e-2)


@pytest.mark.parametrize("face", ["DejaVuSans", "DejaVuSerif-BoldItalic", "STIXGeneralItalic"])
@pytest.mark.parametrize("character", ["8", "g", "Ω", "Ж"])
def test_outlines_are_those_of_matplotlibs_paths(face, character):
    font = glyph_outlines._font(face)
    font.load_char(ord(character), flags=ft2font.LoadFlags.NO_SCALE)
    path = Path(*font.get_path())
    box = path.get_extents()
    scale = 4 * FILL / max(box.width, box.height)
    centred = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2).scale(scale)
    renderer = RendererAgg(4 * SIDE, 4 * SIDE, 72)
    gc = renderer.new_gc()
    gc.set_linewidth(0)
    renderer.draw_path(gc, path, centred.translate(2 * SIDE, 2 * SIDE), (1.0, 1.0, 1.0))
    drawn = np.asarray(renderer.buffer_rgba())[..., 3].reshape(SIDE, 4, SIDE, 4).sum((1, 3)) / 255
    filled = glyph_outlines.fill(glyph_outlines.edges(font, character)).astype(int)
    assert drawn.sum() > 1000
    assert abs(filled - drawn).sum() < 0.06 * drawn.sum()  # points decide at the edges, not areas
    assert abs(filled - drawn).max() < 3


class FirstGlyph:
    """A font that draws its first glyph for any character, which is the one for a missing character."""

    def __init__(self, font):
        self.font, self.get_path = font, font.get_path

    def load_char(self, code, flags):
        self.font.load_glyph(0, flags=flags)


def test_nothing_is_blank_or_a_missing_character(source):
    found = glyph_outlines.outlines()
    assert set(found.characters) == set(source.characters)
    assert found.filled[found.has].reshape(int(found.has.sum()), -1).sum(1).min() > 16 * 30
    for j, face in enumerate(FACES):
        outline = glyph_outlines.edges(FirstGlyph(glyph_outlines._font(face)), "A")
        box = glyph_outlines.fill(outline) if len(outline) else np.zeros((SIDE, SIDE))  # STIX's is empty
        here = found.filled[found.has[:, j], j]
        assert (here != box).any(axis=(1, 2)).all()
        assert not (glyph_outlines.FACES[j].startswith("STIX") and found.has[list(found.alphabets).index(4), j])
    # In each picture the ink is told from the ground, whatever the noise.
    x = source.train.x.reshape(len(source.train.x), -1).astype(float)
    assert (np.percentile(x, 95, axis=1) - np.percentile(x, 20, axis=1)).min() > 30


# Twins.


def test_twins_are_one_class(source):
    for twin, kept in {"Α": "A", "А": "A", "Ο": "O", "О": "O", "o": "O", "с": "C", "Ս": "U", "З": "3"}.items():
        assert source.twins[twin] == kept
        assert twin not in source.characters
        assert kept in source.characters
    # Near, but a stroke or a proportion apart.
    assert {"O", "0", "Q", "Θ", "E", "F", "1", "I", "h", "n", "П"} - {"П"} <= set(source.characters)
    assert len(source.twins) + source.num_classes == len(glyph_outlines.candidates()) == 284


def test_untwinned_keeps_the_first_and_looks_at_common_faces():
    bar, cross = np.zeros((2, SIDE, SIDE), np.uint8)
    bar[4:28, 14:18] = cross[4:28, 14:18] = 16
    cross[13:19, 4:28] = 16
    thick = bar.copy()
    thick[4:28, 13:15] = 8
    none = np.zeros_like(bar)
    filled = np.array([[bar, bar], [cross, none], [thick, cross], [none, thick], [bar, none]])
    has = np.array([[1, 1], [1, 0], [1, 1], [0, 1], [0, 0]], bool)
    kept, twins = glyph_outlines.untwinned(filled, has)
    # The third is a twin of the first in one face, but not on the mean of both; the last has no face to compare.
    assert (kept, twins) == ([0, 1, 2, 4], {3: 0})


def test_families():
    assert [len(f) for f in FAMILIES.values()] == [4] * 4
    with pytest.raises(ValueError, match=re.escape("unknown families of typefaces ['comic']; choose from ['sans'")):
        glyphs.glyphs(held_out=("comic",))
    with pytest.raises(ValueError, match="give at least 1 picture"):
        glyphs.glyphs(per_class=0)


def test_held_out_typefaces_are_for_the_test_split_alone():
    found = glyphs.glyphs(per_class=12, held_out=("serif", "stix"), keep=False)
    test = set(glyph_outlines.families_of(["serif", "stix"]))
    assert set(found.test_faces.tolist()) == test
    assert set(found.train_faces.tolist()) == set(range(16)) - test
    assert found.test.x.shape == found.train.x.shape
    np.testing.assert_array_equal(found.test.y, found.train.y)
    for families, split in ((("stix",), "test"), (("sans", "mono", "serif"), "train")):
        with pytest.raises(ValueError, match=f"no typeface for the {split} split; hold out at least one of sans"):
            glyphs.glyphs(per_class=1, held_out=families, keep=False)


# The cache.


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Draws few pictures, by way of a cache of its own; tells how often they were drawn."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    drawn, draws = [], glyphs._drawn
    monkeypatch.setattr(glyphs, "_drawn", lambda *args: drawn.append(args) or draws(*args))

    def get(**kwargs):
        return glyphs.glyphs(per_class=2, **kwargs), len(drawn)

    get.folder = tmp_path / "cache" / "mvp_jax"
    return get


def test_pictures_are_drawn_once(cached):
    first, count = cached()
    assert count == 1
    again, count = cached()
    assert count == 1
    np.testing.assert_array_equal(again.train.x, first.train.x)
    assert (again.class_names, again.coarse, again.twins) == (first.class_names, first.coarse, first.twins)
    assert len(list(cached.folder.iterdir())) == 1
    assert cached(seed=1)[1] == 2
    assert cached(held_out=("mono",))[1] == 3
    assert cached(distortion=glyphs.Distortion(noise=0.0))[1] == 4
    assert cached(keep=False)[1] == 5
    assert cached()[1] == 5
    assert len(list(cached.folder.iterdir())) == 4


def test_other_fonts_are_drawn_anew(cached, monkeypatch):
    cached()
    monkeypatch.setattr(glyph_outlines, "fonts", lambda: "others")
    assert cached()[1] == 2


def test_a_damaged_or_foreign_cache_is_drawn_anew(cached, capsys):
    expected = cached()[0].train.x
    (file,) = cached.folder.iterdir()
    good = file.read_bytes()
    cached(seed=1)
    (other,) = set(cached.folder.iterdir()) - {file}
    with np.load(file) as archive:
        changed = {key: archive[key] for key in archive.files}
    changed["train_x"] = changed["train_x"] ^ 1
    count = 2
    for spoil in (
        lambda: file.write_bytes(good[:-100]),
        lambda: file.write_bytes(b""),
        lambda: file.write_bytes(other.read_bytes()),
        lambda: np.savez(file, **changed),
        lambda: np.savez(file, x=np.zeros(3)),
    ):
        spoil()
        found, drawn = cached()
        count += 1
        assert drawn == count
        np.testing.assert_array_equal(found.train.x, expected)
        assert "kept pictures are drawn anew" in capsys.readouterr().err
        assert cached()[1] == count  # and it is whole again


def test_a_folder_that_cannot_be_written_is_only_told(cached, capsys):
    cached.folder.parent.mkdir()
    cached.folder.write_text("a file where the folder should be")
    found, count = cached()
    assert (count, found.num_classes) == (1, 178)
    assert "drawn pictures are not kept for later runs" in capsys.readouterr().err


# What can be learned.


def test_classes_can_be_told_apart_and_alphabets_are_alike(source):
    """Nearest means know a class in 13 to 14 % of new pictures, where chance has 0.6 %."""
    x = source.train.x.reshape(source.num_classes, glyphs.PER_CLASS, -1) / 255.0
    means = x[:, 20:].mean(1)
    new = x[:, :20].reshape(-1, means.shape[1])
    nearest = ((means**2).sum(1) - 2 * new @ means.T).argmin(1)
    assert (nearest == np.repeat(np.arange(source.num_classes), 20)).mean() > 0.1

    # The five nearest classes of a class are of its alphabet more often than five at random.
    coarse = np.array(source.coarse)
    apart = (means**2).sum(1)[:, None] - 2 * means @ means.T + (means**2).sum(1)
    np.fill_diagonal(apart, np.inf)
    near = coarse[np.argsort(apart, axis=1)[:, :5]] == coarse[:, None]
    chance = (np.bincount(coarse)[coarse] - 1) / (len(coarse) - 1)
    assert near.mean() > chance.mean() + 0.05
