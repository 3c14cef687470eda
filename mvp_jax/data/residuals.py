"""Images packed without loss: what a predictor leaves over, which an archive compresses further."""

import numpy as np


def unpack(residuals: np.ndarray) -> np.ndarray:
    """Images from the residuals of a lossless median predictor.

    A pixel is its residual plus `median(left, up, left + up - upleft)` mod 256; in the first row and column the one
    neighbour there is, at the corner 0. With three channels, red and blue are then kept less green, plus 128.

    Args:
        residuals: `uint8[C, N, H, W]`.

    Returns:
        `uint8[N, H, W, C]`.

    >>> unpack(np.array([7, 1, 2, 0], np.uint8).reshape(1, 1, 2, 2))[0, :, :, 0].tolist()
    [[7, 8], [9, 9]]

    Reference: Weinberger et al., "The LOCO-I lossless image compression algorithm", IEEE TIP 2000, equation 1.
    """
    if residuals.dtype != np.uint8 or residuals.ndim != 4:
        raise ValueError(f"residuals are {residuals.dtype}{list(residuals.shape)}; expected uint8 [C, N, H, W]")
    v = np.ascontiguousarray(residuals.transpose(2, 3, 0, 1))  # pixel after pixel, each for all images at once
    for i in range(v.shape[0]):
        for j in range(v.shape[1]):
            if i and j:
                left, up = v[i, j - 1].astype(np.int16), v[i - 1, j].astype(np.int16)
                slope = left + up - v[i - 1, j - 1]
                v[i, j] += np.clip(slope, np.minimum(left, up), np.maximum(left, up)).astype(np.uint8)
            elif i or j:
                v[i, j] += v[i - 1, j] if i else v[i, j - 1]
    if v.shape[2] == 3:
        v[:, :, ::2] += v[:, :, 1:2] - np.uint8(128)
    return np.ascontiguousarray(v.transpose(3, 0, 1, 2))
