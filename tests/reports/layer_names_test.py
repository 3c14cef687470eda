"""Names of layers are words, and different arrays of a model have different names."""

import jax
import pytest

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.reports import layer_names


@pytest.mark.parametrize(
    "preset", ["resnet50", "resnet8_distiller", "vit_tiny", "deit_tiny_distilled", "bert_tiny", "clip_text_micro"]
)
def test_arrays_of_a_model_have_different_names_without_slashes(preset):
    model = models.create(preset)
    paths = jax.tree.leaves(trees.paths(jax.eval_shape(model.init, jax.random.key(0)).params))
    names = [layer_names.readable(p) for p in paths]
    assert len(set(names)) == len(names) > 10
    assert not [n for n in names if "/" in n or "kernel" in n or "_" in n]


def test_groups_of_units_have_names_too():
    assert layer_names.readable("layers/3/attention") == "layer 4, attention"
    assert layer_names.readable("layers/0/attention:kv_head2") == "layer 1, attention (kv head 2)"
    assert layer_names.readable("stages/1") == "stage 2"
    assert layer_names.readable("layers_2/attention/value") == "layer 3, attention value"


@pytest.mark.parametrize(
    "path", ["", "kernel", "w", "0/1", "a//b", "layers", "layers/x", "attention", "é/kernel", "a:"]
)
def test_any_path_has_some_name(path):
    assert isinstance(layer_names.readable(path), str)
    assert layer_names.readable("mine/Dense_0/kernel") == "mine, Dense_0"
