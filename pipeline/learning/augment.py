"""What is done to stamps before a net sees them, a batch at a time on its device.

The order is that of Hayat et al. 2020: extinction, rotation, jitter and crop, noise. Every draw
follows from a view's key alone, which follows from seed, epoch, galaxy and number of the view:
the same view comes out in whatever batch, rank or resumed run it is made.

Pixel (row, column) of a stamp of odd size S has its galaxy at c = S // 2, and at crop // 2 of the
crop. A rotation by a positive angle takes light on the +column side of the galaxy to its +row
side: as drawn north up (row 0 at the bottom), counter-clockwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from pipeline.run import UserError
from pipeline.survey.extinction import R_DR12, R_SF11
from pipeline.survey.hashing import draw, mix64

_E_BV, _ANGLE, _ROW, _COLUMN, _FLIP, _SCALE, _NOISE = range(1, 8)
"""What each draw of a view's key is hashed with."""
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
"""SplitMix64's increment and factors (Steele, Lea & Flood 2014), as signed integers."""


TURNS = (1, 8)
"""Of how many of the square's eight turns (`centre`) an average may be taken."""


def check_crop(crop: int, size: int) -> None:
    """Refuse a crop that does not fit stamps of `size` pixels.

    Raises:
        UserError: it is larger.
    """
    if crop > size:
        raise UserError(f"crop: {crop} px do not fit in stamps of {size} px")


def view_keys(seed: int, epoch: int, objid: np.ndarray, view: int) -> np.ndarray:
    """What all draws of a view follow from: uint64, one for each objID (n,)."""
    return mix64(mix64(mix64(objid, seed), epoch + 1), view + 1)


def refuse_wrong(settings: Iterable[tuple[str, object, bool, str]]) -> None:
    """UserError at the first of (name, value, whether it is good, what to give) that is not."""
    for name, value, good, range_ in settings:
        if not good:
            raise UserError(f"{name}: {value}; give {range_}")


def refuse_noise(noise: tuple[float, float] | None, mad: tuple[float, ...] | None) -> None:
    """UserError where noise is asked for, and not known how much that is."""
    if noise is not None and mad is None:
        raise UserError(
            "noise: is scaled by the bands' MAD, which this set is without; give a "
            "dataset.json, or switch noise off"
        )


@dataclass(frozen=True)
class Augmentation:
    """A random view of each stamp of a batch; what is drawn depends on its key.

    `crop` [pixels]; `deredden` by the stamp's own extinction; redden by E(B-V) from
    U(0, `max_e_bv`) [mag]; `rotate` by an angle from U(0, 360 deg), bilinear, zero outside;
    shift the crop by whole pixels from -`jitter` to `jitter` in each axis; add Gaussian noise of
    s times `mad` (5,) in each band, s from U(*`noise`). With `flips`, half of the views are
    mirrored (columns reversed about the galaxy) before they are rotated.

    Raises:
        UserError: `noise` without `mad`, or values that make no sense.
    """

    crop: int = 64
    deredden: bool = True
    max_e_bv: float = 0.0
    rotate: bool = True
    jitter: int = 7
    noise: tuple[float, float] | None = None
    flips: bool = False
    mad: tuple[float, ...] | None = None

    def __post_init__(self):
        low, high = self.noise or (0, 0)
        refuse_wrong((
            ("crop", self.crop, self.crop >= 1, "1 or more pixels"),
            ("jitter", self.jitter, 0 <= self.jitter < math.inf, "0 or more whole pixels"),
            ("max-e-bv", self.max_e_bv, 0 <= self.max_e_bv < math.inf,
             "0 or more magnitudes, a finite number"),
            ("noise", self.noise, 0 <= low <= high < math.inf,
             "two finite factors of the MAD, the smaller first"),
        ))  # fmt: skip
        refuse_noise(self.noise, self.mad)

    def __call__(
        self, images: torch.Tensor, extinction: torch.Tensor, keys: np.ndarray
    ) -> torch.Tensor:
        """Views (n, 5, crop, crop) of images (n, 5, S, S) [nanomaggies], float32.

        `extinction` (n, 5) [mag] is DR12's, NaN where unknown; `keys` are `view_keys`. Images of
        float64 stay float64.

        Raises:
            UserError: the crop does not fit the stamps.
        """
        check_crop(self.crop, images.shape[-1])
        images = _floating(images)
        mirror = draw(keys, _FLIP) < 0.5 if self.flips else np.zeros(len(keys), dtype=bool)
        shift = np.stack([_whole(draw(keys, axis), self.jitter) for axis in (_ROW, _COLUMN)], 1)
        if self.rotate:
            views = turned(images, 2 * np.pi * draw(keys, _ANGLE), shift, mirror, self.crop)
        else:
            views = shifted(images, shift, mirror, self.crop)
        e_bv = torch.as_tensor(self.max_e_bv * draw(keys, _E_BV), device=images.device)
        # light adds up: a band's factor may come after the rotation, on fewer pixels
        views *= reddening(extinction.to(images.device), e_bv, self.deredden).to(views.dtype)
        if self.noise is not None:
            low, high = self.noise
            scale = low + (high - low) * draw(keys, _SCALE)
            scale = scale[:, None] * np.asarray(self.mad)
            scale = torch.as_tensor(scale, dtype=views.dtype, device=views.device)
            count = math.prod(views.shape[1:])
            noise = normal(mix64(keys, _NOISE), count, views.dtype, views.device)
            views += scale[:, :, None, None] * noise.reshape(views.shape)
        return views


