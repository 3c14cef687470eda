"""Instant Soup Pruning of CLIP's image tower, on the paper's data sets or on your own images.

    python -m mvp_jax.main --config=configs/isp_clip.py:data=cifar10,checkpoint=FOLDER --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_clip.py:checkpoint=FOLDER,data=npz --config.data.path=FILE --workdir=DIR
    python -m mvp_jax.main --config=configs/isp_clip.py --workdir=DIR

`data=mnist|svhn|cars|gtsrb|cifar10|cifar100` are the paper's data sets, with all classes at once and sparsities of 10
to 90 %. All but GTSRB must have been prepared by tensorflow-datasets; `--config.data.path` is their folder, and the
default is the folder that tensorflow-datasets uses. GTSRB is read from a folder of images. The number of training
images of each class is limited to what fits on a device at 224 pixels (`mvp_jax/experiments/papers.py`); the paper uses
all images. `--config.tasks.shots=N` changes the number.

`checkpoint` is a folder that `transformers` wrote (`config.json`, `model.safetensors`, `preprocessor_config.json` and
the files of the tokeniser), or an id on the Hugging Face hub (the paper's model is `openai/clip-vit-base-patch32`). The
zero-shot head is made of sentences with the names of the classes (`config.templates`; `presets.TEMPLATES` has the
published sentences for these data) and stays frozen. The checkpoint's processor prepares the images. Without a
checkpoint, and with `runlocal`, a small tower with a logistic head is pre-trained here on the digits, so that the job
can be tried.

Lab note. `:runlocal` was run here, with and without a small random checkpoint. No published checkpoint and none of the
paper's data sets has been run yet. The paper compares accuracy against sparsity for each data set and finds that ISP
equals or exceeds iterative magnitude pruning at a fraction of its cost. On small data here ISP was not better than
gradual pruning at the same total cost (`docs/results`).
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
