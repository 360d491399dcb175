"""Why a run failed, in one line for each job."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import failures

SAID = """\
[Sat Nov 28 20:52:43 2026]
Error in rule {rule}:
    message: {message}
    jobid: {job}
    input: a, b
    output: {output}, other
    log: {log} (check log file(s) for error details)
    shell:
        python -m pipeline.{rule} 2>&1 | tee {log}
        (command exited with non-zero exit code)
[Sat Nov 28 20:52:44 2026]
rule next:
    output: results/next
    log: logs/next.log
    jobid: 99
"""


def said(rule="cutouts", job=2, output="results/cutouts/0000.h5", log="cutouts.log", message=None):
    return SAID.format(rule=rule, job=job, output=output, log=log, message=message)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_job_is_told_with_the_error_of_its_own_log(folder):
    Path("cutouts.log").write_text(
        "10:00:00 began\nerror: first\nerror: no space left; free some\n"
    )
    Path("run.log").write_text(said())
    assert failures.lines(["run.log"]) == [
        "error: cutouts (results/cutouts/0000.h5): no space left; free some; cutouts.log"
    ]


def test_tries_are_counted_and_a_job_that_came_through_is_no_failure(folder):
    Path("run.log").write_text(said() + said() + said(job=3) + "Finished jobid: 3 (Rule: x)\n")
    found = failures.failures("run.log")
    assert [(failure.rule, failure.tries) for failure in found] == [("cutouts", 2)]


def test_many_of_one_reason_are_one_line(folder):
    Path("a.log").write_text("error: the archive is down\n")
    jobs = [said("frames", job, f"results/frames/{job:04d}", "a.log") for job in range(5)]
    Path("run.log").write_text("".join(jobs))
    assert failures.lines(["run.log"]) == [
        "error: frames (results/frames/0000) and 4 more: the archive is down"
    ]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("SLURM sbatch failed. The error message was 'sbatch: error: invalid partition specified: "
         "x\nsbatch: error: Batch job submission failed: Invalid partition name specified'.\n"
         "    sbatch call:\n        sbatch --mem 4 # CANCELLED", "no such partition"),
        ("Job submission failed with exception: The given account me appears to be invalid. "
         "Available\naccounts:\nyou", "refuses the account"),
        ("SLURM sbatch failed. The error message was 'sbatch: error: Batch job submission failed: "
         "Invalid account or account/partition combination specified'.", "refuses the account"),
        ("SLURM sbatch failed. The error message was 'sbatch: error: Batch job submission failed: "
         "Requested node configuration is not available'.", "no node has"),
        ("SLURM-job '4' failed, SLURM status is: 'CANCELLED'.", "cancelled"),
        ("SLURM-job '4' failed, SLURM status is: 'TIMEOUT'.", "over its time"),
        ("SLURM-job '4' failed, SLURM status is: 'NODE_FAIL'.", "its node failed"),
        ("SLURM-job '4' failed, SLURM status is: 'OUT_OF_MEMORY'.", "over its memory"),
    ],
)  # fmt: skip
def test_what_slurm_says_is_put_in_words(folder, message, words):
    Path("run.log").write_text(said(message=message))
    (line,) = failures.lines(["run.log"])
    assert words in line and "\n" not in line


def test_slurms_own_log_tells_of_memory_and_that_of_an_array_lies_above(folder):
    logs = folder / "rule_cutouts"
    logs.mkdir()
    (logs / "9_1.log").write_text("slurmstepd: error: Exceeded job memory limit\n")
    Path("cutouts.log").write_text("10:00:00 3 of 17 frames\n")
    log = f"cutouts.log, {logs}/0000/9_1.log"
    Path("run.log").write_text(said(log=log, message="SLURM status is: 'FAILED'."))
    (line,) = failures.lines(["run.log"])
    assert "over its memory" in line and line.endswith("; cutouts.log")


def test_an_array_that_was_refused_is_told_once_above_its_jobs(folder):
    sbatch = (
        "SLURM sbatch failed for array job submission (tasks 1-2). The error message was 'sbatch: "
        "error: invalid partition specified: x'.\n    sbatch call:\n        sbatch -p x\n\n"
    )
    part = "Part of failed array sbatch submission (tasks 1-2); see log for details."
    jobs = [said(job=job, output=f"{job}.h5", message=part) for job in (1, 2)]
    Path("run.log").write_text(sbatch + "".join(jobs))
    (line,) = failures.lines(["run.log"])
    assert line.startswith("error: cutouts (1.h5) and 1 more: Slurm has no such partition")


def test_logs_that_are_shown_and_other_jobs_words_are_no_failures_of_their_own(folder):
    Path("cutouts.log").write_text("Traceback\nValueError: what\n")
    inner = said(job=0, output="results/cutouts/0000.h5", log="nowhere.log")
    shown = f"Logfile 9.log:\n{'=' * 80}\n{inner}{'=' * 80}\n\n"
    other = (
        said(job=3, message="SLURM status is: 'CANCELLED'", log="b.log")
        + "Finished jobid: 3 (Rule: x)\n"
    )
    Path("run.log").write_text(said() + shown + other)
    (line,) = failures.lines(["run.log"])
    assert "ValueError: what" in line and "tried" not in line


def test_without_a_reason_the_last_line_of_the_log_is_told(folder):
    Path("cutouts.log").write_text("Traceback\nValueError: what\n\n")
    Path("run.log").write_text(said(message="None"))
    assert "ValueError: what" in failures.lines(["run.log"])[0]
    Path("cutouts.log").unlink()
    assert "it left no word" in failures.lines(["run.log"])[0]


def test_a_run_without_failures_says_nothing(folder):
    Path("run.log").write_text("all is well\n")
    assert failures.lines(["run.log"]) == [] and failures.lines([]) == []
