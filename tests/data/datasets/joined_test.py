"""Joined data sets: classes, superclasses, pictures of one shape, and pools and tasks on top of them."""

import numpy as np
import pytest
from PIL import Image

from mvp_jax.data import groups, sources, tasks
from mvp_jax.data.datasets import joined
from mvp_jax.data.loading import lazy
from tests.pictures_on_disk import encoded, pixels


def made(name, n, shape, classes=2, test=True, seed=0):
    x, y = pixels(n, shape, seed=seed), np.arange(n) % classes
    return sources.arrays(name, (x, y), (pixels(4, shape, seed=seed + 50), np.arange(4) % classes) if test else None)


def late(source):
    def files(pair):
        content = [encoded(x) for x in pair.x]
        return lazy.pictures(content.__getitem__, len(content), channels=pair.x.shape[-1]), pair.y

    return sources.arrays(source.name, files(source.train), files(source.test), class_names=source.class_names)


def test_classes_and_pictures_of_both():
    a, b = made("a", 6, (8, 8, 3)), made("b", 9, (8, 8, 3), classes=3, seed=1)
    both = joined.join([a, b])
    assert both.name == "a+b"
    assert both.class_names == ("a/0", "a/1", "b/0", "b/1", "b/2")
    assert (both.coarse, both.coarse_names) == ((0, 0, 1, 1, 1), ("a", "b"))
    np.testing.assert_array_equal(both.train.x, np.concatenate([a.train.x, b.train.x]))
    assert both.train.y.tolist() == a.train.y.tolist() + (b.train.y + 2).tolist()
    np.testing.assert_array_equal(both.test.x, np.concatenate([a.test.x, b.test.x]))
    assert both.test.y.dtype == np.int32
    assert len(joined.join([a, b, made("c", 4, (8, 8, 3))]).class_names) == 7


def test_pictures_become_of_one_shape():
    a, b = made("a", 4, (8, 8, 3)), made("b", 4, (20, 20, 1), seed=1)
    both = joined.join([a, b])
    assert both.image_shape == (8, 8, 3)
    np.testing.assert_array_equal(both.train.x[:4], a.train.x)
    small = np.asarray(Image.fromarray(b.train.x[0, ..., 0]).resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(both.train.x[4], np.repeat(small[..., None], 3, -1))
    assert both.train.x[4:].std() > 0
    assert joined.join([a, b], size=12).image_shape == (12, 12, 3)
    grey = joined.join([b, sources.digits()])
    assert (grey.image_shape, grey.train.x.dtype) == ((20, 20, 1), np.uint8)
    assert joined.join([b, sources.digits()], size=8).train.x.max() == 255


def test_without_a_test_split_of_each_there_is_none():
    assert joined.join([made("a", 4, (8, 8, 3)), made("b", 4, (8, 8, 3), test=False)]).test is None


def test_lazy_parts_give_the_same():
    a, b = made("a", 30, (8, 8, 3)), made("b", 30, (12, 10, 1), classes=3, seed=1)
    eager, mixed = joined.join([a, b], size=6), joined.join([a, late(b)], size=6)
    assert isinstance(eager.train.x, np.ndarray)
    assert isinstance(mixed.train.x, lazy.Lazy)
    np.testing.assert_array_equal(eager.train.x, mixed.train.x[:])
    np.testing.assert_array_equal(eager.test.x, mixed.test.x[:])
    part = mixed.train.x.take([31, 2, 59])
    np.testing.assert_array_equal(part[:], eager.train.x[[31, 2, 59]])
    assert part.decode(part.encoded(0)).shape == (12, 10, 3)
    pools, same = (tasks.split(s, seed=0, fractions=(0.6, 0.4)) for s in (eager, mixed))
    for p, q in zip(pools, same, strict=True):
        np.testing.assert_array_equal(p.x, q.x[:])
        np.testing.assert_array_equal(p.y, q.y)
    (task,) = groups.draw_within(groups.by_coarse(mixed)[1:], 1, 2, seed=0)
    own = tasks.materialise(task, same[0], shots=3, seed=0)
    assert own.train.x.shape == (6, 6, 6, 3)
    assert all(mixed.class_names[c].startswith("b/") for c in task.classes)


def test_parts_of_lazy_sets_are_joined_as_they_were_taken():
    a, b = made("a", 6, (8, 8, 3)), late(made("b", 9, (8, 8, 3), seed=1))
    digests = b.train.x.digests()
    some = sources.arrays("b", sources.take(b.train, np.array([7, 2, 4])))
    both = joined.join([a, some])
    assert both.train.x.digests()[6:] == [digests[i] for i in (7, 2, 4)]
    np.testing.assert_array_equal(both.train.x[6:], b.train.x[[7, 2, 4]])
    assert len(set(both.train.x.digests())) == 9


def test_a_broken_picture_is_named_by_its_own_data_set():
    x = lazy.pictures([encoded(pixels(1)[0]), b"broken"].__getitem__, 2, called="b, picture {}".format)
    both = joined.join([made("a", 4, (8, 8, 3), test=False), sources.arrays("b", (x, [0, 0]))])
    with pytest.raises(ValueError, match="b, picture 1: is not a picture"):
        both.train.x[5]


def test_refusals():
    a, b = made("a", 4, (8, 8, 3)), made("b", 4, (8, 8, 3))
    with pytest.raises(ValueError, match=r"data sets \['a'\] to be joined; give at least two"):
        joined.join([a])
    with pytest.raises(ValueError, match="of different names"):
        joined.join([a, b, a])
    with pytest.raises(ValueError, match=r"images of b lie in .*join them before normalisation"):
        joined.join([a, sources.normalise(b)])
    with pytest.raises(ValueError, match="images of b are already normalised"):
        joined.join([a, sources.normalise(late(b))])
    with pytest.raises(ValueError, match=r"\['t'\] are texts"):
        joined.join([a, sources.arrays("t", (np.zeros((2, 5), np.int32), [0, 1]))])
