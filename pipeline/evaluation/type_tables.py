"""The scores of predicted types as tables for people: Markdown and CSV."""

from __future__ import annotations

from pipeline.evaluation.classify import MEASURES
from pipeline.evaluation.tables import csv_text, interval_text, markdown_table, minus_best_text

HEADERS = {
    "accuracy": "accuracy", "precision": "precision", "recall": "recall", "roc_auc": "ROC AUC",
}  # fmt: skip
_DIGITS = 4
_ABOUT = ["start", "labels", "seeds", "galaxies"]


def to_markdown(content: dict) -> str:
    """Methods, scores and paired differences of a metrics.json, as Markdown."""
    level = f"{100 * content['bootstrap']['level']:g} %"
    return "\n\n".join([
        "# Early and late types of the test galaxies",
        _about(content),
        f"Brackets: {level} intervals: a bootstrap over galaxies, Student's t over seeds.",
        "## All methods, most labels",
        "In the order of accuracy. Last: accuracy minus the first row's, paired; bold: the "
        "interval excludes zero.",
        _method_table(content["methods"]),
        "## All numbers of labels",
        markdown_table(_header(), [_score_cells(row) for row in content["scores"]]),
        "## Paired differences",
        "Above zero: the first is better. Bold: the interval excludes zero.",
        _difference_table(content["differences"]),
    ]) + "\n"  # fmt: skip


def to_csv(content: dict) -> str:
    """A row a start and number of labels, with value, low and high of each measure."""
    return csv_text(content["scores"], ("start", "labels"), MEASURES)


def one_line(row: dict) -> str:
    """A row of the scores as a line of the log."""
    accuracy, area = (interval_text(row["measures"][name], _DIGITS)
                      for name in ("accuracy", "roc_auc"))  # fmt: skip
    return f"{row['start']} {row['labels']}: accuracy {accuracy}, ROC AUC {area}"


def _about(content: dict) -> str:
    test = content["test_galaxies"]
    left_out = test["predicted"] - test["compared"]
    more = f"; {left_out} left out, not predicted by every run" if left_out else ""
    return (
        f"{test['compared']} test galaxies compared: {test['early']} of early type, {test['late']} "
        f"of late type{more}. Precision and recall are those of early types, the positive class: "
        f"a galaxy is called early where p_early is {content['threshold']:g} or more."
    )


def _header() -> list[str]:
    return [*_ABOUT, *HEADERS.values()]


def _score_cells(row: dict) -> list[str]:
    return [
        row["start"], str(row["labels"]), str(len(row["seeds"])), str(row["galaxies"]),
        *(interval_text(row["measures"][name], _DIGITS) for name in HEADERS),
    ]  # fmt: skip


def _method_table(rows: list[dict]) -> str:
    cells = [[*_score_cells(row), minus_best_text(row, _DIGITS)] for row in rows]
    return markdown_table([*_header(), "accuracy - best"], cells)


def _difference_table(rows: list[dict]) -> str:
    return markdown_table(["first", "minus", *HEADERS.values()], [
        [row["of"], row["minus"],
         *(interval_text(one, _DIGITS, mark=bool(one["excludes_zero"]))
           for one in (row["measures"][name] for name in HEADERS))]
        for row in rows
    ])  # fmt: skip
