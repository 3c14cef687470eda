"""Tiny models of Hugging Face with weights that hide nothing, and ours with the same weights."""

import jax
import numpy as np
import torch
from flax import nnx

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.models import api
from mvp_jax.models.hooks import Noise
from mvp_jax.pretrained import key_table


def randomise(module, seed=0):
    """Values as a trained network might have them, none of them an initial one; batch statistics too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in module.state_dict().items():
            if not t.is_floating_point():
                continue
            norm = t.ndim == 1 and name.endswith("weight")
            if norm or name.endswith("running_var"):
                t.uniform_(0.5, 1.5, generator=generator)
            else:
                t.normal_(0.0, 0.3 if t.ndim == 1 or "embed" in name else 2 / t[0].numel() ** 0.5, generator=generator)
    return module.eval()


def tensors(module, folder):
    """What `save_pretrained` writes: names in files are not always those of the modules."""
    import safetensors.numpy

    module.save_pretrained(folder)
    return safetensors.numpy.load_file(f"{folder}/model.safetensors")


def ours(form, module, folder, **changes):
    """Our model, its variables, and the paths under which each of their tensors lies."""
    import dataclasses

    config = dataclasses.replace(form.config(module.config.to_dict()), **changes)
    model = models.build(config)
    like = jax.eval_shape(model.init, jax.random.key(0))
    return model, carried(form, tensors(module, folder), config, like)


def carried(form, stored, config, like):
    """Their tensors in our tree; every one has a place, and every place is filled."""
    leaves = {}
    for name, a in stored.items():
        for path, value in key_table.to_ours(form, name, a, config).items():
            leaves[path] = np.asarray(value)
    assert {p: a.shape for p, a in trees.flatten(like).items()} == {p: a.shape for p, a in leaves.items()}
    return trees.replace(like, leaves)


def opened(make, variables):
    """A module of ours with these values, to be run part by part."""
    definition, _ = api._split(nnx.eval_shape(lambda: make(Noise())))
    return nnx.merge(definition, variables.params, variables.rest)


def gradients(form, module, config, like):
    """Their gradients by our paths. Parameters go by their names in the module, which the tables know as well."""
    grads = {k: p.grad.numpy() for k, p in module.named_parameters() if p.grad is not None}
    rest = {k: v.numpy() for k, v in module.state_dict().items() if "running" in k}
    return trees.flatten(carried(form, grads | rest, config, like).params)


def assert_same(got, expected, tolerance=1e-3):
    """Gradients agree, relative to the largest of each array; none of them is nothing."""
    for path, g in trees.flatten(got).items():
        scale = np.abs(expected[path]).max()
        assert scale > 1e-4 or path.endswith("key/bias"), path  # softmax does not see a shift of the keys
        np.testing.assert_allclose(g, expected[path], rtol=tolerance, atol=tolerance * max(scale, 1.0), err_msg=path)


def grad(model, variables, x, loss=lambda y: (y**2).sum()):
    return jax.jit(jax.grad(lambda p: loss(model.apply(Variables(p, variables.rest), x)[0])))(variables.params)
