"""Ids that are made once: what is read back, what is made again, and words as tokens."""

import os
import pickle
import sys

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from mvp_jax.data.checkpoint_inputs import encoded, tokens
from mvp_jax.data.datasets import text

TEXTS = ["Prune the nets", "the votes", "", "prune, prune; VOTES"]
OTHER = ["more nets", "", "the end", "é \x85 end"]


@pytest.fixture(scope="module")
def known():
    return encoded.words(TEXTS + OTHER)


class Counted:
    """A tokeniser that says how often it was asked."""

    def __init__(self, tokenizer):
        self.own, self.asked = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.own, name)

    def encode(self, *args, **kwargs):
        self.asked += 1
        return self.own.encode(*args, **kwargs)


def test_words_by_hand():
    known = encoded.words(["B a, a", "á c"], size=7)
    # Three times a (an accent is taken off), then signs and letters that occur once, in their order.
    assert sorted(known.vocab, key=known.vocab.get) == [*text.SPECIAL, "a", ",", "b"]
    ids = known.encode(["A b.", "c"], ["Á", "b [SEP]"], length=8)
    assert ids.tolist() == [
        [1, 4, 6, 3, 2, 4, 2, 0],
        [1, 3, 2, 6, 2, 2, 0, 0],
    ]  # a mark within a text is taken for one, as by all tokenisers
    assert (known.pad, known.separator) == (text.PAD, text.SEP)
    assert known.decode(ids[:1]) == ["a b a"]
    again = pickle.loads(pickle.dumps(known))
    np.testing.assert_array_equal(again.encode(TEXTS, length=6), known.encode(TEXTS, length=6))
    many = [" ".join(sorted({f"w{i * 7 % 101}" for i in range(101)}))] * 2
    first, second = (sorted(encoded.words(t, 60).vocab.items()) for t in (many, [many[0], *many[:1]]))
    assert first == second


def test_the_second_time_it_is_read(tmp_path, known):
    counted = Counted(known)
    fresh = known.encode(TEXTS, OTHER, length=9)
    for asked in (1, 1):
        ids = encoded.encoded(TEXTS, counted, 9, tmp_path / "new" / "ids", pairs=OTHER)
        np.testing.assert_array_equal(ids, fresh)
        assert ids.dtype == np.int32
        assert isinstance(ids, np.memmap)
        assert not ids.flags.writeable
        assert counted.asked == asked
    assert len({row.tobytes() for row in fresh}) == 4
    (file,) = (tmp_path / "new" / "ids").iterdir()
    np.testing.assert_array_equal(np.load(file), fresh)
    assert encoded.encoded(TEXTS, counted, 9, None).shape == (4, 9)
    assert encoded.encoded([], counted, 9, tmp_path).shape == (0, 9)
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_everything_that_matters_is_in_the_name(tmp_path, known):
    # The texts run together alike in several of these.
    cases = [
        (TEXTS, known, 9, None),
        (TEXTS, known, 10, None),
        (TEXTS, known, 9, OTHER),
        (TEXTS[::-1], known, 9, None),
        (TEXTS + OTHER, known, 9, None),
        (["Prune thenets", *TEXTS[1:]], known, 9, None),
        (["the vo", "tes"], known, 9, None),
        (["the ", "votes"], known, 9, None),
        (TEXTS, encoded.words(TEXTS + OTHER, 9), 9, None),
        (TEXTS, encoded.words(OTHER), 9, None),
    ]
    counted = [(texts, Counted(tokenizer), length, pairs) for texts, tokenizer, length, pairs in cases]
    for _ in range(2):
        for texts, tokenizer, length, pairs in counted:
            ids = encoded.encoded(texts, tokenizer, length, tmp_path, pairs=pairs)
            np.testing.assert_array_equal(ids, tokenizer.own.encode(texts, pairs, length=length))
    assert [c[1].asked for c in counted] == [1] * len(cases)
    assert len(list(tmp_path.iterdir())) == len(cases)
    cased = tokens.tokenizer(vocab(tmp_path, do_lower_case="false"))
    lower = tokens.tokenizer(vocab(tmp_path, do_lower_case="true"))
    for tokenizer in (cased, lower):
        np.testing.assert_array_equal(
            encoded.encoded(["The"], tokenizer, 4, tmp_path), tokenizer.encode(["The"], length=4)
        )
    assert cased.encode(["The"], length=4).tolist() != lower.encode(["The"], length=4).tolist()


def vocab(folder, do_lower_case):
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
    (folder / "tokenizer_config.json").write_text(f'{{"do_lower_case": {do_lower_case}}}')
    return folder


def garbled(path):
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)


def zipped(path):
    with path.open("wb") as file:
        np.savez(file, ids=np.zeros(3))


DAMAGE = {
    "a bit": garbled,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not ids"),
    "another array": lambda path: np.save(path, np.zeros((4, 9), np.int32)),
    "another type": lambda path: np.save(path, np.zeros((4, 9))),
    "an object": lambda path: np.save(path, np.array([{}], object), allow_pickle=True),
    "a zip": lambda path: zipped(path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_or_foreign_files_are_made_again(damage, tmp_path, known):
    counted = Counted(known)
    encoded.encoded(TEXTS, counted, 9, tmp_path)
    (file,) = tmp_path.iterdir()
    DAMAGE[damage](file)
    for _ in range(2):
        np.testing.assert_array_equal(encoded.encoded(TEXTS, counted, 9, tmp_path), known.encode(TEXTS, length=9))
    assert counted.asked == 2
    assert list(tmp_path.iterdir()) == [file]


def test_a_renamed_file_is_not_taken(tmp_path, known):
    own, other = known.encode(TEXTS, length=9), known.encode(OTHER, length=9)
    assert (own != other).any()
    encoded.encoded(TEXTS, known, 9, tmp_path)
    (file,) = tmp_path.iterdir()
    os.rename(file, tmp_path / "kept")
    encoded.encoded(OTHER, known, 9, tmp_path)
    (theirs,) = set(tmp_path.iterdir()) - {tmp_path / "kept"}
    os.replace(tmp_path / "kept", theirs)
    np.testing.assert_array_equal(encoded.encoded(OTHER, known, 9, tmp_path), other)


def test_nothing_half_written_stays(tmp_path, known, monkeypatch):
    def full(file, _):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ValueError, match=r"cannot keep ids in .*No space left.*choose a folder"):
        encoded.encoded(TEXTS, known, 9, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refused(tmp_path, known, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot keep ids in"):
        encoded.encoded(TEXTS, known, 9, tmp_path / "file")
    with pytest.raises(ValueError, match="give a list of strings"):
        encoded.encoded([*TEXTS, 3], known, 9, tmp_path)
    with pytest.raises(ValueError, match="4 texts and 3 pairs"):
        encoded.encoded(TEXTS, known, 9, tmp_path, pairs=OTHER[:3])
    with pytest.raises(ValueError, match="size=4 has no room for words"):
        encoded.words(TEXTS, 4)
    with pytest.raises(ValueError, match="no words to make"):
        encoded.words(["", " "])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[text\]'"):
        encoded.words(TEXTS)
