"""Small checkpoint folders with all that a job needs, as `transformers` writes them."""

import json

import jax

from mvp_jax import models
from mvp_jax.models import bert, clip
from mvp_jax.pretrained import export
from tests.model_kinds import randomise

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,"


def _files(folder, files):
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def clip_pair(folder, side=8):
    """Both towers, a tokeniser of letters, and a processor."""
    sizes = {"dim": 16, "heads": 2, "mlp": 24, "layers": 1, "projection": 8}
    vocabulary = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    end = len(vocabulary) - 1
    vision = clip.micro_vision(side, channels=3, patch=4, **sizes)
    text = clip.micro_text(len(vocabulary), positions=40, eos=end, **sizes)
    towers = [
        (models.build(c), randomise(jax.eval_shape(models.build(c).init, jax.random.key(0)), seed))
        for c, seed in ((vision, 0), (text, 1))
    ]
    export.clip_pair(folder, *towers, 1.2)
    return _files(
        folder,
        {
            "vocab.json": {token: i for i, token in enumerate(vocabulary)},
            "merges.txt": "#version: 0.2\n",
            "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"},
            "preprocessor_config.json": {
                "image_processor_type": "CLIPImageProcessor",
                "do_resize": True,
                "size": {"shortest_edge": side},
                "do_center_crop": True,
                "crop_size": {"height": side, "width": side},
                "do_convert_rgb": True,
                "do_normalize": True,
                "image_mean": [0.4, 0.5, 0.6],
                "image_std": [0.2, 0.3, 0.4],
                "resample": 3,
            },
        },
    )


def bert_encoder(folder):
    """A classifier of two classes, and WordPiece of letters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *LETTERS, *(f"##{c}" for c in LETTERS)]
    model = models.build(
        bert.micro(
            len(vocabulary), positions=32, dim=16, heads=2, mlp=24, layers=1, classes=2, separator=3, epsilon=1e-12
        )
    )
    export.checkpoint(folder, model, randomise(jax.eval_shape(model.init, jax.random.key(0)), 0))
    return _files(
        folder,
        {
            "vocab.txt": "\n".join(vocabulary) + "\n",
            "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
        },
    )
