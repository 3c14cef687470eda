"""Writes the golden files of CLIP: a tiny `CLIPModel` as Hugging Face saves it, inputs, and what it computes.

Run from the project's root in an environment with torch and transformers: `python -m tests.golden.make_clip`.
"""

import json
import pathlib

import numpy as np
import safetensors.numpy
import torch

from tests.oracles import clip_torch_test as oracle


def main():
    folder = pathlib.Path(__file__).parent
    module = oracle.theirs(dim=12, mlp=14, image_heads=3, text_heads=2, projection=7, vocab=24)
    images, ids = oracle.inputs(vocab=24)
    with torch.no_grad():
        out = module(
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), input_ids=torch.from_numpy(ids)
        )
    tensors = {k: np.array(v.numpy(), order="C") for k, v in module.state_dict().items()}
    safetensors.numpy.save_file(tensors, folder / "clip.safetensors")
    (folder / "clip.json").write_text(json.dumps(module.config.to_diff_dict(), indent=1, sort_keys=True) + "\n")
    np.savez_compressed(
        folder / "clip.npz",
        images=images,
        ids=ids,
        image_features=out.image_embeds.numpy(),
        text_features=out.text_embeds.numpy(),
        logits=out.logits_per_image.numpy(),
    )


if __name__ == "__main__":
    main()
