"""How images vary: functions of a key and a batch of images on the device, and crops on the host.

`augment.crop`, `augment.flip` and the others are used as they are, or in turn by `augment.apply`; `named` makes them
from the names in configs, `cropping` cuts pictures of many sizes on the host, while they are read.
"""

from mvp_jax.data.augment import cropping, named
from mvp_jax.data.augment.colours import brightness, color_jitter, gaussian_blur, noise, random_grayscale
from mvp_jax.data.augment.geometry import crop, cutout, flip, random_resized_crop, shift
from mvp_jax.data.augment.mixing import cutmix, mix, mixup
from mvp_jax.data.augment.randaugment import rand_augment
from mvp_jax.data.augment.transforms import BatchTransform, apply, in_unit, normalise
from mvp_jax.data.augment.view_pairs import simsiam_views

__all__ = [
    "BatchTransform",
    "apply",
    "brightness",
    "color_jitter",
    "crop",
    "cropping",
    "cutmix",
    "cutout",
    "flip",
    "gaussian_blur",
    "in_unit",
    "mix",
    "mixup",
    "named",
    "noise",
    "normalise",
    "rand_augment",
    "random_grayscale",
    "random_resized_crop",
    "shift",
    "simsiam_views",
]
