"""Writes the golden files of BERT, RoBERTa, DistilBERT and DeiT: tiny models as saved there, inputs and logits.

Run from the project's root in an environment with torch and transformers: `python -m tests.golden.make_bert_kin`.
"""

import json
import pathlib
import tempfile

import numpy as np
import safetensors.numpy
import torch
import transformers

from tests.oracles import hugging_face

VOCAB, LONGEST = 24, 8
SIZES = {"num_labels": 3, "attn_implementation": "eager"}
OLD = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}
TEXT = {"vocab_size": VOCAB, "max_position_embeddings": LONGEST}
NEW = {"dim": 8, "n_heads": 2, "n_layers": 2, "hidden_dim": 12}
SHIFTED = {"max_position_embeddings": LONGEST + 2, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}

MADE = {
    "bert": ("BertForSequenceClassification", {**SIZES, **OLD, **TEXT}),
    "bert_words": ("BertForMaskedLM", {**SIZES, **OLD, **TEXT, "hidden_act": "gelu_new"}),
    "roberta": ("RobertaForSequenceClassification", {**SIZES, **OLD, **TEXT, **SHIFTED}),
    "roberta_words": ("RobertaForMaskedLM", {**SIZES, **OLD, **TEXT, **SHIFTED}),
    "distilbert": ("DistilBertForSequenceClassification", {**SIZES, **NEW, **TEXT}),
    "distilbert_words": ("DistilBertForMaskedLM", {**SIZES, **NEW, **TEXT}),
    "deit": (
        "DeiTForImageClassificationWithTeacher",
        {**SIZES, **OLD, "image_size": 8, "patch_size": 4, "num_channels": 1},
    ),
}


def inputs(config):
    rng = np.random.default_rng(3)
    if config.model_type == "deit":
        x = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)
        return x, {"pixel_values": torch.from_numpy(x.transpose(0, 3, 1, 2).copy())}
    x = rng.integers(4, VOCAB, (3, LONGEST)).astype(np.int32)
    x[1, 5:] = x[2, 7:] = config.pad_token_id
    ids = torch.from_numpy(x.astype(np.int64))
    return x, {"input_ids": ids, "attention_mask": (ids != config.pad_token_id).long()}


def main():
    folder = pathlib.Path(__file__).parent
    for name, (cls, sizes) in MADE.items():
        config = getattr(transformers, cls.partition("For")[0] + "Config")(**sizes)
        module = hugging_face.randomise(getattr(transformers, cls)(config), 1)
        x, given = inputs(config)
        with torch.no_grad():
            logits = module(**given).logits.numpy()
        with tempfile.TemporaryDirectory() as there:
            tensors = hugging_face.tensors(module, there)
            described = json.loads((pathlib.Path(there) / "config.json").read_text())
        safetensors.numpy.save_file(tensors, folder / f"{name}.safetensors")
        np.savez_compressed(folder / f"{name}.npz", x=x, logits=logits, config=json.dumps(described))


if __name__ == "__main__":
    main()
