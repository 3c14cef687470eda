"""Trained weights in and out: other libraries' checkpoints, and folders that a pruned model is reloaded from."""

from mvp_jax.pretrained.loading import Sharding, convert, describe, load, reload, save, write_file, write_folder

__all__ = [
    "Sharding",
    "convert",
    "describe",
    "load",
    "reload",
    "save",
    "write_file",
    "write_folder",
]
