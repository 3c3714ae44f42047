"""Slurm as the engine of a matrix: submitit writes, submits and reads its jobs; squeue says how far they are."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dca.catalogue import machine
from dca.foundation import documents, runner
from dca.foundation.errors import DcaError
from dca.foundation.runner import Completed, Supervision
from dca.matrix.engine import Kind, Seen, work
from dca.matrix.values import Job

if TYPE_CHECKING:
    from submitit import SlurmJob

PROGRAMS = ("sbatch", "squeue", "scancel", "sinfo", "srun")
QUEUE_SECONDS = 60.0
RESULT_SECONDS = 5.0
"""How long after a job's end its result may take to be seen here, since folders are shared."""
RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED", "RESIZING"}
QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
USUAL = {"", "None", "Priority", "Resources", "BeginTime", "Dependency"}
"""Reasons to wait that pass by themselves."""
HOPELESS = {
    "CANCELLED": ("somebody cancelled it.", "run the same command again to submit it again."),
    "OUT_OF_MEMORY": (
        "it took more memory than it asked for.",
        "give it more with `--slurm mem=…`; `dca matrix --format json` shows what each job asks for.",
    ),
}
"""States in which another try would end the same way, or is not wanted: why, and what to do."""
MEMORY = re.compile(r"^slurmstepd\S*: error: .*(memory limit|oom.kill)", re.IGNORECASE | re.MULTILINE)
"""What a node writes into the output of a job that it ends for its memory."""
LIMITED = "give it more time with `--slurm time=MINUTES`, or another partition; finished objects are kept."
"""What to do about a job whose time runs out each time."""
GPUS = {"gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"}
"""Options of sbatch that ask for GPUs, in place of which a job of one kind of GPU has its own."""
UNUSABLE = ("down", "drain", "fail", "error", "inval", "maint", "reserved")
"""How states of nodes begin on which no job of ours starts."""
OWN = {
    "array",
    "error",
    "job-name",
    "nodes",
    "ntasks",
    "ntasks-per-node",
    "open-mode",
    "output",
    "parsable",
    "wait",
    "wrap",
}
"""Options of sbatch on which the driver depends."""


def options(words: Sequence[str]) -> dict[str, str | bool]:
    """The options of sbatch in values of `--slurm`, by name.

    Args:
        words: KEY=VALUE, or KEY for an option without a value.

    Raises:
        DcaError: DCA-201 for one of another form, or which the driver sets.
    """
    found: dict[str, str | bool] = {}
    for word in words:
        key, mark, value = word.partition("=")
        wrong = ""
        if not re.fullmatch(r"[a-z][a-z-]*", key) or not word.isprintable() or (mark and not value):
            wrong = "it is not KEY=VALUE, with a long option of sbatch without its dashes."
        elif key in OWN:
            wrong = "dca sets this option itself."
        elif key in found:
            wrong = f"{key} is there twice."
        if wrong:
            raise DcaError("DCA-201", f"--slurm {word}: {wrong}", remedy="write for example `--slurm partition=gpu`.")
        found[key] = value if mark else True
    return found


