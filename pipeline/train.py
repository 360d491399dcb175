"""Labels -> models: photo-z nets trained from scratch, or from an encoder, on shares of the labels.

One run trains every fraction of one seed, one after the other. OUTPUT/{fraction}-{seed}/ gets
model.pt, predictions.parquet (valid and test galaxies) and history.csv. A run that was killed and
is started again goes on where it was and ends with the same weights; its state lies in
OUTPUT/.state-{seed} until all fractions are done. Valid galaxies select; test galaxies are
predicted once, at the end. With --magnitudes the redshifts come from catalogue magnitudes alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline import metrics, run
from pipeline.images.reader import ImageSet, in_split, label_fraction, members, open_set
from pipeline.learning import catalogue, checkpoint, domain, predict
from pipeline.learning.augment import TURNS, check_crop
from pipeline.learning.batches import SEEDS
from pipeline.learning.encoder import SCALES, Encoder, EncoderSpec, seeded
from pipeline.learning.losses import LOSSES
from pipeline.learning.nets import NETS
from pipeline.learning.optimise import SCHEDULES
from pipeline.learning.ranks import DEVICES, Ranks, use_threads
from pipeline.learning.redshift import Bins, PhotozNet, save_model
from pipeline.learning.training import OPTIMISERS, SELECT, Data, Keeping, Settings, fit
from pipeline.run import UserError
from pipeline.survey.hashing import mix64

_NET = ("net", "width", "crop", "bin", "scale", "bands")
"""Flags of a net from scratch."""
_DESCRIBED = 16384
"""Galaxies of train and of valid, at most, that a model's domain is measured on."""


@dataclass(frozen=True)
class Means:
    """What a training may use; none of it changes the models."""

    ranks: Ranks
    workers: int = 0
    memory_gb: float = 4.0
    minutes: float = 5.0
    tensorboard: bool = False


def train_photoz(
    images: ImageSet,
    output: Path,
    fractions: Sequence[float],
    make_net: Callable[[], PhotozNet],
    settings: Settings,
    means: Means,
    label_seed: int | None = None,
    turns: int = 8,
    origin: str = "",
) -> None:
    """Train a net on each of `fractions` of the labels of train; see the module for what is made.

    `make_net` gives a fresh net; `origin` says what it starts from, so that a state of another
    start is not taken up. `label_seed` (the seed itself where it is None) decides, for all
    starts alike, which labels a fraction has; predictions average over `turns` turns of the square.

    Raises:
        UserError: no labelled galaxies, a fraction that leaves too few, a seed out of range, and
            what `fit` raises.
    """
    label_seed = settings.seed if label_seed is None else label_seed
    if not 0 <= label_seed < SEEDS:
        raise UserError(f"label_seed: {label_seed}; give 0 or more, and less than {SEEDS}")
    parts = _splits(images, settings, means.memory_gb)
    masks = _label_masks(parts["train"], fractions, label_seed, settings, means.ranks)
    state = output / f".state-{settings.seed}"
    facts = {**asdict(settings), "turns": turns, "origin": origin, "data": images.digest}
    for fraction, mask in masks.items():
        name = f"{fraction:g}-{settings.seed}"
        train = parts["train"].take(mask)
        known = _fingerprint(**facts, labels=_hash(train.objid))
        done = state / f"{name}-{known[:16]}"
        if not means.ranks.any(means.ranks.first and done.is_dir()):
            data = Data(train, parts["valid"], parts["unlabelled"], means.workers, means.memory_gb)
            keeping = Keeping(
                state / f"{name}.pt", state / f"{name}.csv", known, means.minutes,
                output / "tensorboard" / name if means.tensorboard else None,
                f"train {output.name} {name}",
            )  # fmt: skip
            net, found = fit(make_net(), data, settings, keeping, means.ranks)
            found["of"] = len(parts["train"])
            if means.ranks.first:
                _finish(net, found, data, parts["judged"], settings, turns, keeping, done)
        if means.ranks.first:
            with run.whole_folder(output / name) as part:
                shutil.copytree(done, part, dirs_exist_ok=True)
    means.ranks.barrier()
    if means.ranks.first:
        shutil.rmtree(state)


