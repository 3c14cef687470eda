"""A bucket for tests: an fsspec file system that stands for `gs://`, as strict as object stores are.

Objects lie in one folder, named by their keys. They appear when they are complete, cannot be appended to or renamed
into place, and there are no folders but those that objects imply.
"""

import os
import pathlib
import sys

import fsspec
from fsspec.spec import AbstractFileSystem


class Bucket(AbstractFileSystem):
    protocol = ("gcs", "gs")
    cachable = True

    @property
    def _root(self):
        return pathlib.Path(os.environ["BUCKET_ROOT"])

    @classmethod
    def _strip_protocol(cls, path):
        return os.fspath(path).removeprefix("gs://").removeprefix("gcs://").strip("/")

    def _file(self, path):
        return self._root / self._strip_protocol(path).replace("/", "~")

    def _keys(self):
        return [name.replace("~", "/") for name in os.listdir(self._root) if not name.startswith(".publishing")]

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if self._file(path).is_file():
            return {"name": path, "size": self._file(path).stat().st_size, "type": "file"}
        if any(key.startswith(f"{path}/") for key in self._keys()):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        if self._file(path).is_file():
            names = [path]
        else:
            inside = [key.removeprefix(f"{path}/") for key in self._keys() if key.startswith(f"{path}/")]
            names = sorted({f"{path}/{key.partition('/')[0]}" for key in inside})
            if not names:
                raise FileNotFoundError(path)
        return [self.info(name) for name in names] if detail else names

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            if not self._file(path).is_file():
                raise FileNotFoundError(path)
            return self._file(path).open("rb")
        if mode != "wb":
            raise NotImplementedError(f"objects cannot be opened as {mode!r}")
        if self._strip_protocol(path).split("/")[0] == "forbidden":
            raise RuntimeError("403: the caller lacks storage.objects.create")
        return Upload(self._file(path))

    def mkdir(self, path, create_parents=True, **_):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def rm_file(self, path):
        if not self._file(path).is_file():
            raise FileNotFoundError(path)
        self._file(path).unlink()

    def rm(self, path, recursive=False, maxdepth=None):
        path = self._strip_protocol(path)
        keys = [k for k in self._keys() if k == path or (recursive and k.startswith(f"{path}/"))]
        if not keys:
            raise FileNotFoundError(path)
        for key in keys:
            self.rm_file(key)

    def rename(self, *_, **__):
        raise NotImplementedError("objects are not renamed")

    mv = rename


class Upload:
    """What is written is an object once it is closed without an error."""

    def __init__(self, target):
        self.target, self.hidden = target, target.with_name(f".publishing-{os.getpid()}-{id(self)}")
        self.file = self.hidden.open("wb")
        self.write, self.flush = self.file.write, self.file.flush

    def close(self):
        if not self.file.closed:
            self.file.close()
            os.replace(self.hidden, self.target)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()


def register():
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)


if __name__ == "__main__":  # `python -m tests.bucket --config=... --workdir=gs://...`: the command, with that bucket
    register()
    from absl import app, flags

    from mvp_jax import main
    from mvp_jax.experiments import command_line

    flags.mark_flag_as_required("config")
    app.run(main.main, argv=sys.argv, flags_parser=command_line.parse)
