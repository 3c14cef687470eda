"""Residual networks against Hugging Face's: basic blocks and bottlenecks, both places of a bottleneck's stride."""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.models import resnet
from mvp_jax.pretrained.keys import resnet as formats
from tests.oracles import hugging_face

FORM = {f.name: f for f in formats.FORMATS}["resnet (Hugging Face)"]
KINDS = {
    "basic": {"layer_type": "basic", "hidden_sizes": [6, 8]},
    "bottleneck": {"layer_type": "bottleneck", "hidden_sizes": [8, 16]},
    "early": {"layer_type": "bottleneck", "hidden_sizes": [8, 16], "downsample_in_bottleneck": True},
    "first": {"layer_type": "basic", "hidden_sizes": [6, 8], "downsample_in_first_stage": True},
}
X = np.random.default_rng(0).normal(size=(6, 33, 33, 3)).astype(np.float32)


def pair(kind, folder):
    config = transformers.ResNetConfig(embedding_size=6, depths=[2, 1], num_labels=5, **KINDS[kind])
    module = hugging_face.randomise(transformers.ResNetForImageClassification(config))
    # The size of the images is ours to choose: theirs note none.
    ours = dataclasses.replace(FORM.config(config.to_dict()), image_size=33)
    model = models.build(ours)
    like = jax.eval_shape(model.init, jax.random.key(0))
    return module, model, hugging_face.carried(FORM, hugging_face.tensors(module, folder), ours, like)


def run(module, **options):
    return module(torch.from_numpy(X.transpose(0, 3, 1, 2).copy()), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients(kind, tmp_path):
    module, model, variables = pair(kind, tmp_path)
    found = run(module, output_hidden_states=True)
    expected = found.logits.detach().numpy()
    assert np.ptp(expected, axis=0).min() > 0.1
    got, _ = model.apply(variables, X)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * scale)
    features = found.hidden_states[-1].detach().numpy().mean((2, 3))
    np.testing.assert_allclose(
        model.inspect(variables, X).features, features, rtol=1e-4, atol=1e-4 * np.abs(features).max()
    )
    # Every stage by a network that ends there.
    for s, state in enumerate(found.hidden_states[1:-1], start=1):
        ended = models.build(shortened(model.config, s))
        kept = {k: v for k, v in variables.params["stages"].items() if int(k) < s}
        stats = {k: v for k, v in variables.rest["stages"].items() if int(k) < s}
        head = {
            "kernel": np.eye(model.config.stage_widths[s - 1], dtype=np.float32),
            "bias": np.zeros(ended.num_classes),
        }
        cut = (
            {**variables.params, "stages": kept, "head": head},
            {**variables.rest, "stages": stats},
        )
        theirs = state.detach().numpy().mean((2, 3))
        assert np.ptp(theirs, axis=0).max() > 0.1
        np.testing.assert_allclose(ended.apply(cut, X)[0], theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())

    found.logits.square().mean().backward()
    like = jax.eval_shape(model.init, jax.random.key(0))
    by_path = hugging_face.gradients(FORM, module, model.config, like)
    mine = hugging_face.grad(model, variables, X, lambda y: (y**2).mean())
    hugging_face.assert_same(mine, by_path)


def shortened(config, s):
    cut = {f: getattr(config, f)[:s] for f in ("stage_widths", "inner_widths", "strides", "projections")}
    return dataclasses.replace(config, **cut, classes=config.stage_widths[s - 1])


def test_the_place_of_the_stride_matters(tmp_path):
    module, model, variables = pair("early", tmp_path)
    late = models.build(dataclasses.replace(model.config, downsample_in_bottleneck=False))
    assert {p: a.shape for p, a in trees.flatten(jax.eval_shape(late.init, jax.random.key(0))).items()} == {
        p: a.shape for p, a in trees.flatten(variables).items()
    }
    with torch.no_grad():
        expected = run(module).logits.numpy()
    assert np.abs(late.apply(variables, X)[0] - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize(("depth", "kind"), [(34, "basic"), (101, "bottleneck"), (152, "bottleneck")])
def test_sizes(depth, kind):
    config = resnet.imagenet(depth, classes=7)
    with torch.device("meta"):
        module = transformers.ResNetForImageClassification(
            transformers.ResNetConfig(
                hidden_sizes=list(config.stage_widths),
                depths=[len(stage) for stage in config.inner_widths],
                layer_type=kind,
                num_labels=7,
            )
        )
    shapes = jax.eval_shape(models.build(config).init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes.params)) == sum(p.numel() for p in module.parameters())
