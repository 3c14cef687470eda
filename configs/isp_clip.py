"""Instant Soup Pruning of CLIP's image tower, on the paper's data sets or one's own images.

    python -m mvp_jax.main --config=configs/isp_clip.py:data=cifar10,checkpoint=FOLDER --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_clip.py:checkpoint=FOLDER,data=npz --config.data.path=FILE --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_clip.py --workdir=DIR

`data=mnist|svhn|cars|gtsrb|cifar10|cifar100` are the paper's data sets: all classes at once, at 10 to 90 % sparsity.
They are read as tensorflow-datasets prepared them (`--config.data.path` is their folder, by default where it puts
them); GTSRB is read from a folder of images. As many training images of each class are used as fit on a device at 224
pixels (`mvp_jax/experiments/papers.py`); the paper uses all, and `--config.tasks.shots=N` changes the number.

`checkpoint` is a folder as `transformers` writes it (`config.json`, `model.safetensors`, `preprocessor_config.json` and
the tokeniser's files), or the id of one on the Hugging Face hub (the paper's is `openai/clip-vit-base-patch32`). Its
zero-shot head, made of sentences with the classes' names (`config.templates`; `presets.TEMPLATES` has those published
for these data), stays frozen, and images pass through its processor. Without a checkpoint, and with `runlocal`, a small
tower is pre-trained here on the digits, under a logistic head, so that the job can be tried.

Lab note. `:runlocal` was run here, with and without a small random checkpoint. No published checkpoint and none of the
paper's data sets has been run yet. The paper compares accuracy against sparsity for each data set and finds ISP level
with or above iterative magnitude pruning at a fraction of its cost. On small data here it was not better than gradual
pruning of the same total cost (`docs/results`).
"""

from ml_collections import ConfigDict

from mvp_jax.experiments import papers, presets


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config of the job; `arg` is the argument described above, `None` for the default."""
    given = presets.arguments(arg, ("data", "checkpoint", "runlocal"))
    folder, data, local = given.get("checkpoint", ""), given.get("data", "digits"), "runlocal" in given
    own = data in ("digits", "npz", "folder")
    if not own:
        presets.one_of("data", data, ("digits", "npz", "folder", *papers.CLIP_TEMPLATES))
    config = presets.sparsity(data if own and not local else "digits", "checkpoint" if folder else "clip")
    config.methods = presets.ISP_LINES
    if not own and not local:
        papers.whole(config, data, papers.SHOTS[data])
    if folder:
        papers.checkpoint(config, folder)
        config.templates = presets.TEMPLATES[papers.CLIP_TEMPLATES.get(data, "mnist" if data == "digits" else "cifar")]
    if local:
        presets.briefly(config)
    return config
