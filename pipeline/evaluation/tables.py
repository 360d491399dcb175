"""The content of metrics.json as tables for people: Markdown and CSV."""

from __future__ import annotations

import csv
import io

HEADERS = {
    "sigma_mad": "sigma_mad", "eta": "eta [%]", "bias": "bias", "crps": "CRPS",
    "pit_spread": "PIT spread",
}  # fmt: skip
_DIGITS = {"sigma_mad": 5, "eta": 2, "bias": 5, "crps": 5, "pit_spread": 3}


def to_markdown(content: dict) -> str:
    """Scores, paired differences and label efficiency of a metrics.json, as Markdown."""
    level = f"{100 * content['bootstrap']['level']:g} %"
    parts = [
        "# Photometric redshifts of the test galaxies",
        _about(content),
        f"Brackets: {level} intervals: a bootstrap over galaxies, Student's t over seeds. "
        "PIT spread: 1 is right, more is too narrow. The catalogue's PDF is a Gaussian of its "
        "stated error.",
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
    text = io.StringIO()
    ends = ("value", "low", "high")
    names = [name if end == "value" else f"{name}_{end}" for name in HEADERS for end in ends]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["start", "fraction", "labels", "seeds", "galaxies", *names])
    for row in content["scores"]:
        values = [row["measures"][name][end] for name in HEADERS for end in ends]
        about = [row["start"], row["fraction"], row["labels"], len(row["seeds"]), row["galaxies"]]
        writer.writerow(["" if value is None else value for value in (*about, *values)])
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
    """`0.00825 [0.00819, 0.00831]`; eta in per cent; a dash for what cannot be known."""
    if one["value"] is None:
        return "–"
    scale, digits = (100 if name == "eta" else 1), _DIGITS[name]
    value = f"{scale * one['value']:.{digits}f}"
    value = f"**{value}**" if mark else value
    if one["low"] is None:
        return value
    return f"{value} [{scale * one['low']:.{digits}f}, {scale * one['high']:.{digits}f}]"


def _table(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "None: nothing to compare."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _score_table(rows: list[dict]) -> str:
    header = ["start", "fraction", "labels", "seeds", "galaxies", *HEADERS.values()]
    return _table(header, [
        [row["start"], *("–" if row[key] is None else f"{row[key]:g}" if key == "fraction"
                         else str(row[key]) for key in ("fraction", "labels")),
         str(len(row["seeds"])) if row["fraction"] is not None else "–", str(row["galaxies"]),
         *(_text(name, row["measures"][name]) for name in HEADERS)]
        for row in rows
    ])  # fmt: skip


def _difference_table(rows: list[dict]) -> str:
    header = ["first", "minus", "galaxies", *HEADERS.values()]
    return _table(header, [
        [row["of"], row["minus"], str(row["galaxies"]),
         *(_text(name, row["measures"][name], bool(row["measures"][name]["excludes_zero"]))
           for name in HEADERS)]
        for row in rows
    ])  # fmt: skip


def _efficiency_table(rows: list[dict]) -> str:
    header = ["start", "fraction", "labels", "the supervised net needs", "ratio"]
    return _table(header, [
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
