import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax import compact, models, pretrained
from mvp_jax.models import resnet, vit
from tests.model_kinds import batch, made, random_units

GOLDEN = pathlib.Path(__file__).parent / "golden"
CONFIGS = {
    "option_a": resnet.resnet8(width=2, image_size=8, channels=1, classes=3),
    "distiller": resnet.resnet8_distiller(width=2, image_size=8, channels=1, classes=3),
    "vit": vit.micro(layers=1, dim=8, heads=2, classes=3),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_that_pytorch_computed(name):
    model = models.build(CONFIGS[name])
    variables = pretrained.load(GOLDEN / f"{name}.safetensors", model)
    golden = np.load(GOLDEN / f"{name}.npz")
    assert np.ptp(golden["logits"], axis=0).min() > 1e-2
    np.testing.assert_allclose(model.apply(variables, golden["x"])[0], golden["logits"], rtol=1e-3, atol=1e-4)


def hugging_face(tensors, layers):
    """The golden transformer under Hugging Face's names."""
    v = "vit.embeddings"
    names = {
        "cls_token": f"{v}.cls_token",
        "pos_embed": f"{v}.position_embeddings",
        "patch_embed.proj": f"{v}.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    for i in range(layers):
        h = f"vit.encoder.layer.{i}"
        names |= {
            f"blocks.{i}.norm1": f"{h}.layernorm_before",
            f"blocks.{i}.norm2": f"{h}.layernorm_after",
            f"blocks.{i}.attn.proj": f"{h}.attention.output.dense",
            f"blocks.{i}.mlp.fc1": f"{h}.intermediate.dense",
            f"blocks.{i}.mlp.fc2": f"{h}.output.dense",
        }
    out = {}
    for key, a in tensors.items():
        stem, _, kind = key.rpartition(".")
        if ".qkv" in key:
            i = key.split(".")[1]
            for name, part in zip(("query", "key", "value"), np.split(a, 3), strict=True):
                out[f"vit.encoder.layer.{i}.attention.attention.{name}.{kind}"] = part
        else:
            out[names[key] if key in names else f"{names[stem]}.{kind}"] = a
    return out


def test_hugging_face_names_give_the_same_transformer():
    model = models.build(CONFIGS["vit"])
    tensors = safetensors.numpy.load_file(GOLDEN / "vit.safetensors")
    renamed = hugging_face(tensors, 1)
    assert len(renamed) == len(tensors) + 4
    a, b = pretrained.convert(tensors, model), pretrained.convert(renamed, model)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_all_problems_come_in_one_error():
    model = models.build(CONFIGS["option_a"])
    tensors = safetensors.numpy.load_file(GOLDEN / "option_a.safetensors")
    bad = {f"module.{k}": v for k, v in tensors.items()}
    del bad["module.conv1.weight"]
    bad["module.layer4.0.conv1.weight"] = np.zeros((2, 2, 3, 3), np.float32)
    bad["module.classifier.weight"] = np.zeros(3, np.float32)
    bad["module.bn1.bias"] = np.zeros(5, np.float32)
    bad["fc.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="5 problems") as error:
        pretrained.convert(bad, model)
    for part in (
        "missing: params/stem/conv/kernel (3, 3, 1, 2)",
        "the model has no params/stages/3/blocks/0/conv1/kernel",
        "module.classifier.weight: not in the key table",
        "module.bn1.bias: gives params/stem/norm/bias the shape (5,), the model has (2,)",
        "a second value for params/head/bias",
    ):
        assert part in str(error.value)
    wider = models.build(resnet.resnet8_distiller(width=2, image_size=8, channels=1, classes=4))
    with pytest.raises(ValueError, match="linear"):
        pretrained.load(GOLDEN / "distiller.safetensors", wider)


def test_truncated_and_missing_files_are_refused(tmp_path):
    model = models.build(CONFIGS["option_a"])
    whole = (GOLDEN / "option_a.safetensors").read_bytes()
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a complete safetensors file"):
            pretrained.load(tmp_path / "cut.safetensors", model)
    with pytest.raises(ValueError, match="no weights at"):
        pretrained.load(tmp_path / "none.safetensors", model)


@pytest.mark.parametrize("kind", ["distiller", "vit_mean"])
def test_a_slim_model_is_reloaded_from_its_folder(kind, tmp_path):
    model, variables = made(kind)
    kept = random_units(model, 7)
    slim_model, slim = compact.rebuild(model, variables, kept)
    where = pretrained.save(tmp_path / "out" / "slim", slim_model, slim, units=kept, extra={"accuracy": 0.5})
    assert sorted(p.name for p in where.iterdir()) == ["model.json", "weights.safetensors"]
    assert [p.name for p in where.parent.iterdir()] == ["slim"]
    again_model, again = pretrained.reload(where)
    assert again_model is slim_model
    jax.tree.map(np.testing.assert_array_equal, again, slim)
    np.testing.assert_array_equal(*(m.apply(v, batch(model))[0] for m, v in ((slim_model, slim), (again_model, again))))
    described = pretrained.describe(where)
    assert described["extra"] == {"accuracy": 0.5}
    group = model.groups[0]
    assert described["kept"][group.name] == {"of": group.size, "kept": np.flatnonzero(kept[group.name]).tolist()}
    assert set(described["kept"]) == set(kept)


def test_saving_again_replaces(tmp_path):
    model, variables = made("option_a")
    pretrained.save(tmp_path / "m", model, variables)
    other = jax.tree.map(lambda a: a + 1, variables)
    pretrained.save(tmp_path / "m", model, other)
    jax.tree.map(np.testing.assert_array_equal, pretrained.reload(tmp_path / "m")[1], other)
    assert os.listdir(tmp_path) == ["m"]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    model, variables = made("option_a")
    pretrained.save(tmp_path / "m", model, variables)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left"):
        pretrained.save(tmp_path / "m", model, jax.tree.map(jnp.zeros_like, variables))
    assert os.listdir(tmp_path) == ["m"]
    jax.tree.map(np.testing.assert_array_equal, pretrained.reload(tmp_path / "m")[1], variables)


def test_bad_folders_are_refused(tmp_path):
    model, variables = made("option_a")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        pretrained.save(tmp_path / "file" / "m", model, variables)
    with pytest.raises(ValueError, match="not the model's"):
        pretrained.save(tmp_path / "m", model.with_classes(4), variables)
    with pytest.raises(ValueError, match="must be JSON"):
        pretrained.save(tmp_path / "m", model, variables, extra={"a": object()})
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(ValueError, match="not readable as a saved model"):
        pretrained.reload(tmp_path)
    where = pretrained.save(tmp_path / "m", model, variables)
    weights = where / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="truncated"):
        pretrained.reload(where)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="checksum"):
        pretrained.reload(where)
    weights.write_bytes(content)
    data = json.loads((where / "model.json").read_text())
    data["config"]["stem_width"] = 3
    data["config"]["stage_widths"][0] = 3
    (where / "model.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="does not fit its configuration"):
        pretrained.reload(where)
