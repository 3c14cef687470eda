"""What lies beside the weights of a folder that is written: tokeniser, processor, licence, README, names of classes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, models, pretrained
from mvp_jax.core.types import Variables
from mvp_jax.data.checkpoint_inputs import images, tokens
from mvp_jax.models import vit
from mvp_jax.pretrained import export
from tests import folders
from tests.model_kinds import randomise

README = """---
license: apache-2.0
language:
- en
model-index:
- name: source
  results: []
tags: [tiny]
---
# The source

It reads letters.
"""
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 8, "width": 8},
    "image_mean": [0.1, 0.2, 0.3],
}


def source_of_texts(folder):
    """A classifier of two named classes, with all that a published folder may have beside it."""
    folders.bert_encoder(folder)
    described = json.loads((folder / "config.json").read_text())
    described |= {
        "id2label": {"0": "bad", "1": "good"},
        "label2id": {"bad": 0, "good": 1},
        "problem_type": "single_label_classification",
        "torch_dtype": "float16",
        "initializer_range": 0.03,
        "_name_or_path": "/home/somebody/model",
        "auto_map": {"AutoModel": "modeling.Own"},
    }
    (folder / "config.json").write_text(json.dumps(described))
    for name in ("modeling.py", "pytorch_model.bin", "training_args.pkl", "optimizer.pt", "LICENSE.py", "notes.txt"):
        (folder / name).write_text("never")
    (folder / "LICENSE").write_text("Apache")
    (folder / "NOTICE.txt").write_text("A notice")
    (folder / "README.md").write_text(README)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = source_of_texts(tmp_path_factory.mktemp("bert"))
    return folder, *pretrained.load(folder)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    model = models.build(vit.micro(8, channels=3, dim=16, heads=2, layers=1, mlp=24, classes=3))
    variables = randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)
    export.checkpoint(folder, model, variables)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder, model, variables


def written(folder):
    return {p.name for p in folder.iterdir()}


def test_a_checkpoint_carries_its_tokeniser_licence_and_names(bert, tmp_path):
    source, model, variables = bert
    out = export.checkpoint(tmp_path / "out", model, variables, source=source, about="Half of it is gone.")
    assert written(out.path) == {
        "model.safetensors",
        "config.json",
        "report.json",
        "README.md",
        "LICENSE",
        "NOTICE.txt",
        "vocab.txt",
        "tokenizer_config.json",
    }
    assert out.notes == ()
    assert out.bytes == sum(p.stat().st_size for p in out.path.iterdir())
    text = ["abc, 12", "zz top"]
    ids = tokens.tokenizer(out.path).encode(text, length=12)
    np.testing.assert_array_equal(ids, tokens.tokenizer(source).encode(text, length=12))
    assert len(np.unique(ids)) > 6
    described = json.loads((out.path / "config.json").read_text())
    assert described["id2label"] == {"0": "bad", "1": "good"}
    assert described["label2id"] == {"bad": 0, "good": 1}
    assert described["problem_type"] == "single_label_classification"
    assert (described["torch_dtype"], described["initializer_range"]) == ("float32", 0.03)
    assert not {"_name_or_path", "auto_map"} & set(described)
    assert pretrained.class_names(out.path) == ("bad", "good")


def test_the_readme_says_what_the_folder_is_and_keeps_the_licence(bert, tmp_path):
    source, model, variables = bert
    half = jax.tree.map(lambda a: a.at[..., ::2].set(0), variables.params)
    out = export.checkpoint(tmp_path / "out", model, Variables(half, {}), source=source, about="Half of it is gone.")
    text = (out.path / "README.md").read_text()
    front, own, theirs = text.split("---\n")[1:]
    assert front == "license: apache-2.0\nlanguage:\n- en\n"
    leaves = [np.asarray(a) for a in jax.tree.leaves(half)]
    zero = sum((a == 0).sum() for a in leaves)
    total = sum(a.size for a in leaves)
    assert f"Of its {total:,} parameters, {zero:,} ({100 * zero / total:.1f} %)" in own
    assert "Half of it is gone." in own
    assert "tokenizer_config.json" in own
    assert "# The source\n\nIt reads letters." in theirs


def test_names_of_classes_and_the_problem_can_be_given(bert, tmp_path):
    source, model, variables = bert
    three = model.with_classes(3)
    wide = models.replace_head(variables, three)
    out = export.checkpoint(tmp_path / "out", three, wide, source=source, labels=["a", "b", "ü"])
    assert pretrained.class_names(out.path) == ("a", "b", "ü")
    assert "problem_type" not in json.loads((out.path / "config.json").read_text())
    unnamed = export.checkpoint(tmp_path / "three", three, wide, source=source)  # the source's two do not fit
    assert pretrained.class_names(unnamed.path) is None
    one = model.with_classes(1)
    out = export.checkpoint(
        tmp_path / "one", one, models.replace_head(variables, one), source=source, problem="regression"
    )
    assert json.loads((out.path / "config.json").read_text())["problem_type"] == "regression"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a"]}, "2 different strings"),
        ({"labels": ["a", "a"]}, "2 different strings"),
        ({"labels": "ab"}, "2 different strings"),
        ({"problem": "ranking"}, "allowed are"),
        ({"source": "config.json"}, "is a file"),
        ({"source": "nowhere"}, "no weights at"),
    ],
)
def test_wrong_labels_problems_and_sources_are_refused(options, message, bert, tmp_path):
    source, model, variables = bert
    if "source" in options:
        options = {"source": source / options["source"]}
    with pytest.raises(ValueError, match=message):
        export.checkpoint(tmp_path / "out", model, variables, **options)
    assert not (tmp_path / "out").exists()


def test_a_tokeniser_of_another_model_is_refused(bert, tmp_path):
    _, model, variables = bert
    other = source_of_texts(tmp_path / "other")
    vocabulary = (other / "vocab.txt").read_text()
    (other / "vocab.txt").write_text(vocabulary + "more\n")
    with pytest.raises(ValueError, match=r"ids up to 81, the model has embeddings for 0 to 80"):
        export.checkpoint(tmp_path / "out", model, variables, source=other)
    with pytest.raises(ValueError, match="ids up to 81"):
        pretrained.save(tmp_path / "out", model, variables, source=other)
    (other / "vocab.txt").write_text(vocabulary)
    settings = {"tokenizer_class": "BertTokenizer", "pad_token": "a"}
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="pads with id 5, the model takes id 0"):
        export.checkpoint(tmp_path / "out", model, variables, source=other)
    described = json.loads((other / "config.json").read_text())
    (other / "tokenizer_config.json").write_text("{}")
    for field, value, message in (
        ("model_type", "roberta", "of type 'roberta'"),
        ("is_decoder", True, "is_decoder"),
    ):
        (other / "config.json").write_text(json.dumps(described | {field: value}))
        with pytest.raises(ValueError, match=message):
            export.checkpoint(tmp_path / "out", model, variables, source=other)
    assert not (tmp_path / "out").exists()


def test_a_link_out_of_the_folder_is_refused_and_one_in_a_hubs_cache_followed(bert, tmp_path):
    source, model, variables = bert
    (tmp_path / "secret").write_text("key")
    other = source_of_texts(tmp_path / "other")
    (other / "LICENSE").unlink()
    (other / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="outside the folder"):
        export.checkpoint(tmp_path / "out", model, variables, source=other)
    cached = tmp_path / "cache" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (tmp_path / "cache" / "blobs").mkdir()
    (tmp_path / "cache" / "blobs" / "1").write_bytes((source / "vocab.txt").read_bytes())
    (cached / "vocab.txt").symlink_to("../../blobs/1")
    out = export.checkpoint(tmp_path / "out", model, variables, source=cached)
    assert (out.path / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()


def test_what_is_missing_is_said(bert, picture, tmp_path):
    source, model, variables = bert
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((source / "config.json").read_bytes())
    out = export.checkpoint(tmp_path / "out", model, variables, source=bare)
    assert len(out.notes) == 1
    assert "no tokeniser" in out.notes[0]
    assert json.loads((out.path / "report.json").read_text())["notes"] == list(out.notes)
    assert "no tokeniser was copied" in export.checkpoint(tmp_path / "out", model, variables).notes[0]
    _, model, variables = picture
    assert "no image processor" in export.checkpoint(tmp_path / "out", model, variables, source=bare / "..").notes[0]


def test_a_checkpoint_of_pictures_carries_its_processor(picture, tmp_path):
    source, model, variables = picture
    out = export.checkpoint(tmp_path / "out", model, variables, source=source, labels=["cat", "dog", "hen"])
    x = np.random.default_rng(0).integers(0, 255, (2, 9, 7, 3), np.uint8)
    got = images.processor(out.path)(x)
    np.testing.assert_array_equal(got, images.processor(source)(x))
    assert np.std(got) > 0.1
    assert pretrained.class_names(out.path) == ("cat", "dog", "hen")


def test_a_processor_of_another_size_is_refused(picture, tmp_path):
    _, model, variables = picture
    settings = PROCESSOR | {"size": {"height": 8, "width": 9}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="pictures of 8 x 9 pixels, the model takes 8 x 8"):
        export.checkpoint(tmp_path / "out", model, variables, source=tmp_path)


@pytest.mark.parametrize("slim", [False, True])
def test_a_saved_folder_is_complete_and_loads_in_one_call(slim, bert, tmp_path):
    source, model, variables = bert
    x = jnp.asarray(tokens.tokenizer(source).encode(["abc", "b a, c"], length=9))
    units = None
    if slim:
        units = {g.name: jnp.arange(g.size) % 2 == 0 for g in model.groups}
        model, variables = compact.rebuild(model, variables, units)
    folder = pretrained.save(tmp_path / "m", model, variables, units=units, source=source, extra={"accuracy": 0.5})
    again, values = pretrained.load(folder)
    assert again.config == model.config
    wanted = model.apply(variables, x)[0]
    np.testing.assert_array_equal(again.apply(values, x)[0], wanted)
    assert np.ptp(wanted) > 0.1
    np.testing.assert_array_equal(tokens.tokenizer(folder).encode(["abc", "b a, c"], length=9), x)
    assert written(folder) == {
        "model.json",
        "weights.safetensors",
        "README.md",
        "LICENSE",
        "NOTICE.txt",
        "vocab.txt",
        "tokenizer_config.json",
    }
    assert pretrained.class_names(folder) == ("bad", "good")
    assert pretrained.describe(folder)["extra"] == {"accuracy": 0.5, "labels": ["bad", "good"], "source": source.name}
    # Under a new head the body is the same.
    new, values = pretrained.load(folder, classes=5)
    assert new.apply(values, x)[0].shape == (2, 5)
    np.testing.assert_allclose(new.inspect(values, x).features, model.inspect(variables, x).features, atol=1e-6)
    assert pretrained.from_config(folder, 5, text=True).config == new.config
    assert pretrained.load(folder, model)[0].config == model.config
    with pytest.raises(ValueError, match="classes: 2 there, 4 in `model`"):
        pretrained.load(folder, model.with_classes(4))


def test_a_saved_folder_is_a_source_too(bert, tmp_path):
    source, model, variables = bert
    saved = pretrained.save(tmp_path / "m", model, variables, source=source)
    out = export.checkpoint(tmp_path / "out", model, variables, source=saved)
    assert pretrained.class_names(out.path) == ("bad", "good")
    assert (out.path / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    with pytest.raises(ValueError, match="'labels' already"):
        pretrained.save(tmp_path / "m", model, variables, labels=["a", "b"], extra={"labels": []})


def test_a_saved_roberta_keeps_what_only_its_config_said_of_the_tokeniser(tmp_path):
    source = tmp_path / "roberta"
    source.mkdir()
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *folders.LETTERS]
    model = models.build(models.bert.roberta(16, heads=2, layers=1, mlp=24, vocab=len(vocabulary), positions=12))
    variables = randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)
    export.checkpoint(source, model, variables)
    (source / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    folder = pretrained.save(tmp_path / "m", model, variables, source=source)
    ids = tokens.tokenizer(folder).encode(["abc"], length=6)
    np.testing.assert_array_equal(ids, tokens.tokenizer(source).encode(["abc"], length=6))
    assert ids[0].tolist() == [0, 5, 6, 7, 2, 1]


def test_a_pair_of_towers_carries_tokeniser_and_processor(tmp_path):
    source = folders.clip_pair(tmp_path / "in")
    towers = [
        pretrained.load(source, pretrained.from_config(source, 2, text=text), classes=2) for text in (False, True)
    ]
    out = export.clip_pair(tmp_path / "out", *towers, 1.2, source=source)
    read, wanted = (tokens.tokenizer(folder).encode(["ab"], length=5).tolist() for folder in (out.path, source))
    assert read == wanted
    assert images.processor(out.path) == images.processor(source)
