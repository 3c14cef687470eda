"""Sources: what is accepted, what is refused, and that archives come back pixel for pixel."""

import numpy as np
import pytest
import sklearn.datasets

from mvp_jax.data import sources


def toy(n=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 4, 5, 3), np.uint8), np.arange(n) % classes


def test_digits_are_scikit_learns():
    source = sources.digits()
    bunch = sklearn.datasets.load_digits()
    np.testing.assert_allclose(source.train.x[..., 0], bunch.images / 16, rtol=1e-7)
    np.testing.assert_array_equal(source.train.y, bunch.target)
    assert source.train.x.dtype == np.float32
    assert source.train.y.dtype == np.int32
    assert (source.train.x.min(), source.train.x.max()) == (0, 1)
    assert source.class_names == tuple("0123456789")
    assert source.test is None


def test_upsampling_repeats_pixels():
    small, large = sources.digits().train.x, sources.digits(upsample=3).train.x
    assert large.shape == (1797, 24, 24, 1)
    np.testing.assert_array_equal(large[7, :, :, 0], np.kron(small[7, :, :, 0], np.ones((3, 3))))
    with pytest.raises(ValueError, match="at least 1"):
        sources.digits(upsample=0)


def test_arrays_are_brought_to_the_canonical_form():
    source = sources.arrays("a", (np.ones((3, 4, 4)), np.array([[0], [2], [1]], np.uint8)), class_names=["x", "y", "z"])
    assert source.train.x.shape == (3, 4, 4, 1)
    assert source.train.x.dtype == np.float32
    assert source.train.y.tolist() == [0, 2, 1]
    assert source.train.y.dtype == np.int32
    assert sources.sizes(source) == {"train": 3, "test": 0}


X, Y = toy()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"train": (X, Y), "class_names": ["a", "b"]}, r"labels \[2\] are outside the 2 classes"),
        ({"train": (X, Y - 1)}, r"labels \[-1\] are outside"),
        ({"train": (X, Y), "test": (X, Y + 7)}, r"a, test: labels \[7, 8, 9\] are outside the 3 classes"),
        ({"train": (X, Y.astype(float))}, "labels are float64; expected integers"),
        ({"train": (X, Y.astype(np.int64) + 2**40)}, "number the classes from 0"),
        ({"train": (X, Y[:-1])}, "one for each image"),
        ({"train": (X.astype(np.int32), Y)}, "images are int32"),
        ({"train": (X[0], Y[:1])}, "one for each image"),
        ({"train": (X.reshape(6, -1), Y)}, r"expected \[N, H, W, C\]"),
        ({"train": (X[:0], Y[:0])}, "nothing empty"),
        ({"train": (np.full((6, 2, 2, 1), np.nan), Y)}, "nan or inf"),
        ({"train": (X, Y), "test": (X[:, :3], Y)}, "one \\[H, W, C\\]"),
        ({"train": (X, Y), "coarse": [0]}, "1 superclasses given for 3"),
        ({"train": (X, Y), "coarse": [0, 1, 2], "coarse_names": ["q"]}, "outside 1 names"),
    ],
)
def test_bad_arrays_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sources.arrays("a", **kwargs)


def write(path, **extra):
    x, y = toy()
    np.savez(path, **({"train_images": x, "train_labels": y, "test_images": x[:2], "test_labels": y[:2]} | extra))
    return x, y


def test_npz_comes_back(tmp_path):
    x, y = write(
        tmp_path / "toy.npz",
        class_names=np.array(["a", "b", "c"]),
        train_coarse_labels=np.array([1, 0, 1, 1, 0, 1], np.uint8),
        coarse_class_names=np.array([b"p", b"q"]),
    )
    source = sources.npz(tmp_path / "toy.npz")
    assert source.name == "toy"
    np.testing.assert_array_equal(source.train.x, x)
    np.testing.assert_array_equal(source.train.y, y)
    assert x.std() > 0
    assert source.test is not None
    np.testing.assert_array_equal(source.test.x, x[:2])
    assert source.class_names == ("a", "b", "c")
    assert (source.coarse, source.coarse_names) == ((1, 0, 1), ("p", "q"))
    assert sources.npz(tmp_path / "toy.npz", class_names=["u", "v", "w"]).class_names == ("u", "v", "w")
    assert sources.npz(tmp_path / "toy.npz", test=None).test is None


