"""The laws of the house, read from the sources."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pipeline"
ROOMS = ("survey", "images", "learning", "similarity", "evaluation", "simulation")
SHARED = ("run", "metrics", "settings", "failures")
"""Modules beside the stages that any stage may import, and that import no stage."""
MAY_SEE = {
    "survey": {"survey", "run"},
    "images": {"images", "survey", "run"},
    "learning": {"learning", "images", "survey", "run", "metrics"},
    "similarity": {"similarity", "images", "survey", "run"},
    "evaluation": {"evaluation", "metrics", "images", "survey", "run"},
    "simulation": {"simulation", "survey", "run"},
}
TRAIN = {"pretrain", "train", "photoz", "embed", "learning"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def is_stage(path: Path) -> bool:
    return path.parent == PACKAGE and path.stem not in (*SHARED, "__init__")


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, at its top or anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} has a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """First part of what a module imports of this package: rooms, stages, run."""
    parts = {full.split(".")[1] for full in imports(path) if full.startswith("pipeline.")}
    return parts - {"__version__"}


stages = pytest.mark.parametrize("path", [p for p in modules() if is_stage(p)], ids=name)
everything = pytest.mark.parametrize("path", modules(), ids=name)


@stages
def test_stages_import_rooms_and_never_each_other(path):
    known = {*ROOMS, *SHARED}
    assert ours(path) <= known, f"{name(path)} imports {ours(path) - known}"
    if path.stem != "simulate":
        assert "simulation" not in ours(path), "only the stage simulate may import simulation"


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).is_dir()])
def test_rooms_look_one_way_and_import_no_stage(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert ours(path) <= MAY_SEE[room], f"{name(path)} imports {ours(path) - MAY_SEE[room]}"


@pytest.mark.parametrize("module", [m for m in SHARED if (PACKAGE / f"{m}.py").exists()])
def test_what_all_share_imports_no_stage_and_no_room(module):
    assert ours(PACKAGE / f"{module}.py") <= {"run"}


@everything
def test_only_those_that_train_import_torch(path):
    top = {full.split(".")[0] for full in imports(path)}
    if not TRAIN & set(name(path).split(".")):
        assert not top & {"torch", "torchvision"}


@everything
def test_file_is_of_a_size_to_read(path):
    assert path.name != "utils.py"
    assert len(path.read_text().splitlines()) <= 420


@stages
def test_stage_has_a_short_main_and_can_be_run(path):
    tree = ast.parse(path.read_text())
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    assert len(found) == 1 and ast.get_docstring(tree)
    assert "run.start(main)" in path.read_text().splitlines()[-1]


def test_the_law_finds_what_breaks_it(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from pipeline import cutouts\n    import pipeline.frames\n")
    assert ours(bad) == {"cutouts", "frames"}
