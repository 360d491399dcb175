"""Images -> an encoder, learnt without labels: MoCo v2 or SimCLR."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pipeline import run
from pipeline.images.reader import ImageSet, members, open_set
from pipeline.learning import launch, moco, simclr
from pipeline.learning.augment import Augmentation, check_crop
from pipeline.learning.batches import Batches
from pipeline.learning.distort import Distortion
from pipeline.learning.encoder import SCALES, EncoderSpec
from pipeline.learning.launch import Team
from pipeline.learning.method import Method
from pipeline.learning.nets import NETS, check_pretrainable
from pipeline.learning.optimise import SCHEDULES
from pipeline.learning.pretraining import OPTIMISERS, Plan, Run, Trainer
from pipeline.learning.probe import RidgeProbe
from pipeline.learning.ranks import DEVICES, Ranks, on_this_node, use_threads
from pipeline.survey.names import BANDS

DEFAULTS = {
    "moco": {
        "net": "resnet50", "bin": 1, "bands": BANDS, "scale": "none", "temperature": 0.1,
        "optimiser": "sgd", "batch": 256, "lr": 0.03, "weight_decay": 1e-4, "schedule": "cosine",
    },
    "simclr": {
        "net": "sarmiento", "bin": 2, "bands": "gri", "scale": "unit", "temperature": 0.5,
        "optimiser": "adam", "batch": 1024, "lr": 3e-4, "weight_decay": 0.0,
        "schedule": "constant",
    },
}  # fmt: skip
"""What the command line takes where it is not told otherwise, by method."""
IMAGES = ("unlabelled", "train+unlabelled")
_NOT_IN_PRODUCT = ("accumulate", "checkpoint_seconds")
"""Fields of a Plan that a run may change on the way without changing what comes out."""


def pretrain(
    images: ImageSet,
    which: str,
    spec: EncoderSpec,
    view: Augmentation | Distortion,
    plan: Plan,
    options: dict,
    output: str | Path,
    ranks: Ranks | None = None,
    workers: int = 0,
    memory_gb: float = 4.0,
    tensorboard: bool = False,
    method: str = "moco",
    max_z: float | None = None,
) -> Path | None:
    """Train an encoder by `method` on the images `which` of a set; write encoder.pt, history.csv.

    `options` are the temperature and groups, and MoCo's queue and momentum; `view` makes both
    views. With `max_z`, galaxies that are `beyond` it are left out. Goes on from the state that a
    killed run with the same settings left in `output`. Gives the path of encoder.pt, None on other
    ranks.

    Raises:
        UserError: settings that do not fit the set or one another; a loss that is not a number.
    """
    ranks = ranks or Ranks()
    check_crop(spec.crop, images.size)
    check_pretrainable(spec.net)
    chosen = _nearer(images.take(members(images, which)), max_z)
    made = _METHODS[method](spec, plan, options, ranks, len(chosen))
    batches = Batches(
        chosen, plan.batch, plan.seed, workers, ranks.rank, ranks.ranks, memory_gb
    )  # fmt: skip
    settings = {
        "method": made.name, "images": which, "data": chosen.digest,
        "encoder": spec.to_dict(), "view": _view_dict(view), **options,
        **_changing(plan), **({} if max_z is None else {"max_z": max_z}),
    }  # fmt: skip
    probe = None
    if plan.probe_every and ranks.first:
        probe = RidgeProbe(images, view.deredden, ranks.device)
        probe = probe if probe.possible else None
    whole = Run(Trainer(made, (view, view), plan, ranks), output, settings, tensorboard, probe)
    if ranks.first:
        run.log.info("%s: %d images, %d steps of %d (%.1f epochs), on %s", made.name,
                     len(chosen), plan.steps, plan.batch,
                     plan.steps / batches.steps_per_epoch, ranks)  # fmt: skip
    whole.train(batches)
    return whole.finish(deredden=view.deredden, mad=_numbers(images.mad))


def _moco(spec: EncoderSpec, plan: Plan, options: dict, ranks: Ranks, images: int) -> Method:
    moco.check_groups(options["groups"], plan.batch)
    moco.check_queue(options["queue"], plan.batch, images)
    return moco.MoCo(spec, accumulate=plan.accumulate, seed=plan.seed, ranks=ranks, **options)


def _simclr(spec: EncoderSpec, plan: Plan, options: dict, ranks: Ranks, images: int) -> Method:
    simclr.check_batch(spec, options["groups"], plan.batch, ranks.ranks, plan.accumulate)
    return simclr.SimCLR(spec, accumulate=plan.accumulate, seed=plan.seed, ranks=ranks, **options)


_METHODS = {"moco": _moco, "simclr": _simclr}


def beyond(images: ImageSet, max_z: float) -> np.ndarray:
    """A mask (n,): whose redshift is above `max_z`: the spec-z; where there is none, the photo-z.

    A galaxy with neither is not.
    """
    z = images.table["z"].to_numpy(np.float64)
    photoz = images.table["photoz"].to_numpy(np.float64)
    return np.where(np.isfinite(z), z, photoz) > max_z


def _nearer(images: ImageSet, max_z: float | None) -> ImageSet:
    """Those of `images` that are not beyond `max_z`; how many are left out is said."""
    if max_z is None:
        return images
    if not 0 < max_z < math.inf:
        raise run.UserError(f"max-z: {max_z}; give a redshift above 0, or leave it out")
    out = beyond(images, max_z)
    labelled = np.isfinite(images.table["z"].to_numpy(np.float64))
    photoz = images.table["photoz"].to_numpy(np.float64)
    unknown = ~labelled & ~(photoz > -1)  # SDSS writes -9999 where it has none
    if out.all():
        raise run.UserError(f"max-z: {max_z:g}, but all {len(images)} galaxies have a redshift "
                            "above it; give a larger one")  # fmt: skip
    run.log.info("max-z %g: %d of %d galaxies are left out (%d by spec-z, %d by photo-z); %d of "
                 "unknown redshift stay", max_z, out.sum(), len(images), (out & labelled).sum(),
                 (out & ~labelled).sum(), unknown.sum())  # fmt: skip
    return images.take(~out)


def _changing(plan: Plan) -> dict:
    """Fields of `plan` that change what comes out; without SGD, which once was no choice."""
    content = {name: value for name, value in asdict(plan).items() if name not in _NOT_IN_PRODUCT}
    if plan.optimiser == "sgd":
        del content["optimiser"]
    return content


def _view_dict(view: Augmentation | Distortion) -> dict:
    content = asdict(view)
    content["mad"] = _numbers(view.mad)
    return content


def _numbers(values: np.ndarray | tuple | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _parser(method: str = "moco") -> argparse.ArgumentParser:
    """The command line, with the defaults of `method`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.pretrain",
        description="Train an encoder on images without labels. Writes encoder.pt and history.csv "
        "into a folder; a run that was killed goes on where it was when it is started again. "
        f"Defaults are those of {method}; flags of the other method are not looked at.",
        epilog="Many GPUs: --ranks N, and --nodes M in a Slurm job; under torchrun neither. The "
        "batch is that of all ranks together.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, help="dataset.json, a shard or an export file")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--method", choices=tuple(DEFAULTS), default="moco", help="how to learn")
    parser.add_argument("--images", choices=IMAGES, default="train+unlabelled",
                        help="which images to learn from; never valid or test")  # fmt: skip
    parser.add_argument("--max-z", type=float, metavar="Z",
                        help="leave galaxies out whose spec-z is above this or, where there is "
                        "none, whose photo-z is")  # fmt: skip
    _encoder_flags(parser.add_argument_group("encoder"))
    _method_flags(parser.add_argument_group("method"))
    _view_flags(parser.add_argument_group("views"))
    _moco_view_flags(parser.add_argument_group("views of MoCo"))
    _simclr_view_flags(parser.add_argument_group(
        "views of SimCLR (always turned and mirrored; all else by chance)"))  # fmt: skip
    _training_flags(parser.add_argument_group("training"))
    _running_flags(parser.add_argument_group("running (changes nothing in what comes out)"))
    parser.set_defaults(**DEFAULTS[method])
    return parser