def test_npz_with_keys_of_its_own(tmp_path):
    x, y = toy()
    np.savez(tmp_path / "t.npz", x=x, y=y)
    source = sources.npz(tmp_path / "t.npz", train=("x", "y"), test=None, name="mine")
    np.testing.assert_array_equal(source.train.x, x)
    assert (source.name, source.class_names) == ("mine", ("0", "1", "2"))


def test_npz_refusals(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        sources.npz(tmp_path / "none.npz")
    x, y = toy()
    np.savez(tmp_path / "t.npz", train_images=x, train_labels=y)
    with pytest.raises(ValueError, match=r"lacks \['test_images', 'test_labels'\]; it has \['train_images', 'train_"):
        sources.npz(tmp_path / "t.npz")
    write(tmp_path / "coarse.npz", train_coarse_labels=np.arange(6))
    with pytest.raises(ValueError, match="each class one superclass"):
        sources.npz(tmp_path / "coarse.npz")
    write(tmp_path / "short.npz", train_coarse_labels=np.arange(2))
    with pytest.raises(ValueError, match="2 entries"):
        sources.npz(tmp_path / "short.npz")


@pytest.mark.parametrize("cut", [0, 10, 300, -10])
def test_a_damaged_archive_is_named(tmp_path, cut):
    write(tmp_path / "whole.npz")
    content = (tmp_path / "whole.npz").read_bytes()
    assert len(content) > 400
    (tmp_path / "t.npz").write_bytes(content[:cut])
    with pytest.raises(ValueError, match=r"t\.npz is not a readable"):
        sources.npz(tmp_path / "t.npz")


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "t.npy", np.zeros(3))
    with pytest.raises(ValueError, match="not a readable"):
        sources.npz(tmp_path / "t.npy")


def test_a_pickle_is_refused(tmp_path):
    write(tmp_path / "t.npz", class_names=np.array(["a", "b", None], object))
    with pytest.raises(ValueError, match="not a readable"):
        sources.npz(tmp_path / "t.npz")


def test_normalise():
    x, y = toy(50)
    source = sources.normalise(sources.arrays("a", (x, y), (x[:5], y[:5])))
    mean, std = (x / 255).mean((0, 1, 2)), (x / 255).std((0, 1, 2))
    np.testing.assert_allclose(source.train.x, (x / 255 - mean) / std, atol=1e-5)
    assert source.test is not None
    np.testing.assert_allclose(source.test.x, (x[:5] / 255 - mean) / std, atol=1e-5)
    given_ones = sources.normalise(sources.arrays("a", (x, y)), mean=(0.5, 0.4, 0.3), std=0.25)
    np.testing.assert_allclose(given_ones.train.x, (x / 255 - [0.5, 0.4, 0.3]) / 0.25, atol=1e-5)
    with pytest.raises(ValueError, match="expected positive"):
        sources.normalise(sources.arrays("a", (np.zeros_like(x), y)))


def test_drop_duplicates_counts_exact_copies():
    x, y = toy(8, 2)
    test = x[[1, 5, 3]].copy()
    test[1, 0, 0, 0] ^= 1  # one bit off is another image
    source, gone = sources.drop_duplicates(sources.arrays("a", (x, y), (test, y[[1, 5, 3]])))
    assert gone == 2
    assert source.test is not None
    np.testing.assert_array_equal(source.test.x, test[1:2])
    assert source.test.y.tolist() == [1]
    assert sources.drop_duplicates(sources.arrays("a", (x, y)))[1] == 0
    with pytest.raises(ValueError, match="no test"):
        sources.drop_duplicates(sources.arrays("a", (x, y), (x[:2], y[:2])))
