"""Streams: what a host sees follows from the seed and the position, wherever it was cut off."""

import builtins
import colorsys
import io
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mvp_jax.data import sources
from mvp_jax.data.augment import cropping
from mvp_jax.data.loading import lazy, streams
from mvp_jax.storage import checkpoint


def numbered(n):
    """Examples that tell who they are, and labels that follow from it."""
    return sources.Arrays(
        np.arange(n, dtype=np.int32)[:, None] * np.ones(3, np.int32), np.arange(n, dtype=np.int32) + 7
    )


def ids(batches):
    found = [np.asarray(b["x"])[:, 0] for b in batches]
    for b, own in zip(batches, found, strict=True):
        np.testing.assert_array_equal(np.asarray(b["y"]), own + 7)
        assert (np.asarray(b["x"]) == own[:, None]).all()
    return [f.tolist() for f in found]


def some(stream, count):
    return ids([next(stream) for _ in range(count)])


def flat(batches):
    return [i for batch in batches for i in batch]


def test_an_epoch_is_every_example_once_in_an_order_of_its_own():
    one = streams.stream(numbered(24), batch=4, seed=3)
    epochs = [flat(some(one, 6)) for _ in range(3)]
    assert (one.per_epoch, one.epoch, one.position, one.total) == (6, 3, 18, None)
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
        assert epoch != list(range(24))
    assert len({tuple(e) for e in epochs}) == 3
    again = streams.stream(numbered(24), batch=4, seed=3, threads=3)
    assert [flat(some(again, 6)) for _ in range(3)] == epochs
    one.close()
    again.close()


def test_seeds_share_no_epoch():
    """Grain's own seeds are one apart from epoch to epoch."""
    seen = []
    for seed in range(5):
        one = streams.stream(numbered(30), batch=30, seed=seed, epochs=5)
        seen += [tuple(b) for b in ids(list(one))]
    assert len(seen) == len(set(seen)) == 25


@settings(deadline=None, max_examples=12)
@example(n=9, batch=1, shards=2, seed=0, e=2)
@given(
    n=st.integers(8, 40),
    batch=st.integers(1, 4),
    shards=st.integers(1, 2),
    seed=st.integers(0, 2**31 - 1),
    e=st.just(2),
)
def test_hosts_see_disjoint_shards_of_the_same_number(n, batch, shards, seed, e):
    of = [streams.stream(numbered(n), batch=batch, seed=seed, shard=i, shards=shards, epochs=e) for i in range(shards)]
    seen = [ids(list(s)) for s in of]
    per_epoch = n // (batch * shards)
    assert {len(s) for s in seen} == {e * per_epoch} == {s.total for s in of}
    for epoch in range(e):
        union = flat(flat(s[epoch * per_epoch : (epoch + 1) * per_epoch]) for s in seen)
        assert len(union) == len(set(union)) == per_epoch * batch * shards
        if n % (batch * shards) == 0:
            assert sorted(union) == list(range(n))


def test_what_is_left_out_is_another_in_each_epoch():
    one = streams.stream(numbered(11), batch=4, seed=0)
    left = [frozenset(range(11)) - set(flat(some(one, 2))) for _ in range(6)]
    assert {len(x) for x in left} == {3}
    assert len(set(left)) > 2


def test_a_resumed_run_sees_what_an_uninterrupted_one_does():
    def make(**more):
        return streams.stream(numbered(26), batch=4, seed=5, epochs=3, **more)

    whole = ids(list(make()))
    assert len(whole) == 18
    for cut in (0, 1, 5, 6, 7, 17, 18):
        before = make()
        seen = some(before, cut)
        state = before.state()
        assert seen + ids(list(make().at(state))) == whole
        assert seen + ids(list(before)) == whole
        assert ids(list(make(start=cut))) == whole[cut:]


def test_the_state_is_that_of_what_was_handed_out_not_of_what_was_read(tmp_path):
    read = []

    def note(x, rng):
        read.append(int(x[0]))
        return x

    def make():
        return streams.stream(numbered(40), batch=4, seed=1, transform=note, threads=1)

    plain = streams.stream(numbered(40), batch=4, seed=1)
    whole = some(plain, 30)
    plain.close()
    before = threading.active_count()
    with streams.to_device(make(), ahead=3) as batches, checkpoint.Checkpoints(tmp_path) as saved:
        seen = ids([next(batches) for _ in range(13)])  # in the middle of the second epoch
        deadline = time.monotonic() + 20
        while len(read) < 16 * 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(read) >= 16 * 4  # batches ahead of the consumer have been read
        assert int(batches.state()["position"]) == 13
        saved.save(13, {"weights": np.ones(3, np.float32), "stream": batches.state()})
    with checkpoint.Checkpoints(tmp_path) as saved:
        again = make()
        like = {"weights": np.zeros(3, np.float32), "stream": again.state()}
        state = saved.restore(like)["stream"]
    again = again.at(state)
    with streams.to_device(again, ahead=2) as batches:
        rest = ids([next(batches) for _ in range(17)])
    assert seen + rest == whole
    # The stream itself goes on from there too.
    assert again.position == 30
    assert some(again, 2) == some(plain, 2)
    again.close()
    plain.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_run_may_go_on_with_another_number_of_hosts():
    """The same examples in each step, as long as the batch of all hosts is the same."""
    alone = streams.stream(numbered(50), batch=6, seed=2, transform=lambda x, rng: x + rng.integers(100))
    steps = [np.sort(next(alone)["x"][:, 0]) for _ in range(12)]
    three = [
        streams.stream(
            numbered(50), batch=2, seed=2, shard=i, shards=3, transform=lambda x, rng: x + rng.integers(100)
        ).at(alone.at({**alone.state(), "position": 3}).state())
        for i in range(3)
    ]
    for step in steps[3:]:
        np.testing.assert_array_equal(np.sort(np.concatenate([next(s)["x"][:, 0] for s in three])), step)


