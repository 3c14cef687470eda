"""Encoders of texts without a head: embeddings, in from a folder and out to one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax import models, pretrained
from mvp_jax.models import bert
from mvp_jax.pretrained import export, sentence_files
from tests.model_kinds import randomise

SMALL = {"heads": 2, "layers": 1, "mlp": 24, "vocab": 60, "positions": 12}
KINDS = {
    "bert": lambda **more: bert.uniform(16, separator=7, epsilon=1e-12, **SMALL, **more),
    "roberta": lambda **more: bert.roberta(16, **SMALL, **more),
    "distilbert": lambda **more: bert.distilbert(16, **SMALL, **more),
}
POOLING = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def made(kind, **more):
    model = models.build(KINDS[kind](**more))
    return model, randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)


def texts(model):
    """Two texts of unlike length, padded."""
    ids = np.full((2, 9), model.config.pad, np.int32)
    ids[0, :7], ids[1, :4] = range(10, 17), range(20, 24)
    return jnp.asarray(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_leaves_padding_out(kind):
    first, variables = made(kind, task="embed")
    ids = texts(first)
    mean = models.build(KINDS[kind](task="embed", pool="mean"))
    assert mean.num_classes == 16
    assert mean.head == ""
    got = np.asarray(mean.apply(variables, ids)[0])
    assert got.shape == (2, 16)
    # Padding does not count: cut off, it gives the same.
    np.testing.assert_allclose(got[1], mean.apply(variables, ids[1:, :4])[0][0], atol=1e-5)
    assert np.abs(got - first.apply(variables, ids)[0]).max() > 0.1


def test_pooling_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    real = np.array([[True, True, False], [False, False, False]])
    wanted = (x[0, 0] + x[0, 1]) / 2
    got = np.asarray(bert.pooled(jnp.asarray(x), jnp.asarray(real), pool="mean", normalise=False))
    np.testing.assert_allclose(got, [wanted, np.zeros(4)], atol=1e-6)
    got = np.asarray(bert.pooled(jnp.asarray(x), jnp.asarray(real), pool="mean", normalise=True))
    np.testing.assert_allclose(got[0], wanted / np.sqrt(sum(w * w for w in wanted)), atol=1e-6)
    np.testing.assert_array_equal(got[1], np.zeros(4))
    got = bert.pooled(jnp.asarray(x), jnp.asarray(real), pool="first", normalise=False)
    np.testing.assert_array_equal(got, x[:, 0])
    slope = jax.grad(lambda a: bert.pooled(a, jnp.asarray(real), pool="mean", normalise=True).sum())(jnp.asarray(x))
    assert np.isfinite(slope).all()
    assert np.abs(slope[0, :2]).min() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pool", "normalise"), [("first", False), ("mean", True)])
def test_an_encoder_comes_back_with_its_pooling(pool, normalise, kind, tmp_path):
    model, variables = made(kind, task="embed", pool=pool, normalise=normalise)
    out = export.checkpoint(tmp_path / "out", model, variables)
    described = json.loads((out.path / "config.json").read_text())
    assert described["architectures"] == [
        {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}[kind] + "Model"
    ]
    assert "id2label" not in described
    names = set(safetensors.numpy.load_file(out.path / "model.safetensors"))
    assert "embeddings.word_embeddings.weight" in names
    assert not any(name.startswith(kind) or "pooler" in name or "classifier" in name for name in names)
    again, values = pretrained.load(out.path)
    assert again.config == model.config
    ids = texts(model)
    np.testing.assert_array_equal(again.apply(values, ids)[0], model.apply(variables, ids)[0])
    steps = [step["type"].rpartition(".")[2] for step in json.loads((out.path / "modules.json").read_text())]
    assert steps == ["Transformer", "Pooling"] + ["Normalize"] * normalise
    # Under a new head it is the classifier that it always was.
    classifier, values = pretrained.load(out.path, classes=3)
    assert (classifier.config.task, classifier.config.pool, classifier.num_classes) == ("classify", "first", 3)
    assert jnp.any(values.params["pooler"]["kernel"] != 0)


def test_names_with_a_prefix_and_a_pooler_are_read_too(tmp_path):
    model, variables = made("bert", task="embed")
    out = export.checkpoint(tmp_path / "out", model, variables).path
    tensors = safetensors.numpy.load_file(out / "model.safetensors")
    prefixed = {f"bert.{name}": a for name, a in tensors.items()} | {
        "bert.pooler.dense.weight": np.ones((16, 16), np.float32),
        "bert.pooler.dense.bias": np.ones(16, np.float32),
    }
    safetensors.numpy.save_file(prefixed, out / "model.safetensors", metadata={"format": "pt"})
    again, values = pretrained.load(out)
    assert again.config.task == "embed"
    np.testing.assert_array_equal(again.apply(values, texts(model))[0], model.apply(variables, texts(model))[0])
    head = {"classifier.weight": np.ones((2, 16), np.float32), "classifier.bias": np.ones(2, np.float32)}
    safetensors.numpy.save_file(prefixed | head, out / "model.safetensors", metadata={"format": "pt"})
    assert pretrained.load(out)[0].config.task == "classify"


def test_a_classifier_whose_head_is_missing_is_no_encoder(tmp_path):
    model, variables = made("bert", task="embed")
    out = export.checkpoint(tmp_path / "out", model, variables).path
    described = json.loads((out / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (out / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="`classes` gives a model a new head"):
        pretrained.load(out)


@pytest.mark.parametrize(
    ("modules", "pooling", "wanted"),
    [
        (None, POOLING, ("mean", False)),
        (["Transformer"], None, ("first", False)),
        (["Transformer", "Pooling"], {"pooling_mode": "cls"}, ("first", False)),
        (["Transformer", "Pooling", "Normalize"], POOLING, ("mean", True)),
        (["Transformer", "Pooling", "Dense"], POOLING, "lists .*Dense"),
        (["Transformer", "Pooling"], POOLING | {"pooling_mode_max_tokens": True}, "pools by"),
        (["Transformer", "Pooling"], {"pooling_mode_lasttoken": True}, "pools by"),
        (["Transformer", "Pooling"], None, "missing or empty"),
        ({"no": "list"}, None, "no readable list"),
    ],
)
def test_pooling_is_read_from_the_folder(modules, pooling, wanted, tmp_path):
    if isinstance(modules, list):
        modules = [
            {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"x.{kind}"} for i, kind in enumerate(modules)
        ]
    if modules is not None:
        (tmp_path / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted):
            sentence_files.read(tmp_path)
    else:
        assert sentence_files.read(tmp_path) == wanted


def test_what_says_nothing_is_refused():
    with pytest.raises(ValueError, match="only embed takes the mean"):
        KINDS["bert"](pool="mean")
    with pytest.raises(ValueError, match="only embed takes the mean"):
        KINDS["bert"](normalise=True)
    model, variables = made("bert", task="embed")
    with pytest.raises(ValueError, match="does not classify"):
        export.checkpoint("out", model, variables, labels=["a"] * 16)
