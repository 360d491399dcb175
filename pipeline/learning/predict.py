"""A photo-z net applied to images: PDFs, features and colours, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from pipeline import metrics, run
from pipeline.images.reader import ImageSet
from pipeline.learning.augment import centre, e_bv_of
from pipeline.learning.batches import Batch, in_order
from pipeline.learning.colours import measure
from pipeline.learning.redshift import PhotozNet, summary

BATCH = 256
"""Images at a time."""
COLUMNS = {
    "objID": "int64", "split": "object", "z": "float64", "z_phot": "float64",
    "z_width": "float64", "crps": "float64", "pit": "float64",
}  # fmt: skip
"""Of `predictions`."""


@dataclass(frozen=True)
class Output:
    """What a net says of n images."""

    index: np.ndarray
    """(n,) rows of the image set."""
    objid: np.ndarray
    """(n,) int64."""
    pdf: np.ndarray
    """(n, bins) float64, rows sum to 1."""
    features: np.ndarray
    """(n, D) float32, of the stamp as it is."""
    colours: np.ndarray
    """(n, 5) float64, `colours.measure` of the dereddened stamp."""


@torch.no_grad()
def apply(
    net: PhotozNet, part: Batch, deredden: bool, turns: int, device: torch.device | str
) -> Output:
    """What `net`, in evaluation mode on `device`, says of a batch; see `outputs`."""
    crop = net.encoder.spec.crop
    stamps, extinction = part.images.to(device), part.extinction.to(device)
    stamps, e_bv = stamps.to(net.fc.weight.dtype), e_bv_of(extinction)
    pdf = 0.0
    for turn in range(turns):
        seen = net.encoder(centre(stamps, extinction, crop, deredden, turn), e_bv)
        if turn == 0:
            features = seen
        pdf = pdf + net.fc(seen).double().softmax(dim=1) / turns
    clean = centre(stamps, extinction, crop, True)
    return Output(
        part.index, part.objid, pdf.cpu().numpy(), features.float().cpu().numpy(),
        measure(clean).double().cpu().numpy(),
    )  # fmt: skip


def outputs(
    net: PhotozNet,
    images: ImageSet,
    deredden: bool = True,
    turns: int = 1,
    batch: int = BATCH,
    workers: int = 0,
    device: torch.device | str = "cpu",
    label: str = "",
) -> Iterator[Output]:
    """Apply `net`, put in evaluation mode, to all of `images` in their order.

    PDFs are averaged over the first `turns` of the eight turns of the square (rotations by 90
    degrees and their mirror images). `label` begins the progress lines; none without it.
    """
    net = net.to(device).eval()
    progress = run.Progress(label, len(images), "galaxies") if label else None
    for part in in_order(images, batch, workers):
        yield apply(net, part, deredden, turns, device)
        if progress:
            progress.add(len(part.index))
    if progress:
        progress.close()


def predictions(net: PhotozNet, images: ImageSet, **options) -> pd.DataFrame:
    """Photo-z of the galaxies of `images`, which have redshifts, sorted by objID.

    Columns: objID (int64), split, and in float64 z, z_phot, z_width, crps and pit. `options` are
    those of `outputs`.
    """
    parts = [pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})]
    for output in outputs(net, images, **options):
        table = images.table.iloc[output.index]
        z = table["z"].to_numpy(dtype=np.float64)
        found = summary(output.pdf, net.bins)
        edges = net.bins.edges
        parts.append(
            pd.DataFrame(
                {
                    "objID": output.objid, "split": table["split"].to_numpy(), "z": z,
                    "z_phot": found["z_phot"], "z_width": found["z_width"],
                    "crps": metrics.crps(output.pdf, edges, z),
                    "pit": metrics.pit(output.pdf, edges, z),
                }
            )
        )  # fmt: skip
    filled = parts[1:] or parts  # pandas takes the types of empty tables into account
    return pd.concat(filled).sort_values("objID", ignore_index=True)
