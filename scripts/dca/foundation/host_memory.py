"""Memory that a build may use: the limits of this process, what is free now, and what the kernel killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Names:
    """The names of a control group's files, and of lines in them."""

    limit: str
    usage: str
    events: str
    cache: tuple[str, ...]


_SECOND = _Names("memory.max", "memory.current", "memory.events", ("active_file", "inactive_file"))
_FIRST = _Names(
    "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", ("total_active_file", "total_inactive_file")
)


def limit_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Memory that a build may use: the host's, or the lowest limit of the control groups of this process.

    psutil only knows the host's memory; in a container the limit of the group kills the compilers.
    """
    import psutil

    limits = (_number(folder / names.limit) for folder, names in _groups(proc, cgroup))
    return min([int(psutil.virtual_memory().total), *(limit for limit in limits if limit is not None)])


def available_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Memory that is free now, on the host and in the control groups; file caches count as free."""
    import psutil

    host = psutil.virtual_memory()
    free = [int(host.available)]
    for folder, names in _groups(proc, cgroup):
        limit, usage = _number(folder / names.limit), _number(folder / names.usage)
        if limit is not None and usage is not None and limit < host.total:
            stat = _fields(folder / "memory.stat")
            free.append(limit - usage + sum(stat.get(name, 0) for name in names.cache))
    return max(0, min(free))


def kills(proc: Path = PROC, cgroup: Path = CGROUP) -> dict[str, int]:
    """How many processes the kernel has killed for memory, by the file with the counter: of each group and the host."""
    files = [folder / names.events for folder, names in _groups(proc, cgroup)]
    counts = {str(file): _fields(file).get("oom_kill") for file in [*files, proc / "vmstat"]}
    return {file: count for file, count in counts.items() if count is not None}


def killed_since(before: dict[str, int], after: dict[str, int]) -> str:
    """The counter that has increased, as a phrase: the nearest group's; empty when none has."""
    for file, count in after.items():
        if count > before.get(file, count):
            return f"oom_kill in {file} went from {before[file]} to {count}"
    return ""


def _groups(proc: Path, cgroup: Path) -> Iterator[tuple[Path, _Names]]:
    """Folders of the control groups that limit this process's memory, its own first, then those above it."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = cgroup, _SECOND
        elif "memory" in controllers.split(","):
            top, names = cgroup / "memory", _FIRST
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for size in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:size]), names


def _number(file: Path) -> int | None:
    """The number in a file; None for a missing file, and for "max"."""
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _fields(file: Path) -> dict[str, int]:
    """The numbers in a file of names and numbers."""
    numbers = {}
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            name, _, number = line.partition(" ")
            if number.strip().isdigit():
                numbers[name] = int(number)
    return numbers


def limiting(proc: Path = PROC, cgroup: Path = CGROUP) -> str:
    """The file with the lowest limit of a control group; empty where the host's memory is less, or without limits."""
    import psutil

    limits = [
        (limit, file)
        for folder, names in _groups(proc, cgroup)
        if (limit := _number(file := folder / names.limit)) is not None
    ]
    least = min(limits, default=None, key=lambda pair: pair[0])
    return str(least[1]) if least and least[0] < psutil.virtual_memory().total else ""
