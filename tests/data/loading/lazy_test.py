"""Lazy images: the same as arrays wherever arrays go, decoded no earlier and no oftener than they are looked at."""

import collections
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from mvp_jax.data import sources, tasks
from mvp_jax.data.checkpoint_inputs import images
from mvp_jax.data.loading import decoding, lazy
from mvp_jax.data.sources import Arrays
from mvp_jax.data.tasks import Task
from mvp_jax.experiments import setup
from mvp_jax.pretrained import preprocess
from tests.pictures_on_disk import encoded, pixels


class Files:
    """Encoded pictures that count how often each is read."""

    def __init__(self, x):
        self.content = [encoded(picture) for picture in x]
        self.read = collections.Counter()

    def __call__(self, i):
        self.read[i] += 1
        return self.content[i]


@pytest.fixture
def made():
    x = pixels(24)
    files = Files(x)
    return x, files, lazy.pictures(files, len(x))


def test_it_is_indexed_like_an_array(made):
    x, _, z = made
    assert x.std() > 0
    assert (z.shape, z.ndim, len(z), z.dtype) == ((24, 8, 8, 3), 4, 24, np.uint8)
    mask = np.arange(24) % 5 == 1
    for which in (slice(3, 9), slice(None, None, -7), [4, 4, 0], np.array([23, -1]), mask, np.array([], int)):
        np.testing.assert_array_equal(z[which], x[which])
        np.testing.assert_array_equal(z.take(np.arange(24)[which])[:], x[which])
    np.testing.assert_array_equal(z[-2], x[-2])
    np.testing.assert_array_equal(z[np.int64(5)], x[5])
    np.testing.assert_array_equal(np.asarray(z), x)
    np.testing.assert_array_equal(np.stack(list(z)), x)
    np.testing.assert_array_equal(z.take([9, 2, 7]).take([2, 0])[:], x[[7, 9]])
    with pytest.raises(IndexError):
        z[24]


def test_nothing_is_read_before_it_is_looked_at(made):
    x, files, z = made
    files.read.clear()
    some = z.take([3, 5, 8]).map(lambda batch: batch / np.float32(255), np.float32)
    assert (some.shape, some.dtype) == ((3, 8, 8, 3), np.float32)
    assert not files.read
    np.testing.assert_allclose(some[[1]], x[[5]] / 255, rtol=1e-6)
    assert files.read == {5: 1}


def test_digests_are_computed_once_and_shared(made):
    _, files, z = made
    files.read.clear()
    first = z.take([1, 4]).digests()
    assert z.take([4]).digests() == first[1:]
    assert files.read == {1: 1, 4: 1}
    twice = lazy.pictures(lambda i: files.content[i % 3], 6).digests()
    assert twice[:3] == twice[3:] and len(set(twice)) == 3  # noqa: PT018


def test_many_come_in_their_order():
    z = lazy.pictures(lambda i: np.full((1, 1, 1), i % 251, np.uint8), 3000, channels=1)
    assert z[:].ravel().tolist() == [i % 251 for i in range(3000)]


@pytest.mark.parametrize(("height", "width"), [(9, 30), (30, 9), (12, 12), (6, 6), (3, 5)])
def test_the_middle_square_is_brought_to_size(height, width):
    # A ramp along both axes stays one, so the mean of each pixel's area is known.
    side = min(height, width)
    ramp = 3.0 * np.arange(height)[:, None, None] + 5.0 * np.arange(width)[None, :, None] + np.zeros(3)
    z = lazy.pictures(lambda i: encoded(ramp.astype(np.uint8)), 1, size=6)
    assert z.shape == (1, 6, 6, 3)
    at = lambda length: (length - side) / 2 + (np.arange(6) + 0.5) * side / 6 - 0.5  # noqa: E731
    expected = 3 * at(height)[:, None, None] + 5 * at(width)[None, :, None] + np.zeros(3)
    assert np.abs(z[0] - expected)[1:-1, 1:-1].max() <= 2
    assert np.ptp(expected) >= 20


