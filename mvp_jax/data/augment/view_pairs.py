"""Two views of each image, from which a network learns without labels."""

import jax

from mvp_jax.core.types import Array, Key
from mvp_jax.data.augment import colours, geometry, transforms
from mvp_jax.data.augment.transforms import Scalar


def simsiam_views(
    key: Key, x: Array, scale: tuple[Scalar, Scalar] = (0.2, 1.0), jitter: Scalar = 1.0, blur: Scalar = 0.5
) -> tuple[Array, Array]:
    """Draws two views of each image independently, as SimSiam learns from: crop, colours, grey, blur, mirroring.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]` in [0, 1], with 1 or 3 channels.
        scale: least and greatest part of the image's area that a view shows, as `augment.random_resized_crop` takes
            it.
        jitter: strength of the colours, 0 to 5; 1 gives the published strengths of `augment.color_jitter` (0.4 for
            brightness, contrast and saturation, 0.1 for hue), on 80 % of the views.
        blur: probability with which a view is blurred; 0 is common for images of 32 pixels.

    Returns:
        Two batches of views, each `[N, H, W, C]` in [0, 1].

    Raises:
        ValueError: for numbers out of range, or images of another kind.

    >>> import jax.numpy as jnp
    >>> a, b = simsiam_views(jax.random.key(0), jnp.linspace(0, 1, 48).reshape(1, 4, 4, 3))
    >>> a.shape, bool((a == b).all())
    ((1, 4, 4, 3), False)

    Reference: Chen & He, arXiv:2011.10566, appendix A.
    """
    strength = transforms.strength("jitter", jitter, 0.0, 5.0)

    def view(key: Key) -> Array:
        keys = jax.random.split(key, 5)
        out = geometry.random_resized_crop(keys[0], x, scale)
        tone = 0.4 * strength
        out = colours.color_jitter(keys[1], out, tone, tone, tone, 0.1 * strength, 0.8)
        out = colours.random_grayscale(keys[2], out)
        out = colours.gaussian_blur(keys[3], out, probability=blur)
        return geometry.flip(keys[4], out)

    first, second = jax.random.split(key)
    return view(first), view(second)
