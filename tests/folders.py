"""Small checkpoint folders as `transformers` writes them, made without it."""

import json

import jax
import numpy as np
import safetensors.numpy

from mvp_jax import models
from mvp_jax.formats import bert as bert_formats
from mvp_jax.formats import clip as clip_formats
from mvp_jax.formats import rules
from mvp_jax.models import bert, clip
from tests.model_kinds import randomise

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,"


def _write(folder, described, tensors, files):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(described))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def _tensors(form, config, seed):
    variables = randomise(jax.eval_shape(models.build(config).init, jax.random.key(0)), seed)
    return dict(rules.stored(form, variables, config))


def clip_pair(folder, side=8):
    """Both towers, a tokeniser of letters, and a processor."""
    sizes = {"dim": 16, "heads": 2, "mlp": 24, "layers": 1, "projection": 8}
    vocabulary = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    end = len(vocabulary) - 1
    vision = clip.micro_vision(side, channels=3, patch=4, **sizes)
    text = clip.micro_text(len(vocabulary), positions=40, eos=end, **sizes)
    parts = {}
    for name, form, config, seed in (("vision", clip_formats.VISION, vision, 0), ("text", clip_formats.TEXT, text, 1)):
        parts[name] = form.describe(config), _tensors(form, config, seed)
    tensors = {k: v for _, own in parts.values() for k, v in own.items() if "_head." not in k}
    described = {
        "model_type": "clip", "projection_dim": 8, "vision_config": parts["vision"][0],
        "text_config": parts["text"][0],
    }  # fmt: skip
    return _write(folder, described, {**tensors, "logit_scale": np.float32(1.2)[None].reshape(())}, {
        "vocab.json": {token: i for i, token in enumerate(vocabulary)},
        "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"},
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": side},
            "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_convert_rgb": True,
            "do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 3,
        },
    })  # fmt: skip


def bert_encoder(folder):
    """A classifier of two classes, and WordPiece of letters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *LETTERS, *(f"##{c}" for c in LETTERS)]
    config = bert.micro(
        len(vocabulary), positions=32, dim=16, heads=2, mlp=24, layers=1, classes=2, separator=3, epsilon=1e-12
    )
    (form,) = (f for f in bert_formats.FORMATS if f.name == "bert (Hugging Face)")
    return _write(folder, form.describe(config), _tensors(form, config, 0), {
        "vocab.txt": "\n".join(vocabulary) + "\n",
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
    })  # fmt: skip
