"""Wrong data of a person: one line each, which says what is wrong and what to do, before any work."""

import numpy as np
import pytest
from PIL import Image

from mvp_jax.data.datasets import labelled
from tests.pictures_on_disk import classes, pixels

ROWS = [f"review {i},{('neg', 'pos')[i % 2]}" for i in range(12)]


def lines(*rows, header="text,label"):
    return "\n".join([header, *rows, ""]).encode()


TABLES = {
    "missing column": (
        lines(*ROWS),
        {"label": "sentiment"},
        r"no column 'sentiment' \(label\); it has .*'text', 'label'",
    ),
    "near column": (lines(*ROWS), {"text": "texts"}, r"no column 'texts' \(text, did you mean 'text'\?\)"),
    "one class": (lines("a,1", "b,1", "c,1"), {}, r"column 'label': all labels are '1'.*at least two classes"),
    "one class but for blanks": (lines("a,x", "b, x"), {}, "all labels are 'x'"),
    "one value": (lines("a,1.5", "b,1.50"), {}, "all labels are '1.5'"),
    "empty cells": (
        lines("a,x", ",y", '"  ",x', "d,"),
        {},
        r"lines 3, 4: nothing in column 'text'; .*line 5: nothing in .*'label'",
    ),
    "a few examples": (
        lines(*ROWS, "a,new", "a,new"),
        {},
        r"class 'new' has 1, where at least 3 different ones are needed",
    ),
    "several with few": (lines(*ROWS, "a,u", "b,v"), {}, r"'u' has 1, 'v' has 1"),
    "identifiers": (lines(*(f"t{i},{i}" for i in range(9))), {}, r"9 different labels of 9 examples.*identifiers"),
    "words as identifiers": (
        lines(*(f"t{i},w{i}" for i in range(9))),
        {},
        r"9 different labels of 9 examples.*identifiers",
    ),
    "many values": (
        lines(*(f"t{i},{i % 30 * 3}" for i in range(90))),
        {},
        r"30 different whole numbers from 0 to 87; pass regression=True .*regression=False",
    ),
    "nan": (lines("a,1.5", "b,nan", "c,inf", "d,2"), {}, r"lines 3, 4: \['inf', 'nan'\] are no finite numbers"),
    "too large": (lines("a,1.5", "b,1e39", "d,2"), {}, r"line 3: \['1e39'\] are no finite numbers"),
    "words in a regression": (
        lines("a,1.5", "b,good", "c,2"),
        {"regression": True},
        r"line 3: \['good'\].*regression=False",
    ),
    "cases": (
        lines(*ROWS, *(f"t{i},Pos" for i in range(4))),
        {},
        r"\['Pos', 'pos'\] differ only in upper and lower case",
    ),
    "only three": (lines("a,1.5", "a,2.5"), {}, r"1 different examples; give at least 3"),
    "limit": (lines(*ROWS), {"limit": 1}, "limit is 1; give at least 2"),
    "no limit": (lines(*ROWS), {"limit": 0}, "limit=0; give whole numbers"),
    "seed": (lines(*ROWS), {"seed": -1}, "seed=-1"),
    "shares": (lines(*ROWS), {"valid_share": 0.5, "test_share": 0.5}, "less than 1 together"),
    "a path": (lines(*ROWS), {"path": "somewhere"}, "path='somewhere' has no meaning"),
    "contradictions": (
        lines(*ROWS, *(f"t{i},{k}" for i in range(3) for k in ("new", "pos", "pos"))),
        {},
        r"no training examples of the classes \['new'\], as equal examples|no .* examples of the classes \['new'\]",
    ),
    "nested": (b'{"text": ["a"], "label": 1}\n{"text": "b", "label": 0}', {}, r"line 1: a list or an object .*'text'"),
    "surrogate": (
        b'{"text": "\\ud800", "label": 1}\n{"text": "b\\u0000", "label": 0}',
        {},
        r"lines 1, 2: a NUL character or half",
    ),
}


def refused(message, *args, **options):
    with pytest.raises(ValueError, match=message) as caught:
        labelled.read(*args, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TABLES)
def test_tables(name, tmp_path):
    content, options, message = TABLES[name]
    path = tmp_path / ("a.jsonl" if content.startswith(b"{") else "a.csv")
    path.write_bytes(content)
    refused(message, path, **options)


TESTS = {
    "label only in the test": (
        lines("a,pos", "b,new", "c,neg"),
        r"test.csv, line 3: the labels \['new'\] do not occur in the training",
    ),
    "class not in the test": (lines("a,pos"), r"test.csv: class 'neg' has 0, where at least 1"),
    "other columns": (
        lines("a,pos", "b,neg", header="text,stars"),
        r"test.csv lacks the columns \['label'\].*'text', 'stars'",
    ),
    "no labels": (lines("a", "b", header="text"), r"test.csv lacks the columns \['label'\]"),
    "empty": (b"", "test.csv is empty"),
    "all learned from": (lines(*ROWS[:4]), r"4 of 4 examples of test.csv also stand in another part"),
    "one class learned from": (lines(ROWS[0], "new,pos"), r"1 of 2 examples .*not every class has a test example"),
    "empty cells": (lines(",pos", "b,neg"), r"test.csv, line 2: nothing in column 'text'"),
}


