"""A real Slurm on this machine: Debian's daemons, unpacked and not installed, with two nodes in namespaces.

All of it ends with one process, and with the tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import wait_for

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2", "libhwloc15")
LIBRARY = "usr/lib/x86_64-linux-gnu"
NODES = ("n1", "n2")
# A node of this size takes one job of the toy's at a time; there need not be so many cores.
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
CredType=cred/munge
MpiDefault=none
PluginDir={root}/{library}/slurm-wlm
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
ReturnToService=2
SlurmdTimeout=10
KillWait=2
JobRequeue=1
GresTypes=gpu
{more}
{nodes}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=60 State=UP
PartitionName=off Nodes=n2 MaxTime=60 State=DOWN
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket=4 ThreadsPerCore=1 RealMemory=6000 Gres=gpu:{gpu}:1"
)
GPUS = dict(zip(NODES, ("a100", "h100"), strict=True))
"""What the nodes call the GPU that they do not have."""
# A cluster that ends jobs which take more memory than they asked for, without control groups.
WATCHED = "JobAcctGatherType=jobacct_gather/linux\nJobAcctGatherFrequency=1\nJobAcctGatherParams=OverMemoryKill"
# $1 is munge's folder, $2 the folder of the daemons' programs, $3 that of logs, $4 a folder which is a small disk of
# the first node's own. A daemon that crashes would leave its memory in the folder of the job, which may be a checkout.
START = """
ulimit -c 0
munged -F --force --socket="$1/sock" --key-file="$1/key" --pid-file="$1/pid" --seed-file="$1/seed" \
    > "$3/munged.log" 2>&1 &
for _ in $(seq 100); do [ -S "$1/sock" ] || sleep 0.1; done; [ -S "$1/sock" ]
slurmctld -D -i > "$3/slurmctld.log" 2>&1 &
unshare --mount --propagation private slurmd -d "$2/slurmstepd" -D -N n2 > "$3/n2.log" 2>&1 &
unshare --mount --propagation private sh -ec \
    'mount -t tmpfs -o size=64k tmpfs "$1"; exec slurmd -d "$0/slurmstepd" -D -N n1' \
    "$2" "$4" > "$3/n1.log" 2>&1 &
echo ready
exec sleep infinity
"""


class Cluster:
    """A running cluster.

    Args:
        folder: its own.
        root: where the packages are unpacked.

    Attributes:
        small: a folder that on the node n1 is a disk of 64 KiB, and on the other one an ordinary folder.
        env: variables with which programs find the cluster, besides PATH.
        path: the folder of its programs.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root, self.small = folder, root, folder / "small"
        libraries = f"{root}/{LIBRARY}:{root}/{LIBRARY}/slurm-wlm"
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "LD_LIBRARY_PATH": libraries}
        self.path = f"{root}/usr/bin:{root}/usr/sbin"

    def within(self, env: Mapping[str, str]) -> dict[str, str]:
        """The variables with those of the cluster."""
        return {**env, **self.env, "PATH": f"{self.path}:{env['PATH']}"}

    def run(self, *words: str) -> str:
        """What a program of Slurm prints."""
        done = subprocess.run(words, env=self.within(os.environ), text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """States of all jobs that there were, the first one first."""
        lines = self.run("squeue", "--states=all", "--noheader", "--format=%i %T").splitlines()
        return [line.split()[1] for line in sorted(lines, key=lambda line: int(line.split()[0]))]

    def idle(self) -> bool:
        """Whether it answers, both nodes are up, and no job waits or runs."""
        words = ["sinfo", "--noheader", "--partition=all", "--format=%t %D"]
        done = subprocess.run(words, env=self.within(os.environ), text=True, capture_output=True, check=False)
        return done.stdout.split() == ["idle", "2"]

    def stop(self, node: str) -> None:
        """Let a node fail: its daemon, and all that runs there."""
        begin = f"slurmd -d {self.root}/"
        (daemon,) = [p for p, line in lines() if line.startswith(begin) and line.endswith(f" -N {node}")]
        space = (Path("/proc") / str(daemon) / "ns/mnt").readlink()
        for process, _ in lines():
            with contextlib.suppress(OSError):
                if (Path("/proc") / str(process) / "ns/mnt").readlink() == space:
                    os.kill(process, signal.SIGKILL)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"{path}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


def workers(out: Path) -> list[int]:
    """Processes of jobs that build wheels in a folder: those of dca, and those of submitit above them."""
    found = [process for process, line in lines() if f" --out {out} " in line and " --cell " in line]
    return [*found, *(process for process, line in lines() if "submitit.core._submit" in line)]


def lines() -> list[tuple[int, str]]:
    """All processes with their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                found.append((int(entry.name), " ".join(words).strip()))
    return found


@contextlib.contextmanager
def cluster(folder: Path, more: str = "") -> Iterator[Cluster]:
    """A cluster for the time of the block; skips the test where it cannot be had.

    Args:
        folder: an empty one, with a short path: sockets are in it.
        more: further lines of its configuration.
    """
    needed = ("unshare", "setpriv", "apt-get", "dpkg", "mount")
    if os.geteuid() != 0 or not all(map(shutil.which, needed)):
        pytest.skip("Slurm: needs root, util-linux and apt")
    packages, root = folder / "packages", folder / "root"
    packages.mkdir()
    done = subprocess.run(["apt-get", "download", *PACKAGES], cwd=packages, text=True, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"Slurm: its packages cannot be downloaded; apt-get update: {done.stderr.strip()[-300:]}")
    for package in packages.iterdir():
        subprocess.run(["dpkg", "-x", package, root], check=True)
    for program in ("slurmctld", "slurmd", "slurmstepd"):
        # As an installation has it: under another name a daemon does not read the nodes' generic resources.
        (root / "usr/sbin" / program).symlink_to(f"{program}-wlm")
    one = Cluster(folder, root)
    for name in ("state", "munge", "small", *NODES):
        (folder / name).mkdir()
    (folder / "munge/key").write_bytes(os.urandom(1024))
    (folder / "munge/key").chmod(0o600)
    (folder / "gres.conf").write_text(
        "".join(f"NodeName={name} Name=gpu Type={GPUS[name]} File=/dev/null\n" for name in NODES)
    )
    host, ports = socket.gethostname().partition(".")[0], free_ports(1 + len(NODES))
    nodes = "\n".join(
        NODE.format(name=name, host=host, port=port, gpu=GPUS[name])
        for name, port in zip(NODES, ports[1:], strict=True)
    )
    text = CONFIG.format(folder=folder, root=root, library=LIBRARY, host=host, ports=ports, nodes=nodes, more=more)
    (folder / "slurm.conf").write_text(text)
    namespaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    words: list[str | Path] = [
        *namespaces,
        "sh",
        "-ec",
        START,
        "start",
        folder / "munge",
        root / "usr/sbin",
        folder,
        one.small,
    ]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *words], env=one.within(os.environ), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n", one.logs()
        assert wait_for(one.idle, 60.0), one.logs()
        yield one
    finally:
        process.kill()
        process.communicate()


def free_ports(count: int, above: int = 0) -> list[int]:
    """Ports of this machine that nobody listens on.

    Args:
        count: how many.
        above: the least that each must be.
    """
    with contextlib.ExitStack() as stack:
        ports = list[int]()
        while len(ports) < count:
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports += [port for port in (one.getsockname()[1],) if port >= above]
        return ports
