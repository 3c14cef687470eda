"""Docstrings as a data set: what is prose, what a window is, that nothing gives a class away."""

import ast
import collections
import functools
import importlib.util
import pathlib
import re

import numpy as np
import pytest

from mvp_jax.data import sources, tasks
from mvp_jax.data.datasets import text
from mvp_jax.data.sources import Arrays


def test_prose():
    docstring = """Fit :math:`a^2` by ``solver`` words.

    Long parameters
    ---------------
    X : array of `shape`, see https://example.org/page#a now
        Indented prose.

    .. math::

        \\frac{1}{2}

        \\sum x

    .. note:: Mind the gap.
       Still the note.

    .. versionadded:: nothing
       of this stays

    Code follows::

        import this

    After code.

    >>> fit(1)
    output
    more output

    Between examples.

    References
    ----------
    .. [1] Someone, a title
       that goes on.

    Plain reference.

    Notes
    -----
    The end.
    """
    assert " ".join(re.findall(r"[\w.:]+", text.prose(docstring))) == (
        "Fit by words. X : array of see now Indented prose. Mind the gap. Still the note. Code follows After code. "
        "Between examples. The end."
    )
    assert text.prose("") == text.prose(">>> 1\n1") == ""


PACKAGE = {
    "toy/__init__.py": "'''Not in a subpackage.'''",
    "toy/one/__init__.py": "'''Alpha beta gamma delta epsilon, one toy Two zeta.'''",
    "toy/one/alone.py": "'''Eta.'''",
    "toy/one/code.py": "class A:\n    '''Alpha alpha alpha.'''\n    def f(self):\n        r'''Beta\\* beta beta.'''",
    "toy/one/tests/code.py": "'''Hidden hidden hidden.'''",
    "toy/two/__init__.py": "'''Alpha alpha alpha.'''\n'''theta theta'''",
    "toy/two/function.py": "def f():\n    '''Gamma gamma gamma! Iota iota'''",
    "toy/two/more.py": "'''Gamma gamma gamma.'''",
    "toy/_three/__init__.py": "'''Private private private.'''",
    "toy/plain/code.py": "'''No package here.'''",
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A package of which the windows can be written down."""
    for name, content in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(text, "PACKAGES", {"toy": "toy"})
    monkeypatch.setattr(text, "_folder", lambda package: tmp_path / package)
    monkeypatch.setattr(text, "versions", lambda: {"toy": "1"})
    for name in ("_texts", "_encoded"):
        monkeypatch.setattr(text, name, functools.cache(getattr(text, name).__wrapped__))


def test_windows_by_hand(toy):
    source = text.docstrings(per_class=None, words=3, vocabulary=9)
    # In distinct windows: alpha, beta and gamma four times, iota twice, the others once; of equals the first by name.
    assert text.counts(words=3) == {"toy.one": 3, "toy.two": 2}
    assert source.vocabulary == ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "alpha", "beta", "gamma", "iota", "delta")
    rows = {c: {source.words(x) for x, y in zip(*source.train, strict=True) if y == c} for c in (0, 1)}
    assert rows[1] == {"[CLS] gamma gamma gamma [SEP]", "[CLS] iota iota [SEP]"}
    assert len(rows[0]) == 2
    assert rows[0] < {"[CLS] alpha beta gamma [SEP]", "[CLS] delta [UNK] [UNK] [SEP]", "[CLS] beta beta beta [SEP]"}
    short = source.train.x[[source.words(x).startswith("[CLS] iota") for x in source.train.x]]
    assert short.tolist() == [[1, 7, 7, 2, 0]]
    assert source.left_out == {}
    assert source.versions == {"toy": "1"}
    # Alpha three times is in both subpackages and so in neither; one word is less than half a window.
    assert not any("alpha alpha" in row or "eta" in row.split() for row in rows[0] | rows[1])


def test_near_duplicates_by_hand(toy):
    assert text.counts(words=3, max_run=2) == text.counts(words=3) == {"toy.one": 3, "toy.two": 2}
    # Beside "gamma gamma gamma iota" there is another "gamma gamma gamma".
    assert text.counts(words=4) == {"toy.one": 3, "toy.two": 2}
    assert text.counts(words=4, max_run=3) == {"toy.one": 3, "toy.two": 2}
    assert text.counts(words=4, max_run=2) == {"toy.one": 3, "toy.two": 1}


def test_near_duplicates_are_gone():
    source = text.docstrings(per_class=100, max_run=11)
    seen = set()
    for row in source.train.x.tolist():
        words = tuple(row[1 : row.index(text.SEP)])
        runs = {words[i : i + 12] for i in range(len(words) - 11)}
        assert not seen & runs
        seen |= runs
    assert sum(text.counts(max_run=11).values()) < 0.8 * sum(text.counts().values())


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("toy.one", "toy.three")}, r"unknown \['toy.three'\]; choose each once, of \['toy.one', 'toy.tw"),
        ({"classes": ("toy.one", "toy.one")}, "choose each once"),
        ({"classes": ()}, "choose each once"),
        ({"classes": ("toy.one", "toy.two"), "per_class": 3}, r"there are only \{'toy.two': 2\}"),
        ({"per_class": 9}, "no subpackage has 9 windows; the largest has 3"),
        ({"per_class": 0}, "give at least 1"),
        ({"words": 1}, "at least 2 words"),
        ({"vocabulary": 4}, "more ids than the 4 special ones"),
        ({"max_run": 0}, "at least 1 word or None"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        text.docstrings(**({"words": 3} | options))


def test_left_out_classes_are_listed(toy):
    source = text.docstrings(per_class=3, words=3)
    assert source.class_names == ("toy.one",)
    assert source.left_out == {"toy.two": 2}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^scipy is not installed[^\n]*pip install scipy$"):
        text.docstrings()


def test_counts_balance_and_ids():
    source = text.docstrings()
    assert 25 <= source.num_classes <= 40
    assert {"scipy.stats", "scipy.signal", "sklearn.cluster"} <= set(source.class_names)
    assert not set(source.left_out) & set(source.class_names)
    assert max(source.left_out.values()) < 180
    assert np.bincount(source.train.y).tolist() == [180] * source.num_classes
    x = source.train.x
    assert x.shape == (180 * source.num_classes, 26)
    assert x.dtype == np.int32
    assert source.image_shape == (26,)
    assert (x.min(), x.max()) == (text.PAD, 2047)
    assert len(source.vocabulary) == len(set(source.vocabulary)) == 2048
    assert (x[:, 0] == text.CLS).all()
    assert ((x == text.SEP).sum(1) == 1).all()
    end = (x == text.SEP).argmax(1)
    assert (end >= 13).all()
    assert 0 < (end < 25).mean() < 0.2
    for row, n in zip(x, end, strict=True):
        assert not row[n + 1 :].any()
        assert (row[1:n] >= text.UNK).all()
    assert 0.01 < (x == text.UNK).sum() / (x > text.SEP).sum() < 0.15
    # No window is there twice, so none is in two classes.
    assert len({row.tobytes() for row in x}) == len(x)
    assert set(text.versions()) == {"scipy", "scikit-learn"} == set(source.versions)


def test_words_that_give_a_class_away_are_absent():
    known = set(text.docstrings().vocabulary)
    folder = pathlib.Path(importlib.util.find_spec("sklearn").submodule_search_locations[0])
    parts = {w for p in folder.iterdir() if p.is_dir() and p.name[0] != "_" for w in p.name.split("_")}
    parts -= {"externals", "tests"}
    assert {"linear", "cluster", "preprocessing"} < parts
    assert not known & (parts | {"scipy", "sklearn", "numpy", "np", "scikit", "signal", "stats", "ndimage", "linalg"})
    assert {"matrix", "function", "distribution", "filter"} < known
    assert all(re.fullmatch("[a-z]{2,}", w) for w in known - set(text.SPECIAL))


def test_a_window_stands_in_the_file():
    source = text.docstrings(per_class=10, classes=("scipy.fft",))
    folder = pathlib.Path(importlib.util.find_spec("scipy").submodule_search_locations[0]) / "fft"
    words = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words += re.findall("[a-z]+", (ast.get_docstring(node) or "").lower())
    there = collections.Counter(words)
    for x in source.train.x:
        own = collections.Counter(source.words(x).split()[1:-1])
        own.pop("[UNK]", None)
        assert own.total() > 5
        assert own <= there


def test_choice_depends_on_the_seed_and_the_class_alone():
    names = ("scipy.signal", "sklearn.cluster", "scipy.fft")
    a, b, c = (text.docstrings(per_class=30, classes=names, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.train.x, b.train.x)
    assert (a.train.x != c.train.x).any(1).mean() > 0.5
    turned = text.docstrings(per_class=30, classes=names[::-1])
    np.testing.assert_array_equal(turned.train.x[:30], a.train.x[60:])
    fewer = text.docstrings(per_class=10, classes=names)
    np.testing.assert_array_equal(fewer.train.x[10:20], a.train.x[30:40])
    assert a.class_names == names


def test_tasks_of_texts():
    source = text.docstrings()
    train, test = tasks.split(source, seed=0, fractions=(0.75, 0.25))
    assert len(train.y) == 135 * source.num_classes
    assert len(test.y) == 45 * source.num_classes
    assert not {r.tobytes() for r in train.x} & {r.tobytes() for r in test.x}
    some = tasks.draw(source.num_classes, 3, 4, seed=0)
    data = [tasks.materialise(t, train, shots=5, valid=2, seed=0, test_from=test) for t in some]
    assert data[0].test.x.shape == (4 * 45, 26)
    stacked = tasks.stack(data)
    assert stacked.train.x.shape == (3, 20, 26)
    assert stacked.train.x.dtype == np.int32
    pair = tasks.subset(train, some[0].classes)
    assert np.bincount(pair.y).tolist() == [135] * 4
    back = {row.tobytes(): int(y) for row, y in zip(*train, strict=True)}
    for row, y in zip(*data[0].train, strict=True):
        assert back[row.tobytes()] == some[0].classes[y]


def test_sources_of_token_ids():
    x, y = np.arange(12, dtype=np.int32).reshape(3, 4), np.array([0, 1, 1])
    source = sources.arrays("t", (x, y), (x[:1], y[:1]))
    assert source.train.x is x
    assert source.image_shape == (4,)
    assert sources.to_float(x) is x
    assert sources.to_float(x.astype(np.uint8)).dtype == np.float32
    assert sources.drop_duplicates(sources.arrays("t", (x, y), (x[2:] + 1, y[:1])))[1] == 0
    with pytest.raises(ValueError, match="token ids, which are looked up"):
        sources.normalise(source)
    with pytest.raises(ValueError, match="negative; expected int32"):
        sources.arrays("t", (x - 1, y))
    with pytest.raises(ValueError, match=r"or int32 token ids \[N, L\]"):
        sources.arrays("t", (x.astype(np.int64), y))
    with pytest.raises(ValueError, match="one length of texts"):
        sources.Source(name="t", train=source.train, test=Arrays(x[:, :3], source.train.y), class_names=("a", "b"))
