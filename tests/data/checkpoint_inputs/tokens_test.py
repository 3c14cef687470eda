"""Tokenisers of checkpoints, on vocabularies small enough to work the ids out by hand."""

import dataclasses
import gzip
import json
import pathlib
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers")

from mvp_jax.data.checkpoint_inputs import tokens

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "prune", "##d", "##s", "net", "vote", "cafe", "café", ",", "Net"]
PAD, UNK, CLS, SEP, MASK, PRUNE, D, S, NET, VOTE, CAFE, ACUTE, COMMA, CAPITAL = range(len(WORDS))

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "Ġ", "ab", "Ġab", "abc", "!", "<mask>"]
ROBERTA_MERGES = ["a b", "Ġ ab", "ab c"]

CLIP = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "!</w>", "1</w>", "2</w>", "'s</w>", "'", "s</w>", "ab", "abc</w>"]
CLIP_MERGES = ["a b", "ab c</w>", "' s</w>"]
START, END = len(CLIP), len(CLIP) + 1


def word_pieces(folder, words=WORDS, **settings):
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def byte_pairs(folder, words, merges, **described):
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def clip(folder, **settings):
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    words = [*CLIP, "<|startoftext|>", "<|endoftext|>"]
    return byte_pairs(folder, words, CLIP_MERGES, model_type="clip", text_config={"vocab_size": len(words)})


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tokens.tokenizer(word_pieces(tmp_path_factory.mktemp("bert")))


def test_word_pieces_by_hand(bert):
    ids = bert.encode(["Pruned nets, votes", "unknown [MASK] CAFÉ", ""], length=8)
    assert ids.dtype == np.int32
    assert ids.tolist() == [
        [CLS, PRUNE, D, NET, S, COMMA, VOTE, SEP],  # the last piece is cut
        [CLS, UNK, MASK, CAFE, SEP, PAD, PAD, PAD],
        [CLS, SEP, *[PAD] * 6],
    ]
    assert bert.decode(ids) == ["pruned nets, vote", "cafe", ""]
    assert (bert.pad, bert.start, bert.separator, bert.end) == (PAD, CLS, SEP, SEP)
    assert bert.vocab == {w: i for i, w in enumerate(WORDS)}
    assert bert.encode([], length=4).shape == (0, 4)


@pytest.mark.parametrize(
    ("length", "first", "second"),
    [(10, 4, 3), (9, 3, 3), (8, 3, 2), (7, 2, 2), (6, 2, 1), (5, 1, 1)],
)
def test_pairs_lose_the_end_of_the_longer(bert, length, first, second):
    """Room for 7, 6, 5, ... beside three special tokens; of an odd room the longer one has the larger half."""
    long, short = "net net net net", "vote vote vote"
    expected = [CLS, *[NET] * first, SEP, *[VOTE] * second, SEP]
    assert bert.encode([long], [short], length=length).tolist() == [expected]
    swapped = [CLS, *[VOTE] * second, SEP, *[NET] * first, SEP]
    assert bert.encode([short], [long], length=length).tolist() == [swapped]


def test_a_short_text_of_a_pair_stays_whole(bert):
    assert bert.encode(["net"], ["vote " * 50], length=9).tolist() == [[CLS, NET, SEP, *[VOTE] * 5, SEP]]
    assert bert.encode(["net " * 50], [""], length=6).tolist() == [[CLS, NET, NET, NET, SEP, SEP]]
    equal = bert.encode(["net " * 9], ["vote " * 9], length=8).tolist()
    assert equal == [[CLS, NET, NET, SEP, VOTE, VOTE, VOTE, SEP]]