def test_a_checkpoints_processor_sees_the_full_size():
    x = [pixels(1, (20, 31, 3), seed=i)[0] for i in range(4)]
    z = lazy.pictures(lambda i: encoded(x[i]), 4, size=8)
    processor = images.Processor(size=12, crop=(10, 10), mean=0.5, std=0.25)
    source = sources.arrays("s", (z, np.arange(4)), (z.take([2]), [2]))
    made = preprocess.process_images(source, processor)
    assert made.train.x.shape == (4, 10, 10, 3)
    np.testing.assert_array_equal(made.train.x[:], processor(x))
    np.testing.assert_array_equal(made.test.x[:], processor(x[2:3]))
    with pytest.raises(ValueError, match="already normalised or processed"):
        preprocess.process_images(made, processor)


def test_files_for_crops_made_elsewhere():
    x = pixels(1, (9, 14, 3))[0]
    z = lazy.pictures(lambda i: encoded(x), 2, size=4)
    np.testing.assert_array_equal(z.decode(z.encoded(1)), x)
    np.testing.assert_array_equal(decoding.decode(lazy.rows(x[None]).encoded(0)), x)
    half = z.map(lambda b: b / np.float32(2), np.float32).map(lambda b: b - 1)
    np.testing.assert_allclose(half.finish(np.full((2, 4, 4, 3), 8, np.uint8)), 3)


