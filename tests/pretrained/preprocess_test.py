"""What a job makes of somebody's checkpoint: its inputs, its model, and heads made of texts."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import isp_bert, isp_clip
from mvp_jax import models, pretrained
from mvp_jax.data import sources
from mvp_jax.data.checkpoint_inputs import images, tokens
from mvp_jax.data.datasets import text
from mvp_jax.experiments import dense_model, planning, presets, sparsity_job
from mvp_jax.experiments import run as experiment
from mvp_jax.methods import sparse
from mvp_jax.pretrained import formats, key_table, loading, preprocess, tensor_files, zero_shot
from mvp_jax.pretrained.keys import clip as clip_formats
from mvp_jax.storage import records
from tests import folders

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return folders.clip_pair(tmp_path_factory.mktemp("clip") / "pair")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return folders.bert_encoder(tmp_path_factory.mktemp("bert") / "encoder")


def test_pictures_are_what_the_processor_makes_of_them(pair):
    processor = images.processor(pair)
    source = sources.digits()
    got = preprocess.process_images(source, processor)
    assert got.image_shape == (8, 8, 3)
    assert got.class_names == source.class_names
    level = np.round(source.train.x[:5] * 255).astype(np.uint8).astype(np.float32) / 255
    wanted = (np.repeat(level, 3, -1) - np.array([0.4, 0.5, 0.6])) / np.array([0.2, 0.3, 0.4])
    np.testing.assert_allclose(got.train.x[:5], wanted, atol=1e-5)
    assert np.std(wanted) > 0.5
    with pytest.raises(ValueError, match="before normalisation"):
        preprocess.process_images(sources.normalise(source), processor)


def test_words_are_the_same_texts_in_the_checkpoints_ids(encoder):
    source = text.docstrings(per_class=10, classes=("scipy.signal", "sklearn.cluster"), vocabulary=10**6)
    tokenizer = tokens.tokenizer(encoder)
    got = preprocess.tokenize(source, tokenizer, 200)
    assert got.train.x.shape == (20, 200)
    np.testing.assert_array_equal(got.train.y, source.train.y)
    for ids, own in zip(got.train.x[:3], source.train.x, strict=False):
        letters = [folders.LETTERS.find(c) for w in source.words(own[1:]).split() if w[0] != "[" for c in w]
        body = [int(i) for i in ids if i > 4]
        # Ids of word beginnings follow the five special ones, those of continuations come after them.
        assert [(i - 5) % len(folders.LETTERS) for i in body] == letters
        assert len(letters) > 50
        assert (ids[0], ids[len(body) + 1]) == (2, 3)


def test_a_zero_shot_head_is_the_mean_of_the_texts(pair):
    kernel = zero_shot.head(pair, ("0", "7", "bee"), ("a {}.", "the {} of {}."))
    source = tensor_files.open(pair)
    model, variables = pretrained.load(pair, models.build(clip_formats.TEXT.config(source.described)), classes=1)
    tokenizer = tokens.tokenizer(pair)
    columns = []
    for name in ("0", "7", "bee"):
        ids = tokenizer.encode([f"a {name}.", f"the {name} of {{}}.".replace("{}", name)], length=40)
        features = np.asarray(model.inspect(variables, jnp.asarray(ids)).features, np.float64)
        mean = features.mean(0)
        columns.append(np.exp(np.float32(1.2)) * mean / np.linalg.norm(mean))
    np.testing.assert_allclose(kernel, np.stack(columns, 1), rtol=1e-4, atol=1e-5)
    assert np.abs(kernel[:, 0] - kernel[:, 1]).max() > 1e-3
    for templates in ((), ("a photo",)):
        with pytest.raises(ValueError, match="for 1 classes; each template holds"):
            zero_shot.head(pair, ("a",), templates)


def test_an_id_on_the_hub_stands_for_its_folder(pair, monkeypatch):
    hub = types.SimpleNamespace(snapshot_download=lambda name, **_: {"lab/pair": str(pair)}[name])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    names, templates = ("0", "7"), ("a {}.",)
    np.testing.assert_array_equal(zero_shot.head("lab/pair", names, templates), zero_shot.head(pair, names, templates))
    config = isp_clip.get_config("checkpoint=lab/pair,runlocal")
    assert planning.sparsity_plan(config).setting.image_shape == (8, 8, 3)


def test_published_templates():
    assert {name: len(t) for name, t in presets.TEMPLATES.items()} == {"cifar": 18, "mnist": 1, "gtsrb": 3, "cars": 8}
    for templates in presets.TEMPLATES.values():
        assert len(set(templates)) == len(templates)
        assert all(t.count("{}") == 1 for t in templates)
    assert "a black and white photo of the {}." in presets.TEMPLATES["cifar"]
    assert "a photo of a big {}." in presets.TEMPLATES["cifar"]
    assert isp_clip.get_config("checkpoint=somewhere").templates == presets.TEMPLATES["mnist"]
    assert isp_clip.get_config("checkpoint=somewhere,data=npz").templates == presets.TEMPLATES["cifar"]
    assert isp_clip.get_config().templates == ()


def test_the_model_of_a_folder(pair, encoder):
    vision, words = (loading.from_config(pair, 7, text=t) for t in (False, True))
    assert (vision.input_shape, vision.num_classes) == ((8, 8, 3), 7)
    assert words.input_shape == (40,)
    assert loading.from_config(encoder, 3, text=True, options={"dropout": 0.1}).config.dropout == 0.1
    with pytest.raises(ValueError, match=r"has no \['width'\]"):
        loading.from_config(encoder, 3, text=True, options={"width": 3})


def test_clip_is_pruned_under_the_head_of_its_texts(pair, tmp_path):
    config = isp_clip.get_config(f"checkpoint={pair},runlocal")
    config.methods, config.reference, config.ours = ("magnitude", "isp"), "magnitude", "isp"
    config.masks_alone = False
    rows = experiment.run(config, tmp_path)
    assert {r["method"] for r in rows} == {"magnitude", "isp"}
    plan = planning.sparsity_plan(config)
    assert plan.zero_shot.shape == (8, 10)
    variables = dense_model.dense_model(plan, tmp_path)
    problem, data = next(iter(sparsity_job.problems(plan, variables).values()))
    (target,) = plan.setting.targets
    np.testing.assert_array_equal(problem.variables.params["head"]["kernel"], plan.zero_shot[:, list(target.classes)])
    np.testing.assert_array_equal(problem.train["y"], data.train.y)
    # Training moves the tower and leaves the head alone, weight decay too.
    training = plan.base.training
    assert training.weight_decay > 0
    run = sparse.begin(problem, training, jax.random.key(0))
    after = sparse.advance(problem, training, run, 2).state.variables.params
    np.testing.assert_array_equal(after["head"]["kernel"], problem.variables.params["head"]["kernel"])
    moved = np.abs(after["layers"]["0"]["fc1"]["kernel"] - problem.variables.params["layers"]["0"]["fc1"]["kernel"])
    assert moved.max() > 0
    assert records.read_csv(tmp_path / "results.csv")


@pytest.mark.slow
@pytest.mark.parametrize("make", [isp_clip, isp_bert])
def test_without_a_checkpoint_one_is_trained_here(make, tmp_path):
    config = make.get_config("runlocal")
    config.methods, config.reference, config.ours = ("magnitude", "isp"), "magnitude", "isp"
    assert experiment.run(config, tmp_path)


def test_bert_is_pruned_with_its_own_ids(encoder, tmp_path):
    config = isp_bert.get_config(f"checkpoint={encoder},runlocal")
    config.methods, config.reference, config.ours = ("magnitude",), "magnitude", "magnitude"
    rows = experiment.run(config, tmp_path)
    assert {r["method"] for r in rows} == {"magnitude"}
    plan = planning.sparsity_plan(config)
    assert plan.setting.image_shape == (32,)
    (form,) = (f for f in formats.FORMATS if f.name == "bert (Hugging Face)")
    name = "bert.embeddings.word_embeddings.weight"
    stored = key_table.to_ours(form, name, tensor_files.open(encoder).get(name), plan.model.config)
    got = dense_model.dense_model(plan, tmp_path).params["embed"]["word"]
    np.testing.assert_array_equal(got, stored["params/embed/word"])
