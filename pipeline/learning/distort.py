"""Distortions of stamps for SimCLR, a batch at a time on its device.

After Sarmiento et al. 2020: rotation and flip always; zoom, off-centre crop, blur, colour
distortion, noise and cut-out each with probability one half. The poster names them and gives no
strengths; where the authors' later code has some (MaNGA, Sarmiento et al. 2021), those are the
defaults of zoom, blur and cut-out; the others are ours. All is done to nanomaggies, before an
encoder scales its input. As in `augment`, every draw follows from a view's key alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from pipeline.learning.augment import (
    check_crop,
    normal,
    reddening,
    refuse_noise,
    refuse_wrong,
)
from pipeline.survey.hashing import draw, mix64

CHANCE = 0.5
"""Of each distortion but rotation and flip."""
(_ANGLE, _FLIP, _ZOOMS, _ZOOM, _MOVES, _ROW, _COLUMN, _BLURS, _BLUR, _COLOURS, _COLOUR,
 _NOISES, _SCALE, _NOISE, _CUTS, _SIDE, _TOP, _LEFT) = range(101, 119)  # fmt: skip
"""What each draw of a view's key is hashed with; none of `augment`'s."""
_SIGMAS = 3
"""A blur's kernel ends so many of the largest standard deviations from its middle."""


@dataclass(frozen=True)
class Distortion:
    """A random view of each stamp of a batch; what is drawn depends on its key.

    In their order, each by chance but the first:

    - the stamp is turned by an angle from U(0, 360 deg), half of the views mirrored before;
    - zoom: the crop spans s times its side of sky, log s uniform between the logs of `zoom`: below
      1 in, above 1 out (the stamp has the sky around, so nothing is padded until it ends);
    - off-centre: the crop is shifted by whole pixels from -`jitter` to `jitter` in each axis;
    - blur: by a Gaussian of sigma from U(*`blur`) pixels of the net's input, edges repeated;
    - the stamp's own dust is taken off where `deredden` (always);
    - colour: the flux of each band times its own factor from U(1 - `colour`, 1 + `colour`);
    - noise: Gaussian, s times `mad` (5,) in each band, s from U(*`noise`);
    - cut-out: a square of zeros in all bands, anywhere within the crop, of `cutout` whole pixels
      of the net's input along its side.

    One pixel of the net's input is `bin` of the `crop`. Turning, zoom and shift are one bilinear
    interpolation, zero beyond the stamp. (1, 1), 0, or None switch a distortion off.

    Raises:
        UserError: `noise` without `mad`, or values that make no sense.
    """

    crop: int = 64
    bin: int = 2
    deredden: bool = True
    zoom: tuple[float, float] = (0.75, 1.5)
    jitter: int = 7
    blur: tuple[float, float] | None = (0.1, 2.0)
    colour: float = 0.2
    noise: tuple[float, float] | None = None
    cutout: tuple[int, int] | None = (2, 10)
    mad: tuple[float, ...] | None = None

    def __post_init__(self):
        blur, noise, cut = (each or (0, 0) for each in (self.blur, self.noise, self.cutout))
        refuse_wrong((
            ("crop", self.crop, self.crop >= 1, "1 or more pixels"),
            ("bin", self.bin, self.bin >= 1, "1 or more pixels"),
            ("zoom", self.zoom, 0 < self.zoom[0] <= self.zoom[1] < math.inf,
             "two factors of the crop's side above 0, the smaller first"),
            ("jitter", self.jitter, 0 <= self.jitter < math.inf, "0 or more whole pixels"),
            ("blur", self.blur, self.blur is None or 0 < blur[0] <= blur[1] <= self.crop,
             "two widths above 0 and up to the crop's, the smaller first"),
            ("colour", self.colour, 0 <= self.colour < 1, "0 or more, and less than 1"),
            ("noise", self.noise, 0 <= noise[0] <= noise[1] < math.inf,
             "two finite factors of the MAD, the smaller first"),
            ("cutout", self.cutout, 0 <= cut[0] <= cut[1] and cut[1] * self.bin <= self.crop,
             f"two sides in pixels of the net's input, {self.crop // max(self.bin, 1)} or less, "
             "the smaller first"),
        ))  # fmt: skip
        refuse_noise(self.noise, self.mad)

    def __call__(
        self, images: torch.Tensor, extinction: torch.Tensor, keys: np.ndarray
    ) -> torch.Tensor:
        """Views (n, 5, crop, crop) of images (n, 5, S, S) [nanomaggies], float32.

        `extinction` (n, 5) [mag] is DR12's, NaN where unknown; `keys` are `augment.view_keys`.
        Images of float64 stay float64.

        Raises:
            UserError: the crop does not fit the stamps.
        """
        check_crop(self.crop, images.shape[-1])
        images = images if images.dtype == torch.float64 else images.to(torch.float32)
        views = self._moved(images, keys)
        self._blur(views, keys)
        none = torch.zeros(len(keys), dtype=torch.float64, device=views.device)
        factor = reddening(extinction.to(views.device), none, self.deredden)
        factor = factor * torch.as_tensor(self._colours(keys), device=views.device)
        views *= factor.to(views.dtype)
        self._add_noise(views, keys)
        self._cut(views, keys)
        return views

    def _moved(self, images: torch.Tensor, keys: np.ndarray) -> torch.Tensor:
        """Turned, mirrored, zoomed, shifted and cropped."""
        low, high = self.zoom
        side = np.exp(math.log(low) + (math.log(high) - math.log(low)) * draw(keys, _ZOOM))
        side = np.where(chosen(keys, _ZOOMS), side, 1.0)
        shift = [np.floor(draw(keys, axis) * (2 * self.jitter + 1)) - self.jitter
                 for axis in (_ROW, _COLUMN)]  # fmt: skip
        shift = np.stack(shift, axis=1) * chosen(keys, _MOVES)[:, None]
        mirror = draw(keys, _FLIP) < 0.5
        return warped(images, 2 * np.pi * draw(keys, _ANGLE), side, shift, mirror, self.crop)

    def _blur(self, views: torch.Tensor, keys: np.ndarray) -> None:
        rows = np.flatnonzero(chosen(keys, _BLURS))
        if self.blur is None or not len(rows):
            return
        low, high = self.blur
        sigma = self.bin * (low + (high - low) * draw(keys[rows], _BLUR))
        reach = math.ceil(_SIGMAS * self.bin * high)
        rows = torch.as_tensor(rows, device=views.device)
        views[rows] = blurred(views[rows], sigma, reach)

    def _colours(self, keys: np.ndarray) -> np.ndarray:
        """Factors of the flux (n, 5, 1, 1)."""
        by_band = mix64(keys, _COLOUR)
        offset = np.stack([2 * draw(by_band, band) - 1 for band in range(1, 6)], axis=1)
        factor = 1 + self.colour * offset * chosen(keys, _COLOURS)[:, None]
        return factor[:, :, None, None]

    def _add_noise(self, views: torch.Tensor, keys: np.ndarray) -> None:
        rows = np.flatnonzero(chosen(keys, _NOISES))
        if self.noise is None or not len(rows):
            return
        low, high = self.noise
        scale = low + (high - low) * draw(keys[rows], _SCALE)
        scale = torch.as_tensor(scale[:, None] * np.asarray(self.mad), dtype=views.dtype)
        count = math.prod(views.shape[1:])
        noise = normal(mix64(keys[rows], _NOISE), count, views.dtype, views.device)
        noise = noise.reshape(len(rows), *views.shape[1:])
        rows = torch.as_tensor(rows, device=views.device)
        views[rows] += scale.to(views.device)[:, :, None, None] * noise

    def _cut(self, views: torch.Tensor, keys: np.ndarray) -> None:
        if self.cutout is None:
            return
        low, high = self.cutout
        side = self.bin * (low + np.floor(draw(keys, _SIDE) * (high - low + 1)))
        side = side * chosen(keys, _CUTS)
        place = np.arange(self.crop)
        within = []
        for label in (_TOP, _LEFT):
            first = np.floor(draw(keys, label) * (self.crop - side + 1))[:, None]
            flags = (place >= first) & (place < first + side[:, None])
            within.append(torch.as_tensor(flags, device=views.device))
        views.masked_fill_((within[0][:, :, None] & within[1][:, None, :])[:, None], 0.0)


