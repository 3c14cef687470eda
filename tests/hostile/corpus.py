"""Small hostile files of every kind that is read: each function makes one in a folder and returns what a person gives.

`python -m tests.hostile.corpus FOLDER` writes them all, each into a folder of its name. None takes more than some
megabytes; one that does harm when it is read does it to whoever reads it without this package's checks.
"""

import pathlib
import sys

from tests.hostile import (  # noqa: F401  # each enters its files
    array_files,
    banks,
    checkpoint_folders,
    model_inputs,
    pictures,
    runs,
    tables,
    weights,
)
from tests.hostile.cases import CASES


def main(folder):
    """Writes all of them."""
    for name, one in CASES.items():
        room = pathlib.Path(folder) / name.replace("/", "_")
        room.mkdir(parents=True)
        one.make(room / "it")


if __name__ == "__main__":
    main(sys.argv[1])
