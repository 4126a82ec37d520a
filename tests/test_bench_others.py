"""What other programs take of the processors while something is measured, by the system's own account."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bench_doubles import FakeTime

from rsd_edge.bench import environment, others
from rsd_edge.bench.others import MOST_BUSY, Watch, disturbance, glance

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """/proc/stat of three processors, of which this process may run on the first two, and a clock."""

    def __init__(self, path: Path, clock: FakeTime) -> None:
        self._path, self._clock = path, clock
        self.seconds = {cpu: [0.0] * 10 for cpu in range(3)}
        self.own = 0.0
        self.write()

    def write(self) -> None:
        lines = ["cpu  1 2 3 4 5 6 7 8 9 10"]
        for cpu, times in self.seconds.items():
            lines.append(f"cpu{cpu} {' '.join(str(round(TICKS * seconds)) for seconds in times)}")
        self._path.write_text("\n".join([*lines, "intr 5 0 0", ""]))

    def spend(self, seconds: float, own: float, **times: dict[int, float]) -> None:
        """times: by name of a column, then by processor."""
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
        for name, by_cpu in times.items():
            for cpu, taken in by_cpu.items():
                self.seconds[cpu][names.index(name)] += taken
        self.own += own
        self._clock.now += seconds
        self.write()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    clock = FakeTime()
    made = Machine(tmp_path / "stat", clock)
    monkeypatch.setattr(others, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(others.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(clock, "process_time", lambda: made.own, raising=False)
    monkeypatch.setattr(others, "time", clock)
    return made


def test_own_work_and_rest_are_not_the_others(machine: Machine) -> None:
    watch = Watch()
    machine.spend(4.0, own=6.0, user={0: 3.0, 1: 2.5}, system={1: 0.5}, idle={0: 1.0}, iowait={1: 1.0})
    assert watch.others() == 0


def test_others_are_what_is_left(machine: Machine) -> None:
    """Programs of others in any column, and processors that a neighbour of the virtual machine took."""
    machine.spend(100.0, own=5.0, user={0: 60.0, 1: 60.0})
    watch = Watch()
    machine.spend(4.0, own=3.0, user={0: 2.0, 1: 1.0}, nice={1: 1.0}, softirq={0: 0.5}, steal={0: 1.5}, idle={1: 2.0})
    assert watch.others() == pytest.approx(3.0 / 4.0)
    assert Watch().others() is None  # no time has passed


def test_other_processors_and_guests_that_count_as_user_do_not_matter(machine: Machine) -> None:
    watch = Watch()
    machine.spend(2.0, own=1.0, user={0: 1.5, 2: 2.0}, guest={0: 0.5}, idle={1: 2.0})
    assert watch.others() == pytest.approx(0.25)


def test_a_glance_takes_a_while(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        machine.spend(seconds, own=0.0, user={0: 0.4 * seconds, 1: 0.8 * seconds})

    monkeypatch.setattr(others.time, "sleep", sleep)
    monkeypatch.setattr(environment, "load", lambda: 0.7)
    assert glance() == {"before": 0.7, "others": pytest.approx(1.2)}


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(others, "_STAT", tmp_path / "none")
    assert Watch().others() is None


@pytest.mark.parametrize(
    ("load", "threads", "words"),
    [
        ({"others": MOST_BUSY, "before": 9.0}, 4, None),  # the load average counts what ran before, and ourselves
        ({"others": 0.26, "before": None}, 4, "other programs kept 0.3 of 4 processors busy"),
        ({"others": 1.84, "before": 3.25}, 4, "other programs kept 1.8 of 4 processors busy (load average 3.25)"),
        ({"others": 2.2, "before": None}, 2, None),  # two processors are left for them
        ({"others": 2.3, "before": None}, 2, "other programs kept 2.3 of 4 processors busy"),
        ({"others": 1.0, "before": None}, 8, "other programs kept 1.0 of 4 processors busy"),
        ({"others": None, "before": 4.0}, 4, None),
        ({"others": None, "before": 4.5}, 4, "the load average was 4.5 on 4 processors"),
        ({"before": 0.1}, 4, None),
        ({}, 4, None),
    ],
)
def test_what_is_said_of_them(
    monkeypatch: pytest.MonkeyPatch, load: dict[str, float | None], threads: int, words: str | None
) -> None:
    monkeypatch.setattr(others, "usable_cores", lambda: 4)
    assert disturbance(load, threads) == words
