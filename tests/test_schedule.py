"""Counts that are owed and boundaries that are passed, and how many cores there are to work on."""

import os
from pathlib import Path

import pytest

from mbrl.cluster import available_cores
from mbrl.schedule import Every, Ratio


def test_work_is_owed_for_each_step_and_done_in_whole_lots() -> None:
    updates = Ratio(per_step=3, lot=10)
    assert [updates.due(2) for _ in range(5)] == [0, 1, 0, 1, 1]  # 6, 12, 18, 24 and 30 owed
    assert updates.state_dict() == 0


def test_work_done_ahead_is_paid_back_and_credit_goes_on_where_it_was_saved() -> None:
    updates = Ratio(per_step=1, lot=10)
    assert updates.due(4, at_least=1) == 1
    resumed = Ratio(per_step=1, lot=10)
    resumed.load_state_dict(updates.state_dict())
    assert resumed.state_dict() == -6
    assert [resumed.due(8), resumed.due(8)] == [0, 1]


def test_a_boundary_is_due_once_it_is_passed_until_it_is_done() -> None:
    every = Every(10)
    assert [every.due(steps) for steps in (0, 9, 10, 11)] == [False, False, True, True]
    every.done(12)
    assert [every.due(steps) for steps in (12, 19, 20)] == [False, False, True]
    assert [every.next(steps) for steps in (0, 9, 10)] == [10, 10, 20]
    resumed = Every(10)
    resumed.load_state_dict(every.state_dict())
    assert [resumed.due(steps) for steps in (19, 20)] == [False, True]


# control groups: (/proc/self/cgroup, files below /sys/fs/cgroup, cores)
GROUPS = {
    "no limit": ("0::/", {"cpu.max": "max 100000"}, 8),
    "version 2": ("0::/", {"cpu.max": "200000 100000"}, 2),
    "half a core is one": ("0::/", {"cpu.max": "50000 100000"}, 1),
    "a part of a core counts": ("0::/", {"cpu.max": "250000 100000"}, 3),
    "more than there are": ("0::/", {"cpu.max": "3200000 100000"}, 8),
    "around ours": ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
    "seen from a container": ("0::/docker/12ab", {"cpu.max": "400000 100000"}, 4),
    "version 1": (
        "3:memory:/\n2:cpu,cpuacct:/job",
        {f"cpu/job/cpu.cfs_{k}_us": v for k, v in (("quota", "150"), ("period", "50"))},
        3,
    ),
    "version 1, no limit": (
        "1:cpu:/",
        {f"cpu/cpu.cfs_{k}_us": v for k, v in (("quota", "-1"), ("period", "100"))},
        8,
    ),
    "cannot be read": ("0::/", {"cpu.max": ""}, 8),
    "no control groups": (None, {}, 8),
}


@pytest.mark.parametrize(("ours", "files", "cores"), GROUPS.values(), ids=GROUPS)
def test_cores_are_what_affinity_and_quotas_leave(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ours: str | None,
    files: dict[str, str],
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    written = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in (written if ours is None else {**written, "proc/self/cgroup": ours}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert available_cores(tmp_path) == cores
