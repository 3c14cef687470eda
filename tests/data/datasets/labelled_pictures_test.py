"""A person's pictures in three parts: folders of classes, archives of arrays, known data sets."""

import numpy as np
import pytest
from PIL import Image

from mvp_jax.data import sources
from mvp_jax.data.datasets import labelled, picture_files, prepared
from tests.pictures_on_disk import classes, pixels


def photos(root, per_class, seed=0, ending="jpg"):
    """`root/CLASS/i.jpg` of smooth pictures in several sizes."""
    rng = np.random.default_rng(seed)
    for name, count in per_class.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
            size = (int(rng.integers(9, 30)), int(rng.integers(9, 30)))
            small.resize(size).save(root / name / f"{i:02d}.{ending}")


def parts(found):
    return found.train, found.valid, found.test


def test_a_folder_of_classes(tmp_path):
    photos(tmp_path / "pets", {"10": 10, "9": 20, "cat": 10})
    (tmp_path / "pets" / "cat" / "00.jpg").rename(tmp_path / "pets" / "loose.jpg")
    found = labelled.read(tmp_path / "pets")
    assert (found.name, found.kind, found.class_names) == ("pets", "pictures", ("10", "9", "cat"))
    assert [np.bincount(p.y).tolist() for p in parts(found)] == [[8, 16, 7], [1, 2, 1], [1, 2, 1]]
    paths = [path for part in parts(found) for path in part.x.paths]
    assert len(set(paths)) == 39
    for part in parts(found):
        assert [path.parent.name for path in part.x.paths] == [found.class_names[y] for y in part.y]
    assert any("1 picture in pets itself" in n for n in found.notes)
    shapes = {image.shape for image in found.train.x}
    assert len(shapes) > 5
    first = found.train.x[0]
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, np.asarray(Image.open(found.train.x.paths[0])))
    assert first.std() > 0
    assert len(found.train.x[2:5]) == 3
    (tmp_path / "pets" / "cat").rename(tmp_path / "pets" / "2")
    assert labelled.read(tmp_path / "pets").class_names == ("2", "9", "10")


def test_given_folders(tmp_path):
    for part, seed in (("train", 0), ("val", 1), ("test", 2)):
        photos(tmp_path / part, {"a": 10, "b": 5}, seed)
    copied = (tmp_path / "train" / "a" / "03.jpg").read_bytes()
    (tmp_path / "test" / "a" / "copy.jpg").write_bytes(copied)
    found = labelled.read(tmp_path)
    assert [len(p.y) for p in parts(found)] == [15, 15, 15]
    assert found.valid.x.paths[0].parts[-3:] == ("val", "a", "00.jpg")
    assert any(n.startswith("1 of 16 test examples (test/) were left out") for n in found.notes)
    other = labelled.read(tmp_path / "train", test=tmp_path / "test")
    assert [len(p.y) for p in parts(other)] == [13, 2, 15]
    assert labelled.read(tmp_path, test="val").test.x.paths[0].parts[-3] == "val"


@pytest.mark.parametrize("full", [True, False])
def test_equal_pictures_stay_together(full, tmp_path, monkeypatch):
    if not full:
        monkeypatch.setattr(picture_files, "FULLY_CHECKED", 0)
    classes(tmp_path, {"a": 8, "b": 8})
    for i in range(8):  # the same pixels again, and in another format
        whole = tmp_path / "a" / f"{i:03d}.png"
        (tmp_path / "a" / f"copy{i}.png").write_bytes(whole.read_bytes())
        Image.open(whole).save(tmp_path / "a" / f"other{i}.bmp")
    for seed in range(4):
        found = labelled.read(tmp_path, seed=seed, test_share=0.3, valid_share=0.3)
        kinds = (".png", ".bmp") if full else (".png",)
        seen = [
            {image.tobytes() for image, path in zip(p.x, p.x.paths, strict=True) if path.suffix in kinds}
            for p in parts(found)
        ]
        assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]
        assert sum(map(len, seen)) == 16


def test_a_picture_stands_upright(tmp_path):
    classes(tmp_path, {"a": 4, "b": 4})
    x = pixels(1, (6, 4, 3), seed=7)[0]
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(x).save(tmp_path / "a" / "turned.png", exif=exif)
    Image.fromarray(np.rot90(x, -1)).save(tmp_path / "a" / "upright.png")
    for seed in range(4):
        found = labelled.read(tmp_path, seed=seed, valid_share=0.3, test_share=0.3)
        seen = {p.name: (part.x[i], n) for n, part in enumerate(parts(found)) for i, p in enumerate(part.x.paths)}
        np.testing.assert_array_equal(seen["turned.png"][0], np.rot90(x, -1))
        assert seen["turned.png"][1] == seen["upright.png"][1]  # they look the same


