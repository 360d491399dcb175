"""ugriz: SDSS galaxy images from the survey's own archives, stage by stage."""

__version__ = "0.1.0"
