"""The record of a training run: a CSV, TensorBoard where wanted, and a line now and then."""

from __future__ import annotations

import csv
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import run
from pipeline.run import UserError


class History:
    """Rows of numbers, each with its step, into a CSV that is the same however often one resumes.

    While the run lasts, rows go to `.<name>.live` beside `path`; `close` makes `path` of it, and
    `discard` removes the live file once nothing can need it any more.
    """

    def __init__(
        self,
        path: str | Path,
        columns: tuple[str, ...],
        resume_at: int | None = None,
        tensorboard: str | Path | None = None,
    ):
        """Begin a history with the columns `step` and `columns`.

        With `resume_at` the rows that are there are kept up to and with that step. `tensorboard`
        is a folder for event files, which get every number as well.

        Raises:
            UserError: `tensorboard` is asked for, and the package cannot be imported.
        """
        self.board = _board(tensorboard, resume_at) if tensorboard else None
        self.path, self.columns = Path(path), ("step", *columns)
        self.live = self.path.with_name(f".{self.path.name}.live")
        self.live.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_at is None else self._rows_until(resume_at)
        with run.whole_file(self.live) as part, open(part, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([self.columns, *kept])
        self.file = open(self.live, "a", newline="")  # noqa: SIM115  (it outlives this call)
        self.writer = csv.writer(self.file, lineterminator="\n")

    def _rows_until(self, step: int) -> list[list[str]]:
        source = self.live if self.live.is_file() else self.path
        if not source.is_file():
            return []
        with open(source, newline="") as file:
            rows = list(csv.reader(file))
        if not rows or tuple(rows[0]) != self.columns:
            return []
        whole = [row for row in rows[1:] if len(row) == len(self.columns)]
        return [row for row in whole if int(row[0]) <= step]

    def row(self, step: int, **values: float | int | str | None) -> None:
        """Add a row; floats with seven digits, None as an empty cell.

        Raises KeyError for a value without a column.
        """
        unknown = values.keys() - set(self.columns)
        if unknown:
            raise KeyError(f"no column {sorted(unknown)[0]}")
        cells = [_cell(values.get(column)) for column in self.columns[1:]]
        self.writer.writerow([step, *cells])
        self.file.flush()
        if self.board:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Have all rows on disk; before a state is saved that counts on them."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Write `path`, whole."""
        self.file.close()
        if self.board:
            self.board.close()
        with run.whole_file(self.path) as part:
            shutil.copyfile(self.live, part)

    def discard(self) -> None:
        """Remove the live file."""
        self.file.close()
        self.live.unlink(missing_ok=True)


def _cell(value: float | int | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _board(folder: str | Path, resume_at: int | None):
    try:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and seldom wanted
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"tensorboard: cannot be imported ({reason}); pip install tensorboard, or "
                        "leave --tensorboard out") from None  # fmt: skip
    purge = None if resume_at is None else resume_at + 1
    return SummaryWriter(str(folder), purge_step=purge)


class Pace:
    """The progress line of a training run, every few seconds: epoch, step, loss, rate, time left.

    Rate and time left are those of this process since it began or resumed.
    """

    def __init__(self, label: str, steps: int, images: int, first: int = 0, every: float = 5.0):
        """`steps` in all, of `images` images each; this process begins at step `first`."""
        self.label, self.steps, self.images, self.first, self.every = (
            label, steps, images, first, every,
        )  # fmt: skip
        self.began = time.monotonic()
        self.next_line = self.began + every

    def step(self, step: int, epoch: int, loss: Callable[[], float]) -> None:
        """Step `step` (from 0) of `epoch` is done; `loss` is called only where a line is due."""
        now = time.monotonic()
        if now < self.next_line:
            return
        self.next_line = now + self.every
        rate = (step + 1 - self.first) / (now - self.began)
        left = (self.steps - step - 1) / rate
        run.log.info(
            "%s: epoch %d, step %d of %d, loss %.4f, %.0f images/s, %s left",
            self.label, epoch, step + 1, self.steps, loss(), rate * self.images,
            run.duration(left),
        )  # fmt: skip
