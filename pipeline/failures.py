"""Why a run of the workflow failed, in one line for each job: the last thing that it says.

Snakemake's log tells which jobs failed and where their logs are; these end in the `error: ...` of a
stage, or in Slurm's own words about a job that was killed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TAIL = 20_000
"""Bytes at the end of a log that are looked at."""
_KILLED = (
    (r"(?i)exceeded (?:job |step )?memory limit|oom[-_ ]kill|out.of.memory",
     'over its memory; give the rule more (set-resources: mem_mb: "attempt * 8000")'),
    (r"DUE TO TIME LIMIT|\bTIMEOUT\b",
     "over its time; give the rule more runtime (set-resources in the profile)"),
    (r"(?i)time limit .*invalid|invalid qos|QOS\w*Limit|violates accounting",
     "Slurm's limits do not let it in; set-resources: runtime, or qos, in the profile"),
    (r"DUE TO NODE FAILURE|NODE_FAIL",
     "its node failed; run again to go on"),
    (r"invalid partition|Invalid partition",
     "Slurm has no such partition; `sinfo` lists them, slurm_partition in the profile names one"),
    (r"[Ii]nvalid account|account .* appears to be invalid",
     "Slurm refuses the account; `sacctmgr show assoc user=$USER` lists yours, slurm_account in "
     "the profile names one"),
    (r"Invalid generic resource|[Ii]nvalid gres|Requested node configuration is not available",
     "no node has what is asked for (cores, memory, GPUs); `sinfo -o '%P %c %m %G'` tells what "
     "there is, max-threads and set-resources in the profile what is asked for"),
    (r"Unable to contact slurm controller|Failed to run sinfo",
     "Slurm does not answer; is this a login node of the cluster?"),
    (r"CANCELLED", "cancelled (scancel, or by its node); run again to go on"),
)  # fmt: skip
"""What Slurm says (a pattern), and what it means: the first that is found."""


_ARRAY = r"sbatch failed for array job submission.*?The error message was '(.*?)'\.\n"

_SHOWN = re.compile(r"^Logfile [^\n]*:\n=+\n.*?^=+\n", re.MULTILINE | re.DOTALL)
"""A job's own log, shown in the run's: one of a Snakemake on a node has such words itself."""
_NEXT = re.compile(r"^\[\w{3} \w{3} +\d+ ", re.MULTILINE)
"""Where another event begins."""


class Failure(NamedTuple):
    """A job that failed: its rule, what it would have made, how often it was tried, and why."""

    rule: str
    output: str
    tries: int
    reason: str
    log: str


def failures(log: str | Path) -> list[Failure]:
    """The jobs that failed, from the log of a run of Snakemake, each once, in their order."""
    text = _SHOWN.sub("", Path(log).read_text(errors="replace"))
    done = set(re.findall(r"^Finished jobid: (\d+) ", text, re.MULTILINE))
    found: dict[str, Failure] = {}
    before, *blocks = re.split(r"^Error in rule ", text, flags=re.MULTILINE)
    array = ""
    for block in blocks:
        array = (re.findall(_ARRAY, before, re.DOTALL) or [array])[-1]
        before, block = block, _NEXT.split(block)[0]
        said = dict(re.findall(r"^    (message|jobid|output|log): (.*)", block, re.MULTILINE))
        job = said.get("jobid", "")
        if job in done:
            continue
        rule = block.partition(":")[0]
        tries = found[job].tries + 1 if job in found else 1
        logs = re.sub(r" \(check log file.*", "", said.get("log", "")).split(", ")
        message = said.get("message", "")
        if message.startswith("Part of failed array"):
            message, block = array, ""  # told once, above its jobs
        reason = _reason(message, block, logs)
        found[job] = Failure(rule, said.get("output", "").split(", ")[0], tries, reason, logs[0])
    return list(found.values())


def lines(logs: Iterable[str | Path]) -> list[str]:
    """What `failures` finds, for people; many that failed of one reason are one line."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in (failure for log in logs for failure in failures(log)):
        groups.setdefault((failure.rule, failure.reason), []).append(failure)
    return [_line(group) for group in groups.values()]


def _line(group: list[Failure]) -> str:
    first = group[0]
    what = f"{first.rule} ({first.output})" if first.output else first.rule
    others = f" and {len(group) - 1} more" if len(group) > 1 else ""
    tries = f", tried {first.tries} times" if first.tries > 1 else ""
    where = f"; {first.log}" if first.log and not others else ""
    return f"error: {what}{others}{tries}: {first.reason}{where}"


def _reason(message: str, block: str, logs: list[str]) -> str:
    own, *cluster = [_tail(log) for log in logs] or [""]
    told = re.findall(r"^error: (.*)", own, re.MULTILINE)
    if told:
        return told[-1]
    words = "\n".join((message, block.partition("sbatch call:")[0], *cluster))
    for pattern, meaning in _KILLED:
        if re.search(pattern, words):
            return meaning
    last = [line.strip() for line in own.splitlines() if line.strip()]
    return last[-1] if last else message.removesuffix("None") or "it left no word"


def _tail(log: str) -> str:
    """The end of a log; an array's lies one folder above the place that is told."""
    path = Path(log)
    for place in (path, path.parent.parent / path.name):
        try:
            with open(place, "rb") as file:
                file.seek(max(0, place.stat().st_size - TAIL))
                return file.read().decode(errors="replace")
        except OSError:
            continue
    return ""
