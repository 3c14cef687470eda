"""A checkpoint and data of your own in; a smaller model, ready for other tools, and a report out.

    python -m mvp_jax.main --config=configs/prune.py:checkpoint=FOLDER,data=a.csv --config.sparsity=0.8 --workdir=out
    python -m mvp_jax.main --config=configs/prune.py:checkpoint=FOLDER,data=photos --config.ratio=0.5 --workdir=out
    python -m mvp_jax.main --config=configs/prune.py --workdir=out

`checkpoint` is a folder as `transformers` writes it (BERT, RoBERTa, DistilBERT, ViT, DeiT, ResNet), or the id of one on
the Hugging Face hub. `data` is a table of texts (CSV, TSV or JSON lines, with a column of labels), a folder with a
folder of pictures for each class, an `.npz` archive, a name of the catalogue, or `glue/TASK` with `data.path`.

The goal is one of `sparsity` (the share of the weights that goes), `ratio` (the share of each group's heads, neurons or
filters that goes, so that the model becomes smaller), `parameters`, `flops`, `latency` (what may be left), and
`keep_accuracy` (the share of the dense model's validation accuracy that must be kept, as 0.99; with
`remove="units"` for units). Without any, 80 % of the weights go.

The dense model is fine-tuned first, as the reference. Then it is pruned and fine-tuned; the test part is read once.
`--workdir` gets `model/` (a folder for `transformers`, with tokeniser or processor and label names), `slim/` (smaller,
for `mvp_jax.pretrained.load`), `dense/` (the fine-tuned dense model: prune it again with another goal as
`checkpoint=out/dense`), and `report.html`, `report.md`, `report.json`.

Lab note. Without arguments a small vision transformer is made on the spot, trained on five of the digits of
scikit-learn, and pruned for all ten.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import presets, prune_job


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("checkpoint", "data", "runlocal"))
    if "checkpoint" in given and "data" not in given:
        raise ValueError("a checkpoint, but no data; give both, as configs/prune.py:checkpoint=FOLDER,data=FILE")
    config = prune_job.config(given.get("checkpoint", ""), given.get("data", "digits"))
    if "runlocal" in given:
        config.finetune.epochs = 1.0
        config.data.limit = 400
    return config
