"""GLUE's tasks from tables in both layouts and from prepared files, against tensorflow-datasets' own reading."""

import pathlib
import sys

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from mvp_jax.data import sources
from mvp_jax.data.checkpoint_inputs import encoded, tokens
from mvp_jax.data.datasets import glue, text

ROWS = [("A net votes.", 'It is "pruned', 0), ("Löten  \x85 \u2028 ends", "", 1), ("a\rb", "c,d", 1)]


def plain(folder, name="rte", rows=ROWS, splits=("train", "dev")):
    """The layout of one table a split; the splits differ in their last row."""
    second = len(glue.TASKS[name].columns) > 2
    for split in splits:
        lines = [["label", "sentence1", *["sentence2"] * second]]
        lines += [[str(y), a, *[b] * second] for a, b, y in (*rows, (split, "last", 0))]
        (folder / f"{name}_{split}.tsv").write_bytes("".join("\t".join(x) + "\n" for x in lines).encode())
    return folder


def test_plain_tables(tmp_path):
    found = glue.read("rte", plain(tmp_path))
    assert found.train.first == ("A net votes.", "Löten  \x85 \u2028 ends", "a\rb", "train")
    assert found.train.second == ('It is "pruned', "", "c,d", "last")
    assert found.train.y.tolist() == [0, 1, 1, 0]
    assert found.train.y.dtype == np.int32
    assert found.valid.first[-1] == "dev"
    assert found.mismatched is None
    single = glue.read("glue/sst2", plain(tmp_path, "sst2"))
    assert single.train.second is None
    scores = glue.read("stsb", plain(tmp_path, "stsb", [("a", "b", 4.75), ("c", "d", "0.8")]))
    assert scores.train.y.dtype == np.float32
    assert scores.train.y.tolist() == pytest.approx([4.75, 0.8, 0])
    names = plain(tmp_path, "qnli", [("a", "b", "not_entailment"), ("c", "d", "entailment")])
    assert glue.read("qnli", names).train.y.tolist() == [1, 0, 0]
    three = plain(tmp_path, "mnli", [("a", "b", 2), ("c", "d", "neutral")], glue.TASKS["mnli"].splits)
    found = glue.read("mnli", three)
    assert found.train.y.tolist() == [2, 1, 0]
    assert (found.valid.first[-1], found.mismatched.first[-1]) == ("dev_matched", "dev_mismatched")


OWN = {
    "cola": (["gj04\t1\t\tThe sailors rode.", 'bc01\t0\t*\tRode " the.'], [1, 0], "The sailors rode."),
    "sst2": (["sentence\tlabel", "fine \t1", "dull\t0"], [1, 0], "fine "),
    "qqp": (
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tWhy?\tHow?\t0", "4\t5", "6\t7\t8\ta\tb\t1"],
        [0, 1],
        "Why?",
    ),
    "stsb": (
        [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "0\tm\tf\t2012\t1\tnone\tnone\tA plane.\tA jet.\t5.000",
            "1\tm\tf\t2012\t4\tnone\tnone\tA\tB\t3.8",
        ],
        [5.0, 3.8],
        "A plane.",
    ),
    "mnli": (
        [
            "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
            "0\tg\tp\th\tneutral\tneutral",
            "1\tg\tq\ti\tneutral\tcontradiction",
        ],
        [1, 2],
        "p",
    ),
    "qnli": (
        ["index\tquestion\tsentence\tlabel", "0\tWho?\tMe.\tnot_entailment", "1\ta\tb\tentailment"],
        [1, 0],
        "Who?",
    ),
    "rte": (
        ["index\tsentence1\tsentence2\tlabel", '0\ta " b\tc\tentailment', "1\td\te\tnot_entailment"],
        [0, 1],
        'a " b',
    ),
}


def own(folder, name):
    """GLUE's own layout."""
    task = glue.TASKS[name]
    (folder / task.folder).mkdir(exist_ok=True)
    for split in (*task.splits, *(s.replace("dev", "test") for s in task.splits[1:])):
        ends = "\r\n" if split == "train" else "\n"
        lines = ["index\tsentence", "0\ta"] if (name, split) == ("cola", "test") else OWN[name][0]
        (folder / task.folder / f"{split}.tsv").write_bytes(ends.join([*lines, ""]).encode())
    return folder


@pytest.fixture
def tfds():
    found = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    found.disable_progress_bar()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", OWN)
