"""Images -> an encoder, learnt without labels: MoCo v2."""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pipeline import run
from pipeline.images.reader import ImageSet, members, open_set
from pipeline.learning import moco
from pipeline.learning.augment import Augmentation, check_crop
from pipeline.learning.batches import Batches
from pipeline.learning.encoder import SCALES, EncoderSpec
from pipeline.learning.optimise import SCHEDULES
from pipeline.learning.pretraining import Plan, Run, Trainer
from pipeline.learning.probe import RidgeProbe
from pipeline.learning.ranks import DEVICES, Ranks, use_threads
from pipeline.learning.resnet import NETS

METHODS = ("moco",)
IMAGES = ("unlabelled", "train+unlabelled")
_NOT_IN_PRODUCT = ("accumulate", "checkpoint_seconds")
"""Fields of a Plan that a run may change on the way without changing what comes out."""


def pretrain(
    images: ImageSet,
    which: str,
    spec: EncoderSpec,
    view: Augmentation,
    plan: Plan,
    options: dict,
    output: str | Path,
    ranks: Ranks | None = None,
    workers: int = 0,
    memory_gb: float = 4.0,
    tensorboard: bool = False,
) -> Path | None:
    """Train an encoder by MoCo on the images `which` of a set; write encoder.pt and history.csv.

    `options` are MoCo's queue, momentum, temperature and groups; `view` makes both views. Goes on
    from the state that a killed run with the same settings left in `output`. Gives the path of
    encoder.pt, None on other ranks.

    Raises:
        UserError: settings that do not fit the set or one another; a loss that is not a number.
    """
    ranks = ranks or Ranks()
    check_crop(spec.crop, images.size)
    chosen = images.take(members(images, which))
    moco.check_groups(options["groups"], plan.batch)
    moco.check_queue(options["queue"], plan.batch, len(chosen))
    batches = Batches(
        chosen, plan.batch, plan.seed, workers, ranks.rank, ranks.ranks, memory_gb
    )  # fmt: skip
    method = moco.MoCo(spec, accumulate=plan.accumulate, seed=plan.seed, ranks=ranks, **options)
    settings = {
        "method": method.name, "images": which, "data": chosen.digest,
        "encoder": spec.to_dict(), "view": _view_dict(view), **options,
        **{name: value for name, value in asdict(plan).items() if name not in _NOT_IN_PRODUCT},
    }  # fmt: skip
    probe = None
    if plan.probe_every and ranks.first:
        probe = RidgeProbe(images, view.deredden, ranks.device)
        probe = probe if probe.possible else None
    whole = Run(Trainer(method, (view, view), plan, ranks), output, settings, tensorboard, probe)
    if ranks.first:
        run.log.info("%s: %d images, %d steps of %d (%.1f epochs), on %s", method.name,
                     len(chosen), plan.steps, plan.batch,
                     plan.steps / batches.steps_per_epoch, ranks.device)  # fmt: skip
    whole.train(batches)
    return whole.finish(deredden=view.deredden, mad=_numbers(images.mad))


def _view_dict(view: Augmentation) -> dict:
    content = asdict(view)
    content["mad"] = _numbers(view.mad)
    return content


def _numbers(values: np.ndarray | tuple | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.pretrain",
        description="Train an encoder on images without labels. Writes encoder.pt and history.csv "
        "into a folder; a run that was killed goes on where it was when it is started again.",
        epilog="Many GPUs: torchrun --nproc-per-node N -m pipeline.pretrain ... (the batch is "
        "that of all together).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="dataset.json, a shard or an export file")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--method", choices=METHODS, default="moco", help="how to learn")
    parser.add_argument("--images", choices=IMAGES, default="train+unlabelled",
                        help="which images to learn from; never valid or test")  # fmt: skip
    _encoder_flags(parser.add_argument_group("encoder"))
    _method_flags(parser.add_argument_group("MoCo"))
    _view_flags(parser.add_argument_group("views"))
    _training_flags(parser.add_argument_group("training"))
    _running_flags(parser.add_argument_group("running (changes nothing in what comes out)"))
    return parser


def _encoder_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--net", choices=tuple(NETS), default="resnet50", help="architecture")
    group.add_argument("--width", type=float, default=1.0, help="channels, times the usual")
    group.add_argument("--crop", type=int, default=64, help="side of the input [pixels]")
    group.add_argument("--bin", type=int, default=1, help="take the mean of squares of this side")
    group.add_argument("--scale", choices=SCALES, default="none",
                       help="asinh: of pixels in units of their band's MAD")  # fmt: skip


def _method_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--queue", type=int, default=65536, help="old keys to compare with")
    group.add_argument("--momentum", type=float, default=0.999, help="of the key encoder")
    group.add_argument("--temperature", type=float, default=0.1, help="of InfoNCE")
    group.add_argument("--groups", type=int, default=8,
                       help="parts of a batch that are normalised apart, as on GPUs")  # fmt: skip


