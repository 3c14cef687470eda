"""A person's texts in three parts: what is read from tables and known data sets, how it is cut, what is told."""

import csv
import json

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mvp_jax.data.datasets import glue, labelled

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def table(path, rows, header=("text", "label"), **options):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, **options).writerows([header, *rows])
    return path


def parts(found):
    return found.train, found.valid, found.test


def reviews(count, start=0, labels=("neg", "pos")):
    return [(f"review {i}", labels[i % len(labels)]) for i in range(start, start + count)]


def test_a_table_is_cut_into_three_parts(tmp_path):
    rows = reviews(60, labels=("no", "yes", "so so"))
    found = labelled.read(table(tmp_path / "reviews.csv", rows))
    assert (found.name, found.kind, found.class_names) == ("reviews", "texts", ("no", "so so", "yes"))
    assert not found.regression
    assert [len(p.y) for p in parts(found)] == [48, 6, 6]
    truth = dict(rows)
    for part in parts(found):
        assert [truth[x] for x in part.x] == [found.class_names[y] for y in part.y]
        assert set(part.y.tolist()) == {0, 1, 2}
        assert part.y.dtype == np.int32
        assert part.pairs is None
    assert {*found.train.x, *found.valid.x, *found.test.x} == set(truth)
    assert found.columns == {"text": "text", "label": "label"}
    assert any("test part, 6 examples, was cut from reviews.csv by seed 0: the share 0.1" in n for n in found.notes)


@given(
    rows=st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(["", " "]), st.booleans()), max_size=40),
    seed=st.integers(0, 9),
)
@SHARED
def test_equal_texts_never_stand_in_two_parts(rows, seed, tmp_path):
    rows = [(f"{text}{blank}", str(label)) for text, blank, label in rows] + reviews(8, labels=("True", "False"))
    file = table(tmp_path / "a.csv", rows)
    found = labelled.read(file, seed=seed, valid_share=0.2, test_share=0.3)
    texts = [{x.strip() for x in part.x} for part in parts(found)]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    got = sorted((x, found.class_names[y]) for part in parts(found) for x, y in zip(part.x, part.y, strict=True))
    assert got == sorted(rows)
    both = {t for t, _ in rows for u, _ in rows if t.strip() == u.strip()}
    labels = {t.strip(): {y for u, y in rows if u.strip() == t.strip()} for t in both}
    contradicting = sum(len(kinds) > 1 for kinds in labels.values())
    told = [n for n in found.notes if "different labels" in n]
    assert [n.split()[0] for n in told] == ([str(contradicting)] if contradicting else [])
    again = labelled.read(file, seed=seed, valid_share=0.2, test_share=0.3)
    assert [list(p.x) for p in parts(again)] == [list(p.x) for p in parts(found)]


def test_pairs_and_the_order_of_the_file(tmp_path):
    rows = [(f"question {i}", f"answer {i}", i % 2) for i in range(30)]
    file = table(tmp_path / "a.tsv", rows, ("sentence1", "sentence2", "label"), delimiter="\t")
    found = labelled.read(file)
    assert found.columns == {"text": "sentence1", "pair": "sentence2", "label": "label"}
    for part in parts(found):
        numbers = [int(x.split()[1]) for x in part.x]
        assert numbers == sorted(numbers)
        assert part.pairs == [f"answer {i}" for i in numbers]
        assert part.y.tolist() == [i % 2 for i in numbers]
    assert labelled.read(file, text="sentence2").train.pairs is None


def test_given_files_are_used(tmp_path):
    train = reviews(20)
    table(tmp_path / "train.csv", train)
    table(tmp_path / "test.csv", [*reviews(6, 50), (" review 3 ", "pos"), ("review 4", "neg")])
    table(tmp_path / "dev.csv", [*reviews(4, 80), *reviews(2, 0), *reviews(2, 50)])
    found = labelled.read(tmp_path)
    assert found.name == tmp_path.name
    assert found.train.x == [t for t, _ in train]
    assert found.test.x == [f"review {i}" for i in range(50, 56)]
    assert found.valid.x == [f"review {i}" for i in range(80, 84)]
    assert any(n.startswith("2 of 8 test examples (test.csv) were left out") for n in found.notes)
    assert any(n.startswith("4 of 8 validation examples (dev.csv) were left out") for n in found.notes)
    # The same by a named file, where the validation part has to be cut.
    named = labelled.read(tmp_path / "train.csv", test=tmp_path / "test.csv", valid_share=0.2)
    assert named.test.x == found.test.x
    assert (len(named.train.y), len(named.valid.y)) == (16, 4)
    assert labelled.read(tmp_path, test="dev.csv").test.x[:4] == found.valid.x