def test_transforms_have_a_generator_of_their_own():
    def lot(x, rng):
        return np.float64([x[0], rng.random()])

    def lots(seed, shard=0, shards=1):
        one = streams.stream(
            numbered(12), batch=12 // shards, seed=seed, shard=shard, shards=shards, epochs=2, transform=lot
        )
        return [b["x"] for b in one]

    first, second = lots(0)
    both = np.concatenate([first, second])
    assert len(np.unique(both[:, 1])) == 24  # each example, each epoch
    np.testing.assert_array_equal(np.concatenate(lots(0)), both)
    assert not np.isin(np.concatenate(lots(1))[:, 1], both[:, 1]).any()
    shared = np.concatenate([lots(0, i, 2)[0] for i in range(2)])
    assert len(np.unique(shared[:, 1])) == 12  # two hosts draw nothing in common
    np.testing.assert_array_equal(np.sort(shared[:, 1]), np.sort(first[:, 1]))


def test_order_kept_and_remainder_kept():
    one = streams.stream(numbered(7), batch=3, seed=0, shuffle=False, drop_remainder=False, epochs=2)
    assert ids(list(one)) == [[0, 1, 2], [3, 4, 5], [6]] * 2
    assert (one.per_epoch, one.total) == (3, 6)
    with pytest.raises(StopIteration):
        next(one)
    assert ids(list(one.at({**one.state(), "position": 5}))) == [[6]]


def test_memory_maps_and_device_arrays(tmp_path):
    np.save(tmp_path / "x.npy", numbered(12).x)
    mapped = sources.Arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), numbered(12).y)
    on_device = sources.Arrays(jax.numpy.asarray(numbered(12).x), numbered(12).y)
    plain = streams.stream(numbered(12), batch=5, seed=0, epochs=2)
    wanted = ids(list(plain))
    for source in (mapped, on_device):
        found = list(streams.stream(source, batch=5, seed=0, epochs=2))
        assert ids(found) == wanted
        assert all(type(b["x"]) is np.ndarray for b in found)


def test_batches_lie_where_the_sharding_says():
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with streams.to_device(streams.stream(numbered(8), batch=4, seed=0, epochs=1), sharding=sharding) as batches:
        found = list(batches)
    assert len(found) == 2
    assert all(b["x"].sharding == sharding for b in found)


def test_what_reading_raises_arrives():
    def broken(x, rng):
        raise OSError("the disk is gone")

    with (
        streams.to_device(streams.stream(numbered(8), batch=4, seed=0, transform=broken)) as batches,
        pytest.raises(OSError, match="the disk is gone"),
    ):
        next(batches)


def jpegs(shapes):
    """Encoded pictures, each of one colour, of many sizes."""
    out = []
    for i, (height, width) in enumerate(shapes):
        colour = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i / len(shapes), 1, 1))
        stream = io.BytesIO()
        Image.new("RGB", (width, height), colour).save(stream, "JPEG", quality=95)
        out.append((stream.getvalue(), colour))
    return out


def test_pictures_of_many_sizes_are_cropped_before_they_are_normalised():
    made = jpegs([(40, 60), (31, 33), (80, 20), (50, 50), (64, 48), (90, 90)])
    x = lazy.pictures(lambda i: made[i][0], len(made), size=16)
    x = x.map(lambda batch: batch.astype(np.float32) / 255, np.float32)
    source = sources.Arrays(x, np.arange(6, dtype=np.int32))
    one = streams.stream(source, batch=3, seed=0, epochs=2, transform=cropping.resized_crop(8), full=True)
    found = list(one)
    assert len(found) == 4
    for b in found:
        assert b["x"].shape == (3, 8, 8, 3)
        assert b["x"].dtype == np.float32
        for image, label in zip(b["x"], b["y"], strict=True):
            np.testing.assert_allclose(image, np.broadcast_to(made[label][1], (8, 8, 3)) / np.float32(255), atol=0.02)
    small = list(streams.stream(source, batch=3, seed=0, epochs=1))
    assert [b["x"].shape for b in small] == [(3, 16, 16, 3)] * 2
    np.testing.assert_array_equal(small[0]["x"], x[small[0]["y"]])
    made[4] = (made[4][0][:40], None)
    with pytest.raises(ValueError, match="picture 4: is not a picture"):
        list(streams.stream(source, batch=6, seed=0, epochs=1, transform=cropping.resized_crop(8), full=True))


