"""dataset.json: what a set of shards holds; how it is read, and what its version is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.run import UserError

FORMAT = "ugriz-dataset"
VERSION = 1
_KEYS = ("survey", "galaxies", "splits", "failures", "coverage", "stamp", "pixels", "shards")


def read(path: str | Path) -> dict:
    """The content of a dataset.json (docs/data-format.md describes its keys).

    Raises:
        UserError: no such file, no dataset.json, or one of another version.
    """
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the rule dataset") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); make it anew") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not a dataset.json of ugriz (no format = {FORMAT})")
    if content.get("format_version") != VERSION:
        raise UserError(
            f"{path}: dataset format {content.get('format_version')}, this ugriz reads {VERSION}; "
            "make it anew, or use the ugriz that wrote it"
        )
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise UserError(f"{path}: key {missing[0]} is missing; make it anew")
    return content


def shard_paths(path: str | Path, content: dict) -> Iterator[Path]:
    """Where the shards of the dataset.json at `path` lie, in its order."""
    for entry in content["shards"]:
        yield Path(path).parent / entry["file"]
