"""The content of metrics.json as tables for people: Markdown and CSV."""

from __future__ import annotations

import csv
import io

HEADERS = {
    "sigma_mad": "sigma_mad", "eta": "eta [%]", "bias": "bias", "crps": "CRPS",
    "pit_spread": "PIT spread",
}  # fmt: skip
_SCORE_HEADER = ["start", "fraction", "labels", "seeds", "galaxies", *HEADERS.values()]
_DIGITS = {"sigma_mad": 5, "eta": 2, "bias": 5, "crps": 5, "pit_spread": 3}


def to_markdown(content: dict) -> str:
    """Methods, scores, differences and label efficiency of a metrics.json, as Markdown."""
    level = f"{100 * content['bootstrap']['level']:g} %"
    parts = [
        "# Photometric redshifts of the test galaxies",
        _about(content),
        f"Brackets: {level} intervals: a bootstrap over galaxies, Student's t over seeds (of an "
        "ensemble over galaxies alone: of these very nets). "
        "PIT spread: 1 is right, more is too narrow. The catalogue's PDF is a Gaussian of its "
        "stated error.",
        "## All methods, most labels",
        _about_methods(content),
        _method_table(content["methods"]),
        "## All starts and fractions",
        _score_table(content["scores"]),
        "## Paired differences",
        "Below zero: the first is better (of bias and PIT spread: nearer to 0 and 1). "
        "Bold: the interval excludes zero.",
        _difference_table(content["differences"]),
        "## Label efficiency",
        "Labels that the supervised net needs for the same sigma_mad, by log-linear "
        "interpolation of its curve; > and < are bounds, where its curve ends.",
        _efficiency_table(content["label_efficiency"]),
    ]
    return "\n\n".join(parts) + "\n"


def to_csv(content: dict) -> str:
    """Scores as CSV: a row a start and fraction, with value, low and high of each measure."""
    return csv_text(content["scores"], ("start", "fraction", "labels"), tuple(HEADERS))


def csv_text(rows: list[dict], about: tuple[str, ...], measures: tuple[str, ...]) -> str:
    """CSV of rows of scores: the keys `about`, seeds, galaxies, and each measure with its ends."""
    text = io.StringIO()
    ends = ("value", "low", "high")
    names = [name if end == "value" else f"{name}_{end}" for name in measures for end in ends]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*about, "seeds", "galaxies", *names])
    for row in rows:
        values = [row["measures"][name][end] for name in measures for end in ends]
        first = [*(row[key] for key in about), len(row["seeds"]), row["galaxies"]]
        writer.writerow(["" if value is None else value for value in (*first, *values)])
    return text.getvalue()


def _about(content: dict) -> str:
    test, catalogue = content["test_galaxies"], content["catalogue"]
    lines = [f"{test['compared']} test galaxies compared"]
    if test["predicted"] > test["compared"]:
        lines.append(f"{test['predicted'] - test['compared']} left out, not predicted by every run")
    if test["test"] > test["predicted"]:
        lines.append(f"{test['test'] - test['predicted']} of the catalogue without a prediction")
    lines.append(f"{catalogue['without']} without a photo-z with its error in the catalogue")
    return "; ".join(lines) + "."


def _text(name: str, one: dict, mark: bool = False) -> str:
    """`interval_text` of a measure; eta in per cent."""
    return interval_text(one, _DIGITS[name], 100 if name == "eta" else 1, mark)


def interval_text(one: dict, digits: int, scale: float = 1, mark: bool = False) -> str:
    """`0.00825 [0.00819, 0.00831]`, bold if marked; a dash for what cannot be known."""
    if one["value"] is None:
        return "–"
    value = f"{scale * one['value']:.{digits}f}"
    value = f"**{value}**" if mark else value
    if one["low"] is None:
        return value
    return f"{value} [{scale * one['low']:.{digits}f}, {scale * one['high']:.{digits}f}]"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table; a line that says so where there are none."""
    if not rows:
        return "None: nothing to compare."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _about_methods(content: dict) -> str:
    compared = content["test_galaxies"]["compared"]
    part = [
        f", but the {row['start']} on {row['galaxies']}, as are its differences"
        for row in content["methods"]
        if row["galaxies"] < compared
    ]
    return (
        f"In the order of sigma_mad, on all {compared} test galaxies{''.join(part)}. "
        "Last: sigma_mad minus the first row's, paired; bold: the interval excludes zero."
    )


def _method_table(rows: list[dict]) -> str:
    header = [*_SCORE_HEADER, "sigma_mad - best"]
    return markdown_table(header, [
        [*_score_cells(row), minus_best_text(row, _DIGITS["sigma_mad"])] for row in rows
    ])  # fmt: skip


def minus_best_text(row: dict, digits: int) -> str:
    """The last cell of a row of the methods; a dash for the best."""
    found = row["minus_best"]
    return "–" if found is None else interval_text(found, digits, mark=bool(found["excludes_zero"]))


def _score_table(rows: list[dict]) -> str:
    return markdown_table(_SCORE_HEADER, [_score_cells(row) for row in rows])


def _score_cells(row: dict) -> list[str]:
    known = row["fraction"] is not None
    return [
        row["start"], f"{row['fraction']:g}" if known else "–",
        str(row["labels"]) if known else "–", str(len(row["seeds"])) if known else "–",
        str(row["galaxies"]), *(_text(name, row["measures"][name]) for name in HEADERS),
    ]  # fmt: skip


def _difference_table(rows: list[dict]) -> str:
    header = ["first", "minus", "galaxies", *HEADERS.values()]
    return markdown_table(header, [
        [row["of"], row["minus"], str(row["galaxies"]),
         *(_text(name, row["measures"][name], bool(row["measures"][name]["excludes_zero"]))
           for name in HEADERS)]
        for row in rows
    ])  # fmt: skip


def _efficiency_table(rows: list[dict]) -> str:
    header = ["start", "fraction", "labels", "the supervised net needs", "ratio"]
    return markdown_table(header, [
        [row["start"], f"{row['fraction']:g}", str(row["labels"]),
         _bounds(row["equivalent_labels"], ".0f"), _bounds(row["ratio"], ".2f")]
        for row in rows
    ])  # fmt: skip


def _bounds(found: dict, form: str) -> str:
    texts = {
        name: f"{one['relation']} ".replace("= ", "") + format(one["value"], form)
        for name, one in found.items()
    }
    return f"{texts['value']} [{texts['low']}, {texts['high']}]"


def one_line(row: dict) -> str:
    """A row of the scores as a line of the log."""
    measures = row["measures"]
    fraction = "" if row["fraction"] is None else f" {row['fraction']:g}"
    sigma, eta = (_text(name, measures[name]) for name in ("sigma_mad", "eta"))
    return f"{row['start']}{fraction}: sigma_mad {sigma}, eta {eta} %"