def test_a_crop_is_a_resized_box_of_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (23, 37, 3), np.uint8)
    seen, turned = set(), 0
    for seed in range(40):
        rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
        out = cropping.resized_crop(11)(picture, rng)
        top, left, height, width = cropping.box(same, 23, 37, (0.08, 1.0), (3 / 4, 4 / 3))
        whole = Image.fromarray(picture).crop((left, top, left + width, top + height))
        want = np.asarray(whole.resize((11, 11), Image.Resampling.BILINEAR))
        mirrored = np.array_equal(out, want[:, ::-1])
        assert mirrored or np.array_equal(out, want)
        turned += mirrored
        seen.add((height, width))
    assert 10 < turned < 30
    assert len(seen) > 20
    grey = cropping.resized_crop(5)(picture[..., :1], np.random.default_rng(0))
    assert grey.shape == (5, 5, 1)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0), (0.01, 0.02)])
@pytest.mark.parametrize(("height", "width"), [(30, 20), (1, 7), (200, 11), (9, 9)])
def test_boxes_lie_inside_and_have_an_allowed_shape(scale, height, width):
    found = [cropping.box(np.random.default_rng(seed), height, width, scale, (0.5, 2.0)) for seed in range(200)]
    for top, left, h, w in found:
        assert 0 <= top < top + h <= height
        assert 0 <= left < left + w <= width
        # A side is within half a pixel of a real box's.
        assert 0.5 * (h - 0.5) <= w + 0.5
        assert w - 0.5 <= 2 * (h + 0.5)
    if (height, width, scale[1]) == (30, 20, 1.0):
        assert len(set(found)) > (100 if scale[0] < 0.5 else 15)
        assert {top + h for top, _, h, _ in found} >= {height}
        shares = [h * w / 600 for _, _, h, w in found]
        assert scale[0] * 0.9 < min(shares)
        assert max(shares) > 0.75


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: s(batch=5, seed=0), "an epoch of 4 examples holds no batch of 5"),
        (lambda s: s(batch=3, seed=0, shards=2), "holds no batch of 3 on each of 2 hosts; take a batch of at most 2"),
        (lambda s: s(batch=0, seed=0), "batch is 0; expected a whole number of at least 1"),
        (lambda s: s(batch=1, seed=-1), "seed is -1"),
        (lambda s: s(batch=1, seed=0, shard=2, shards=2), "shard is 2 of 2 shards; expected 0 to 1"),
        (lambda s: s(batch=1, seed=0, epochs=0), "epochs is 0"),
        (lambda s: s(batch=1, seed=0, threads=0), "threads is 0"),
        (lambda s: s(batch=1, seed=0, start=-1), "start is -1, in a stream of no end"),
        (lambda s: s(batch=1, seed=0, epochs=1, start=5), "start is 5, in a stream of 4 batches"),
        (lambda s: s(batch=1, seed=0, shards=2, drop_remainder=False), "is for one host"),
        (lambda s: s(batch=1, seed=0, full=True), "full=True is for lazy pictures"),
        (lambda s: s(batch=1, seed=0).at({"position": 0}), r"lacks \['batch', 'examples', 'per_epoch', 'seed'\]"),
        (lambda s: s(batch=1, seed=0).at(s(batch=2, seed=0).state()), "batch was 2, is 1; per_epoch was 2, is 4"),
        (lambda s: s(batch=1, seed=0).at(s(batch=1, seed=9).state()), "seed was 9, is 0"),
        (lambda s: streams.to_device(s(batch=1, seed=0), ahead=0), "ahead is 0"),
        (lambda s: cropping.resized_crop(0), "expected a size of at least 1"),
        (lambda s: cropping.resized_crop(8, scale=(0.5, 0.1)), "the lesser first"),
        (lambda s: cropping.resized_crop(8)(np.zeros((3, 3), np.uint8), None), r"a picture is uint8\[3, 3\]"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(lambda **asked: streams.stream(numbered(4), **asked))
    assert "\n" not in str(caught.value)


def test_labels_that_do_not_fit_and_examples_of_many_shapes():
    with pytest.raises(ValueError, match="there are 4 examples and 3 labels"):
        streams.stream(sources.Arrays(np.zeros(4), np.zeros(3)), batch=1, seed=0)
    ragged = streams.stream(numbered(4), batch=4, seed=0, transform=lambda x, rng: np.zeros(int(x[0])))
    with pytest.raises(ValueError, match=r"shapes \[\(0,\), \(1,\), \(2,\), \(3,\)\]; bring them to one"):
        next(ragged)


def test_without_grain_one_line_says_so(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "grain":
            raise ImportError("No module named 'grain'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[data\]'"):
        streams.stream(numbered(4), batch=1, seed=0)
