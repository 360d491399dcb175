"""The profiles: Snakemake takes them, they name rules that exist, and speak to their schedulers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROFILES = sorted(path.parent for path in (ROOT / "workflow" / "profiles").glob("*/profile.yaml"))
NAMES = [path.name for path in PROFILES]
SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))


def read(profile: Path) -> dict:
    return yaml.safe_load((profile / "profile.yaml").read_text())


@pytest.mark.parametrize(
    "profile",
    [
        path if path.name in ("slurm", "local") else pytest.param(path, marks=pytest.mark.long)
        for path in PROFILES
    ],
    ids=NAMES,
)
def test_a_profile_plans_the_full_run(profile, tmp_path):
    done = subprocess.run(
        [SNAKEMAKE, "-n", "--quiet", "rules", "--workflow-profile", str(profile),
         "--configfile", "surveys/sdss-dr12.yaml", "--directory", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"cutouts\s+400", done.stdout + done.stderr)


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_a_profile_names_rules_that_exist_and_every_key_has_its_comment(profile):
    rules = set()
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        rules |= set(re.findall(r"^rule (\w+):", file.read_text(), re.MULTILINE))
    content = read(profile)
    for key in ("set-resources", "set-threads"):
        assert set(content.get(key, {})) <= rules
    assert set(content.get("slurm-array-jobs", "cutouts").split(",")) <= rules
    assert content["resources"]["sdss"] == 1, "polite unless told otherwise"
    if profile.name in ("slurm", "local"):
        lines = (profile / "profile.yaml").read_text().splitlines()
        keys = {
            line.partition(":")[0]: number
            for number, line in enumerate(lines)
            if line[:1].isalpha()
        }
        bare = {
            key for key, number in keys.items() if not lines[number - 1].lstrip().startswith("#")
        }
        assert bare <= {"set-resources", "set-threads"}, "their entries have comments of their own"


def test_a_rule_that_a_counted_resource_holds_back_is_in_no_array():
    content = read(ROOT / "workflow" / "profiles" / "slurm")
    assert not {"frames", "query"} & set(content["slurm-array-jobs"].split(","))


FLOW = """
rule all:
    input: expand("out/{i}", i=range(2)), "out/killed"

rule good:
    output: "out/{i}"
    wildcard_constraints: i=r"\\d"
    resources: mem_mb=123, runtime=7
    shell: "touch {output}"

rule killed:
    output: "out/killed"
    shell: "test -e tried && touch {output} || {{ touch tried; exit 3; }}"
"""
"""The job `killed` fails once."""
QSUB = """#!/bin/bash
echo "$@" >> qsub.txt
for script; do :; done
{ bash "$script" > /dev/null 2>&1; echo $? > "$HOME/$$.status"; } &
echo "$$.server"
"""
QSTAT = """#!/bin/bash
echo "Job Id: $3"
code=$(cat "$HOME/${3%.server}.status" 2> /dev/null)
if [ -n "$code" ]; then echo "    job_state = F"; echo "    Exit_status = $code"
else echo "    job_state = R"; fi
"""
CONDOR_SUBMIT = """#!/bin/bash
cat > "$HOME/$$.description"
cat "$HOME/$$.description" >> condor.txt
script=$(sed -n 's/^executable = //p' "$HOME/$$.description")
{ bash "$script" > /dev/null 2>&1; echo $? > "$HOME/$$.status"; } &
echo "$$.0 - $$.0"
"""
CONDOR_Q = """#!/bin/bash
[ -e "$HOME/${1%.0}.status" ] || echo -n "2 "
"""
CONDOR_HISTORY = """#!/bin/bash
[ -e "$HOME/${1%.0}.status" ] && echo -n "4 $(cat "$HOME/${1%.0}.status")"
"""
SCHEDULERS = {
    "pbs": ({"qsub": QSUB, "qstat": QSTAT}, "qsub.txt",
            ["select=1:ncpus=1:mem=123mb", "walltime=00:7:00", "-q workq", "-N good"]),
    "htcondor": ({"condor_submit": CONDOR_SUBMIT, "condor_q": CONDOR_Q,
                  "condor_history": CONDOR_HISTORY}, "condor.txt",
                 ["request_memory = 123MB", "request_cpus = 1", "requirements = TRUE",
                  "> 60 * 7\n", "getenv = true"]),
}  # fmt: skip
"""Programs that answer in a scheduler's form, what they note, and what has to be in it."""


@pytest.mark.parametrize("name", ["pbs", pytest.param("htcondor", marks=pytest.mark.long)])
def test_jobs_go_through_a_schedulers_own_commands(name, tmp_path):
    programs, noted, words = SCHEDULERS[name]
    (tmp_path / "bin").mkdir()
    for program, text in programs.items():
        (tmp_path / "bin" / program).write_text(text)
        (tmp_path / "bin" / program).chmod(0o755)
    (tmp_path / "Snakefile").write_text(FLOW)
    done = subprocess.run(
        [SNAKEMAKE, "--workflow-profile", str(ROOT / "workflow" / "profiles" / name),
         "--seconds-between-status-checks", "1", "--latency-wait", "5", "--set-threads", "good=1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(re.findall("Error in rule killed", done.stderr)) == 1, "tried again, once"
    for word in words:
        assert word in (tmp_path / noted).read_text()
