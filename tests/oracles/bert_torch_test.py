"""BERT, RoBERTa and DistilBERT against Hugging Face's, under both heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.models import bert
from mvp_jax.models.hooks import Hooks
from mvp_jax.pretrained.keys import bert as formats
from tests.oracles import hugging_face

DIM, HEADS, LAYERS, MLP, VOCAB, LONGEST, CLASSES = 32, 4, 2, 40, 50, 12, 5
SEPARATOR = 7
SIZES = {"vocab_size": VOCAB, "num_labels": CLASSES, "attn_implementation": "eager"}
OLD = {"hidden_size": DIM, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "intermediate_size": MLP}
CONFIGS = {
    "Bert": lambda: transformers.BertConfig(**SIZES, **OLD, max_position_embeddings=LONGEST),
    "Roberta": lambda: transformers.RobertaConfig(
        **SIZES, **OLD, max_position_embeddings=LONGEST + 2, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1
    ),
    "DistilBert": lambda: transformers.DistilBertConfig(
        **SIZES, dim=DIM, n_heads=HEADS, n_layers=LAYERS, hidden_dim=MLP, max_position_embeddings=LONGEST
    ),
}
HEADED = {"classify": "ForSequenceClassification", "masked_lm": "ForMaskedLM"}
FORMS = {f.name: f for f in formats.FORMATS}
every = pytest.mark.parametrize(("kin", "task"), [(kin, task) for kin in CONFIGS for task in HEADED])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Each pair once."""
    made = {}

    def pair(kin, task):
        if (kin, task) not in made:
            module = hugging_face.randomise(getattr(transformers, kin + HEADED[task])(CONFIGS[kin]()))
            form = FORMS[kin.lower() + {"classify": "", "masked_lm": " for words"}[task] + " (Hugging Face)"]
            changes = {"separator": SEPARATOR} if kin == "Bert" else {}
            model, variables = hugging_face.ours(form, module, tmp_path_factory.mktemp("saved"), **changes)
            made[kin, task] = form, module, model, variables
        return made[kin, task]

    return pair


def texts(model):
    """Ids with padding after most texts, and token types."""
    c = model.config
    rng = np.random.default_rng(0)
    x = rng.integers(SEPARATOR + 1, VOCAB, (6, LONGEST - 1)).astype(np.int32)
    kinds = np.zeros_like(x)
    for i, (first, second) in enumerate([(3, 10), (4, 8), (5, 5), (9, 10), (2, 6), (3, 4)]):
        x[i, [first, second]] = SEPARATOR
        x[i, second + 1 :] = c.pad
        kinds[i, first + 1 : second + 1] = 1
    assert kinds.any()
    assert (x == c.pad).any()
    return x, kinds


def run(module, model, x, kinds, **options):
    tensors = {"input_ids": x, "attention_mask": x != model.config.pad}
    if model.config.separator is not None:
        tensors["token_type_ids"] = kinds
    return module(**{k: torch.from_numpy(a.astype(np.int64)) for k, a in tensors.items()}, **options)


@every
def test_logits_and_every_hidden_state(pairs, kin, task):
    _, module, model, variables = pairs(kin, task)
    x, kinds = texts(model)
    real = x != model.config.pad
    with torch.no_grad():
        found = run(module, model, x, kinds, output_hidden_states=True)
    expected = found.logits.numpy()
    assert np.ptp(expected.reshape(-1, expected.shape[-1]), axis=0).min() > 0.1
    got = model.apply(variables, x)[0]
    seen = real if task == "masked_lm" else ...
    np.testing.assert_allclose(np.asarray(got)[seen], expected[seen], rtol=1e-4, atol=1e-4)

    part = hugging_face.opened(lambda noise: bert.Bert(model.config, noise=noise), variables)
    states = [part.embed(jnp.asarray(x))]
    for i in range(LAYERS):
        states.append(part.layers[str(i)](states[-1], Hooks(), jnp.asarray(real)))
    assert len(found.hidden_states) == LAYERS + 1
    for ours, theirs in zip(states, found.hidden_states, strict=True):
        assert np.ptp(theirs.numpy(), axis=(0, 1)).min() > 0.5
        np.testing.assert_allclose(np.asarray(ours)[real], theirs.numpy()[real], rtol=1e-4, atol=1e-4)


@every
def test_gradients(pairs, kin, task):
    form, module, model, variables = pairs(kin, task)
    x, kinds = texts(model)
    weight = (x != model.config.pad)[..., None].astype(np.float32) if task == "masked_lm" else np.ones((1, 1))
    module.zero_grad()
    (run(module, model, x, kinds).logits.square() * torch.from_numpy(weight)).mean().backward()
    like = jax.eval_shape(model.init, jax.random.key(0))
    expected = hugging_face.gradients(form, module, model.config, like)
    got = hugging_face.grad(model, variables, x, lambda y: (y**2 * weight).mean())
    hugging_face.assert_same(got, expected)


def test_segments_count(pairs):
    _, module, model, _ = pairs("Bert", "classify")
    x, kinds = texts(model)
    with torch.no_grad():
        two, one = (run(module, model, x, k).logits.numpy() for k in (kinds, 0 * kinds))
    assert np.abs(two - one).max() > 1e-2


def test_tied_words_follow_the_embedding(pairs):
    _, _, model, variables = pairs("DistilBert", "masked_lm")
    x, _ = texts(model)
    assert "kernel" not in variables.params["head"]
    before = np.asarray(model.apply(variables, x)[0])
    word = np.array(variables.params["embed"]["word"])
    absent = sorted(set(range(VOCAB)) - set(np.unique(x)))[0]
    word[absent] += 1
    moved = Variables({**variables.params, "embed": {**variables.params["embed"], "word": word}}, variables.rest)
    change = np.abs(np.asarray(model.apply(moved, x)[0]) - before).max((0, 1))
    assert set(np.flatnonzero(change > 1e-3)) == {absent}


def test_an_activation_by_name(tmp_path):
    config = CONFIGS["Bert"]()
    config.hidden_act = "gelu_new"
    module = hugging_face.randomise(transformers.BertForMaskedLM(config))
    model, variables = hugging_face.ours(FORMS["bert for words (Hugging Face)"], module, tmp_path)
    x, kinds = texts(model)
    with torch.no_grad():
        expected = run(module, model, x, kinds).logits.numpy()
    np.testing.assert_allclose(model.apply(variables, x)[0], expected, rtol=1e-4, atol=1e-4)
    exact = models.build(dataclasses.replace(model.config, activation="gelu"))
    assert np.abs(exact.apply(variables, x)[0] - expected).max() > 1e-3


@pytest.mark.parametrize("name", ["bert_tiny", "bert_base", "bert_large", "roberta_base", "distilbert_base"])
@pytest.mark.parametrize("task", HEADED)
def test_sizes(name, task):
    config = models.PRESETS[name](classes=2, task=task)
    kin = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}[name.partition("_")[0]]
    form = FORMS[kin.lower() + {"classify": "", "masked_lm": " for words"}[task] + " (Hugging Face)"]
    described = {k: v for k, v in form.describe(config).items() if k != "architectures"}
    with torch.device("meta"):
        module = getattr(transformers, kin + HEADED[task])(getattr(transformers, f"{kin}Config")(**described))
    shapes = jax.eval_shape(models.build(config).init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(shapes.params)) == sum(p.numel() for p in module.parameters())
    assert trees.flatten(shapes.params)["embed/position"].shape[0] == described["max_position_embeddings"]
