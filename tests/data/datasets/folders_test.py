"""Pictures in folders: what is found, in which order, what the two known layouts mean, and what is refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

from mvp_jax.data import sources
from mvp_jax.data.datasets import catalog, folders
from mvp_jax.data.loading import lazy
from tests.pictures_on_disk import classes, encoded, pixels


def test_folders_of_classes(tmp_path):
    made = classes(tmp_path / "train", {"bee": 3, "ant": 2, "cow": 4})
    held_out = classes(tmp_path / "test", {"bee": 1, "ant": 2, "cow": 1}, seed=1)
    (tmp_path / "train" / "bee" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / ".hidden").mkdir()
    source = folders.folder(tmp_path)
    assert source.name == tmp_path.name
    assert source.class_names == ("ant", "bee", "cow")
    assert source.train.y.tolist() == [0] * 2 + [1] * 3 + [2] * 4
    assert source.test.y.tolist() == [0, 0, 1, 2]
    assert isinstance(source.train.x, np.ndarray)
    np.testing.assert_array_equal(source.train.x, np.concatenate([made[c] for c in ("ant", "bee", "cow")]))
    np.testing.assert_array_equal(source.test.x, np.concatenate([held_out[c] for c in ("ant", "bee", "cow")]))
    assert source.train.x.std() > 0
    late = folders.folder(tmp_path, lazily=True)
    assert isinstance(late.train.x, lazy.Lazy)
    np.testing.assert_array_equal(late.train.x[:], source.train.x)
    assert folders.folder(tmp_path, channels=1).image_shape == (8, 8, 1)


def test_large_folders_are_decoded_when_they_are_looked_at(tmp_path, monkeypatch):
    classes(tmp_path, {"a": 2, "b": 2})
    monkeypatch.setattr(catalog, "SMALL", 4 * 8 * 8 * 3 - 1)
    assert isinstance(folders.folder(tmp_path).train.x, lazy.Lazy)
    monkeypatch.setattr(catalog, "SMALL", 4 * 8 * 8 * 3)
    assert isinstance(folders.folder(tmp_path).train.x, np.ndarray)


def test_splits(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        classes(tmp_path / split, {"a": 2 + i, "b": 1}, seed=i)

    def count(**given):
        return tuple(sources.sizes(folders.folder(tmp_path, **given)).values())

    assert count() == (3 + 4, 5)  # the validation pictures are learned from too
    assert count(test="val") == (3 + 5, 4)
    assert count(test="") == (3, 0)
    shutil.rmtree(tmp_path / "test")
    assert count() == (3, 4)
    shutil.rmtree(tmp_path / "val")
    assert count() == (3, 0)
    assert folders.folder(tmp_path / "train").test is None


def test_sizes(tmp_path):
    classes(tmp_path, {"a": 1, "b": 2})
    Image.fromarray(pixels(1, (8, 13, 3))[0]).save(tmp_path / "b" / "odd.png")
    with pytest.raises(ValueError, match=r"odd.png is 8 x 13, .*a/000.png is 8 x 8; give a size"):
        folders.folder(tmp_path)
    assert folders.folder(tmp_path, size=6).train.x.shape == (4, 6, 6, 3)


def test_a_broken_picture_is_named(tmp_path):
    classes(tmp_path, {"a": 2, "b": 2})
    whole = (tmp_path / "b" / "001.png").read_bytes()
    (tmp_path / "b" / "001.png").write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"b/001.png: is not a picture that can be read"):
        folders.folder(tmp_path)
    late = folders.folder(tmp_path, lazily=True)  # its head is whole
    assert late.train.x[[0, 2]].shape == (2, 8, 8, 3)
    with pytest.raises(ValueError, match=r"b/001.png"):
        late.train.x[3]
    (tmp_path / "b" / "001.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b/001.png: is not a picture"):
        folders.folder(tmp_path, lazily=True)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        folders.folder(tmp_path / "none")
    with pytest.raises(ValueError, match="no folder ''"):
        folders.folder("")
    with pytest.raises(ValueError, match=r"no pictures in .*expected a folder for each class"):
        folders.folder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("")
    with pytest.raises(ValueError, match="no pictures in"):
        folders.folder(tmp_path)
    classes(tmp_path, {"b": 1})
    with pytest.raises(ValueError, match=r"no pictures of the classes \['a'\]"):
        folders.folder(tmp_path)
    with pytest.raises(ValueError, match="no folder 'train' beside 'test'"):
        folders.folder(tmp_path, test="test")
    classes(tmp_path / "s" / "train", {"a": 1, "b": 1})
    classes(tmp_path / "s" / "test", {"b": 1, "c": 1})
    with pytest.raises(ValueError, match=r"s/test lacks the classes \['a'\] and has \['c'\] besides"):
        folders.folder(tmp_path / "s")
    with pytest.raises(ValueError, match="no folder 'dev'"):
        folders.folder(tmp_path / "s", test="dev")


def tiny(root, per_class=2, shape=(64, 64, 3)):
    kinds = ("n02", "n01", "n03")
    made = {}
    for k, kind in enumerate(kinds):
        (root / "train" / kind / "images").mkdir(parents=True)
        (root / "train" / kind / f"{kind}_boxes.txt").write_text("")
        made[kind] = pixels(per_class, shape, seed=k)
        for i, x in enumerate(made[kind]):
            (root / "train" / kind / "images" / f"{kind}_{i}.JPEG").write_bytes(encoded(x))
    (root / "val" / "images").mkdir(parents=True)
    for i in range(4):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(encoded(pixels(1, shape, seed=10 + i)[0]))
    rows = [f"val_{i}.JPEG\t{kinds[k]}\t0\t0\t62\t57\n" for i, k in enumerate((0, 2, 1, 0))]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane, bird\nn09\tno, other\n")
    return made


def test_tiny_imagenet(tmp_path):
    made = tiny(tmp_path / "tiny-imagenet-200")
    source = folders.tiny_imagenet(tmp_path)
    assert source.class_names == ("goldfish", "crane n02", "crane n03")
    assert source.train.y.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(source.train.x, np.concatenate([made[k] for k in ("n01", "n02", "n03")]))
    assert source.test.y.tolist() == [1, 2, 0, 1]
    np.testing.assert_array_equal(source.test.x[2], pixels(1, (64, 64, 3), seed=12)[0])
    (tmp_path / "tiny-imagenet-200" / "words.txt").unlink()
    again = folders.tiny_imagenet(tmp_path / "tiny-imagenet-200", size=16, lazily=True)
    assert again.class_names == ("n01", "n02", "n03")
    assert again.train.x[:2].shape == (2, 16, 16, 3)
    table = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    for content, message in (
        ("val_0.JPEG\tn77\n", r"names the classes \['n77'\]"),
        ("val_0.JPEG\n", "row 1 has 1; expected rows of at least 2"),
        ("", "there is none"),
    ):
        table.write_text(content)
        with pytest.raises(ValueError, match=message):
            folders.tiny_imagenet(tmp_path)
    table.unlink()
    with pytest.raises(ValueError, match=r"cannot read .*val_annotations.txt, which says what the pictures are"):
        folders.tiny_imagenet(tmp_path)


def signs(root, train, test, table, *, number="{:05d}", ending="ppm", semicolons=True):
    for c in range(43):
        (root / train / number.format(c)).mkdir(parents=True)
        x = np.full((15 + c, 20, 3), c, np.uint8)
        Image.fromarray(x).save(root / train / number.format(c) / f"00000_00000.{ending}")
        (root / train / number.format(c) / f"GT-{c:05d}.csv").write_text("Filename;Width\n")
    (root / test).mkdir(parents=True)
    rows = []
    for i, c in enumerate((16, 1, 42)):
        Image.fromarray(np.full((30, 25, 3), 100 + i, np.uint8)).save(root / test / f"{i:05d}.{ending}")
        rows.append((f"{i:05d}.{ending}", c))
    if semicolons:
        text = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
        text += "".join(f"{name};25;30;5;5;20;25;{c}\n" for name, c in rows)
    else:
        text = "Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path\n"
        text += "".join(f"25,30,5,5,20,25,{c},{test}/{name}\n" for name, c in rows)
    (root / table).write_text(text)


@pytest.mark.parametrize(
    ("train", "test", "table", "options"),
    [
        ("GTSRB/Final_Training/Images", "GTSRB/Final_Test/Images", "GTSRB/Final_Test/Images/GT-final_test.csv", {}),
        ("Train", "Test", "Test.csv", {"number": "{}", "ending": "png", "semicolons": False}),
        ("Train", "Test", "GT-final_test.csv", {}),
    ],
)
def test_gtsrb(tmp_path, train, test, table, options):
    signs(tmp_path, train, test, table, **options)
    source = folders.gtsrb(tmp_path)
    assert source.train.x.shape == (43, 32, 32, 3)
    assert (source.train.x == np.arange(43)[:, None, None, None]).all()  # each picture is its class, in order
    assert source.train.y.tolist() == list(range(43))
    assert source.test.y.tolist() == [16, 1, 42]
    assert source.test.x[:, 3, 4, 0].tolist() == [100, 101, 102]
    assert (source.class_names[14], source.num_classes) == ("stop", 43)
    assert folders.gtsrb(tmp_path, size=8, lazily=True).test.x[:].shape == (3, 8, 8, 3)


def test_gtsrb_refusals(tmp_path):
    signs(tmp_path, "Train", "Test", "Test/GT-final_test.csv")
    table = tmp_path / "Test" / "GT-final_test.csv"
    good = table.read_text()
    for content, message in (
        (good.replace("ClassId", "Class"), r"expected Filename and ClassId"),
        (good.replace(";16\n", ";sixteen\n"), "expected a number of a class"),
        (good.replace(";16\n", ";43\n"), r"gtsrb, test: labels \[43\] are outside the 43 classes"),
        (good.replace(";", ","), "row 1 has 1; expected rows of at least 8"),
    ):
        table.write_text(content)
        with pytest.raises(ValueError, match=message):
            folders.gtsrb(tmp_path)
    table.write_text(good)
    (tmp_path / "Test" / "00001.ppm").unlink()
    with pytest.raises(ValueError, match=r"00001.ppm: .*No such file"):
        folders.gtsrb(tmp_path)
    shutil.rmtree(tmp_path / "Train" / "00007")
    with pytest.raises(ValueError, match=r"holds 42 folders .*expected 00000 to 00042"):
        folders.gtsrb(tmp_path)
    with pytest.raises(ValueError, match=r"has none of the folders \['Train', "):
        folders.gtsrb(tmp_path / "Test")
