"""2:4 in the matrices that PyTorch multiplies, `[out, in]`, run by run."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax import models
from mvp_jax.core import masks, patterns
from mvp_jax.core.types import Variables
from mvp_jax.methods.sparse.problem import SparsityProblem
from mvp_jax.models import bert, clip, resnet, vit
from mvp_jax.pretrained import export
from tests.model_kinds import batch, randomise

CONFIGS = {
    "vit": (vit.micro(layers=2, dim=12, heads=3, mlp=8, classes=3), 12, ()),
    "bert": (bert.micro(16, positions=7, layers=2, dim=12, heads=3, mlp=8, classes=3), 12, ()),
    "clip_vision": (clip.micro_vision(layers=1, dim=12, heads=6, mlp=8, classes=3, projection=4), 6, ()),
    "clip_text": (
        clip.micro_text(16, positions=7, layers=1, dim=12, heads=6, mlp=8, classes=3, projection=4, eos=3),
        6,
        (),
    ),
    "resnet": (resnet.resnet8(width=4, image_size=8, channels=2, classes=3), 6, ("stages/.*/kernel",)),
}


def exported(name, pattern, folder):
    config, _, rules = CONFIGS[name]
    model = models.build(config)
    variables = randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)
    train = {"x": batch(model, 2), "y": np.zeros(2, np.int32)}
    given = {"rules": rules} if rules else {}
    problem = SparsityProblem(model=model, variables=variables, train=train, sparsity=0.5, pattern=pattern, **given)
    p, chosen, params = problem.pattern, problem.prunable, variables.params
    kept = p.select(p.entries(params, chosen), problem.keep(), problem.whole())
    pruned = masks.apply(params, p.masks(kept, params, chosen))
    origin = "CIFAR" if name == "resnet" else "Hugging Face"
    written = export.checkpoint(folder, model, Variables(pruned, variables.rest), origin=origin)
    return safetensors.numpy.load_file(written.path / "model.safetensors")


def two_of_four(tensors):
    """The names of matrices and convolutions with exactly two of every four along their inputs."""
    good = set()
    for key, a in tensors.items():
        if a.ndim in (2, 4) and a.shape[1] % 4 == 0:
            runs = np.moveaxis(a, 1, -1).reshape(-1, 4)
            if all((run != 0).sum() == 2 for run in runs):
                good.add(key)
    return good


@pytest.mark.parametrize("name", CONFIGS)
def test_every_pruned_matrix_is_two_of_four_along_its_inputs(name, tmp_path):
    good = two_of_four(exported(name, patterns.NofM(4), tmp_path / "out"))
    assert len(good) == CONFIGS[name][1]


def test_one_axis_for_all_is_not(tmp_path):
    good = two_of_four(exported("vit", patterns.NofM(4, axis=-1), tmp_path / "out"))
    assert len(good) < 12
