"""ONNX graphs, run by onnxruntime."""

import json

import numpy as np
import pytest

from mvp_jax.pretrained import export
from tests.model_kinds import batch
from tests.pretrained import export_test

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
