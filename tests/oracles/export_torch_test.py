"""Checkpoints written here, loaded by transformers unchanged: masked, and with smaller MLPs."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mvp_jax import compact, pretrained
from mvp_jax.models import clip
from mvp_jax.pretrained import export
from tests.model_kinds import random_units
from tests.oracles import hugging_face

transformers.logging.disable_progress_bar()

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
IMAGE = {"image_size": 16, "patch_size": 4}
WORDS = {"vocab_size": 60, "max_position_embeddings": 20}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "num_labels": 5}
KINDS = {
    "vit": ("ViTForImageClassification", "ViTConfig", SMALL | IMAGE | {"num_labels": 5}),
    "deit": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", SMALL | IMAGE | {"num_labels": 5}),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2], "num_labels": 5},
    ),
    "bert": ("BertForSequenceClassification", "BertConfig", SMALL | WORDS | {"num_labels": 5}),
    "bert_words": ("BertForMaskedLM", "BertConfig", SMALL | WORDS),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", SMALL | WORDS | {"num_labels": 5}),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL | WORDS),
    "clip_vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", SMALL | IMAGE | {"projection_dim": 24}),
    "clip_text": (
        "CLIPTextModelWithProjection",
        "CLIPTextConfig",
        SMALL | WORDS | {"projection_dim": 24, "eos_token_id": 59},
    ),
}
IMAGES = ("vit", "deit", "resnet", "clip_vision")


def given(kind, folder):
    """Our dense model from a folder that transformers wrote, its variables, and inputs for both."""
    cls, config, fields = KINDS[kind]
    module = hugging_face.randomise(getattr(transformers, cls)(getattr(transformers, config)(**fields)))
    module.save_pretrained(folder)
    model, variables = pretrained.load(folder, classes=3 if kind.startswith("clip") else None)
    rng = np.random.default_rng(0)
    if kind in IMAGES:
        return model, variables, rng.normal(size=(3, *model.input_shape)).astype(np.float32)
    ids = rng.integers(4, 58, (3, 12)).astype(np.int32)
    ids[:, -1] = 59
    return model, variables, ids


def by_transformers(kind, folder, x):
    module = getattr(transformers, KINDS[kind][0]).from_pretrained(folder).eval()
    with torch.no_grad():
        if kind in IMAGES:
            out = module(pixel_values=torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
        else:
            out = module(input_ids=torch.from_numpy(x).long())
    if kind.startswith("clip"):
        out = (out.image_embeds if kind == "clip_vision" else out.text_embeds).numpy()
        return out / np.linalg.norm(out, axis=-1, keepdims=True), module
    return out.logits.numpy(), module


def by_us(kind, model, variables, x):
    seen = model.inspect(variables, jnp.asarray(x))
    return np.asarray(seen.features if kind.startswith("clip") else seen.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_the_masked_models_logits(kind, tmp_path):
    model, variables, x = given(kind, tmp_path / "in")
    units = random_units(model, 0)
    masked = compact.mask(variables, model.groups, units)
    written = export.checkpoint(tmp_path / "out", model, masked)
    assert 0 <= written.difference < 1e-5
    got, _ = by_transformers(kind, written.path, x)
    wanted = by_us(kind, model, masked, x)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
    assert np.abs(wanted - by_us(kind, model, variables, x)).max() > 1e-2
    assert np.ptp(wanted, axis=0).max() > 1e-2


def test_transformers_loads_both_towers_of_a_pruned_pair(tmp_path):
    towers, inputs = {}, {}
    for name in ("vision", "text"):
        model, variables, inputs[name] = given(f"clip_{name}", tmp_path / name)
        towers[name] = model, compact.mask(variables, model.groups, random_units(model, 0))
    written = export.clip_pair(tmp_path / "out", towers["vision"], towers["text"], 1.3)
    assert 0 <= written.difference < 1e-5
    module = transformers.CLIPModel.from_pretrained(written.path).eval()
    with torch.no_grad():
        got = module(
            pixel_values=torch.from_numpy(inputs["vision"].transpose(0, 3, 1, 2).copy()),
            input_ids=torch.from_numpy(inputs["text"]).long(),
        ).logits_per_image.numpy()
    wanted = clip.similarity(*towers["vision"], *towers["text"], inputs["vision"], inputs["text"], 1.3)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert np.std(wanted) > 1e-2


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "resnet"])
def test_transformers_loads_smaller_mlps(kind, tmp_path):
    model, variables, x = given(kind, tmp_path / "in")
    units = random_units(model, 0) | {
        "layers/0/fc1": jnp.arange(40) % 4 == 1,
        "layers/1/fc1": jnp.arange(40) % 2 == 0,
    }
    written = export.checkpoint(tmp_path / "out", model, variables, units=units)
    described = json.loads((written.path / "config.json").read_text())
    assert {described.get(name) for name in ("intermediate_size", "hidden_dim")} == {20, None}
    got, module = by_transformers(kind, written.path, x)
    narrow = [m for n, m in module.named_modules() if n.endswith(("fc1", "intermediate.dense", "ffn.lin1"))]
    assert [m.out_features for m in narrow] == [20, 20]
    slim, slim_variables = compact.rebuild(model, variables, units)
    wanted = by_us(kind, slim, slim_variables, x)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
    assert np.abs(wanted - by_us(kind, model, variables, x)).max() > 1e-2
