"""Formats of BERT's kin: golden files of Hugging Face's, names of all ages, configurations both ways."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax import models, pretrained
from mvp_jax.core import trees
from mvp_jax.models import bert
from mvp_jax.pretrained import key_table
from mvp_jax.pretrained.keys import bert as formats
from mvp_jax.pretrained.keys import vit

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
FORMS = {f.name.removesuffix(" (Hugging Face)").replace(" for ", "_"): f for f in (*formats.FORMATS, *vit.FORMATS)}
NAMES = ["bert", "bert_words", "roberta", "roberta_words", "distilbert", "distilbert_words"]
BARE = {"model_type": "bert"}


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as found:
        data = {k: found[k] for k in found}
    return safetensors.numpy.load_file(GOLDEN / f"{name}.safetensors"), data, json.loads(str(data["config"]))


def shapes(config):
    return jax.eval_shape(models.build(config).init, jax.random.key(0))


def carried(form, tensors, config):
    leaves = {}
    for key, a in tensors.items():
        for path, value in key_table.to_ours(form, key, a, config).items():
            assert path not in leaves, path
            leaves[path] = value
    like = shapes(config)
    assert {p: a.shape for p, a in leaves.items()} == {p: a.shape for p, a in trees.flatten(like).items()}
    return trees.replace(like, leaves)


@pytest.mark.parametrize("name", [*NAMES, "deit"])
def test_golden_logits(name):
    tensors, data, described = golden(name)
    form = FORMS[name]
    config = form.config(described)
    got, _ = models.build(config).apply(carried(form, tensors, config), data["x"])
    expected, seen = data["logits"], ...
    if name.endswith("words"):
        seen = data["x"] != config.pad
        assert not seen.all()
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(np.asarray(got)[seen], expected[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_arrays_come_back(name):
    tensors, _, described = golden(name)
    form = FORMS[name]
    config = form.config(described)
    variables = carried(form, tensors, config)
    back = dict(key_table.stored(form, variables, config))
    assert sorted(back) == sorted(tensors)
    for key, a in back.items():
        np.testing.assert_array_equal(a, tensors[key])
    again = form.config(json.loads(json.dumps(form.describe(config))))
    assert again == config


@pytest.mark.parametrize("name", NAMES)
def test_each_name_has_one_rule_and_each_rule_its_inverse(name):
    form = FORMS[name]
    config = form.config(golden(name)[2])
    paths = list(trees.flatten(shapes(config)))
    names = key_table.keys(form, config, paths)
    assert {p for _, held in names.values() for p in held} == set(paths)
    first = [key for key, (rule, _) in names.items() if not rule.tied]
    assert len(first) == len(paths)
    for key, (rule, held) in names.items():
        assert key_table.match(form, key) == (rule, held)
    assert len({rule.key for rule in form.rules}) == len(form.rules)


def renamed(tensors, *pairs):
    out = {}
    for key, a in tensors.items():
        for old, new in pairs:
            key = key.replace(old, new)
        out[key] = a
    return out


def test_older_names_and_bare_encoders():
    tensors, _, described = golden("bert")
    form = FORMS["bert"]
    config = form.config(described)
    expected = trees.flatten(carried(form, tensors, config))
    old = renamed(tensors, ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    bare = {k.removeprefix("bert."): a for k, a in tensors.items()}
    both = {k.removeprefix("bert."): a for k, a in old.items()}
    buffers = {"bert.embeddings.position_ids": np.arange(8)[None], "embeddings.token_type_ids": np.zeros((1, 8), int)}
    for other in (old, bare, both, tensors | buffers):
        assert set(other) != set(tensors)
        got = trees.flatten(carried(form, other, config))
        assert set(got) == set(expected)
        for path, a in got.items():
            np.testing.assert_array_equal(a, expected[path])


def test_one_checkpoint_gives_either_task():
    classifier, _, described = golden("bert")
    words, _, _ = golden("bert_words")
    extra = {"cls.seq_relationship.weight": np.zeros((2, 8)), "cls.seq_relationship.bias": np.zeros(2)}
    extra |= {"cls.predictions.decoder.weight": words["bert.embeddings.word_embeddings.weight"]}
    both = {**words, **classifier, **extra, "cls.predictions.decoder.bias": words["cls.predictions.bias"]}
    described = described | {"architectures": ["BertForPreTraining"]}
    for name, head, absent in (("bert", "pooler", "transform"), ("bert_words", "transform", "pooler")):
        form = FORMS[name]
        config = form.config(described)
        assert config.task == {"bert": "classify", "bert_words": "masked_lm"}[name]
        paths = set(trees.flatten(shapes(config)))
        read = {p: key_table.match(form, key) for key in both for p in key_table.match(form, key)[1]}
        assert set(read) == paths  # every name has a rule; what is not in this model is read past
        assert f"params/{head}/kernel" in paths
        assert f"params/{absent}/kernel" not in paths
    tied = [r for r in FORMS["bert_words"].rules if r.tied and "decoder" in r.key]
    assert {r.path for r in tied} == {"params/embed/word", "params/head/bias"}


def test_configurations_of_the_published_checkpoints():
    """As their `config.json` say it, with the fields that matter."""
    base = models.PRESETS["bert_base"]
    assert FORMS["bert"].config(BARE) == base(classes=2, dropout=0.1)
    assert FORMS["bert_words"].config(BARE | {"architectures": ["BertForMaskedLM"]}).task == "masked_lm"
    roberta = FORMS["roberta"].config(
        {
            "model_type": "roberta",
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-05,
            "pad_token_id": 1,
            "id2label": {"0": "a", "1": "b", "2": "c"},
        }
    )
    assert roberta == models.PRESETS["roberta_base"](classes=3, dropout=0.1)
    assert roberta.positions == 512
    small = FORMS["distilbert"].config({"model_type": "distilbert", "dropout": 0.1, "pad_token_id": None})
    assert small == models.PRESETS["distilbert_base"](dropout=0.1, head_dropout=0.2)
    assert small.rates == (0.1, 0.1, 0.2)
    quiet = FORMS["bert"].config(BARE | {"hidden_dropout_prob": 0, "classifier_dropout": None})
    assert quiet.rates == (0.0, 0.1, 0.0)
    assert FORMS["bert"].config(BARE | {"sep_token_id": 3}).separator == 3
    assert FORMS["bert"].config(BARE | {"vocab_size": 20}).separator is None


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("bert", {"model_type": "electra"}, "model_type is 'electra'"),
        ("bert", {"architectures": ["BertForTokenClassification"]}, "architectures .*ForTokenClassification"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder=True"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("bert", {"hidden_act": "mish"}, "hidden_act in config.json is 'mish'"),
        ("bert", {"hidden_size": 30}, "num_attention_heads=12 .* does not divide hidden_size=30"),
        ("bert", {"num_hidden_layers": 0}, "num_hidden_layers in config.json is 0"),
        ("bert", {"num_hidden_layers": 10**6}, "1 to 10000"),
        ("bert", {"vocab_size": "30522"}, "vocab_size in config.json is '30522'"),
        ("bert", {"intermediate_size": [4, 5]}, "intermediate_size"),
        ("bert_words", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ("roberta_words", {"model_type": "roberta", "hidden_act": "relu"}, "hidden_act in config.json is 'relu'"),
        ("roberta", {"model_type": "roberta", "max_position_embeddings": 2}, "max_position_embeddings .* must be 3"),
        ("distilbert", {"model_type": "distilbert", "n_heads": 5}, "n_heads=5 .* does not divide dim=768"),
        ("distilbert", {"model_type": "distilbert", "activation": "mish"}, "activation in config.json is 'mish'"),
    ],
)
def test_what_we_do_not_have_is_refused_by_its_field(name, fields, message):
    with pytest.raises(ValueError, match=message):
        FORMS[name].config(BARE | fields)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("bert", bert.micro(task="masked_lm"), "'task': 'classify'"),
        ("bert", bert.roberta(8, heads=2), "skip_padding"),
        ("bert", bert.micro(types=0, separator=None), "token types"),
        ("roberta", bert.micro(), "skip_padding"),
        ("distilbert", bert.micro(), "pooler"),
        ("distilbert", bert.distilbert(8, heads=2, epsilon=1e-6), "epsilon"),
        ("bert", dataclasses.replace(bert.micro(), mlp=(96, 90)), "mlp"),
        ("bert", dataclasses.replace(bert.micro(), heads=(4, 3)), "heads"),
        ("bert", dataclasses.replace(bert.micro(), attention_scale=1.0), "scaled by"),
        ("roberta_words", bert.roberta(8, heads=2, task="masked_lm", activation="relu"), "hidden_act"),
        ("bert", vit.vit.micro(), "ViTConfig is no encoder"),
    ],
)
def test_what_they_cannot_say_is_refused(name, config, message):
    with pytest.raises(ValueError, match=message):
        FORMS[name].describe(config)


def test_folders_load_whole_and_under_a_new_head(tmp_path):
    tensors, data, described = golden("roberta_words")
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(described))
    model, variables = pretrained.load(tmp_path)
    seen = data["x"] != model.config.pad
    np.testing.assert_allclose(
        np.asarray(model.apply(variables, data["x"])[0])[seen], data["logits"][seen], rtol=1e-4, atol=1e-4
    )
    classifier, new = pretrained.load(tmp_path, classes=4)
    assert classifier.config == dataclasses.replace(model.config, task="classify", classes=4)
    np.testing.assert_array_equal(new.params["embed"]["word"], tensors["roberta.embeddings.word_embeddings.weight"])
    assert not np.asarray(new.params["head"]["kernel"]).any()
    assert np.asarray(new.params["pooler"]["kernel"]).any()
    assert classifier.apply(new, data["x"])[0].shape == (3, 4)


def test_two_heads_give_way_to_one(tmp_path):
    tensors, data, described = golden("deit")
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(described))
    model, variables = pretrained.load(tmp_path, classes=4)
    assert model.config.one_head
    np.testing.assert_array_equal(variables.params["distill"], tensors["deit.embeddings.distillation_token"])
    assert "head_distilled" not in variables.params
    assert model.inspect(variables, data["x"]).features.any()