def chosen(keys: np.ndarray, label: int) -> np.ndarray:
    """A mask (n,): which views have the distortion whose chance is hashed with `label`."""
    return draw(keys, label) < CHANCE


def warped(
    images: torch.Tensor, angle: np.ndarray, side: np.ndarray, shift: np.ndarray,
    mirror: np.ndarray, crop: int,
) -> torch.Tensor:  # fmt: skip
    """As `augment.turned`, of crops whose pixels lie `side` (n,) pixels of the stamp apart.

    `shift` (n, 2), in pixels of the turned stamp, is where the crop's centre lies from the galaxy.
    """
    size, device = images.shape[-1], images.device
    steps = np.arange(crop) - crop // 2
    row, column = (side[:, None] * steps + shift[:, axis, None] for axis in (0, 1))
    cos, sin = (each[:, None] * (2 / size) for each in (np.cos(angle), np.sin(angle)))
    sign = np.where(mirror, -1.0, 1.0)[:, None]
    # place in the stamp from its centre, in grid_sample's units: 2 / S a pixel
    parts = (sign * sin * row, sign * cos * column, cos * row, -sin * column)
    x_row, x_column, y_row, y_column = (
        torch.as_tensor(part, dtype=images.dtype, device=device) for part in parts
    )
    grid = torch.stack(
        [x_row[:, :, None] + x_column[:, None, :], y_row[:, :, None] + y_column[:, None, :]], dim=-1
    )
    return functional.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)


def blurred(images: torch.Tensor, sigma: np.ndarray, reach: int) -> torch.Tensor:
    """Images (n, 5, h, w) under Gaussians of `sigma` (n,) [pixels], cut off beyond `reach` pixels.

    Edges are repeated outwards. Sums are taken a pixel of the kernel at a time, so that an image
    comes out the same in whatever batch it is.
    """
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    weights = torch.as_tensor(weights, dtype=images.dtype, device=images.device)
    out = torch.empty_like(images)
    # a few at a time stay in a processor's cache
    count = max(len(images), 1) if images.is_cuda else 4
    for first in range(0, len(images), count):
        part = slice(first, first + count)
        out[part] = _along(_along(images[part], weights[part], 2), weights[part], 3)
    return out


def _along(images: torch.Tensor, weights: torch.Tensor, axis: int) -> torch.Tensor:
    """The weighted sum (n, 2 reach + 1) of neighbours along one axis."""
    reach, size = weights.shape[1] // 2, images.shape[axis]
    margin = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
    wide = functional.pad(images, margin, mode="replicate")
    total = torch.zeros_like(images)
    for at in range(weights.shape[1]):
        total.addcmul_(weights[:, at, None, None, None], wide.narrow(axis, at, size))
    return total
