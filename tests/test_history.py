"""The record of a training run."""

import csv
import logging
import sys

import pytest

from pipeline.learning import history
from pipeline.learning.history import History, Pace
from pipeline.run import UserError


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def write(path, steps, resume_at=None):
    record = History(path, ("loss", "probe"), resume_at)
    for step in steps:
        record.row(step, loss=1 / step, probe=None if step % 2 else step)
    return record


def test_rows_are_there_at_once_and_whole_at_the_end(tmp_path):
    path = tmp_path / "history.csv"
    record = write(path, [1, 2])
    assert not path.exists() and len(rows(record.live)) == 3
    record.close()
    record.discard()
    assert path.read_text() == "step,loss,probe\n1,1,\n2,0.5,2\n"
    assert [each.name for each in tmp_path.iterdir()] == ["history.csv"]


def test_a_resumed_history_is_that_of_an_unbroken_run(tmp_path):
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    write(whole, range(1, 8)).close()
    killed = write(broken, range(1, 6))
    killed.file.write("6,0.1")  # cut in the middle of a row
    killed.file.flush()
    write(broken, range(4, 8), resume_at=3).close()
    assert broken.read_bytes() == whole.read_bytes()


def test_a_history_that_was_closed_can_go_on(tmp_path):
    path = tmp_path / "history.csv"
    record = write(path, range(1, 4))
    record.close()
    record.discard()
    write(path, [3], resume_at=2).close()
    assert [row[0] for row in rows(path)] == ["step", "1", "2", "3"]


def test_a_new_run_and_other_columns_begin_anew(tmp_path):
    path = tmp_path / "history.csv"
    write(path, range(1, 4)).close()
    write(path, [1]).close()
    assert len(rows(path)) == 2
    History(path, ("other",), resume_at=5).close()
    assert rows(path) == [["step", "other"]]


def test_a_value_without_a_column_is_an_error(tmp_path):
    with pytest.raises(KeyError, match="los"):
        History(tmp_path / "history.csv", ("loss",)).row(1, los=2)


def test_tensorboard_gets_the_numbers(tmp_path):
    record = History(tmp_path / "history.csv", ("loss",), tensorboard=tmp_path / "board")
    record.row(1, loss=0.25)
    record.close()
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 0.25)]


def test_tensorboard_that_is_not_there_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard") as error:
        History(tmp_path / "a" / "history.csv", ("loss",), tensorboard=tmp_path / "board")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_progress_tells_all_and_asks_for_the_loss_only_when_due(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr(history.time, "monotonic", lambda: now[0])
    pace, asked = Pace("moco", 100, 32, first=10), []
    with caplog.at_level(logging.INFO, "ugriz"):
        for step in range(10, 20):
            now[0] += 1
            pace.step(step, 3, lambda: asked.append(1) or 1.5)
    assert len(asked) == 2
    line = caplog.records[-1].getMessage()
    assert line == "moco: epoch 3, step 20 of 100, loss 1.5000, 32 images/s, 1m20s left"
