"""Checkpoints written here, loaded by transformers unchanged: masked, slim, with all that lies beside the weights."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mvp_jax import compact, pretrained
from mvp_jax.models import clip
from mvp_jax.pretrained import export
from tests import folders
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


def test_a_tokeniser_and_names_of_classes_come_along(tmp_path):
    pytest.importorskip("tokenizers")
    source = folders.bert_encoder(tmp_path / "in")
    model, variables = pretrained.load(source)
    masked = compact.mask(variables, model.groups, random_units(model, 0))
    out = export.checkpoint(
        tmp_path / "out", model, masked, source=source, labels=["bad", "good"], problem="single_label_classification"
    )
    texts = ["abc 12, d", "a", "zz top."]
    made, wanted = (
        transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        for folder in (out.path, source)
    )
    np.testing.assert_array_equal(made["input_ids"], wanted["input_ids"])
    assert len(np.unique(made["input_ids"])) > 8
    unknown = transformers.AutoTokenizer.from_pretrained(out.path).unk_token_id
    assert not (made["input_ids"] == unknown).any()
    module = transformers.AutoModelForSequenceClassification.from_pretrained(out.path).eval()
    assert module.config.id2label == {0: "bad", 1: "good"}
    assert module.config.label2id == {"bad": 0, "good": 1}
    assert module.config.problem_type == "single_label_classification"
    with torch.no_grad():
        logits = module(**made).logits.numpy()
    np.testing.assert_allclose(logits, model.apply(masked, made["input_ids"].numpy().astype(np.int32))[0], atol=1e-4)
    assert np.ptp(logits, axis=0).min() > 1e-2


PROCESSORS = {
    "vit": ("vit", "ViTImageProcessorPil", {"size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3]}),
    "resnet": ("convnext", "ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_pct": 0.9}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_an_image_processor_comes_along(kind, tmp_path):
    pytest.importorskip("PIL")
    folder, name, settings = PROCESSORS[kind]
    model, variables, _ = given(kind, tmp_path / "in")
    module = importlib.import_module(f"transformers.models.{folder}.image_processing_pil_{folder}")
    reference = getattr(module, name)(**settings)
    reference.save_pretrained(tmp_path / "in")
    names = [f"kind {i}" for i in range(5)]
    out = export.checkpoint(tmp_path / "out", model, variables, source=tmp_path / "in", labels=names)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    made = transformers.AutoImageProcessor.from_pretrained(out.path, backend="pil")
    got, wanted = (np.stack(p([picture])["pixel_values"]) for p in (made, reference))
    np.testing.assert_array_equal(got, wanted)
    assert np.std(got) > 0.1
    assert list(transformers.AutoConfig.from_pretrained(out.path).id2label.values()) == names


ENCODERS = {
    "bert": ("BertModel", "BertConfig", SMALL | WORDS),
    "roberta": ("RobertaModel", "RobertaConfig", SMALL | WORDS),
    "distilbert": ("DistilBertModel", "DistilBertConfig", DISTIL | WORDS),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("pool", ["mean", "first"])
def test_embeddings_are_those_of_an_encoder_alone_in_and_out(pool, kind, tmp_path):
    cls, config, fields = ENCODERS[kind]
    module = hugging_face.randomise(getattr(transformers, cls)(getattr(transformers, config)(**fields)))
    module.save_pretrained(tmp_path / "in")
    if pool == "mean":
        (tmp_path / "in" / "1_Pooling").mkdir()
        (tmp_path / "in" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    model, variables = pretrained.load(tmp_path / "in")
    assert (model.config.task, model.config.pool) == ("embed", pool)
    ids = np.random.default_rng(0).integers(4, 58, (3, 12)).astype(np.int32)
    ids[0, 7:], ids[1, 3:] = model.config.pad, model.config.pad
    masked = compact.mask(variables, model.groups, random_units(model, 0))
    out = export.checkpoint(tmp_path / "out", model, masked)
    for folder, values in ((tmp_path / "in", variables), (out.path, masked)):
        theirs = transformers.AutoModel.from_pretrained(folder).eval()
        assert type(theirs).__name__ == cls
        real = ids != model.config.pad
        with torch.no_grad():
            hidden = theirs(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(real).long())
        tokens = hidden.last_hidden_state.numpy()
        wanted = tokens[:, 0]
        if pool == "mean":
            wanted = np.stack([row[: keep.sum()].mean(axis=0) for row, keep in zip(tokens, real, strict=True)])
        np.testing.assert_allclose(model.apply(values, ids)[0], wanted, atol=1e-4)
        assert np.ptp(wanted, axis=0).min() > 1e-2
    assert np.abs(model.apply(masked, ids)[0] - model.apply(variables, ids)[0]).max() > 1e-2


@pytest.mark.parametrize("kind", ["vit", "bert", "distilbert"])
def test_transformers_loads_slim_models(kind, tmp_path):
    model, variables, x = given(kind, tmp_path / "in")
    units = {"layers/0/attention": jnp.arange(4) % 2 == 1, "layers/1/attention": jnp.arange(4) > 1}
    units |= {f"layers/{i}/fc1": jnp.arange(40) % 4 == i for i in range(2)}
    slim, slim_variables = compact.rebuild(model, variables, units)
    out = export.checkpoint(tmp_path / "out", slim, slim_variables)
    got, module = by_transformers(kind, out.path, x)
    wanted = by_us(kind, slim, slim_variables, x)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
    assert np.abs(wanted - by_us(kind, model, variables, x)).max() > 1e-2
    count = sum(p.numel() for p in module.parameters())
    if kind == "vit":
        assert export.why_not(slim) is None
        assert count == sum(a.size for a in jax.tree.leaves(slim_variables.params))
    else:
        assert "heads" in export.why_not(slim)
        assert count < sum(a.size for a in jax.tree.leaves(variables.params))


def test_a_bare_vit_is_read_under_a_new_head(tmp_path):
    module = hugging_face.randomise(transformers.ViTModel(transformers.ViTConfig(**SMALL, **IMAGE)))
    module.save_pretrained(tmp_path)
    model, variables = pretrained.load(tmp_path, classes=3)
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape)).astype(np.float32)
    with torch.no_grad():
        hidden = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(model.inspect(variables, x).features, hidden, atol=1e-4)
    assert np.ptp(hidden) > 0.1
