"""Nets and how they learn: augmentations, batches, MoCo, photo-z (torch)."""
