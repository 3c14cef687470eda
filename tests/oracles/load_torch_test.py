"""Checkpoints that transformers and PyTorch wrote, loaded here: logits, hidden states and gradients agree."""

import json
import pickle

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mvp_jax import models, pretrained
from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.pretrained import formats, key_table, tensor_files
from tests.oracles import torch_models

transformers.logging.disable_progress_bar()

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}
KINDS = {
    "resnet_bottleneck": lambda: (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24, 32], depths=[1, 2, 1], num_labels=5),
    ),
    "resnet_early": lambda: (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[24, 32], depths=[1, 2], num_labels=5, downsample_in_bottleneck=True
        ),
    ),
    "resnet_basic": lambda: (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[2, 2],
            layer_type="basic",
            num_labels=5,
            downsample_in_first_stage=True,
            num_channels=2,
        ),
    ),
    "vit": lambda: (transformers.ViTForImageClassification, transformers.ViTConfig(**VIT)),
    "vit_relu": lambda: (
        transformers.ViTForImageClassification,
        transformers.ViTConfig(**VIT, hidden_act="relu", layer_norm_eps=1e-3),
    ),
    "deit": lambda: (transformers.DeiTForImageClassificationWithTeacher, transformers.DeiTConfig(**VIT)),
    "deit_one_head": lambda: (transformers.DeiTForImageClassification, transformers.DeiTConfig(**VIT)),
}


def theirs(kind):
    cls, config = KINDS[kind]()
    return torch_models.randomise(cls(config), 1).eval()


def images(module, n=4):
    c = module.config
    size = getattr(c, "image_size", 64)
    return np.random.default_rng(0).normal(size=(n, size, size, c.num_channels)).astype(np.float32)


