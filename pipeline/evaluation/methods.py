"""All methods in one table: each with its most labels, the best first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Scored = TypeVar("Scored")


def ranked(
    entries: Sequence[tuple[dict, Scored]],
    measure: str,
    better: str,
    pair: Callable[[Scored, Scored], dict],
) -> list[dict]:
    """Rows of the scores in the order of a measure, each with its distance from the first.

    The best is best on these very galaxies: by luck too, where a difference does not exclude zero.

    Args:
        entries: (row of the scores, what it was made of), a method each.
        measure: name of the measure to go by.
        better: "low" or "high".
        pair: the paired difference of two methods, as in `differences` of metrics.json.

    Returns:
        The rows with another key, `minus_best`: of the measure, its name, `minus` (the best),
        `galaxies` (that both have), value, low, high, p and excludes_zero; null for the best.
    """
    sign = {"low": 1, "high": -1}[better]

    def place(entry: tuple[dict, Scored]) -> tuple[float, str]:
        return sign * entry[0]["measures"][measure]["value"], entry[0]["start"]

    order = sorted(entries, key=place)
    (_, best), *_ = order
    return [
        row | {"minus_best": None if one is best else _minus(pair(one, best), measure)}
        for row, one in order
    ]


def _minus(found: dict, measure: str) -> dict:
    about = {"measure": measure, "minus": found["minus"], "galaxies": found["galaxies"]}
    return about | found["measures"][measure]
