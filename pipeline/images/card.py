"""The data card that goes with release files: what they are, and how they may be used."""

from __future__ import annotations

from pipeline import __version__
from pipeline.survey.names import BANDS

_CARD = """\
# Five-band galaxy images: {survey}

{stamps} galaxies as {size} x {size} pixel images in u, g, r, i, z, with positions, extinctions
and, where there is a spectrum, redshifts. Written by `ugriz`, in the layout of the data set of
Hayat et al. (2020), so that code for theirs reads these files.

## Files

| file | galaxies | what |
|---|---|---|
{files}

Rows are shuffled (seed {seed}) within each file. {failed} of the {catalogue} galaxies of the
catalogue have no image; `dataset.json` counts the reasons and the shards name the galaxies.
{incomplete}

## What is in a file

| key | shape | type | unit | meaning |
|---|---|---|---|---|
| `images` | (N, 5, {size}, {size}) | float32 | {unit} | bands {bands}; row 0 is south, \
column 0 east |
| `ObjID` | (N,) | int64 | | SDSS objID, or the catalogue's own where SDSS gave none |
| `specObjID` | (N,) | int64 | | SDSS specObjID; 0 = no spectrum |
| `ra`, `dec` | (N,) | float64 | deg | ICRS position, which is the centre of the central pixel |
| `e_bv` | (N, 5) | float32 | mag | Galactic extinction A of each band (SDSS `extinction_*`), \
not E(B-V): the name is the paper's. NaN = unknown |
| `specz_redshift` | (N,) | float32 | | spectroscopic redshift; NaN = none |
| `specz_redshift_err` | (N,) | float32 | | its error; NaN = none |
| `sky_split` | (N,) | bytes | | only of a split by sky: whose sky the image lies on (train, \
valid, test, or border of two); train on images whose value is train |

An image is a tangential (TAN) projection, north up, east left, {fov:g} deg on a side,
{scale:.5f} arcsec a pixel. The sky is subtracted; Galactic extinction is not corrected. Pixels that
no frame covers are 0. 1 nanomaggy is 22.5 mag (AB, to a few hundredths in u and z).

The pixels' median and MAD (median absolute deviation, without the factor 1.4826) over
{pixel_images}:

| band | median | MAD |
|---|---|---|
{pixels}

## Where it comes from

Survey: `{survey}`. Images were resampled from calibrated, sky-subtracted frames (SDSS rerun 301, or
simulated ones in its format; the archive's address is in the shards' provenance files) by ugriz
{version}: {made}. The selection of galaxies, step by step:

{funnel}

## Use, acknowledgement, citation

SDSS considers the data of its public releases to be in the public domain and gives images under
CC BY (https://www.sdss.org/collaboration/image-use-policy/, whose present wording counts). Whoever
publishes work with images of SDSS is asked to acknowledge it, for DR12:

> Funding for SDSS-III has been provided by the Alfred P. Sloan Foundation, the Participating
> Institutions, the National Science Foundation, and the U.S. Department of Energy Office of
> Science. The SDSS-III web site is http://www.sdss3.org/.

followed by the list of participating institutions that stands there. None of this is needed for a
simulated survey, which holds no data of SDSS.

Cite what you used of these:

- Hayat et al. 2021, ApJL 911, L33 (arXiv:2012.13083): the data set that these files follow
- Alam et al. 2015, ApJS 219, 12: SDSS Data Release 12
- Strauss et al. 2002, AJ 124, 1810: the Main Galaxy Sample
- Beck et al. 2016, MNRAS 460, 1371: the photo-z that selected unlabelled galaxies
- Schlegel, Finkbeiner & Davis 1998, ApJ 500, 525: the extinctions
- `ugriz`: see its CITATION.cff

## Checking a copy

    sha256sum -c SHA256SUMS

on macOS `shasum -a 256 -c SHA256SUMS`.
"""

_WHAT = {
    "train": "labelled, for training",
    "valid": "labelled, for choosing between models",
    "test": "labelled, for one final test",
    "unlabelled": "without a spectroscopic redshift",
}


def text(content: dict, seed: int) -> str:
    """The card (Markdown) of the set that dataset.json's `content` describes."""
    stamp, pixels, galaxies = content["stamp"], content["pixels"], content["galaxies"]
    below = content["coverage"]["below_1"]
    return _CARD.format(
        survey=content["survey"] or "unnamed",
        version=__version__,
        seed=seed,
        **galaxies,
        size=stamp["size"],
        fov=stamp["fov_deg"],
        scale=3600 * stamp["fov_deg"] / stamp["size"],
        unit=stamp.get("units", "nanomaggy"),
        bands=", ".join(BANDS),
        files="\n".join(
            f"| `{name}.h5` | {count} | {_WHAT[name]}{'' if count else ' (empty)'} |"
            for name, count in content["splits"].items()
        ),
        incomplete=f"{below} images are not wholly covered by frames." if below
        else "Every image is wholly covered by frames.",
        pixels="\n".join(_pixel_rows(pixels)),
        pixel_images=f"the {pixels['images']} images of `{pixels['set']}`",
        made=", ".join(f"{key}: {value}" for key, value in _making(stamp).items()),
        funnel=_funnel(content.get("funnel")),
    )  # fmt: skip


def _making(stamp: dict) -> dict:
    return {
        key: value
        for key, value in stamp.items()
        if key not in ("bands", "size", "fov_deg", "units", "planes")
    }


def _pixel_rows(pixels: dict) -> list[str]:
    if not pixels["images"]:
        return ["| all | not taken: no image is for training | |"]
    return [f"| {band} | {pixels['median'][band]} | {pixels['mad'][band]} |" for band in BANDS]


def _funnel(funnel: dict | None) -> str:
    """The funnel's counts as a table, the paper's beside them where there are some."""
    if not funnel:
        return "(no counts were kept)"
    lines = ["| sample | step | galaxies | in the paper |", "|---|---|---|---|"]
    for sample, steps in funnel["samples"].items():
        for step in steps if any(step["count"] for step in steps) else []:
            paper = "" if step.get("paper") is None else step["paper"]
            name = step["step"].replace("|", "\\|")
            name += f" ({step['missing']} without)" if step.get("missing") else ""
            lines.append(f"| {sample} | {name} | {step['count']} | {paper} |")
    return "\n".join(lines)