def test_arrays(tmp_path):
    x, y = pixels(40), np.arange(40) % 4
    np.savez(tmp_path / "one.npz", train_images=x, train_labels=y)
    found = labelled.read(tmp_path / "one.npz")
    assert (found.name, found.kind, found.class_names) == ("one", "pictures", ("0", "1", "2", "3"))
    assert [np.bincount(p.y).tolist() for p in parts(found)] == [[8] * 4, [1] * 4, [1] * 4]
    back = {image.tobytes(): int(label) for p in parts(found) for image, label in zip(p.x, p.y, strict=True)}
    assert back == {image.tobytes(): int(label) for image, label in zip(x, y, strict=True)}
    names = np.array(["ant", "bee", "cow", "dog"])
    np.savez(
        tmp_path / "two.npz",
        train_images=x[:24] / 255,
        train_labels=y[:24, None],
        class_names=names,
        test_images=x[20:32] / 255,
        test_labels=y[20:32],
        val_images=x[28:] / 255,
        val_labels=y[28:],
    )
    found = labelled.read(tmp_path / "two.npz")
    assert found.class_names == tuple(names)
    assert found.train.x.dtype == np.float32
    assert [len(p.y) for p in parts(found)] == [24, 8, 8]  # four of each held-out part stood in an earlier one
    np.savez(tmp_path / "three.npz", x_train=x[..., 0], y_train=names[y], x_test=x[:8, ..., 1], y_test=names[y[:8]])
    found = labelled.read(tmp_path / "three.npz")
    assert found.class_names == tuple(names)
    assert found.test.x.shape == (8, 8, 8, 1)
    np.savez(tmp_path / "whole.npz", images=x.astype(np.float64), labels=y)
    assert labelled.read(tmp_path / "whole.npz").train.x.dtype == np.uint8
    np.testing.assert_array_equal(
        labelled.read(tmp_path / "whole.npz").test.x, labelled.read(tmp_path / "one.npz").test.x
    )
    np.savez(tmp_path / "odd.npz", images=x, labels=y, class_names=["1", "2", "3", "0"])
    odd = labelled.read(tmp_path / "odd.npz")  # whole numbers are indices, whatever the names are
    assert sorted(zip((i.tobytes() for i in odd.test.x), odd.test.y.tolist(), strict=True)) == sorted(
        (image.tobytes(), back[image.tobytes()]) for image in odd.test.x
    )
    np.savez(tmp_path / "four.npz", images=pixels(8, seed=1), labels=y[:8])
    assert len(labelled.read(tmp_path / "one.npz", test=tmp_path / "four.npz").test.y) == 8


def test_digits():
    found = labelled.read("digits", limit=100)
    assert found.class_names == tuple("0123456789")
    assert [len(p.y) for p in parts(found)] == [100, 179, 179]
    assert found.test.x.shape == (179, 8, 8, 1)


def test_a_prepared_data_set(monkeypatch):
    x, y = pixels(30), np.arange(30) % 3
    source = sources.arrays("cifar10", (x[:20], y[:20]), (x[18:], y[18:]), class_names=["a", "b", "c"])
    monkeypatch.setattr(
        prepared, "open", lambda name, data_dir: source if (name, data_dir) == ("cifar10", "D") else None
    )
    found = labelled.read("cifar10", path="D")
    assert [len(p.y) for p in parts(found)] == [17, 3, 10]
    np.testing.assert_array_equal(found.test.x, x[20:])


def test_broken_pictures_are_named_before_work(tmp_path, monkeypatch):
    photos(tmp_path, {"a": 6, "b": 6})
    cut = tmp_path / "b" / "04.jpg"
    cut.write_bytes(cut.read_bytes()[:-12])
    (tmp_path / "a" / "02.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"a/02.jpg: is not a picture .*nor can \[.*b/04.jpg'\] be read; replace"):
        labelled.read(tmp_path)
    monkeypatch.setattr(picture_files, "FULLY_CHECKED", 0)
    with pytest.raises(ValueError, match=r"a/02.jpg: is not a picture [^;]*; replace"):
        labelled.read(tmp_path)
    (tmp_path / "a" / "02.jpg").unlink()
    found = labelled.read(tmp_path)  # the head of the other is whole
    everything = [(p.x, i) for p in parts(found) for i, path in enumerate(p.x.paths) if path == cut]
    with pytest.raises(ValueError, match=r"b/04.jpg: is not a picture"):
        everything[0][0][everything[0][1]]
    deep = Image.fromarray(pixels(1, (5, 5, 1))[0, ..., 0].astype(np.uint16) * 256)
    deep.save(tmp_path / "b" / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png: has more than 8 bits"):
        labelled.read(tmp_path)
