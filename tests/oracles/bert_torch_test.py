"""BERT against Hugging Face's `BertForSequenceClassification`, weights carried over by hand."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mvp_jax import models, trees
from mvp_jax.models import bert
from mvp_jax.types import Variables

DIM, HEADS, LAYERS, MLP, VOCAB, POSITIONS, CLASSES = 24, 3, 2, 40, 50, 12, 5
SEPARATOR = 7


def theirs():
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=MLP,
        max_position_embeddings=POSITIONS,
        num_labels=CLASSES,
        pad_token_id=0,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    module = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "LayerNorm.weight" in name:
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0.0, 0.3 if p.ndim == 1 else 2 / p.shape[1] ** 0.5)
    return module


def carried(state):
    """Their tensors in our tree."""
    t = {k.removeprefix("bert."): v.detach().numpy() for k, v in state.items()}
    d = DIM // HEADS

    def linear(name, *shape):
        kernel = t[f"{name}.weight"].T
        return {"kernel": kernel.reshape(shape or kernel.shape), "bias": t[f"{name}.bias"]}

    def split(name):
        own = linear(name, DIM, HEADS, d)
        return own | {"bias": own["bias"].reshape(HEADS, d)}

    def norm(name):
        return {"scale": t[f"{name}.weight"], "bias": t[f"{name}.bias"]}

    def layer(i):
        at = f"encoder.layer.{i}"
        return {
            "attention": {n: split(f"{at}.attention.self.{n}") for n in ("query", "key", "value")}
            | {"out": linear(f"{at}.attention.output.dense", HEADS, d, DIM)},
            "norm1": norm(f"{at}.attention.output.LayerNorm"),
            "fc1": linear(f"{at}.intermediate.dense"),
            "fc2": linear(f"{at}.output.dense"),
            "norm2": norm(f"{at}.output.LayerNorm"),
        }

    return {
        "embed": {
            "word": t["embeddings.word_embeddings.weight"],
            "position": t["embeddings.position_embeddings.weight"],
            "type": t["embeddings.token_type_embeddings.weight"],
            "norm": norm("embeddings.LayerNorm"),
        },
        "layers": {str(i): layer(i) for i in range(LAYERS)},
        "pooler": linear("pooler.dense"),
        "head": linear("classifier"),
    }


def texts():
    rng = np.random.default_rng(0)
    x = rng.integers(SEPARATOR + 1, VOCAB, (6, POSITIONS - 1)).astype(np.int32)
    kinds = np.zeros_like(x)
    for i, (first, second) in enumerate([(3, 10), (4, 8), (5, 5), (9, 10), (2, 6), (3, 4)]):
        x[i, [first, second]] = SEPARATOR
        x[i, second + 1 :] = 0
        kinds[i, first + 1 : second + 1] = 1
    assert kinds.any()
    assert (x == 0).any()
    return x, kinds


def ours():
    return models.build(
        bert.uniform(
            DIM,
            heads=HEADS,
            layers=LAYERS,
            mlp=MLP,
            vocab=VOCAB,
            positions=POSITIONS,
            classes=CLASSES,
            separator=SEPARATOR,
        )
    )


def run(module, x, kinds):
    tensors = [torch.from_numpy(a.astype(np.int64)) for a in (x, x != 0, kinds)]
    return module(input_ids=tensors[0], attention_mask=tensors[1], token_type_ids=tensors[2]).logits


def test_logits():
    module, model = theirs(), ours()
    x, kinds = texts()
    with torch.no_grad():
        expected = run(module, x, kinds).numpy()
        flat = run(module, x, 0 * kinds).numpy()
    assert np.ptp(expected, axis=0).min() > 1e-2
    assert np.abs(expected - flat).max() > 1e-2
    params = carried(module.state_dict())
    shapes = jax.eval_shape(model.init, jax.random.key(0)).params
    assert {p: a.shape for p, a in trees.flatten(shapes).items()} == {
        p: a.shape for p, a in trees.flatten(params).items()
    }
    np.testing.assert_allclose(model.apply(Variables(params, {}), x)[0], expected, rtol=1e-4, atol=1e-4)


def test_gradients():
    module, model = theirs(), ours()
    x, kinds = texts()
    run(module, x, kinds).square().sum().backward()
    expected = trees.flatten(carried({k: p.grad for k, p in module.named_parameters()}))
    params = carried(module.state_dict())
    got = jax.jit(jax.grad(lambda p: (model.apply(Variables(p, {}), x)[0] ** 2).sum()))(params)
    for path, g in trees.flatten(got).items():
        scale = np.abs(expected[path]).max()
        assert scale > 1e-3 or path.endswith("key/bias"), path  # softmax does not see a shift of the keys
        np.testing.assert_allclose(g, expected[path], rtol=2e-3, atol=2e-4 * scale + 1e-3, err_msg=path)


@pytest.mark.parametrize("name", ["bert_tiny", "bert_base"])
def test_sizes(name):
    config = models.PRESETS[name](classes=2)
    with torch.device("meta"):
        module = transformers.BertForSequenceClassification(
            transformers.BertConfig(
                hidden_size=config.dim,
                num_attention_heads=config.heads[0],
                num_hidden_layers=len(config.heads),
                intermediate_size=config.mlp[0],
            )
        )
    shapes = jax.eval_shape(models.build(config).init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes.params)) == sum(p.numel() for p in module.parameters())
