"""The figures of the benchmark of the cutouts, to be read by people and by programs."""

from __future__ import annotations

import natives
import routes
from measure import Cost


def table(figures: dict) -> str:
    """Routes, expectations and decompressors, as text."""
    head = (
        f"{figures['galaxies']} galaxies on {figures['frames']} frames, {figures['cores']} cores; "
        "seconds per galaxy, five bands.\n"
        f"Floor and pipeline: median of {figures['repeats']} rounds; "
        f"per-object routes: the first {figures['slow_galaxies']} galaxies."
    )
    columns = ("route", "s", "CPU s", "x ours", "peak MB", "differs", "")
    parts = [
        head,
        _aligned([columns, *_rows(figures)]),
        _aligned([("", "clock", "CPU", "expected"), *_expectations(figures)]),
        _aligned([("one frame, one thread", "ms", "CPU ms"), *_tools(figures)]),
        "x ours: over the pipeline's time with 1 worker. differs: rms difference from the\n"
        "pipeline's stamp, without the outermost ring, in sky noise.",
    ]
    if "start_up_s" in figures:
        parts.append(
            f"Before the first frame (not counted): {figures['start_up_s']:.1f} s for imports and "
            f"Dask; once ever {figures['compile_s']:.1f} s to compile the kernel."
        )
    return "\n\n".join(parts)


OWN = {
    "floor": "each frame decompressed once by the fastest",
    "ours": "frame by frame, 1 worker",
    "ours-2": "frame by frame, 2 workers",
}


def _rows(figures: dict) -> list[tuple]:
    ours, peaks = figures["cost"]["ours"], figures.get("peak_mb", {})
    rows = [
        _row(name, figures["cost"][name], ours, peaks.get(name), None, does)
        for name, does in OWN.items()
    ]
    for name, found in figures["objects"].items():
        does = routes.ROUTES[name].does
        if found["missing"]:
            rows.append(_absent(name, f"{does}: {', '.join(found['missing'])} not on the PATH"))
        else:
            cost, differs = found["cost"], found["difference"]
            rows.append(_row(name, cost, ours, peaks.get(name), differs, does))
    for name, cost in figures["natives"].items():
        does = natives.CUTTERS[name][1]
        if cost is None:
            rows.append(_absent(name, f"not installed (pip install {name}); {does}"))
        else:
            rows.append(_row(name, cost, ours, None, None, does))
    return rows


def _row(name: str, cost: Cost, ours: Cost, peak, differs, does: str) -> tuple:
    times = f"{cost.wall / ours.wall:.2f}"
    peak = "" if peak is None else f"{peak:.0f}"
    differs = "" if differs is None else f"{differs:.0e}"
    return name, f"{cost.wall:.3f}", f"{cost.cpu:.3f}", times, peak, differs, does


def _absent(name: str, why: str) -> tuple:
    return name, "-", "-", "-", "", "", why


def comparisons(figures: dict) -> dict[str, Cost | None]:
    """The ratios that the project promises; None where they were not measured."""
    ours = figures["cost"]["ours"]
    costs = {name: found.get("cost") for name, found in figures["objects"].items()}
    few, many = figures.get("dense_mb", {"few": None, "many": None}).values()
    return {
        "paper_over_ours": _over(costs.get("paper"), ours),
        "montage_over_ours": _over(costs.get("montage"), ours),
        "montage_pp_over_ours": _over(costs.get("montage-pp"), ours),
        "ours_over_floor": figures["over_floor"],
        "one_worker_over_two": figures["one_over_two"],
        "memory_many_over_few": many and Cost(many / few, many / few),
    }


def _over(cost: Cost | None, ours: Cost) -> Cost | None:
    return cost and Cost(cost.wall / ours.wall, cost.cpu / ours.cpu)


EXPECTED = {
    "paper_over_ours": (">= 20", "the paper's way over ours"),
    "montage_over_ours": (">= 6", "mSubimage, mProject over ours"),
    "montage_pp_over_ours": (">= 6", "mSubimage, mProjectPP over ours"),
    "ours_over_floor": ("<= 1.25", "ours, 1 worker, over the floor"),
    "one_worker_over_two": (">= 1.8", "1 worker over 2"),
    "memory_many_over_few": ("<= 1.10", "peak memory, galaxies"),
}
"""Name of a comparison -> what is expected of it on the clock, and its words."""


def _expectations(figures: dict) -> list[tuple]:
    """Each comparison on the clock and of processor; of these some mean nothing."""
    few_many = figures.get("dense_mb", {})
    rows = []
    for name, ratio in comparisons(figures).items():
        expected, words = EXPECTED[name]
        clock, cpu = (f"{ratio.wall:.2f}", f"{ratio.cpu:.2f}") if ratio else ("-", "")
        if name == "memory_many_over_few":
            words = f"{words} {' over '.join(reversed(few_many))}"
            cpu = " / ".join(f"{mb:.0f} MB" for mb in reversed(few_many.values()))
        elif name == "one_worker_over_two":
            cpu = ""
        rows.append((words, clock, cpu, expected))
    return rows


def _tools(figures: dict) -> list[tuple]:
    tools = sorted(figures["decompressors"].items(), key=lambda item: item[1].wall)
    return [(name, f"{1e3 * cost.wall:.0f}", f"{1e3 * cost.cpu:.0f}") for name, cost in tools]


def _aligned(rows: list[tuple]) -> str:
    """Columns as wide as their widest cell; the first and the last to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def plain(figures: dict) -> dict:
    """The figures and comparisons as JSON can hold them; costs as {"wall", "cpu"}."""
    expected = {name: bound for name, (bound, _) in EXPECTED.items()}
    return bare({**figures, "comparisons": comparisons(figures), "expected": expected})


def bare(value: object) -> object:
    """A value as JSON can hold it; costs as {"wall", "cpu"}."""
    if isinstance(value, Cost):
        return {name: round(seconds, 5) for name, seconds in value._asdict().items()}
    if isinstance(value, dict):
        return {name: bare(each) for name, each in value.items()}
    return round(value, 8) if isinstance(value, float) else value
