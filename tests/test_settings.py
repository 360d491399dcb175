"""The config: what is refused and how it says so; flags; the sources of each stage."""

import copy
import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import settings
from pipeline.run import UserError

ROOT = Path(__file__).resolve().parent.parent
STAGES = [
    "simulate", "query", "catalog", "frames", "cutouts", "dataset", "pictures", "export",
    "pretrain", "train", "photoz", "embed", "search", "atlas", "evaluate",
]  # fmt: skip

NO_FLAGS = {
    ("frames", "window"), ("query", "fields"), ("train", "starts"), ("train", "seeds"),
    ("photoz", "start"), ("photoz", "fraction"),
}  # fmt: skip
"""Keys that are the workflow's alone."""


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config.yaml").read_text())


def put(config, path, value):
    section = config
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value


def test_the_embedded_config_is_right_and_every_key_of_it_described(config):
    schema = yaml.safe_load(settings.SCHEMA.read_text())
    assert settings.checked(config) == config
    for name, section in config.items():
        if not isinstance(section, dict) or name == "methods":
            continue
        properties = schema["properties"][name]["properties"]
        assert set(section) <= set(properties)
        assert all(properties[key]["description"] for key in properties), name


def test_every_overlay_fits_the_schema(config, monkeypatch):
    monkeypatch.setenv("UGRIZ_DATA", "/data")
    monkeypatch.setenv("UGRIZ_SERVICES", "http://127.0.0.1:1")
    for overlay in sorted((ROOT / "surveys").glob("*.yaml")):
        merged = copy.deepcopy(config)
        for name, section in yaml.safe_load(overlay.read_text()).items():
            if isinstance(section, dict):
                merged[name].update(section)
            else:
                merged[name] = section
        settings.checked(merged)


def test_the_rehearsal_sets_all_numbers_of_learning_that_the_real_thing_sets():
    real, rehearsal = (
        yaml.safe_load((ROOT / "surveys" / f"{name}.yaml").read_text())
        for name in ("sdss-dr12", "rehearsal")
    )
    for section in ("encoder", "pretrain", "train", "morphology", "running"):
        assert set(real[section]) <= set(rehearsal[section]), section
    for method, sections in real["methods"].items():
        for section, keys in sections.items():
            assert set(keys) <= set(rehearsal["methods"][method][section]), (method, section)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("cutuots",), {}, "unknown key cutuots; did you mean cutouts?"),
        (("cutouts", "sise"), 107, "cutouts: unknown key sise; did you mean size?"),
        (("catalog", "zzz"), 1, "catalog: unknown key zzz; known are shards"),
        (("cutouts", "size"), 0, "cutouts: size: 0 is less than the minimum of 3"),
        (("cutouts", "size"), 64, "cutouts: size: 64 is not allowed; it is: pixels on a side, odd"),
        (("catalog", "shards"), 2.0, "catalog: shards: 2.0 is not of type 'integer'"),
        (("catalog", "max_photoz"), float("nan"), "catalog: max_photoz: nan is not of type"),
        (("cutouts",), None, "cutouts: None is not of type 'object'"),
        (("cutouts", "size"), "107", "cutouts: size: '107' is not of type 'integer'"),
        (("cutouts", "fov"), -0.1, "cutouts: fov: -0.1"),
        (("cutouts", "engine"), "magic", "cutouts: engine: 'magic' is not one of"),
        (("catalog", "shards"), 0, "catalog: shards: 0"),
        (("train", "label_seed"), 1 << 32, "train: label_seed: 4294967296 is greater than the max"),
        (("train", "seeds"), [1 << 32], "train: seeds: 0: 4294967296 is greater than the maximum"),
        (("frames", "root"), None, "frames: root: None is not of type 'string'"),
        (("methods", "simlcr"), {}, "methods: simlcr is none of supervised, moco, simclr, pasquet"),
        (("methods", "moco", "search"), {}, "methods: moco: search is none of encoder, pretrain"),
        (("methods", "moco", "encoder"), {"nett": 1}, "moco: encoder: unknown key nett; did you"),
        (("methods", "moco", "train"), {"lr": -1}, "methods: moco: train: lr: -1 is less than"),
        (
            ("methods", "moco", "train"),
            {"fractions": [1]},
            "moco: train: fractions is the same for",
        ),
        (("methods", "moco", "train"), 3, "methods: moco: train: 3 is not of type 'object'"),
        (("morphology", "threshold"), 1.0, "threshold: 1.0 is greater than or equal to the maxim"),
        (("morphology", "starts"), ["pasquet"], "morphology: starts: 0: 'pasquet' is not one of"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_key(config, path, value, says):
    put(config, path, value)
    with pytest.raises(UserError) as refused:
        settings.checked(config)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_method_has_its_own_keys_over_those_of_the_section(config):
    put(config, ("methods", "moco", "train"), {"lr": 0.5})
    merged = settings.own(settings.checked(config), "moco", "train")
    assert merged == config["train"] | {"lr": 0.5}
    assert settings.own(config, "supervised", "train") == config["train"]


def test_each_start_of_morphology_is_given_its_own_flags_alone(config):
    words = {
        start: shlex.split(settings.type_flags(config["morphology"], start))
        for start in ("simclr", "pca", "supervised")
    }
    for start, has, has_not in (
        ("simclr", "--kind", "--components"),
        ("pca", "--components", "--kind"),
        ("supervised", "--steps", "--small-lr"),
    ):
        assert {"--counts", "--threshold", "--threads", has} <= set(words[start])
        assert has_not not in words[start]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("photoz", "start"), "simclr", "photoz: start: simclr is none of train: starts (superv"),
        (("photoz", "fraction"), 0.7, "photoz: fraction: 0.7 is none of train: fractions (0.25, "),
        (("train", "starts"), ["supervised"], "photoz: start: moco is none of train: starts (sup"),
        (("train", "fractions"), [0.25], "photoz: fraction: 1 is none of train: fractions (0.25)"),
    ],
)
def test_a_catalogue_of_models_that_are_not_trained_is_refused(config, path, value, says):
    put(config, path, value)
    with pytest.raises(UserError) as refused:
        settings.checked(config)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_fraction_may_be_written_as_1_or_as_1_0(config):
    put(config, ("photoz", "fraction"), 1.0)
    assert settings.checked(config)["photoz"]["fraction"] == 1