def _view_flags(group: argparse._ArgumentGroup) -> None:
    switch = argparse.BooleanOptionalAction
    group.add_argument("--deredden", action=switch, default=True, help="take the dust off first")
    group.add_argument("--max-e-bv", type=float, default=0.5, help="E(B-V) up to this is put on")
    group.add_argument("--noise", type=float, nargs=2, default=(1.0, 3.0),
                       metavar=("LOW", "HIGH"),
                       help="noise is LOW to HIGH times a band's MAD; 0 0 = none")  # fmt: skip
    group.add_argument("--jitter", type=int, default=7, help="shift by up to so many pixels")
    group.add_argument("--rotate", action=switch, default=True, help="turn by any angle")
    group.add_argument("--flips", action=switch, default=False, help="mirror half of the views")


def _training_flags(group: argparse._ArgumentGroup) -> None:
    switch = argparse.BooleanOptionalAction
    group.add_argument("--steps", type=int, required=True, help="steps of the optimiser")
    group.add_argument("--batch", type=int, default=256, help="images a step, over all ranks")
    group.add_argument("--lr", type=float, default=0.03, help="learning rate")
    group.add_argument("--weight-decay", type=float, default=1e-4, help="of SGD")
    group.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="of the rate")
    group.add_argument("--warmup", type=int, default=0, help="steps in which the rate rises")
    group.add_argument("--ema", type=float, default=0.0, help="decay of averaged weights; 0 = off")
    group.add_argument("--amp", action=switch, default=False, help="mixed precision")
    group.add_argument("--amp-dtype", choices=("bf16", "fp16"), default="bf16", help="its numbers")
    group.add_argument("--seed", type=int, default=0, help="all draws follow from it")
    group.add_argument("--log-every", type=int, default=10, help="steps a row of history.csv")
    group.add_argument("--probe-every", type=int, default=0,
                       help="steps between probes (sigma_mad of a ridge regression of the "
                       "train galaxies on the features, each told from the others); "
                       "0 = none")  # fmt: skip
    group.add_argument("--double", action="store_true", help=argparse.SUPPRESS)


def _running_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    group.add_argument("--memory-gb", type=float, default=4.0, metavar="GB",
                       help="smaller sets are kept in memory")  # fmt: skip
    group.add_argument("--workers", type=int, default=0, help="processes that read images")
    group.add_argument("--threads", type=int, help="of torch on a CPU (as many as cores)")
    group.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")
    group.add_argument("--checkpoint-minutes", type=float, default=10.0,
                       help="between states from which a killed run goes on")  # fmt: skip
    group.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=False,
                       help="write event files to OUTPUT/tensorboard")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    args = _parser().parse_args(argv)
    use_threads(args.threads)
    images = open_set(args.dataset)
    mad = _numbers(images.mad)
    softening = mad if args.scale == "asinh" else None
    spec = EncoderSpec(args.net, args.width, args.crop, args.bin, args.scale, softening)
    ranks = Ranks.from_environment(args.device)
    if not ranks.first:
        run.log.setLevel(logging.ERROR)
    try:
        path = pretrain(
            images, args.images, spec, _view(args, mad), _plan(args), _options(args), args.output,
            ranks, args.workers, args.memory_gb, args.tensorboard,
        )  # fmt: skip
    finally:
        ranks.close()
    if path:
        run.write_provenance(path, device=str(ranks.device), ranks=ranks.ranks,
                             threads=torch.get_num_threads(), accumulate=args.accumulate,
                             workers=args.workers)  # fmt: skip
        run.log.info("%s: %s", args.method, path)


def _plan(args: argparse.Namespace) -> Plan:
    if not math.isfinite(args.lr):
        raise run.UserError(f"lr: {args.lr}; give a number")
    return Plan(
        steps=args.steps, batch=args.batch, lr=args.lr, weight_decay=args.weight_decay,
        schedule=args.schedule, warmup=args.warmup, ema=args.ema or None,
        amp=args.amp_dtype if args.amp else "none", seed=args.seed, log_every=args.log_every,
        probe_every=args.probe_every, double=args.double, accumulate=args.accumulate,
        checkpoint_seconds=60 * args.checkpoint_minutes,
    )  # fmt: skip


def _view(args: argparse.Namespace, mad: tuple[float, ...] | None) -> Augmentation:
    low, high = args.noise
    if not 0 <= low <= high:
        raise run.UserError(f"noise: {low:g} {high:g}; give two numbers, 0 or more, in order")
    noise = (low, high) if high > 0 else None
    return Augmentation(
        crop=args.crop, deredden=args.deredden, max_e_bv=args.max_e_bv, rotate=args.rotate,
        jitter=args.jitter, noise=noise, flips=args.flips, mad=mad if noise else None,
    )  # fmt: skip


def _options(args: argparse.Namespace) -> dict:
    return {name: getattr(args, name) for name in ("queue", "momentum", "temperature", "groups")}


if __name__ == "__main__":
    run.start(main)
