"""How many compilers run at once."""

from __future__ import annotations

from dca.documents import Value

# What everything but the compilers takes: ninja, this tool, a desktop.
RESERVE_GIB = 1.0


class Jobs(Value):
    """How many compilers run at once, and why."""

    count: int
    reason: str


def choose_jobs(cores: int, memory_gib: float, job_gib: float, asked: int | None = None) -> Jobs:
    """As many compilers as there are cores, and memory for.

    Args:
        cores: the most that is of use.
        memory_gib: that a build may use.
        job_gib: what one compiler takes.
        asked: the user's own number, which is taken as it is.
    """
    if asked is not None:
        return Jobs(count=asked, reason="asked for with --jobs.")
    count = max(1, min(cores, int((memory_gib - RESERVE_GIB) / job_gib)))
    reason = f"{cores} cores; {memory_gib:g} GiB of memory for jobs of {job_gib:g} GiB."
    return Jobs(count=count, reason=reason)
