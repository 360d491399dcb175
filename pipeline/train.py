"""Labels -> models: nets trained from scratch, from an encoder or on its vectors.

Task photoz: redshifts. One run trains every fraction of one seed, one after the other, and fills
OUTPUT/{fraction}-{seed}/ with model.pt, predictions.parquet (valid and test galaxies), history.csv.
With --magnitudes the redshifts come from catalogue magnitudes alone.

Task morphology: early or late types, after Galaxy Zoo's votes, from --counts labels, by a net on
images or, with --vectors or --components, a small net on vectors. OUTPUT/{count}-{seed}/ gets
model.pt and history.csv, OUTPUT/predictions-{seed}.parquet what all of them say. Counts above the
number of train galaxies with a type are left out.

A run that was killed and is started again goes on where it was and ends with the same weights; its
state lies in OUTPUT/.state-{seed} until all is done. Valid galaxies select; test galaxies are
predicted once, at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from pipeline import run
from pipeline.images.morphology import CLASSES, Votes, read_types
from pipeline.images.reader import ImageSet, members, open_set
from pipeline.learning import catalogue, checkpoint, components, launch
from pipeline.learning.augment import TURNS, check_crop
from pipeline.learning.batches import SEEDS
from pipeline.learning.encoder import SCALES, Encoder, EncoderSpec, seeded
from pipeline.learning.labelnet import LabelNet
from pipeline.learning.launch import Team
from pipeline.learning.losses import LOSSES
from pipeline.learning.nets import NETS
from pipeline.learning.optimise import SCHEDULES
from pipeline.learning.ranks import DEVICES, Ranks, on_this_node, use_threads
from pipeline.learning.redshift import Bins, PhotozNet
from pipeline.learning.smallnet import SmallSettings
from pipeline.learning.subsets import Means, Start, fingerprint
from pipeline.learning.task_morphology import train_on_vectors, train_types
from pipeline.learning.task_photoz import train_magnitudes, train_photoz
from pipeline.learning.training import OPTIMISERS, SELECT, Settings
from pipeline.run import UserError
from pipeline.similarity.vectors import KINDS, of_other_pixels, read_vectors

_NET = ("net", "width", "crop", "bin", "scale", "bands")
"""Flags of a net from scratch."""
_SMALL = [field.name for field in fields(SmallSettings) if field.name not in ("seed", "select")]


def main(argv: list[str] | None = None) -> None:
    """Train from the command line; see `--help`."""
    args = _parser().parse_args(argv)
    team = Team(args.ranks, args.nodes, args.device)
    if args.magnitudes or args.vectors or args.components is not None:
        launch.alone(lambda: _train(args), team)
    else:
        lock = Path(args.output) / f".lock-{args.seed}"
        launch.start(lambda: _train(args), "pipeline.train", argv, team, lock)


def _train(args: argparse.Namespace) -> None:
    """What one rank does."""
    use_threads(args.threads)
    if args.label_seed is None:
        args.label_seed = args.seed
    for name in ("seed", "label_seed"):
        if not 0 <= getattr(args, name) < SEEDS:
            raise UserError(f"{name}: {getattr(args, name)}; give 0 or more, and less than {SEEDS}")
    images = open_set(args.dataset)
    {"photoz": _photoz, "morphology": _morphology}[args.task](args, images)


def _photoz(args: argparse.Namespace, images: ImageSet) -> None:
    for name in ("vectors", "components"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is of --task morphology; leave it out, or give that task")
    if args.magnitudes:
        if not args.catalog:
            raise UserError("--magnitudes needs --catalog, results/catalog.parquet")
        train_magnitudes(images, args.catalog, args.output, args.fractions, args.magnitudes,
                         args.seed, args.label_seed)  # fmt: skip
        return
    bins = Bins(args.bins, args.z_max)
    start, deredden = _start(args, images, lambda encoder: PhotozNet(encoder, bins, args.seed),
                             asdict(bins))  # fmt: skip

    def train(settings: Settings, means: Means) -> list[str]:
        return train_photoz(images, args.output, args.fractions, start, bins, settings, means,
                            args.label_seed, args.turns)  # fmt: skip

    _with_ranks(args, deredden, train)


def _morphology(args: argparse.Namespace, images: ImageSet) -> None:
    if not args.catalog:
        raise UserError("--task morphology needs --catalog, results/catalog.parquet, for the votes")
    votes = Votes(args.threshold, args.debiased, args.least_votes)
    types = read_types(args.catalog, images.objid, votes)
    if args.magnitudes:
        raise UserError("--magnitudes is of --task photoz; leave it out")
    if args.vectors and args.components is not None:
        raise UserError("--vectors and --components are two things to learn from; give one")
    if args.vectors or args.components is not None:
        small = {name: getattr(args, f"small_{name}") for name in _SMALL}
        settings = SmallSettings(**small, seed=args.seed, select=args.select)
        vectors_of = _read(args, images) if args.vectors else _components(args, images)
        names = train_on_vectors(images, types, args.output, args.counts, vectors_of, settings,
                                 args.label_seed)  # fmt: skip
        _provenance(args, names)
        return
    start, deredden = _start(
        args, images, lambda encoder: LabelNet(encoder, len(CLASSES), args.seed), {}
    )

    def train(settings: Settings, means: Means) -> list[str]:
        return train_types(images, types, args.output, args.counts, start, settings, means,
                           args.label_seed, args.turns)  # fmt: skip

    _with_ranks(args, deredden, train)


def _read(args: argparse.Namespace, images: ImageSet) -> Callable[[ImageSet], np.ndarray]:
    """What gives the vectors in a file for galaxies of `images`."""
    given = [name for name in (*_NET, "encoder") if getattr(args, name) is not None]
    if given:
        raise UserError(f"--{given[0]}: {args.vectors} are made already; leave --{given[0]} out")
    vectors = read_vectors(args.vectors, args.kind)
    other = f"{args.vectors}: vectors of another dataset than {args.dataset[0]}"
    order = np.argsort(vectors.table["objID"].to_numpy())
    objid = vectors.table["objID"].to_numpy()[order]
    absent = np.setdiff1d(images.objid, objid)
    if len(absent):
        raise UserError(f"{other}: galaxy {absent[0]} is not in it ({len(absent)} such); run embed "
                        "on this one")  # fmt: skip
    if of_other_pixels(vectors, images):
        raise UserError(f"{other}, with the same galaxies; run embed on this one")
    return lambda part: vectors.unit[order[np.searchsorted(objid, part.objid)]]


def _components(args: argparse.Namespace, images: ImageSet) -> Callable[[ImageSet], np.ndarray]:
    """What gives galaxies along the principal components of train and unlabelled images."""
    if args.encoder:
        raise UserError("--encoder: components are of the images; say with --crop, --bin, --bands "
                        "and --scale how they are given, or leave --components out")  # fmt: skip
    encoder = Encoder(_spec(args, images))
    deredden = args.deredden is not False
    learnt = images.take(members(images, "train+unlabelled"))
    mean, axes = components.components(learnt, encoder, args.components, deredden)
    return lambda part: components.project(part, encoder, mean, axes, deredden)


def _with_ranks(
    args: argparse.Namespace, deredden: bool, train: Callable[[Settings, Means], list[str]]
) -> None:
    """Call `train` with what the flags say, on this process's device; note how it was done."""
    ranks = Ranks.from_environment(args.device)
    if ranks.ranks > 1:
        run.log.info("train: on %s", ranks)
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    given["deredden"] = deredden if args.deredden is None else args.deredden
    if args.encoder_rate is None:
        given["encoder_rate"] = 0.1 if args.encoder else 1.0
    memory_gb = args.memory_gb / on_this_node()
    means = Means(ranks, args.workers, memory_gb, args.checkpoint_minutes, args.tensorboard)
    try:
        names = train(Settings(**given), means)
        if ranks.first:
            _provenance(args, names, device=str(ranks.device), ranks=ranks.ranks)
    finally:
        ranks.close()


