"""Frames as SDSS writes them: four HDUs, their cards, their rounding, one bzip2 stream."""

from __future__ import annotations

import bz2
from datetime import UTC, datetime, timedelta

import numpy as np
from astropy.wcs import WCS

from pipeline.simulation.detector import interpolate_sky, interpolation_grid
from pipeline.simulation.scan import FRAME_OFFSET, NODE
from pipeline.survey.names import FRAME_SHAPE, RERUN, Field

CAMERA_ROW = {"r": 1, "i": 2, "u": 3, "z": 4, "g": 5}
ASTRANS = np.dtype(
    [("RUN", ">i4"), ("RERUN", "S3"), ("CAMCOL", ">i4"), ("FILTER", "S1")]
    + [("NODE", ">f8"), ("INCL", ">f8"), ("NAXIS", ">i4", 2), ("FIELD", ">i4")]
    + [(name, ">f8") for name in "ABCDEF"]
    + [(f"{name}{k}", ">f8") for name in ("DROW", "DCOL") for k in range(4)]
    + [(name, ">f8") for name in ("CSROW", "CSCOL", "CCROW", "CCCOL", "RICUT", "MJD", "AIRMASS")]
    + [("MUERR", ">f4"), ("NUERR", ">f4")]
)
FLOAT_BITS = 9
"""Explicit mantissa bits that FLOATCOMPRESS keeps (10 significant binary digits)."""


def round_floats(image: np.ndarray) -> np.ndarray:
    """float32 with 10 significant binary digits, rounded to nearest: the low 14 bits are zero."""
    bits = np.ascontiguousarray(image, dtype=np.float32).view(np.uint32)
    drop = 23 - FLOAT_BITS
    rounded = ((bits + np.uint32(1 << (drop - 1))) >> np.uint32(drop)) << np.uint32(drop)
    # NaN and infinity stay what they are: carrying into the exponent would change them.
    return np.where(np.isfinite(image), rounded, bits).view(np.float32)


def calibrated(dn: np.ndarray, sky: np.ndarray, calibvec: np.ndarray) -> np.ndarray:
    """Frame pixels [nanomaggy] of integer DN, less the sky table, in a frame's own rounding."""
    image = (dn - interpolate_sky(sky)) * calibvec.astype(np.float64)
    return round_floats(image.astype(np.float32))


def make_frame_bytes(*args, **kwargs) -> bytes:
    """A corrected frame as one bzip2 stream: `frame_content`, compressed."""
    return bz2.compress(frame_content(*args, **kwargs), 9)


def frame_content(
    image: np.ndarray,
    wcs: WCS,
    field: Field,
    band: str,
    calibvec: np.ndarray | None = None,
    sky: np.ndarray | None = None,
    astrans: dict[str, float] | None = None,
    tai: float = 4.5e9,
    inclination: float = 0.0,
) -> bytes:
    """A corrected frame, uncompressed, with the HDUs, cards and types of SDSS's own.

    `image` (1489, 2048) [nanomaggy], rounded here as SDSS rounds; `wcs` a TAN WCS with a CD
    matrix; `calibvec` (2048,) [nanomaggy per DN], default 0.005; `sky` (192, 256) [DN], default
    100; `astrans` the scan coefficients of HDU 3, default zero; `tai` [s] of the first row.
    """
    if np.shape(image) != FRAME_SHAPE:
        raise ValueError(f"a frame has {FRAME_SHAPE} pixels, not {np.shape(image)}")
    calibvec = np.full(FRAME_SHAPE[1], 0.005) if calibvec is None else calibvec
    sky = np.full((192, 256), 100.0) if sky is None else sky
    x, y = interpolation_grid()
    pixels, vector = round_floats(image).astype(">f4"), calibvec.astype(">f4")
    sky_row = sky.astype(">f4").tobytes() + x.astype(">f4").tobytes() + y.astype(">f4").tobytes()
    trans = _astrans_row(field, band, astrans or {}, tai)
    sky_columns = {"ALLSKY": f"{sky.size}E", "XINTERP": f"{x.size}E", "YINTERP": f"{y.size}E"}
    dimensions = f"({sky.shape[1]:4d},{sky.shape[0]:4d})"
    return b"".join(
        (
            _header(_image_cards(field, band, wcs, float(vector.mean()), tai, inclination)),
            _padded(pixels.tobytes()),
            _header(_vector_cards(vector.size)),
            _padded(vector.tobytes()),
            _header(_table_cards(len(sky_row), sky_columns, dimensions)),
            _padded(sky_row),
            _header(_table_cards(ASTRANS.itemsize, _fits_columns(ASTRANS))),
            _padded(trans.tobytes()),
        )
    )


