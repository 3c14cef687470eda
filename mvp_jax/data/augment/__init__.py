"""How images vary: pure functions of a key and a batch of images on the device, and crops on the host."""

from mvp_jax.data.augment.colours import color_jitter, gaussian_blur, random_grayscale
from mvp_jax.data.augment.compose import in_unit, random_resized_crop, simsiam_views
from mvp_jax.data.augment.mixing import cutmix, mix, mixup
from mvp_jax.data.augment.randaugment import rand_augment

__all__ = [
    "color_jitter",
    "cutmix",
    "gaussian_blur",
    "in_unit",
    "mix",
    "mixup",
    "rand_augment",
    "random_grayscale",
    "random_resized_crop",
    "simsiam_views",
]
