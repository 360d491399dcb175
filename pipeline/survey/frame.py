"""The corrected frame: SDSS's FITS format, read and checked.

HDU 0 is the image in nanomaggies per pixel, sky subtracted; HDU 1 the calibration vector
(nanomaggies per DN, a value a column); HDU 2 the sky that was subtracted, in DN, coarse; HDU 3
the astrometric terms. Pixels are 0-based here, pixel k covers k - 0.5 to k + 0.5.
"""

from __future__ import annotations

import bz2
import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from pipeline.survey.names import Field

BLOCK = 2880
"""Bytes of a FITS block."""


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # RADECSYS, which all frames have
            return WCS(self.header)

    def sky_noise(self) -> float:
        """Noise of the sky [nMgy per pixel]: 1.4826 MAD of one pixel in 64."""
        sample = self.image[4::8, 4::8].astype(np.float32)
        sample = sample[np.isfinite(sample)]
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

    Raises:
        BadFrame: empty, not bz2, truncated or damaged.
    """
    if not data:
        raise BadFrame("the file is empty")
    if data[:3] != b"BZh":
        raise BadFrame("the file is not bzip2")
    try:
        return bz2.decompress(data)
    except (ValueError, EOFError):
        raise BadFrame("the bzip2 file is truncated") from None
    except OSError:
        raise BadFrame("the bzip2 data are damaged (CRC)") from None


def parse(raw: bytes, field: Field, band: str) -> Frame:
    """Check and parse an uncompressed frame; the image is a view of `raw`.

    Raises:
        BadFrame: as `read`, but for the compression.
    """
    if raw[:6] != b"SIMPLE":
        raise BadFrame("what is in the bzip2 file is not FITS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(BytesIO(raw), memmap=False, lazy_load_hdus=False) as hdus:
                _check_structure(hdus, len(raw))
                check_identity(hdus[0].header, field, band, hdus[3].data["FIELD"][0])
                table = hdus[2].data
                frame = Frame(
                    _image(raw, hdus[0]),
                    hdus[0].header,
                    hdus[1].data,
                    table["ALLSKY"][0],
                    table["YINTERP"][0],
                    table["XINTERP"][0],
                )
        except (OSError, ValueError, TypeError, KeyError, fits.VerifyError) as error:
            raise BadFrame(f"the FITS file is damaged ({' '.join(str(error).split())})") from None
    if not np.isfinite(frame.image).any():
        raise BadFrame("the frame has no finite pixel")
    return frame


def _image(raw: bytes, hdu: fits.PrimaryHDU) -> np.ndarray:
    shape = (hdu.header["NAXIS2"], hdu.header["NAXIS1"])
    start = hdu.fileinfo()["datLoc"]
    return np.frombuffer(raw, ">f4", shape[0] * shape[1], start).reshape(shape)


def _check_structure(hdus: fits.HDUList, length: int) -> None:
    if len(hdus) != 4:
        raise BadFrame(f"the FITS file has {len(hdus)} HDUs where a frame has 4")
    last = hdus[-1].fileinfo()
    end = last["datLoc"] + last["datSpan"]
    if length < end or length % BLOCK:
        raise BadFrame(f"the FITS file has {length} bytes where its headers tell of {end}")
    header = hdus[0].header
    if header["NAXIS"] != 2 or header["BITPIX"] != -32:
        raise BadFrame("the first HDU is not a float32 image")
    if hdus[1].header["NAXIS1"] != header["NAXIS1"]:
        raise BadFrame("the calibration vector is not as long as the image is wide")


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


def _header_length(raw: bytes) -> int:
    for end in range(BLOCK, len(raw) + 1, BLOCK):
        block = raw[end - BLOCK : end]
        if any(block[at : at + 80].rstrip() == b"END" for at in range(0, BLOCK, 80)):
            return end
    raise ValueError("no END card")
