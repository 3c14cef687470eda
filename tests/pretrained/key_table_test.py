"""Key tables: layouts and templates against NumPy loops and names written by hand, and that they invert."""

import functools
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.models import resnet, vit
from mvp_jax.pretrained import formats, key_table
from mvp_jax.pretrained.keys import vit as vits
from tests.model_kinds import randomise

CONFIGS = {
    "resnet (torchvision, timm)": resnet.resnet50(width=2, image_size=64, classes=3),
    "resnet (CIFAR)": resnet.resnet8_distiller(width=2, image_size=8, channels=1, classes=3),
    "resnet (Hugging Face)": resnet.resnet18(width=2, classes=3),
    "vit (timm)": vit.micro(layers=2, dim=8, heads=2, classes=3, distilled=True),
    "vit (Hugging Face)": vit.micro(layers=2, dim=8, heads=2, classes=3, epsilon=1e-12),
    "deit (Hugging Face)": vit.micro(layers=2, dim=8, heads=2, classes=3, distilled=True),
    "deit, one head (Hugging Face)": vit.micro(layers=2, dim=8, heads=2, classes=3, distilled=True, one_head=True),
}
FORMATS = {form.name: form for form in formats.FAMILIES["resnet"] + formats.FAMILIES["vit"]}
SOME_KEYS = {
    "resnet (torchvision, timm)": [
        "conv1.weight",
        "layer3.5.conv3.weight",
        "layer1.0.downsample.1.running_var",
        "fc.bias",
    ],
    "resnet (CIFAR)": ["bn1.running_mean", "layer2.0.shortcut.0.weight", "linear.weight"],
    "resnet (Hugging Face)": [
        "resnet.embedder.embedder.convolution.weight",
        "resnet.encoder.stages.0.layers.1.layer.1.normalization.weight",
        "resnet.encoder.stages.3.layers.0.shortcut.convolution.weight",
        "classifier.1.weight",
    ],
    "vit (timm)": ["cls_token", "dist_token", "blocks.1.attn.qkv.bias", "blocks.0.mlp.fc2.weight", "head_dist.weight"],
    "vit (Hugging Face)": [
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.encoder.layer.1.attention.attention.query.weight",
        "vit.encoder.layer.0.attention.output.dense.bias",
        "vit.encoder.layer.1.layernorm_after.weight",
        "classifier.bias",
    ],
    "deit (Hugging Face)": [
        "deit.embeddings.distillation_token",
        "cls_classifier.bias",
        "distillation_classifier.weight",
    ],
    "deit, one head (Hugging Face)": ["deit.encoder.layer.0.output.dense.weight", "classifier.weight"],
}


@functools.cache
def variables(name):
    model = models.build(CONFIGS[name])
    return randomise(jax.eval_shape(model.init, jax.random.key(0)), 3)


def test_every_format_is_tested():
    assert set(FORMATS) == set(CONFIGS) == set(SOME_KEYS)


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_layouts_by_hand():
    c = types.SimpleNamespace(heads=(2, 2), pool=1)
    a = random((6, 5))
    heads, out = key_table.HEADS.forward(a, c), key_table.OUT.forward(a.T, c)
    assert heads.shape == (5, 2, 3)
    assert out.shape == (2, 3, 5)
    for h in range(2):
        for d in range(3):
            for i in range(5):
                assert heads[i, h, d] == a[3 * h + d, i]
                assert out[h, d, i] == a.T[i, 3 * h + d]
    assert key_table.HEADS.forward(a[:, 0], c)[1, 2] == a[5, 0]
    kernel = random((4, 3, 2, 5))
    assert key_table.CONV.forward(kernel, c)[1, 4, 2, 3] == kernel[3, 2, 1, 4]
    assert key_table.LINEAR.forward(a, c)[4, 3] == a[3, 4]
    fused = random((18, 5))
    for part, start in zip(key_table.QKV.forward(fused, c), (0, 6, 12), strict=True):
        np.testing.assert_array_equal(part, key_table.HEADS.forward(fused[start : start + 6], c))
    cells = key_table.CELLS.forward(random((4, 12)), types.SimpleNamespace(pool=2))
    assert cells.shape == (2, 2, 3, 4)
    assert cells[1, 0, 2, 3] == random((4, 12))[3, 2 * 4 + 1 * 2 + 0]
    for bad in ((7, 5), (5,)):
        with pytest.raises(ValueError, match="equal parts"):
            key_table.QKV.forward(random(bad), c)


