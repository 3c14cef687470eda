"""Models in bfloat16 and float8 on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from mvp_jax import pretrained
from mvp_jax.core import trees
from mvp_jax.pretrained import tensor_files
from tests.model_kinds import made


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e5m2, jnp.float8_e4m3fn])
def test_a_model_is_reloaded_in_its_dtype_bit_for_bit(dtype, tmp_path):
    model, variables = made("vit_mean")
    variables = jax.tree.map(lambda a: a.astype(dtype), variables)
    folder = pretrained.save(tmp_path / "m", model, variables)
    found = pretrained.reload(folder)[1]
    for path, wanted in trees.flatten(variables).items():
        leaf = trees.flatten(found)[path]
        assert leaf.dtype == dtype
        assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes()
    name = {jnp.bfloat16: "BF16", jnp.float16: "F16", jnp.float8_e5m2: "F8_E5M2"}.get(dtype, "F8_E4M3")
    stored = safetensors.deserialize((folder / "weights.safetensors").read_bytes())
    assert {tensor["dtype"] for _, tensor in stored} == {name}  # others read it under its own name


def test_what_safetensors_has_no_name_for_is_refused_before_anything_is_written(tmp_path):
    model, variables = made("vit_mean")
    variables = jax.tree.map(lambda a: a.astype(jnp.int4), variables)
    with pytest.raises(ValueError, match=r"safetensors has no such dtype.*\n.*params/.*: int4"):
        pretrained.save(tmp_path / "m", model, variables)
    assert list(tmp_path.iterdir()) == []


def test_tensors_in_memory_are_called_as_in_files():
    kinds = {"F8_E5M2": jnp.float8_e5m2, "F8_E4M3": jnp.float8_e4m3fn, "BF16": jnp.bfloat16, "C64": np.complex64}
    opened = tensor_files.in_memory({name: np.ones(2, np.float32).astype(kind) for name, kind in kinds.items()})
    assert {name: entry.dtype for name, entry in opened.entries.items()} == {name: name for name in kinds}
    with pytest.raises(ValueError, match=r"stored as F8_E5M2; weights are .* quantised ones must be expanded"):
        opened.get("F8_E5M2")
    assert opened.get("BF16").tolist() == [1.0, 1.0]
