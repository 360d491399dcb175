"""A shard's galaxies -> its frames (and masks) below a folder, from any archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from pipeline.images.engines import MARGIN
from pipeline.images.geometry import places
from pipeline.images.stamp import Stamp
from pipeline.run import UserError
from pipeline.survey import archive, footprint, frame, masks, pieces
from pipeline.survey.excerpt import SUFFIX, Excerpt, Ranges
from pipeline.survey.names import BANDS, Field, frame_path, mask_path
from pipeline.survey.parts import Wants
from pipeline.survey.transfer import Damaged, Loss


def read_shard(catalog: str | Path, shard: int) -> pd.DataFrame:
    """One shard's galaxies of catalog.parquet, without reading the rest.

    Raises:
        UserError: no such file, not a catalogue, or no galaxy in that shard.
    """
    try:
        table = pq.read_table(catalog, filters=[("shard", "=", shard)])
    except FileNotFoundError:
        raise UserError(f"{catalog}: no such file; run the rule catalog first") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{catalog}: cannot be read as a catalogue: {reason}") from None
    if not table.num_rows:
        raise UserError(f"{catalog}: has no galaxy in shard {shard}; was it cut into fewer?")
    nullable = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype()}
    return table.to_pandas(types_mapper=nullable.get)


def gather(
    galaxies: pd.DataFrame,
    reach: float,
    roots: Sequence[str],
    folder: Path,
    mask: bool = False,
    parts: Stamp | None = None,
    **options,
) -> dict[str, Loss]:
    """Bring every frame that stamps reaching `reach` degrees need into `folder`.

    `parts`: of frames that come over HTTP, only what such stamps need.

    The own fields' frames come first: where the catalogue has no rowc, their headers tell which
    neighbours are needed. `mask` brings the fpM files as well; `options` go to
    `archive.deliver`.

    Returns:
        What did not come: path below the root -> why.

    Raises:
        UserError: no root has any of the own fields' frames, so that they are likely no roots;
            and as `archive.deliver`.
    """
    fields = galaxies[["run", "camcol", "field"]].drop_duplicates()
    own = [Field(*map(int, key)) for key in fields.itertuples(index=False)]
    keys = [(field, band) for field in sorted(own) for band in BANDS]
    options["wants"] = wants(galaxies, parts) if parts else None
    losses = _bring(keys, roots, folder, mask, options)
    if len(losses) == len(keys) * (1 + mask) and all(loss.absent for loss in losses.values()):
        raise UserError(
            f"{' or '.join(roots)}: has none of the {len(keys)} frames of these galaxies' fields "
            f"(the first: {frame_path(*keys[0])}); check the root: boss/photoObj/frames/... lies "
            "below it, as below https://data.sdss.org/sas/dr9"
        )
    needs = footprint.frames_needed(galaxies, reach, header_from(folder))
    known = set(keys)
    rest = [key for key in needs if key not in known]
    return losses | _bring(rest, roots, folder, mask, options)


def _bring(keys, roots, folder: Path, mask: bool, options: dict) -> dict[str, Loss]:
    paths = [frame_path(*key) for key in keys]
    if mask:
        paths += [mask_path(*key) for key in keys]
    return archive.deliver(paths, roots, folder, check, **options)


def wants(galaxies: pd.DataFrame, stamp: Stamp) -> Wants:
    """A function that says which bytes of a frame's file the stamps of `galaxies` need."""
    sky: dict[tuple[int, int, int], list] = {}
    for *key, ra, dec in galaxies[["run", "camcol", "field", "ra", "dec"]].itertuples(index=False):
        sky.setdefault(tuple(map(int, key)), []).append((ra, dec))

    def lacking(path: str, excerpt: Excerpt) -> Ranges | None:
        if not Path(path).name.startswith("frame-"):
            return None
        field, band = identity(path)
        numbers = range(field.field - 1, field.field + 2)
        near = [each for k in numbers for each in sky.get((field.run, field.camcol, k), [])]

        def rows(header: fits.Header) -> list[slice]:
            found = places(stamp, near, frame.projection(header), MARGIN)
            return [place.part.rows for place in found if place]

        try:
            return pieces.lacking(excerpt, field, band, rows)
        except frame.BadFrame as bad:
            raise Damaged(str(bad)) from None

    return lacking


def check(path: str, data: bytes) -> None:
    """Check a downloaded frame or mask as a whole.

    Raises:
        Damaged: `data` is not what the name `path` promises.
    """
    field, band = identity(path)
    try:
        if Path(path).name.startswith("fpM"):
            masks.read(data, field)
        else:
            frame.read(data, field, band)
    except frame.BadFrame as bad:
        raise Damaged(str(bad)) from None


def identity(path: str) -> tuple[Field, str]:
    """The field and band that a frame's or a mask's path names."""
    rerun, run, camcol = (int(part) for part in Path(path).parts if part.isdigit())
    words = Path(path).name.split(".")[0].split("-")
    band = words[1] if words[0] == "frame" else words[2][0]
    return Field(run, camcol, int(words[-1]), rerun), band


def header_from(root: Path) -> footprint.HeaderOf:
    """A function (field, band) -> the header of that frame below `root`, None if it has none."""

    def header_of(field: Field, band: str):
        path = frame_path(field, band)
        try:
            if (part := root / f"{path}{SUFFIX}").exists():
                return frame.read_header(Excerpt.from_bytes(part.read_bytes()).pieces[0][1])
            return frame.read_header((root / path).read_bytes())
        except (FileNotFoundError, ValueError, frame.BadFrame):
            return None

    return header_of
