"""DeiT, with two heads and with one, and ViT against Hugging Face's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mvp_jax import models
from mvp_jax.models import vit
from mvp_jax.models.hooks import Hooks
from mvp_jax.pretrained.keys import vit as formats
from tests.oracles import hugging_face

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 2,
    "num_labels": 5,
    "attn_implementation": "eager",
}
CLASSES = {
    "deit (Hugging Face)": "DeiTForImageClassificationWithTeacher",
    "deit, one head (Hugging Face)": "DeiTForImageClassification",
    "vit (Hugging Face)": "ViTForImageClassification",
}
FORMS = {f.name: f for f in formats.FORMATS}
every = pytest.mark.parametrize("name", CLASSES)
X = np.random.default_rng(0).normal(size=(6, 12, 12, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = {}

    def pair(name):
        if name not in made:
            kin = CLASSES[name].partition("For")[0]
            config = getattr(transformers, f"{kin}Config")(**SIZES)
            module = hugging_face.randomise(getattr(transformers, CLASSES[name])(config))
            made[name] = module, *hugging_face.ours(FORMS[name], module, tmp_path_factory.mktemp("saved"))
        return made[name]

    return pair


def run(module, **options):
    return module(torch.from_numpy(X.transpose(0, 3, 1, 2).copy()), **options)


@every
def test_logits_and_every_hidden_state(pairs, name):
    module, model, variables = pairs(name)
    c = model.config
    with torch.no_grad():
        found = run(module, output_hidden_states=True)
    expected = found.logits.numpy()
    assert np.ptp(expected, axis=0).min() > 0.1
    np.testing.assert_allclose(model.apply(variables, X)[0], expected, rtol=1e-4, atol=1e-4)
    assert c.epsilon == 1e-12
    assert c.tokens == 9 + (1 if name.startswith("vit") else 2)
    if c.averaged:
        first, second = found.cls_logits.numpy(), found.distillation_logits.numpy()
        assert np.abs(first - second).max() > 0.1
        np.testing.assert_allclose(expected, (first + second) / 2, rtol=1e-4, atol=1e-5)
        head = variables.params["head"]
        seen = model.inspect(variables, X).features @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(seen, first, rtol=1e-4, atol=1e-4)

    part = hugging_face.opened(lambda noise: vit.ViT(c, noise=noise), variables)
    state = jnp.asarray(found.hidden_states[0].numpy())
    assert state.shape == (6, c.tokens, 32)
    states = [state]
    for i in range(2):
        states.append(part.layers[str(i)](states[-1], Hooks()))
    # Theirs may put the normalised state last.
    compared = 0
    for ours, theirs in zip(states, found.hidden_states, strict=False):
        assert np.ptp(theirs.numpy(), axis=(0, 1)).min() > 0.1
        if np.allclose(part.norm(ours), theirs.numpy(), rtol=1e-4, atol=1e-4):
            continue
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)
        compared += 1
    assert compared >= 2


@every
def test_gradients(pairs, name):
    module, model, variables = pairs(name)
    module.zero_grad()
    run(module).logits.square().mean().backward()
    like = jax.eval_shape(model.init, jax.random.key(0))
    expected = hugging_face.gradients(FORMS[name], module, model.config, like)
    got = hugging_face.grad(model, variables, X, lambda y: (y**2).mean())
    hugging_face.assert_same(got, expected)


@pytest.mark.parametrize("name", ["deit_tiny_distilled", "deit_small_distilled", "deit_base_distilled"])
def test_sizes(name):
    config = models.PRESETS[name](classes=7)
    described = FORMS["deit (Hugging Face)"].describe(config)
    with torch.device("meta"):
        kept = {k: v for k, v in described.items() if k != "architectures"}
        module = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**kept))
    shapes = jax.eval_shape(models.build(config).init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes.params)) == sum(p.numel() for p in module.parameters())
