"""What the Snakefile needs: a checked config, a stage's flags, the sources a stage is made of."""

from __future__ import annotations

import ast
import difflib
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

from pipeline.run import UserError

ROOT = Path(__file__).resolve().parent.parent
NO_NETS = ("local_linear", "boosted_trees")
"""Starts of `train` that look at no image."""
FROM_SCRATCH = ("supervised", "pasquet")
"""Starts whose net has learnt nothing before."""
SHARED = {
    "pretrain": ("method",),
    "train": ("starts", "fractions", "seeds", "label_seed"),
    "morphology": ("starts", "counts", "seeds", "label_seed", "input", "threshold", "debiased",
                   "least_votes"),
}  # fmt: skip
"""Keys that all methods of a run have in common, by section."""
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"


def _is_integer(_, value: object) -> bool:
    """JSON Schema has 2.0 for an integer; a command line has not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_, value: object) -> bool:
    """Infinite or not-a-number values would switch cuts off."""
    return _is_integer(_, value) or (isinstance(value, float) and math.isfinite(value))


_Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_integer, "number": _is_number}
    ),
)


def checked(config: Mapping) -> dict:
    """`config` with environment variables put in, checked against the schema and in itself.

    Raises:
        UserError: the first thing that is wrong, with its key and what is allowed.
    """
    expanded = _expand(config, ())
    schema = yaml.safe_load(SCHEMA.read_text())
    errors = sorted(_Validator(schema).iter_errors(expanded), key=lambda error: list(error.path))
    if errors:
        raise UserError(f"config: {_explain(errors[0])}")
    for method, sections in expanded.get("methods", {}).items():
        for section in sections:
            for key in SHARED.get(section, ()):
                if isinstance(sections[section], dict) and key in sections[section]:
                    raise UserError(f"config: methods: {method}: {section}: {key} is the same for "
                                    f"all methods; put it into {section}")  # fmt: skip
            merged = {**expanded, section: own(expanded, method, section)}
            error = next(_Validator(schema).iter_errors(merged), None)
            if error:
                raise UserError(f"config: methods: {method}: {_explain(error)}")
    _check_photoz(expanded)
    return expanded


def own(config: Mapping, method: str, section: str) -> dict:
    """A section as it is for a method: with what `methods` has for it put over it."""
    return {**config[section], **config.get("methods", {}).get(method, {}).get(section, {})}


def _check_photoz(config: Mapping) -> None:
    """The catalogue's models are nets, and among those that are trained; a schema cannot say it."""
    if config["photoz"]["start"] in NO_NETS:
        raise UserError(f"config: photoz: start: {config['photoz']['start']} is no net; choose "
                        "one of train: starts that is")  # fmt: skip
    for key, many in (("start", "starts"), ("fraction", "fractions")):
        wanted, trained = config["photoz"][key], config["train"][many]
        if wanted not in trained:
            raise UserError(
                f"config: photoz: {key}: {wanted} is none of train: {many} "
                f"({', '.join(map(str, trained))}); choose one of them, or add it there"
            )


def _expand(value: object, path: tuple[str, ...]) -> object:
    if isinstance(value, Mapping):
        return {key: _expand(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, path) for inner in value]
    if not isinstance(value, str):
        return value
    expanded = os.path.expanduser(os.path.expandvars(value))
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        name = unset.group(1)
        raise UserError(
            f"config: {': '.join(path)}: the environment variable {name} is not set; "
            f"export {name}=... or write the path itself"
        )
    return expanded


def _explain(error: ValidationError) -> str:
    where = ": ".join(map(str, error.path))
    where = f"{where}: " if where else ""
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        near = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return f"{where}unknown key {unknown}; {hint}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{where}the key {missing} is missing"
    if "propertyNames" in error.schema_path:
        return f"{where}{error.instance} is none of {', '.join(error.validator_value)}"
    said = error.schema.get("description", "").strip().split("\n")[0]
    if error.validator == "not":
        return f"{where}{error.instance!r} is not allowed; it is: {said}"
    return f"{where}{error.message}" + (f"; it is: {said}" if said else "")


def flags(section: Mapping, leave_out: Iterable[str] = ()) -> str:
    """A config section as the stage's command-line flags, quoted for a shell.

    `{"min_b": 15, "mask": False, "fields": None}` -> `--min-b 15 --no-mask`.
    """
    words = []
    for key, value in section.items():
        flag = f"--{key.replace('_', '-')}"
        if key in leave_out or value is None:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            values = value if isinstance(value, list) else [value]
            words += [flag, *map(str, values)]
    return shlex.join(words)


def training_flags(train: Mapping, start: str, leave_out: Iterable[str] = ()) -> str:
    """The flags of `pipeline.train` that the config section `train` stands for, for a start.

    What speaks of a pretrained encoder (its rate, whether it is frozen) is none of a net that
    learns from scratch, and what speaks of a net none of the methods that have none.
    """
    if start in NO_NETS:
        return flags({key: train.get(key) for key in ("fractions", "label_seed")}, leave_out)
    pretrained = ["encoder_rate", "freeze"] if start in FROM_SCRATCH else []
    return flags(train, ["starts", "seeds", *pretrained, *leave_out])


def type_flags(morphology: Mapping, start: str) -> str:
    """The flags of `pipeline.train --task morphology` that a section stands for, for a start.

    Of a net on images (`supervised`) those of its training, of a small net on vectors or on
    principal components (`pca`) those of the small one.
    """
    small = [key for key in morphology if key.startswith("small_")]
    common = ["counts", "label_seed", "threshold", "debiased", "least_votes", "select", "threads"]
    if start == "supervised":
        return flags(morphology, ["starts", "seeds", "input", "components", "kind", *small])
    own_keys = {"pca": "components"}.get(start, "kind")
    return flags({key: morphology.get(key) for key in (*common, *small, own_keys)})


def sources(stage: str) -> list[str]:
    """The files of the package that `pipeline.<stage>` is made of: itself and all it imports."""
    found: set[str] = set()
    queue = ["pipeline", f"pipeline.{stage}"]
    while queue:
        name = queue.pop()
        if name in found or _file(name) is None:
            continue
        found.add(name)
        queue += _imports(name)
    return sorted(str(_file(name)) for name in found)


def _file(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _imports(name: str) -> list[str]:
    """Names of the modules, and of the packages above them, that a module of ours may import."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(_file(name).read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    ours = [module for module in names if module.split(".")[0] == "pipeline"]
    return [package for module in ours for package in _upwards(module)]


def _upwards(module: str) -> Iterator[str]:
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])
