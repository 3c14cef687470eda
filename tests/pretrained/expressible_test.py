"""Slim models as another library's checkpoints: with their own widths where it has such a model, else filled up."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, models, pretrained
from mvp_jax.models import bert, resnet, vit
from mvp_jax.pretrained import export
from tests.model_kinds import batch, randomise

BERT = bert.uniform(16, heads=4, layers=2, mlp=24, vocab=60, positions=12, separator=7)
VIT = vit.micro(8, channels=3, dim=16, heads=4, layers=2, mlp=24, classes=3)


def slim(config, **sizes):
    """A slim model of the first units of groups, and its variables."""
    model = models.build(config)
    variables = randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)
    size = {g.name: g.size for g in model.groups}
    named = {name.replace("_", "/"): n for name, n in sizes.items()}
    return compact.rebuild(model, variables, {name: jnp.arange(size[name]) < n for name, n in named.items()})


def round_trip(folder, model, variables):
    """What is written, its `config.json`, and the model that is read back; it computes what the given one computes."""
    out = export.checkpoint(folder, model, variables)
    again, values = pretrained.load(out.path)
    x = batch(model, 3)
    wanted = np.asarray(model.apply(variables, x)[0])
    np.testing.assert_allclose(again.apply(values, x)[0], wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
    assert np.ptp(wanted) > 0.1
    return out, json.loads((out.path / "config.json").read_text()), again


@pytest.mark.parametrize("config", [BERT, VIT])
def test_mlps_of_one_width_are_written_as_they_are(config, tmp_path):
    model, variables = slim(config, layers_0_fc1=5, layers_1_fc1=5)
    assert export.why_not(model) is None
    out, described, again = round_trip(tmp_path / "out", model, variables)
    assert described["intermediate_size"] == 5
    assert again.config.mlp == model.config.mlp
    assert not [note for note in out.notes if "filled" in note]


def test_fewer_heads_of_a_vit_are_written_as_they_are(tmp_path):
    model, variables = slim(VIT, layers_0_attention=3, layers_1_attention=3)
    assert export.why_not(model) is None
    assert "pruned" in export.why_not(model, "timm")
    out, described, again = round_trip(tmp_path / "out", model, variables)
    assert "from version 5 on" in " ".join(out.notes)
    assert (described["num_attention_heads"], described["head_dim"], described["hidden_size"]) == (3, 4, 16)
    assert again.config.heads == (3, 3)


@pytest.mark.parametrize(("config", "heads"), [(BERT, 4), (VIT, 2)])
def test_what_cannot_be_said_is_filled_up_with_zeros_and_noted(config, heads, tmp_path):
    sizes = {"layers_0_attention": 1, "layers_1_attention": 2, "layers_0_fc1": 3, "layers_1_fc1": 7}
    sizes |= {"layers_0_attention_query": 3, "layers_1_attention_value": 2}
    model, variables = slim(config, **sizes)
    assert "heads" in export.why_not(model)
    out, described, again = round_trip(tmp_path / "out", model, variables)
    assert described["intermediate_size"] == 7
    assert again.config.heads == (heads, heads)
    assert again.config.qk_dim == again.config.v_dim == (4, 4)
    filled = " ".join(out.notes)
    assert f"heads [1, 2] of the layers were filled up with zeros to {heads}" in filled
    assert "mlp [3, 7] of the layers were filled up with zeros to 7" in filled


def test_masked_heads_of_a_vit_become_fewer(tmp_path):
    model = models.build(VIT)
    variables = randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)
    units = {
        "layers/0/attention": jnp.array([False, True, False, False]),
        "layers/1/attention": jnp.array([True, False, False, True]),
    }
    out = export.checkpoint(tmp_path / "out", model, variables, units=units)
    again, values = pretrained.load(out.path)
    assert again.config.heads == (2, 2)
    x = batch(model, 3)
    wanted = model.apply(compact.mask(variables, tuple(g for g in model.groups if g.name in units), units), x)[0]
    np.testing.assert_allclose(again.apply(values, x)[0], wanted, atol=1e-5 * float(jnp.abs(wanted).max()))
    assert np.abs(wanted - model.apply(variables, x)[0]).max() > 1e-2


def test_a_slim_residual_network_has_one_reason(tmp_path):
    model = models.build(resnet.resnet18(width=4, classes=3))
    slim_model = model.resize({"stages/1/blocks/0/conv1": 3})
    reason = export.why_not(slim_model)
    assert "one width in all blocks of a stage" in reason
    assert export.why_not(model) is None
    with pytest.raises(ValueError, match="one width in all blocks of a stage"):
        export.checkpoint(tmp_path / "out", slim_model, slim_model.init(jax.random.key(0)))
    assert not (tmp_path / "out").exists()
