"""Our models against the same ones in PyTorch, weights carried over by the key tables."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mvp_jax import models, pretrained
from mvp_jax.core.types import Variables
from mvp_jax.models import resnet, vit
from tests.oracles import torch_models

CONFIGS = {
    "option_a": resnet.cifar(14, width=4, image_size=12, channels=3, classes=5),
    "distiller": resnet.distiller(14, width=4, image_size=16, classes=5),
    "resnet18": resnet.resnet18(width=4, image_size=65, classes=5),
    "resnet50": resnet.resnet50(width=2, image_size=64, classes=5),
    "vit": vit.micro(16, layers=2, dim=24, heads=3, channels=3, classes=5),
}


def pair(name):
    config = CONFIGS[name]
    module = torch_models.randomise(torch_models.twin(config), 0)
    model = models.build(config)
    tensors = {f"module.{k}": v.numpy().copy() for k, v in module.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(6, *model.input_shape)).astype(np.float32)
    return module, model, pretrained.convert(tensors, model), x


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_in_evaluation(name):
    module, model, variables, x = pair(name)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    got, _ = model.apply(variables, x)
    assert np.ptp(expected, axis=0).min() > 1e-2
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["option_a", "distiller", "resnet50"])
def test_logits_and_running_means_in_training(name):
    module, model, variables, x = pair(name)
    with torch.no_grad():
        expected = module.train()(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    got, rest = model.apply(variables, x, train=True)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())
    after = {f"module.{k}": v.numpy() for k, v in module.state_dict().items()}
    converted = pretrained.convert(after, model)
    moved = 0.0
    for ours, theirs, before in zip(
        *(_means(Variables({}, r)) for r in (rest, converted.rest, variables.rest)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        moved = max(moved, float(np.abs(ours - before).max()))
    assert moved > 1e-2


def _means(variables):
    from mvp_jax.core import trees

    return [np.asarray(a) for p, a in trees.flatten(variables.rest).items() if p.endswith("/mean")]


@pytest.mark.parametrize("name", ["option_a", "vit"])
def test_gradients(name):
    import jax

    from mvp_jax.core import trees

    module, model, variables, x = pair(name)
    module.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2))).square().sum().backward()
    grads = {k: p.grad.numpy() for k, p in module.named_parameters()}
    rest = {k: v.numpy() for k, v in module.state_dict().items() if k not in grads}
    expected = trees.flatten(pretrained.convert({**grads, **rest}, model).params)
    got = jax.jit(jax.grad(lambda p: (model.apply(Variables(p, variables.rest), x)[0] ** 2).sum()))(variables.params)
    for path, g in trees.flatten(got).items():
        scale = np.abs(expected[path]).max()
        assert scale > 1e-3 or path.endswith("key/bias"), path  # softmax does not see a shift of the keys
        np.testing.assert_allclose(g, expected[path], rtol=2e-3, atol=2e-4 * scale + 1e-3)
