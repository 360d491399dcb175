"""The corrected frame: SDSS's FITS format, read and checked.

HDU 0 is the image in nanomaggies per pixel, sky subtracted; HDU 1 the calibration vector
(nanomaggies per DN, a value a column); HDU 2 the sky that was subtracted, in DN, coarse; HDU 3
the astrometric terms. Pixels are 0-based here, pixel k covers k - 0.5 to k + 0.5.
"""

from __future__ import annotations

import bz2
import math
import shutil
import subprocess
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from pipeline.survey.names import FRAME_SHAPE, Field

LBZIP2 = shutil.which("lbzip2")
BLOCK = 2880
"""Bytes of a FITS block."""
_KINDS = {"E": ">f4", "D": ">f8", "J": ">i4", "I": ">i2", "B": "u1", "A": "S1"}
"""Kind of a table's column -> NumPy's."""
_DAMAGE = (KeyError, ValueError, TypeError, OverflowError, fits.VerifyError)
"""What reading a header's cards raises where they are garbage."""


class BadFrame(Exception):
    """A frame that must not be used; its text is the reason, in a few words."""


@dataclass(frozen=True)
class Frame:
    """A corrected frame in memory.

    `image` (rows, columns) big-endian float32 as in the file, `calibration` (columns,) nMgy per
    DN, `sky` the coarse sky [DN] with `sky_rows` and `sky_columns`, the place in it of each row
    and column of the image.
    """

    image: np.ndarray
    header: fits.Header
    calibration: np.ndarray
    sky: np.ndarray
    sky_rows: np.ndarray
    sky_columns: np.ndarray

    def wcs(self) -> WCS:
        """A WCS of one's own: astropy's is not safe to share between threads."""
        return projection(self.header)

    def sky_noise(self) -> float:
        """Noise of the sky [nMgy per pixel]: 1.4826 MAD of one pixel in 64, NaN if none is."""
        sample = self.image[4::8, 4::8].astype(np.float32)
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            return float("nan")
        return float(1.4826 * np.median(np.abs(sample - np.median(sample))))

    def variance(self, rows: slice, columns: slice, gain: float, dark: float) -> np.ndarray:
        """Variance [nMgy^2] of a part of the image, float64.

        DN = image / calibration + sky; variance = (DN / gain + dark variance) calibration^2
        (SDSS-III data model of frame). `gain` in electrons per DN, `dark` in DN^2.
        """
        grid = np.meshgrid(self.sky_rows[rows], self.sky_columns[columns], indexing="ij")
        sky = map_coordinates(self.sky, grid, order=1, mode="nearest", output=np.float64)
        calibration = self.calibration[columns].astype(np.float64)
        counts = self.image[rows, columns] / calibration + sky
        return (np.maximum(counts, 0) / gain + dark) * calibration**2


def read(data: bytes, field: Field, band: str) -> Frame:
    """Decompress, check and parse the bytes of a frame file.

    Raises:
        BadFrame: empty, not bz2, damaged (its CRCs), not a whole frame, of another run, camcol,
            field or band than asked for, or without a finite pixel.
    """
    return parse(decompress(data), field, band)


def decompress(data: bytes) -> bytes:
    """Undo bzip2, one stream or several; every block's CRC is checked.

    By the program lbzip2 where it is installed, which takes a fifth less time; what it does not
    take, or all where it is not, is for the standard library to undo or to refuse.

    Raises:
        BadFrame: empty, not bz2, truncated or damaged.
    """
    if not data:
        raise BadFrame("the file is empty")
    if data[:3] != b"BZh":
        raise BadFrame("the file is not bzip2")
    if LBZIP2:
        done = subprocess.run([LBZIP2, "-n1", "-dc"], input=data, capture_output=True)
        if done.returncode == 0:
            return done.stdout
    try:
        return bz2.decompress(data)
    except (ValueError, EOFError):
        raise BadFrame("the bzip2 file is truncated") from None
    except OSError:
        raise BadFrame("the bzip2 data are damaged (CRC)") from None


def parse(raw: bytes, field: Field, band: str) -> Frame:
    """Check and parse an uncompressed frame; its arrays are views of `raw`.

    By hand, since astropy takes 30 ms for the tables' columns and frames come by the thousand.

    Raises:
        BadFrame: as `read`, but for the compression.
    """
    if raw[:6] != b"SIMPLE":
        raise BadFrame("what is in the bzip2 file is not FITS")
    try:
        image, calibration, sky, terms = hdus = _split(raw)
        check_identity(image.header, field, band, int(_cell(raw, terms, "FIELD")[0]))
        _check_shapes(hdus)
        projection(image.header)
        frame = Frame(
            np.frombuffer(raw, ">f4", math.prod(FRAME_SHAPE), image.start).reshape(FRAME_SHAPE),
            image.header,
            np.frombuffer(raw, ">f4", FRAME_SHAPE[1], calibration.start),
            _cell(raw, sky, "ALLSKY"),
            _cell(raw, sky, "YINTERP"),
            _cell(raw, sky, "XINTERP"),
        )
    except (*_DAMAGE, IndexError) as error:
        raise BadFrame(f"the FITS file is damaged ({' '.join(str(error).split())})") from None
    if frame.sky.ndim != 2 or (frame.sky_rows.size, frame.sky_columns.size) != FRAME_SHAPE:
        raise BadFrame("the sky table is not that of the image")
    if not (np.isfinite(frame.image[::64]).any() or np.isfinite(frame.image).any()):
        raise BadFrame("the frame has no finite pixel")
    return frame