def _provenance(args: argparse.Namespace, names: Sequence[str], **facts: object) -> None:
    """Beside each model that was made, and beside the predictions of all."""
    products = [args.output / f"{name}-{args.seed}" / "model.pt" for name in names]
    if args.task == "morphology":
        products.append(args.output / f"predictions-{args.seed}.parquet")
    for product in products:
        run.write_provenance(product, threads=torch.get_num_threads(), **facts)


def _start(
    args: argparse.Namespace, images: ImageSet, make: Callable[[Encoder], LabelNet], facts: dict
) -> tuple[Start, bool]:
    """(what makes a fresh net of an encoder by `make`, whether its images are dereddened)."""
    if args.encoder:
        given = [name for name in _NET if getattr(args, name) is not None]
        if given:
            raise UserError(f"--{given[0]}: {args.encoder} says itself what its net is; leave "
                            f"--{given[0]} out, or --encoder")  # fmt: skip
        encoder, extra = checkpoint.load_encoder(args.encoder)
        check_crop(encoder.spec.crop, images.size)
        origin = fingerprint(encoder=run.sha256(args.encoder), **facts)

        def from_encoder() -> LabelNet:
            return make(checkpoint.load_encoder(args.encoder)[0])

        return Start(from_encoder, origin), extra.get("deredden", True)
    spec = _spec(args, images)

    def from_scratch() -> LabelNet:
        with seeded(args.seed):
            return make(Encoder(spec))

    return Start(from_scratch, fingerprint(**spec.to_dict(), **facts)), not NETS[spec.net].dust


