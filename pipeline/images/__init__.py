"""Stamps: geometry, kernels, the shard's format (NumPy, no torch)."""

import os
import tempfile

if not os.access(os.path.dirname(__file__), os.W_OK):
    # where the package cannot be written to, numba's compiled kernels go to a folder that can
    os.environ.setdefault(
        "NUMBA_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"ugriz-numba-{os.getuid()}")
    )
