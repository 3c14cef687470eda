"""CLIP against Hugging Face's `CLIPModel`: features, hidden states, similarities, zero-shot heads and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.models import api, clip, layers
from mvp_jax.models.hooks import Hooks, Noise
from mvp_jax.pretrained import key_table, tensor_files
from mvp_jax.pretrained.keys import clip as formats

POSITIONS, EOS = 9, 3


def theirs(*, dim=32, mlp=40, image_heads=4, text_heads=2, projection=24, vocab=50, eos=EOS, act="quick_gelu"):
    """A `CLIPModel` of two layers each, none of whose weights are initial ones."""
    shared = {"hidden_size": dim, "intermediate_size": mlp, "num_hidden_layers": 2, "hidden_act": act}
    text = {"num_attention_heads": text_heads, "vocab_size": vocab, "max_position_embeddings": POSITIONS}
    ids = {"bos_token_id": 1, "eos_token_id": eos, "pad_token_id": 0}
    vision = {"num_attention_heads": image_heads, "image_size": 8, "patch_size": 4, "num_channels": 2}
    config = transformers.CLIPConfig(
        text_config=shared | text | ids, vision_config=shared | vision, projection_dim=projection
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    module = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 1 and name.endswith("weight"):
                p.uniform_(0.5, 1.5)
            elif p.ndim:
                p.normal_(0.0, 0.3 if p.ndim == 1 or "embedding" in name else 1.2 / p[0].numel() ** 0.5)
        module.logit_scale.fill_(1.5)
    return module


def inputs(vocab=50):
    """Images and texts that end in different places; after the end come other words."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 8, 8, 2)).astype(np.float32)
    ids = rng.integers(EOS + 1, vocab - 1, (4, POSITIONS - 1))
    ids[:, 0] = 1
    ids[[0, 1, 2, 3], [7, 4, 5, 2]] = EOS
    ids[1, 5:], ids[2, 6:] = EOS, 0
    return images, ids


def ours(module):
    """Both towers, `(model, variables)`, through the key tables."""
    described = module.config.to_dict()
    tensors = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    found = []
    for form in formats.FORMATS:
        model = clip.build(form.config(described))
        like = jax.eval_shape(model.init, jax.random.key(0))
        got = {}
        for name, array in tensors.items():
            got |= key_table.to_ours(form, name, array, model.config)
        head = {p: np.zeros(a.shape, np.float32) for p, a in trees.flatten(like).items() if "/head/" in p}
        found.append((model, trees.replace(like, {p: jnp.asarray(a) for p, a in (got | head).items()})))
    return found


def both(**options):
    module = theirs(**options)
    return module, *ours(module), *inputs(options.get("vocab", 50))


def channels_first(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("options", [{}, {"eos": 2}, {"act": "gelu", "image_heads": 2}])
def test_features_and_similarities(options):
    module, (vision, v), (text, t), images, ids = both(**options)
    assert (text.config.eos is None) == (options.get("eos") == 2)
    with torch.no_grad():
        out = module(pixel_values=channels_first(images), input_ids=torch.from_numpy(ids))
    expected = out.logits_per_image.numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(vision.inspect(v, images).features, out.image_embeds.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(text.inspect(t, ids).features, out.text_embeds.numpy(), rtol=1e-4, atol=1e-5)
    scale = formats.logit_scale(tensor_files.in_memory({"logit_scale": module.logit_scale.detach().numpy()}))
    got = clip.similarity(vision, v, text, t, images, ids, scale)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def states(monkeypatch, model, variables, x):
    """What each layer of ours gives out."""
    seen, original = [], layers.PreNorm.__call__

    def noted(self, *inputs):
        seen.append(original(self, *inputs))
        return seen[-1]

    monkeypatch.setattr(layers.PreNorm, "__call__", noted)
    module = api.nnx.merge(api._split(clip._module(model.config, Noise()))[0], variables.params, {})
    module(jnp.asarray(x), Hooks())
    return [np.asarray(a) for a in seen]


def test_hidden_states(monkeypatch):
    module, (vision, v), (text, t), images, ids = both()
    first = np.argmax(ids == EOS, axis=1)
    real = np.arange(ids.shape[1]) <= first[:, None]
    with torch.no_grad():
        seen = module.vision_model(channels_first(images), output_hidden_states=True).hidden_states[1:]
        read = module.text_model(
            torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64)), output_hidden_states=True
        ).hidden_states[1:]
    for model, variables, x, expected in ((vision, v, images, seen), (text, t, ids, read)):
        got = states(monkeypatch, model, variables, x)
        assert len(got) == len(expected) == 2
        for mine, other in zip(got, expected, strict=True):
            assert np.ptp(other.numpy()) > 1
            np.testing.assert_allclose(mine, other.numpy(), rtol=1e-4, atol=1e-4)


