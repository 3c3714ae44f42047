"""A real Ray cluster on this machine: a head and another node, in a namespace that ends with the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dca.catalogue import machine
from dca.foundation import store
from dca.toolchain import environments
from tests.support import wait_for
from tests.support.slurm import free_ports

RAY = "ray[default]==2.60.0"
GIB = 6
"""Memory that a node says it has: room for one job of the toy's."""
# There need not be so many cores.
SIZE = "--num-cpus=4 --memory=$6 --object-store-memory=80000000 --disable-usage-stats"


def gpu(kind: str) -> str:
    """The words that give a node a GPU of a kind, which it does not have."""
    return f"""--num-gpus=1 --resources='{{"accelerator_type:{kind}": 1}}'"""


# $1 is Ray's program, $2 its folder, $3 to $5 are the ports of the head, its job server, and the second node's agent;
# $6 is the memory of a node in bytes.
# A node gives up when a busy machine takes more than 30 s to start it.
START = f"""
tried() {{ for _ in 1 2 3 4; do "$@" && return; done; return 1; }}
head() {{
    "$1" start --head --port=$3 --dashboard-port=$4 --temp-dir="$2" {SIZE} {gpu("A100")} > "$2/head.log" 2>&1 && return
    "$1" stop --force > "$2/stop.log" 2>&1
    return 1
}}
node() {{
    "$1" start --address=127.0.0.1:$3 --dashboard-agent-listen-port=$5 {SIZE} {gpu("H100")} > "$2/node.log" 2>&1
}}
tried head "$@"
tried node "$@"
echo ready
exec sleep infinity
"""


class RayCluster:
    """A running cluster.

    Args:
        python: of an environment with Ray and with all that runs dca.
        address: of its job server.
        folder: its own.
    """

    def __init__(self, python: Path, address: str, folder: Path) -> None:
        self.python, self.address, self.folder = python, address, folder

    def within(self, env: Mapping[str, str]) -> dict[str, str]:
        """The variables with those of the cluster."""
        return {**env, "RAY_ADDRESS": self.address, "HOME": str(self.folder)}


def ray_python(folder: Path, cache: store.Store) -> Path:
    """The Python of a new environment with Ray, and with the packages of this one; skips the test where it cannot be.

    Args:
        folder: of the environment.
        cache: whose downloads uv uses.
    """
    uv, env, python = machine.find_uv(), environments.uv_environment(cache), folder / "bin/python"
    for argv in (
        [uv, "venv", "--python", sys.executable, folder],
        [uv, "pip", "install", "--compile-bytecode", "--python", python, RAY],
    ):
        done = subprocess.run([*map(str, argv)], env=env, text=True, capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"Ray: it cannot be installed: {done.stderr.strip()[-300:]}")
    (packages,) = folder.glob("lib/python3*/site-packages")
    (ours,) = Path(sys.prefix).glob("lib/python3*/site-packages")
    (packages / "ours.pth").write_text(f"{ours}\n")
    return python


@contextlib.contextmanager
def ray_cluster(folder: Path, python: Path, env: Mapping[str, str], gib: int = GIB) -> Iterator[RayCluster]:
    """A cluster for the time of the block; skips the test where it cannot be had.

    Args:
        folder: an empty one, with a short path: sockets are in it.
        python: of an environment with Ray.
        env: variables of the nodes.
        gib: memory that each node says it has.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        pytest.skip("Ray: needs root and util-linux")
    ports = list(map(str, free_ports(3, above=20_000)))
    one = RayCluster(python, f"http://127.0.0.1:{ports[1]}", folder)
    namespaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    words = ["sh", "-ec", START, "start", str(python.with_name("ray")), str(folder), *ports, str(gib << 30)]
    nodes = {name: value for name, value in one.within(env).items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *namespaces, *words],
        env=nodes,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout
        said = process.stdout.readline()
        assert said == "ready\n", f"{said}{_logs(folder)}"
        assert wait_for(lambda: _answers(one), 60.0), _logs(folder)
        yield one
    finally:
        process.kill()
        process.communicate()


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))


def _answers(one: RayCluster) -> bool:
    words = [str(one.python.with_name("ray")), "list", "nodes", "--address", one.address, "--filter", "state=ALIVE"]
    done = subprocess.run(words, env=one.within(os.environ), text=True, capture_output=True, check=False)
    return "Total: 2" in done.stdout