def test_labels(tmp_path):
    def names(*labels, **options):
        rows = [(f"text {i}", labels[i % len(labels)]) for i in range(12 * len(labels))]
        return labelled.read(table(tmp_path / "a.csv", rows), **options)

    assert names("10", "9", "2").class_names == ("2", "9", "10")
    assert names("1.0", "0.0").class_names == ("0", "1")
    assert names("01", "02").class_names == ("01", "02")
    assert names("b", "2", "10").class_names == ("10", "2", "b")
    blanks = names("pos", "pos ", "neg")
    assert blanks.class_names == ("neg", "pos")
    assert any("differ only in blanks" in n and "'pos'" in n for n in blanks.notes)
    assert names("0.5", "1.5", regression=False).class_names == ("0.5", "1.5")
    assert names(*range(30), regression=False).class_names == tuple(map(str, range(30)))  # 0 to 29: no gaps
    assert labelled.read(table(tmp_path / "b.csv", [(f"t{i}", i % 25 * 4) for i in range(200)]), regression=False)


def test_regression(tmp_path):
    rows = [(f"text {i}", i / 4) for i in range(40)]
    found = labelled.read(table(tmp_path / "a.csv", rows))
    assert found.regression
    assert found.class_names == ()
    assert [len(p.y) for p in parts(found)] == [32, 4, 4]
    assert all(p.y.dtype == np.float32 for p in parts(found))
    for part in parts(found):
        assert part.y.tolist() == [dict(rows)[x] for x in part.x]
    assert any("fractions" in n for n in found.notes)
    whole = labelled.read(table(tmp_path / "b.csv", [(f"text {i}", i) for i in range(20)]), regression=True)
    assert whole.regression


def test_a_limit_draws_training_examples(tmp_path):
    rows = [(f"t{i}", "rare" if i < 10 else "often") for i in range(100)]
    file = table(tmp_path / "a.csv", rows)
    whole, few = labelled.read(file), labelled.read(file, limit=20)
    assert few.test.x == whole.test.x
    assert few.valid.x == whole.valid.x
    assert set(few.train.x) < set(whole.train.x)
    assert np.bincount(few.train.y).tolist() == [18, 2]  # often, rare
    assert any("Of 80 training examples 20 are used" in n for n in few.notes)


def test_json_lines_and_words_as_labels(tmp_path):
    rows = [{"content": f"text {i}", "category": ["sport", "art"][i % 2], "n": i} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = labelled.read(tmp_path / "a.jsonl")
    assert found.class_names == ("art", "sport")
    assert found.columns == {"text": "content", "label": "category"}
    assert "not read: 'n'" in found.notes[0]


def test_glue(tmp_path):
    for split, start in (("train", 0), ("dev", 17)):
        rows = [(i % 6 * 0.9, f"one {i}", f"two {i}") for i in range(start, start + 20)]
        table(tmp_path / f"stsb_{split}.tsv", rows, ("label", "sentence1", "sentence2"), delimiter="\t")
        rows = [(i % 2, f"one {i}") for i in range(start, start + 20)]
        table(tmp_path / f"sst2_{split}.tsv", rows, ("label", "sentence1"), delimiter="\t")
    scores = labelled.read("glue/stsb", path=tmp_path)
    assert (scores.name, scores.regression) == ("glue/stsb", True)
    assert [len(p.y) for p in parts(scores)] == [18, 2, 17]  # three of the development split are training pairs
    official = glue.read("stsb", tmp_path)
    assert scores.test.x == list(official.valid.first[3:])
    assert scores.test.pairs == list(official.valid.second[3:])
    assert scores.test.y.tolist() == official.valid.y[3:].tolist()
    words = labelled.read("glue/sst2", path=tmp_path)
    assert words.class_names == ("negative", "positive")
    assert any("official development split" in n for n in words.notes)


def test_docstrings():
    found = labelled.read("docstrings")
    assert found.kind == "texts"
    assert len(found.class_names) > 10
    assert [len(p.y) / len(found.class_names) for p in parts(found)] == [144, 18, 18]
    assert all(len(x.split()) >= 12 and "[" not in x for x in found.test.x)
    assert len({*found.train.x, *found.valid.x, *found.test.x}) == sum(len(p.y) for p in parts(found))
