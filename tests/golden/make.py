"""Writes the golden files: weights under PyTorch's names, a batch, and the logits PyTorch computes.

Run from the project's root in an environment with torch: `python -m tests.golden.make`.
"""

import pathlib

import numpy as np
import safetensors.numpy
import torch

from mvp_jax.models import resnet, vit
from tests.oracles import torch_models

CONFIGS = {
    "option_a": resnet.resnet8(width=2, image_size=8, channels=1, classes=3),
    "distiller": resnet.resnet8_distiller(width=2, image_size=8, channels=1, classes=3),
    "vit": vit.micro(layers=1, dim=8, heads=2, classes=3),
}


def main():
    folder = pathlib.Path(__file__).parent
    for name, config in CONFIGS.items():
        module = torch_models.randomise(torch_models.twin(config), 1).eval()
        shape = (3, config.image_size, config.image_size, config.channels)
        x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
        with torch.no_grad():
            logits = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
        tensors = {k: np.ascontiguousarray(v.numpy()) for k, v in module.state_dict().items()}
        safetensors.numpy.save_file(tensors, folder / f"{name}.safetensors")
        np.savez_compressed(folder / f"{name}.npz", x=x, logits=logits)


if __name__ == "__main__":
    main()
