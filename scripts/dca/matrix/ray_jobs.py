"""Ray as the engine of a matrix: each wheel is a job of its job server, which outlives the command that submits it."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dca.catalogue import machine
from dca.foundation import documents, environment, store
from dca.foundation.errors import DcaError
from dca.matrix.engine import Kind, Seen, document
from dca.matrix.values import Job

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

HANDED_ON = ("PYTHONPATH", "CC", "CXX", "CUDAHOSTCXX", "CUDA_HOME")
"""Variables of the driver that jobs get; who sees the cluster can read them. Others are those of the node."""
LISTED_SECONDS = 60.0
"""How long a job may be missing in the list of jobs before it counts as lost."""
TYPE, SHARE = "accelerator_type:", 0.001
"""How Ray's resource begins that names a node's kind of GPU, and how much of it a job takes."""
SAID = 300
"""How much of a message of Ray's is shown; the log, which follows in it, has a file of its own."""


class Ray:
    """The cluster of RAY_ADDRESS, or the one that runs on this machine.

    Args:
        folder: for the jobs' logs; its path tells matrices apart.
        words: that the command of every job ends with.

    Raises:
        DcaError: DCA-103 when Ray's library is not there, DCA-171 when the cluster does not answer.
    """

    name = "Ray"
    without_gpus = "no node of the cluster has the resource GPU."

    def __init__(self, folder: Path, words: Sequence[str] = ()) -> None:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise DcaError(
                "DCA-103",
                "Ray is not installed, which --executor ray requires.",
                why="it must have the version of the cluster.",
                remedy=machine.install_command("ray"),
            ) from None
        self.folder, self.words, self.prefix = folder, tuple(words), f"dca-{documents.digest(str(folder))[:12]}-"
        self._number = Counter[str]()
        self._nodes: dict[str, str] = {}
        self._missing: dict[str, float] = {}
        with _asking():
            self._client = JobSubmissionClient()

    def left(self) -> dict[str, str]:
        """Jobs of an earlier driver whose result nobody has taken: the newest job's id by the id of its cell."""
        with _asking():
            jobs = self._jobs()
            # An id is used once, also when its job is no longer listed.
            for identity in [*jobs, *(f"{self.prefix}{path.stem}" for path in self.folder.glob("*.taken"))]:
                cell, _, number = identity.removeprefix(self.prefix).rpartition("-")
                if identity.startswith(self.prefix) and number.isdigit() and int(number) > self._number[cell]:
                    self._number[cell] = int(number)
            newest = {cell: f"{self.prefix}{cell}-{number}" for cell, number in self._number.items()}
            for identity, job in jobs.items():
                mine = identity.startswith(self.prefix) and job.status.is_terminal()
                if mine and (self._taken(identity).exists() or identity not in newest.values()):
                    self._client.delete_job(identity)
        return {cell: identity for cell, identity in newest.items() if not self._taken(identity).exists()}

    def _taken(self, identity: str) -> Path:
        """A file that is there once the result of a job was taken."""
        return self.folder / f"{identity.removeprefix(self.prefix)}.taken"

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of GPUs of the cluster's nodes, by name, as Ray detects them or as the nodes were started with.

        Raises:
            DcaError: DCA-171 when Ray does not answer.
        """
        with _asking():
            nodes = [node.resources_total or {} for node in self._list_nodes()]
        found = Counter[str]()
        for total in nodes:
            if total.get("GPU", 0) >= 1:
                found.update([name for name in total if name.startswith(TYPE)] or [""])
        kinds = (Kind(":".join(filter(None, ["gpu", of.removeprefix(TYPE)])), of, count) for of, count in found.items())
        return tuple(sorted(kinds, key=lambda kind: kind.name))

    def submit(self, job: Job, kind: Kind | None = None) -> str:
        """Submit a job; its id.

        Args:
            job: what it runs.
            kind: of the node, of which it gets one GPU; None for any node.

        Raises:
            DcaError: DCA-171 when no node has room for it, or Ray does not answer.
        """
        with _asking():
            # Ray binds no job to its memory, so that a smoke test need not ask for what nobody has measured.
            gib = 0 if kind else job.gib
            self._check_room(job.cores, gib, kind)
            self._number[job.id] += 1
            # A job begins in a folder of Ray's.
            argv = ("env", "-C", str(Path.cwd()), sys.executable, "-m", *job.command, *self.words)
            return str(
                self._client.submit_job(
                    # Ray takes a line of a shell and nothing else.
                    entrypoint=shlex.join(argv),
                    submission_id=f"{self.prefix}{job.id}-{self._number[job.id]}",
                    entrypoint_num_cpus=job.cores,
                    entrypoint_memory=gib << 30 or None,
                    entrypoint_num_gpus=1 if kind else None,
                    # A node has one of it for all of its GPUs.
                    entrypoint_resources={kind.asked: SHARE} if kind and kind.asked else None,
                    runtime_env={"env_vars": environment.passed(HANDED_ON)},
                )
            )

    def _check_room(self, cores: int, gib: int, kind: Kind | None) -> None:
        """Reject a job that no node can ever run: Ray would let it wait."""
        rooms = []
        for node in self._list_nodes():
            total = node.resources_total or {}
            if kind and not (total.get("GPU", 0) >= 1 and (not kind.asked or kind.asked in total)):
                continue
            rooms.append((int(total.get("CPU", 0)), int(total.get("memory", 0)) >> 30))
        if not any(has >= cores and free >= gib for has, free in rooms):
            nodes = "; ".join(f"{has} cores and {free} GiB" for has, free in sorted(set(rooms)))
            of = f" of the kind {kind.name}" if kind else ""
            raise DcaError(
                "DCA-171",
                "no node of the Ray cluster has room for the job.",
                why=f"it asks for {cores} cores and {gib} GiB; the nodes{of} have {nodes or 'nothing'}.",
                remedy="limit its cores with --cores, or add a node with more.",
            )

    def _list_nodes(self) -> list[Any]:
        from ray.util.state import list_nodes

        nodes = list_nodes(address=self._client.get_address(), filters=[("state", "=", "ALIVE")], limit=10_000)
        self._nodes |= {node.node_id: node.node_name for node in nodes}
        return list(nodes)

    def look(self, identities: Sequence[str]) -> dict[str, Seen]:
        """How far jobs are; those of which nothing is known now are left out.

        Raises:
            DcaError: DCA-171 when Ray does not answer.
        """
        seen = {}
        with _asking():
            jobs = self._jobs()
            for identity in identities:
                if identity not in jobs:
                    # It may not be listed at once.
                    since = self._missing.setdefault(identity, time.monotonic())
                    if time.monotonic() - since > LISTED_SECONDS:
                        seen[identity] = Seen("ended", why="Ray has forgotten it.")
                elif not jobs[identity].status.is_terminal():
                    running = jobs[identity].status.value == "RUNNING"
                    seen[identity] = Seen("running" if running else "queued", node=self._node(jobs[identity]))
                else:
                    seen[identity] = self._ended(identity, jobs[identity])
        return seen

    def _node(self, job: JobDetails) -> str:
        identity = job.driver_node_id or ""
        if identity and identity not in self._nodes:
            self._list_nodes()
        return self._nodes.get(identity, identity[:12])

    def _ended(self, identity: str, job: JobDetails) -> Seen:
        log, text = self._taken(identity).with_suffix(".log"), ""
        # The log of a node that is gone went with it.
        with contextlib.suppress(DcaError), _asking():
            text = self._client.get_job_logs(identity)
            store.write_bytes(log, text.encode())
        error = str(getattr(job.error_type, "value", job.error_type) or "")
        return Seen(
            "ended",
            node=self._node(job),
            report=document(text.splitlines()),
            why=f"Ray says {job.status.value}: {(job.message or '').strip()[:SAID]} Its log is {log}.",
            hopeless=job.status.value == "STOPPED",
            remedy="run the same command again to submit it again.",
            waited=error == "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        )

    def _jobs(self) -> Mapping[str, JobDetails]:
        return {str(job.submission_id): job for job in self._client.list_jobs() if job.submission_id}

    def forget(self, identity: str) -> None:
        """Note that the result of a job was taken.

        The next driver removes it from Ray's list: one that has just ended Ray would list again, as one that died.
        """
        store.write_bytes(self._taken(identity), b"")

    def how_to_end(self) -> str:
        """The command that ends all jobs of this matrix."""
        return " && ".join(f"ray job stop {self.prefix}{cell}-{number}" for cell, number in self._number.items())


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """An answer of Ray's that is none is an error of ours.

    Raises:
        DcaError: DCA-171.
    """
    from ray.util.state.exception import RayStateApiException
    from requests import RequestException

    try:
        yield
    except (RuntimeError, ConnectionError, RequestException, RayStateApiException) as error:
        raise DcaError(
            "DCA-171",
            "Ray rejected the request, or does not answer.",
            why=str(error).strip()[:SAID],
            remedy="set RAY_ADDRESS to the head's job server, such as http://head:8265, and try `ray job list`.",
        ) from None