def write(module, folder, how):
    if how == "whole":
        module.save_pretrained(folder)
    elif how == "shards":
        module.save_pretrained(folder, max_shard_size="4KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    else:  # names of the modules, as they are in memory
        module.config.architectures = [type(module).__name__]
        module.config.save_pretrained(folder)
        torch.save(module.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("how", ["whole", "shards", "pickle"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_hidden_states_and_gradients(kind, how, tmp_path):
    module = theirs(kind)
    write(module, tmp_path, how)
    model, variables = pretrained.load(tmp_path)
    x = images(module)
    seen = module(torch.from_numpy(x.transpose(0, 3, 1, 2)), output_hidden_states=True)
    logits = seen.logits.detach().numpy()
    assert np.ptp(logits, axis=0).min() > 1e-2
    scale = np.abs(logits).max()
    if model.input_shape != x.shape[1:]:  # theirs take any size, ours the one of its configuration
        model = models.build(type(model.config)(**{**model.config.__dict__, "image_size": x.shape[1]}))
    ours = model.inspect(variables, x)
    np.testing.assert_allclose(ours.logits, logits, rtol=1e-4, atol=1e-4 * scale)

    last = seen.hidden_states[-1]
    if kind.startswith("resnet"):
        last = last.mean((2, 3))
    else:
        last = getattr(module, module.base_model_prefix).layernorm(last)[:, 0]
    last = last.detach().numpy()
    assert np.ptp(last) > 0.1
    np.testing.assert_allclose(ours.features, last, rtol=1e-4, atol=1e-4 * np.abs(last).max())
    if how == "whole":
        compare_hidden(kind, model, variables, x, seen.hidden_states)
        compare_gradients(module, model, variables, x)


def compare_hidden(kind, model, variables, x, hidden):
    """Every layer or stage, by models that end after it and hand through what they would classify."""
    import dataclasses

    config = model.config
    depth = len(config.stage_widths) if kind.startswith("resnet") else len(config.heads)
    for n in range(1, depth):
        if kind.startswith("resnet"):
            fields = ("stage_widths", "inner_widths", "strides", "projections")
            children, expected = "stages", hidden[n].mean((2, 3))
        else:
            fields = ("heads", "qk_dim", "v_dim", "mlp")
            children = "layers"
            # What ours hands to the head is normalised.
            h = hidden[n][:, 0]
            h = (h - h.mean(-1, keepdim=True)) * torch.rsqrt(h.var(-1, correction=0, keepdim=True) + config.epsilon)
            norm = variables.params["norm"]
            expected = h * torch.tensor(np.asarray(norm["scale"])) + torch.tensor(np.asarray(norm["bias"]))
        short = models.build(dataclasses.replace(config, **{f: getattr(config, f)[:n] for f in fields}))
        cut = {str(i): variables.params[children][str(i)] for i in range(n)}
        params = {**variables.params, children: cut}
        rest = variables.rest
        if children in rest:
            rest = {**rest, children: {str(i): rest[children][str(i)] for i in range(n)}}
            width = config.stage_widths[n - 1]
            params["head"] = {"kernel": np.zeros((width, config.classes), np.float32), "bias": params["head"]["bias"]}
        got = short.inspect(Variables(params, rest), x).features
        expected = expected.detach().numpy()
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def compare_gradients(module, model, variables, x):
    module.zero_grad()
    module(torch.from_numpy(x.transpose(0, 3, 1, 2))).logits.square().sum().backward()
    grads = {k: p.grad.numpy() for k, p in module.named_parameters() if p.grad is not None}
    rest = {k: v.numpy() for k, v in module.state_dict().items() if k not in grads}
    expected = trees.flatten(pretrained.convert({**grads, **rest}, model).params)
    got = jax.jit(jax.grad(lambda p: (model.apply(Variables(p, variables.rest), x)[0] ** 2).sum()))(variables.params)
    largest = max(np.abs(g).max() for g in expected.values())
    for path, g in trees.flatten(got).items():
        scale = np.abs(expected[path]).max()
        assert scale > 1e-4 * largest or path.endswith("key/bias"), path  # softmax does not see a shift of the keys
        np.testing.assert_allclose(g, expected[path], rtol=1e-3, atol=1e-3 * scale + 1e-6 * largest, err_msg=path)


@pytest.mark.parametrize("kind", ["resnet_basic", "resnet_early", "vit", "deit"])
def test_what_is_written_here_is_read_by_transformers(kind, tmp_path):
    """The other way: names, layouts and config.json of `stored` and `describe`."""
    import safetensors.numpy

    module = theirs(kind)
    module.save_pretrained(tmp_path / "there")
    model, variables = pretrained.load(tmp_path / "there")
    form = formats.for_config(model.config)
    (tmp_path / "here").mkdir()
    tensors = dict(key_table.stored(form, variables, model.config))
    safetensors.numpy.save_file(tensors, tmp_path / "here" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "here" / "config.json").write_text(json.dumps(form.describe(model.config)))
    again, report = type(module).from_pretrained(tmp_path / "here", output_loading_info=True)
    wrong = [k for k in (*report["missing_keys"], *report["unexpected_keys"]) if "num_batches_tracked" not in k]
    assert wrong == list(report["mismatched_keys"]) == []
    x = torch.from_numpy(images(module).transpose(0, 3, 1, 2))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x).logits, module(x).logits)


def test_bodies_without_heads(tmp_path):
    cls, config = transformers.ViTModel, transformers.ViTConfig(**VIT)
    module = torch_models.randomise(cls(config), 2).eval()
    module.save_pretrained(tmp_path)
    model, variables = pretrained.load(tmp_path, classes=3)
    assert model.num_classes == 3
    x = images(module)
    with torch.no_grad():
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2))).last_hidden_state[:, 0].numpy()
    got = model.inspect(variables, x)
    assert not np.any(got.logits)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(got.features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 50}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "vocab_size": 50}