SHAPES = {
    "SAME": lambda h, d, n: [(n,), (n, d), ()],
    "LINEAR": lambda h, d, n: [(n, d)],
    "CONV": lambda h, d, n: [(n, d, h, h)],
    "HEADS": lambda h, d, n: [(h * d, n), (h * d,)],
    "OUT": lambda h, d, n: [(n, h * d)],
    "QKV": lambda h, d, n: [(3 * h * d, n), (3 * h * d,)],
    "CELLS": lambda h, d, n: [(n, d * h * h)],
}


@pytest.mark.parametrize("name", SHAPES)
@given(h=st.integers(1, 4), d=st.integers(1, 4), n=st.integers(1, 5))
def test_back_undoes_forward(name, h, d, n):
    layout, config = getattr(key_table, name), types.SimpleNamespace(heads=(h,), pool=h)
    for shape in SHAPES[name](h, d, n):
        a = random(shape)
        there = layout.forward(a, config)
        np.testing.assert_array_equal(layout.back(there, config), a)
        parts = there if isinstance(there, tuple) else (there,)
        assert sum(p.size for p in parts) == a.size
        shapes = [p.shape for p in parts]
        rule = key_table.KeyRule("a", ("b",) * len(parts) if isinstance(there, tuple) else "b", layout)
        assert key_table.stored_shape(rule, shapes, config) == shape


@pytest.mark.parametrize("name", CONFIGS)
def test_names_follow_from_the_paths_and_lead_back(name):
    form, config = FORMATS[name], CONFIGS[name]
    leaves = trees.flatten(variables(name))
    keys = key_table.keys(form, config, leaves)
    assert set(SOME_KEYS[name]) <= set(keys)
    first = {key: paths for key, (rule, paths) in keys.items() if not rule.tied}
    held = [path for paths in first.values() for path in paths]
    assert sorted(held) == sorted(leaves), "each of our arrays has exactly one first name"
    for key, (rule, paths) in keys.items():
        assert key_table.match(form, key) == (rule, paths)
        fitting = [r for r in form.rules if key_table._fields(r.key, key) is not None]
        assert fitting == [rule], f"{key} fits {len(fitting)} rules"
    assert all(key_table.match(form, key + ".x") is None for key in keys)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_stored_comes_back(name):
    form, config, ours = FORMATS[name], CONFIGS[name], variables(name)
    stored = dict(key_table.stored(form, ours, config))
    assert all(a.flags.c_contiguous and (a.size == 1 or np.ptp(a) > 0) for a in stored.values())
    back = {}
    for key, array in stored.items():
        back |= key_table.to_ours(form, key, array, config)
    for path, leaf in trees.flatten(ours).items():
        np.testing.assert_array_equal(back.pop(path), leaf)
    assert not back
    assert formats.detect(stored, paths=trees.flatten(ours)).name == name or formats.detect(stored).name == name


PARTS = st.tuples(st.from_regex(r"[a-z.]{1,4}", fullmatch=True), st.integers(0, 120), st.booleans())


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_templates_invert(parts):
    template = "".join(f"{text}{{n{i}{'+1' * one}}}" for i, (text, _, one) in enumerate(parts))
    values = {f"n{i}": n for i, (_, n, _) in enumerate(parts)}
    name = key_table._fill(template, values)
    assert name == "".join(f"{text}{n + one}" for text, n, one in parts)
    assert key_table._fields(template, name) == values


def test_templates_refuse_what_they_do_not_give():
    assert key_table._fields("layer{s+1}.bn", "layer1.bn") == {"s": 0}
    for name in ("layer0.bn", "layer01.bn", "layer.bn", "layer1xbn", "layer1.bn.", "layer-1.bn", "layer١.bn"):
        assert key_table._fields("layer{s+1}.bn", name) is None, name