class Slurm:
    """The cluster that the programs of Slurm on this machine know.

    Args:
        folder: for the jobs' files, shared by all nodes; its path tells matrices apart.
        given: further options of sbatch, which take precedence.
        words: that the command of every job ends with.

    Raises:
        DcaError: DCA-103 for a program of Slurm or a library that is not there, DCA-207 for a folder that others may
            write to.
    """

    name = "Slurm"
    without_gpus = (
        "no node of the partition has a generic resource `gpu`; `--smoke-slurm partition=NAME` names another one."
    )

    def __init__(self, folder: Path, given: Mapping[str, str | bool], words: Sequence[str] = ()) -> None:
        if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
            raise DcaError(
                "DCA-103",
                f"--executor slurm needs Slurm's programs; PATH has no {missing[0]}.",
                remedy="run it where you submit jobs, such as a login node; `--format slurm` only writes a script.",
            )
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise DcaError(
                "DCA-103",
                "submitit is not installed, which --executor slurm requires.",
                remedy=machine.install_command("submitit"),
            ) from None
        _keep_private(folder)
        self.folder, self.given, self.words = folder, dict(given), tuple(words)
        self.prefix = f"dca-{documents.digest(str(folder))[:12]}-"
        self._gone: dict[str, float] = {}
        self._nodes: dict[str, str] = {}
        self._cells: dict[str, str] = {}

    def left(self) -> dict[str, str]:
        """Jobs of an earlier driver whose result nobody has taken: the newest job's id by the id of its cell."""
        found: dict[str, str] = {}
        for path in self.folder.glob("*/*_submitted.pkl"):
            identity = path.name.partition("_")[0]
            if identity.isdigit() and int(identity) > int(found.get(path.parent.name, "0")):
                found[path.parent.name] = identity
        for identity, (_, _, name, _) in self._queue().items():
            if name.startswith(self.prefix) and found.get(name.removeprefix(self.prefix)) != identity:
                # Its driver died before it had written what the job waits for; or there is a newer one.
                _ask(["scancel", identity])
        self._cells |= {identity: cell for cell, identity in found.items()}
        return found

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of GPUs of the partition's nodes, by name: those of the default partition if none is given.

        Raises:
            DcaError: DCA-171 when Slurm does not answer.
        """
        partition = str(self.given.get("partition", ""))
        chosen = [f"--partition={partition}"] if partition else []
        done = _ask(["sinfo", "--noheader", "--format=%P|%G|%D|%T", *chosen])
        if not done.ok:
            raise _silent(done)
        lines = [line.split("|") for line in done.tail if line.count("|") == len("PGDT") - 1]
        default = [line for line in lines if line[0].endswith("*")]
        # Without a default one sbatch says that a partition must be named.
        return kinds_of((gres, int(count), state) for _, gres, count, state in (not partition and default) or lines)

    def submit(self, job: Job, kind: Kind | None = None) -> str:
        """Submit a job; its id.

        Args:
            job: what it runs.
            kind: of the node, of which it gets one GPU; None for any node.

        Raises:
            DcaError: DCA-171 when Slurm rejects it.
        """
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder = self.folder / job.id
        folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**self.parameters(job, kind))
        argv = (sys.executable, "-m", *job.command, *self.words)
        try:
            # What sbatch says is in the error.
            with contextlib.redirect_stderr(io.StringIO()):
                identity = str(executor.submit(work, argv, self._log(job.id)).job_id)
        except (FailedJobError, FailedSubmissionError) as error:
            self._clear(job.id)
            said = [line.partition("error: ")[2] for line in str(error).splitlines() if "error: " in line]
            raise DcaError(
                "DCA-171",
                "Slurm rejected the job.",
                why="; ".join(dict.fromkeys(said)) or str(error),
                remedy="`sinfo` shows the partitions and `--slurm KEY=VALUE` sets any option of sbatch; "
                "--cores limits a job's cores.",
            ) from None
        self._cells[identity] = job.id
        return identity

    def parameters(self, job: Job, kind: Kind | None = None) -> dict[str, Any]:
        """What submitit is told of a job, by the names of its parameters; the arguments are those of `submit`."""
        given = {key.replace("-", "_"): value for key, value in self.given.items() if not (kind and key in GPUS)}
        if kind:
            given["gres"] = kind.asked
        memory = {} if given.keys() & {"mem_per_cpu", "mem_per_gpu"} else {"mem": f"{job.gib}G"}
        return {
            "job_name": f"{self.prefix}{job.id}",
            "cpus_per_task": job.cores,
            **memory,
            # The partition's own limit, if none is given.
            "time": None,
            # Clusters that check such keys do not know submitit's.
            "wckey": None,
            "stderr_to_stdout": True,
            # Signals then go to dca as well.
            "use_srun": False,
            "additional_parameters": given,
        }

    def look(self, identities: Sequence[str]) -> dict[str, Seen]:
        """How far jobs are; those of which nothing is known now are left out.

        Raises:
            DcaError: DCA-171 when Slurm does not answer and no result is there.
        """
        seen, silent = {}, None
        queue: dict[str, tuple[str, str, str, str]] | None = None
        try:
            queue = self._queue("--states=all")
        except DcaError as error:
            silent = error
        for identity in identities:
            if queue is not None and identity in queue:
                self._nodes[identity] = queue[identity][1] or self._nodes.get(identity, "")
            job = self._job(identity)
            with contextlib.suppress(OSError):
                # A folder of a network file system is read anew after a change of its mode.
                job.paths.folder.chmod(job.paths.folder.stat().st_mode)
            raised = job.exception() if (ended := job.paths.result_pickle.exists()) else None
            if ended and raised is None:
                seen[identity] = Seen("ended", node=self._nodes.get(identity, ""), report=job.result())
            elif queue is not None and (one := self._without_result(identity, queue.get(identity), raised)):
                seen[identity] = one
        if silent and not seen:
            raise silent
        return seen

    def _without_result(
        self, identity: str, found: tuple[str, str, str, str] | None, error: Exception | None
    ) -> Seen | None:
        """What becomes of a job that has left no report; None while that is not clear.

        Args:
            identity: of the job.
            found: what squeue says of it, as `_queue` returns it; None if it has forgotten it.
            error: with which it ended, if it could say so. Slurm knows why, as when its time ran out.
        """
        state, node, _, reason = found or ("", "", "", "")
        if state in QUEUED | RUNNING:
            # Also after its node failed, when Slurm queues it again.
            self._gone.pop(identity, None)
            if state in RUNNING:
                return Seen("running", node=node)
            return Seen("queued", why="" if reason in USUAL else reason)
        # It has ended, and Slurm forgets such jobs after some minutes.
        since = self._gone.setdefault(identity, time.monotonic())
        if time.monotonic() - since < RESULT_SECONDS:
            return None
        cause = "OUT_OF_MEMORY" if state not in HOPELESS and self._took_memory(identity) else state
        why, remedy = HOPELESS.get(cause, ("", LIMITED if state == "TIMEOUT" else ""))
        said = f"Slurm says {state}: {why or reason}".rstrip(": ") if state else "Slurm has forgotten it"
        log = self._log(self._cells[identity])
        raised = r"\w[\w.]*(Error|Exception|Interrupted)\b"
        own = [line for line in str(error or "").splitlines() if re.match(raised, line)][-1:]
        return Seen(
            "ended",
            node=self._nodes.get(identity, ""),
            why=" ".join([f"{said.rstrip('.')}.", *own, f"Its log is {log}."]),
            hopeless=cause in HOPELESS,
            remedy=remedy,
        )

    def _took_memory(self, identity: str) -> bool:
        """Whether the daemon of a node says in a job's output that memory is why it ended.

        Only control groups give such a job a state of its own.
        """
        output = Path(self._job(identity).paths.stdout)
        return output.is_file() and bool(MEMORY.search(output.read_text(encoding="utf-8", errors="replace")))

    def forget(self, identity: str) -> None:
        """Remove the files of a job, and of those before it of the same cell, but for their log."""
        self._clear(self._cells[identity])

    def _clear(self, cell: str) -> None:
        for path in (self.folder / cell).iterdir():
            if path != self._log(cell):
                path.unlink()

    def how_to_end(self) -> str:
        """The command that ends all jobs of this matrix."""
        names = ",".join(f"{self.prefix}{cell}" for cell in sorted(set(self._cells.values())))
        return shlex.join(["scancel", "--user", str(os.getuid()), f"--name={names}"])

    def _job(self, identity: str) -> SlurmJob[str]:
        import submitit

        return submitit.SlurmJob(self.folder / self._cells[identity], identity)

    def _log(self, cell: str) -> Path:
        return self.folder / cell / "dca.log"

    def _queue(self, *words: str) -> dict[str, tuple[str, str, str, str]]:
        """State, node, name and reason of the user's jobs, by id.

        Args:
            words: further options of squeue.

        Raises:
            DcaError: DCA-171 when Slurm does not answer.
        """
        form = "--format=%i|%T|%N|%j|%r"
        done = _ask(["squeue", f"--user={os.getuid()}", "--noheader", form, *words])
        if not done.ok:
            raise _silent(done)
        lines = [line.split("|", 4) for line in done.tail]
        return {line[0]: (line[1], line[2], line[3], line[4]) for line in lines if len(line) == len(form.split("|"))}


def kinds_of(nodes: Iterable[tuple[str, int, str]]) -> tuple[Kind, ...]:
    """The kinds of GPUs of nodes.

    Args:
        nodes: as sinfo lists them: the generic resources, such as `gpu:h100:8(S:0-1),mps:400`, the number of nodes that
            have these, and their state.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for gres, count, state in nodes:
        for word in dict.fromkeys(re.sub(r"\([^)]*\)", "", gres).split(",")):
            name, *parts = word.split(":")
            typed = [part for part in parts[:-1] if part != "no_consume"]
            if name == "gpu" and parts:
                found.setdefault(":".join([name, *typed]), []).append((count, state))
    kinds = []
    for name, having in sorted(found.items()):
        states = sorted({state.rstrip("*~#!%$@^-+") for _, state in having})
        down = all(state.startswith(UNUSABLE) for state in states)
        why = f"its nodes are {' or '.join(states)}" if down else ""
        kinds.append(Kind(name, f"{name}:1", sum(count for count, _ in having), why))
    return tuple(kinds)


def _silent(done: Completed) -> DcaError:
    return DcaError(
        "DCA-171",
        "Slurm does not answer.",
        why=" ".join(done.tail[-2:]),
        remedy="try `squeue`; when it answers, run the same command again: jobs that were submitted go on.",
    )


def _keep_private(folder: Path) -> None:
    """Make the folder of the jobs' files, or check that nobody else may write there.

    submitit's files are pickles, and whoever writes one decides what the driver and the nodes run.

    Raises:
        DcaError: DCA-207 when it is another user's, or others may write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DcaError(
            "DCA-207",
            f"others may write to {folder}, which the jobs' files are read from.",
            remedy="remove the folder once none of its jobs is in the queue, or choose another --cache-dir.",
        )


def _ask(argv: Sequence[str]) -> Completed:
    """Run a program of Slurm, which may take minutes to answer."""
    watch = Supervision(keep_lines=1_000_000, guarded=False)
    return runner.run(argv, env=dict(os.environ), timeout=QUEUE_SECONDS, supervision=watch)
