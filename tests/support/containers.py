"""Runs the steps of a Containerfile in mount namespaces over overlays of /, with this machine for the base images.

What an image's builder does is done here for the instructions that our Containerfiles have; others are an error. All
layers lie in a tmpfs of a mount namespace of their own, which ends with the process that holds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "setpriv", "pivot_root"))),
    reason="needs root and util-linux",
)
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# $1 is the root; what follows runs in it. A container has /proc, /dev, /tmp and the machine's names of its own.
ENTER = """
cd "$1"; shift
mount -t proc proc proc; mount --rbind /dev dev; mount -t tmpfs tmpfs tmp
for file in resolv.conf hosts; do [ ! -e "/etc/$file" ] || mount --bind "/etc/$file" "etc/$file"; done
pivot_root . .; umount -l .; cd /
exec "$@"
"""
OVERLAY = (
    'mkdir -p "$1/upper" "$1/work" "$1/root"; '
    'mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"'
)


@dataclass
class Stage:
    """A stage as far as it was built.

    Args:
        root: its root, in the namespace.
        base: of its FROM, as it is written.
        env: of its programs.
        labels: of the image.
        ran: its RUN steps.
    """

    root: Path
    base: str
    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    folder: str = "/"
    user: str = ""
    health: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Containerfile with their arguments; lines that continue are joined as builders do."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


class Builder:
    """Builds images in a namespace.

    Args:
        layers: an empty folder.
    """

    def __init__(self, layers: Path) -> None:
        self.layers = layers
        self.stages: dict[str, Stage] = {}
        self.made = 0
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]
        ready = 'mount -t tmpfs tmpfs "$0"; echo ready; exec sleep infinity'
        self.holder = subprocess.Popen([*argv, ready, str(layers)], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout
        assert self.holder.stdout.readline() == "ready\n"

    def close(self) -> None:
        """Everything that was built goes with the namespace."""
        self.holder.kill()
        self.holder.communicate()

    def inside(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace, outside of the images."""
        words = ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", *map(str, argv)]
        return subprocess.run(words, text=True, capture_output=True, check=False)

    def right(self, *argv: str | Path) -> None:
        done = self.inside(*argv)
        assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"

    def run(self, stage: Stage, *argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program in a stage, as its user."""
        user = stage.user.split(":")
        drop = ["setpriv", "--reuid", user[0], "--regid", user[1], "--clear-groups"] if stage.user else []
        home = "/root" if not stage.user else stage.folder
        given = {"PATH": PATH, "HOME": home, **stage.env, **(env or {})}
        words = [*drop, "env", "-i", "-C", stage.folder, *(f"{name}={value}" for name, value in given.items()), *argv]
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER, "enter"]
        return self.inside(*enter, stage.root, *words)

    def prepare(self) -> None:
        """Make what stands for the base images: this machine with this Python, and its pip, in /usr/local."""
        image = self.layers / "image"
        self.right("sh", "-ec", OVERLAY, "overlay", image, "/")
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        target = image / "root/usr/local"
        library = Path(sysconfig.get_path("stdlib"))
        shared = Path(str(sysconfig.get_config_var("LIBDIR")))
        self.right(
            "sh",
            "-ec",
            'cp -L "$1" "$2/bin/$4"; ln -s "$4" "$2/bin/python"; mkdir -p "$2/lib/$4"; '
            'tar -C "$3" --exclude ./test --exclude ./site-packages -cf - . | tar -C "$2/lib/$4" -xf -; '
            'cp -a "$5"/libpython3*.so* "$2/lib/" 2>/dev/null || :',
            "copy",
            Path(getattr(sys, "_base_executable", sys.executable)).resolve(),
            target,
            library,
            version,
            shared,
        )
        stage = Stage(image / "root", "")
        for argv in (["ldconfig"], ["python", "-m", "ensurepip"]):
            done = self.run(stage, *argv)
            assert done.returncode == 0, done.stdout + done.stderr

    def build(self, text: str, arguments: Mapping[str, str], *, runs: int | None = None) -> Stage:
        """Build an image; the last stage.

        Args:
            text: the Containerfile.
            arguments: of the build.
            runs: how many RUN steps are run, if not all: the build then ends.

        Raises:
            StepError: a step fails.
        """
        given, stage, count = dict(arguments), Stage(self.layers, ""), 0
        for name, rest in instructions(text):
            if name == "FROM":
                base, _, own = rest.partition(" AS ")
                self.made += 1
                layer = self.layers / f"stage-{self.made}"
                self.right("sh", "-ec", OVERLAY, "overlay", layer, f"{self.layers}/image/upper:/")
                stage = Stage(layer / "root", _filled(base, given))
                self.stages[own] = stage
            elif name == "ARG":
                argument, _, default = rest.partition("=")
                if argument in given or default:
                    given.setdefault(argument, default)
                    if stage.base:
                        stage.env[argument] = given[argument]
            elif name == "RUN":
                if count == runs:
                    return stage
                count += 1
                stage.ran.append(rest)
                done = self.run(stage, "/bin/sh", "-c", rest)
                if done.returncode:
                    raise StepError(rest, done)
            elif name == "COPY":
                match = re.fullmatch(r"--from=(\w+) (/\S+) (/\S+)", rest)
                assert match, rest
                source, target = self.stages[match[1]].root / match[2][1:], stage.root / match[3][1:]
                self.right("cp", "-a", source, target)
            else:
                _set(stage, name, rest)
                if name == "WORKDIR":
                    self.right("mkdir", "-p", stage.root / rest[1:])
        return stage


class StepError(Exception):
    """A RUN step failed."""

    def __init__(self, step: str, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"{step}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], ""), text)


def _set(stage: Stage, name: str, rest: str) -> None:
    """What an instruction says of the image, without running anything."""
    if name == "ENV":
        for word in shlex.split(rest):
            variable, _, value = word.partition("=")
            stage.env[variable] = _filled(value, {"PATH": PATH, **stage.env})
    elif name == "LABEL":
        stage.labels |= dict(word.split("=", 1) for word in shlex.split(rest))
    elif name == "WORKDIR":
        stage.folder = rest
    elif name == "USER":
        stage.user = rest
    elif name == "CMD":
        stage.command = tuple(json.loads(rest))
    elif name == "HEALTHCHECK":
        stage.health = tuple(json.loads(rest.partition(" CMD ")[2]))
    else:
        assert name == "EXPOSE", name


@contextlib.contextmanager
def builder(layers: Path) -> Iterator[Builder]:
    """A builder for the time of the block."""
    layers.mkdir()
    made = Builder(layers)
    try:
        made.prepare()
        yield made
    finally:
        made.close()