def _image_cards(
    field: Field, band: str, wcs: WCS, nmgy: float, tai: float, inclination: float
) -> list[str]:
    return (
        _telescope_cards(wcs, tai)
        + _scan_cards(field, band, inclination)
        + _camera_cards(field, band)
        + _history_cards(field)
        + _wcs_cards(wcs)
        + _calibration_cards(nmgy)
    )


def _telescope_cards(wcs: WCS, tai: float) -> list[str]:
    read = datetime(1858, 11, 17, tzinfo=UTC) + timedelta(seconds=tai)
    first, (ra, dec) = " / 1st row - ", wcs.wcs.crval
    return [
        _card("SIMPLE", "T", " /"), _card("BITPIX", "-32", " / 32 bit floating point"),
        _card("NAXIS", "2"), _card("NAXIS1", FRAME_SHAPE[1]), _card("NAXIS2", FRAME_SHAPE[0]),
        _card("EXTEND", "T", " /Extensions may be present"),
        _card("BZERO", "0.00000", " /Set by MRD_SCALE"),
        _card("BSCALE", "1.00000", " /Set by MRD_SCALE"),
        _card("TAI", f"{tai:.2f}", f"{first}Number of seconds since Nov 17 1858"),
        _card("RA", f"{ra:.6f}", f"{first}Right ascension of telescope boresigh"),
        _left("DEC", f"{dec:.6f}", f"{first}Declination of telescope boresight (d", 12),
        _left("SPA", "90.000", f"{first}Camera col position angle wrt north (", 14),
        _left("IPA", "52.960", f"{first}Instrument rotator position angle (de", 14),
        _left("IPARATE", "0.0000", f"{first}Instrument rotator angular velocity (", 14),
        _card("AZ", "314.11443", f"{first}Azimuth  (encoder) of tele (0=N?) (de"),
        _card("ALT", "47.414965", f"{first}Altitude (encoder) of tele        (de"),
        _card("FOCUS", "-502.20000", f"{first}Focus piston (microns?)"),
        _text("DATE-OBS", f"{read:%Y-%m-%d}", f"{first}TAI date", pad=10),
        _text("TAIHMS", f"{read:%H:%M:%S}.{read.microsecond // 10000:02d}",
              f"{first}TAI time (HH:MM:SS.SS) (TAI-UT = appr", pad=11),
        "COMMENT  TAI,RA,DEC,SPA,IPA,IPARATE,AZ,ALT,FOCUS at reading of col 0, row 0",
    ]  # fmt: skip


def _scan_cards(field: Field, band: str, inclination: float) -> list[str]:
    row, stripe = CAMERA_ROW[band], round(10 + inclination / 2.5)
    return [
        _text("ORIGIN", "SDSS"), _text("TELESCOP", "2.5m"), _text("TIMESYS", "TAI"),
        _card("RUN", field.run, " / Run number"),
        _card("FRAME", field.field + FRAME_OFFSET[band], " / Frame sequence number within the run"),
        _card("CCDLOC", 10 * row + field.camcol, " / Survey location of CCD (e.g., rowCol)"),
        _card("STRIPE", stripe, " / Stripe index number (23 <--> eta=0)"),
        _text("STRIP", "N", " / Strip in the stripe being tracked."),
        _text("FLAVOR", "science", " / Flavor of this run"),
        _text("SYS_SCN", "mean", " / System of the scan great circle (e.g., mean)"),
        _left("EQNX_SCN", "2000.00", " / Equinox of the scan great circle. (years)"),
        _left("NODE", f"{NODE:.5f}", " / RA of the great circle's ascending node (deg)"),
        _left("INCL", f"{inclination:.5f}", " / Great circle's inclination wrt cel. eq. (deg)"),
        _left("XBORE", "-22.74", " / Boresight x offset from the array center (mm)"),
        _left("YBORE", "0.00", " / Boresight x offset from the array center (mm)"),
        _text("OBJECT", f"{stripe} N", " / e.g., 'stripe 50.6 degrees, north strip'"),
        _text("EXPTIME", "53.907456", " / Exposure time (seconds)"),
        _text("SYSTEM", "FK5", " / System of the TCC coordinates (e.g., mean)"),
        _text("CCDMODE", "DRIFT", " / 'STARING' or 'DRIFT'"),
        _card("C_OBS", 26322, " / CCD row clock rate (usec/row)"),
        _card("COLBIN", 1, " / Binning factor perpendicular to the columns"),
        _card("ROWBIN", 1, " / Binning factor perpendicular to the rows"),
        _text("DAVERS", "v14_40", " / Version of DA software"),
    ]  # fmt: skip