ENCODERS = {
    "BertForPreTraining": ("Bert", TEXT, True),
    "BertForMaskedLM": ("Bert", TEXT, False),
    "RobertaForMaskedLM": ("Roberta", TEXT, False),
    "RobertaModel": ("Roberta", TEXT, False),
    "DistilBertForMaskedLM": ("DistilBert", DISTILBERT, False),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_become_classifiers(name, tmp_path):
    """What texts are usually fine-tuned from: language models, whose own heads are left out."""
    kin, fields, pooler = ENCODERS[name]
    module = getattr(transformers, name)(getattr(transformers, f"{kin}Config")(**fields))
    torch_models.randomise(module, 3).eval().save_pretrained(tmp_path)
    model, variables = pretrained.load(tmp_path, classes=3)
    assert (model.num_classes, model.config.task) == (3, "classify")
    assert not np.any(variables.params["head"]["kernel"])
    assert np.ptp(variables.params["pooler"]["kernel"]) > 0
    ids = np.random.default_rng(0).integers(5, 50, (3, 9))
    body = getattr(module, module.base_model_prefix, module)
    with torch.no_grad():
        first = body(torch.from_numpy(ids)).last_hidden_state[:, 0].numpy()
    dense = {k: np.asarray(a) for k, a in variables.params["pooler"].items()}
    squash = np.tanh if model.config.pooler == "tanh" else lambda a: np.maximum(a, 0)
    if pooler:
        np.testing.assert_array_equal(dense["kernel"], body.pooler.dense.weight.detach().numpy().T)
    else:
        assert 0.01 < dense["kernel"].std() < 0.03
    expected = squash(first @ dense["kernel"] + dense["bias"])
    assert np.ptp(expected) > 1e-2
    np.testing.assert_allclose(model.inspect(variables, ids.astype(np.int32)).features, expected, rtol=1e-4, atol=1e-5)


class Boom:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path(self.where),)


@pytest.mark.parametrize("how", ["zip", "old", "plain"])
def test_pickles_that_hold_code_are_refused_and_not_run(how, tmp_path):
    bomb = Boom()
    bomb.where = str(tmp_path / "ran")
    loaded = {"conv1.weight": torch.ones(2), "x": bomb}
    path = tmp_path / "m.pth"
    if how == "plain":
        path.write_bytes(pickle.dumps(loaded))
    else:
        torch.save(loaded, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match=r"m\.pth is refused, it may hold code"):
        tensor_files.open(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False) if how != "plain" else pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists(), "the bomb works where it is let"


def test_pickled_state_dicts(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "h": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    for i, content in enumerate((state, {"state_dict": state, "best": 0.9}, {"model": state, "epoch": 3})):
        path = tmp_path / f"{i}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=i != 1)
        source = tensor_files.open(path)
        assert {n: (e.shape, e.dtype) for n, e in source.entries.items()} == {
            "a": ((3, 2), "F32"),
            "h": ((2,), "BF16"),
            "n": ((), "int64"),
        }
        np.testing.assert_array_equal(source.get("a"), [[0, 3], [1, 4], [2, 5]])
        assert source.get("h").dtype == np.float32
        with pytest.raises(ValueError, match="stored as int64"):
            source.get("n")
    whole = (tmp_path / "0.pth").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pth is refused"):
            tensor_files.open(tmp_path / "cut.pth")
    for content, message in (
        (torch.ones(2), "holds a Tensor and no state dict"),
        ({"a": 3.0}, r"\['a'\], which are no tensors"),
        ({"a": torch.ones(2, 2).to_sparse()}, "sparse"),
        ({"a": torch.ones(2, device="meta")}, "no tensors"),
    ):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=message):
            tensor_files.open(tmp_path / "odd.pth")


def test_pickled_shards(tmp_path):
    for i in range(2):
        torch.save({f"w{i}": torch.full((2,), float(i))}, tmp_path / f"part{i}.bin")
    index = {"weight_map": {f"w{i}": f"part{i}.bin" for i in range(2)}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert tensor_files.open(tmp_path).get("w1").tolist() == [1, 1]