def centre(
    images: torch.Tensor,
    extinction: torch.Tensor,
    crop: int = 64,
    deredden: bool = True,
    turn: int = 0,
) -> torch.Tensor:
    """The central crop (n, 5, crop, crop) of images (n, 5, S, S), the galaxy on crop // 2.

    `turn` is one of the square's eight: `turn` % 4 quarter turns (in the sense of this module),
    after mirroring the columns where it is 4 or more; the stamp is turned about its galaxy and
    then cropped. float32, or float64 where the images are.

    Raises:
        UserError: the crop does not fit the stamps.
    """
    check_crop(crop, images.shape[-1])
    images = _floating(images)
    if turn >= 4:
        images = images.flip(3)
    # torch turns from the first of the two axes towards the second
    images = torch.rot90(images, -(turn % 4), (2, 3))
    first = images.shape[-1] // 2 - crop // 2
    images = images[:, :, first : first + crop, first : first + crop]
    none = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    factor = reddening(extinction.to(images.device), none, deredden)
    return images * factor.to(images.dtype)


def reddening(extinction: torch.Tensor, e_bv: torch.Tensor, deredden: bool) -> torch.Tensor:
    """Factor (n, 5, 1, 1) of the flux: 10^(0.4 R_b (E_SFD - E)), with E_SFD = 0 unless `deredden`.

    `e_bv` (n,) is E, the dust put on top. E_SFD is the mean over bands of A_b / R_b of DR12, of
    `extinction` (n, 5); R_b of Schlafly & Finkbeiner 2011 turn both into magnitudes.
    """
    sf11 = torch.as_tensor(R_SF11, device=e_bv.device)
    taken = torch.zeros_like(e_bv)
    if deredden:
        taken = torch.nan_to_num(e_bv_of(extinction.to(e_bv.dtype)), nan=0.0)
    return torch.pow(10.0, 0.4 * (taken - e_bv)[:, None] * sf11)[:, :, None, None]


def e_bv_of(extinction: torch.Tensor) -> torch.Tensor:
    """E(B-V) (n,) [mag], float64, of DR12's `extinction` (n, 5) [mag]; NaN where that is unknown.

    As `survey.extinction.e_bv`: the mean over bands of A_b / R_b (SFD98).
    """
    ratios = extinction.double() / torch.as_tensor(R_DR12, device=extinction.device)
    return ratios.mean(1)


