"""Every way by which a person gives a file of somebody else's to this package: one function each, of the file."""

import contextlib
import io
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import bank, models, pretrained
from mvp_jax.bank import __main__ as bank_command
from mvp_jax.data import sources
from mvp_jax.data.checkpoint_inputs import images, tokens
from mvp_jax.data.datasets import folders, glue, labelled
from mvp_jax.data.loading import decoding
from mvp_jax.experiments import comparison, rates, run_folder, sparsity_report, sweep
from mvp_jax.pretrained import source_files, tensor_files
from mvp_jax.reports import group_order
from mvp_jax.storage import checkpoint, json_files, records

TEXTS = models.create("bert_micro", vocab=24, positions=8)
STATE = {"step": jnp.int32(7), "w": jnp.ones((2, 3)), "key": jax.random.key(0)}


def load(path):
    return pretrained.load(path)


def from_config(path):
    return pretrained.from_config(path, classes=3, text=False)


def weights(path):
    source = tensor_files.open(path)
    return [source.get(name) for name in source.entries]


def copied(path):
    """What `pretrained.save` takes over of the checkpoint that a model came from, and the folder that it writes."""
    with tempfile.TemporaryDirectory() as room:
        target = pathlib.Path(room) / "model"
        try:
            pretrained.save(target, TEXTS, TEXTS.init(jax.random.key(0)), source=path)
        finally:
            assert target.exists() is (list(pathlib.Path(room).iterdir()) != []), "something half-written is left"


def class_names(path):
    return source_files.class_names(path)


def tokenizer(path):
    return tokens.tokenizer(path).encode(["a"], length=8)


def merges(path):
    return tokens.clip_bpe(path, size=515)


def processor(path):
    return images.processor(path)(np.zeros((1, 8, 8, 3), np.uint8))


def whole_bank(path):
    opened = bank.open(path)
    found = [bank.load(entry) for entry in bank.entries(opened)]
    bank.verify(opened)
    return found


def continued_bank(path):
    """A bank that is opened to be written to."""
    opened = bank.open(path, write=True)
    bank.entries(opened)
    bank.write_readme(opened)


def verified_bank(path):
    """The command `verify`, which must print one line for each problem and end with status 1."""
    return _command(bank_command.main, [str(path), "verify"])


def archive(path):
    with tempfile.TemporaryDirectory() as room:
        target = pathlib.Path(room) / "bank"
        try:
            bank.unpack(path, target)
        except ValueError:
            assert not list(pathlib.Path(room).iterdir()), "something half-written is left"
            raise


def imported(path):
    """The command `import`."""
    with tempfile.TemporaryDirectory() as room:
        return _command(bank_command.main, [f"{room}/bank", "import", str(path)])


def data(path):
    return labelled.read(path)


def npz(path):
    return sources.npz(path, test=None)


def digits_in_npz(path):
    return sources.npz(path, test=None, train=("x", "y"))


def picture(path):
    try:
        return decoding.decode(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error  # a reader of bytes cannot name the file


def picture_folder(path):
    return folders.folder(path)


def street_signs(path):
    return folders.gtsrb(path, size=8)


def glue_task(path):
    return glue.read("sst2", path)


def results(path):
    return records.read_csv(path)


def run_json(path):
    return records.read_json(path)


def metrics_lines(path):
    return records.read_metrics(path)


def continued_metrics(path):
    records.MetricsWriter(path, after=1).close()


def json_object(path):
    return json_files.read_json(path)


def arrays(path):
    return checkpoint.load_arrays(path)


def state(path):
    with checkpoint.Checkpoints(path) as saved:
        saved.leading() if saved.latest() == 1 else None
        return saved.restore(STATE)


def compared(path):
    return _command(lambda words: comparison.main(words), [str(path)])


def ordered(path):
    return _command(lambda words: group_order.main(words) == 2, [str(path)])  # 1: methods in another order


def swept(path):
    return sweep.summarise([path, path])


def claimed(path):
    from ml_collections import ConfigDict

    return run_folder.check(path, ConfigDict({"job": "mvp", "seed": 0, "steps": (0, 2)}))


def rate_section(path):
    return rates.section(path, {})


def mask(path):
    return sparsity_report._read_mask(path)


def program(path):
    return pretrained.export.load_program(path)


def _command(main, words):
    """What a command says as an error, raised as `ValueError`, so that all readers are judged alike."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    said = (out.getvalue() + err.getvalue()).strip()
    if status:
        raise ValueError(said)
    return said


READERS = {
    name: found
    for name, found in dict(globals()).items()
    if callable(found) and getattr(found, "__module__", "") == __name__ and name[0] != "_"
}
