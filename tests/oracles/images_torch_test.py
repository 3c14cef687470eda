"""Processors of pictures against transformers' own of the kind that works on Pillow."""

import importlib
import json

import numpy as np
import pytest

pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

from mvp_jax.data.checkpoint_inputs import images

SHAPES = ((31, 47), (300, 200), (224, 224), (7, 260), (1, 1), (3, 50), (401, 399), (225, 223), (64, 65))
CONFIGS = {
    "clip": ("CLIPImageProcessorPil", {}),
    "clip, odd": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 33}, "crop_size": {"height": 40, "width": 27}}),
    "clip, nearest": ("CLIPImageProcessorPil", {"resample": 0, "size": {"shortest_edge": 50}, "crop_size": 51}),
    "clip, lanczos": ("CLIPImageProcessorPil", {"resample": 1, "size": {"height": 30, "width": 41}, "crop_size": 28}),
    "clip, box": ("CLIPImageProcessorPil", {"resample": 4, "do_rescale": False}),
    "clip, hamming": ("CLIPImageProcessorPil", {"resample": 5, "do_normalize": False}),
    "vit": ("ViTImageProcessorPil", {}),
    "vit, oblong": ("ViTImageProcessorPil", {"size": {"height": 20, "width": 31}, "rescale_factor": 1 / 127.5}),
    "deit": ("DeiTImageProcessorPil", {}),
    "resnet": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    "resnet, odd": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 61}, "crop_pct": 0.95, "resample": 2}),
    "convnext": ("ConvNextImageProcessorPil", {}),
}
FOLDERS = {"CLIPImageProcessorPil": "clip", "ViTImageProcessorPil": "vit", "DeiTImageProcessorPil": "deit"}


def theirs(kind, settings):
    folder = FOLDERS.get(kind, "convnext")
    module = importlib.import_module(f"transformers.models.{folder}.image_processing_pil_{folder}")
    return getattr(module, kind)(**settings)


def pictures(rng, shapes=SHAPES, channels=3):
    """Noise, which has every frequency, and a ramp, which shows where the middle is."""
    for height, width in shapes:
        yield rng.integers(0, 256, (height, width, channels), np.uint8)
        ramp = np.add.outer(np.linspace(0, 127, height), np.linspace(0, 128, width))
        yield np.repeat(ramp[..., None], channels, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels(name, tmp_path):
    kind, settings = CONFIGS[name]
    reference = theirs(kind, settings)
    reference.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"].startswith(kind[:4])
    own = images.processor(tmp_path)
    for x in pictures(np.random.default_rng(0)):
        expected = np.stack(reference([x], input_data_format="channels_last")["pixel_values"])
        got = own([x])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected.transpose(0, 2, 3, 1), rtol=0, atol=1e-5)
    assert np.std(got) > 0.1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "RGB"])
def test_modes_of_pillow(mode):
    reference, own = theirs("CLIPImageProcessorPil", {}), images.Processor(convert=True, **CLIP)
    rng = np.random.default_rng(1)
    for x in pictures(rng, ((60, 43), (9, 11)), 4):
        image = Image.fromarray(x)
        image = image.convert("RGB").convert(mode) if mode in ("CMYK", "1", "P") else image.convert(mode)
        expected = np.stack(reference([image])["pixel_values"]).transpose(0, 2, 3, 1)
        np.testing.assert_allclose(own([image]), expected, rtol=0, atol=1e-5)
        assert np.std(expected) > 0.1


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_of_arrays(channels):
    reference, own = theirs("CLIPImageProcessorPil", {}), images.Processor(convert=True, **CLIP)
    for x in pictures(np.random.default_rng(2), ((60, 43), (9, 11)), channels):
        expected = np.stack(reference([x], input_data_format="channels_last")["pixel_values"]).transpose(0, 2, 3, 1)
        np.testing.assert_allclose(own([x]), expected, rtol=0, atol=1e-5)


CLIP = {
    "size": 224,
    "resample": 3,
    "crop": (224, 224),
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
