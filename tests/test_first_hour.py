"""The first hour on bare Debian: README's lines as an ordinary user pastes them, in a system made by debootstrap.

Needs root, debootstrap, a Debian mirror and a package index, and downloads gigabytes for each release; so it is part of
`make prove` only. Mounts are made in a namespace of each command, so that none is left over.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dca.foundation import certificates
from dca.toolchain import apt
from tests.support import ROOT

pytestmark = [
    pytest.mark.whole,
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("debootstrap") is None, reason="debootstrap is missing, or needs root"
    ),
]
README = (ROOT / "README.md").read_text()
# What a system has from its administrator: names, certificates, and how apt reaches its mirror.
OF_THE_MACHINE = (
    "etc/resolv.conf",
    "etc/hosts",
    "etc/ssl/certs",
    "etc/apt/apt.conf.d",
    "etc/pip.conf",
    "etc/uv/uv.toml",
)
MOUNTED = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$@"'


@dataclass(frozen=True)
class Bare:
    """A system with nothing but what the release's minimal variant has.

    Args:
        root: its root folder.
    """

    root: Path

    def run(self, command: str, *, user: str = "user") -> str:
        """Run a line of README in the checkout; its output, which is also printed with the longest silence."""
        root = str(self.root)
        words = [f"--userspec={user}:{user}", root, "/usr/bin/env", "-C", "/home/user/clone"]
        home = "/root" if user == "root" else f"/home/{user}"
        words += [f"HOME={home}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", command]
        env = {name: value for name, value in os.environ.items() if name not in ("DCA_CACHE_DIR", "TMPDIR")}
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", MOUNTED, root, *words]
        lines, before, silence = [], time.monotonic(), 0.0
        print(f"$ {command}")
        with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout or ():
                silence, before = max(silence, time.monotonic() - before), time.monotonic()
                lines.append(line)
                print(line, end="")
        text = "".join(lines)
        print(f"# status {process.returncode}, silent for {silence:.0f} s at most")
        assert process.returncode == 0, text[-3000:]
        return text

    @property
    def left(self) -> list[str]:
        """What lies in the temporary folder."""
        return sorted(path.name for path in (self.root / "tmp").iterdir())


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def bare(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """A bare release with a user and a clone, on which README's first line has run."""
    root = tmp_path_factory.mktemp(request.param) / "root"
    mirror = apt.mirror("debian")
    words = ["debootstrap", "--variant=minbase", "--include=ca-certificates", request.param, root]
    subprocess.run([*words, *([mirror.uri] if mirror else [])], check=True, stdout=subprocess.DEVNULL)
    for name in OF_THE_MACHINE:
        if Path("/", name).exists():
            target = (root / name).parent
            target.mkdir(parents=True, exist_ok=True)
            # The release has links of the same names.
            subprocess.run(["cp", "-a", "--remove-destination", f"/{name}", target], check=True)
    bundle = certificates.bundle()
    if bundle and Path(bundle).is_file():
        (root / bundle.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle, root / bundle.lstrip("/"))
    subprocess.run(["chroot", root, "useradd", "--create-home", "--shell", "/bin/sh", "user"], check=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, root / "home/user/clone"], check=True)
    subprocess.run(["chroot", root, "chown", "--recursive", "user:user", "/home/user"], check=True)
    system = Bare(root)
    system.run(f"apt-get update && {install_line(request.param)}", user="root")
    yield system
    shutil.rmtree(root)


def install_line(release: str) -> str:
    """README's line that installs the tools, for root and without questions, with what the release needs besides."""
    ((line, note),) = re.findall(r"^\$ sudo (apt install [^#\n]*)#([^\n]*)$", README, re.MULTILINE)
    more = note.rpartition("also ")[2] if release == "trixie" else ""
    return f"{line.strip().replace('apt install', 'apt-get install -y --no-install-recommends')} {more}"


def test_readmes_lines_give_a_wheel_and_a_proof_of_it(bare: Bare) -> None:
    """The small wheel of the group index-only in place of the whole one, which takes the same way."""
    built = bare.run("make wheel WITH=index-only")
    (wheel,) = (bare.root / "home/user/clone/dist").glob("*.whl")
    assert f"dist/{wheel.name}" in built
    assert "not a wheel to serve with" in built
    assert bare.left == []
    commands = re.findall(r"^    (\S+/(?:dca|uv) .*)$", built, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        # The program is there, and reads its options; installing 8 GB is not repeated for each of them.
        bare.run(f"{shlex.split(command)[0]} --version")
    proven = bare.run("make smoke")
    assert "left out    by design, fwd_sparse" in proven
    assert "FAIL" not in proven
    assert bare.left == []


def test_the_doctor_finds_nothing_wrong(bare: Bare) -> None:
    assert " 0 wrong" in bare.run("make doctor")


def test_the_environment_of_the_tests_is_made_and_runs_them(bare: Bare) -> None:
    bare.run("make dev && .venv/bin/python -m pytest -q -n0 tests/catalogue/test_host_packages.py")
    assert bare.left == []


def test_without_a_compiler_and_headers_the_official_wheel_is_copied(bare: Bare) -> None:
    bare.run("mkdir ~/bin && ln -s /usr/bin/* ~/bin && rm ~/bin/*g++* ~/bin/c++*")
    for header in (bare.root / "usr/include").glob("python3*/Python.h"):
        header.rename(header.with_suffix(".hidden"))
    try:
        built = bare.run("PATH=$HOME/bin make wheel PREBUILT=all")
    finally:
        for header in (bare.root / "usr/include").glob("python3*/Python.hidden"):
            header.rename(header.with_suffix(".h"))
    assert ".prebuilt-" in built