def test_the_official_layout_as_tensorflow_datasets_reads_it(name, tfds, tmp_path, monkeypatch):
    """The tables go through the builder that prepares GLUE, and what it wrote is read back."""
    from tensorflow_datasets.text import glue as theirs

    raw = own(tmp_path, name)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(raw))

    class Local(theirs.Glue, skip_registration=True):
        name = "glue"
        code_path = None  # of checksums, which nothing needs here

    Local(config=name, data_dir=str(tmp_path / "prepared"), file_format="array_record").download_and_prepare()
    ours, prepared = glue.read(name, raw), glue.read(name, tmp_path / "prepared")
    _, labels, first = OWN[name]
    assert ours.train.y.tolist() == pytest.approx(labels)
    assert ours.train.first[0] == first
    for split in ("train", "valid", "mismatched"):
        a, b = getattr(ours, split), getattr(prepared, split)
        assert (a is None) == (b is None) == (split == "mismatched" and name != "mnli")
        if a is not None:
            assert a.y.dtype == b.y.dtype
            seconds = [[""] * 2 if t.second is None else t.second for t in (a, b)]
            rows = [sorted(zip(t.first, s, t.y.tolist(), strict=True)) for t, s in zip((a, b), seconds, strict=True)]
            assert rows[0] == rows[1]  # prepared ones are shuffled
    inner = glue.read(name, raw / glue.TASKS[name].folder)  # the task's own folder will do
    assert inner.train.first == ours.train.first


def test_mrpc_with_the_mark_of_its_file(tmp_path):
    (tmp_path / "MRPC").mkdir()
    for split in ("train", "dev"):
        head = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
        (tmp_path / "MRPC" / f"{split}.tsv").write_bytes(f'{head}1\t7\t8\tHe "said.\tHe said.\r\n'.encode())
    found = glue.read("mrpc", tmp_path)
    assert (found.train.first, found.train.second, found.train.y.tolist()) == (('He "said.',), ("He said.",), [1])


def test_pairs_become_rows(tmp_path):
    folder = plain(tmp_path, rows=[("net votes", "net", 0), ("votes votes", "net net net", 1)])
    found = glue.source("rte", folder, length=8, cache=tmp_path / "ids")
    known = encoded.words(["net votes", "net", "votes votes", "net net net", "train", "last"])
    net, votes, last, train = (known.vocab[w] for w in ("net", "votes", "last", "train"))
    assert (net, votes) == (4, 5)
    assert found.train.x.tolist() == [
        [text.CLS, net, votes, text.SEP, net, text.SEP, 0, 0],
        [text.CLS, votes, votes, text.SEP, net, net, net, text.SEP],
        [text.CLS, train, text.SEP, last, text.SEP, 0, 0, 0],
    ]
    assert found.test.x[-1, 1] == text.UNK  # words of the development split are not learned
    assert (found.name, found.class_names) == ("glue/rte", ("entailment", "not_entailment"))
    assert len(list((tmp_path / "ids").iterdir())) == 2
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nnet\nvote\n##s\n")
    own = glue.source("rte", folder, tokens.tokenizer(tmp_path), length=8)
    assert own.train.x[0].tolist() == [2, 4, 5, 6, 3, 4, 3, 0]
    with pytest.raises(ValueError, match="no room beside 3"):
        glue.source("rte", folder, length=4)


def test_a_regression_is_no_source(tmp_path):
    plain(tmp_path, "stsb", [("a b", "c", 2.5)])
    with pytest.raises(ValueError, match=r"stsb asks for scores.*glue\.arrays.*metrics\.squared_error") as caught:
        glue.source("stsb", tmp_path)
    assert "\n" not in str(caught.value)
    found = glue.arrays("stsb", tmp_path, length=6)
    assert found["train"].y.tolist() == [2.5, 0.0]
    assert found["train"].x.shape == (2, 6)
    assert set(found) == {"train", "valid"}
    assert glue.TASKS["stsb"].classes == 1
    three = plain(tmp_path, "mnli", [("a", "b", 2)], glue.TASKS["mnli"].splits)
    assert set(glue.arrays("mnli", three, length=6)) == {"train", "valid", "mismatched"}