def _camera_cards(field: Field, band: str) -> list[str]:
    return [
        "COMMENT  CCD-specific parameters",
        _card("CAMROW", CAMERA_ROW[band], " / Row in the imaging camera"),
        _card("BADLINES", 0, " / Number of bad lines in frame"),
        _card("EQUINOX", "2000.00", " /"),
        _card("SOFTBIAS", 1000, ' / software "bias" added to all DN'),
        _text("BUNIT", "nanomaggy", " / 1 nanomaggy = 3.631e-6 Jy", pad=9),
        _text("FILTER", band, " / filter used"),
        _card("CAMCOL", field.camcol, " / column in the imaging camera"),
    ]  # fmt: skip


def _history_cards(field: Field) -> list[str]:
    return [
        _text("VERSION", "v5_6_3", ""), _text("DERV_VER", "NOCVS:v8_23", ""),
        _text("ASTR_VER", "NOCVS:v5_24", ""), _text("ASTRO_ID", "2009-05-13T19:59:28 05149", ""),
        _text("BIAS_ID", "PS", ""), _text("FRAME_ID", "2009-10-08T10:19:21 04347", ""),
        _text("KO_VER", "devel", ""),
        _text("PS_ID", f"2009-05-13T19:26:00 21232 camCol {field.camcol}", ""),
        _text("ATVSN", "NOCVS:v5_24", " / ASTROTOOLS version tag"),
    ]  # fmt: skip


def _wcs_cards(wcs: WCS) -> list[str]:
    (cd11, cd12), (cd21, cd22) = wcs.wcs.cd
    ra, dec = wcs.wcs.crval
    return [
        _text("RADECSYS", "ICRS", " / International Celestial Ref. System"),
        _text("CTYPE1", "RA---TAN", "/Coordinate type"),
        _text("CTYPE2", "DEC--TAN", "/Coordinate type"),
        _text("CUNIT1", "deg", "/Units"), _text("CUNIT2", "deg", "/Units"),
        _card("CRPIX1", _significant(wcs.wcs.crpix[0]), " /X of reference pixel"),
        _card("CRPIX2", _significant(wcs.wcs.crpix[1]), " /Y of reference pixel"),
        _card("CRVAL1", _significant(ra), " /RA of reference pixel (deg)"),
        _card("CRVAL2", _significant(dec), " /Dec of reference pixel (deg)"),
        _card("CD1_1", _significant(cd11), " /RA deg per column pixel"),
        _card("CD1_2", _significant(cd12), " /RA deg per row pixel"),
        _card("CD2_1", _significant(cd21), " /Dec deg per column pixel"),
        _card("CD2_2", _significant(cd22), " /Dec deg per row pixel"),
        "HISTORY GSSSPUTAST: Oct  8 10:19:28 2009",
    ]  # fmt: skip


def _calibration_cards(nmgy: float) -> list[str]:
    return [
        "COMMENT  Calibration parameters",
        "COMMENT  Floats truncated at 10 binary digits with FLOATCOMPRESS",
        _card("NMGY", f"{nmgy:#.6g}", " / Calibration factor [nMgy per count]"),
        _card("NMGYIVAR", "0.166576", " / Calibration factor inverse variance"),
        _text("VERSIDL", "7.0", " / Version of IDL"),
        _text("VERSUTIL", "v5_5_5", " / Version of idlutils"),
        _text("VERSPOP", "v1_11_1", " / Version of photoop product"),
        _text("PCALIB", "/clusterfs/riemann/raid006/bosswork/groups/boss/calib/2009-06-14/cal", ""),
        _text("PSKY", "/clusterfs/riemann/raid006/bosswork/groups/boss/photo/sky", " / Value of"),
        _text("RERUN", str(RERUN), " / rerun"),
        "HISTORY SDSS_FRAME_ASTROM: Astrometry fixed for dr9 Wed Jun 13 20:38:35 2012",
    ]