def test_settings_of_word_pieces(tmp_path):
    cased = tokens.tokenizer(word_pieces(tmp_path, do_lower_case=False, tokenizer_class="BertTokenizerFast"))
    assert cased.encode(["Net net café"], length=5).tolist() == [[CLS, CAPITAL, NET, ACUTE, SEP]]
    word_pieces(tmp_path, do_lower_case=True, strip_accents=False, cls_token="[CLS]")
    assert tokens.tokenizer(tmp_path).encode(["CAFÉ"], length=4).tolist() == [[CLS, ACUTE, SEP, PAD]]
    names = {"cls_token": {"content": "net"}, "sep_token": "vote", "pad_token": "cafe", "unk_token": "prune"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    renamed = tokens.tokenizer(tmp_path)
    assert renamed.encode(["no"], length=4).tolist() == [[NET, PRUNE, VOTE, CAFE]]
    config = names | {"cls_token": "[CLS]", "added_tokens_decoder": {"2": {"content": "[CLS]"}}, "mask_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokens.tokenizer(tmp_path).start == CLS


def test_a_vocabulary_with_separators_of_lines(tmp_path):
    """Unicode has more ends of lines than files of text."""
    known = tokens.tokenizer(word_pieces(tmp_path, [*WORDS[:5], "\x85", "\u2028", "net"]))
    assert known.encode(["net"], length=3).tolist() == [[CLS, 7, SEP]]


def test_roberta_by_hand(tmp_path):
    known = tokens.tokenizer(byte_pairs(tmp_path, ROBERTA, ROBERTA_MERGES, model_type="roberta", vocab_size=13))
    assert known.encode(["ab abc!", "abc c <mask>b"], length=9).tolist() == [
        [0, 8, 9, 6, 11, 2, 1, 1, 1],  # the blank goes before the c is looked at, as its merge is earlier
        [0, 10, 7, 6, 12, 5, 2, 1, 1],  # the mask takes in the blank before it
    ]
    pair = known.encode(["ab"], ["c"], length=8)
    assert pair.tolist() == [[0, 8, 2, 2, 6, 2, 1, 1]]
    assert known.decode(pair) == ["abc"]
    assert (known.pad, known.start, known.separator, known.end) == (1, 0, 2, 2)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert tokens.tokenizer(tmp_path).encode(["ab"], length=4).tolist() == [[0, 9, 2, 1]]


def test_clip_by_hand(tmp_path):
    known = tokens.tokenizer(clip(tmp_path))
    ids = known.encode(["ABC  \n a!", "ab's 12", "b" * 20], length=8)
    ab = CLIP.index("ab")
    assert ids.tolist() == [
        [START, CLIP.index("abc</w>"), CLIP.index("a</w>"), CLIP.index("!</w>"), END, END, END, END],
        [START, 0, CLIP.index("b</w>"), CLIP.index("'s</w>"), CLIP.index("1</w>"), CLIP.index("2</w>"), END, END],
        [START, *[1] * 6, END],
    ]
    assert ab not in ids  # `b` at a word's end is another token
    assert known.decode(ids[:2]) == ["abc a !", "ab 's 1 2"]
    assert known.pad == known.end == known.separator == END
    other = tokens.tokenizer(clip(tmp_path, pad_token="'", tokenizer_class="CLIPTokenizer"))
    assert other.encode(["a"], length=4).tolist() == [[START, CLIP.index("a</w>"), END, CLIP.index("'")]]


def merges_file(folder, lines):
    path = folder / "bpe.txt.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(["a header", *lines]))
    return path


def test_clip_from_merges(tmp_path):
    path = merges_file(tmp_path, ["n e", "ne t</w>", "v o", "not used", "nor this"])
    known = tokens.clip_bpe(path, size=512 + 3 + 2)
    assert len(known.vocab) == 517
    # Bytes are numbered by the characters that stand for them: those that are seen first, from "!" on.
    letters = {c: ord(c) - ord("!") for c in "netvo"}
    assert known.encode(["NET vo!"], length=8).tolist() == [
        [515, 513, letters["v"], letters["o"] + 256, 256, 516, 516, 516]
    ]
    blank, acute = known.vocab["Ġ"], known.encode(["\u00e9"], length=4)[0]
    assert blank == 94 + 12 + 82 + 32  # after all that are seen come the bytes 0 to 32
    assert acute.tolist() == [515, 94 + 0xC3 - 174 + 12, 256 + 94 + 0xA9 - 161, 516]
    assert known.decode(acute[None]) == ["\u00e9"]
    for size, message in ((520, "5 merges of two tokens in its first 6"), (100, "size=100 must hold")):
        with pytest.raises(ValueError, match=message):
            tokens.clip_bpe(merges_file(tmp_path, ["n e", "ne t</w>", "v o", "one", "v o", "v e"]), size=size)
    with pytest.raises(ValueError, match="do not build on each other"):
        tokens.clip_bpe(merges_file(tmp_path, ["xx yy"]), size=515)
    path.write_bytes(path.read_bytes()[:-9])
    for broken in (path, tmp_path / "none.gz", tmp_path):
        with pytest.raises(ValueError, match="cannot be read as a gzipped list"):
            tokens.clip_bpe(broken, size=515)


def test_a_whole_tokeniser_comes_first(tmp_path, bert):
    """Its own cutting and padding are set aside; what is said of lower case has the last word."""
    saved = pickle.loads(pickle.dumps(bert)).backend
    saved.enable_truncation(3)
    saved.enable_padding(pad_id=VOTE, pad_token="vote", length=40)
    saved.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("another\n")
    known = tokens.tokenizer(tmp_path)
    assert known.encode(["Net pruned"], length=7).tolist() == [[CLS, NET, PRUNE, D, SEP, VOTE, VOTE]]
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[PAD]", "do_lower_case": false}')
    known = tokens.tokenizer(tmp_path)
    assert known.encode(["Net net café"], length=6).tolist() == [[CLS, CAPITAL, NET, ACUTE, SEP, PAD]]
    saved.no_padding()
    saved.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").unlink()
    assert tokens.tokenizer(tmp_path).pad == PAD


def test_many_texts(bert, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK", 7)
    texts = [["net", "vote", "prune"][i % 3] + " net" * (i % 4) for i in range(30)]
    ids = bert.encode(texts, texts[::-1], length=9)
    for row, a, b in zip(ids, texts, reversed(texts), strict=True):
        np.testing.assert_array_equal(row, bert.encode([a], [b], length=9)[0])
    assert len({row.tobytes() for row in ids}) > 5


@given(
    st.lists(st.lists(st.sampled_from(["net", "vote", "cafe", "prune", "pruned", "nets"]), max_size=6), max_size=5),
    st.integers(3, 20),
)
def test_known_words_come_back(bert, texts, length):
    ids = bert.encode([" ".join(words) for words in texts], length=length)
    assert ids.shape == (len(texts), length)
    for row, words, back in zip(ids, texts, bert.decode(ids), strict=True):
        filled = (row != PAD).sum()
        assert (row[:filled] != PAD).all()
        assert row[0] == CLS
        assert row[filled - 1] == SEP
        pieces = [w.removesuffix("d").removesuffix("s") for w in words]
        needed = 2 + sum(1 + (p != w) for p, w in zip(pieces, words, strict=True))
        assert filled == min(needed, length)
        if needed <= length:
            assert back.split() == words


@given(st.lists(st.text(max_size=30), max_size=4), st.lists(st.text(max_size=30), max_size=4), st.integers(5, 24))
def test_any_text(bert, first, second, length):
    n = min(len(first), len(second))
    ids = bert.encode(first[:n], second[:n], length=length)
    assert ids.shape == (n, length)
    assert ((ids >= 0) & (ids < len(WORDS))).all()
    assert ((ids[:, :-1] == PAD) <= (ids[:, 1:] == PAD)).all()
    assert all((row == SEP).sum() >= 2 for row in ids)


def test_kept_and_moved(bert):
    again = pickle.loads(pickle.dumps(bert))
    assert again.encode(["pruned net"], length=6).tolist() == bert.encode(["pruned net"], length=6).tolist()
    with pytest.raises(dataclasses.FrozenInstanceError):
        bert.pad = 3


def test_bad_texts_and_ids(bert):
    for length, pairs, message in ((2, None, "no room beside 2.*at least 3"), (4, ["b"], "beside 3.*at least 5")):
        with pytest.raises(ValueError, match=message):
            bert.encode(["a"], pairs, length=length)
    with pytest.raises(ValueError, match=r"1 texts and 2 pairs"):
        bert.encode(["a"], ["b", "c"], length=9)
    with pytest.raises(ValueError, match="texts are 'net'; give a list"):
        bert.encode("net", length=9)
    with pytest.raises(ValueError, match="pairs are 3; give a list"):
        bert.encode(["a"], [3], length=9)
    with pytest.raises(ValueError, match="cannot be encoded"):
        bert.encode(["half of a pair \ud800"], length=9)
    with pytest.raises(ValueError, match=r"ids are 1 to 14; this vocabulary has 0 to 13"):
        bert.decode(np.array([[1, 14]]))
    for wrong in (np.array([1, 2]), np.array([[0.5]])):
        with pytest.raises(ValueError, match=r"give integers \[N, L\]"):
            bert.decode(wrong)


BROKEN = {
    "nothing": (lambda p: None, "neither tokenizer.json nor vocab.txt, and no vocab.json and no merges.txt"),
    "no merges": (lambda p: (p / "vocab.json").write_text("{}"), r"and no merges.txt; download"),
    "no class": (lambda p: byte_pairs(p, ROBERTA, []), "are of 'None'.*known are"),
    "another class": (lambda p: byte_pairs(p, ROBERTA, [], model_type="gpt2"), "are of 'gpt2'.*any other needs"),
    "other word pieces": (lambda p: word_pieces(p, tokenizer_class="BertJapaneseTokenizer"), "vocab.txt of a BertJapa"),
    "unsplit": (lambda p: word_pieces(p, do_basic_tokenize=False), "do_basic_tokenize=False"),
    "from the left": (lambda p: word_pieces(p, padding_side="left"), "padding_side is 'left'"),
    "no separator": (lambda p: word_pieces(p, ["[PAD]", "[UNK]", "[CLS]", "a"]), r"sep_token '\[SEP\]' is not in"),
    "not a name": (lambda p: word_pieces(p, pad_token=["x"]), r"a special token is \['x'\]"),
    "no padding": (lambda p: word_pieces(p, pad_token="<none>"), "pad_token '<none>' is not in the vocabulary"),
    "added": (lambda p: (word_pieces(p) / "added_tokens.json").write_text('{"new": 14}'), r"\['new'\] are added"),
    "listed": (lambda p: word_pieces(p, added_tokens_decoder={"14": {"content": "new"}}), r"\['new'\] are added"),
    "not a list": (lambda p: word_pieces(p, added_tokens_decoder=[3]), "is refused"),
    "not a flag": (lambda p: word_pieces(p, do_lower_case="no"), "is refused"),
    "broken settings": (lambda p: (word_pieces(p) / "tokenizer_config.json").write_text("{"), "is not readable JSON"),
    "no object": (lambda p: (word_pieces(p) / "config.json").write_text("[1]"), "is a JSON list, not an object"),
    "broken tokeniser": (lambda p: (p / "tokenizer.json").write_text('{"model": 3}'), "is refused"),
    "merges of nothing": (lambda p: byte_pairs(p, ROBERTA, ["x y"], model_type="roberta"), "is refused"),
    "a small model": (
        lambda p: (word_pieces(p) / "config.json").write_text('{"vocab_size": 13}'),
        "ids up to 13, the model in config.json 13",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refused(case, tmp_path):
    write, message = BROKEN[case]
    write(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        tokens.tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_tokeniser_without_marks_is_refused(tmp_path):
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[PAD]": 1}, unk_token="a"))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"\[0\] becomes \[0\], as a pair \[0, 0\]; around both"):
        tokens.tokenizer(tmp_path)
    marked = tokenizers.processors.TemplateProcessing("a $A a", "a $A a $B a", special_tokens=[("a", 0)])
    bare.post_processor = marked
    bare.save(str(tmp_path / "tokenizer.json"))
    assert tokens.tokenizer(tmp_path).between == (0,)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[NONE]"}')
    with pytest.raises(ValueError, match=r"no padding token \['\[NONE\]'\]"):
        tokens.tokenizer(tmp_path)


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for call in (lambda: tokens.tokenizer(tmp_path), lambda: tokens.clip_bpe(tmp_path / "x.gz")):
        with pytest.raises(ValueError, match=r"pip install -e '\.\[text\]'"):
            call()


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        tokens.tokenizer(tmp_path / "none")


def test_published_vocabularies(tmp_path):
    """Ids that are printed in many places."""
    data = pathlib.Path(__file__).resolve().parents[4] / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"no vocabularies at {data}")
    (tmp_path / "vocab.txt").symlink_to(data / "bert_base_uncased_vocab.txt")
    known = tokens.tokenizer(tmp_path)
    assert known.encode(["Hello, my dog is cute"], length=9).tolist() == [
        [101, 7592, 1010, 2026, 3899, 2003, 10140, 102, 0]
    ]
    known = tokens.clip_bpe(data / "clip_bpe_simple_vocab_16e6.txt.gz")
    assert known.encode(["a photo of a cat"], length=8).tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407, 49407]]
