"""A bucket whose network fails now and then, and whose client remembers old listings, for jobs that write there."""

import errno
import os
import random

import fsspec

from tests import bucket


class Flaky(bucket.Bucket):
    """The strict bucket with errors, timeouts and stale listings: one request in `EVERY` fails, before or after it.

    A listing stays as it was first seen until the client is told to forget it, as the clients of real buckets do.
    """

    EVERY = 150
    cachable = True
    generator = random.Random()

    def _trouble(self):
        if self.generator.random() * self.EVERY < 1:
            kind = self.generator.choice(("timeout", "reset", "busy"))
            if kind == "timeout":
                raise TimeoutError("the bucket did not answer in time")
            code = errno.ECONNRESET if kind == "reset" else errno.EAGAIN
            raise OSError(code, f"the bucket answered: {os.strerror(code)}")

    @property
    def _seen(self):
        return self.__dict__.setdefault("_listings", {})

    def invalidate_cache(self, path=None):
        self._seen.clear()

    def info(self, path, **given):
        self._trouble()
        return super().info(path, **given)

    def ls(self, path, detail=True, **given):
        self._trouble()
        key = self._strip_protocol(path)
        if key not in self._seen:
            self._seen[key] = super().ls(path, detail=False, **given)
        names = list(self._seen[key])
        return [bucket.Bucket.info(self, name) for name in names if self._there(name)] if detail else names

    def _there(self, name):
        try:
            bucket.Bucket.info(self, name)
        except FileNotFoundError:
            return False
        return True

    def _open(self, path, mode="rb", **given):
        self._trouble()
        return super()._open(path, mode, **given)

    def rm_file(self, path):
        self._trouble()
        super().rm_file(path)
        self._trouble()  # it is done, and the answer is lost


def register(seed):
    """Makes `gs://` this bucket in this process."""
    Flaky.generator = random.Random(seed)
    for name in Flaky.protocol:
        fsspec.register_implementation(name, Flaky, clobber=True)
