"""Checkpoints of CLIP: what Hugging Face computed with the golden one, both ways, and what cannot be said."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax import models, pretrained
from mvp_jax.core import trees
from mvp_jax.models import clip
from mvp_jax.pretrained import key_table, tensor_files
from mvp_jax.pretrained.keys import clip as formats

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
DESCRIBED = json.loads((GOLDEN / "clip.json").read_text())
TENSORS = safetensors.numpy.load_file(GOLDEN / "clip.safetensors")
TOWERS = pytest.mark.parametrize("form", formats.FORMATS, ids=["vision", "text"])
VISION = {"model_type": "clip_vision_model", "hidden_size": 12, "num_attention_heads": 3}
TEXT = {"model_type": "clip_text_model", "hidden_size": 12, "num_attention_heads": 3}


def loaded(form):
    """A tower of the golden pair, with a head of zeros."""
    model = models.build(form.config(DESCRIBED)).with_classes(4)
    like = jax.eval_shape(model.init, jax.random.key(0))
    got = {path: np.zeros(a.shape, np.float32) for path, a in trees.flatten(like).items() if "/head/" in path}
    for name, array in TENSORS.items():
        got |= key_table.to_ours(form, name, array, model.config)
    assert {p: a.shape for p, a in got.items()} == {p: a.shape for p, a in trees.flatten(like).items()}
    return model, trees.replace(like, got)


def test_golden_pair():
    golden = np.load(GOLDEN / "clip.npz")
    (vision, v), (text, t) = (loaded(form) for form in formats.FORMATS)
    assert (vision.config.heads, text.config.heads) == ((3, 3), (2, 2))
    assert np.ptp(golden["logits"]) > 0.1
    seen, read = vision.inspect(v, golden["images"]).features, text.inspect(t, golden["ids"]).features
    np.testing.assert_allclose(seen, golden["image_features"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read, golden["text_features"], rtol=1e-4, atol=1e-5)
    scale = formats.logit_scale(tensor_files.in_memory(TENSORS))
    got = clip.similarity(vision, v, text, t, golden["images"], golden["ids"], scale)
    np.testing.assert_allclose(got, golden["logits"], rtol=1e-4, atol=1e-4)


def test_a_folder_of_a_pair_is_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DESCRIBED))
    safetensors.numpy.save_file(TENSORS, tmp_path / "model.safetensors")
    golden = np.load(GOLDEN / "clip.npz")
    vision, v = pretrained.load(tmp_path, classes=4)
    assert isinstance(vision.config, clip.ClipVisionConfig)
    np.testing.assert_allclose(vision.inspect(v, golden["images"]).features, golden["image_features"], 1e-4, 1e-5)
    source = tensor_files.open(tmp_path)
    model = models.build(formats.TEXT.config(source.described))
    text, t = pretrained.load(source, model, classes=2)
    np.testing.assert_allclose(text.inspect(t, golden["ids"]).features, golden["text_features"], 1e-4, 1e-5)
    assert not np.asarray(t.params["head"]["kernel"]).any()
    with pytest.raises(ValueError, match=r"missing: vision_head.weight(.|\n)*"):
        pretrained.load(tmp_path)


@TOWERS
def test_each_name_belongs_to_one_tower(form):
    other = formats.FORMATS[formats.FORMATS[0] is form]
    own = {name: key_table.match(form, name)[1] for name in TENSORS}
    away = {name: key_table.match(other, name)[1] for name in TENSORS}
    assert sum(map(bool, own.values())) > 35
    assert all(bool(own[name]) != bool(away[name]) for name in TENSORS if name != "logit_scale")
    for name in (*TENSORS, "vision_head.weight", "text_head.bias", "vision_model.embeddings.position_ids"):
        matching = [r for r in form.rules if key_table._fields(r.key, name) is not None]
        assert len(matching) == (0 if name.partition("_head")[1] and form.name.split()[1] not in name else 1), name
    assert key_table.match(form, "vision_model.embeddings.class_embeddings") is None


@TOWERS
def test_there_and_back(form):
    model, variables = loaded(form)
    written = dict(key_table.stored(form, variables, model.config))
    head = form.name.split()[1] + "_head"
    assert written.pop(f"{head}.weight").shape == (4, 7)
    assert written.pop(f"{head}.bias").shape == (4,)
    assert set(written) == {name for name in TENSORS if key_table.match(form, name)[1]}
    for name, array in written.items():
        np.testing.assert_array_equal(array, TENSORS[name], err_msg=name)
    described = form.describe(model.config)
    assert json.loads(json.dumps(described)) == described
    assert form.config(described) == model.config
    # In half the bits or not is no matter of a checkpoint.
    assert form.describe(dataclasses.replace(model.config, compute="bfloat16")) == described


def test_what_is_not_said_is_theirs():
    found = formats.VISION.config({"model_type": "clip", "vision_config": {"patch_size": [16, 16]}})
    assert found == clip.vision_b16(classes=found.classes)
    found = formats.TEXT.config({"model_type": "clip_text_model", "hidden_act": None})
    assert found == clip.text_b(classes=found.classes)
    assert formats.TEXT.config(TEXT | {"eos_token_id": 2}).eos is None
    # Older files have the fields twice; the second ones count, and the width of the features is the pair's.
    twice = {"model_type": "clip", "projection_dim": 9, "vision_config": {"image_size": 64, "projection_dim": 5}}
    assert formats.VISION.config(twice).image_size == 64
    second = formats.VISION.config(twice | {"vision_config_dict": {"patch_size": 8}})
    assert (second.image_size, second.patch, second.projection) == (224, 8, 9)


@pytest.mark.parametrize(
    ("form", "described", "message"),
    [
        (formats.VISION, {"model_type": "siglip"}, "model_type is 'siglip'"),
        (formats.VISION, TEXT, "no vision tower"),
        (formats.TEXT, VISION, "no text tower"),
        (formats.VISION, VISION | {"hidden_act": "gelu_10"}, "hidden_act"),
        (formats.VISION, VISION | {"image_size": [224, 192]}, "image_size"),
        (formats.VISION, VISION | {"patch_size": 5}, "do not tile"),
        (formats.VISION, VISION | {"attention_dropout": 0.1}, "attention_dropout"),
        (formats.VISION, VISION | {"num_attention_heads": 5}, "do not divide"),
        (formats.VISION, VISION | {"num_attention_heads": 0}, "num_attention_heads=0"),
        (formats.VISION, VISION | {"num_channels": "3"}, "num_channels"),
        (formats.TEXT, TEXT | {"eos_token_id": [1, 2]}, "eos_token_id"),
        (formats.TEXT, TEXT | {"vocab_size": 100}, "eos_token_id"),
        (formats.TEXT, TEXT | {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        (formats.TEXT, TEXT | {"layer_norm_eps": "1e-5"}, "layer_norm_eps"),
    ],
)
def test_what_we_cannot_express_is_refused(form, described, message):
    with pytest.raises(ValueError, match=message):
        form.config(described)


@pytest.mark.parametrize(
    ("form", "config", "message"),
    [
        (formats.VISION, clip.micro_vision(mlp=8, qk_dim=(12, 12, 11)), r"qk_dim=\(12, 12, 11\)"),
        (formats.VISION, clip.micro_vision(heads=4, v_dim=(5, 5, 5)), "v_dim"),
        (formats.TEXT, clip.micro_text(heads=4), "eos=2"),
        (formats.TEXT, clip.micro_text(eos=3, attention_scale=0.5), "attention_scale=0.5"),
        (formats.TEXT, clip.micro_text(eos=3, dropout=0.1), "dropout=0.1"),
        (formats.TEXT, clip.micro_text(eos=3, dim=10, heads=2, qk_dim=(3, 3), v_dim=(3, 3)), "qk_dim"),
        (formats.TEXT, dataclasses.replace(clip.micro_text(eos=3), heads=(4, 3)), "heads"),
        (
            formats.TEXT,
            dataclasses.replace(clip.micro_text(eos=3), heads=(5, 5), qk_dim=(9, 9), v_dim=(9, 9)),
            "divide",
        ),
    ],
)
def test_what_they_cannot_say_is_refused(form, config, message):
    with pytest.raises(ValueError, match=message):
        form.describe(config)


def test_one_tower_has_no_scale():
    with pytest.raises(ValueError, match="no logit_scale"):
        formats.logit_scale(tensor_files.in_memory({"visual_projection.weight": np.ones((2, 2))}))
