"""Tokenisers of checkpoints against transformers', on GLUE's sentences and the published vocabularies."""

import gzip
import json
import pathlib
import shutil

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from mvp_jax.data.checkpoint_inputs import tokens

DATA = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"
if not DATA.is_dir():
    pytest.skip(f"the vocabularies and sentences are not at {DATA}", allow_module_level=True)

ODD = [
    "",
    " ",
    "  Two   blanks\tand\na line ",
    "naïve café, ÉCOLE Straße İstanbul",
    "日本語 and 한국어",
    "don't they'll I'M it's 'tis we've",
    "a1b22c333 3.14 -- ... !?! #hash @at",
    "emoji 👍🏽 family 👨‍👩‍👧",
    "[SEP] inside [MASK] text </s> <s> <|endoftext|>",
    "\u200bzero\u00a0width\ufffd\x00control",
    "x" * 150,
    "ends with blanks   ",
    "ﬁne ligature Å angstrom e\u0301",
]


def lines(task, columns, count=1000):
    """Every sentence of the first rows of a task; without quoting, as the files are."""
    rows = (DATA / "glue" / task).read_text(encoding="utf-8").split("\n")[1:]
    return [row.split("\t")[1 : 1 + columns] for row in rows[:count] if row]


@pytest.fixture(scope="module")
def sentences():
    pairs = lines("mrpc_train.tsv", 2) + lines("qnli_dev.tsv", 2)
    assert len(pairs) == 2000
    odd = [(a, b) for a in ODD for b in reversed(ODD)]
    singles = [row[0] for row in lines("sst2_train.tsv", 1, 2000)] + ODD
    return singles, [*pairs, *odd]


def merges():
    with gzip.open(DATA / "clip_bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : 49152 - 256 - 2 + 1]


def bytes_in_order():
    """The characters that stand for bytes: themselves where they can be seen, the others from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in seen] + [chr(256 + n) for n in range(256 - len(seen))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in ("bert", "cased", "clip", "roberta")}
    for name in ("bert", "cased"):
        shutil.copyfile(DATA / "bert_base_uncased_vocab.txt", made[name] / "vocab.txt")
    (made["cased"] / "tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": true}')
    letters, pairs = bytes_in_order(), merges()
    words = [*letters, *(c + "</w>" for c in letters), *(p.replace(" ", "") for p in pairs)]
    vocab = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    assert len(vocab) == 49408
    (made["clip"] / "vocab.json").write_text(json.dumps(vocab))
    (made["clip"] / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    (made["clip"] / "config.json").write_text('{"model_type": "clip", "text_config": {"vocab_size": 49408}}')
    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    texts = [row[0] for row in lines("rte_train.tsv", 1)]
    trained.train_from_iterator(texts, vocab_size=2000, special_tokens=special, show_progress=False)
    trained.save_model(str(made["roberta"]))
    (made["roberta"] / "config.json").write_text('{"model_type": "roberta", "vocab_size": 2000}')
    return made


def theirs(name, folder):
    if name in ("bert", "cased"):
        more = {} if name == "bert" else {"do_lower_case": False, "strip_accents": True}
        return transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), **more)
    kind = transformers.CLIPTokenizer if name == "clip" else transformers.RobertaTokenizer
    return kind(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def same(own, reference, texts, pairs, length):
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    expected = np.array(reference(texts, pairs, **options)["input_ids"])
    got = own.encode(texts, pairs, length=length)
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(expected)) > 100
    if length < 60:  # some are cut
        assert (expected[:, -2] != reference.pad_token_id).any()
    return got


@pytest.mark.parametrize("name", ["bert", "cased", "clip", "roberta"])
def test_ids(name, folders, sentences):
    own, reference = tokens.tokenizer(folders[name]), theirs(name, folders[name])
    singles, pairs = sentences
    first, second = ([p[i] for p in pairs] for i in (0, 1))
    assert own.pad == reference.pad_token_id
    assert own.vocab == reference.get_vocab()
    for length in (77, 30):
        ids = same(own, reference, singles, None, length)
    for length in (128, 41):
        same(own, reference, first, second, length)
    for length in (12, 7):  # for which transformers takes seconds a hundred, as it keeps all that it cuts off
        same(own, reference, first[-250:], second[-250:], length)
    texts = own.decode(ids)
    assert texts == [t.strip() if name == "clip" else t for t in reference.batch_decode(ids, skip_special_tokens=True)]
    ends = (reference.bos_token_id, reference.eos_token_id)
    if name in ("bert", "cased"):
        ends = (reference.cls_token_id, reference.sep_token_id)
    assert (own.start, own.end) == ends


@pytest.mark.parametrize("name", ["bert", "cased", "clip", "roberta"])
def test_saved_by_transformers(name, folders, sentences, tmp_path):
    reference = theirs(name, folders[name])
    reference.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert not (tmp_path / "vocab.txt").exists()
    own = tokens.tokenizer(tmp_path)
    singles, pairs = sentences
    same(own, reference, singles, None, 30)
    same(own, reference, [p[0] for p in pairs], [p[1] for p in pairs], 50)
    assert own.pad == reference.pad_token_id


def test_clip_from_its_own_file(folders, sentences):
    own, reference = tokens.clip_bpe(DATA / "clip_bpe_simple_vocab_16e6.txt.gz"), theirs("clip", folders["clip"])
    assert own.vocab == reference.get_vocab()
    same(own, reference, sentences[0], None, 77)
    # As in OpenAI's documentation of `clip.tokenize`.
    assert own.encode(["hello world!"], length=77)[0, :6].tolist() == [49406, 3306, 1002, 256, 49407, 49407]
