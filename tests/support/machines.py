"""Machines made up for tests: folders that stand in for /proc, /sys/fs/cgroup, /etc and for the programs on PATH."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dca import doctor
from dca.catalogue import recipes
from dca.doctor import Report, Result, Subject
from dca.doctor.probes import Probes
from tests.support import MATH_FUNCTIONS

ALL = recipes.compiling(recipes.load_all())


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


class Machine:
    """A made-up machine.

    Args:
        folder: where its files are.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.proc = folder / "proc"
        self.cgroup = folder / "cgroup"
        self.bin = folder / "bin"
        self.cache = folder / "cache"
        for place in (self.root / "etc", self.proc / "self", self.cgroup, self.bin, self.cache):
            place.mkdir(parents=True)
        (self.root / "etc/os-release").write_text('ID=thing\nPRETTY_NAME="Thing Linux 1"\n')
        (self.proc / "self/cgroup").write_text("0::/a/b\n")
        self.env: dict[str, str] = {}
        self.places: dict[str, Callable[[], str]] = {}
        self.known = ALL
        self.more: dict[str, Any] = {}

    def program(self, name: str, body: str) -> Path:
        return program(self.bin / name, body)

    def toolkit(self, place: Path, version: str, *missing: str) -> Path:
        program(place / "bin/nvcc", f"echo 'Cuda compilation tools, release {version[:4]}, V{version}'")
        for name in (
            "bin/ptxas",
            "nvvm/bin/cicc",
            "include/cuda_runtime.h",
            "lib64/libcudart.so",
            "lib64/libnvToolsExt.so",
        ):
            if name not in missing:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).touch()
        (place / "include/crt").mkdir(parents=True, exist_ok=True)
        (place / "include/crt/math_functions.h").write_text(MATH_FUNCTIONS)
        return place

    def gpus(self, *cards: str, driver: str = "550.54.15") -> None:
        lines = "".join(f"echo '{card}, {driver}'\n" for card in cards)
        self.program("nvidia-smi", lines)

    def python(
        self, packages: dict[str, str], *, number: str = "3.11.7", torch_cuda: str = "", record: str | None = None
    ) -> Path:
        answer = {"python": number, "packages": packages, "torch_cuda": torch_cuda, "record": record}
        return self.program("python-of-an-environment", f"printf '%s\\n' {shlex.quote(json.dumps(answer))}")

    def recipe(self, name: str) -> None:
        self.known = (recipes.find(name, ALL),)

    def subject(self, purpose: doctor.Purpose = "build") -> Subject:
        return Subject(
            purpose=purpose,
            recipes=self.known,
            network=Probes(self.places, 1.0),
            cache=self.cache,
            root=self.root,
            proc=self.proc,
            cgroup=self.cgroup,
            env=self.env,
            **self.more,
        )

    def report(self, *only: str, purpose: doctor.Purpose = "build") -> Report:
        return doctor.examine(self.subject(purpose), doctor.chosen(purpose, only))

    def all(self, code: str, purpose: doctor.Purpose = "build") -> tuple[Result, ...]:
        results = self.report(code, purpose=purpose).results
        assert {result.code for result in results} == {code}
        for result in results:
            # What is not fine says what to do.
            assert result.found
            assert result.status == "fine" or result.remedy
        return results

    def one(self, code: str, purpose: doctor.Purpose = "build") -> Result:
        (result,) = self.all(code, purpose)
        return result


def library(cards: list[tuple[str, tuple[int, int], int]], *, error: str = "") -> Any:
    """A stand-in for the module of nvidia-ml-py."""

    class NVMLError(Exception):
        pass

    def count() -> int:
        if error:
            raise NVMLError(error)
        return len(cards)

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=count,
        nvmlDeviceGetHandleByIndex=lambda number: cards[number],
        nvmlDeviceGetName=lambda card: card[0].encode(),
        nvmlDeviceGetCudaComputeCapability=lambda card: card[1],
        nvmlDeviceGetMemoryInfo=lambda card: SimpleNamespace(total=card[2]),
        nvmlSystemGetDriverVersion=lambda: "550.54.15",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 12040,
    )


PYTHON = Path(sys.executable)
