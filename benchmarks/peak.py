"""Run a command; print its wall time, CPU time and peak memory as one line of JSON.

A program of its own, and a small one: Linux counts into a child's peak what its parent held when
it started it.
"""

import json
import os
import sys
import time


def main() -> None:
    """Run the command in `sys.argv`; its output goes to stderr, its exit status is handed on."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os.execvp(sys.argv[1], sys.argv[1:])
    _, status, used = os.wait4(child, 0)
    figures = {
        "wall_s": round(time.monotonic() - began, 3),
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "peak_mb": round(used.ru_maxrss * 1024 / 1e6, 1),
    }
    print(json.dumps(figures))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