def test_zero_shot_head():
    module, (vision, v), (text, t), images, ids = both()
    prompts = ids[[[0, 1], [2, 3], [3, 0]]]  # [C, T, L]
    columns = []
    with torch.no_grad():
        for templates in prompts:
            read = [module.text_model(torch.from_numpy(p[None])).pooler_output for p in templates]
            each = [module.text_projection(r)[0] for r in read]
            mean = torch.stack([e / e.norm() for e in each]).mean(0)
            columns.append(mean / mean.norm() * module.logit_scale.exp())
        expected = torch.stack(columns, dim=1)
        features = module(pixel_values=channels_first(images), input_ids=torch.from_numpy(ids)).image_embeds
        logits = (features @ expected).numpy()
    kernel = clip.zero_shot_head(text, t, prompts, 1.5)
    assert np.ptp(expected.numpy(), axis=1).max() > 0.1
    np.testing.assert_allclose(kernel, expected.numpy(), rtol=1e-4, atol=1e-5)
    model = vision.with_classes(3)
    assert np.ptp(logits) > 0.1
    got = model.apply(api.replace_head(v, model, kernel), images)[0]
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-4)


def test_gradients():
    module, (vision, v), (text, t), images, ids = both()
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(3, 4)).astype(np.float32)
    out = module(pixel_values=channels_first(images), input_ids=torch.from_numpy(ids))
    (out.logits_per_image * torch.from_numpy(weights)).sum().backward()
    grads = {k: p.grad.numpy() for k, p in module.named_parameters()}

    def loss(params):
        pair = Variables(params[0], {}), Variables(params[1], {})
        return jnp.sum(clip.similarity(vision, pair[0], text, pair[1], images, ids, 1.5) * weights)

    value, mine = jax.value_and_grad(loss)((v.params, t.params))
    assert float(value) == pytest.approx(float((out.logits_per_image.detach().numpy() * weights).sum()), rel=1e-4)
    compared = 0
    for form, model, own in zip(formats.FORMATS, (vision, text), mine, strict=True):
        leaves = trees.flatten(Variables(own, {}))
        for name, g in grads.items():
            for path, expected in key_table.to_ours(form, name, g, model.config).items():
                assert np.abs(expected).max() > 1e-5 or path.endswith("key/bias"), path
                np.testing.assert_allclose(leaves[path], expected, rtol=1e-3, atol=1e-4, err_msg=path)
                compared += 1
    assert compared == len(grads) - 1  # all but logit_scale


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_what_is_described_is_theirs(tower):
    """A model of ours, written as theirs, gives the same there."""
    module = theirs()
    (model, variables) = ours(module)[tower == "text"]
    form = formats.FORMATS[tower == "text"]
    cls = getattr(transformers, f"CLIP{tower.capitalize()}ModelWithProjection")
    described = form.describe(model.config)
    again = cls(getattr(transformers, f"CLIP{tower.capitalize()}Config")(**described)).eval()
    state = {n: torch.tensor(a) for n, a in key_table.stored(form, variables, model.config) if "_head." not in n}
    again.load_state_dict(state, strict=True)
    images, ids = inputs()
    with torch.no_grad():
        if tower == "vision":
            x, out = images, again(channels_first(images)).image_embeds
        else:
            x, out = ids, again(torch.from_numpy(ids)).text_embeds
    out = (out / out.norm(dim=-1, keepdim=True)).numpy()
    np.testing.assert_allclose(model.inspect(variables, x).features, out, rtol=1e-4, atol=1e-5)
    assert form.config(again.config.to_dict()) == model.config
