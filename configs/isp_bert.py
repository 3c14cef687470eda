"""Instant Soup Pruning of BERT, RoBERTa or DistilBERT, on tasks of GLUE or other texts.

    python -m mvp_jax.main --config=configs/isp_bert.py:data=mrpc,checkpoint=DIR --config.data.path=DIR --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_bert.py:checkpoint=FOLDER --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_bert.py --workdir=DIR

`data=mnli|qnli|qqp|sst2|rte|mrpc` are tasks of GLUE, pruned to sparsities of 10 to 90 % as in the paper. `data.path` is
the folder with their tables, which `mvp_jax.data.datasets.glue` describes. Every class contributes as many texts as the
scarcest class has. A twentieth of the training split is reserved for pre-training and is not used here. Half of the
official development split is for validation, and the other half is for the reported accuracy. Without `data`, and with
`runlocal`, the texts come from the installed packages (`mvp_jax.data.datasets.text`).

`checkpoint` is a folder that `transformers` wrote (BERT, RoBERTa or DistilBERT, with the files of the tokeniser), or an
id `organisation/name` on the Hugging Face hub (the paper's model is `google-bert/bert-base-uncased` there). The model
gets a new head. Without `checkpoint`, a small BERT is pre-trained here.

Lab note. `:runlocal` was run here, with and without a small random checkpoint. MiniLM (22.7 million parameters) was
pruned on 4,000 texts of SST-2, cut to 32 tokens, with the settings in `docs/results/sparsity.md`: a learning rate of
2e-4, 125 steps of 16 texts under the final mask, three seeds. 70 % of the weights took 71 minutes of one core, and 90 %
took 100. Test accuracy at 90 %: not pruned 81.9, gradual pruning at the total cost 77.9 and at the cost of the main
weights 74.5, Instant Soup Pruning 72.4, one-shot magnitude 71.7, iterative pruning 71.0. A step took 0.65 s on an idle
core. The settings of the paper (128 tokens, whole epochs) and other tasks have not been run.
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import papers, presets


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("data", "checkpoint", "runlocal"))
    folder, data, local = given.get("checkpoint", ""), given.get("data", "docstrings"), "runlocal" in given
    config = presets.sparsity("docstrings", "checkpoint" if folder else "bert")
    config.methods = presets.ISP_LINES
    if data != "docstrings" and not local:
        papers.whole(config, f"glue/{presets.one_of('data', data, ('docstrings', *papers.GLUE_TASKS))}")
        if not folder:  # a small BERT is pre-trained on the same task, on another part of its texts
            config.data.fractions, config.data.length = (0.5, 0.5), 32
    if folder:
        papers.checkpoint(config, folder)
        config.model.options = ConfigDict()
    if local:
        presets.briefly(config)
    return config
