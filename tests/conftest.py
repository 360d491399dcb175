"""What tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LONG = ("test_workflow.py", "test_workflow_learning.py", "test_rehearsal.py", "test_simulate.py")
"""Files that take minutes: they go first, so that no core is idle at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; all else keeps its order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real SDSS files: UGRIZ_DATA, or shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("UGRIZ_DATA", beside))
    if not (folder / "galaxies.csv").is_file():
        pytest.skip(f"no real SDSS data in {folder}; set UGRIZ_DATA to the folder that has them")
    return folder