def train_magnitudes(
    images: ImageSet, catalog: str, output: Path, fractions: Sequence[float], method: str,
    seed: int = 0, label_seed: int | None = None,
) -> None:  # fmt: skip
    """Redshifts by a method of `learning.catalogue`: the same folders, splits and labels.

    model.pt holds what the method starts from (magnitudes and redshifts of the labelled galaxies);
    both methods make the same of it again.

    Raises:
        UserError: no labelled galaxies, too few at a fraction, no magnitudes in `catalog`.
    """
    judged, train = _labelled(images)
    mags = catalogue.magnitudes(catalog, judged["objID"].to_numpy(np.int64))
    known = catalogue.magnitudes(catalog, train["objID"].to_numpy(np.int64))
    label_seed = seed if label_seed is None else label_seed
    for fraction in dict.fromkeys(float(f"{each:g}") for each in fractions):
        mask = label_fraction(train["objID"].to_numpy(np.int64), fraction, label_seed)
        z = train["z"].to_numpy(np.float64)[mask]
        table = catalogue.predictions(method, judged, mags, known[mask], z, seed)
        table.attrs = {"labels": int(mask.sum()), "of": len(train)}
        crps = table.loc[table["split"] == "valid", "crps"].mean()
        label = f"train {method} {fraction:g}-{seed}"
        with run.whole_folder(output / f"{fraction:g}-{seed}") as folder:
            table.to_parquet(folder / "predictions.parquet", index=False)
            content = {"method": method, "seed": seed, "magnitudes": torch.from_numpy(known[mask]),
                       "z": torch.from_numpy(z)}  # fmt: skip
            checkpoint.save(folder / "model.pt", "magnitudes", content)
            (folder / "history.csv").write_text(f"labels,valid_crps\n{mask.sum()},{crps:.9g}\n")
        run.log.info("%s: %d labels, valid CRPS %.5f", label, mask.sum(), crps)


