import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mvp_jax import compact, models, pretrained
from mvp_jax.core import trees
from mvp_jax.models import resnet, vit
from mvp_jax.pretrained import formats, key_table, tensor_files
from tests.model_kinds import batch, made, random_units, randomise

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONFIGS = {
    "option_a": resnet.resnet8(width=2, image_size=8, channels=1, classes=3),
    "distiller": resnet.resnet8_distiller(width=2, image_size=8, channels=1, classes=3),
    "vit": vit.micro(layers=1, dim=8, heads=2, classes=3),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_that_pytorch_computed(name):
    model = models.build(CONFIGS[name])
    same, variables = pretrained.load(GOLDEN / f"{name}.safetensors", model)
    assert same is model
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
    bad["linear.bias"] = np.zeros(3, np.float32)
    bad["module.bn1.weight"] = np.ones(2, np.int64)
    with pytest.raises(ValueError, match="6 problems") as error:
        pretrained.convert(bad, model)
    for part in (
        "missing: conv1.weight, for params/stem/conv/kernel (3, 3, 1, 2)",
        "the model has no params/stages/3/blocks/0/conv1/kernel",
        "module.classifier.weight: not in the key table of resnet (CIFAR)",
        "module.bn1.bias: shape (5,), the model needs (2,) for params/stem/norm/bias",
        "module.linear.bias: a second value for params/head/bias, after linear.bias",
        "module.bn1.weight: stored as I64, weights are floats",
    ):
        assert part in str(error.value)
    wider = models.build(resnet.resnet8_distiller(width=2, image_size=8, channels=1, classes=4))
    with pytest.raises(ValueError, match=r"linear\.weight: shape \(3, 32\), the model needs \(4, 32\)"):
        pretrained.load(GOLDEN / "distiller.safetensors", wider)


def test_a_long_list_of_problems_is_cut():
    with pytest.raises(ValueError, match=r"and \d+ more") as error:
        pretrained.convert({"conv1.weight": np.zeros((2, 1, 3, 3), np.float32)}, models.build(CONFIGS["option_a"]))
    assert len(str(error.value).splitlines()) == 22
    with pytest.raises(ValueError, match="no key table fits"):
        pretrained.convert({"wte": np.zeros(3)}, models.build(CONFIGS["option_a"]))


def test_second_names_must_agree():
    model = models.build(CONFIGS["option_a"])
    tensors = safetensors.numpy.load_file(GOLDEN / "option_a.safetensors")
    expected = pretrained.convert(tensors, model)
    assert np.ptp(expected.params["head"]["bias"]) > 0
    both = {**tensors, "fc.bias": tensors["linear.bias"]}
    alone = {**tensors, "fc.bias": both["fc.bias"]}
    del alone["linear.bias"]
    for given in (both, alone):
        jax.tree.map(np.testing.assert_array_equal, pretrained.convert(given, model), expected)
    both["fc.bias"] = both["fc.bias"] + 1
    with pytest.raises(ValueError, match=r"fc\.bias: differs from linear\.bias, which holds the same params/head/bias"):
        pretrained.convert(both, model)


def folder(tmp_path, config, origin="Hugging Face", shards=1, dtype=np.float32, **described):
    """A checkpoint as another library writes it, of a model with random weights."""
    model = models.build(config)
    variables = randomise(jax.eval_shape(model.init, jax.random.key(0)), 5)
    form = formats.for_config(config, origin)
    stored = {k: a.astype(dtype) for k, a in key_table.stored(form, variables, config)}
    stored |= {k.replace("running_mean", "num_batches_tracked"): np.array(3) for k in stored if "running_mean" in k}
    (tmp_path / "config.json").write_text(json.dumps({**form.describe(config), **described}))
    if shards == 1:
        safetensors.numpy.save_file(stored, tmp_path / "model.safetensors")
        return model, variables
    listed = {k: f"model-{i % shards}.safetensors" for i, k in enumerate(stored)}
    for shard in set(listed.values()):
        safetensors.numpy.save_file({k: a for k, a in stored.items() if listed[k] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    return model, variables


TINY = {
    "vit": vit.micro(layers=1, dim=8, heads=2, mlp=6, channels=3, classes=3, epsilon=1e-12),
    "deit": vit.micro(layers=1, dim=8, heads=2, classes=3, distilled=True),
    "deit_one_head": vit.micro(layers=1, dim=8, heads=2, classes=3, distilled=True, one_head=True, activation="relu"),
    "resnet": resnet.ResNetConfig(
        stem_width=4,
        stage_widths=(8, 12),
        inner_widths=(((2, 2),), ((3, 3),) * 2),
        strides=(1, 2),
        projections=(True, True),
        stem="large",
        image_size=224,
        classes=3,
    ),
}


@pytest.mark.parametrize("name", TINY)
def test_a_folder_says_what_it_is(name, tmp_path):
    model, variables = folder(tmp_path, TINY[name], shards=1 if name == "resnet" else 3)
    loaded, got = pretrained.load(tmp_path)
    assert loaded is model
    jax.tree.map(np.testing.assert_array_equal, got, variables)
    again = pretrained.load(str(tmp_path), model)[1]
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert pretrained.load(tensor_files.open(tmp_path))[0] is model


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_become_float32(dtype, tmp_path):
    _, variables = folder(tmp_path, TINY["vit"], dtype=dtype)
    got = pretrained.load(tmp_path)[1]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(variables), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, np.asarray(b).astype(dtype).astype(np.float32))


@pytest.mark.parametrize("name", TINY)
def test_another_number_of_classes_gets_a_head_of_zeros(name, tmp_path):
    model, variables = folder(tmp_path, TINY[name])
    loaded, got = pretrained.load(tmp_path, classes=5)
    assert loaded is model.with_classes(5)
    assert "head_distilled" not in got.params
    assert got.params["head"]["kernel"].shape[-1] == 5
    assert not any(np.any(leaf) for leaf in got.params["head"].values())
    body = {k: v for k, v in variables.params.items() if not k.startswith("head")}
    jax.tree.map(np.testing.assert_array_equal, {k: got.params[k] for k in body}, body)
    x = batch(loaded)
    assert loaded.apply(got, x)[0].shape == (len(x), 5)
    # The same where no head is stored.
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    headless = {k: a for k, a in tensors.items() if "classifier" not in k}
    assert len(headless) < len(tensors)
    safetensors.numpy.save_file(headless, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, pretrained.load(tmp_path, classes=5)[1], got)
    with pytest.raises(ValueError, match=r"(?s)do not fit the model \(`classes` gives.*missing: \S*classifier"):
        pretrained.load(tmp_path)


def test_every_array_goes_where_its_sharding_says(tmp_path):
    _, variables = folder(tmp_path, TINY["vit"])
    mesh = jax.make_mesh((2,), ("x",))
    spec = jax.sharding.PartitionSpec
    split, whole = (jax.sharding.NamedSharding(mesh, s) for s in (spec("x"), spec()))

    def place(path, shape):
        return split if path.endswith("kernel") and shape[0] % 2 == 0 else whole

    got = pretrained.load(tmp_path, classes=4, sharding=place)[1]
    kinds = set()
    for path, leaf in trees.flatten(got).items():
        assert leaf.sharding == place(path, leaf.shape), path
        kinds.add(leaf.sharding)
    assert kinds == {split, whole}
    np.testing.assert_array_equal(got.params["patch"]["kernel"], variables.params["patch"]["kernel"])
    everywhere = pretrained.load(tmp_path, sharding=whole)[1]
    assert {leaf.sharding for leaf in jax.tree.leaves(everywhere)} == {whole}
    jax.tree.map(np.testing.assert_array_equal, everywhere, variables)
    with pytest.raises(ValueError, match="params/cls"):
        pretrained.load(tmp_path, sharding=split)
    with pytest.raises(ValueError, match=r"no jax\.sharding\.Sharding"):
        pretrained.load(tmp_path, sharding=lambda path, shape: None)


def test_what_cannot_be_made_is_refused(tmp_path):
    folder(tmp_path, TINY["vit"])
    with pytest.raises(ValueError, match=r"no config\.json"):
        pretrained.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="classes=0"):
        pretrained.load(tmp_path, classes=0)
    wrong = models.build(vit.micro(layers=2, dim=8, heads=2, mlp=6, channels=3, classes=3))
    with pytest.raises(ValueError, match=r"missing: vit\.encoder\.layer\.1\.attention"):
        pretrained.load(tmp_path, wrong)
    folder(tmp_path, TINY["vit"], hidden_act="mish")
    with pytest.raises(ValueError, match="hidden_act"):
        pretrained.load(tmp_path)
    folder(tmp_path, TINY["vit"], model_type="gpt2")
    with pytest.raises(ValueError, match="model_type is 'gpt2'"):
        pretrained.load(tmp_path)


def test_slim_models_are_not_misread(tmp_path):
    """Heads that differ between layers have no place in other formats; nothing is read into a wrong layout."""
    dense = models.build(vit.micro(layers=2, dim=8, heads=2, classes=3))
    slim = dense.resize({"layers/1/attention": 1})
    variables = randomise(jax.eval_shape(slim.init, jax.random.key(0)), 5)
    stored = dict(key_table.stored(formats.vit.FORMATS[1], variables, slim.config))
    with pytest.raises(ValueError, match="gives params/layers/1/attention/out/kernel the shape"):
        pretrained.convert(stored, slim)


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


MEMORY = """
import json, pathlib, sys, time
import numpy as np, safetensors.numpy
import jax
from mvp_jax import formats, models, pretrained
from mvp_jax.models import vit

folder = pathlib.Path(sys.argv[1])
config = vit.base(classes=1000, epsilon=1e-12)
model, form = models.build(config), formats.for_config(config)
like = jax.eval_shape(model.init, jax.random.key(0))

def resident(which):
    # Not `ru_maxrss`, which a child takes over from its parent.
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))

if sys.argv[2] == "write":
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), like)
    safetensors.numpy.save_file(dict(key_table.stored(form, variables, config)), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(form.describe(config)))
else:
    jax.block_until_ready(jax.numpy.ones(3) + 1)
    before, wall, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    model, variables = pretrained.load(folder)
    jax.block_until_ready(variables)
    print(json.dumps({
        "bytes": sum(a.nbytes for a in jax.tree.leaves(variables)), "rise": resident("VmHWM") - before,
        "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu,
    }))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks the kernel for the memory used")
def test_a_large_checkpoint_is_read_in_little_more_memory_than_it_has(tmp_path):
    def run(what):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path), what], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("write")
    size = (tmp_path / "model.safetensors").stat().st_size
    seen = json.loads(run("read"))
    assert seen["bytes"] > 3.4e8
    assert abs(seen["bytes"] - size) < 1e5
    assert 0.9 * size < seen["rise"] < 1.5 * size, seen
    assert seen["cpu"] < 10, seen  # the wall also shows who else is at work
