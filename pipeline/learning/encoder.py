"""The encoder: stamps in nanomaggies -> pooled features; and the projection that is trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional

from pipeline.learning import sarmiento
from pipeline.learning.nets import NETS
from pipeline.learning.resnet import norms
from pipeline.run import UserError
from pipeline.survey.names import BANDS

SCALES = ("none", "asinh", "unit")


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is made of.

    `crop` is the side of its input [pixels], `bin` the side of the squares whose mean becomes one
    pixel of the net's input. `scale` "asinh" gives the net asinh(x / softening), with `softening`
    [nanomaggies] for each of the five bands: the set's MAD, say; "unit" what `unit` makes of an
    image. `bands` are those that the net sees, by their letters.
    """

    net: str = "resnet50"
    width: float = 1.0
    crop: int = 64
    bin: int = 1
    scale: str = "none"
    softening: tuple[float, ...] | None = None
    bands: str = BANDS

    def __post_init__(self):
        """Refuse what cannot be built.

        Raises:
            UserError: an unknown net, scale or band, or numbers that do not fit together.
        """
        if self.net not in NETS:
            raise UserError(f"net: {self.net}; give one of {', '.join(NETS)}")
        if not 0 < self.width <= 8:
            raise UserError(f"width: {self.width}; give a number above 0 and up to 8")
        if self.bin < 1 or self.crop < 1 or self.crop % self.bin:
            raise UserError(f"bin: {self.bin} does not divide crop {self.crop}; give one that does")
        least = NETS[self.net].least
        if self.side < least:
            raise UserError(f"crop {self.crop} binned by {self.bin} leaves {self.side} px; "
                            f"{self.net} needs {least} at least")  # fmt: skip
        if self.scale not in SCALES:
            raise UserError(f"scale: {self.scale}; give one of {', '.join(SCALES)}")
        known = set(self.bands) <= set(BANDS)
        if not (self.bands and known and len(set(self.bands)) == len(self.bands)):
            raise UserError(f"bands: {self.bands or 'none'}; give letters of {BANDS}, "
                            "each once")  # fmt: skip
        self._check_softening()

    @property
    def side(self) -> int:
        """Side of what the net itself is given [pixels]."""
        return self.crop // self.bin

    @property
    def values(self) -> int:
        """Numbers that the net itself is given of an image."""
        return len(self.bands) * self.side**2

    def _check_softening(self) -> None:
        if self.scale != "asinh":
            return
        if self.softening is None:
            raise UserError("scale: asinh needs the bands' MAD; give a dataset.json, which has it")
        if len(self.softening) != len(BANDS) or not min(self.softening) > 0:
            raise UserError(f"softening: {self.softening}; give five numbers above 0")

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint; as before there were others, where all bands are seen."""
        content = asdict(self)
        if self.bands == BANDS:
            del content["bands"]
        return content

    @classmethod
    def from_dict(cls, content: Mapping) -> EncoderSpec:
        """The inverse of `to_dict`."""
        content = dict(content)
        if content.get("softening") is not None:
            content["softening"] = tuple(content["softening"])
        return cls(**content)


class Encoder(nn.Module):
    """Images (n, 5, crop, crop) [nanomaggies] -> pooled features (n, feature_dim).

    `net` is one of `NETS`; a ResNet has torchvision's names. `groups`: see `GroupedBatchNorm`.
    """

    def __init__(self, spec: EncoderSpec, groups: int = 1):
        super().__init__()
        self.spec = spec
        self.net = NETS[spec.net].build(spec.width, groups, len(spec.bands), spec.side)
        self._lay_out(groups)
        self.feature_dim = self.net.feature_dim
        self._seen = [BANDS.index(band) for band in spec.bands]
        softening = spec.softening or (1.0,) * len(BANDS)
        softening = torch.tensor([softening[at] for at in self._seen], dtype=torch.float64)
        self.register_buffer("softening", softening.float()[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor, e_bv: torch.Tensor | None = None) -> torch.Tensor:
        """Pooled features of `images`; dereddened or not as the encoder was trained.

        `e_bv` (n,) [mag] is for nets that read it (`Net.dust`; `augment.e_bv_of` makes it), and
        0 for them where it is NaN or not given; others are not told.
        """
        images = self.prepared(images)
        if not NETS[self.spec.net].dust:
            return self.net(images)
        if e_bv is None:
            e_bv = images.new_zeros(len(images))
        return self.net(images, torch.nan_to_num(e_bv.to(images), nan=0.0))

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        """What the net itself is given of `images`: (n, bands, side, side), binned and scaled."""
        if self._seen != list(range(len(BANDS))):
            images = images[:, self._seen]
        if self.spec.bin > 1:
            images = functional.avg_pool2d(images, self.spec.bin)
        if self.spec.scale == "asinh":
            images = torch.asinh(images / self.softening)
        elif self.spec.scale == "unit":
            images = unit(images)
        return images.contiguous(memory_format=self._layout)

    def set_groups(self, groups: int) -> None:
        """Take batch statistics over `groups` groups of a batch from now on."""
        self._lay_out(groups)
        for norm in norms(self):
            norm.groups = groups

    def _lay_out(self, groups: int) -> None:
        """Channels last is 1.5 times faster on a CPU; normalising in groups would undo it."""
        self._layout = torch.contiguous_format if groups > 1 else torch.channels_last
        self.net.to(memory_format=self._layout)


def unit(images: torch.Tensor) -> torch.Tensor:
    """Each image (bands, h, w) mapped to [0, 1]: (x - min) / (max - min), one map for all bands.

    The least and the greatest value are those of all bands of the image together, after binning;
    so ratios between its bands' contrasts, its colours, stay, and its flux is lost: an image and
    any multiple of it, or it on another level of the sky, look the same. An image of one value
    becomes 0. After Sarmiento et al. 2020, who scale to [0, 1] and do not say over what.
    """
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    span = images.amax(dim=(1, 2, 3), keepdim=True) - low
    return (images - low) / torch.where(span == 0, 1, span)


class Projection(nn.Sequential):
    """MoCo v2's head: Linear(feature_dim, hidden), ReLU, Linear(hidden, dim).

    Chen et al. 2020 (arXiv:2003.04297); `hidden` is feature_dim where it is not given.
    """

    def __init__(self, feature_dim: int, dim: int = 128, hidden: int | None = None):
        hidden = hidden or feature_dim
        super().__init__(nn.Linear(feature_dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> nn.Sequential:
        """The head whose `state_dict` is `state`, its sizes taken from the shapes.

        A `sarmiento.Head` where the names are that one's.
        """
        if "dense1.weight" in state:
            return sarmiento.Head.from_state(state)
        hidden, feature_dim = state["0.weight"].shape
        head = cls(feature_dim, state["2.weight"].shape[0], hidden)
        head.load_state_dict(state)
        return head


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within this, torch's draws on the CPU follow from `seed`; its own state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