def _labelled(images: ImageSet) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Valid and test galaxies with redshifts, and those of train."""
    table = images.table.assign(objID=images.objid)
    labelled = np.isfinite(table["z"].to_numpy(dtype=np.float64))
    train = members(images, "train")
    train = train[labelled[train]]
    if not len(train):
        raise UserError(f"{images.files[0]}: none of the train galaxies has a redshift; "
                        "label some, or look at the catalogue's funnel")  # fmt: skip
    judged = labelled & (in_split(images, "valid") | in_split(images, "test"))
    return table[judged], table.iloc[train]


def _splits(images: ImageSet, settings: Settings, memory_gb: float) -> dict[str, ImageSet | None]:
    """Labelled galaxies of train, of valid, of valid and test; and unlabelled ones, if wanted."""
    labelled = np.isfinite(images.table["z"].to_numpy(dtype=np.float64))
    train = members(images, "train")
    train = train[labelled[train]]
    if not len(train):
        raise UserError(f"{images.files[0]}: none of the train galaxies has a redshift; "
                        "label some, or look at the catalogue's funnel")  # fmt: skip
    valid = np.flatnonzero(labelled & in_split(images, "valid"))
    if not len(valid):
        run.log.info("no valid galaxies with redshifts: the last weights are taken, not the best")
    used = images.take(np.concatenate([train, valid]))
    if used.nbytes <= memory_gb * 1e9:
        used = used.in_memory()  # once for all fractions
    wanted = settings.colour_weight > 0
    return {
        "train": used.take(np.arange(len(train))),
        "valid": used.take(np.arange(len(train), len(used))),
        "judged": images.take(labelled & (in_split(images, "valid") | in_split(images, "test"))),
        "unlabelled": images.take(members(images, "unlabelled")) if wanted else None,
    }


def _label_masks(train, fractions, label_seed, settings, ranks) -> dict[float, np.ndarray]:
    """Which labels each fraction has; refuses, before anything is trained, those too few."""
    masks = {}
    # what folders are named by, so that no two fractions share one
    for fraction in dict.fromkeys(float(f"{each:g}") for each in fractions):
        masks[fraction] = label_fraction(train.objid, fraction, label_seed)
        try:
            settings.batch_of(int(masks[fraction].sum()), ranks.ranks)
        except UserError as error:
            raise UserError(f"fraction {fraction:g}: {error}") from None
    return masks


def _finish(net, found, data, judged, settings, turns, keeping, done) -> None:
    """Write what a training gives, whole, to the folder `done`; its state is needed no more."""
    options = {"deredden": settings.deredden, "workers": data.workers,
               "device": next(net.parameters()).device}  # fmt: skip
    known = _describe(net, data, options)
    table = predict.predictions(
        net, judged, turns=turns, label=f"{keeping.label} predicts", **options
    )
    table.attrs = {name: found[name] for name in ("labels", "of")}
    with run.whole_folder(done) as part:
        save_model(
            part / "model.pt", net, deredden=settings.deredden, turns=turns, training=found,
            domain=domain.to_state(known),
        )  # fmt: skip
        table.to_parquet(part / "predictions.parquet", index=False)
        shutil.copyfile(keeping.history, part / "history.csv")
    for path in (keeping.state, keeping.history):
        path.unlink(missing_ok=True)
    valid = table[table["split"] == "valid"]
    if len(valid):
        dz = metrics.residuals(valid["z_phot"], valid["z"])
        run.log.info(
            "%s: %d labels, weights of step %d; %d valid galaxies: sigma_mad %.5f, CRPS %.5f",
            keeping.label, found["labels"], found["step"], len(valid),
            metrics.sigma_mad(dz), valid["crps"].mean(),
        )  # fmt: skip


def _describe(net: PhotozNet, data: Data, options: dict) -> domain.Domain:
    """What `net` was trained on; the limit of outlier scores is that of valid galaxies."""
    found = []
    for images in (data.train, data.valid):
        rows = np.sort(np.argsort(mix64(images.objid), kind="stable")[:_DESCRIBED])
        chosen = images.take(rows)
        parts = list(predict.outputs(net, chosen, **options))
        found.append((chosen, *(
            np.concatenate([getattr(part, name) for part in parts]) if parts else None
            for name in ("features", "colours")
        )))  # fmt: skip
    (train, features, measured), (valid, valid_features, _) = found
    known = domain.describe(train.objid, features, measured, data.train.table["z"].to_numpy())
    return domain.with_limit(known, valid_features, valid.objid) if len(valid) else known


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _fingerprint(**facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def main(argv: list[str] | None = None) -> None:
    """Train from the command line; see `--help`."""
    args = _parser().parse_args(argv)
    use_threads(args.threads)
    images = open_set(args.dataset)
    if args.magnitudes:
        if not args.catalog:
            raise UserError("--magnitudes needs --catalog, results/catalog.parquet")
        train_magnitudes(images, args.catalog, args.output, args.fractions, args.magnitudes,
                         args.seed, args.label_seed)  # fmt: skip
        return
    bins = Bins(args.bins, args.z_max)
    make_net, deredden, origin = _start(args, images, bins)
    ranks = Ranks.from_environment(args.device)
    if not ranks.first:
        run.log.setLevel(logging.ERROR)
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    given["deredden"] = deredden if args.deredden is None else args.deredden
    given["amp"] = ranks.device.type == "cuda" if args.amp is None else args.amp
    if args.encoder_rate is None:
        given["encoder_rate"] = 0.1 if args.encoder else 1.0
    means = Means(ranks, args.workers, args.memory_gb, args.checkpoint_minutes, args.tensorboard)
    try:
        train_photoz(
            images, args.output, args.fractions, make_net, Settings(**given), means,
            args.label_seed, args.turns, origin,
        )  # fmt: skip
        if ranks.first:
            for fraction in args.fractions:
                folder = args.output / f"{fraction:g}-{args.seed}"
                run.write_provenance(
                    folder / "model.pt", device=str(ranks.device), ranks=ranks.ranks,
                    threads=torch.get_num_threads(),
                )  # fmt: skip
    finally:
        ranks.close()


def _start(args, images: ImageSet, bins: Bins) -> tuple[Callable[[], PhotozNet], bool, str]:
    """(what makes a fresh net, whether its images are dereddened, what it starts from)."""
    given = [name for name in _NET if getattr(args, name) is not None]
    if args.encoder:
        if given:
            raise UserError(f"--{given[0]}: {args.encoder} says itself what its net is; leave "
                            f"--{given[0]} out, or --encoder")  # fmt: skip
        encoder, extra = checkpoint.load_encoder(args.encoder)
        check_crop(encoder.spec.crop, images.size)
        origin = _fingerprint(encoder=run.sha256(args.encoder), **asdict(bins))

        def from_encoder() -> PhotozNet:
            return PhotozNet(checkpoint.load_encoder(args.encoder)[0], bins, args.seed)

        return from_encoder, extra.get("deredden", True), origin
    spec = {name: getattr(args, name) for name in given}
    if args.scale == "asinh" and images.mad is not None:
        spec["softening"] = tuple(float(value) for value in images.mad)
    spec = EncoderSpec(**spec)
    check_crop(spec.crop, images.size)

    def from_scratch() -> PhotozNet:
        with seeded(args.seed):
            return PhotozNet(Encoder(spec), bins, args.seed)

    return from_scratch, True, _fingerprint(**spec.to_dict(), **asdict(bins))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--task", choices=["photoz"], default="photoz", help="what is learnt (photoz)")
    add("--dataset", nargs="+", required=True, metavar="FILE", help="dataset.json, or files of "
        "stamps")  # fmt: skip
    add("--output", type=Path, required=True, metavar="DIR", help="results/train/photoz/START")
    add("--fractions", type=float, nargs="+", default=[1.0], metavar="F",
        help="shares of the labels, each above 0 and up to 1 (1)")  # fmt: skip
    add("--seed", type=int, default=0, help="of weights, order and views (0)")
    add("--label-seed", type=int, help="of which labels a fraction has (the seed)")
    add("--magnitudes", choices=sorted(catalogue.METHODS),
        help="no net: redshifts from the magnitudes of --catalog")  # fmt: skip
    add("--catalog", metavar="FILE", help="catalog.parquet, for --magnitudes")
    _add_net(parser.add_argument_group("the net"))
    _add_training(parser.add_argument_group("training"))
    group = parser.add_argument_group("means, which do not change the models")
    group.add_argument("--device", choices=DEVICES, default="auto", help="(auto)")
    group.add_argument("--threads", type=int, help="of torch; another number may change the last "
                       "digits (as many as cores)")  # fmt: skip
    group.add_argument("--workers", type=int, default=0, help="processes that read (0)")
    group.add_argument("--memory-gb", type=float, default=4.0, metavar="GB",
                       help="smaller sets are kept in memory (4)")  # fmt: skip
    group.add_argument("--checkpoint-minutes", type=float, default=5.0, metavar="M",
                       help="between states for a resume (5)")  # fmt: skip
    group.add_argument("--tensorboard", action=argparse.BooleanOptionalAction, default=False,
                       help="event files in OUTPUT/tensorboard")  # fmt: skip
    return parser


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
    add("--bins", type=int, default=180, help="of redshift (180)")
    add("--z-max", type=float, default=0.4, help="upper edge of the last bin (0.4)")


def _add_training(group) -> None:
    standard, switch = Settings(), argparse.BooleanOptionalAction

    def add(name: str, text: str, **options) -> None:
        default = getattr(standard, name)
        shown = text if isinstance(default, bool) else f"{text} ({default})".strip()
        options = {"type": type(default), "default": default} | options
        if options.get("action") is switch:
            del options["type"]
        group.add_argument(f"--{name.replace('_', '-')}", help=shown, **options)

    add("steps", "of the optimiser, whatever the fraction")
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
    group.add_argument("--deredden", action=switch, help="as the encoder was; from scratch: on")
    add("groups", "of batch normalisation in a batch")
    add("colour_weight", "of an auxiliary loss, the colours of unlabelled images; 0 = none")
    add("check_every", "steps between checks on valid")
    add("select", "which check's weights are kept: best by CRPS on valid, or last", choices=SELECT)
    group.add_argument("--amp", action=switch, help="mixed precision (on a GPU: on)")
    group.add_argument("--turns", type=int, choices=TURNS, default=8,
                       help="turns of a stamp that predictions average over (8)")  # fmt: skip


if __name__ == "__main__":
    run.start(main)