def test_second_names_stand_in_and_are_never_written():
    form = FORMATS["vit (Hugging Face)"]
    leaves = trees.flatten(variables("vit (Hugging Face)"))
    keys = key_table.keys(form, CONFIGS["vit (Hugging Face)"], leaves)
    for second, first in (
        ("embeddings.cls_token", "vit.embeddings.cls_token"),
        ("vit.layers.1.attention.q_proj.weight", "vit.encoder.layer.1.attention.attention.query.weight"),
        ("layers.0.mlp.fc2.bias", "vit.encoder.layer.0.output.dense.bias"),
    ):
        assert keys[second][0].tied
        assert not keys[first][0].tied
        assert keys[second][1] == keys[first][1]
    written = [key for key, _ in key_table.stored(form, variables("vit (Hugging Face)"), CONFIGS["vit (Hugging Face)"])]
    assert written
    assert not any(keys[key][0].tied for key in written)
    assert key_table.match(form, "vit.pooler.dense.weight")[1] == ()


def test_a_format_without_a_place_for_something_says_so():
    with pytest.raises(ValueError, match=r"vit \(Hugging Face\) has no name for .*head_distilled/bias"):
        list(key_table.stored(FORMATS["vit (Hugging Face)"], variables("deit (Hugging Face)"), None))
    with pytest.raises(ValueError, match="not in the key table"):
        key_table.to_ours(FORMATS["vit (timm)"], "nothing", random(3), None)
    with pytest.raises(ValueError, match=r"head.weight: shape \(3,\)|does not fit"):
        key_table.to_ours(FORMATS["resnet (torchvision, timm)"], "conv1.weight", random(3), None)


@pytest.mark.parametrize("name", [n for n in CONFIGS if "Hugging" in n])
def test_configurations_go_there_and_back(name):
    form, config = FORMATS[name], CONFIGS[name]
    described = form.describe(config)
    again = form.config(described)
    assert models.build(again).config == config.__class__(**{**config.__dict__, "image_size": again.image_size})
    assert formats.for_config(config) is form
    for field in (f for f, v in described.items() if type(v) is int):
        with pytest.raises(ValueError, match=field):
            form.config({**described, field: "many"})