def _spec(args: argparse.Namespace, images: ImageSet) -> EncoderSpec:
    """What a net from scratch is made of, and what it is given of an image."""
    spec = {name: getattr(args, name) for name in _NET if getattr(args, name) is not None}
    if args.scale == "asinh" and images.mad is not None:
        spec["softening"] = tuple(float(value) for value in images.mad)
    spec = EncoderSpec(**spec)
    check_crop(spec.crop, images.size)
    return spec


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--task", choices=["photoz", "morphology"], default="photoz", help="what is learnt "
        "(photoz)")  # fmt: skip
    add("--dataset", nargs="+", required=True, metavar="FILE", help="dataset.json, or files of "
        "stamps")  # fmt: skip
    add("--output", type=Path, required=True, metavar="DIR", help="results/train/TASK/START")
    add("--seed", type=int, default=0, help="of weights, order and views (0)")
    add("--label-seed", type=int, help="of which labels a fraction or a count has (the seed)")
    add("--catalog", metavar="FILE", help="catalog.parquet, for --magnitudes and for morphology")
    _add_photoz(parser.add_argument_group("photoz"))
    _add_morphology(parser.add_argument_group("morphology"))
    _add_net(parser.add_argument_group("the net"))
    _add_training(parser.add_argument_group("training"))
    _add_means(parser.add_argument_group("means, which do not change the models"))
    return parser


def _add_photoz(group) -> None:
    add = group.add_argument
    add("--fractions", type=float, nargs="+", default=[1.0], metavar="F",
        help="shares of the labels, each above 0 and up to 1 (1)")  # fmt: skip
    add("--magnitudes", choices=sorted(catalogue.METHODS),
        help="no net: redshifts from the magnitudes of --catalog")  # fmt: skip
    add("--bins", type=int, default=180, help="of redshift (180)")
    add("--z-max", type=float, default=0.4, help="upper edge of the last bin (0.4)")


def _add_morphology(group) -> None:
    add, small = group.add_argument, SmallSettings()
    add("--counts", type=int, nargs="+", default=[100, 300, 1000, 3000, 10000], metavar="N",
        help="of labels (100 300 1000 3000 10000)")  # fmt: skip
    add("--threshold", type=float, default=0.8, help="share of the votes above which a galaxy is "
        "of a type (0.8)")  # fmt: skip
    add("--debiased", action=argparse.BooleanOptionalAction, default=True,
        help="of votes corrected for distance and size (yes)")  # fmt: skip
    add("--least-votes", type=int, default=1, metavar="N", help="fewer tell nothing (1)")
    add("--vectors", metavar="FILE", help="a small net on the vectors in results/embed/METHOD.h5")
    add("--kind", choices=KINDS, help="of the vectors (contrastive where there are)")
    add("--components", type=int, metavar="N", help="a small net on so many principal components "
        "of the images, as the net would be given them")  # fmt: skip
    for name, text in (
        ("hidden", "units of the small net's hidden layer"),
        ("epochs", "of its training"),
        ("batch", "vectors a step"),
        ("lr", "its learning rate"),
        ("weight_decay", "of its weights"),
        ("dropout", "share of the numbers of a vector that are left out of a step"),
    ):
        default = getattr(small, name)
        add(f"--small-{name.replace('_', '-')}", type=type(default), default=default,
            help=f"{text} ({default})")  # fmt: skip


