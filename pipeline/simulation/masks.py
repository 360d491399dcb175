"""fpM pixel masks as SDSS writes them: runs of pixels per object, one HDU a plane."""

from __future__ import annotations

import gzip
import io

import numpy as np
from scipy import ndimage

from pipeline.simulation.artefacts import Artefact, on_frame
from pipeline.simulation.detector import chip
from pipeline.simulation.plan import Plan
from pipeline.simulation.render import Stamp
from pipeline.simulation.scan import first_row
from pipeline.survey.names import FRAME_SHAPE, Field

PLANES = (
    "INTERP", "SATUR", "NOTCHECKED", "OBJECT", "BRIGHTOBJECT", "BINOBJECT", "CATOBJECT",
    "SUBTRACTED", "GHOST", "CR",
)  # fmt: skip
_COLUMNS = ("refcntr", "nspan", "row0", "col0", "rmin", "rmax", "cmin", "cmax", "npix")


def planes(
    plan: Plan, field: Field, band: str, dn: np.ndarray, drawn: list[Stamp], found: list[Artefact]
) -> dict[str, np.ndarray]:
    """The masks (1489, 2048) that the simulation knows: SATUR, CR and INTERP (either of the two).

    Trails are in none of them, as in SDSS.
    """
    row0 = first_row(plan, field)
    saturated = dn >= chip(plan, field.run, field.camcol, band).saturation
    cosmic = np.zeros(FRAME_SHAPE, bool)
    for stamp in drawn:
        if stamp.bleed is not None:
            common = stamp.overlap(row0, 0, FRAME_SHAPE)
            saturated[common[0]] |= stamp.bleed[common[1]]
    for artefact in found:
        if artefact.kind == "cosmic_ray":
            row, col = artefact.pixels[on_frame(artefact.pixels, row0)].T
            cosmic[row - row0, col] = True
    return {"INTERP": saturated | cosmic, "SATUR": saturated, "CR": cosmic}


def make_mask_bytes(field: Field, masks: dict[str, np.ndarray]) -> bytes:
    """An fpM file, gzipped: planes not in `masks` are empty; the last HDU names the planes."""
    parts = [_header(_primary_cards(field))]
    for name in PLANES:
        mask = masks.get(name)
        parts.append(_plane(_regions(mask) if mask is not None else []))
    parts.append(_names())
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as handle:
        handle.write(b"".join(parts))
    return packed.getvalue()


def _regions(mask: np.ndarray) -> list[np.ndarray]:
    """Spans (n, 3) of (row, first column, last column) of each connected group of pixels."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    regions = []
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        spans = []
        for row in range(box[0].start, box[0].stop):
            line = np.concatenate(([0], (labels[row, box[1]] == k).astype(np.int8), [0]))
            begin, end = np.flatnonzero(np.diff(line) == 1), np.flatnonzero(np.diff(line) == -1)
            spans += [
                (row, b + box[1].start, e - 1 + box[1].start)
                for b, e in zip(begin, end, strict=True)
            ]
        regions.append(np.array(spans, dtype=np.int64))
    return regions


def _plane(regions: list[np.ndarray]) -> bytes:
    """One plane's table: a row a region, its spans in the heap as 16-bit numbers."""
    rows, heap = [], []
    offset = 0
    for spans in regions:
        npix = int((spans[:, 2] - spans[:, 1] + 1).sum())
        fixed = [
            1,
            len(spans),
            0,
            0,
            spans[0, 0],
            spans[-1, 0],
            spans[:, 1].min(),
            spans[:, 2].max(),
            npix,
        ]
        packed = spans.astype(">i2").tobytes()
        rows.append([*map(int, fixed), len(packed), offset])
        heap.append(packed)
        offset += len(packed)
    data = np.array(rows, dtype=">i4").tobytes() if rows else b""
    cards = [
        "XTENSION= 'BINTABLE'", _card("BITPIX", 8), _card("NAXIS", 2), _card("NAXIS1", 44),
        _card("NAXIS2", len(rows)), _card("PCOUNT", offset), _card("GCOUNT", 1),
        _card("TFIELDS", 10), _card("THEAP", len(data)),
    ]  # fmt: skip
    for k, name in enumerate(_COLUMNS, 1):
        cards += [f"TFORM{k:<3}= '1J      ' /INT", f"TTYPE{k:<3}= '{name:<8}' /{name}"]
    longest = max((len(part) for part in heap), default=0)
    cards += [f"TFORM10 = '1PB({longest})  ' /SPAN", "TTYPE10 = 's       ' /s"]
    body = data + b"".join(heap)
    return _header(cards) + body.ljust(-(-len(body) // 2880) * 2880, b"\0")


def _names() -> bytes:
    rows = [(f"S_MASK_{name}", k) for k, name in enumerate(PLANES)] + [
        ("S_NMASK_TYPES", len(PLANES))
    ]
    table = np.zeros(len(rows), [("defName", "S31"), ("attributeName", "S31"), ("Value", ">i4")])
    table["defName"] = "S_MASKTYPE"
    table["attributeName"] = [name for name, _ in rows]
    table["Value"] = [value for _, value in rows]
    cards = [
        "XTENSION= 'BINTABLE'", _card("BITPIX", 8), _card("NAXIS", 2), _card("NAXIS1", 66),
        _card("NAXIS2", len(rows)), _card("PCOUNT", 0), _card("GCOUNT", 1), _card("TFIELDS", 3),
        "TYPENAME= 'S_MASKTYPE'",
    ]  # fmt: skip
    for k, (form, name) in enumerate(
        (("31A", "defName"), ("31A", "attributeName"), ("1J", "Value")), 1
    ):
        cards += [f"TFORM{k}  = '{form:<8}'", f"TTYPE{k}  = '{name:<8}'"]
    data = table.tobytes()
    return _header(cards) + data.ljust(-(-len(data) // 2880) * 2880, b"\0")


def _primary_cards(field: Field) -> list[str]:
    return [
        _card("SIMPLE", "T"), _card("BITPIX", 8), _card("NAXIS", 0), _card("EXTEND", "T"),
        f"{_card('RUN', field.run)} / Imaging run number",
        f"{_card('CAMCOL', field.camcol)} / Column in the imaging camera",
        f"{_card('FIELD', field.field)} / Field sequence number",
        f"{_card('NFILTER', 5)} / number of colours processed",
        f"{_card('MASKROWS', FRAME_SHAPE[0])} / number of rows in the mask",
        f"{_card('MASKCOLS', FRAME_SHAPE[1])} / number of columns in the mask",
        f"{_card('NPLANE', len(PLANES))} / number of types of mask",
        "VERSION = 'v5_6_3  '", "DERV_VER= 'NOCVS:v8_23'", "ASTR_VER= 'NOCVS:v5_24'",
    ]  # fmt: skip


def _card(name: str, value) -> str:
    return f"{name:<8}= {value!s:>20}"


def _header(cards: list[str]) -> bytes:
    text = "".join(f"{card:<80}" for card in [*cards, "END"])
    return text.ljust(-(-len(text) // 2880) * 2880).encode("ascii")
