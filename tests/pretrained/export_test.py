"""Programs on disk: run again in a process that has never heard of this package, and equal to the model."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax import compact, models
from mvp_jax.core import prune
from mvp_jax.core.types import Variables
from mvp_jax.pretrained import export
from tests.model_kinds import batch, made

pytest.importorskip("flatbuffers")

READ = """
import sys

import jax
import numpy as np
import safetensors.numpy

folder = sys.argv[1]
program = jax.export.deserialize(bytearray(open(f"{folder}/program.stablehlo", "rb").read()))
weights = safetensors.numpy.load_file(f"{folder}/weights.safetensors")
x = np.load(f"{folder}/../x.npy")
np.save(f"{folder}/../y.npy", program.call(weights, x))
assert "mvp_jax" not in sys.modules
assert "flax" not in sys.modules
"""


def slim(kind):
    model, variables = made(kind)
    keep = {g.name: prune.keep_count(g.size, 0.5) for g in model.groups}
    kept = {n: jnp.arange(g.size) < keep[n] for g in model.groups for n in [g.name]}
    return compact.rebuild(model, variables, kept)


@pytest.mark.parametrize("kind", ["vit_mean", "bert"])
def test_a_slim_model_runs_without_this_package_at_any_batch_size(kind, tmp_path):
    model, variables = slim(kind)
    written = export.program(tmp_path / "out", model, variables)
    assert written.path == tmp_path / "out"
    assert 0 <= written.difference < 1e-5
    assert written.bytes == sum(p.stat().st_size for p in written.path.iterdir())
    assert json.loads((written.path / "report.json").read_text())["difference"] == written.difference
    x = np.asarray(batch(model, 7), model.input_dtype)
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-c", READ, str(written.path)], check=True, cwd=tmp_path)
    got, wanted = np.load(tmp_path / "y.npy"), np.asarray(model.apply(variables, x)[0])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 1e-3
    np.testing.assert_allclose(export.load_program(written.path)(x[:2]), wanted[:2], atol=1e-5)


def test_the_weights_are_an_argument(tmp_path):
    model, variables = slim("vit_mean")
    folder = export.program(tmp_path / "out", model, variables).path
    other = Variables(jax.tree.map(lambda p: p + 0.1, variables.params), variables.rest)
    again = export.program(tmp_path / "again", model, other).path
    (folder / "weights.safetensors").write_bytes((again / "weights.safetensors").read_bytes())
    x = batch(model, 3)
    got = export.load_program(folder)(x)
    np.testing.assert_allclose(got, model.apply(other, x)[0], atol=1e-5)
    assert float(jnp.abs(got - model.apply(variables, x)[0]).max()) > 1e-2


def test_what_is_no_program_and_what_is_not_the_model_is_refused(tmp_path, monkeypatch):
    model, variables = slim("vit_mean")
    with pytest.raises(ValueError, match="holds no program"):
        export.load_program(tmp_path)
    folder = export.program(tmp_path / "out", model, variables).path
    (folder / "program.stablehlo").write_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match="holds no program"):
        export.load_program(folder)
    with pytest.raises(ValueError, match="do not fit the model"):
        export.program(tmp_path / "wrong", model.with_classes(9), variables)
    load = safetensors.numpy.load
    monkeypatch.setattr(safetensors.numpy, "load", lambda b: {p: a + 1 for p, a in load(b).items()})
    with pytest.raises(ValueError, match="differs from the model"):
        export.program(tmp_path / "wrong", model, variables)
    assert not (tmp_path / "wrong").exists()


def test_onnx_needs_its_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="jax2onnx"):
        export.onnx(tmp_path / "m.onnx", models.create("vit_micro"), {})
