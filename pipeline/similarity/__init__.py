"""Vectors of galaxies: their file, nearest neighbours, outliers (NumPy and faiss)."""
