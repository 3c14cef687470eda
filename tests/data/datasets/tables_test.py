"""Tables read from CSV, TSV and JSON: cells, lines, what is quoted, which columns are meant, and what is refused."""

import csv
import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mvp_jax.data.datasets import columns, tables

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def write(folder, content, name="a.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_with_quoting_line_breaks_and_a_mark(tmp_path):
    content = '\ufefftext , label\r\n"a, ""b""\r\nc",1\r\n\r\nd,2\r\n   \r\n"",3\r\n'
    table = tables.read(write(tmp_path, content))
    assert table.columns == {"text": ['a, "b"\r\nc', "d", ""], "label": ["1", "2", "3"]}
    assert table.rows == [2, 5, 7]  # the lines on which the rows begin
    assert (table.names, len(table), table.where([1, 2])) == (["text", "label"], 3, "lines 5, 7")
    unnamed = tables.read(write(tmp_path, ",text,label,\n0,a,1,\n"))  # as pandas writes its index
    assert unnamed.columns == {"column 1": ["0"], "text": ["a"], "label": ["1"], "column 4": [""]}


@pytest.mark.parametrize(
    ("content", "cells"),
    [
        ("text;label\na, b, c;1\nd,e;2\n", ["a, b, c", "d,e"]),
        ("text,label\na; b; c,1\nd;e,2\n", ["a; b; c", "d;e"]),
        ("text\tlabel\na, b; c\t1\nd,e\t2\n", ["a, b; c", "d,e"]),
        ('id;text, raw;label\n1;"a;b";x\n2;c, d;y\n', None),
        ("text,label\r\na,1\r\n" * 1 + "b," + "2", ["a", "b"]),
    ],
)
def test_the_delimiter_is_found(tmp_path, content, cells):
    table = tables.read(write(tmp_path, content))
    if cells is None:
        assert table.columns == {"id": ["1", "2"], "text, raw": ["a;b", "c, d"], "label": ["x", "y"]}
    else:
        assert table.columns["text"] == cells
        assert table.columns["label"] == ["1", "2"]


def test_long_cells(tmp_path):
    limit = csv.field_size_limit()
    text = "word " * 40_000  # 200,000 characters, where the csv module stops at 131,072
    assert tables.read(write(tmp_path, f"text,label\n{text},1\n")).columns["text"] == [text]
    assert csv.field_size_limit() == limit


def tsv(folder, *lines, end="\n"):
    return tables.read(write(folder, end.join([*lines, ""]), "a.tsv")).columns


def test_quotation_marks_in_tsv(tmp_path):
    plain = ['"Wait" , he said', '" open', '"whole sentence"', 'end "', "\x85 \u2028 ends"]
    found = tsv(tmp_path, "text\tlabel", *(f"{t}\t1" for t in plain))
    assert found["text"] == plain  # as in GLUE
    assert tsv(tmp_path, "text\tlabel", '"one"\t1', "two\t2", "three\t3")["text"] == ['"one"', "two", "three"]
    # What pandas and spreadsheets write: only cells that need it are quoted, or all are.
    assert tsv(tmp_path, "text\tlabel", '"say ""hi"""\t1', "two\t2", end="\r\n") == {
        "text": ['say "hi"', "two"],
        "label": ["1", "2"],
    }
    assert tsv(tmp_path, "text\tlabel", '"a\tb\nc"\t1', "two\t2")["text"] == ["a\tb\nc", "two"]
    assert tsv(tmp_path, '"text"\t"label"', '"one"\t"1"', '"two"\t"2"') == {"text": ["one", "two"], "label": ["1", "2"]}


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), delimiter=st.sampled_from(",;\t"))
@SHARED
def test_what_the_csv_module_writes_is_read_back(rows, delimiter, tmp_path):
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([("text", "label"), *rows])
    table = tables.read(tmp_path / "a.csv")
    assert list(zip(*table.columns.values(), strict=True)) == rows
    assert table.rows == sorted(set(table.rows))


@given(rows=st.lists(st.text('ab" ', min_size=1, max_size=6), min_size=1, max_size=6))
@SHARED
def test_a_quotation_mark_alone_makes_all_of_a_tsv_plain(rows, tmp_path):
    assume(all(row.strip() for row in rows))
    cells = [*rows, 'a " b']
    assert tsv(tmp_path, "text\tlabel", *(f"{cell}\t1" for cell in cells))["text"] == cells


def test_json(tmp_path):
    rows = [
        {"text": "é\nb", "label": 1, "more": [1]},
        {"label": None, "text": "c", "big": 2.5},
        {"text": "", "label": True},
    ]
    expected = {
        "text": ["é\nb", "c", ""],
        "label": ["1", "", "true"],
        "more": [[1], "", ""],
        "big": ["", "2.5", ""],
    }
    lines = tables.read(write(tmp_path, "\n\n".join(map(json.dumps, rows)), "a.jsonl"))
    assert (lines.columns, lines.rows, lines.unit) == (expected, [1, 3, 5], "line")
    assert tables.read(write(tmp_path, "\r\n".join(map(json.dumps, rows)), "a.json")).columns == expected
    whole = tables.read(write(tmp_path, json.dumps(rows, indent=2), "b.json"))
    assert (whole.columns, whole.rows, whole.unit) == (expected, [1, 2, 3], "item")


