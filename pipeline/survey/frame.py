"""The corrected frame: SDSS's FITS format, read and checked.

HDU 0 is the image in nanomaggies per pixel, sky subtracted; HDU 1 the calibration vector
(nanomaggies per DN, a value a column); HDU 2 the sky that was subtracted, in DN, coarse; HDU 3
the astrometric terms. Pixels are 0-based here, pixel k covers k - 0.5 to k + 0.5.
"""

from __future__ import annotations

import bz2
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from pipeline.survey import bzip2
from pipeline.survey.bzip2 import BadBlock
from pipeline.survey.names import FRAME_SHAPE, Field

BLOCK = 2880
"""Bytes of a FITS block."""
IMAGE_BYTES = 4 * math.prod(FRAME_SHAPE)
"""Bytes of the image."""
IMAGE_FILLED = math.ceil(IMAGE_BYTES / BLOCK) * BLOCK
"""Bytes from the image's first to the next HDU."""
_KINDS = {"E": ">f4", "D": ">f8", "J": ">i4", "I": ">i2", "B": "u1", "A": "S1"}
"""Kind of a table's column -> NumPy's."""
_DAMAGE = (KeyError, ValueError, TypeError, OverflowError, fits.VerifyError)
"""What reading a header's cards raises where they are garbage."""


class BadFrame(Exception):
    """A frame that must not be used; its text is the reason, in a few words."""


class Stretch(NamedTuple):
    """Rows of a frame, from row `start` on: `pixels` (rows, columns), float32 as in the file."""

    start: int
    pixels: np.ndarray

    @property
    def stop(self) -> int:
        """The row after its last."""
        return self.start + len(self.pixels)


