"""What tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real SDSS files: UGRIZ_DATA, or shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("UGRIZ_DATA", beside))
    if not (folder / "galaxies.csv").is_file():
        pytest.skip(f"no real SDSS data in {folder}; set UGRIZ_DATA to the folder that has them")
    return folder
