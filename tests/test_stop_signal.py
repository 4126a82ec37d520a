"""Ctrl-C twice; and a terminal and a service manager signal a whole group, in which those that read data go on."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rsd_edge.distill.data import CropDataset, training_batches
from rsd_edge.distill.data_config import DataConfig
from rsd_edge.distill.stop_signal import StopSignal

TRACKER = """
import re
from pathlib import Path
from multiprocessing import resource_tracker
from rsd_edge.distill.stop_signal import withheld_from_children
with withheld_from_children():
    status = Path(f"/proc/{resource_tracker._resource_tracker._pid}/status").read_text()
print(re.search(r"SigBlk:\\s*(\\w+)", status)[1])
"""
"""Prints the signals that the process is not told of, as a mask."""
_AHEAD = 4
"""Batches that a worker has made before they are asked for."""


def test_a_second_ctrl_c_does_not_wait() -> None:
    # It may be ignored here, and inherited so, where the tests run in the background of a script.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_handler_before_learns_of_a_signal_when_the_work_is_saved(number: signal.Signals) -> None:
    """Twice, as `timeout` and terminals send it."""
    came: list[int] = []
    before = signal.signal(number, lambda which, _frame: came.append(which))
    try:
        with StopSignal() as stop:
            for _ in range(2):
                signal.raise_signal(number)
            assert (stop.asked, came) == (True, [])
            with pytest.raises(KeyboardInterrupt):
                stop.end()
        assert came == [number]
    finally:
        signal.signal(number, before)


def test_a_hangup_that_is_ignored_stops_nothing() -> None:
    """As with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_looks_after_workers_outlives_a_hangup() -> None:
    """The first of them starts it, with the signals that are withheld by then."""
    words = (sys.executable, "-P", "-c", TRACKER)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout, 16) >> (signal.SIGHUP - 1) & 1


def test_workers_go_on_when_the_group_is_told_to_end(hr_photos: Path) -> None:
    before = set(multiprocessing.active_children())
    config = DataConfig(str(hr_photos), str(hr_photos), crop=64, workers=1, val_crops=1)
    data = training_batches(CropDataset(config, 64, 5), 2, 0)
    (worker,) = set(multiprocessing.active_children()) - before
    for _ in ("while it starts", "at work"):
        for name in ("INT", "TERM", "HUP"):
            subprocess.run(["sh", "-c", f"kill -{name} {worker.pid}"], check=True)  # not from its parent
        for _ in range(_AHEAD + 2):
            next(data)
    assert worker.is_alive()
    worker.terminate()  # as DataLoader does at the end, with a worker that hangs
    worker.join(60)
    assert worker.exitcode == 0
