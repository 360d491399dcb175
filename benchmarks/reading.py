"""How fast stamps reach a net: reading, augmentation and training, against the paper's way.

Shards of random stamps are made in a temporary folder and read from memory's page cache: what is
measured is the work of processors, not a disk. Every route is run with no worker (one process
does everything), with one and with two that read ahead; torch has one thread, or
`--threads`.

The paper's way is that of its released loader: an image at a time in NumPy, read, dereddened,
rotated (skimage where it is installed, else scipy, both bilinear), jittered and cropped by the
workers. Training is forward and backward of a ResNet10 of width 0.25 on 2 x 2 binned crops. The
last line is one line of JSON with all figures.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import measure
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline import run
from pipeline.images.reader import ImageSet, open_set
from pipeline.images.shard import ShardWriter
from pipeline.images.stamp import Stamp
from pipeline.learning.augment import Augmentation, view_keys
from pipeline.learning.batches import Batches, in_order
from pipeline.learning.encoder import Encoder, EncoderSpec
from pipeline.survey.extinction import R_DR12, R_SF11
from pipeline.survey.names import BANDS, pack_objid

MAD = (0.02, 0.01, 0.015, 0.025, 0.09)
WORKERS = (0, 1, 2)
VIEWS = {
    "supervised": Augmentation(),
    "moco": Augmentation(max_e_bv=0.5, noise=(1, 3), mad=MAD, flips=True),
}


def make_shards(folder: Path, count: int, shards: int) -> list[Path]:
    """`count` stamps of 107 px of noise, float32, in `shards` shards of unequal length."""
    random, stamp = np.random.default_rng(0), Stamp()
    ends = np.linspace(0, 1, shards + 1) ** 1.2 * count
    paths = []
    for number, (first, last) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        rows = np.arange(int(first), int(last))
        table = pd.DataFrame({"objID": pack_objid(3900, 3, 100 + number, rows), "z": 0.1})
        for band, r in zip(BANDS, R_DR12, strict=True):
            table[f"extinction_{band}"] = r * random.uniform(0, 0.1, len(rows))
        paths.append(folder / f"{number:04d}.h5")
        with ShardWriter(paths[-1], table, stamp) as writer:
            for row in range(len(rows)):
                image = random.normal(0, 0.03, (len(BANDS), stamp.size, stamp.size))
                writer.append(row, {"images": image}, np.ones(5), np.full(5, 0.03))
    return paths


class PaperWay(Dataset):
    """A view of one image a time, made in NumPy by whoever reads it."""

    def __init__(self, paths: list[Path], crop: int = 64, jitter: int = 7):
        self.paths, self.crop, self.jitter = paths, crop, jitter
        self.places = []
        for path in paths:
            with h5py.File(path) as file:
                self.places += [(path, row) for row in range(len(file["images"]))]
        self.files: dict[Path, h5py.File] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> torch.Tensor:
        path, row = self.places[number]
        if path not in self.files:
            self.files[path] = h5py.File(path, "r")
        image, extinction = self.files[path]["images"][row], self.files[path]["e_bv"][row]
        factor = 10 ** (0.4 * R_SF11 * np.mean(extinction / R_DR12))
        image = (image * factor[:, None, None]).astype(np.float32)
        image = rotated(image, np.random.uniform(0, 360))  # noqa: NPY002
        shift = np.random.randint(-self.jitter, self.jitter + 1, 2)  # noqa: NPY002
        row, column = shift + image.shape[-1] // 2 - self.crop // 2
        view = image[:, row : row + self.crop, column : column + self.crop]
        return torch.from_numpy(np.ascontiguousarray(view))


def rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """`image` (5, S, S) rotated about its centre, bilinear, zeros outside."""
    if importlib.util.find_spec("skimage"):
        from skimage.transform import rotate

        return rotate(image.transpose(1, 2, 0), degrees).transpose(2, 0, 1)
    from scipy import ndimage

    return ndimage.rotate(image, degrees, axes=(1, 2), reshape=False, order=1)


def by_us(images: ImageSet, batch: int, workers: int, view: Augmentation) -> Iterator[torch.Tensor]:
    """Views of one epoch, made a batch at a time."""
    batches = Batches(images, batch, seed=0, workers=workers, memory_gb=0)
    for one in batches.steps(0, batches.steps_per_epoch):
        yield view(one.images, one.extinction, view_keys(0, one.epoch, one.objid, 0))


def by_paper(paths: list[Path], batch: int, workers: int) -> Iterator[torch.Tensor]:
    """Views of one epoch, made an image at a time."""
    loader = DataLoader(
        PaperWay(paths), batch, shuffle=True, drop_last=True, num_workers=workers
    )  # fmt: skip
    yield from loader


def trainer(crop: int = 64) -> Callable[[torch.Tensor], None]:
    """A step of training on a batch of views: forward and backward of a small net."""
    torch.manual_seed(0)
    net = Encoder(EncoderSpec(net="resnet10", width=0.25, crop=crop, bin=2))

    def step(views: torch.Tensor) -> None:
        net.zero_grad()
        net(views).square().mean().backward()

    return step


def rate(make: Callable[[], Iterator[torch.Tensor]], repeats: int) -> dict[str, float]:
    """Images/s on the clock (the best of `repeats` epochs) and processor ms per image.

    The clock starts with the first batch: an epoch of the real thing is long, and the start of
    its workers nothing.
    """

    def through() -> measure.Cost:
        views = make()
        next(views)
        count, cost = measure.timed(lambda: sum(len(each) for each in views))
        return cost.per(count)

    best = min((through() for _ in range(repeats)), key=lambda each: each.wall)
    return {"images_per_s": round(1 / best.wall, 1), "cpu_ms": round(1e3 * best.cpu, 3)}


def race(paths: list[Path], batch: int, repeats: int) -> dict[str, dict[int, dict[str, float]]]:
    """Figures of each route for each number of workers."""
    images, step = open_set(paths), trainer()
    few = images.take(np.arange(min(len(images), 8 * batch)))

    def trained(views: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        for each in views:
            step(each)
            yield each

    def reading(workers: int) -> Iterator[torch.Tensor]:
        batches = Batches(images, batch, seed=0, workers=workers, memory_gb=0)
        return (one.images for one in batches.steps(0, batches.steps_per_epoch))

    routes = {
        "reader, in order": lambda workers: (
            one.images for one in in_order(images, batch, workers)
        ),
        "reader, at random": reading,
        **{
            f"reader + {name} views": functools.partial(by_us, images, batch, view=view)
            for name, view in VIEWS.items()
        },
        "the paper's way": lambda workers: by_paper(paths, batch, workers),
        "reader + views + training": lambda workers: trained(
            by_us(few, batch, workers, VIEWS["supervised"])
        ),
    }
    figures: dict = {}
    progress = run.Progress("reading", len(routes) * len(WORKERS), "routes")
    for name, route in routes.items():
        for workers in WORKERS:
            found = rate(functools.partial(route, workers=workers), repeats)
            figures.setdefault(name, {})[workers] = found
            progress.add()
    return figures


def table(figures: dict) -> str:
    """The figures as text: images/s (processor ms per image) for each number of workers."""
    lines = [f"{'images/s (CPU ms an image)':28}" + "".join(f"{n:>12} workers" for n in WORKERS)]
    for name, found in figures.items():
        cells = [f"{one['images_per_s']:.0f} ({one['cpu_ms']:.2f})" for one in found.values()]
        lines.append(f"{name:28}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="stamps to make (2000)")
    parser.add_argument("--shards", type=int, default=4, help="files they lie in (4)")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch (64)")
    parser.add_argument("--repeats", type=int, default=3, help="epochs, the best counts (3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    args = parser.parse_args(argv)
    if args.threads < 1:
        raise run.UserError("--threads: give 1 or more")
    if min(args.batch, args.shards) < 1 or args.images < max(2 * args.batch, 4 * args.shards):
        raise run.UserError("--images: fewer than two batches or four a shard; give more")
    if args.repeats < 1:
        raise run.UserError("--repeats: give 1 or more")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = race(
            make_shards(Path(folder), args.images, args.shards), args.batch, args.repeats
        )
    gain = {
        workers: round(
            figures["reader + supervised views"][workers]["images_per_s"]
            / figures["the paper's way"][workers]["images_per_s"], 2,
        )
        for workers in WORKERS
    }  # fmt: skip
    print(table(figures))
    print("the same views over the paper's way: "
          + ", ".join(f"{gain[n]} times with {n} workers" for n in WORKERS))  # fmt: skip
    result = {
        "images": args.images,
        "batch": args.batch,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "rotation_of_the_paper_by": "skimage" if importlib.util.find_spec("skimage") else "scipy",
        "routes": figures,
        "gain": gain,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    run.start(main)
