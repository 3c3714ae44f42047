"""A real scheduler of sccache-dist with builders on this machine, which can be made ill or killed."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from dca.foundation import data, store
from dca.toolchain import environments
from tests.support import ROOT, quiet_run, wait_for
from tests.support.machines import program

# bubblewrap; while the file ILL exists it fails as where no namespace can be made.
BWRAP = """\
[ "$1" != --version ] && [ -e {ill} ] && {{ echo "bwrap: No permissions to create new namespace" >&2; exit 1; }}
exec {bwrap} "$@"
"""


def documented() -> tuple[tuple[str, str, str], tuple[str, str]]:
    """Settings of a scheduler, a builder and a build, and units of the first two, as documented."""
    text = (ROOT / "docs/compiled.md").read_text()
    section = text.partition("\n## Several machines for one build\n")[2].partition("\n## ")[0]
    settings, units = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("toml", "ini"))
    scheduler, builder, build = settings
    of_scheduler, of_builder = units
    return (scheduler, builder, build), (of_scheduler, of_builder)


def filled(settings: str, places: dict[str, str]) -> bytes:
    """Settings of the documentation with the addresses and folders of a test."""
    for name, place in places.items():
        settings = settings.replace(name, place)
    return settings.encode()


def unit(role: str) -> configparser.SectionProxy:
    """What the unit of the documentation for a role, `scheduler` or `server`, starts."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(documented()[1][role == "server"])
    return parser["Service"]


def command(role: str, sccache: Path, settings: Path) -> list[str]:
    """The command of a unit, with another program and file of settings."""
    program, *words = shlex.split(unit(role)["ExecStart"])
    assert (program, words[:2]) == ("/opt/sccache/bin/sccache-dist", [role, "--config"])
    return [str(sccache), *words[:2], str(settings)]


def variables(role: str) -> dict[str, str]:
    """The variables of a unit."""
    return dict(word.split("=", 1) for word in shlex.split(unit(role)["Environment"]))


def require() -> None:
    """Skip a test where builders of sccache-dist cannot run."""
    if os.geteuid() != 0:
        pytest.skip("builders of sccache-dist need root")
    if shutil.which("bwrap") is None:
        pytest.skip("builders of sccache-dist need bubblewrap: apt-get install bubblewrap")
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("builders of sccache-dist need overlayfs")
    words = ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "true"]
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("bubblewrap makes no namespaces here, as in a chroot")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Cluster:
    """A scheduler and two builders.

    Args:
        folder: a new folder.
        cache: that has sccache, or gets it.
    """

    def __init__(self, folder: Path, cache: store.Store) -> None:
        version = ".".join(map(str, sys.version_info[:3]))
        python = environments.make(data.cache_lock("sccache"), sys.executable, version, quiet_run(folder, cache))
        self._program, self._folder = python.parent / "sccache-dist", folder
        self._scheduler = f"127.0.0.1:{free_port()}"
        self.builders = tuple(f"127.0.0.1:{free_port()}" for _ in range(2))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        (scheduler, of_builder, build), _ = documented()
        places = {"10.0.0.1:10600": self._scheduler, "[dist]\n": f'[dist]\ncache_dir = "{folder}/client"\n'}
        store.write_bytes(folder / "scheduler.conf", filled(scheduler, places))
        self.settings = folder / "client.toml"
        store.write_bytes(self.settings, filled(build, places))
        self._start("scheduler", "scheduler")
        assert wait_for(lambda: self._status() == 0, 20.0)
        for builder in self.builders:
            own = self._own(builder)
            own.mkdir()
            bwrap = shutil.which("bwrap") or ""
            program(own / "bwrap", BWRAP.format(ill=shlex.quote(str(own / "ill")), bwrap=shlex.quote(bwrap)))
            more = {"10.0.0.2:10501": builder, "/var/cache/sccache-builder": str(own), "/usr/bin/bwrap": f"{own}/bwrap"}
            store.write_bytes(folder / f"{own.name}.conf", filled(of_builder, {**places, **more}))
            self._start("server", builder)
        assert wait_for(lambda: self._status() == 2, 20.0)

    def _own(self, builder: str) -> Path:
        return self._folder / builder.rpartition(":")[2]

    def _start(self, role: str, name: str) -> None:
        conf = self._folder / f"{name.rpartition(':')[2]}.conf"
        with (self._folder / f"{conf.stem}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                command(role, self._program, conf),
                env={"PATH": os.environ["PATH"], **variables(role)},
                stdout=log,
                stderr=log,
            )

    def _status(self) -> int:
        """How many builders the scheduler has; -1 while it does not answer."""
        try:
            answer = requests.get(
                f"http://{self._scheduler}/api/v1/scheduler/status", headers={"Accept": "application/json"}, timeout=3
            )
            return int(answer.json()["num_servers"])
        except requests.RequestException:
            return -1

    def busy(self, builder: str) -> bool:
        """Whether a builder is compiling."""
        return any(self._own(builder).glob("build/builds/*"))

    def make_ill(self, builder: str) -> None:
        """Let everything fail that a builder compiles from now on."""
        (self._own(builder) / "ill").touch()

    def heal(self, builder: str) -> None:
        (self._own(builder) / "ill").unlink(missing_ok=True)

    def signal(self, builder: str, number: signal.Signals) -> None:
        """Kill or stop a builder."""
        self._running[builder].send_signal(number)

    def restart(self, builder: str) -> None:
        """Start a builder that was killed."""
        self._running[builder].wait()
        self._start("server", builder)
        log = self._folder / f"{self._own(builder).name}.log"
        assert wait_for(lambda: "connected to scheduler" in log.read_text(), 20.0)

    def end(self) -> None:
        """End everything."""
        for one in self._running.values():
            one.kill()
            one.wait()