def test_a_key_that_is_missing_is_named(config):
    del config["frames"]["root"]
    with pytest.raises(UserError, match="frames: the key root is missing"):
        settings.checked(config)


def test_environment_variables_are_put_in_and_an_unset_one_is_named(config, monkeypatch):
    config["frames"]["root"] = "${SOME_DATA}/sas/dr9"
    monkeypatch.setenv("SOME_DATA", "/data")
    assert settings.checked(config)["frames"]["root"] == "/data/sas/dr9"
    config["frames"]["root"] = ["${SOME_DATA}/sas/dr9", "https://data.sdss.org/sas/dr9"]
    assert settings.checked(config)["frames"]["root"][0] == "/data/sas/dr9"
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(UserError, match="frames: root: the environment variable SOME_DATA"):
        settings.checked(config)


def test_flags_are_quoted_and_null_is_left_out():
    section = {"min_b": 15.0, "mask": False, "variance": True, "fields": None, "camcols": [3, 4]}
    section["root"] = "a folder/it's"
    words = shlex.split(settings.flags(section, leave_out=["variance"]))
    assert words == [
        "--min-b",
        "15.0",
        "--no-mask",
        "--camcols",
        "3",
        "4",
        "--root",
        "a folder/it's",
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_every_config_key_is_a_flag_of_its_stage(stage, config, capsys):
    command = ["fetch"] if stage == "frames" else []
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"pipeline.{stage}").main([*command, "--help"])
    assert ended.value.code == 0
    known = capsys.readouterr().out
    for key in config.get(stage, {}):
        if (stage, key) not in NO_FLAGS:
            assert f"--{key.replace('_', '-')}" in known, key


LOADED = """
import importlib, sys
for stage in sys.argv[1:]:
    importlib.import_module(f"pipeline.{stage}")
    ours = [name for name in sys.modules if name.split(".")[0] == "pipeline"]
    print(stage, *(sys.modules.pop(name).__file__ for name in ours))
"""
"""Imports one stage after another, each time the whole package anew."""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """The modules that Python loads when it imports a stage."""
    words = [sys.executable, "-c", LOADED, *STAGES]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = (line.split() for line in done.stdout.splitlines())
    return {stage: set(files) for stage, *files in rows}


@pytest.mark.parametrize("stage", STAGES)
def test_sources_are_what_python_imports(stage, loaded):
    """The inputs of a rule against the modules that are loaded when its stage is imported."""
    assert sorted(loaded[stage]) == settings.sources(stage)