WRONG = {
    "no columns": ("label\tsentence1\n1\tb\n", r"rte_train\.tsv lacks the columns \['sentence2'\]"),
    "too few": ("label\tsentence1\tsentence2\n1\ta\tb\n1\tb\n", r"rte_train\.tsv, line 3: 2 columns, not 3"),
    "too many": ("label\tsentence1\tsentence2\n1\ta\tb\tc\n", r"line 2: 4 columns, not 3; a tab"),
    "a blank line": ("label\tsentence1\tsentence2\n\n1\ta\tb\n", r"line 2: 1 columns"),
    "another label": ("label\tsentence1\tsentence2\n1\ta\tb\n2\ta\tb\n", r"line 3: label '2' is none of rte.*0 to 1"),
    "no label": ("label\tsentence1\tsentence2\n\ta\tb\n", r"line 2: label '' is none of rte"),
    "empty": ("", r"rte_train\.tsv is empty"),
    "blank": ("\n\r\n", r"rte_train\.tsv is empty"),
    "only a header": ("label\tsentence1\tsentence2\n", r"rte_train\.tsv is empty"),
    "not UTF-8": (b"label\tsentence1\tsentence2\n1\t\xff\tb\n", r"rte_train\.tsv is not UTF-8 \(byte 28\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tables(case, tmp_path):
    content, message = WRONG[case]
    plain(tmp_path)
    (tmp_path / "rte_train.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        glue.read("rte", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", ["5.1", "-0.5", "nan", "high", ""])
def test_wrong_scores(score, tmp_path):
    plain(tmp_path, "stsb", [("a", "b", score)])
    with pytest.raises(
        ValueError, match=r"stsb_train\.tsv, line 2: label .* none of stsb, which has scores from 0 to 5"
    ):
        glue.read("stsb", tmp_path)


def test_missing_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no GLUE task 'sst-5'; did you mean 'sst2'"):
        glue.read("sst-5", tmp_path)
    with pytest.raises(ValueError, match=r"no GLUE task 'wnli'; .*there are cola, sst2, mrpc"):
        glue.task("wnli")
    with pytest.raises(ValueError, match=r"no GLUE task 'glue/xyz'; there are"):
        glue.task("glue/xyz")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            ValueError, match=r"rte_train\.tsv or RTE/train\.tsv in .*glue/rte as made by pip"
        ) as caught:
            glue.read("rte", folder)
        assert str(folder) in str(caught.value)
    (tmp_path / "glue" / "rte" / "2.0.0").mkdir(parents=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(ValueError, match=r"2\.0\.0 needs array_record to be read: pip install array_record"):
        glue.read("rte")
    plain(tmp_path, splits=("dev",))
    with pytest.raises(ValueError, match=r"no file .*rte_train\.tsv; rte has the splits train, dev"):
        glue.read("rte", tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_prepared_files_that_do_not_do(tfds, tmp_path):

    class Glue(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.0.0")
        code_path = None
        BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in ("rte", "qnli"))

        def _info(self):
            words = {f: tfds.features.Text() for f in glue.TASKS[self.builder_config.name].features}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({**words, "label": np.int32})
            )

        def _split_generators(self, _):
            splits = ("train", "dev") if self.builder_config.name == "qnli" else ("train", "validation")
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            for i in range(1 + (self.builder_config.name == "rte")):
                yield i, {f: f"text {i}" for f in self.info.features if f != "label"} | {"label": -i}

    for name, message in (
        ("rte", r"glue/rte/2\.0\.0, train, record \d: label .*-1.* is none of rte"),
        ("qnli", r"glue/qnli/2\.0\.0 has no split 'validation', only \['dev', 'train'\]"),
    ):
        Glue(config=name, data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
        with pytest.raises(ValueError, match=message):
            glue.read(name, tmp_path)
    described = tmp_path / "glue" / "qnli" / "2.0.0" / "dataset_info.json"
    described.write_text(described.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match=r"has tfrecord files, which need TensorFlow; expected are"):
        glue.read("qnli", tmp_path)
    described.write_text("{")
    with pytest.raises(ValueError, match=r"2\.0\.0 cannot be read: .*prepare it anew") as caught:
        glue.read("qnli", tmp_path)
    assert "\n" not in str(caught.value)
    (record,) = (tmp_path / "glue" / "rte" / "2.0.0").glob("glue-train*")
    record.write_bytes(b"")
    with pytest.raises(ValueError, match=r"split 'train', cannot be read"):
        glue.read("rte", tmp_path)


def test_published_tables():
    """The official numbers of examples; each class has some."""
    folder = pathlib.Path(__file__).resolve().parents[4] / "shared" / "data" / "glue"
    if not folder.is_dir():
        pytest.skip(f"no tables at {folder}")
    for name, counts in (("rte", (2490, 277)), ("mrpc", (3667, 408))):
        found = glue.source(name, folder, length=48)
        assert isinstance(found, sources.Source)
        assert (len(found.train.y), len(found.test.y)) == counts
        assert set(found.test.y.tolist()) == {0, 1}
        assert (found.train.x == text.SEP).sum(1).min() == 2