def _parse(argv: list[str] | None) -> argparse.Namespace:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--method", nargs="?", default="moco")
    method = first.parse_known_args(argv)[0].method
    return _parser(method if method in DEFAULTS else "moco").parse_args(argv)


def _encoder_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--net", choices=tuple(NETS), help="architecture")
    group.add_argument("--width", type=float, default=1.0, help="channels, times the usual")
    group.add_argument("--crop", type=int, default=64, help="side of the input [pixels]")
    group.add_argument("--bin", type=int, help="take the mean of squares of this side")
    group.add_argument("--bands", help="the letters of those that the net sees")
    group.add_argument("--scale", choices=SCALES,
                       help="asinh: of pixels in units of their band's MAD; unit: each image's "
                       "least and greatest value of all bands become 0 and 1")  # fmt: skip


def _method_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--queue", type=int, default=65536, help="MoCo's old keys to compare with")
    group.add_argument("--momentum", type=float, default=0.999, help="of MoCo's key encoder")
    group.add_argument("--temperature", type=float, help="of InfoNCE, of NT-Xent")
    group.add_argument("--groups", type=int, default=8,
                       help="parts of a batch that are normalised apart, as on GPUs; of no "
                       "account where the net does not normalise")  # fmt: skip


def _view_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--deredden", action=argparse.BooleanOptionalAction, default=True,
                       help="take the dust off first")  # fmt: skip
    group.add_argument("--noise", type=float, nargs=2, default=(1.0, 3.0),
                       metavar=("LOW", "HIGH"),
                       help="noise is LOW to HIGH times a band's MAD; 0 0 = none")  # fmt: skip
    group.add_argument("--jitter", type=int, default=7, help="shift by up to so many pixels")


