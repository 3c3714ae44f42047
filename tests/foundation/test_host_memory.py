"""Memory, read from made-up machines and control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from dca.foundation import host_memory

MIB = 1 << 20


class Groups:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.cgroup = root / "cgroup"
        self.proc.mkdir()
        self.cgroup.mkdir()

    def member(self, lines: str) -> None:
        (self.proc / "self").mkdir()
        (self.proc / "self" / "cgroup").write_text(lines)

    def limit(self, path: str, text: object) -> None:
        file = self.cgroup / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    @property
    def available(self) -> int:
        return host_memory.available_bytes(self.proc, self.cgroup)

    @property
    def kills(self) -> dict[str, int]:
        kills = host_memory.kills(self.proc, self.cgroup)
        return {file.removeprefix(f"{self.proc.parent}/"): count for file, count in kills.items()}

    @property
    def bytes(self) -> int:
        return host_memory.limit_bytes(self.proc, self.cgroup)


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


# --- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "limits", "least"),
    [
        pytest.param("", {}, None, id="no groups"),
        pytest.param("0::/\n", {}, None, id="the root group"),
        pytest.param("0::/user/build\n", {"user/build/memory.max": 100}, 100, id="the own group"),
        pytest.param(
            "0::/a/b/c\n",
            {"a/b/c/memory.max": 300, "a/b/memory.max": "max", "a/memory.max": 200},
            200,
            id="a group further up",
        ),
        pytest.param("0::/\n", {"memory.max": 64}, 64, id="a container that sees its own group as the root"),
        pytest.param("0::/a\n", {"a/memory.max": "max"}, None, id="a group without a limit"),
        pytest.param(
            "12:cpu,cpuacct:/docker/x\n9:memory:/docker/x\n1:name=systemd:/docker/x\n",
            {
                "memory/docker/x/memory.limit_in_bytes": 8796093022207,
                "memory/docker/memory.limit_in_bytes": 128,
                "cpu,cpuacct/docker/x/memory.limit_in_bytes": 1,
            },
            128,
            id="the first version",
        ),
        pytest.param(
            "3:hugetlb,memory:/job\n0::/job\n",
            {"memory/job/memory.limit_in_bytes": 96, "job/memory.max": 112},
            96,
            id="both versions",
        ),
        pytest.param("0::/../../job\n", {"../memory.max": 1, "job/memory.max": 80}, 80, id="a path out of the folder"),
    ],
)
def test_the_least_limit_of_the_groups_counts(
    groups: Groups, member: str, limits: dict[str, int | str], least: int | None
) -> None:
    if member:
        groups.member(member)
    for file, limit in limits.items():
        groups.limit(file, limit * MIB if isinstance(limit, int) else limit)
    assert groups.bytes == (least * MIB if least else psutil.virtual_memory().total)


# --- what is free --------------------------------------------------------------------------------------------


def test_what_others_in_the_group_use_is_not_free_and_file_caches_are(groups: Groups) -> None:
    groups.member("0::/a/b\n")
    groups.limit("a/b/memory.max", "max")
    groups.limit("a/memory.max", 100 * MIB)
    groups.limit("a/memory.current", 70 * MIB)
    groups.limit("a/memory.stat", f"anon {40 * MIB}\ninactive_file {20 * MIB}\nactive_file {10 * MIB}")
    assert groups.available == 60 * MIB


def test_what_is_free_in_groups_of_the_first_version(groups: Groups) -> None:
    groups.member("9:memory:/x\n")
    groups.limit("memory/x/memory.limit_in_bytes", 100 * MIB)
    groups.limit("memory/x/memory.usage_in_bytes", 70 * MIB)
    groups.limit("memory/x/memory.stat", f"total_inactive_file {20 * MIB}\ntotal_active_file {10 * MIB}\ncache 5")
    assert groups.available == 60 * MIB


def test_without_limits_what_the_host_has_free_counts(groups: Groups) -> None:
    groups.member("9:memory:/x\n0::/\n")
    groups.limit("memory/x/memory.limit_in_bytes", 9223372036854771712)
    groups.limit("memory/x/memory.usage_in_bytes", 9223372036854000000)
    assert 0 < groups.available <= psutil.virtual_memory().total


def test_a_group_that_is_over_its_limit_has_nothing_free(groups: Groups) -> None:
    groups.member("0::/\n")
    groups.limit("memory.max", 10 * MIB)
    groups.limit("memory.current", 11 * MIB)
    assert groups.available == 0


# --- what the kernel killed ----------------------------------------------------------------------------------


def test_every_counter_above_this_process_is_read_the_nearest_first(groups: Groups) -> None:
    groups.member("9:memory:/x/y\n")
    groups.limit("memory/x/y/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3")
    groups.limit("memory/x/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4")
    (groups.proc / "vmstat").write_text("nr_free_pages 5\noom_kill 6\n")
    assert list(groups.kills.items()) == [
        ("cgroup/memory/x/y/memory.oom_control", 3),
        ("cgroup/memory/x/memory.oom_control", 4),
        ("proc/vmstat", 6),
    ]


def test_the_second_versions_counter_is_read(groups: Groups) -> None:
    groups.member("0::/x\n")
    groups.limit("x/memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0")
    assert groups.kills == {"cgroup/x/memory.events": 1}


def test_a_counter_that_moved_is_named_and_one_that_did_not_is_not() -> None:
    assert host_memory.killed_since({"a": 1, "b": 5}, {"a": 1, "b": 5}) == ""
    assert host_memory.killed_since({"a": 1, "b": 5}, {"a": 2, "b": 6}) == "oom_kill in a went from 1 to 2"
    assert host_memory.killed_since({"b": 5}, {"a": 2, "b": 6}) == "oom_kill in b went from 5 to 6"