@pytest.mark.parametrize("name", TESTS)
def test_given_tests(name, tmp_path):
    content, message = TESTS[name]
    (tmp_path / "train.csv").write_bytes(lines(*ROWS))
    (tmp_path / "test.csv").write_bytes(content)
    refused(message, tmp_path)
    refused(message, tmp_path / "train.csv", test=tmp_path / "test.csv")


def test_problems_of_all_files_are_told_at_once(tmp_path):
    (tmp_path / "train.csv").write_bytes(lines(*ROWS, ",pos"))
    (tmp_path / "test.csv").write_bytes(lines("a,pos", "b,"))
    refused(r"train.csv, line 14: nothing in column 'text'; .*test.csv, line 3: nothing in column 'label'", tmp_path)


def test_paths(tmp_path):
    (tmp_path / "reviews.csv").write_bytes(lines(*ROWS))
    refused(r"no file, folder or data set .*did you mean '.*reviews.csv'", tmp_path / "review.csv")
    refused(r"did you mean 'cifar10' or 'cifar100'", "cifar-10")
    refused(r"no folder .*nowhere either", tmp_path / "nowhere" / "a.csv")
    refused("no file, folder or data set ''", "")
    refused(r"test='tset.csv': no such file", tmp_path / "reviews.csv", test="tset.csv")
    refused(r"is the training data itself", tmp_path / "reviews.csv", test=tmp_path / "reviews.csv")
    refused(r"does not fit .*give a file .csv", tmp_path / "reviews.csv", test=tmp_path)
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    refused(r"ending '.xlsx' are not read; give a table .csv, .tsv", tmp_path / "a.xlsx")
    refused(r"label='x' has no meaning", "digits", label="x")
    refused(r"path='x': digits comes with", "digits", path="x")
    refused(r"no GLUE task 'glue/mrcp'; did you mean 'mrpc'", "glue/mrcp")
    refused(r"has no rte; expected", "glue/rte", path=tmp_path)
    refused(r"has the tables \['reviews.csv'\], and none is called train", tmp_path)
    for name in ("train.csv", "train.tsv"):
        (tmp_path / name).write_bytes(lines(*ROWS))
    refused(r"several train tables, \['train.csv', 'train.tsv'\]", tmp_path)


def test_folders_of_pictures(tmp_path):
    flat = tmp_path / "flat"
    classes(flat, {"a": 4})
    refused(r"flat has one class", flat)
    refused(r"a has 4 pictures and no folders of classes; .*a/CLASS/000.png", flat / "a")
    (flat / "b").mkdir()
    refused(r"no pictures of the classes \['b'\]", flat)
    refused(r"label='x' has no meaning", flat, label="x")
    refused(r"give a folder with a folder of pictures", flat, test=flat / "a" / "000.png")
    few = tmp_path / "few"
    classes(few, {"a": 4, "b": 2})
    refused(r"few/: class 'b' has 2, where at least 3 different", few)
    Image.open(few / "b" / "000.png").save(few / "b" / "same.bmp")
    refused(r"few/: class 'b' has 2, where at least 3 different", few)
    classes(tmp_path / "split" / "test", {"a": 2, "b": 2})
    refused(r"has the folder 'test' and no 'train' beside it", tmp_path / "split")
    classes(tmp_path / "split" / "train", {"a": 4, "c": 4}, seed=1)
    refused(r"different classes: the first lacks \['c'\] and has \['b'\]", tmp_path / "split")
    (tmp_path / "split" / "test" / "b").rename(tmp_path / "split" / "test" / "c")
    classes(tmp_path / "split" / "val", {"a": 2, "c": 2}, seed=2)
    classes(tmp_path / "split" / "valid", {"a": 2, "c": 2}, seed=3)
    refused(r"\['valid', 'val'\] for one part", tmp_path / "split")
    classes(tmp_path / "blank", {"pos": 4, "pos ": 4})
    refused(r"'pos' and 'pos ' differ only in blanks", tmp_path / "blank")
    (tmp_path / "nothing").mkdir()
    refused(r"no pictures in .*nothing", tmp_path / "nothing")


def test_archives(tmp_path):
    path, x, y = tmp_path / "a.npz", pixels(12), np.arange(12) % 2

    def made(message, **arrays):
        np.savez(path, **arrays)
        refused(message, path)

    made(r"has the arrays \['a'\]; images and labels are called train_images", a=x)
    made(r"12 images and 11 labels", images=x, labels=y[:11])
    made(r"labels are float64\[12\]; give a whole number or a word", images=x, labels=y / 4)
    made(r"all labels are '0'", images=x, labels=y * 0)
    made(r"hold nan or inf", images=np.where(np.arange(12)[:, None, None, None] == 3, np.nan, x / 255), labels=y)
    made(
        r"image 11: the labels \['5'\] are none of \['0', '1'\]", images=x, labels=[*y[:11], 5], class_names=["a", "b"]
    )
    made(r"class 'c' has 0", images=x, labels=y, class_names=["a", "b", "c"])
    made(r"has only \['test'\] images", test_images=x, test_labels=y)
    made(r"images are \[H, W, C\] of", train_images=x, train_labels=y, test_images=x[:, :4], test_labels=y)
    path.write_bytes(path.read_bytes()[:99])
    refused("not a readable .npz archive", path)
