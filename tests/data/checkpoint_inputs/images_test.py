"""Processors of pictures: hand-made ones pixel by pixel, and what they refuse."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mvp_jax.data.checkpoint_inputs import images
from mvp_jax.data.checkpoint_inputs.images import Processor

NOISE = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
PLAIN = Processor(scale=None)


def written(folder, **fields):
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return folder


def shown(x):
    """One channel of one picture as numbers."""
    return x[0, :, :, 0].astype(int).tolist()


def test_scale_and_normalisation_by_hand():
    x = np.array([[[0, 51, 255], [102, 204, 153]]], np.uint8)
    got = Processor(mean=(0.5, 0.2, 0.0), std=(0.5, 0.1, 2.0))([x])
    assert got.dtype == np.float32
    # x / 255 is [0, .2, 1] and [.4, .8, .6]
    np.testing.assert_allclose(got, [[[[-1, 0, 0.5], [-0.2, 6, 0.3]]]], atol=1e-6)
    np.testing.assert_array_equal(PLAIN([x])[0], x.astype(np.float32))
    np.testing.assert_allclose(Processor(scale=1 / 51, mean=1.0, std=2.0)([x])[0, 0, 0], [-0.5, 0, 2], atol=1e-6)


def test_the_middle_by_hand():
    x = np.arange(1, 21, dtype=np.uint8).reshape(4, 5, 1)
    rows = x[..., 0].tolist()

    def cut(*crop):
        return shown(dataclasses.replace(PLAIN, crop=crop)([x]))

    assert cut(4, 5) == rows
    assert cut(2, 3) == [row[1:4] for row in rows[1:3]]
    assert cut(3, 2) == [row[1:3] for row in rows[:3]]  # of an odd rest, more is cut after the picture
    assert cut(1, 1) == [[8]]
    assert cut(6, 5) == [[0] * 5, *rows, [0] * 5]
    assert cut(5, 5) == [[0] * 5, *rows]  # and more is put before it
    assert cut(2, 8) == [[0, 0, *row, 0] for row in rows[1:3]]


def test_black_edges_are_normalised_too():
    got = Processor(crop=(3, 3), mean=0.5, std=0.25)([np.full((1, 1, 3), 255, np.uint8)])
    assert got[0, :, :, 1].tolist() == [[-2, -2, -2], [-2, 2, -2], [-2, -2, -2]]


def test_sizes_by_hand():
    """Halving with the box filter is a mean of four; the nearest of two is the second, as pixels have middles."""
    x = np.array([[[10], [20], [0], [0]], [[30], [40], [0], [8]]], np.uint8)
    assert shown(dataclasses.replace(PLAIN, size=1, resample=4)([x])) == [[25, 2]]
    assert shown(dataclasses.replace(PLAIN, size=(1, 2), resample=0)([x])) == [[40, 8]]
    assert shown(dataclasses.replace(PLAIN, size=(2, 1), resample=4)([x])) == [[8], [20]]  # 7.5 and 19.5, rounded
    assert shown(dataclasses.replace(PLAIN, size=(3, 8), resample=0)([x]))[2] == [30, 30, 40, 40, 0, 0, 8, 8]


def test_filters_are_those_of_pillow():
    """Of a step, by their own overshoots: only cubic and Lanczos filters go beyond what they are given."""
    step = np.full((1, 16, 1), 50, np.uint8)
    step[:, 8:] = 200
    got = {
        name: shown(Processor(size=(1, 64), resample=code, scale=None)([step]))[0]
        for code, name in enumerate(images.FILTERS)
    }
    assert [name for name, row in got.items() if min(row) < 50 and max(row) > 200] == ["lanczos", "bicubic"]
    assert min(got["lanczos"]) != min(got["bicubic"])
    assert set(got["nearest"]) == set(got["box"]) == {50, 200}
    # Four pixels for one; the middle of the new one at 29 is at 7.375 of the old, 0.125 before the old one's middle.
    assert got["bilinear"][30:34] == [69, 106, 144, 181]
    assert len(set(got["hamming"])) > 3
    assert got["hamming"] != got["bilinear"]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30))
def test_the_shorter_side(height, width, size):
    x = np.full((height, width, 3), 77, np.uint8)
    got = Processor(size=size, scale=None)([x])[0]
    longer = size * max(height, width) // min(height, width)
    assert got.shape == ((longer, size, 3) if width <= height else (size, longer, 3))
    assert (got == 77).all()


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 2, 3]))
def test_one_shape_whatever_the_picture(height, width, resample):
    x = np.arange(height * width * 3).reshape(height, width, 3).astype(np.uint8)
    got = Processor(size=9, resample=resample, crop=(8, 11), mean=0.5, std=0.5)([x, NOISE])
    assert got.shape == (2, 8, 11, 3)
    assert np.abs(got).max() <= 1 + 1e-6


def test_arrays_lists_and_pillow_agree():
    known = Processor(size=8, resample=3, crop=(7, 7), mean=0.5, std=0.5)
    batch = np.stack([NOISE, NOISE[::-1]])
    expected = known(batch)
    np.testing.assert_array_equal(known(list(batch)), expected)
    np.testing.assert_array_equal(known([Image.fromarray(x) for x in batch]), expected)
    np.testing.assert_array_equal(known((NOISE, NOISE[::-1])), expected)
    assert np.std(expected) > 0.1


def test_grey_and_transparent():
    grey = NOISE[..., :1]
    rgb = Processor(convert=True, scale=None)
    expected = np.repeat(grey, 3, axis=-1).astype(np.float32)
    for image in (grey, grey[..., 0], Image.fromarray(grey[..., 0])):
        np.testing.assert_array_equal(rgb([image])[0], expected)
    np.testing.assert_array_equal(PLAIN([Image.fromarray(grey[..., 0])])[0], grey)
    colour = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [3, 100, 0, 51]]], np.uint8)
    over_white = [[[200, 100, 0], [255, 255, 255], [205, 224, 204]]]  # a fifth of the colour, four of white
    np.testing.assert_array_equal(rgb([colour])[0], over_white)
    np.testing.assert_allclose(rgb([Image.fromarray(colour)])[0], over_white, atol=1)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    np.testing.assert_array_equal(rgb([palette])[0], [[[255, 0, 0], [0, 0, 255]]])
    palette.info["transparency"] = 1
    np.testing.assert_array_equal(rgb([palette])[0], [[[255, 0, 0], [255, 255, 255]]])


def test_a_pixel_and_a_strip():
    known = Processor(size=12, resample=3, crop=(12, 12), mean=0.5, std=0.5)
    assert np.unique(known([np.zeros((1, 1, 3), np.uint8)])).tolist() == [-1]
    strip = np.zeros((1, 3001, 3), np.uint8)
    strip[:, 1500] = 255
    got = known([strip])[0]
    assert got.shape == (12, 12, 3)
    assert got[0, :, 0].max() > 0.9  # the middle pixel fills the crop
    with pytest.raises(ValueError, match="picture 1 of 1 x 4000 would become 224 x 896000; cut it"):
        Processor(size=224, crop=(4, 4))([NOISE, np.zeros((1, 4000, 3), np.uint8)])


def test_files_of_checkpoints(tmp_path):
    clip = images.processor(written(tmp_path, feature_extractor_type="CLIPFeatureExtractor", size=224, crop_size=224))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    assert clip == Processor(size=224, resample=3, crop=(224, 224), mean=mean, std=std, convert=True)
    assert clip == images.processor(written(tmp_path, image_processor_type="CLIPImageProcessorFast", size=None))
    vit = {"image_processor_type": "ViTImageProcessor", "resample": 2, "rescale_factor": 0.5, "image_mean": 0.3}
    got = images.processor(written(tmp_path, **vit, image_std=0.2, size={"height": 20, "width": 30}))
    assert got == Processor(size=(20, 30), scale=0.5, mean=0.3, std=0.2)
    half = (0.5, 0.5, 0.5)
    got = images.processor(written(tmp_path, feature_extractor_type="ViTFeatureExtractor", size=96))
    assert got == Processor(size=(96, 96), mean=half, std=half)
    got = images.processor(written(tmp_path, image_processor_type="DeiTImageProcessor", size=256))
    assert got == Processor(size=(256, 256), resample=3, crop=(224, 224), mean=half, std=half)
    resnet = {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "resample": 3, "size": 224}
    got = images.processor(written(tmp_path, **resnet))
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert got == Processor(size=256, crop=(224, 224), resample=3, **imagenet)
    got = images.processor(written(tmp_path, image_processor_type="ConvNextImageProcessor"))
    assert got == Processor(size=(384, 384), resample=3, **imagenet)
    off = dict.fromkeys(["do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb"], False)
    for kind in ("CLIP", "ViT", "DeiT", "ConvNext"):
        got = images.processor(written(tmp_path, image_processor_type=f"{kind}ImageProcessor", resample=2, **off))
        assert got == PLAIN


def test_the_file_of_the_whole_processor(tmp_path):
    inner = {"image_processor_type": "ViTImageProcessorPil", "size": {"height": 8, "width": 8, "shortest_edge": None}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner, "other": 1}))
    assert images.processor(tmp_path).size == (8, 8)


BROKEN = {
    "another kind": ({"image_processor_type": "BeitImageProcessor"}, "is 'BeitImageProcessor', do_pad is False; known"),
    "no kind": ({}, "image_processor_type is 'None'"),
    "padding": ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad is True"),
    "two edges": ({"size": {"shortest_edge": 3, "longest_edge": 5}}, "a size is .*known are a number, `shortest_edge`"),
    "text": ({"size": "224"}, "a size is '224'"),
    "text inside": ({"size": {"shortest_edge": "224"}}, "size='224'"),
    "no size": ({"size": {"height": 0, "width": 3}}, r"size=\(0, 3\)"),
    "filter": ({"resample": 6}, "resample=6 is no filter; known are 0 nearest, 1 lanczos"),
    "filter's name": ({"resample": "bicubic"}, "resample='bicubic' is no filter"),
    "crop": ({"crop_size": {"shortest_edge": 3}}, "crop_size is .*give height and width"),
    "no crop": ({"image_processor_type": "ViTImageProcessor", "do_center_crop": True}, "a size is None"),
    "mean": ({"image_mean": [0.1, 0.2]}, "give both or neither"),
    "std": ({"image_std": [0.1, 0.0, 0.2]}, "std above 0"),
    "std of text": ({"image_mean": "a", "image_std": "b"}, "preprocessor_config.json"),
    "share": ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0}, "crop_pct=0;"),
    "share of text": ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": "a"}, "preprocessor_config.json"),
    "two crops": (
        {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True, "crop_size": 3},
        "no crop",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refused_files(case, tmp_path):
    fields, message = BROKEN[case]
    kind = {} if case == "no kind" else {"image_processor_type": "CLIPImageProcessor"}
    with pytest.raises(ValueError, match=message) as caught:
        images.processor(written(tmp_path, **kind | fields))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", '{"image_processor": 3}'])
def test_broken_files(text, tmp_path):
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        images.processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not readable JSON|not an object"):
        images.processor(tmp_path)


PICTURES = {
    "floats": ([NOISE / 255], "picture 0 is float64; give uint8"),
    "16 bits": ([Image.fromarray(NOISE[..., 0].astype(np.uint16))], "more than 8 bits a level"),
    "a name": (["cat.png"], "picture 0 is str"),
    "only a name": ("cat.png", "images are 'cat.png'; give at least one in a list"),
    "one array": (NOISE, r"one array of shape \(20, 31, 3\); give \[N, H, W, C\]"),
    "one image": (Image.fromarray(NOISE), "give at least one in a list"),
    "none": ([], "give at least one in a list"),
    "none in an array": (np.zeros((0, 2, 2, 3), np.uint8), "give at least one"),
    "empty": ([NOISE[:0]], r"picture 0 has the shape \(0, 31, 3\)"),
    "channels first": ([NOISE.transpose(2, 0, 1)], r"picture 0 has the shape \(3, 20, 31\); give \[H, W\]"),
    "transparent": ([Image.fromarray(NOISE).convert("RGBA")], "mode RGBA; convert=True"),
    "transparent array": ([np.zeros((2, 2, 4), np.uint8)], "picture 0 has 4 channels; convert=True"),
    "grey": ([NOISE, NOISE[..., 0]], "picture 1 has 1 channels, mean=.* has 3; convert=True"),
    "two sizes": ([NOISE, NOISE[:5]], r"picture 0 becomes \(20, 31, 3\) and picture 1 \(5, 31, 3\); give a crop"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_refused_pictures(case):
    given_, message = PICTURES[case]
    with pytest.raises(ValueError, match=message):
        Processor(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))(given_)


@pytest.mark.parametrize(
    "fields", [{"size": 0}, {"size": (3,)}, {"crop": (3, 2.0)}, {"crop": (0, 1)}, {"mean": 0.1}, {"resample": True}]
)
def test_refused_fields(fields):
    with pytest.raises(ValueError, match=r"give|known"):
        Processor(**fields)