class _Hdu(NamedTuple):
    header: fits.Header
    start: int
    """Where its data begin in the file."""


def _split(raw: bytes) -> list[_Hdu]:
    """The four HDUs of a frame, which fill the file to its last byte."""
    hdus, end = [], 0
    while end < len(raw) and len(hdus) < 5:
        start = end + _header_length(raw, end)
        header = fits.Header.fromstring(raw[end:start])
        sides = [header[f"NAXIS{k + 1}"] for k in range(header["NAXIS"])]
        values = math.prod(sides) + header.get("PCOUNT", 0)
        end = start + math.ceil(values * abs(header["BITPIX"]) / 8 / BLOCK) * BLOCK
        hdus.append(_Hdu(header, start))
    if len(hdus) != 4:
        raise BadFrame(f"the FITS file has {len(hdus)} HDUs where a frame has 4")
    if end != len(raw):
        raise BadFrame(f"the FITS file has {len(raw)} bytes where its headers tell of {end}")
    return hdus


def _check_shapes(hdus: list[_Hdu]) -> None:
    image, calibration, *tables = (hdu.header for hdu in hdus)
    if image["BITPIX"] != -32 or image["NAXIS"] != 2:
        raise BadFrame("the first HDU is not a float32 image")
    rows, columns = image["NAXIS2"], image["NAXIS1"]
    if (rows, columns) != FRAME_SHAPE:
        raise BadFrame(f"the image has {columns} x {rows} pixels where a frame has 2048 x 1489")
    if calibration["BITPIX"] != -32 or calibration["NAXIS1"] != columns:
        raise BadFrame("the calibration vector is not as long as the image is wide")
    if any(table["NAXIS2"] != 1 for table in tables):
        raise BadFrame("the sky or the astrometric table has not one row")


def _cell(raw: bytes, table: _Hdu, name: str) -> np.ndarray:
    """The cell of a one-row table in column `name`, in the shape of its TDIM."""
    header, at = table.header, table.start
    for k in range(1, header["TFIELDS"] + 1):
        form = header[f"TFORM{k}"].strip()
        kind, count = np.dtype(_KINDS[form[-1]]), int(form[:-1] or 1)
        if header[f"TTYPE{k}"].strip() == name:
            cell = np.frombuffer(raw, kind, count, at)
            sides = header.get(f"TDIM{k}", f"({count})").strip(" ()").split(",")
            return cell.reshape([int(side) for side in reversed(sides)])
        at += count * kind.itemsize
    raise KeyError(f"no column {name}")


def projection(header: fits.Header) -> WCS:
    """The projection of a frame's header; each call gives a new one, for one thread's use.

    Raises:
        BadFrame: it is not a TAN projection with a CD matrix that can be inverted.
    """
    try:
        kinds = [header["CTYPE1"].strip(), header["CTYPE2"].strip()]
        cd = [[float(header[f"CD{i}_{j}"]) for j in (1, 2)] for i in (1, 2)]
        points = [[float(header[f"{key}{i}"]) for i in (1, 2)] for key in ("CRPIX", "CRVAL")]
    except (*_DAMAGE, AttributeError) as error:
        raise BadFrame(f"the header has no projection ({' '.join(str(error).split())})") from None
    if kinds != ["RA---TAN", "DEC--TAN"]:
        raise BadFrame(f"the projection is {', '.join(kinds)} where frames are RA---TAN, DEC--TAN")
    if not (np.isfinite(points).all() and np.isfinite(cd).all() and np.linalg.det(cd) != 0):
        raise BadFrame("the header's CRVAL, CRPIX and CD matrix are no projection")
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.cd, wcs.wcs.radesys = kinds, cd, "ICRS"
    wcs.wcs.crpix, wcs.wcs.crval = points
    return wcs


def check_identity(header: fits.Header, field: Field, band: str, number: int | None = None) -> None:
    """Check that a frame's header is of the field and band that its name tells.

    `number` is the field as HDU 3 has it; the header's own FRAME counts otherwise in each band.

    Raises:
        BadFrame: it is another's.
    """
    has = (int(header["RUN"]), int(header["CAMCOL"]), str(header["FILTER"]).strip())
    wants = (field.run, field.camcol, band)
    if number is not None:
        has, wants = (*has, int(number)), (*wants, field.field)
    if has != wants:
        names = ("run", "camcol", "band", "field")
        pairs = [f"{n} {h}" for n, h, w in zip(names, has, wants, strict=False) if h != w]
        raise BadFrame(f"the header says {', '.join(pairs)}: another frame than its name tells")


def read_header(data: bytes) -> fits.Header:
    """The first header of a frame file, from its first bzip2 block alone (a tenth of the work).

    Raises:
        BadFrame: empty, not bz2, truncated, damaged or not FITS.
    """
    if data[:3] != b"BZh":
        raise BadFrame("the file is empty" if not data else "the file is not bzip2")
    try:
        raw = bz2.BZ2Decompressor().decompress(data, max_length=16 * BLOCK)
        return fits.Header.fromstring(raw[: _header_length(raw)])
    except (OSError, EOFError, ValueError) as error:
        raise BadFrame(f"the header cannot be read ({error})") from None


def _header_length(raw: bytes, start: int = 0) -> int:
    """Bytes of the header that begins at `start`, to the end of the block of its END card."""
    for begin in range(start, len(raw) - BLOCK + 1, BLOCK):
        cards = (raw[at : at + 80] for at in range(begin, begin + BLOCK, 80))
        if any(card[:3] == b"END" and not card[3:].strip() for card in cards):
            return begin + BLOCK - start
    raise ValueError("no END card")
