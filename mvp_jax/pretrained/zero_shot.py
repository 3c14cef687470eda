"""Zero-shot heads: classifiers of a CLIP checkpoint's image tower, made of texts instead of examples."""

import os
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from mvp_jax import models
from mvp_jax.data.checkpoint_inputs import tokens
from mvp_jax.models.clip import zero_shot_head
from mvp_jax.pretrained import formats, loading, tensor_files
from mvp_jax.pretrained.keys import clip


def head(folder: str | os.PathLike[str], names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Returns the zero-shot head of a CLIP image tower: the text tower's embeddings of the names of classes.

    Args:
        folder: the folder of a pair of towers with its tokeniser, or its id on the Hugging Face hub.
        names: the names of the classes.
        templates: sentences with `{}` in the place of the name; their embeddings are averaged.

    Returns:
        The kernel, `float32[E, classes]` for image features of length `E`, as `models.clip.zero_shot_head` makes it;
        its bias is 0.

    Raises:
        ValueError: without templates or names, for a template without `{}`, or a folder without text tower.
    """
    wrong = [t for t in templates if "{}" not in t]
    if not templates or not names or wrong:
        raise ValueError(
            f"templates {wrong or list(templates)} for {len(names)} classes; each template holds {{}} where the name "
            "goes, as in 'a photo of a {}.'"
        )
    folder = tensor_files.local(folder)  # the tokeniser's files lie there too
    source = tensor_files.open(folder)
    if source.described is None:
        raise ValueError(f"{source.name} has no config.json that says what towers it holds")
    model = models.build(formats.configure(clip.TEXT, source.described))
    model, variables = loading.load(source, model, classes=1)
    tokenizer = tokens.tokenizer(folder)
    prompts = np.stack(
        [tokenizer.encode([t.replace("{}", name) for t in templates], length=model.input_shape[0]) for name in names]
    )
    return np.asarray(zero_shot_head(model, variables, jnp.asarray(prompts), clip.logit_scale(source)))
