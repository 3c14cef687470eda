"""Prunes your own checkpoint on your own data, and writes a smaller model for other tools, and a report.

    python -m mvp_jax.main --config=configs/prune.py:checkpoint=FOLDER,data=a.csv --config.sparsity=0.8 --workdir=out
    python -m mvp_jax.main --config=configs/prune.py:checkpoint=FOLDER,data=photos --config.ratio=0.5 --workdir=out
    python -m mvp_jax.main --config=configs/prune.py --workdir=out

`checkpoint` is a folder that `transformers` wrote (BERT, RoBERTa, DistilBERT, ViT, DeiT or ResNet), or the id
`organisation/name` of a model on the Hugging Face hub. `data` is a table of texts (CSV, TSV or JSON lines, with a
column of labels), a folder with one folder of pictures for each class, an `.npz` archive, a name of the catalogue, or
`glue/TASK` with `data.path`.

The goal is one of these settings: `sparsity` (the share of the weights to remove), `ratio` (the share of each group's
heads, neurons or filters to remove, so that the model becomes smaller), `parameters`, `flops` or `latency` (what may be
left), or `keep_accuracy` (the share of the dense model's validation accuracy that must be kept, for example 0.99; with
`remove="units"`, units are removed instead of weights). Without a goal, 80 % of the weights are removed.

The dense model is fine-tuned first, as the reference. Then it is pruned and fine-tuned again. The test part is read
once. The job writes to `--workdir`: `model/` (a folder for `transformers`, with tokeniser or processor and label
names), `slim/` (the smaller model, for `mvp_jax.pretrained.load`), `dense/` (the fine-tuned dense model; give it as
`checkpoint=out/dense` to prune it with another goal), `report.html`, `report.md` and `report.json`.

Lab note. Without arguments, the job makes a small vision transformer, trains it on five of the ten digits of
scikit-learn, and prunes it for all ten.
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
