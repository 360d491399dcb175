"""The rules of the full run as a picture: docs/rules.svg, of surveys/sdss-dr12.yaml.

`python benchmarks/rules.py` draws Snakemake's own graph of rules with Graphviz (Debian: graphviz),
without arrows that follow from others. The one that goes back is dashed: the frames of a shard wait
for the stamps of the shard `frames: window` before it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pipeline.settings import ROOT

COLOURS = {
    "#dbe9f6": ("query", "catalog", "plan"),
    "#d9f0d3": ("frames", "cutouts", "dataset", "pictures"),
    "#fde0c5": ("pretrain", "train", "train_morphology", "embed", "photoz", "photoz_test"),
    "#eadcf4": ("search", "atlas", "evaluate", "evaluate_morphology"),
}
FONT = 'fontname="Helvetica,sans-serif"'
HEAD = f"""digraph rules {{
graph [rankdir=LR, bgcolor=white, margin=0.05, nodesep=0.18, ranksep=0.35];
node [shape=box, style="rounded,filled", fillcolor="#eeeeee", {FONT}, fontsize=11, height=0.3,
      margin="0.10,0.04", penwidth=0.6];
edge [color="#777777", arrowsize=0.6];
"""
BACK = ("cutouts", "frames")


def edges(survey: Path) -> set[tuple[str, str]]:
    """(rule, rule that needs it) of a survey's run, as Snakemake has them."""
    snakemake = Path(sys.executable).with_name("snakemake")
    words = [str(snakemake), "--rulegraph", "dot", "--configfile", str(survey)]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', said))
    return {(names[start], names[end]) for start, end in re.findall(r"(\d+) -> (\d+)", said)}


def graphviz(program: str, text: str) -> str:
    """What one of Graphviz's programs makes of a graph."""
    done = subprocess.run(program.split(), input=text, capture_output=True, text=True, check=True)
    return done.stdout


def picture(found: set[tuple[str, str]]) -> str:
    """The graph as SVG."""
    forward = "\n".join(f"{start} -> {end}" for start, end in sorted(found - {BACK}))
    reduced = re.findall(r"(\w+) -> (\w+)", graphviz("tred", f"digraph rules {{\n{forward}\n}}"))
    lines = [
        f'{rule} [fillcolor="{colour}"];' for colour, rules in COLOURS.items() for rule in rules
    ]
    lines += [f"{start} -> {end};" for start, end in reduced]
    back = f'[style=dashed, constraint=false, label="window", fontsize=9, {FONT}]'
    lines.append(f"{BACK[0]} -> {BACK[1]} {back};")
    return graphviz("dot -Tsvg", HEAD + "\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    svg = picture(edges(ROOT / "surveys" / "sdss-dr12.yaml"))
    (ROOT / "docs" / "rules.svg").write_text(svg)