def _add_means(group) -> None:
    add = group.add_argument
    add("--device", choices=DEVICES, default="auto", help="(auto)")
    add("--ranks", type=int, default=1, help="processes on a node that share a batch, one a GPU; "
        "small nets and --magnitudes take one (1)")  # fmt: skip
    add("--nodes", type=int, default=1, help="of a Slurm job, on each of which there are so many "
        "ranks (1)")  # fmt: skip
    add("--threads", type=int, help="of torch, shared by the ranks of a node; another number may "
        "change the last digits (as many as cores)")  # fmt: skip
    add("--workers", type=int, default=0, help="processes that read, a rank (0)")
    add("--memory-gb", type=float, default=4.0, metavar="GB", help="smaller sets are kept in "
        "memory, once by each rank that so much is shared by (4)")  # fmt: skip
    add("--checkpoint-minutes", type=float, default=5.0, metavar="M",
        help="between states for a resume (5)")  # fmt: skip
    add("--tensorboard", action=argparse.BooleanOptionalAction, default=False,
        help="event files in OUTPUT/tensorboard")  # fmt: skip


def _add_net(group) -> None:
    add = group.add_argument
    add("--encoder", metavar="FILE", help="a checkpoint to start from (ours or the paper's); "
        "without it from scratch, as the next six say")  # fmt: skip
    add("--net", choices=sorted(NETS), help="(resnet50)")
    add("--width", type=float, help="times the channels of the net (1)")
    add("--crop", type=int, help="pixels that the net sees (64)")
    add("--bin", type=int, help="pixels averaged along a side before the net (1)")
    add("--scale", choices=SCALES, help="of the input (none)")
    add("--bands", help="the letters of those that the net sees (ugriz)")


def _add_training(group) -> None:
    standard, switch = Settings(), argparse.BooleanOptionalAction

    def add(name: str, text: str, **options) -> None:
        default = getattr(standard, name)
        shown = text if isinstance(default, bool) else f"{text} ({default})".strip()
        options = {"type": type(default), "default": default} | options
        if options.get("action") is switch:
            del options["type"]
        group.add_argument(f"--{name.replace('_', '-')}", help=shown, **options)

    add("steps", "of the optimiser, however many labels there are")
    add("batch", "images a step, of all ranks; fewer where there are fewer labels")
    add("loss", "", choices=sorted(LOSSES))
    add("optimiser", "", choices=OPTIMISERS)
    add("lr", "learning rate")
    group.add_argument("--encoder-rate", type=float, help="the encoder's learning rate over that "
                       "of the rest (0.1 with --encoder, 1 without)")  # fmt: skip
    add("weight_decay", "")
    add("schedule", "of the learning rate", choices=SCHEDULES)
    add("warmup", "steps in which the learning rate rises")
    add("ema", "decay of the averaged weights that are kept; 0 = the weights as they are")
    for name, text in (
        ("rotate", "rotate the views by any angle"),
        ("flips", "mirror half of the views"),
        ("freeze", "leave the encoder as it is: a linear probe"),
    ):
        add(name, text, action=switch)
    add("jitter", "pixels by which views are shifted at most")
    group.add_argument(
        "--deredden",
        action=switch,
        help="as the encoder was; from scratch: on, but for nets that read E(B-V)",
    )
    add("groups", "of batch normalisation in a batch")
    add("colour_weight", "of an auxiliary loss, the colours of unlabelled images; 0 = none")
    add("check_every", "steps between checks on valid")
    add(
        "select",
        "which weights are kept: those that valid judges best, or the last",
        choices=SELECT,
    )
    group.add_argument("--amp", action=switch, help="mixed precision (on a GPU: on)")
    group.add_argument("--turns", type=int, choices=TURNS, default=8,
                       help="turns of a stamp that predictions average over (8)")  # fmt: skip


if __name__ == "__main__":
    run.start(main)