def _vector_cards(size: int) -> list[str]:
    return [
        _text("XTENSION", "IMAGE", "/Image Extension created by MWRFITS v1.11"),
        _card("BITPIX", "-32", " /"), _card("NAXIS", 1, " /"), _card("NAXIS1", size, " /"),
        _card("PCOUNT", 0, " /"), _card("GCOUNT", 1, " /"),
    ]  # fmt: skip


def _table_cards(width: int, columns: dict[str, str], dimensions: str = "") -> list[str]:
    blank, numbered = "COMMENT", list(enumerate(columns.items(), 1))
    cards = [
        _text("XTENSION", "BINTABLE", "/Binary table written by MWRFITS v1.11"),
        _card("BITPIX", 8, " /Required value"), _card("NAXIS", 2, " /Required value"),
        _card("NAXIS1", width, " /Number of bytes per row"),
        _card("NAXIS2", 1, " /Number of rows"),
        _card("PCOUNT", 0, " /Normally 0 (no varying arrays)"),
        _card("GCOUNT", 1, " /Required value"),
        _card("TFIELDS", len(columns), " /Number of columns in table"),
        blank, "COMMENT  *** End of mandatory fields ***", blank,
        blank, "COMMENT  *** Column names ***", blank,
        *(_text(f"TTYPE{k}", name, "/") for k, (name, _) in numbered),
        blank, "COMMENT  *** Column formats ***", blank,
        *(_text(f"TFORM{k}", form, "/") for k, (_, form) in numbered),
    ]  # fmt: skip
    if dimensions:
        cards += [blank, "COMMENT  *** Column dimensions (2 D or greater) ***", blank]
        cards.append(_text("TDIM1", dimensions, "/"))
    return cards


def _fits_columns(dtype: np.dtype) -> dict[str, str]:
    letters = {"i4": "J", "f8": "D", "f4": "E"}
    columns = {}
    for name in dtype.names:
        base, shape = dtype[name].base, dtype[name].shape
        if base.kind == "S":
            count, letter = base.itemsize, "A"
        else:
            count, letter = (shape[0] if shape else 1), letters[base.str[1:]]
        columns[name] = f"{count if count > 1 else ''}{letter}"
    return columns


def _astrans_row(field: Field, band: str, coefficients: dict[str, float], tai: float) -> np.ndarray:
    row = np.zeros(1, ASTRANS)
    row["RUN"], row["RERUN"], row["CAMCOL"] = field.run, str(field.rerun), field.camcol
    row["FILTER"], row["NAXIS"], row["FIELD"] = band, FRAME_SHAPE[::-1], field.field
    row["RICUT"], row["MJD"], row["AIRMASS"] = 100.0, tai / 86400, 1.2
    row["MUERR"] = row["NUERR"] = 0.04
    for name, value in coefficients.items():
        row[name] = value
    return row


def _card(name: str, value, comment: str = "") -> str:
    return f"{name:<8}= {str(value):>20}{comment}"


def _left(name: str, value: str, comment: str, blanks: int = 11) -> str:
    """A card whose value follows `blanks` blanks, as the telescope's own software wrote some."""
    return f"{name:<8}={' ' * blanks}{value}".ljust(30) + comment


def _text(name: str, value: str, comment: str = "", pad: int = 8) -> str:
    quoted = f"'{value:<{pad}}'"
    return f"{name:<8}= {quoted:<20}{' ' if comment[:1] == '/' else ''}{comment}"


def _significant(value: float) -> str:
    """12 significant digits, as IDL's FXADDPAR writes them: `0.000110007508809`, `2.0E-08`."""
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.11E}"
    digits = 12 - (len(str(int(abs(value)))) if abs(value) >= 1 else 0)
    return f"{value:.{digits}f}" if abs(value) >= 0.1 or value == 0 else f"{value:#.12g}"


def _header(cards: list[str]) -> bytes:
    text = "".join(f"{card[:80]:<80}" for card in [*cards, "END"])
    return text.ljust(-(-len(text) // 2880) * 2880).encode("ascii")


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 2880) * 2880, b"\0")