WRONG = {
    "empty": ("a.csv", b"", "is empty"),
    "blank": ("a.tsv", b" \n\n", "is empty"),
    "only a header": ("a.csv", b"text,label\n\n", r"first line \['text', 'label'\] and no rows"),
    "latin-1": (
        "a.csv",
        "text,label\na,1\né,2\n".encode("latin-1"),
        r"line 3: byte 15 \(0xE9\) is not UTF-8.*1 of 3 lines",
    ),
    "mixed": ("a.jsonl", '{"a": "é"}\n'.encode() + '{"a": "é"}\n'.encode("latin-1"), r"line 2.*1 of 2 lines.*iconv"),
    "utf-16": ("a.csv", "text,label\na,1\n".encode("utf-16"), "UTF-16"),
    "nul": ("a.csv", b"text,label\na,1\nb\0,2\n", r"line 3: a NUL byte \(byte 16\)"),
    "few cells": ("a.csv", b"text,label\na,1\nb\nc,2\nd\n", r"lines 3, 5: 1 cell, not 2.*quotation marks"),
    "many cells": ("a.csv", b"text,label\na,1\nb,c,2\n", r"line 3: 3 cells, not 2"),
    "few after a long one": ("a.csv", b'text,label\n"a\nb\nc",1\nd\n', r"line 5: 1 cell"),
    "tsv": ("a.tsv", b"text\tlabel\na\tb\t1\n", r"line 2: 3 cells, not 2.*must become a blank"),
    "twice": ("a.csv", b"text,label, text\na,1,b\n", r"several columns are called \['text'\]"),
    "open quote": ("a.csv", b'text,label\na,1\n"b,2\nc,3\n', r"the row that begins on line 3"),
    "quote inside": ("a.csv", b'text,label\n"b" c,2\n', r"begins on line 2.*written twice"),
    "no object": ("a.jsonl", b'{"a": 1}\n[1]\nx\n', r"lines 2, 3: no JSON object"),
    "cut short": ("a.json", b'[{"a": 1}, {"a"', r"is not JSON.*list of objects"),
    "no object in a list": ("a.json", b'[{"a": 1}, 2]', r"item 2: no JSON object"),
    "no objects": ("a.json", b"[]", "has no rows"),
    "keys with blanks": ("a.jsonl", b'{"a": 1, "a ": 2}', "but for blanks"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused(name, tmp_path):
    file, content, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as caught:
        tables.read(write(tmp_path, content, file))
    assert str(tmp_path / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def found(folder, header, *rows, **named):
    content = "".join(",".join(row) + "\n" for row in (header, *rows))
    return tuple(columns.find(tables.read(write(folder, content)), **named).named().values())


ROW = ("aaa bb", "cc dd", "x", "7")


@pytest.mark.parametrize(
    ("header", "named", "expected"),
    [
        (("review", "other", "Sentiment", "id"), {}, ("review", "Sentiment")),
        (("sentence1", "sentence2", "label", "idx"), {}, ("sentence1", "sentence2", "label")),
        (("question2", "question1", "is_duplicate", "id"), {}, ("question1", "question2", "is_duplicate")),
        (("#1 String", "#2 String", "Quality", "#1 ID"), {}, ("#1 String", "#2 String", "Quality")),
        (("Premise", "Hypothesis", "gold_label", "genre"), {}, ("Premise", "Hypothesis", "gold_label")),
        (("question", "sentence", "label", "index"), {}, ("question", "sentence", "label")),
        (("title", "text", "score", "label"), {}, ("text", "label")),
        (("sentence1", "sentence2", "label", "idx"), {"text": "sentence2"}, ("sentence2", "label")),
        (("sentence1", "sentence2", "label", "note"), {"text": "note"}, ("note", "label")),
        (("a", "b", "label", "idx"), {"text": "a", "pair": "b"}, ("a", "b", "label")),
        (("text", "target", "class", "idx"), {"label": "target"}, ("text", "target")),
    ],
)
def test_columns_are_found_by_name(header, named, expected, tmp_path):
    assert found(tmp_path, header, ROW, ROW, **named) == expected


def test_columns_are_found_by_what_stands_in_them(tmp_path):
    rows = [(str(i), f"words {i} and more", "ab"[i % 2], "same") for i in range(8)]
    assert found(tmp_path, ("n", "said", "kind", "lang"), *rows) == ("said", "kind")
    assert found(tmp_path, ("n", "said", "kind", "lang"), *rows, label="n") == ("said", "n")


@pytest.mark.parametrize(
    ("header", "named", "message"),
    [
        (
            ("text", "labl", "c", "d"),
            {"label": "label"},
            r"no column 'label' \(label, did you mean 'labl'\?\).*'c', 'd'",
        ),
        (("text", "label", "c", "d"), {"text": "Label", "pair": "zz"}, r"'Label'.*did you mean 'label'.*'zz' \(pair\)"),
        (("text", "label", "c", "d"), {"text": "c", "label": "c"}, "name one column twice"),
        (("n", "m", "o", "p"), {}, r"\['m', 'o', 'p'\] could all be the labels.*label='COLUMN'"),
    ],
)
def test_columns_that_cannot_be_told(header, named, message, tmp_path):
    rows = [("so many words", "u", "v", "1"), ("as many words", "w", "x", "2")] * 2
    with pytest.raises(ValueError, match=message):
        found(tmp_path, header, *rows, **named)


def test_a_file_without_names_of_columns(tmp_path):
    rows = [(f"film number {i}", ("neg", "pos")[i % 2]) for i in range(8)]
    with pytest.raises(ValueError, match=r"first row \['I liked it', 'pos'\] looks like an example"):
        found(tmp_path, ("I liked it", "pos"), *rows)
    with pytest.raises(ValueError, match="no column of texts"):
        found(tmp_path, ("a", "b"), ("1", "2"), ("3", "2"))
