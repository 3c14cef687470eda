"""Trained weights in and out: other libraries' checkpoints both ways, and folders that a pruned model is reloaded from.

* `load(source)` gives a model with the weights of another library's checkpoint, or of a folder that `save` wrote;
  `convert` does so from arrays in memory, and `from_config` gives the model alone.
* `save(directory, model, variables)` writes a model, dense or slim, and `reload(directory)` reads it again; `describe`
  says what such a folder holds. `class_names(folder)` gives the names of classes of either kind of folder.
* `export.checkpoint`, `export.program` and `export.onnx` write a model for other libraries.
"""

from mvp_jax.pretrained import export
from mvp_jax.pretrained.loading import Sharding, convert, from_config, load
from mvp_jax.pretrained.saving import describe, is_saved, reload, save, write_file, write_folder
from mvp_jax.pretrained.source_files import class_names

__all__ = [
    "Sharding",
    "class_names",
    "convert",
    "describe",
    "export",
    "from_config",
    "is_saved",
    "load",
    "reload",
    "save",
    "write_file",
    "write_folder",
]