def turned(
    images: torch.Tensor, angle: np.ndarray, shift: np.ndarray, mirror: np.ndarray, crop: int
) -> torch.Tensor:
    """Crops of stamps mirrored where `mirror`, turned by `angle` [rad], shifted by `shift`.

    One bilinear interpolation with zeros beyond the stamp. `shift` (n, 2) is where the crop's
    centre lies from the galaxy, in rows and columns of the turned stamp.
    """
    size, device, dtype = images.shape[-1], images.device, images.dtype
    steps = np.arange(crop) - crop // 2
    row, column = (steps + shift[:, axis, None] for axis in (0, 1))
    cos, sin = np.cos(angle), np.sin(angle)
    sign = np.where(mirror, -1.0, 1.0)
    # place in the stamp, from its centre, as a sum of a part by row and a part by column, in
    # grid_sample's units: 2 / S a pixel, so that pixel centres are met exactly
    parts = [
        part * (2 / size)
        for part in ((sign * sin)[:, None] * row, (sign * cos)[:, None] * column,
                     cos[:, None] * row, -sin[:, None] * column)
    ]  # fmt: skip
    x_row, x_column, y_row, y_column = (
        torch.as_tensor(part, dtype=dtype, device=device) for part in parts
    )
    grid = torch.stack(
        [x_row[:, :, None] + x_column[:, None, :], y_row[:, :, None] + y_column[:, None, :]], dim=-1
    )
    return functional.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)


def shifted(images: torch.Tensor, shift: np.ndarray, mirror: np.ndarray, crop: int) -> torch.Tensor:
    """As `turned` with no angle: crops by whole pixels, exact; zeros beyond the stamp."""
    size, device = images.shape[-1], images.device
    margin = max(0, int(np.abs(shift).max(initial=0)) + crop // 2 - size // 2)
    if margin:
        images = functional.pad(images, (margin, margin, margin, margin))
    steps = np.arange(crop) - crop // 2
    sign = np.where(mirror, -1, 1)[:, None]
    middle = size // 2 + margin
    row = torch.as_tensor(middle + steps + shift[:, 0, None], device=device)
    column = torch.as_tensor(middle + sign * (steps + shift[:, 1, None]), device=device)
    each = torch.arange(len(images), device=device)[:, None, None]
    # the slice between indices moves the bands last
    return images[each, :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2).contiguous()


def normal(
    keys: np.ndarray, count: int, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """Standard normal numbers (n, `count`), a stream for each key (n,) uint64.

    Each key starts a SplitMix64 sequence, computed by its counter on the device; the halves of
    its i-th number give the i-th and the (count / 2 + i)-th deviate (Box & Muller 1958).
    """
    half = (count + 1) // 2
    state = torch.as_tensor(np.ascontiguousarray(keys).view(np.int64), device=device)
    counter = torch.arange(1, half + 1, device=device) * _GAMMA
    numbers = torch.empty((len(state), 2 * half), dtype=dtype, device=device)
    # a few rows at a time stay in a processor's cache: 2.5 times faster there
    rows = len(state) if numbers.is_cuda else 4
    for first in range(0, len(state), max(rows, 1)):
        part = slice(first, first + rows)
        bits = state[part, None] + counter
        for shift, factor in ((30, _MIX[0]), (27, _MIX[1])):
            bits = (bits ^ _right(bits, shift)).mul_(factor)
        bits ^= _right(bits, 31)
        radius = _right(bits, 32).to(dtype).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = bits.bitwise_and_(0xFFFFFFFF).to(dtype).mul_(2 * math.pi * 2.0**-32)
        torch.mul(radius, torch.cos(angle), out=numbers[part, :half])
        torch.mul(radius, angle.sin_(), out=numbers[part, half:])
    return numbers[:, :count]


def _right(bits: torch.Tensor, count: int) -> torch.Tensor:
    """A logical shift to the right; torch's of a signed integer brings the sign in."""
    return (bits >> count).bitwise_and_((1 << (64 - count)) - 1)


def _whole(uniform: np.ndarray, reach: int) -> np.ndarray:
    """A whole number from -reach to reach, each as likely, from one in [0, 1)."""
    return np.floor(uniform * (2 * reach + 1)).astype(np.int64) - reach


def _floating(images: torch.Tensor) -> torch.Tensor:
    return images if images.dtype == torch.float64 else images.to(torch.float32)