@dataclass(frozen=True)
class Frame:
    """A corrected frame in memory, or stretches of its rows.

    `stretches` of the image [nMgy], `calibration` (columns,) nMgy per DN, `sky` the coarse sky [DN]
    with `sky_rows` and `sky_columns`, the place in it of each row and column of the image.
    `decoded` is how many of the file's `blocks` were decompressed, where that is known.
    """

    stretches: tuple[Stretch, ...]
    header: fits.Header
    calibration: np.ndarray
    sky: np.ndarray
    sky_rows: np.ndarray
    sky_columns: np.ndarray
    decoded: int = 0
    blocks: int = 0

    @property
    def image(self) -> np.ndarray:
        """The image of a frame that is here as a whole, (rows, columns)."""
        return self.pixels(slice(0, FRAME_SHAPE[0]))

    def pixels(self, rows: slice) -> np.ndarray:
        """Rows of the image, float32 as in the file, (rows, columns).

        Raises:
            IndexError: they are not all here.
        """
        for stretch in self.stretches:
            if stretch.start <= rows.start and rows.stop <= stretch.stop:
                return stretch.pixels[rows.start - stretch.start : rows.stop - stretch.start]
        raise IndexError(f"rows {rows.start} to {rows.stop} of the frame are not here")

    def wcs(self) -> WCS:
        """A WCS of one's own: astropy's is not safe to share between threads."""
        return projection(self.header)

    def sky_noise(self, rows: slice = slice(0, FRAME_SHAPE[0])) -> float:
        """Noise of the sky [nMgy per pixel] in some rows: 1.4826 MAD of every fourth pixel of every
        fourth row of the frame; NaN if none of them is finite.
        """
        sample = self.pixels(rows)[-rows.start % 4 :: 4, ::4].astype(np.float32)
        sample = sample[np.isfinite(sample)]
        if not sample.size:
            return float("nan")
        return float(1.4826 * np.median(np.abs(sample - np.median(sample))))

    def counts(self, rows: slice, columns: slice) -> np.ndarray:
        """What the detector counted [DN] in a part of the image, bias subtracted, float64.

        DN = image / calibration + sky (SDSS-III data model of frame): integers, but for the ten
        bits to which the image is rounded.
        """
        grid = np.meshgrid(self.sky_rows[rows], self.sky_columns[columns], indexing="ij")
        sky = map_coordinates(self.sky, grid, order=1, mode="nearest", output=np.float64)
        return self.pixels(rows)[:, columns] / self.calibration[columns].astype(np.float64) + sky

    def variance(self, rows: slice, columns: slice, gain: float, dark: float) -> np.ndarray:
        """Variance [nMgy^2] of a part of the image, float64.

        (DN / gain + dark variance) calibration^2 (SDSS-III data model of frame). `gain` in
        electrons per DN, `dark` in DN^2.
        """
        counts = self.counts(rows, columns)
        calibration = self.calibration[columns].astype(np.float64)
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

    One whole stream by `bzip2`, which takes half the standard library's time; what it does not
    take is for that to undo or to refuse.

    Raises:
        BadFrame: empty, not bz2, truncated or damaged.
    """
    if not data:
        raise BadFrame("the file is empty")
    if data[:3] != b"BZh":
        raise BadFrame("the file is not bzip2")
    with contextlib.suppress(BadBlock):
        return bzip2.decompress(data)
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
    header, start = image_header(raw)
    pixels = np.frombuffer(raw, ">f4", min(IMAGE_BYTES, len(raw) - start) // 4, start)
    if pixels.size < math.prod(FRAME_SHAPE):
        raise BadFrame(f"the FITS file has {len(raw)} bytes, which end within the image")
    stretch = Stretch(0, pixels.reshape(FRAME_SHAPE))
    return assemble(header, (stretch,), raw[start + IMAGE_FILLED :], field, band)


def image_header(raw: bytes) -> tuple[fits.Header, int]:
    """The header of the image, and where the pixels begin in the file.

    Raises:
        BadFrame: it is not that of a frame's image.
    """
    if raw[:6] != b"SIMPLE":
        raise BadFrame("what is in the bzip2 file is not FITS")
    with _damage_told():
        hdu = _hdu(raw, 0)
        header = hdu.header
        if header["BITPIX"] != -32 or header["NAXIS"] != 2:
            raise BadFrame("the first HDU is not a float32 image")
        rows, columns = header["NAXIS2"], header["NAXIS1"]
        if (rows, columns) != FRAME_SHAPE:
            raise BadFrame(f"the image has {columns} x {rows} pixels where a frame has 2048 x 1489")
        if hdu.stop - hdu.start != IMAGE_FILLED:
            raise BadFrame("the first HDU has more than an image")
        return header, hdu.start


def assemble(
    header: fits.Header,
    stretches: tuple[Stretch, ...],
    tables: bytes,
    field: Field,
    band: str,
    decoded: int = 0,
    blocks: int = 0,
) -> Frame:
    """A frame of the image's header, some rows, and the file from its second HDU to its end.

    Raises:
        BadFrame: they are no frame, or another than asked for.
    """
    with _damage_told():
        calibration, sky, terms = hdus = _tables(tables)
        check_identity(header, field, band, int(_cell(tables, terms, "FIELD")[0]))
        _check_shapes(hdus)
        projection(header)
        frame = Frame(
            stretches,
            header,
            np.frombuffer(tables, ">f4", FRAME_SHAPE[1], calibration.start),
            _cell(tables, sky, "ALLSKY"),
            _cell(tables, sky, "YINTERP"),
            _cell(tables, sky, "XINTERP"),
            decoded,
            blocks,
        )
    if frame.sky.ndim != 2 or (frame.sky_rows.size, frame.sky_columns.size) != FRAME_SHAPE:
        raise BadFrame("the sky table is not that of the image")
    return frame


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """Let garbage in headers and tables be told as `BadFrame`."""
    try:
        yield
    except (*_DAMAGE, IndexError) as error:
        raise BadFrame(f"the FITS file is damaged ({' '.join(str(error).split())})") from None


class _Hdu(NamedTuple):
    header: fits.Header
    start: int
    """Where its data begin."""
    stop: int
    """Where the next HDU begins."""


def _hdu(raw: bytes, begin: int) -> _Hdu:
    start = begin + _header_length(raw, begin)
    header = fits.Header.fromstring(raw[begin:start])
    sides = [header[f"NAXIS{k + 1}"] for k in range(header["NAXIS"])]
    values = (math.prod(sides) if sides else 0) + header.get("PCOUNT", 0)
    return _Hdu(header, start, start + _filled(values * abs(header["BITPIX"]) // 8))


def _filled(size: int) -> int:
    """Bytes that data of `size` take in a file: whole FITS blocks."""
    return math.ceil(size / BLOCK) * BLOCK


def _tables(raw: bytes) -> list[_Hdu]:
    """The three HDUs after a frame's image, which fill the file to its last byte."""
    hdus, end = [], 0
    while end < len(raw) and len(hdus) < 4:
        if raw[end : end + 8] != b"XTENSION":
            raise BadFrame(f"the FITS file has {1 + len(hdus)} HDUs, and then other bytes")
        hdus.append(_hdu(raw, end))
        end = hdus[-1].stop
    if len(hdus) != 3:
        raise BadFrame(f"the FITS file has {1 + len(hdus)} HDUs where a frame has 4")
    if end != len(raw):
        raise BadFrame(
            f"the FITS file has {len(raw)} bytes after its image where its headers tell of {end}"
        )
    return hdus


def tables_begin(raw: bytes) -> int | None:
    """Where the HDUs after the image begin in `raw`, the end of a frame file; None: before it.

    They are three, and fill the file to its end, so that no other place can be theirs.
    """
    for begin in range(len(raw) % BLOCK, len(raw), BLOCK):
        if raw[begin : begin + 8] != b"XTENSION":
            continue
        with contextlib.suppress(BadFrame, *_DAMAGE):
            _tables(raw[begin:])
            return begin
    return None


def _check_shapes(hdus: list[_Hdu]) -> None:
    calibration, *tables = (hdu.header for hdu in hdus)
    if calibration["BITPIX"] != -32 or calibration["NAXIS1"] != FRAME_SHAPE[1]:
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