def test_colours():
    grey = pixels(1, (4, 4, 1))[0]
    assert (decoding.decode(encoded(grey)) == grey).all()  # repeated
    assert (decoding.decode(encoded(grey), 1) == grey).all()
    stream = io.BytesIO()
    Image.fromarray(np.concatenate([pixels(1, (2, 2, 3))[0], np.zeros((2, 2, 1), np.uint8)], -1)).save(stream, "PNG")
    assert (decoding.decode(stream.getvalue()) == 255).all()  # transparent, over white
    assert lazy.channelled(np.full((1, 1, 3), 9, np.uint8), 1).tolist() == [[[9]]]
    with pytest.raises(ValueError, match="more than 8 bits"):
        decoding.decode(encoded(np.zeros((2, 2), np.uint16)[..., None]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_a_broken_picture_is_named_when_it_is_read(kind, share):
    whole = encoded(pixels(1, (40, 40, 3))[0], kind)
    content = [whole, whole[: int(share * len(whole))], whole]
    z = lazy.pictures(lambda i: content[i], 3, size=4, called="file {}".format)
    assert z[[0, 2]].shape == (2, 4, 4, 3)
    with pytest.raises(ValueError, match=r"^file 1: is not a picture that can be read"):
        z[:]
    with pytest.raises(ValueError, match="file 1"):
        z[1]


def test_refusals(tmp_path):
    sizes = [(4, 4, 3), (4, 5, 3)]
    z = lazy.pictures(lambda i: np.zeros(sizes[i], np.uint8), 2)
    with pytest.raises(ValueError, match=r"picture 1 is uint8\[4, 5, 3\], expected uint8\[4, 4, 3\].*give a size"):
        z[:]
    with pytest.raises(ValueError, match="give at least one"):
        lazy.pictures(lambda i: b"", 0)
    gone = lazy.pictures(lambda i: (tmp_path / str(i)).read_bytes(), 2, size=3)
    with pytest.raises(ValueError, match=r"picture 1: .*No such file"):
        gone[1]
    with pytest.raises(ValueError, match=r"picture 0: .*No such file"):
        gone.digests()
    with pytest.raises(ValueError, match="expected float32"):
        z.take([0]).map(lambda b: b, np.float32)[:]


def both(n=40, seed=0):
    """The same source twice, in memory and not decoded; some training pictures occur twice, one of them in the test."""
    x, y = pixels(n, seed=seed), (np.arange(n) % 4).astype(np.int32)
    x[20], x[21], x[33] = x[0], x[1], x[8]
    test, labels = np.concatenate([pixels(12, seed=seed + 1), x[2:3]]), (np.arange(13) % 4).astype(np.int32)
    train_files, test_files = Files(x), Files(test)
    eager = sources.arrays("s", (x, y), (test, labels))
    return eager, sources.arrays("s", (lazy.pictures(train_files, n), y), (lazy.pictures(test_files, 13), labels))


def same(a, b):
    np.testing.assert_array_equal(a.y, b.y)
    assert a.x.shape == b.x.shape
    assert a.x.dtype == b.x.dtype
    assert np.std(a.x) > 0
    np.testing.assert_array_equal(np.asarray(a.x), np.asarray(b.x))


def test_a_lazy_source_gives_the_same_pools_tasks_and_batches():
    eager, late = both()
    (eager, gone), (late, late_gone) = sources.drop_duplicates(eager), sources.drop_duplicates(late)
    assert gone == late_gone == 1
    for a, b in zip((eager, sources.normalise(eager)), (late, sources.normalise(late)), strict=True):
        assert isinstance(b.train.x, lazy.Lazy)
        assert sources.sizes(a) == sources.sizes(b)
        pools, late_pools = (tasks.split(s, seed=3, fractions=(0.6, 0.4)) for s in (a, b))
        assert sum(len(p.y) for p in pools) == 37  # of 40 pictures three occur twice
        for p, q in zip(pools, late_pools, strict=True):
            assert isinstance(q.x, lazy.Lazy)
            same(p, q)
        task = Task(name="t", classes=(3, 1))
        made, late_made = (
            tasks.materialise(task, p[0], shots=2, valid=1, seed=0, test_from=s.test, test=2)
            for p, s in ((pools, a), (late_pools, b))
        )
        for p, q in zip(made, late_made, strict=True):
            assert isinstance(q.x, np.ndarray)
            same(p, q)
        same(tasks.stack([made]).train, tasks.stack([late_made]).train)
        same(tasks.subset(pools[0], (2, 0)), tasks.subset(late_pools[0], (2, 0)))
        got, expected = setup.batch_of(late_pools[1]), setup.batch_of(pools[1])
        np.testing.assert_array_equal(got["x"], expected["x"])
        assert got["x"].dtype == np.float32


def test_mapped_files_are_normalised_when_they_are_looked_at(tmp_path):
    x, y = pixels(10), np.arange(10) % 2
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    eager, late = (sources.normalise(sources.arrays("s", (a, y)), std=0.5) for a in (x, mapped))
    assert isinstance(late.train.x, lazy.Lazy)
    same(eager.train, late.train)
    same(*(tasks.split(s, seed=0, fractions=(0.5,))[0] for s in (eager, late)))
    grey = sources.arrays("s", (lazy.rows(x[..., :1]), y))
    assert sources.normalise(grey, (0.1, 0.2, 0.3), 1).train.x[[0]].shape == (1, 8, 8, 3)  # as arrays do


def test_large_arrays_are_normalised_when_they_are_looked_at(monkeypatch):
    monkeypatch.setattr(sources, "_MUCH", 100)
    x, y = pixels(10), np.arange(10) % 2
    late = sources.normalise(sources.arrays("s", (x, y)), 0.5, 0.5).train.x
    assert isinstance(late, lazy.Lazy)
    np.testing.assert_allclose(late[:], x / 127.5 - 1, atol=1e-6)


def test_the_mean_of_many_is_taken_of_a_part(monkeypatch):
    monkeypatch.setattr(sources, "_SAMPLE", 5)
    x = pixels(12)
    files = Files(x)
    source = sources.arrays("s", (lazy.pictures(files, 12), np.zeros(12, int)))
    files.read.clear()
    late = sources.normalise(source)
    assert sorted(files.read) == [0, 3, 6, 9]
    part = x[::3] / 255
    np.testing.assert_allclose(late.train.x[:], (x / 255 - part.mean((0, 1, 2))) / part.std((0, 1, 2)), atol=1e-5)


def test_it_travels_to_another_process():
    z = lazy.rows(pixels(5)).take([3, 1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(z))[:], z[:])


def test_a_source_of_lazy_images_is_checked():
    z = lazy.rows(pixels(4))
    with pytest.raises(ValueError, match="one for each image"):
        sources.arrays("s", (z, [0, 1]))
    with pytest.raises(ValueError, match="one \\[H, W, C\\]"):
        sources.arrays("s", (z, np.zeros(4, int)), (lazy.rows(pixels(2, (4, 4, 3))), [0, 0]))
    assert isinstance(sources.take(Arrays(z, np.zeros(4, np.int32)), np.array([True, False, True, False])).x, lazy.Lazy)