def _moco_view_flags(group: argparse._ArgumentGroup) -> None:
    switch = argparse.BooleanOptionalAction
    group.add_argument("--max-e-bv", type=float, default=0.5, help="E(B-V) up to this is put on")
    group.add_argument("--rotate", action=switch, default=True, help="turn by any angle")
    group.add_argument("--flips", action=switch, default=False, help="mirror half of the views")


def _simclr_view_flags(group: argparse._ArgumentGroup) -> None:
    pair = {"nargs": 2, "metavar": ("LOW", "HIGH")}
    group.add_argument("--zoom", type=float, default=(0.75, 1.5), **pair,
                       help="the crop spans LOW to HIGH times its side of sky; 1 1 = "
                       "none")  # fmt: skip
    group.add_argument("--blur", type=float, default=(0.1, 2.0), **pair,
                       help="sigma is LOW to HIGH pixels of the net's input; 0 0 = "
                       "none")  # fmt: skip
    group.add_argument("--cutout", type=int, default=(2, 10), **pair,
                       help="a square of zeros is LOW to HIGH pixels of the net's input wide; "
                       "0 0 = none")  # fmt: skip
    group.add_argument("--colour", type=float, default=0.2,
                       help="each band is made brighter or fainter by up to this share; 0 = "
                       "none")  # fmt: skip


def _training_flags(group: argparse._ArgumentGroup) -> None:
    switch = argparse.BooleanOptionalAction
    group.add_argument("--steps", type=int, required=True, help="steps of the optimiser")
    group.add_argument("--batch", type=int, help="images a step, over all ranks")
    group.add_argument("--optimiser", choices=OPTIMISERS, help="sgd with momentum 0.9, or adam")
    group.add_argument("--lr", type=float, help="learning rate")
    group.add_argument("--weight-decay", type=float, help="of the optimiser")
    group.add_argument("--schedule", choices=SCHEDULES, help="of the rate")
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
    group.add_argument("--ranks", type=int, default=1,
                       help="processes on a node that share a batch, one a GPU")  # fmt: skip
    group.add_argument("--nodes", type=int, default=1,
                       help="of a Slurm job, on each of which there are so many ranks")  # fmt: skip
    group.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    group.add_argument("--memory-gb", type=float, default=4.0, metavar="GB",
                       help="smaller sets are kept in memory, once by each rank that so much "
                       "is shared by")  # fmt: skip
    group.add_argument("--workers", type=int, default=0, help="processes that read images, a rank")
    group.add_argument("--threads", type=int, help="of torch on a CPU, shared by the ranks of a "
                       "node (as many as cores)")  # fmt: skip
    group.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")
    group.add_argument("--checkpoint-minutes", type=float, default=10.0,
                       help="between states from which a killed run goes on")  # fmt: skip
    group.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=False,
                       help="write event files to OUTPUT/tensorboard")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Command line: see `--help`."""
    args = _parse(argv)
    team = Team(args.ranks, args.nodes, args.device)
    lock = Path(args.output) / ".lock"
    launch.start(lambda: _pretrain(args), "pipeline.pretrain", argv, team, lock)


def _pretrain(args: argparse.Namespace) -> None:
    """What one rank does."""
    use_threads(args.threads)
    images = open_set(args.dataset)
    mad = _numbers(images.mad)
    softening = mad if args.scale == "asinh" else None
    spec = EncoderSpec(args.net, args.width, args.crop, args.bin, args.scale, softening,
                       args.bands)  # fmt: skip
    ranks = Ranks.from_environment(args.device)
    try:
        path = pretrain(
            images, args.images, spec, _view(args, mad), _plan(args), _options(args), args.output,
            ranks, args.workers, args.memory_gb / on_this_node(), args.tensorboard, args.method,
            args.max_z,
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
        checkpoint_seconds=60 * args.checkpoint_minutes, optimiser=args.optimiser,
    )  # fmt: skip


def _view(
    args: argparse.Namespace, mad: tuple[float, ...] | None
) -> Augmentation | Distortion:  # fmt: skip
    low, high = args.noise
    if not 0 <= low <= high:
        raise run.UserError(f"noise: {low:g} {high:g}; give two numbers, 0 or more, in order")
    noise = (low, high) if high > 0 else None
    common = {"crop": args.crop, "deredden": args.deredden, "jitter": args.jitter,
              "noise": noise, "mad": mad if noise else None}  # fmt: skip
    if args.method == "moco":
        return Augmentation(
            max_e_bv=args.max_e_bv, rotate=args.rotate, flips=args.flips, **common
        )  # fmt: skip
    blur, cutout = (tuple(each) if any(each) else None for each in (args.blur, args.cutout))
    return Distortion(
        bin=args.bin, zoom=tuple(args.zoom), blur=blur, colour=args.colour, cutout=cutout, **common
    )


def _options(args: argparse.Namespace) -> dict:
    own = ("queue", "momentum") if args.method == "moco" else ()
    return {name: getattr(args, name) for name in (*own, "temperature", "groups")}


if __name__ == "__main__":
    run.start(main)
