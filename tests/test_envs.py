"""envs/*.yaml hold what the stages that run in them import, at the versions of the pip pins.

No conda channel is asked: whether they can be solved is not known from here.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import settings

ROOT = Path(__file__).resolve().parent.parent
CONDA = {
    "dask": "dask-core", "duckdb": "python-duckdb", "faiss": "faiss-cpu", "umap": "umap-learn",
    "matplotlib": "matplotlib-base", "PIL": "pillow", "sklearn": "scikit-learn", "torch": "pytorch",
    "yaml": "pyyaml", "astropy_healpix": "astropy-healpix", "montage_wrapper": "montage-wrapper",
    "snakemake": "snakemake-minimal",
}  # fmt: skip
"""Import name, or pip's, -> conda's name, where they differ."""
BROUGHT = {"requests", "urllib3"}
"""What astroquery, which is among them, cannot do without."""


def rules() -> dict[str, set[str]]:
    """Environment -> the stages of the rules that run in it."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for text in re.split(r"^rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            env = re.search(r"envs/(\w+)\.yaml", text)[1]
            found.setdefault(env, set()).update(re.findall(r'sources\("(\w+)"\)', text))
    return found


def imported(stage: str) -> set[str]:
    """Third-party packages that a stage's own modules import, wherever in them."""
    names = set()
    for source in settings.sources(stage):
        for node in ast.walk(ast.parse(Path(source).read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"pipeline"}


def pins(env: str) -> dict[str, str]:
    """Package -> version of an environment."""
    entries = yaml.safe_load((ROOT / "envs" / f"{env}.yaml").read_text())["dependencies"]
    words = [entry for entry in entries if isinstance(entry, str)]
    words += [word for entry in entries if isinstance(entry, dict) for word in entry["pip"]]
    return dict(re.match(r"([\w-]+)\s*=*\s*(\S*)", word).groups() for word in words)


@pytest.mark.parametrize("env", sorted(rules()))
def test_an_environment_has_what_its_stages_import(env):
    for stage in sorted(rules()[env]):
        wanted = {CONDA.get(name, name) for name in imported(stage)}
        assert wanted - set(pins(env)) - BROUGHT == set(), stage


@pytest.mark.parametrize("env", sorted(rules()))
def test_versions_are_those_of_the_pip_pins(env):
    constraints = dict(
        line.split("==")
        for line in (ROOT / "envs" / "constraints.txt").read_text().split()
        if "==" in line
    )
    pip = {
        CONDA.get(name, name).lower(): version.partition("+")[0]
        for name, version in constraints.items()
    }
    for name, version in pins(env).items():
        if name not in ("python", "pip"):
            assert pip[name] == version, name
