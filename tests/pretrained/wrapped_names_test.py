"""Checkpoints of models that were wrapped by PyTorch: compiled, replicated over devices, or both."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax import models, pretrained
from mvp_jax.pretrained import formats
from tests.pretrained.loading_test import CONFIGS, GOLDEN

PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module._orig_mod._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["vit", "option_a"])
def test_a_wrapped_model_loads_as_the_bare_one(prefix, name):
    model = models.build(CONFIGS[name])
    tensors = safetensors.numpy.load_file(GOLDEN / f"{name}.safetensors")
    assert formats.detect([prefix + key for key in tensors]) == formats.detect(tensors)
    found = pretrained.convert({prefix + key: a for key, a in tensors.items()}, model)
    jax.tree.map(np.testing.assert_array_equal, found, pretrained.convert(tensors, model))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found.params))


def test_a_part_of_a_model_may_be_compiled():
    model = models.build(CONFIGS["option_a"])
    tensors = safetensors.numpy.load_file(GOLDEN / "option_a.safetensors")
    compiled = {key.replace("layer2.", "layer2._orig_mod."): a for key, a in tensors.items()}
    assert compiled.keys() != tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, pretrained.convert(compiled, model), pretrained.convert(tensors, model))


def test_two_tensors_of_one_name_are_refused_and_the_rest_of_a_name_stays():
    model = models.build(CONFIGS["option_a"])
    tensors = safetensors.numpy.load_file(GOLDEN / "option_a.safetensors")
    twice = tensors | {"_orig_mod.linear.bias": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"linear\.bias: a second value for params/head/bias, after _orig_mod\.lin"):
        pretrained.convert(twice, model)
    assert [formats.bare(key) for key in ("modules.a", "my_module.b", "a.module.b", "model.c", "d_orig_mod.e")] == [
        *("modules.a", "my_module.b", "a.module.b", "model.c", "d_orig_mod.e")
    ]