def test_sizes_in_published_configurations():
    """As the pages of google/vit-base-patch16-224 and microsoft/resnet-50 give them."""
    base = FORMATS["vit (Hugging Face)"].config(
        {
            "architectures": ["ViTForImageClassification"],
            "attention_probs_dropout_prob": 0.0,
            "encoder_stride": 16,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.0,
            "hidden_size": 768,
            "image_size": 224,
            "id2label": {str(i): "x" for i in range(1000)},
            "initializer_range": 0.02,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-12,
            "model_type": "vit",
            "num_attention_heads": 12,
            "num_channels": 3,
            "num_hidden_layers": 12,
            "patch_size": 16,
            "qkv_bias": True,
        }
    )
    assert base == vit.base(epsilon=1e-12)
    fifty = FORMATS["resnet (Hugging Face)"].config(
        {
            "depths": [3, 4, 6, 3],
            "downsample_in_first_stage": False,
            "embedding_size": 64,
            "hidden_act": "relu",
            "hidden_sizes": [256, 512, 1024, 2048],
            "layer_type": "bottleneck",
            "model_type": "resnet",
            "num_channels": 3,
            "id2label": {str(i): "x" for i in range(1000)},
        }
    )
    assert fifty == resnet.resnet50()
    early = {"model_type": "resnet", "downsample_in_bottleneck": True}
    assert FORMATS["resnet (Hugging Face)"].config(early) == resnet.resnet50(classes=2, downsample_in_bottleneck=True)
    eighteen = {"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 288, 288]}}
    assert FORMATS["resnet (torchvision, timm)"].config(eighteen) == resnet.resnet18(classes=7, image_size=288)
    named = {"architecture": "deit_tiny_distilled_patch16_224", "num_classes": 1000, "global_pool": "token"}
    assert FORMATS["vit (timm)"].config(named) == vit.tiny(distilled=True)


def test_timm_names_go_there_and_back():
    for name in sorted(vits._TIMM):
        config = vits._architecture(name, 10)
        assert vits._architecture(FORMATS["vit (timm)"].describe(config)["architecture"], 10) == config
    assert FORMATS["vit (timm)"].describe(vit.tiny())["architecture"] == "vit_tiny_patch16_224"
    assert FORMATS["resnet (torchvision, timm)"].describe(resnet.resnet34(classes=4))["architecture"] == "resnet34"
    assert FORMATS["resnet (torchvision, timm)"].describe(CONFIGS["resnet (torchvision, timm)"]) == {}


@pytest.mark.parametrize(
    ("name", "described", "message"),
    [
        ("vit (Hugging Face)", {"model_type": "vit", "hidden_act": "mish"}, "hidden_act"),
        ("vit (Hugging Face)", {"model_type": "vit", "qkv_bias": False}, "qkv_bias"),
        ("vit (Hugging Face)", {"model_type": "vit", "attention_probs_dropout_prob": 0.1}, "attention_probs"),
        ("vit (Hugging Face)", {"model_type": "vit", "image_size": [224, 192]}, "image_size"),
        ("vit (Hugging Face)", {"model_type": "vit", "hidden_size": "768"}, "hidden_size"),
        ("vit (Hugging Face)", {"model_type": "vit", "hidden_size": True}, "hidden_size"),
        ("vit (Hugging Face)", {"model_type": "vit", "num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("vit (Hugging Face)", {"model_type": "vit", "num_attention_heads": 5}, "heads do not divide"),
        ("vit (Hugging Face)", {"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ("resnet (Hugging Face)", {"model_type": "resnet", "hidden_act": "gelu"}, "hidden_act"),
        ("resnet (Hugging Face)", {"model_type": "resnet", "depths": [1]}, "depths"),
        ("resnet (Hugging Face)", {"model_type": "resnet", "layer_type": "wide"}, "layer_type"),
        ("resnet (torchvision, timm)", {"architecture": "resnet50d"}, "architecture"),
        ("resnet (torchvision, timm)", {"architecture": "resnet18", "pretrained_cfg": {"input_size": 3}}, "input_size"),
        ("vit (timm)", {"architecture": "vit_tiny_patch16_224", "global_pool": "avg"}, "global_pool"),
        ("resnet (CIFAR)", {}, "without a config.json"),
    ],
)
def test_configurations_that_are_not_ours_are_refused(name, described, message):
    with pytest.raises(ValueError, match=message):
        formats.configure(FORMATS[name], described)


@pytest.mark.parametrize(
    ("origin", "config", "message"),
    [
        ("Hugging Face", vit.micro(pool="mean"), "pool"),
        ("Hugging Face", models.build(vit.micro()).resize({"layers/1/fc1": 7}).config, "pruned"),
        ("timm", models.build(vit.micro()).resize({"layers/1/attention": 2}).config, "pruned"),
        ("timm", vit.micro(epsilon=1e-12), "epsilon"),
        ("Hugging Face", models.build(resnet.resnet18(width=4)).resize({"stages/1": 3}).config, "pruned"),
        ("Hugging Face", resnet.resnet8(), "stem"),
        ("torchvision", resnet.resnet8(), "stem"),
        ("Keras", resnet.resnet18(), "no format for this resnet, there are"),
    ],
)
def test_configurations_that_are_not_theirs_are_refused(origin, config, message):
    with pytest.raises(ValueError, match=message):
        formats.for_config(config, origin)


def test_the_format_is_found_by_names_and_description():
    hugging = dict.fromkeys(SOME_KEYS["vit (Hugging Face)"])
    assert formats.detect(hugging).name == "vit (Hugging Face)"
    assert formats.detect([f"module.{k}" for k in SOME_KEYS["resnet (CIFAR)"]]).name == "resnet (CIFAR)"
    described = FORMATS["deit, one head (Hugging Face)"].describe(CONFIGS["deit, one head (Hugging Face)"])
    assert formats.detect(["classifier.weight", "deit.embeddings.cls_token"], described).name.startswith("deit, one")
    assert formats.detect(["embeddings.cls_token"], described).name.startswith("deit (")  # of a bare body, the first
    with pytest.raises(ValueError, match=r"no key table fits these weights, whose model_type is 'gpt2'.*wte"):
        formats.detect(["wte.weight"], {"model_type": "gpt2"})
    with pytest.raises(ValueError, match=r"is not one of vit \(timm\): TypeError"):
        formats.configure(FORMATS["vit (timm)"], {"architecture": []})
