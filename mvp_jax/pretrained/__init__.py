"""Trained weights in and out: other libraries' checkpoints both ways, and folders that a pruned model is reloaded from.

* `load(source, model)` gives a model with the weights of another library's checkpoint, `convert` does so from arrays in
  memory, and `from_config` gives the model alone.
* `save(directory, model, variables)` writes a model, dense or slim, and `reload(directory)` reads it again; `describe`
  says what such a folder holds.
* `export.checkpoint`, `export.program` and `export.onnx` write a model for other libraries.
"""

from mvp_jax.pretrained import export
from mvp_jax.pretrained.loading import (
    Sharding,
    convert,
    describe,
    from_config,
    load,
    reload,
    save,
    write_file,
    write_folder,
)

__all__ = [
    "Sharding",
    "convert",
    "describe",
    "export",
    "from_config",
    "load",
    "reload",
    "save",
    "write_file",
    "write_folder",
]
