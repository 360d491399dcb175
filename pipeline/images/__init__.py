"""Stamps: geometry, kernels, the shard's format (NumPy, no torch)."""
