"""A person's data in three parts: what is read, how it is cut, and what is refused with which words."""

import csv

from mvp_jax.data.datasets import labelled


def table(path, rows, header=("text", "label"), **options):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, **options).writerows([header, *rows])
    return path


def test_a_table_is_cut_into_three_parts(tmp_path):
    rows = [(f"text {i}", ("no", "yes", "so so")[i % 3]) for i in range(60)]
    found = labelled.read(table(tmp_path / "reviews.csv", rows))
    assert (found.name, found.kind, found.class_names) == ("reviews", "texts", ("no", "so so", "yes"))
    assert [len(p.y) for p in (found.train, found.valid, found.test)] == [48, 6, 6]
    truth = dict(rows)
    for part in (found.train, found.valid, found.test):
        assert [truth[x] for x in part.x] == [found.class_names[y] for y in part.y]
        assert set(part.y.tolist()) == {0, 1, 2}
    assert len({*found.train.x, *found.valid.x, *found.test.x}) == 60
    assert found.columns == {"text": "text", "label": "label"}
