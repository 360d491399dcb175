"""Principal components of the images: a representation that nothing has been learnt for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from pipeline.images.reader import ImageSet
from pipeline.learning.augment import centre
from pipeline.learning.batches import in_order
from pipeline.learning.encoder import Encoder
from pipeline.run import UserError
from pipeline.survey.hashing import mix64

MOST = 20000
"""Images, at most, that the components are those of, chosen by a hash."""
MOST_VALUES = 8192
"""Numbers of an image, at most: the work grows with their cube."""
_BATCH = 256


def pixels(images: ImageSet, encoder: Encoder, deredden: bool = True) -> np.ndarray:
    """What the net of `encoder` is given of each image, a row each: (n, bands side^2) float32."""
    rows = _blocks(images, encoder, deredden)
    return np.concatenate([np.empty((0, encoder.spec.values), np.float32), *rows])


def project(
    images: ImageSet, encoder: Encoder, mean: np.ndarray, axes: np.ndarray, deredden: bool = True
) -> np.ndarray:
    """`images` along `components`, (n, count) float32; not all pixels are in memory at a time."""
    with threadpool_limits(torch.get_num_threads()):
        rows = [(block - mean) @ axes.T for block in _blocks(images, encoder, deredden)]
    return np.concatenate([np.empty((0, len(axes)), np.float32), *rows])


@torch.no_grad()
def _blocks(images: ImageSet, encoder: Encoder, deredden: bool) -> Iterator[np.ndarray]:
    for part in in_order(images, _BATCH):
        crop = centre(part.images, part.extinction, encoder.spec.crop, deredden)
        yield encoder.prepared(crop.float()).flatten(1).numpy()


def components(
    images: ImageSet, encoder: Encoder, count: int, deredden: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """(mean (d,), axes (count, d)) float32: the principal components of `images`.

    Raises:
        UserError: fewer images, or fewer pixels, than components; or too many pixels.
    """
    if encoder.spec.values > MOST_VALUES:
        raise UserError(f"components: of images of {encoder.spec.values} numbers they take too "
                        f"long; give a larger bin or fewer bands, {MOST_VALUES} at "
                        "most")  # fmt: skip
    chosen = images.take(np.sort(np.argsort(mix64(images.objid), kind="stable")[:MOST]))
    most = min(len(chosen), encoder.spec.values)
    if not 1 <= count <= most:
        raise UserError(f"components: {count}, but {len(chosen)} images of "
                        f"{encoder.spec.values} pixels have {most} at most; give fewer, 1 or "
                        "more")  # fmt: skip
    with threadpool_limits(torch.get_num_threads()):  # the same digits on any number of cores
        found = PCA(count, svd_solver="covariance_eigh").fit(pixels(chosen, encoder, deredden))
    return found.mean_.astype(np.float32), found.components_.astype(np.float32)
