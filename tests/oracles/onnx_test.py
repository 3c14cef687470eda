"""ONNX graphs, run by onnxruntime."""

import json

import numpy as np
import pytest

from mvp_jax.pretrained import export
from tests.model_kinds import batch
from tests.pretrained import export_test, programs_test

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("jax2onnx")


@pytest.mark.filterwarnings("default")  # the converter's own
@pytest.mark.parametrize("kind", ["basic", "vit_cls", "bert"])
def test_onnxruntime_computes_the_slim_models_logits_at_any_batch_size(kind, tmp_path):
    model, variables = export_test.slim(kind)
    written = export.onnx(tmp_path / "model.onnx", model, variables)
    assert 0 <= written.difference < 1e-5
    assert json.loads((tmp_path / "model.onnx.json").read_text())["difference"] == written.difference
    session = onnxruntime.InferenceSession(str(written.path))
    for n in (1, 7):
        x = np.asarray(batch(model, n), model.input_dtype)
        got = session.run(None, {session.get_inputs()[0].name: x})[0]
        wanted = np.asarray(model.apply(variables, x)[0])
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        assert np.ptp(wanted, axis=1).min() > 1e-3


@pytest.mark.filterwarnings("default")  # the converter's own
@pytest.mark.parametrize("kind", ["linen", "nnx_pure", "equinox", "slim"])
def test_onnxruntime_computes_what_any_function_does_at_any_batch_size(kind, tmp_path):
    apply, variables, x = programs_test.KINDS[kind]()
    written = export.onnx(tmp_path / "model.onnx", apply, variables, x=x(3))
    assert 0 <= written.difference < 1e-5
    session = onnxruntime.InferenceSession(str(written.path))
    for n in (1, 7):
        got = session.run(None, {session.get_inputs()[0].name: np.asarray(x(n))})[0]
        np.testing.assert_allclose(got, apply(variables, x(n)), atol=1e-5)
        assert np.ptp(got) > 1e-2


@pytest.mark.filterwarnings("default")
def test_several_inputs_and_outputs_have_their_paths_for_names(tmp_path):
    def apply(v, x):
        return {"y": x["a"] @ v, "more": [x["b"][0] * 2]}

    v, a, b = (programs_test.numbers(*shape) for shape in ((5, 4), (3, 5), (3, 2)))
    path = export.onnx(tmp_path / "model.onnx", apply, v, x={"a": a, "b": [b]}).path
    session = onnxruntime.InferenceSession(str(path))
    assert [o.name for o in session.get_outputs()] == ["more/0", "y"]
    more, y = session.run(None, {"a": np.ones((7, 5), np.float32), "b/0": np.ones((7, 2), np.float32)})
    np.testing.assert_allclose(y, np.ones((7, 5)) @ np.asarray(v), atol=1e-5)
    np.testing.assert_array_equal(more, np.full((7, 2), 2))


def test_what_the_converter_cannot_write_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"jax2onnx cannot write this function .*export\.program"):
        export.onnx(tmp_path / "m.onnx", lambda v, x: programs_test.called_back(x), {}, x=np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="needs examples"):
        export.onnx(tmp_path / "m.onnx", lambda v, x: x, {})
    assert list(tmp_path.iterdir()) == []
